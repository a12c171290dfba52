"""What a client sends, read into values: hello, query, data blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tallyman.local.clickhouse.blocks import read_columns, read_header
from tallyman.local.clickhouse.compression import Frames
from tallyman.local.clickhouse.errors import INCORRECT_DATA, NOT_IMPLEMENTED, BrokenStreamError, ServerError
from tallyman.local.clickhouse.reader import Reader
from tallyman.local.clickhouse.spool import Spool
from tallyman.local.clickhouse.wire import Column, varint

_IMPORTANT = 1
_HTTP = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """How a client introduces itself."""

    client: str
    revision: int
    database: str
    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Query:
    """A statement and how it is to be run.

    Attributes:
        important: Names of settings that must not be ignored if they are unknown.
    """

    id: str
    settings: dict[str, str]
    important: frozenset[str]
    compressed: bool
    sql: str


@dataclass(frozen=True, slots=True)
class Block:
    """What is known of a block that went into a spool."""

    table: str
    columns: Sequence[Column]
    rows: int


def read_hello(reader: Reader) -> Hello:
    client = reader.text()
    reader.varint(), reader.varint()  # the client's own version
    return Hello(client, reader.varint(), reader.text(), reader.text(), reader.text())


def read_query(reader: Reader) -> Query:
    """Read a query packet as a client of revision 54429 or newer sends it to a server of 54440."""
    query_id = reader.text()
    _skip_client_info(reader)
    settings, important = {}, set()
    while name := reader.text():
        if reader.varint() & _IMPORTANT:
            important.add(name)
        settings[name] = reader.text()
    reader.varint()  # stage: always to the end
    return Query(query_id, settings, frozenset(important), bool(reader.varint()), reader.text())


def _skip_client_info(reader: Reader) -> None:
    if reader.byte() == 0:  # no info at all
        return
    for _ in range(3):  # initial user, query id, address
        reader.text()
    if reader.byte() == _HTTP:
        raise BrokenStreamError(NOT_IMPLEMENTED, "a query that began over HTTP cannot be passed on to this server")
    for _ in range(3):  # user of the system, host, client's name
        reader.text()
    for _ in range(3):  # client's version and revision
        reader.varint()
    reader.text()  # quota key
    reader.varint()  # patch


def read_block(reader: Reader, *, compressed: bool, spool: Spool) -> Block:
    """Read a data packet; its rows, if any, go into the spool as one Native block."""
    table = reader.text()
    if compressed:
        reader = Reader(Frames(reader).fill)
    _skip_block_info(reader)
    columns, rows = read_header(reader)
    if not rows:
        return Block(table, read_columns(reader, columns, rows), 0)
    spool.write(varint(columns) + varint(rows))
    reader.start_copy(spool.write)
    found = read_columns(reader, columns, rows)
    reader.end_copy()
    spool.rows += rows
    return Block(table, found, rows)


def _skip_block_info(reader: Reader) -> None:
    while field := reader.varint():
        if field == 1:
            reader.skip(1)
        elif field == 2:
            reader.skip(4)
        else:
            raise ServerError(INCORRECT_DATA, f"Unknown BlockInfo field number: {field}")
