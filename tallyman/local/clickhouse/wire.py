"""The bytes of ClickHouse's native protocol: numbers, strings and the server's packets.

Revision 54440 is older than the serialization byte of each column, which chDB's Native output has not: a
block can pass between client and engine as it is. (ClickHouse, `Core/ProtocolDefines.h`.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

REVISION = 54440
OLDEST_CLIENT = 54429  # settings as strings; every client since 2020


class FromClient(IntEnum):
    """Packet types that a client sends (clickhouse_driver.protocol.ClientPacketTypes)."""

    HELLO = 0
    QUERY = 1
    DATA = 2
    CANCEL = 3
    PING = 4
    TABLES_STATUS = 5


class FromServer(IntEnum):
    """Packet types that the server sends (clickhouse_driver.protocol.ServerPacketTypes)."""

    HELLO = 0
    DATA = 1
    EXCEPTION = 2
    PROGRESS = 3
    PONG = 4
    END_OF_STREAM = 5
    PROFILE_INFO = 6
    TOTALS = 7
    EXTREMES = 8
    TABLES_STATUS = 9


@dataclass(frozen=True, slots=True)
class Column:
    """A column's name and ClickHouse type, as they stand in a block."""

    name: str
    type: str


def varint(value: int) -> bytes:
    """A number, seven bits to the byte, least first."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def text(value: str) -> bytes:
    """A string: its length in bytes, then its UTF-8 bytes."""
    data = value.encode("utf-8", "surrogateescape")
    return varint(len(data)) + data


NO_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"  # block info: no overflow row, no bucket


def header(columns: Sequence[Column]) -> bytes:
    """A block of these columns without rows."""
    return varint(len(columns)) + b"\x00" + b"".join(text(c.name) + text(c.type) for c in columns)


def hello(version: tuple[int, int, int], timezone: str) -> bytes:
    """The server's answer to a client's hello."""
    major, minor, patch = version
    return b"".join(
        (
            varint(FromServer.HELLO),
            text("ClickHouse"),
            varint(major),
            varint(minor),
            varint(REVISION),
            text(timezone),
            text("tallyman"),
            varint(patch),
        )
    )


def exception(code: int, message: str) -> bytes:
    """An error with ClickHouse's code."""
    return b"".join(
        (
            varint(FromServer.EXCEPTION),
            struct.pack("<i", code),
            text("DB::Exception"),
            text(f"DB::Exception: {message}"),
            text(""),
            b"\x00",
        )
    )


def progress(rows: int, size: int, total_rows: int, written_rows: int = 0, written_bytes: int = 0) -> bytes:
    """How much was done since the last such packet."""
    numbers = (FromServer.PROGRESS, rows, size, total_rows, written_rows, written_bytes)
    return b"".join(map(varint, numbers))


def profile_info(rows: int, blocks: int, size: int, rows_before_limit: int | None) -> bytes:
    """What the result was made of; `rows_before_limit` is None for a query without LIMIT."""
    limited = rows_before_limit is not None
    return b"".join(
        (
            varint(FromServer.PROFILE_INFO),
            varint(rows),
            varint(blocks),
            varint(size),
            bytes((limited,)),
            varint(rows_before_limit or 0),
            b"\x01",
        )
    )


PONG = varint(FromServer.PONG)
END_OF_STREAM = varint(FromServer.END_OF_STREAM)
