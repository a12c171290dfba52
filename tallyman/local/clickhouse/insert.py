"""An INSERT whose rows come as data blocks: spool them all, then let the engine read them in one statement.

chDB's own `send_insert` is not used: it reports rows as written that a constraint or a limit refused. Reading
a file raises (tests/integration/test_clickhouse_front_traps.py proves it). Nothing reaches a table before the
client's last block, so a client that goes away leaves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tallyman.local.clickhouse.errors import (
    NO_SUCH_COLUMN_IN_TABLE,
    NOT_FOUND_COLUMN_IN_BLOCK,
    ServerError,
)
from tallyman.local.clickhouse.packets import Block
from tallyman.local.clickhouse.session import Done, Progress, Session, quote
from tallyman.local.clickhouse.spool import Spool
from tallyman.local.clickhouse.statement import Insert
from tallyman.local.clickhouse.wire import Column

# The engine cuts what it inserts into blocks of 1,048,449 rows or 256 MiB, each a part of its own. Below this
# size all of it becomes one block, and so one part in each partition: all or nothing.
_ONE_BLOCK_BYTES = 256 << 20
_NOT_WRITTEN = ("MATERIALIZED", "ALIAS")
_PLAIN_NAMES = re.compile(r"^[^*(]*$")
_NAME = re.compile(r"\s*(`(?:[^`\\]|\\.|``)*`|\"(?:[^\"\\]|\\.)*\"|[\w.]+)\s*(,|$)")


def sample_of(session: Session, insert: Insert) -> list[Column]:
    """The columns that the client is to send, with their types.

    Raises:
        ServerError: If the table or one of the columns does not exist.
    """
    if insert.columns and not _PLAIN_NAMES.match(insert.columns):
        return session.describe(f"(SELECT {insert.columns} FROM {insert.target})")  # noqa: S608 client's own SQL
    columns = session.describe_insertable(f"TABLE {insert.target}")
    if not insert.columns:
        return [column for column, kind in columns if kind not in (*_NOT_WRITTEN, "EPHEMERAL")]
    known = {column.name: column for column, kind in columns if kind not in _NOT_WRITTEN}
    return [_find(name, known, insert.target) for name in _names(insert.columns)]


def _find(name: str, known: Mapping[str, Column], table: str) -> Column:
    if name not in known:
        raise ServerError(NO_SUCH_COLUMN_IN_TABLE, f"No such column {name} in table {table}. (NO_SUCH_COLUMN_IN_TABLE)")
    return known[name]


def _names(listed: str) -> list[str]:
    """Cut a list of names as written.

    >>> _names("a, `b c`, n.x")
    ['a', 'b c', 'n.x']
    """
    return [_bare(found.group(1)) for found in _NAME.finditer(listed)]


def _bare(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name[1:-1]) if name[0] in '`"' else name


def check_columns(sample: Sequence[Column], came: Sequence[Column]) -> None:
    """Refuse a block with other columns than were asked for: the engine would leave them out in silence."""
    if [c.name for c in sample] == [c.name for c in came]:
        return
    wanted, got = {c.name for c in sample}, {c.name for c in came}
    if wanted != got or len(sample) != len(came):
        raise ServerError(
            NOT_FOUND_COLUMN_IN_BLOCK,
            f"Block structure mismatch: expected columns {', '.join(c.name for c in sample)}, "
            f"got {', '.join(c.name for c in came)}. (NOT_FOUND_COLUMN_IN_BLOCK)",
        )


def insert_spooled(
    session: Session,
    insert: Insert,
    spool: Spool,
    given: Mapping[str, str],
    tell: Callable[[Progress], None] | None = None,
) -> Done:
    """Insert what was spooled; returns when the engine has committed it.

    Args:
        given: Settings that the client sent with the query; they win over ours.
    """
    settings = [insert.settings] if insert.settings else []
    if spool.size <= _ONE_BLOCK_BYTES:
        for name, value in (
            ("min_insert_block_size_rows", max(spool.rows, 1 << 20)),
            ("min_insert_block_size_bytes", _ONE_BLOCK_BYTES * 16),
        ):
            if name not in given and name not in insert.settings:
                settings.append(f"{name} = {value}")
    clause = f" SETTINGS {', '.join(settings)}" if settings else ""
    return session.run(f"{insert.head} FROM INFILE '{spool.path}'{clause} FORMAT Native", tell)


def create_external(session: Session, name: str, blocks: Sequence[tuple[Block, Spool]]) -> None:
    """Make a temporary table of the session from the blocks of an external table that came with a query."""
    listed = ", ".join(f"{quote(c.name)} {c.type}" for c in blocks[0][0].columns)
    session.run(f"CREATE TEMPORARY TABLE {quote(name)} ({listed}) ENGINE = Memory")
    for _, spool in blocks:
        if spool.rows:
            session.run(f"INSERT INTO {quote(name)} FROM INFILE '{spool.path}' FORMAT Native")
