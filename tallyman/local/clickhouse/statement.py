"""What a client's SQL asks for, found from its words; the engine alone parses it in full.

Only four things are decided here: whether the answer can be streamed, whether data blocks follow, what is
taken out before the engine sees the text (FORMAT: the answer is always Native), and what is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tallyman.local.clickhouse.errors import NOT_IMPLEMENTED, SYNTAX_ERROR, UNKNOWN_STORAGE, ServerError

# A failed CREATE with one of these leaves a table file that keeps chDB from ever opening the folder again.
REFUSED_ENGINES = frozenset({"KAFKA", "RABBITMQ", "NATS", "FILELOG", "S3QUEUE", "AZUREQUEUE"})
_STREAMED = frozenset({"SELECT", "WITH", "FROM", "("})
_DATA_FORMAT = "NATIVE"

_TOKEN = re.compile(
    r"""
      (?P<gap>\s+|--[^\n]*|\#[\ !][^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<string>'(?:[^'\\]|\\.|'')*')
    | (?P<name>`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
    | (?P<heredoc>\$(\w*)\$.*?\$\5\$)
    | (?P<word>[^\W\d]\w*)
    | (?P<number>\d[\w.]*)
    | (?P<mark>.)
    """,
    re.DOTALL | re.VERBOSE,
)

Kind = Literal["stream", "insert", "set", "other"]


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of SQL that means something, with its place in the text."""

    kind: str
    text: str
    start: int
    end: int
    depth: int

    @property
    def word(self) -> str:
        """The word in capitals; "" if this is no bare word."""
        return self.text.upper() if self.kind == "word" else ""


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT whose rows come as data blocks.

    Attributes:
        target: Table or table function as written, without INTO.
        columns: The column list as written inside its brackets; None if there is none.
        head: The statement up to where FROM INFILE belongs.
        settings: The SETTINGS clause's items as written; "" if there is none.
    """

    target: str
    columns: str | None
    head: str
    settings: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a client.

    Attributes:
        sql: What the engine is to run.
        first: Its first word, in capitals.
        limited: Has a LIMIT of its own, so that the profile tells the rows before it.
        with_totals: Has WITH TOTALS of its own.
    """

    kind: Kind
    sql: str
    first: str
    insert: Insert | None = None
    limited: bool = False
    with_totals: bool = False


def tokens(sql: str) -> Iterator[Token]:
    """Cut SQL into tokens, without gaps and comments."""
    depth = 0
    for found in _TOKEN.finditer(sql):
        kind = found.lastgroup or "mark"
        if kind == "gap":
            continue
        text = found.group()
        if text in ")]}" and kind == "mark":
            depth -= 1
        yield Token(kind, text, found.start(), found.end(), depth)
        if text in "([{" and kind == "mark":
            depth += 1


def read_statement(sql: str) -> Statement:
    """Decide how a statement is run.

    Raises:
        ServerError: If it is empty, several, or one that this server refuses.
    """
    stream = tokens(sql)
    start = next(stream, None)
    if start is None:
        raise ServerError(SYNTAX_ERROR, "Empty query. (SYNTAX_ERROR)")
    if start.word == "INSERT":
        return _read_insert(sql, stream)
    all_tokens = [start, *stream]
    if start.word == "WITH" and any(t.word == "INSERT" and t.depth == 0 for t in all_tokens):
        return Statement("other", sql, "INSERT")
    return _read_query(sql, all_tokens)


def _read_query(sql: str, found: list[Token]) -> Statement:
    first = found[0].word or found[0].text
    end = len(sql)
    for place, token in enumerate(found):
        if token.text == ";" and token.kind == "mark" and token.depth == 0:
            _refuse_second(sql, found[place:])
            found, end = found[:place], token.start
            break
    if first in ("CREATE", "ATTACH", "REPLACE"):
        _refuse_engines(found)
    top = [t for t in found if t.depth == 0]
    words = [t.word for t in top]
    if "OUTFILE" in words and "INTO" in words:
        raise ServerError(NOT_IMPLEMENTED, "INTO OUTFILE is written by clients, not by a server. (NOT_IMPLEMENTED)")
    sql = _strip_format(sql[:end], top)
    if first not in _STREAMED:
        return Statement("set" if first in ("SET", "USE") else "other", sql, first)
    totals = any(w == "TOTALS" and before == "WITH" for before, w in pairwise(words))
    return Statement("stream", sql, first, limited="LIMIT" in words, with_totals=totals)


def _refuse_second(sql: str, rest: list[Token]) -> None:
    if any(token.text != ";" for token in rest):
        raise ServerError(
            SYNTAX_ERROR,
            f"Syntax error (Multi-statements are not allowed): failed at position {rest[0].start + 1} "
            f"(end of query): {sql[rest[0].start :][:80]}. (SYNTAX_ERROR)",
        )


def _refuse_engines(found: list[Token]) -> None:
    for place, token in enumerate(found):
        if token.word != "ENGINE":
            continue
        after = next((t for t in found[place + 1 : place + 3] if t.text != "="), None)
        name = after.text.strip('`"') if after else ""
        if name.upper() in REFUSED_ENGINES:
            raise ServerError(
                UNKNOWN_STORAGE,
                f"Table engine {name} is refused here: a failed CREATE with it would make the data folder "
                "unopenable; the pipeline writes this data instead. (UNKNOWN_STORAGE)",
            )


def _strip_format(sql: str, top: list[Token]) -> str:
    """Take `FORMAT name` out of the end, with or without SETTINGS behind it."""
    for place in range(len(top) - 2, -1, -1):
        token, after = top[place], top[place + 1]
        if token.word == "FORMAT" and after.kind == "word" and place > 0:
            rest = top[place + 2 :]
            if not rest or rest[0].word == "SETTINGS":
                return sql[: token.start] + " " + sql[after.end :]
    return sql


def _read_insert(sql: str, stream: Iterator[Token]) -> Statement:
    """Read an INSERT as far as its rows begin; inline rows may be megabytes and are not looked at."""
    target: list[Token] = []
    columns: str | None = None
    open_at: int | None = None
    head_end: int | None = None
    settings_at: int | None = None
    settings = ""
    is_function = False
    for token in stream:
        if token.depth > 0:
            continue
        word = token.word
        if not target and word in ("INTO", "TABLE"):
            continue
        if not target and word == "FUNCTION":
            is_function = True
            continue
        if word in ("SELECT", "WITH", "WATCH", "FROM") or (word == "PARTITION" and not target):
            return Statement("other", sql, "INSERT")
        if word in ("VALUES", "FORMAT") and target:
            head_end = token.start if head_end is None else head_end
            if settings_at is not None:
                settings = sql[settings_at : token.start].strip()
            rest_at = token.end
            if word == "FORMAT":
                name = next(stream, None)
                rest_at = name.end if name else token.end
                if name and name.word not in (_DATA_FORMAT, "VALUES") and not sql[rest_at:].strip(" \t\r\n;"):
                    # As a real server: the rows come as blocks, whatever text format is named.
                    pass
            if _has_rows(sql, rest_at):
                return Statement("other", sql, "INSERT")
            break
        if word == "SETTINGS" and target:
            head_end, settings_at = token.start, token.end
            continue
        if token.text == ";" and token.kind == "mark":
            head_end = token.start if head_end is None else head_end
            break
        if settings_at is not None:
            continue
        if token.text == "(" and token.kind == "mark" and target and not (is_function and open_at is None):
            open_at = token.start
            columns = ""
        elif token.text == "(" and is_function:
            open_at = token.start
            target.append(token)
        elif token.text == ")" and columns == "" and open_at is not None:
            columns = sql[open_at + 1 : token.start].strip()
            if columns.upper().startswith(("SELECT", "WITH")):
                return Statement("other", sql, "INSERT")
        elif columns is None:
            target.append(token)
    else:
        if settings_at is not None:
            settings = sql[settings_at:].strip()
    if not target:
        return Statement("other", sql, "INSERT")  # the engine says what is wrong with it
    head = sql[: len(sql) if head_end is None else head_end]
    insert = Insert(sql[target[0].start : target[-1].end], columns, head.rstrip(), settings)
    return Statement("insert", sql, "INSERT", insert)


def _has_rows(sql: str, start: int) -> bool:
    """Whether anything but gaps, comments and a semicolon follows."""
    return any(token.text != ";" for token in _first(tokens(sql[start:]), 2))


def _first(stream: Iterator[Token], count: int) -> Iterator[Token]:
    for _, token in zip(range(count), stream, strict=False):
        yield token
