"""Count a stretch of log again through the stages of the job, for audit and rebuild: the same decoding, counting once
and folding, but what comes out goes to a table of its own and to whoever asked, never into the books.

Each chunk is counted from the place where the books say it begins, with the identities that were accepted below it,
so that chunks can be counted in any order, and each proves the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from clickhouse_driver import Client

from pipeline.aggregate import Reduced, Table
from pipeline.batches import Fetch
from pipeline.book import Forward, OpenChunk, Place
from pipeline.catalog import Catalog
from pipeline.columns import Block
from pipeline.decode import blocks
from pipeline.decoders import Decoders
from pipeline.dedupe import Judge, count_once
from pipeline.fold import fold
from pipeline.id_filter import IdFilter
from pipeline.identities import U64, AcceptedIds, IdColumns
from pipeline.poll import Poller
from pipeline.write import Cut, Flush, Progress, Tables, write
from tallyman.errors import DamageError
from tallyman.kafka import end_offsets, log_starts, make_consumer
from tallyman.rebuilds import Switch

_NEVER = float("inf")
# Odd numbers, so that each bit of an offset and of an index moves the mark; SQL and numpy wrap alike.
OFFSET_FACTOR, INDEX_FACTOR = 11_400_714_819_323_198_485, 14_029_467_366_897_019_727
Observer = Callable[[Block, OpenChunk, Catalog], None]
Count = Callable[[Block, OpenChunk, Catalog, Judge], Block]


class Source(Protocol):
    """Where records are read again."""

    name: str

    def reach(self, partition: int) -> tuple[int, int]:
        """Return the first offset that it has of a partition, and the one behind its last."""
        ...

    def read(self, partition: int, start: int, stop: int) -> Iterator[Fetch]:
        """Yield the records with offsets in [start, stop).

        Raises:
            LogError: It does not have them.
            BrokerError: Kafka does not give them.
        """
        ...

    def close(self) -> None: ...


class LogSource:
    """Reads Kafka again, with one consumer for all stretches. Stretches that follow each other cost no second fetch."""

    name = "log"

    def __init__(self, brokers: Sequence[str], topic: str, topic_id: str) -> None:
        self._topic = topic
        self._poller = Poller(make_consumer(tuple(brokers)), topic, topic_id)
        self._ends: dict[int, int] = {}
        self._queue: deque[Fetch] = deque()
        self._behind = (-1, 0)  # partition, and the position behind all that is queued

    def reach(self, partition: int) -> tuple[int, int]:
        consumer = self._poller.consumer
        end = self._ends[partition] = end_offsets(consumer, self._topic, [partition])[partition]
        return log_starts(consumer, self._topic, [partition])[partition], end

    def read(self, partition: int, start: int, stop: int) -> Iterator[Fetch]:
        if stop > self._ends.get(partition, 0) and stop > (end := self.reach(partition)[1]):
            where = f'topic "{self._topic}", partition {partition}'
            raise DamageError(partition, "cut", f"{where}: expected records up to offset {stop}, but it ends at {end}")
        while start < stop:
            fetch = self._fetch_at(partition, start)
            start = min(fetch.next, stop)
            yield fetch.below(stop)

    def close(self) -> None:
        self._poller.close()

    def _fetch_at(self, partition: int, position: int) -> Fetch:
        """Return a fetch that holds a position; it may begin below it."""
        queue = self._queue
        while queue and not (queue[0].partition == partition and queue[0].first <= position < queue[0].next):
            queue.popleft()
        if not queue and self._behind != (partition, position):
            self._poller.assign([partition])
            self._seek(partition, position)
        while not queue:
            for fetch in self._poller.wait(partition, position):
                if (fetch.partition, fetch.first) == self._behind:
                    queue.append(fetch)
                    self._behind = partition, fetch.next
                else:  # it was under way to another place
                    self._seek(*self._behind)
        return queue[0]

    def _seek(self, partition: int, position: int) -> None:
        self._poller.seek(partition, position)
        self._behind = partition, position


class Anything(IdFilter):
    """A filter that is sure of nothing: every identity is asked for, and nothing need be loaded or kept."""

    def __init__(self) -> None:
        super().__init__(bits=8)

    def add(self, high: U64, low: U64) -> None:
        return

    def perhaps(self, topic_id: str, partition: int, high: U64, low: U64) -> npt.NDArray[np.bool_]:
        return np.ones(len(high), bool)


class Silent:
    """The outlet of a replay: nothing is forwarded, and nobody waits for progress."""

    def forward(self, forwards: Sequence[Forward]) -> None:
        return

    def push(self, progress: Progress) -> None:
        return

    def close(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which usage is kept: of these meters (None: of all) and minutes since 1970 in [first, end)."""

    meters: frozenset[str] | None = None
    first: int = 0
    end: int = 1 << 32

    def overlaps(self, switch: Switch) -> bool:
        """Whether a rebuild covers some of it."""
        span = self.first * 60, self.end * 60
        return any(switch.about(meter, span) for meter in (switch.meters if self.meters is None else self.meters))

    def rows(self, keys: npt.NDArray[np.int64], catalog: Catalog) -> npt.NDArray[np.bool_]:
        """Tell which rows are wanted; keys are series code << 32 | minute."""
        minutes = keys & 0xFFFFFFFF
        chosen: npt.NDArray[np.bool_] = (minutes >= self.first) & (minutes < self.end)
        if self.meters is not None:
            codes, row = np.unique(keys >> 32, return_inverse=True)
            slugs = [catalog.meters[catalog.series.meters[code]].meter for code in codes.tolist()]
            chosen &= np.array([slug in self.meters for slug in slugs], bool)[row]
        return chosen


@dataclass(slots=True)
class Marks:
    """How many identities, and a mark of all of them with their positions: equal sets have equal marks."""

    count: int = 0
    mark: int = 0

    def add(self, ids: IdColumns) -> None:
        rows = ids.high + ids.low * np.uint64(3) + ids.digests + ids.remembered_us.astype(np.uint64)
        rows += ids.offsets.astype(np.uint64) * np.uint64(OFFSET_FACTOR)
        rows += ids.indexes.astype(np.uint64) * np.uint64(INDEX_FACTOR)
        self.count += len(rows)
        self.mark ^= int(np.bitwise_xor.reduce(rows)) if len(rows) else 0


class ReplayTables(Tables):
    """Takes a replay's flushes: usage goes to a table like `usage_hot`, of the rest it is noted what there was.

    Attributes:
        ids: What was accepted since the last `begin`.
    """

    def __init__(self, client: Client, numbers: Client, table: str, wanted: Wanted) -> None:
        super().__init__(client, numbers)
        self.usage_table = table
        self._wanted = wanted
        self.ids = Marks()

    def begin(self) -> None:
        """Forget what was noted: another chunk begins."""
        self.ids = Marks()

    def insert_ids(self, cuts: Sequence[tuple[tuple[str, int, int], list[IdColumns]]]) -> None:
        for _, accepted in cuts:
            for ids in accepted:
                self.ids.add(ids)

    def insert_rows(self, table: str, key: tuple[str, int], rows: Sequence[Any]) -> None:
        return

    def insert_heard(self, rows: Sequence[tuple[Any, ...]]) -> None:
        return

    def insert_progress(self, chunks: Sequence[OpenChunk]) -> None:
        return

    def insert_usage(self, cuts: Sequence[Cut]) -> None:
        for cut in cuts:
            chosen = self._wanted.rows(cut.changes.keys, cut.catalog)
            rows = Reduced(*(getattr(cut.changes, name)[chosen] for name in Reduced.__slots__))
            if len(rows.keys):
                super().insert_usage([Cut(cut.chunk, cut.catalog, cut.ids, rows, cut.slots)])


@dataclass(slots=True)
class Stages:
    """What a process needs to count again.

    Attributes:
        count: Judges a block, as `pipeline.dedupe.count_once` does.
    """

    decoders: Decoders
    judge: Judge
    tables: ReplayTables
    observe: Observer = field(default=lambda block, chunk, catalog: None)
    count: Count = count_once

    def chunk_at(self, topic_id: str, partition: int, size: int, number: int, start: Place) -> OpenChunk:
        """Return a chunk of which nothing is counted yet."""
        table = Table(self.decoders.catalog(start.definitions).needs)
        return OpenChunk(topic_id, partition, size, number, start, start, start.offset, table, AcceptedIds())


def replay(chunk: OpenChunk, source: Source, stops: Iterable[int], stages: Stages) -> Iterator[Place]:
    """Count a chunk, yielding the place at each stop, when everything below it is flushed.

    Args:
        stops: Growing offsets in this chunk, or at its end.

    Raises:
        LogError: The source does not have the records.
        StoreError: ClickHouse did not take the rows for a minute.
    """
    place = chunk.here
    for stop in stops:
        for fetch in source.read(chunk.partition, chunk.here.offset, stop):
            for block in blocks(fetch, chunk, stages.decoders):
                place = _take(block, chunk, stages)
        if chunk.here.offset < chunk.end and chunk.unwritten:
            _write(Flush(chunk, stages.decoders.catalog(chunk.here.definitions)), stages)
        yield place


def _take(block: Block, chunk: OpenChunk, stages: Stages) -> Place:
    """Count one block; return the place behind it, with the counts of its chunk."""
    if block.idle:
        return chunk.here
    catalog = stages.decoders.catalog(block.after.definitions)
    stages.count(block, chunk, catalog, stages.judge)
    stages.observe(block, chunk, catalog)
    # Counted they are, and nobody writes them: a chunk of letters is as large as its log, many times if it came packed.
    for rows in (chunk.dead, chunk.conflicts, chunk.corrections, chunk.forwards):
        rows.clear()
    counts = block.before.counts.plus(block.counts)
    for flush in fold(block, chunk, stages.decoders, flush_s=_NEVER):
        _write(flush, stages)
    if chunk.full_of_ids:  # a worker flushes by the clock, long before
        _write(Flush(chunk, stages.decoders.catalog(chunk.here.definitions)), stages)
    return Place(block.after.offset, block.after.clock_ms, block.after.booking, block.after.definitions,
                 block.after.digest, counts)  # fmt: skip


def _write(flush: Flush, stages: Stages) -> None:
    # A worker in this process may have chunks open: what they have to write goes into the books, not here.
    flush.others = ()
    write(flush, stages.tables, Silent())
