"""Runs a statement in a session and answers it: streamed block by block, or whole.

What chDB's Native output does not hold is not answered: the rows of WITH TOTALS and of the setting `extremes`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tallyman.local.clickhouse.answer import Answer
from tallyman.local.clickhouse.blocks import columns_of, retype, split_blocks
from tallyman.local.clickhouse.errors import ClientGoneError, ServerError
from tallyman.local.clickhouse.session import Session
from tallyman.local.clickhouse.statement import Statement
from tallyman.local.clickhouse.watch import Guard
from tallyman.local.clickhouse.wire import Column

_SHOWS = frozenset({"SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK"})  # may run again: they change nothing
_KILLED = [Column(name, "String") for name in ("kill_status", "query_id", "user", "query")]


def run_streamed(session: Session, statement: Statement, answer: Answer, guard: Guard) -> None:
    """Run a SELECT; one block at a time is in memory.

    Raises:
        CancelledError: If the client cancelled.
        ClientGoneError: If it went away. In both cases the engine has stopped.
    """
    try:
        _send_blocks(session, statement, answer, guard)
    except ServerError:
        if not guard.stopped:
            raise
    guard.check()
    if not answer.has_header:
        answer.send_header(_header_without_rows(session, statement.sql))


def _send_blocks(session: Session, statement: Statement, answer: Answer, guard: Guard) -> None:
    blocks = session.stream(statement.sql, answer.note_progress)
    zones: dict[int, str] = {}
    for rows, block in blocks:
        if guard.stopped:
            continue  # killed already: read what is left, so that the session is free again
        try:
            if not answer.has_header:
                columns = _columns_of(block)
                if columns is None:
                    # A statement ends the stream that is open in the session, so this one begins again.
                    answer.send_header(session.describe_select(statement.sql))
                    _send_blocks(session, statement, answer, guard)
                    return
                zones = _lost_zones(session, statement.sql, columns)
                answer.send_header([Column(c.name, zones.get(n, c.type)) for n, c in enumerate(columns)])
            answer.send_block(rows, retype(block, zones) if zones else block)
        except ClientGoneError:
            guard.stop()
            _read_rest(blocks)
            raise


def _columns_of(block: bytes) -> list[Column] | None:
    """The columns of a block, or None if it holds a type whose end cannot be found."""
    try:
        return columns_of(block)
    except ServerError:
        return None


def _lost_zones(session: Session, sql: str, columns: list[Column]) -> dict[int, str]:
    """Types of the columns that the engine wrote as DateTime though they have a time zone, by column number.

    Its Native output, of no revision, leaves the zone of a DateTime out, as for clients of before 2018
    (`NativeWriter.cpp`); of a DateTime64, or inside other types, it does not.
    """
    if not any(column.type == "DateTime" for column in columns):
        return {}
    described = session.describe_aside(sql) or []
    if [c.name for c in described] != [c.name for c in columns]:
        return {}
    pairs = enumerate(zip(columns, described, strict=True))
    return {n: told.type for n, (came, told) in pairs if came.type == "DateTime" != told.type}


def _read_rest(blocks: Iterator[tuple[int, bytes]]) -> None:
    try:
        for _ in blocks:
            pass
    except ServerError:  # it was killed: that is how it ends
        return


def _header_without_rows(session: Session, sql: str) -> list[Column]:
    try:
        return session.describe_select(sql)
    except ServerError:  # e.g. a readonly query may not set how it is described
        return session.describe_aside(sql) or session.header_of(sql)


def run_whole(session: Session, statement: Statement, answer: Answer, guard: Guard) -> None:
    """Run anything else to its end and send what it returns.

    Raises:
        CancelledError: If the client cancelled.
        ClientGoneError: If it went away.
    """
    try:
        with session.changes.during(statement.first):
            done = session.run(statement.sql, answer.note_progress)
    except ServerError:
        guard.check()
        raise
    if statement.kind == "set":
        session.note_client_set()
    answer.note_done(done)
    for rows, block in split_blocks(done.data):
        if not answer.has_header:
            answer.send_header(columns_of(block))
        answer.send_block(rows, block)
    if answer.has_header:
        return
    if statement.first in _SHOWS:
        answer.send_header(session.header_of(statement.sql))
    elif statement.first == "KILL":
        answer.send_header(_KILLED)
