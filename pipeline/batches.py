"""Records taken from Kafka's batches, batch-wise and not one by one: several times as fast as a record loop.

Pure: bytes of a fetch in, `Fetch` out. The layout is that of Kafka's `DefaultRecordBatch` (magic 2).
`pipeline.poll` asks the broker; nothing here knows how.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from pipeline.records import CorruptError, Headers, RecordColumns, find_records, parse_records
from pipeline.unpack import decompress
from tallyman.errors import LogError

IntArray = npt.NDArray[np.int64]
Digest = tuple[int, int, int]

_LENGTH = struct.Struct(">qi")
_BATCH = struct.Struct(">qiibIhiqqqhii")
_CRC_FROM = 21  # the checksum covers what follows it
_CODEC, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_NOTHING: IntArray = np.empty(0, np.int64)
_ABORT = 0
_OBJECT_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """What one fetch brought of a partition: the records with offsets in [first, next), in order, as columns.

    Offsets may have holes (transaction markers, aborted records); `next` lies behind all that was covered.
    An idle poll is an empty fetch, `first == next`.

    Attributes:
        appended_ms: Milliseconds since 1970, the broker's, when the topic has LogAppendTime.
        headers: None when no record has any.
        digests: (base offset, leader epoch, CRC) of each Kafka batch in order, also of those without usable
            records. The first may begin below `first`.
        at_end: The broker has said that the log ends behind it, and not only sent no more yet.
        size: Of what came from the log, its bytes when decompressed, and about what its records and headers take
            besides, which may have none; of a part, still those of the whole.
    """

    topic_id: str
    partition: int
    first: int
    next: int
    offsets: IntArray
    appended_ms: IntArray
    values: list[bytes | None]
    keys: list[bytes | None]
    headers: list[Headers] | None
    digests: tuple[Digest, ...]
    at_end: bool = False
    size: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def headers_of(self, index: int) -> Headers:
        """Return the headers of the record at `index`, in the order in which they were sent."""
        return self.headers[index] if self.headers is not None else ()

    def below(self, stop: int) -> Fetch:
        """Return the part of this fetch that lies below `stop`; all digests stay."""
        if self.next <= stop:
            return self
        count = int(np.searchsorted(self.offsets, stop))
        headers = self.headers[:count] if self.headers is not None else None
        return replace(
            self,
            next=max(self.first, stop),
            offsets=self.offsets[:count],
            appended_ms=self.appended_ms[:count],
            values=self.values[:count],
            keys=self.keys[:count],
            headers=headers,
            at_end=False,
        )


def empty_fetch(topic_id: str, partition: int, position: int) -> Fetch:
    """Return what an idle poll brings."""
    return Fetch(topic_id, partition, position, position, _NOTHING, _NOTHING, [], [], None, ())


def join(fetches: Sequence[Fetch]) -> Fetch:
    """Return fetches of one partition, each of which begins where the one before ends, as one."""
    if len(fetches) == 1:
        return fetches[0]
    headers: list[Headers] | None = None
    if any(fetch.headers is not None for fetch in fetches):
        nothing: Headers = ()
        headers = [each for fetch in fetches for each in fetch.headers or [nothing] * len(fetch)]
    return replace(
        fetches[0],
        next=fetches[-1].next,
        offsets=np.concatenate([fetch.offsets for fetch in fetches]),
        appended_ms=np.concatenate([fetch.appended_ms for fetch in fetches]),
        values=[value for fetch in fetches for value in fetch.values],
        keys=[key for fetch in fetches for key in fetch.keys],
        headers=headers,
        digests=tuple(digest for fetch in fetches for digest in fetch.digests),
        size=sum(fetch.size for fetch in fetches),
    )


class BatchWalk:
    """One walk over the bytes that a fetch returned for a partition, as `read_committed` sees them.

    Args:
        buffer: The record batches; the last may be cut off, the broker sends it again.
        position: The offset that was asked for; batches may begin below it.
        aborted: (producer id, first offset) of aborted transactions, as the broker listed them.
    """

    __slots__ = (
        "_aborted", "_aborting", "_at", "_buffer", "_partition", "_topic_id", "leader_epoch", "position",
    )  # fmt: skip

    def __init__(
        self,
        buffer: bytes,
        topic_id: str,
        partition: int,
        position: int,
        aborted: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._buffer = buffer
        self._topic_id, self._partition = topic_id, partition
        self._at = 0
        self._aborted = sorted(aborted, key=lambda transaction: transaction[1], reverse=True)
        self._aborting: set[int] = set()
        self.position = position
        self.leader_epoch = -1

    def next_fetch(self, about_bytes: int) -> Fetch | None:
        """Return the next batches, one at least and about so many uncompressed bytes; None at the end.

        Raises:
            LogError: A checksum differs, a batch is no batch, or its codec is not installed.
        """
        first, size = self.position, 0
        digests: list[Digest] = []
        portion = _Portion(self._buffer)
        while size < about_bytes:
            try:
                end = self._end_of_batch()
                if end is None:
                    break
                size += self._take_batch(end, digests, portion)
            except (CorruptError, IndexError, ValueError, struct.error) as error:
                if digests:  # what came whole before it counts; the next call comes to this place again
                    break
                raise self._refusal(error) from error
        if not digests:
            return None
        try:
            columns = portion.columns(first)
        except (CorruptError, IndexError, ValueError) as error:
            raise self._refusal(error, first) from error
        return Fetch(
            self._topic_id, self._partition, first, self.position,
            columns.offsets, columns.appended_ms, columns.values, columns.keys, columns.headers,
            tuple(digests), size=size + _OBJECT_BYTES * columns.objects,
        )  # fmt: skip

    def _end_of_batch(self) -> int | None:
        """Return where the batch at hand ends, None if it is not all there."""
        if self._at + _LENGTH.size > len(self._buffer):
            return None
        length: int = _LENGTH.unpack_from(self._buffer, self._at)[1]
        end = self._at + _LENGTH.size + length
        if length < _BATCH.size - _LENGTH.size:
            raise CorruptError(f"a batch of {length} bytes")
        return end if end <= len(self._buffer) else None

    def _take_batch(self, end: int, digests: list[Digest], portion: _Portion) -> int:
        """Add the batch at hand, unless it is a marker or aborted; return its uncompressed size."""
        buffer, at = self._buffer, self._at
        base, _, epoch, magic, crc, attributes, last_delta, *rest = _BATCH.unpack_from(buffer, at)
        first_ms, max_ms, producer, _, _, count = rest
        if magic != 2:
            raise CorruptError(f"message format {magic}, expected 2")
        if crc32c(memoryview(buffer)[at + _CRC_FROM : end]) != crc:
            raise CorruptError("the checksum (CRC-32C) differs")
        body, size = at + _BATCH.size, end - at
        aborted = producer >= 0 and self._is_aborted(base + last_delta, producer, attributes, body, end)
        if (count or body < end) and not aborted and not attributes & _CONTROL:
            data = buffer
            if attributes & _CODEC:
                data = decompress(attributes & _CODEC, buffer[body:end])
                body, end, size = 0, len(data), len(data)
            portion.add(data, body, end, count, base, first_ms, max_ms if attributes & _APPEND_TIME else None)
        digests.append((base, epoch, crc))
        self._at = at + _LENGTH.size + _LENGTH.unpack_from(buffer, at)[1]
        self.leader_epoch = epoch
        self.position = max(self.position, base + last_delta + 1)
        return size

    def _is_aborted(self, last: int, producer: int, attributes: int, body: int, end: int) -> bool:
        """Tell whether a producer's batch belongs to an aborted transaction; its marker ends it."""
        while self._aborted and self._aborted[-1][1] <= last:
            self._aborting.add(self._aborted.pop()[0])
        if attributes & _CONTROL:
            starts, ends = find_records(self._buffer, body, end, 1)
            (key,) = parse_records(self._buffer, starts, ends).keys
            if key is None or len(key) < 4:
                raise CorruptError("a transaction marker without a type")
            if struct.unpack_from(">h", key, 2)[0] == _ABORT:
                self._aborting.discard(producer)
            return False
        return bool(attributes & _TRANSACTIONAL) and producer in self._aborting

    def _refusal(self, error: Exception, position: int | None = None) -> LogError:
        where = self.position if position is None else position
        return LogError(
            f"partition {self._partition}, near offset {where}: expected whole record batches, got: {error}. "
            "Nothing behind this place is counted; if reading again does not help, check the broker's disk, "
            'then see "When the pipeline stops" in docs/operations.md'
        )


class _Portion:
    """Batches that are parsed together, because columns are cheap only when they are long."""

    __slots__ = ("_append_ms", "_bases", "_buffer", "_counts", "_ends", "_first_ms", "_pieces", "_starts")

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        self._pieces: list[tuple[bytes, int, int]] = []
        self._starts: list[int] = []  # of records, each in the bytes of its own piece
        self._ends: list[int] = []
        self._counts: list[int] = []
        self._bases: list[int] = []
        self._first_ms: list[int] = []
        self._append_ms: list[int | None] = []

    def add(
        self, data: bytes, body: int, end: int, count: int, base: int, first_ms: int, append_ms: int | None
    ) -> None:
        starts, ends = find_records(data, body, end, count)
        self._starts += starts
        self._ends += ends
        self._pieces.append((data, body, end))
        self._counts.append(count)
        self._bases.append(base)
        self._first_ms.append(first_ms)
        self._append_ms.append(append_ms)

    def columns(self, first: int) -> RecordColumns:
        """Return the records from offset `first` on; `offsets` and `appended_ms` are absolute."""
        columns = parse_records(*self._in_one_piece())
        counts = self._counts
        columns.offsets += np.repeat(np.array(self._bases, np.int64), counts)
        if len(columns.offsets) > 1 and not (np.diff(columns.offsets) > 0).all():
            raise CorruptError("offsets that do not grow")
        columns.appended_ms = self._times(columns.appended_ms)
        below = int(np.searchsorted(columns.offsets, first))
        return columns.without(below) if below else columns

    def _times(self, deltas: IntArray) -> IntArray:
        firsts, appends = self._first_ms, self._append_ms
        if None not in appends:
            return np.repeat(np.array(appends, np.int64), self._counts)
        by_broker = np.repeat([ms is not None for ms in appends], self._counts)
        base = np.array([f if ms is None else ms for f, ms in zip(firsts, appends, strict=True)], np.int64)
        return np.repeat(base, self._counts) + np.where(by_broker, 0, deltas)

    def _in_one_piece(self) -> tuple[bytes, list[int], list[int]]:
        if all(data is self._buffer for data, _, _ in self._pieces):
            return self._buffer, self._starts, self._ends
        if len(self._pieces) == 1:
            return self._pieces[0][0], self._starts, self._ends
        shifts, size = [], 0
        for _, body, end in self._pieces:
            shifts.append(size - body)
            size += end - body
        shift = [by for by, count in zip(shifts, self._counts, strict=True) for by in repeat(by, count)]
        starts = [at + by for at, by in zip(self._starts, shift, strict=True)]
        ends = [at + by for at, by in zip(self._ends, shift, strict=True)]
        return b"".join([data[body:end] for data, body, end in self._pieces]), starts, ends
