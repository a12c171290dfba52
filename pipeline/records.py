"""The records inside Kafka batches, as columns: varints read by numpy when there are many, else one by one.

Both ways give the same columns (a property test holds them to it). A record is: length, attributes (1 byte),
time delta, offset delta, key, value, headers; all numbers are zigzag varints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Headers = tuple[tuple[str, bytes], ...]

FEW = 40  # below this a loop is faster than numpy's fixed costs (about 0.1 ms a call)
_KNOWN_HEADERS = 4096


class CorruptError(Exception):
    """The bytes are no records; `pipeline.batches` says where."""


@dataclass(slots=True)
class RecordColumns:
    """Records as columns; offsets and times are relative to their batch."""

    offsets: IntArray
    appended_ms: IntArray
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers] | None

    @property
    def objects(self) -> int:
        """How many records and headers they are."""
        return len(self.values) + (sum(map(len, self.headers)) if self.headers else 0)

    def without(self, count: int) -> RecordColumns:
        """Return all but the first `count` records."""
        headers = self.headers[count:] if self.headers is not None else None
        return RecordColumns(
            self.offsets[count:], self.appended_ms[count:], self.keys[count:], self.values[count:],
            headers if headers and any(headers) else None,
        )  # fmt: skip


def find_records(data: bytes, at: int, end: int, count: int) -> tuple[list[int], list[int]]:
    """Return where each of `count` records begins (behind its length) and ends; they must fill [at, end).

    Raises:
        CorruptError: They do not.
        IndexError: The bytes end within a length.
    """
    starts, ends = [], []
    for _ in range(count):
        low = data[at]
        if low < 0x80:
            length = low
            at += 1
        else:
            high = data[at + 1]
            if high < 0x80:  # 64 to 8191 bytes, nearly always
                length = low & 0x7F | high << 7
                at += 2
            else:
                length, at = _varint(data, at)
                length <<= 1  # undo the sign, which is done for all below
        starts.append(at)
        at += length >> 1
        ends.append(at)
        if length & 1 or at > end:
            raise CorruptError(f"a record that is {length >> 1} bytes long")
    if at != end:
        raise CorruptError(f"{end - at} bytes behind the last record")
    return starts, ends


def parse_records(data: bytes, starts: list[int], ends: list[int]) -> RecordColumns:
    """Parse the records at the places that `find_records` returned.

    Raises:
        CorruptError, IndexError, ValueError: Their fields do not fill them exactly.
    """
    return (_parse_few if len(starts) < FEW else _parse_many)(data, starts, ends)


def _parse_few(data: bytes, starts: list[int], ends: list[int]) -> RecordColumns:
    offsets, times, keys, values, headers = [], [], [], [], []
    for start, end in zip(starts, ends, strict=True):
        delta_ms, at = _varint(data, start + 1)
        offset, at = _varint(data, at)
        key, at = _nullable(data, at, end)
        value, at = _nullable(data, at, end)
        offsets.append(offset)
        times.append(delta_ms)
        keys.append(key)
        values.append(value)
        headers.append(_parse_headers(data[at:end]))
    columns = headers if any(headers) else None
    return RecordColumns(np.array(offsets, np.int64), np.array(times, np.int64), keys, values, columns)


def _parse_many(data: bytes, starts: list[int], ends: list[int]) -> RecordColumns:
    octets = np.frombuffer(data, np.uint8)
    end = np.array(ends, np.int64)
    times, at = _varints(octets, np.array(starts, np.int64) + 1)
    offsets, at = _varints(octets, at)
    key_lengths, key_at = _varints(octets, at)
    value_lengths, value_at = _varints(octets, key_at + np.maximum(key_lengths, 0))
    header_at = value_at + np.maximum(value_lengths, 0)
    if (key_lengths < -1).any() or (value_lengths < -1).any() or (header_at >= end).any():
        raise CorruptError("a key or value that reaches beyond its record")
    keys = _cut(data, key_at, key_lengths)
    values = _cut(data, value_at, value_lengths)
    bare = octets[header_at] == 0
    if bare.all():
        if (header_at + 1 != end).any():
            raise CorruptError("bytes behind a record's fields")
        return RecordColumns(offsets, times, keys, values, None)
    known = _HEADERS
    headers: list[Headers] = []
    for begin, finish in zip(header_at.tolist(), ends, strict=True):
        block = data[begin:finish]
        found = known.get(block)
        headers.append(_parse_headers(block) if found is None else found)
    return RecordColumns(offsets, times, keys, values, headers)


def _varints(octets: npt.NDArray[np.uint8], at: IntArray) -> tuple[IntArray, IntArray]:
    """Read the zigzag varint at each place; return the numbers and the places behind them."""
    octet = octets[at]
    number = (octet & 0x7F).astype(np.uint64)
    behind = at + 1
    longer = np.nonzero(octet & 0x80)[0]
    shift = 7
    while len(longer):
        if shift > 63:
            raise CorruptError("a number of more than 64 bits")
        octet = octets[behind[longer]]
        number[longer] |= (octet & 0x7F).astype(np.uint64) << np.uint64(shift)
        behind[longer] += 1
        longer = longer[octet >= 0x80]
        shift += 7
    return ((number >> np.uint64(1)) ^ -(number & np.uint64(1))).view(np.int64), behind


def _cut(data: bytes, at: IntArray, lengths: IntArray) -> list[bytes | None]:
    begins, ends = at.tolist(), (at + lengths).tolist()
    if (lengths >= 0).all():
        return [data[begin:end] for begin, end in zip(begins, ends, strict=True)]
    if (lengths < 0).all():
        return [None] * len(begins)
    return [data[begin:end] if end >= begin else None for begin, end in zip(begins, ends, strict=True)]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    octet = data[at]
    at += 1
    number = octet & 0x7F
    shift = 7
    while octet & 0x80:
        if shift > 63:
            raise CorruptError("a number of more than 64 bits")
        octet = data[at]
        at += 1
        number |= (octet & 0x7F) << shift
        shift += 7
    return (number >> 1) ^ -(number & 1), at


def _nullable(data: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    length, at = _varint(data, at)
    if length == -1:
        return None, at
    if length < 0 or at + length > end:
        raise CorruptError("a key or value that reaches beyond its record")
    return data[at : at + length], at + length


# Records of one producer mostly have equal headers, so their bytes are looked up rather than read.
_HEADERS: dict[bytes, Headers] = {}


def _parse_headers(block: bytes) -> Headers:
    """Return the headers of a record; a null value is an empty one, names keep to UTF-8 by U+FFFD."""
    if block == b"\0":
        return ()
    count, at = _varint(block, 0)
    if count < 0:
        raise CorruptError(f"{count} headers")
    headers = []
    for _ in range(count):
        name, at = _nullable(block, at, len(block))
        value, at = _nullable(block, at, len(block))
        if name is None:
            raise CorruptError("a header without a name")
        headers.append((name.decode("utf-8", "replace"), value or b""))
    if at != len(block):
        raise CorruptError("bytes behind a record's fields")
    if len(_HEADERS) >= _KNOWN_HEADERS:
        _HEADERS.clear()
    return _HEADERS.setdefault(block, tuple(headers)) if len(block) < 256 else tuple(headers)
