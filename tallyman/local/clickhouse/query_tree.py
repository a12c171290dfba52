"""What columns a SELECT answers with, read from its query tree (`EXPLAIN QUERY TREE passes = 1`).

DESCRIBE tells it too, but plans the whole statement for it, and all views that it reads, which takes as long as the
statement itself where there is little to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tallyman.local.clickhouse.wire import Column

EXPLAIN = "EXPLAIN QUERY TREE passes = 1"
_ROOT, _COLUMNS = "QUERY id: 0", "  PROJECTION COLUMNS"
_NUMBER = re.compile(r" {4}LIST id: [0-9]+, nodes: ([0-9]+)")
_WORD = re.compile(r"[A-Za-z]\w*")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'")


def columns_of_tree(lines: Sequence[str]) -> list[Column] | None:
    """Return the columns, or None where the tree does not tell them: of a UNION, or with names of several lines.

    >>> columns_of_tree(["QUERY id: 0", "  PROJECTION COLUMNS", "    a b Array(UInt8)", "    now() DateTime('UTC')",
    ...                  "  PROJECTION", "    LIST id: 1, nodes: 2"])
    [Column(name='a b', type='Array(UInt8)'), Column(name='now()', type="DateTime('UTC')")]
    """
    if len(lines) < 2 or not lines[0].startswith(_ROOT) or lines[1] != _COLUMNS:
        return None
    columns: list[Column] = []
    for number, line in enumerate(lines[2:], 2):
        if not line.startswith("    "):
            told = _NUMBER.match(lines[number + 1]) if line == "  PROJECTION" and number + 1 < len(lines) else None
            return columns if told and int(told[1]) == len(columns) else None
        column = _column(line[4:])
        if column is None:
            return None
        columns.append(column)
    return None


def _column(text: str) -> Column | None:
    """Cut a name, which may be any text, from the type behind it: the shortest end that is one."""
    for space in _spaces(text):
        if _is_type(text[space + 1 :]):
            return Column(text[:space], text[space + 1 :])
    return None


def _spaces(text: str) -> Iterator[int]:
    """Yield where spaces are, the last one first."""
    place = len(text)
    while (place := text.rfind(" ", 0, place)) >= 0:
        yield place


def _is_type(text: str) -> bool:
    """Tell whether a text reads as one type: a word, and what belongs to it in brackets that close at its end.

    >>> [_is_type(text) for text in ("Int8", "Enum8('a)' = 1)", "Array(Int8), b Int8)", "Int8)", "'b')")]
    [True, True, False, False, False]
    """
    word = _WORD.match(text)
    if word is None or word.end() == len(text):
        return word is not None
    rest = _QUOTED.sub("", text[word.end() :])
    if not rest.startswith("(") or "'" in rest:
        return False
    depth = 0
    for place, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return place == len(rest) - 1
    return False
