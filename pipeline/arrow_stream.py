"""Arrow streams, opened with care: pyarrow believes what a stream says of itself, and this one comes from outside.

How many rows a batch has, and how long its columns say that they are, is looked up before they are unpacked: thirty
kilobytes of compressed zeros are twenty million rows, and they would take the worker's memory away.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tallyman.errors import EventError
from tallyman.event import MAX_RECORD_EVENTS

# Flatbuffers, as Arrow's `Message.fbs` has them: at the front of a table is the distance back to the list that says
# where in the table each field stands, 0 if it does not.
_KIND, _HEADER, _BODY_BYTES = 1, 2, 3  # fields of a message
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3  # of the record batch that it announces
_RECORD_BATCH = 3  # a kind
_PLACE, _DISTANCE, _OFFSET, _LONG = (struct.Struct(each).unpack_from for each in ("<H", "<i", "<I", "<q"))
_BUFFER = struct.Struct("<qq")
_FRAME = struct.Struct("<ii").unpack_from  # before each message: -1, and how long its front is, 0 behind the last one
_MOST_UNPACKED = 16 << 20  # ten times what so many rows of our columns are
_MOST_MESSAGES = 100  # are looked at to count rows; ours have two


def open_messages(body: bytes) -> tuple[Any, Any]:
    """Return the schema of a stream, and its messages behind it.

    Raises:
        pa.ArrowException, OSError, ValueError: These bytes are no Arrow stream; also raised at the last message's end.
    """
    source = pa.BufferReader(body)
    messages = pa.ipc.MessageReader.open_stream(source)
    first = next(messages, None)
    if first is None or first.type != "schema":  # pyarrow takes any message for one, and the process dies of it
        raise ValueError(f"expected a schema first, got {first.type if first else 'nothing'}")
    return pa.ipc.read_schema(first), _to_the_end(messages, source, len(body))


def _to_the_end(messages: Any, source: Any, size: int) -> Iterator[Any]:
    """Yield all messages; what stands behind the mark of the end is read by nobody, so there may be nothing."""
    yield from messages
    end = source.tell()
    if end != size:
        raise ValueError(f"expected its end at byte {end}, got {size - end} bytes more")


def read_batches(schema: Any, messages: Any) -> list[Any]:
    """Return the record batches of a stream.

    Raises:
        EventError: `bad_schema`, `too_large`.
        pa.ArrowException, OSError, ValueError: These bytes are no Arrow stream.
    """
    batches, rows, size = [], 0, 0
    for message in messages:
        if message.type != "record batch":
            raise EventError("bad_schema", f"Arrow batch: expected record batches, got a {message.type}"[:300])
        rows += _rows_in(message.metadata)
        if not 0 <= rows <= MAX_RECORD_EVENTS:
            raise EventError("too_large", f"expected at most {MAX_RECORD_EVENTS} rows, got {rows}")
        size += _unpacked(message)  # together: a column may be longer than its rows, and is kept as long as they are
        if size > _MOST_UNPACKED:
            raise EventError("too_large", f"expected at most {_MOST_UNPACKED} bytes in columns, got {size}")
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate()  # else columns that are shorter than they say are read beyond their end
        batches.append(batch)
    return batches


def most_rows(body: bytes) -> int:
    """Return how many rows an Arrow record has, or more; nothing is unpacked, and pyarrow is not asked (3 µs)."""
    front, rows, at = memoryview(body), 0, 0
    try:
        for _ in range(_MOST_MESSAGES):
            if at + 8 > len(body):
                return rows
            mark, size = _FRAME(body, at)
            if mark != -1 or size < 0:
                return MAX_RECORD_EVENTS
            if not size:
                return rows
            message = front[at + 8 : at + 8 + size]
            table = _OFFSET(message, 0)[0]
            kind, length = _field(message, table, _KIND), _field(message, table, _BODY_BYTES)
            if kind and message[kind] == _RECORD_BATCH:
                rows += _rows_in(message)
            after = _LONG(message, length)[0] if length else 0
            if after < 0 or not 0 <= rows <= MAX_RECORD_EVENTS:
                return MAX_RECORD_EVENTS
            at += 8 + size + after
    except (struct.error, IndexError):  # it is none, or written otherwise than by ours
        pass
    return MAX_RECORD_EVENTS


def _rows_in(metadata: Any) -> int:
    """Return how many rows a record batch says that it has; pyarrow has checked that its places lie inside."""
    rows = _field(metadata, _batch_of(metadata), _LENGTH)
    return int(_LONG(metadata, rows)[0]) if rows else 0


def _unpacked(message: Any) -> int:
    """Return how many bytes the compressed columns of a record batch say that they become, 0 if none is compressed.

    Each begins with that number, which pyarrow sets aside before it looks further; -1 is one that is as it is.

    Raises:
        ValueError: A column lies outside of the message.
    """
    metadata, body = message.metadata, message.body
    table = _batch_of(metadata)
    listed = _field(metadata, table, _BUFFERS)
    if not listed or not _field(metadata, table, _COMPRESSION):
        return 0
    listed += _OFFSET(metadata, listed)[0]
    size = 0
    for number in range(_OFFSET(metadata, listed)[0]):
        offset, length = _BUFFER.unpack_from(metadata, listed + 4 + _BUFFER.size * number)
        if length <= 0:
            continue
        if offset < 0 or body is None or offset + 8 > body.size:
            raise ValueError(f"a column at {offset} of {body.size if body else 0} bytes")
        size += max(int(_LONG(body, offset)[0]), 0)
    return size


def _batch_of(metadata: Any) -> int:
    """Return where the record batch's table stands in a message."""
    header = _field(metadata, _OFFSET(metadata, 0)[0], _HEADER)
    return int(header + _OFFSET(metadata, header)[0])


def _field(message: Any, table: int, number: int) -> int:
    """Return where a field of a table stands, 0 if it does not."""
    places = table - _DISTANCE(message, table)[0]
    if _PLACE(message, places)[0] <= 4 + 2 * number:
        return 0
    place = _PLACE(message, places + 4 + 2 * number)[0]
    return table + place if place else 0
