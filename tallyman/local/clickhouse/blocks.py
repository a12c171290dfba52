"""Blocks of columns in ClickHouse's Native format: where one ends, and its header, without decoding a value."""

from __future__ import annotations

from collections.abc import Mapping

from tallyman.local.clickhouse.reader import Reader
from tallyman.local.clickhouse.types import shape_of
from tallyman.local.clickhouse.wire import Column, text


def read_header(reader: Reader) -> tuple[int, int]:
    """Read how many columns and rows a block has."""
    return reader.varint(), reader.varint()


def read_columns(reader: Reader, columns: int, rows: int) -> list[Column]:
    """Pass over a block's columns and return their names and types."""
    found = []
    for _ in range(columns):
        column = Column(reader.text(), reader.text())
        found.append(column)
        if rows:
            shape_of(column.type).prefix(reader).body(reader, rows)
    return found


def split_blocks(data: bytes) -> list[tuple[int, bytes]]:
    """Cut Native output into its blocks: (rows, bytes) of each."""
    reader = Reader.over(data)
    blocks = []
    while reader.place < len(data):
        start = reader.place
        columns, rows = read_header(reader)
        read_columns(reader, columns, rows)
        blocks.append((rows, data[start : reader.place]))
    return blocks


def retype(block: bytes, types: Mapping[int, str]) -> bytes:
    """Give some columns of a block, by number, another type of the same shape."""
    reader = Reader.over(block)
    columns, rows = read_header(reader)
    pieces, copied = [], 0
    for number in range(min(columns, max(types) + 1)):
        reader.text()
        before = reader.place
        type_name = reader.text()
        if number in types:
            pieces += [block[copied:before], text(types[number])]
            copied = reader.place
        if rows:
            shape_of(type_name).prefix(reader).body(reader, rows)
    return b"".join((*pieces, block[copied:]))


def columns_of(block: bytes) -> list[Column]:
    """The columns of one block in memory."""
    reader = Reader.over(block)
    return read_columns(reader, *read_header(reader))
