"""A client's session on the engine: its database, settings and temporary tables, and the statements it runs.

Every session is a chDB connection of its own, which opens in 0.4 ms. Sessions run beside each other; within one, one
statement runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from chdb.state.sqlitelike import Connection

from tallyman.local.clickhouse.changes import Changes
from tallyman.local.clickhouse.errors import UNKNOWN_SETTING, ServerError, read_engine_error
from tallyman.local.clickhouse.query_tree import EXPLAIN, columns_of_tree
from tallyman.local.clickhouse.wire import Column

_PLAINLY = "SETTINGS describe_compact_output = 1, print_pretty_type_names = 0"
_CANNOT_UNDO = "readonly"  # once set, a session may change nothing any more, this setting included

# Where chDB's defaults differ from a server's, and where the answer must mean "it is stored".
BASE_SETTINGS: Mapping[str, str] = {
    "implicit_select": "0",
    "allow_introspection_functions": "0",
    "async_insert": "0",
}


@dataclass(frozen=True, slots=True)
class Done:
    """What a statement did.

    Attributes:
        data: Native blocks, one behind the other; empty if there are no rows.
    """

    data: bytes
    read_rows: int
    read_bytes: int
    written_rows: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the running statement is, since its start."""

    read_rows: int
    read_bytes: int
    total_rows: int
    written_rows: int
    written_bytes: int


class Stream(Protocol):
    """A running SELECT of chDB."""

    def fetch(self) -> Any: ...


class Session:
    """One client's connection to the engine."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        database: str,
        tag: str,
        threads: int,
        known_settings: frozenset[str],
        changes: Changes,
    ) -> None:
        self.tag = tag
        self.changes = changes
        self._described: dict[str, tuple[int, list[tuple[Column, str]]]] = {}  # with the number of changes before
        self._known = known_settings
        self._connect = connect
        self._base = {**BASE_SETTINGS, "max_threads": str(threads), "log_comment": tag}
        self._given: dict[str, str] = {}  # what the last query brought with it and is still set
        self._own: dict[str, str] = {}  # values the client had SET under those
        self._client_set = False
        self._spent = False
        self._connection = connect()
        self._aside: Connection | None = None
        self._database = database
        self._start()

    def _start(self) -> None:
        self._connection.query(_set(self._base))
        try:
            self._connection.query(f"USE {quote(self._database)}")
        except RuntimeError as error:
            self._connection.close()
            raise read_engine_error(str(error)) from error

    def close(self) -> None:
        self._connection.close()
        if self._aside is not None:
            self._aside.close()

    def refresh(self) -> None:
        """Open the session anew if its settings can no longer be changed back."""
        if self._spent:
            self._reopen()

    def drop_temporary(self, name: str) -> None:
        """Forget a temporary table, if the session has it."""
        self._described.clear()
        with suppress(RuntimeError):  # a session that was made readonly drops it when it is reopened
            self._connection.query(f"DROP TEMPORARY TABLE IF EXISTS {quote(name)}")

    def apply(self, settings: Mapping[str, str], *, important: frozenset[str] = frozenset()) -> None:
        """Bring the session to exactly these settings over its own.

        Settings stay until the next call, so that a client which always sends the same costs nothing.

        Raises:
            ServerError: If a value is refused, or a setting is unknown and the client marked it important.
        """
        for name in sorted(important - self._known):
            raise ServerError(UNKNOWN_SETTING, f"Unknown setting '{name}'. (UNKNOWN_SETTING)")
        wanted = {n: v for n, v in settings.items() if n in self._known and n != "log_comment"}
        if wanted == self._given:
            return
        undo = {n: self._own.pop(n, self._base.get(n, "DEFAULT")) for n in self._given if n not in wanted}
        change = {n: v for n, v in wanted.items() if self._given.get(n) != v}
        if self._client_set:
            self._remember([n for n in change if n not in self._given])
        # What is undone may stand in the way of what is set: undo first. `readonly` ends all changes: last.
        locking = {n: change.pop(n) for n in list(change) if n == _CANNOT_UNDO}
        self._given = {n: v for n, v in self._given.items() if n in wanted}
        for step in (undo, change, locking):
            if step:
                self._set_all(step)
        self._given = wanted
        self._spent = bool(locking)

    def _set_all(self, step: Mapping[str, str]) -> None:
        try:
            self._connection.query(_set(step))
        except RuntimeError as error:
            self._spent = True  # some may be set, some not
            raise read_engine_error(str(error)) from error

    def _remember(self, names: list[str]) -> None:
        if not names:
            return
        listed = ", ".join(map(literal, names))
        found = self._connection.query(
            f"SELECT name, value FROM system.settings WHERE changed AND name IN ({listed})",  # noqa: S608
            "TSVRaw",
        )
        for line in (found.bytes() or b"").decode().splitlines():
            name, _, value = line.partition("\t")
            self._own[name] = value

    def _reopen(self) -> None:
        self._connection.close()
        self._connection = self._connect()
        self._described.clear()
        self._given, self._own, self._client_set, self._spent = {}, {}, False, False
        self._start()

    def note_client_set(self) -> None:
        """The client changed the session's own settings by SET, or its database by USE."""
        self._client_set = True
        self._described.clear()
        ((self._database,),) = self._lines("SELECT currentDatabase()")

    @contextmanager
    def _told(self, tell: Callable[[Progress], None] | None) -> Iterator[None]:
        """Have `tell` called about ten times a second, by a thread of the engine."""
        if tell is None:
            yield
            return
        self._connection.set_progress_callback(
            lambda now: tell(
                Progress(
                    now["read_rows"],
                    now["read_bytes"],
                    now["total_rows_to_read"],
                    now["written_rows"],
                    now["written_bytes"],
                )
            )
        )
        try:
            yield
        finally:
            self._connection.set_progress_callback(None)

    def run(self, sql: str, tell: Callable[[Progress], None] | None = None) -> Done:
        """Run a statement to its end."""
        try:
            with self._told(tell):
                result = self._connection.query(_raw(sql), "Native")
        except RuntimeError as error:
            raise read_engine_error(str(error)) from error
        return Done(
            bytes(result.bytes() or b""),
            int(result.rows_read()),
            int(result.bytes_read()),
            int(result.rows_written()),
            int(result.bytes_written()),
        )

    def stream(self, sql: str, tell: Callable[[Progress], None] | None = None) -> Iterator[tuple[int, bytes]]:
        """Run a SELECT and give its blocks, (rows, Native bytes), as the engine makes them."""
        try:
            with self._told(tell):
                running: Stream = self._connection.send_query(_raw(sql), "Native")
                while (chunk := running.fetch()) is not None:
                    data = chunk.bytes()
                    if not data:
                        return
                    yield int(chunk.rows_read()), bytes(data)
        except RuntimeError as error:
            raise read_engine_error(str(error)) from error

    def describe(self, what: str) -> list[Column]:
        """Names and types of "(SELECT ...)", "TABLE t" or "TABLE f()", without running it."""
        return self._columns(f"DESCRIBE {what} {_PLAINLY}")

    def describe_select(self, sql: str) -> list[Column]:
        """Names and types of a SELECT's answer, without running it."""
        told = self._told_by_tree(sql, self._connection)
        return self.describe(f"({sql}\n)") if told is None else told  # a comment at the end of it ends with the line

    def describe_insertable(self, what: str) -> list[tuple[Column, str]]:
        """As `describe`, with each column's kind: "", DEFAULT, MATERIALIZED, ALIAS or EPHEMERAL.

        A worker inserts into the same tables some times a second; they are asked for again when one may have changed.
        """
        now = self.changes.number
        if what in self._described and self._described[what][0] == now:
            return self._described[what][1]
        columns = []
        for line in self._lines(f"DESCRIBE {what} SETTINGS print_pretty_type_names = 0"):
            name, type_name, kind = line[:3]
            columns.append((Column(name, type_name), kind))
        if "(" not in what:  # what a table function reads is not ours
            self._described[what] = now, columns
        return columns

    def describe_aside(self, sql: str) -> list[Column] | None:
        """Names and types of a SELECT while this session streams it; None if only this session could tell.

        A second session is asked, since a statement would end the stream. It lacks this one's temporary tables.
        """
        if self._aside is None:
            self._aside = self._connect()
        try:
            self._aside.query(_set(self._base | self._given | {"readonly": "0"}))
            self._aside.query(f"USE {quote(self._database)}")
            told = self._told_by_tree(sql, self._aside)
            return self._columns(f"DESCRIBE ({sql}\n) {_PLAINLY}", self._aside) if told is None else told
        except (RuntimeError, ServerError):
            return None

    def header_of(self, sql: str) -> list[Column]:
        """Names and types of a statement's answer, by running it: only for what changes nothing."""
        head = self._lines(sql, "TSVWithNamesAndTypes")[:2]
        return [Column(name, type_name) for name, type_name in zip(*head, strict=True)] if head else []

    def _told_by_tree(self, sql: str, connection: Connection) -> list[Column] | None:
        """Names and types of a SELECT's answer where its query tree tells them."""
        try:
            return columns_of_tree([line for line, *_ in self._lines(f"{EXPLAIN} {sql}", connection=connection)])
        except ServerError:  # e.g. of a client that wants the old analyzer
            return None

    def _columns(self, sql: str, connection: Connection | None = None) -> list[Column]:
        return [Column(name, type_name) for name, type_name in self._lines(sql, connection=connection)]

    def _lines(self, sql: str, output: str = "TSV", connection: Connection | None = None) -> list[list[str]]:
        try:
            data = (connection or self._connection).query(_raw(sql), output).bytes() or b""
        except RuntimeError as error:
            raise read_engine_error(str(error)) from error
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        return [[_unescape(cell) for cell in line.split("\t")] for line in lines if line]


def _raw(sql: str) -> bytes:
    """A statement's bytes as the client sent them: a literal may hold some that are no UTF-8."""
    return sql.encode("utf-8", "surrogateescape")


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "f": "\f"}


def _unescape(cell: str) -> str:
    if "\\" not in cell:
        return cell
    pieces = iter(cell)
    return "".join(piece if piece != "\\" else _ESCAPES.get(after := next(pieces, "\\"), after) for piece in pieces)


def quote(name: str) -> str:
    """A name as an identifier."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def literal(value: str) -> str:
    """Text as a string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _set(settings: Mapping[str, str]) -> str:
    listed = (f"{name} = {value if value == 'DEFAULT' else literal(value)}" for name, value in settings.items())
    return "SET " + ", ".join(listed)
