"""Reads the bytes that a client sends; whole columns are passed over without a copy for each value."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tallyman.local.clickhouse.errors import ClientGoneError

_U64 = struct.Struct("<Q")
_BUFFER = 1 << 18
_PROBE = 64  # strings that are tried at once for having one length
_MAX_STRING = 1 << 30


class Reader:
    """Reads one stream of bytes; what passes can be copied to a sink meanwhile.

    Args:
        fill: Reads some bytes into the view it is given, says how many; 0 means the end.
        size: Buffer in bytes.
    """

    def __init__(self, fill: Callable[[memoryview], int], size: int = _BUFFER) -> None:
        self._fill = fill
        self._buffer: bytearray | bytes = bytearray(size)
        self._view = memoryview(self._buffer)
        self._at = 0
        self._end = 0
        self._sink: Callable[[memoryview], None] | None = None
        self._copied = 0

    @classmethod
    def over(cls, data: bytes) -> Reader:
        """Read from bytes in memory."""
        reader = cls(lambda view: 0, size=0)
        reader._buffer, reader._view, reader._end = data, memoryview(data), len(data)
        return reader

    @property
    def waiting(self) -> bytes:
        """What came already and was not read yet."""
        return bytes(self._view[self._at : self._end])

    @property
    def place(self) -> int:
        """Where the next byte lies in the buffer; only for a reader over bytes."""
        return self._at

    def start_copy(self, sink: Callable[[memoryview], None]) -> None:
        """Hand everything that is read from here on to `sink`, too."""
        self._sink = sink
        self._copied = self._at

    def end_copy(self) -> None:
        """Hand the rest over and stop copying."""
        self._flush_copy()
        self._sink = None

    def _flush_copy(self) -> None:
        if self._sink is not None and self._at > self._copied:
            self._sink(self._view[self._copied : self._at])
        self._copied = self._at

    def _refill(self) -> None:
        self._flush_copy()
        left = self._end - self._at
        if left:
            self._view[:left] = bytes(self._view[self._at : self._end])
        self._at, self._end, self._copied = 0, left, 0
        got = self._fill(self._view[left:])
        if not got:
            raise ClientGoneError("the connection ended")
        self._end += got

    def _need(self, size: int) -> None:
        while self._end - self._at < size:
            self._refill()

    def byte(self) -> int:
        if self._at == self._end:
            self._refill()
        value = self._buffer[self._at]
        self._at += 1
        return value

    def varint(self) -> int:
        value = shift = 0
        while True:
            part = self.byte()
            value |= (part & 0x7F) << shift
            if part < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ClientGoneError("expected a number of at most 64 bits, got a longer one")

    def u64(self) -> int:
        self._need(8)
        (value,) = _U64.unpack_from(self._buffer, self._at)
        self._at += 8
        return int(value)

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > _MAX_STRING:
            raise ClientGoneError(f"expected a string below 1 GiB, got one of {size} bytes")
        if self._end - self._at >= size:
            self._at += size
            return bytes(self._view[self._at - size : self._at])
        parts = bytearray()
        while size:
            if self._at == self._end:
                self._refill()
            step = min(size, self._end - self._at)
            parts += self._view[self._at : self._at + step]
            self._at += step
            size -= step
        return bytes(parts)

    def text(self) -> str:
        return self.take(self.varint()).decode("utf-8", "surrogateescape")

    def skip(self, size: int) -> None:
        """Pass over `size` bytes."""
        while size > self._end - self._at:
            size -= self._end - self._at
            self._at = self._end
            self._refill()
        self._at += size

    def skip_offsets(self, count: int) -> int:
        """Pass over an array column's offsets and return the last, which is the number of its elements."""
        if not count:
            return 0
        self.skip(8 * (count - 1))
        return self.u64()

    def skip_strings(self, count: int) -> None:
        """Pass over `count` strings, each a length and its bytes."""
        while count:
            count -= self._walk_strings(count)
            if count:  # the next one is cut by the end of the buffer
                self.skip(self.varint())
                count -= 1

    def _walk_strings(self, count: int) -> int:
        """Pass over as many whole strings as the buffer holds; return how many."""
        buffer, at, end, left = self._buffer, self._at, self._end, count
        while left:
            if at < end and left >= _PROBE and (length := buffer[at]) < 0x80:
                # A run of strings of one length shows as one byte repeated at that stride: one comparison.
                step = length + 1
                past = at + step * _PROBE
                if past <= end and buffer[at:past:step] == bytes((length,)) * _PROBE:
                    at = past
                    left -= _PROBE
                    continue
            for _ in range(min(left, _PROBE)):
                if at >= end:
                    break
                length = buffer[at]
                past = at + length + 1
                if length >= 0x80:
                    head = at + 1
                    length &= 0x7F
                    shift = 7
                    while head < end:
                        part = buffer[head]
                        head += 1
                        length |= (part & 0x7F) << shift
                        shift += 7
                        if part < 0x80:
                            break
                    else:
                        break
                    past = head + length
                if past > end:
                    break
                at = past
                left -= 1
            else:
                continue
            break
        self._at = at
        return count - left
