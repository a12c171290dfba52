"""What one worker process holds while it books: clients, decoders, the id filter, its open chunks.

Beam hands `JobConfig` around (small, picklable); each process makes its `Runtime` from it once, on Flink once for each
lane (`pipeline.lanes`). `DoFn`s keep nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import sqlalchemy as sa

from pipeline import metrics as counted
from pipeline.batches import Fetch
from pipeline.book import OPEN, OpenChunk
from pipeline.clock import FutureGuard, store_clock_ms
from pipeline.columns import Block
from pipeline.decode import blocks
from pipeline.decoders import Decoders
from pipeline.dedupe import Judge, count_once
from pipeline.fold import due_elsewhere, fold
from pipeline.frontier import StoredIds, read_frontier
from pipeline.id_filter import LIMIT_BYTES, IdFilter
from pipeline.id_loads import IdLoads
from pipeline.lanes import Lanes, this_lane
from pipeline.outlet import KafkaOutlet
from pipeline.source import close_readers, reader_of
from pipeline.write import Flush, Outlet, Tables, write
from tallyman.books import Topic, load_definitions
from tallyman.clickhouse import connect
from tallyman.control import open_control


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Where ClickHouse answers; a picklable copy of the project's setting."""

    host: str
    port: int
    user: str
    password: str
    database: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """Everything that a worker process needs to know to book a topic.

    Attributes:
        before: The topics that it follows, the first one first; they are booked to their ends.
        followed: Whether another topic follows it.
    """

    brokers: tuple[str, ...]
    topic: str
    topic_id: str
    partitions: int
    assigned: tuple[int, ...]
    chunk_size: int
    progress_topic: str
    database: Database
    control_url: str
    flush_s: float = 0.2
    archive: bool = False
    expected_delay_us: int = 10_000_000
    tick_s: float = 30
    id_filter_bytes: int = LIMIT_BYTES
    before: tuple[Topic, ...] = ()
    followed: bool = False

    @property
    def before_ids(self) -> tuple[str, ...]:
        return tuple(topic.topic_id for topic in self.before)


class Runtime:
    """The stages of the job, as methods on blocks and flushes; Beam's transforms only call them.

    Args:
        let_go: Called at `close`, for what the stages hold besides.
    """

    def __init__(
        self,
        config: JobConfig,
        tables: Tables,
        judge: Judge,
        decoders: Decoders,
        outlet: Outlet,
        guard: FutureGuard | None = None,
        let_go: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.config = config
        self.tables = tables
        self.judge = judge
        self.decoders = decoders
        self.outlet = outlet
        self.guard = guard
        self._loads = IdLoads(config, judge.filter)
        self._let_go = tuple(let_go)

    def close(self) -> None:
        """Let go of every connection, and of the ids; nobody uses this runtime any more."""
        self.judge.filter.close()  # else its load would go on, beside that of each runtime that comes after it
        self.outlet.close()
        self.tables.close()
        for each in self._let_go:
            each()

    def open_chunk(self, partition: int) -> OpenChunk:
        """Return the open chunk of a partition; the first time, read its frontier."""
        key = (self.config.topic_id, partition)
        if key not in OPEN:
            client = connect(self.config.database)
            try:
                frontier = read_frontier(client, *key, self.config.chunk_size)
            finally:
                client.disconnect()
            needs = self.decoders.catalog(frontier.turned.definitions).needs
            expected = self.judge.filter.expect(*key)  # somebody else may have accepted ids since it was loaded
            chunk = OPEN[key] = frontier.open(self.config.chunk_size, needs)
            counted.note_booked(partition, frontier.reached)
            # The filter is read after the frontier, so that no id below it is missed; until then every id is looked up.
            self._loads.ask(chunk, expected)
        return OPEN[key]

    def decode(self, fetch: Fetch) -> Iterator[Block]:
        fetch = self.guard.past(fetch) if self.guard else fetch
        counted.note_fetch(fetch)
        chunk, began = self.open_chunk(fetch.partition), time.monotonic()
        yield from blocks(fetch, chunk, self.decoders, archive=self.config.archive)
        chunk.spent_s += time.monotonic() - began  # with what the stages behind this one took: they are fused

    def count(self, block: Block) -> Block:
        if block.idle:
            return block
        chunk = OPEN[block.topic_id, block.partition]
        count_once(block, chunk, self.decoders.catalog(block.after.definitions), self.judge)
        counted.note_block(block)
        return block

    def sum(self, block: Block) -> Iterator[Flush]:
        chunk = OPEN[block.topic_id, block.partition]
        yield from fold(block, chunk, self.decoders, flush_s=self.config.flush_s)
        yield from due_elsewhere(block, self.decoders, self.config.flush_s)
        if block.closes:
            self.decoders.let_go(min(each.here.definitions for each in OPEN.values()))
        if block.closes or block.turn:
            self._forget_series(chunk.here.definitions)

    def _forget_series(self, definitions: int) -> None:
        """Forget series that are gone: a worker lives longer than a container. All blocks are folded, and all flushes
        of them acknowledged.
        """
        tables = [each.table for key, each in OPEN.items()
                  if key[0] == self.config.topic_id and each.here.definitions == definitions]  # fmt: skip
        self.decoders.forget_series(definitions, tables)

    def write(self, flush: Flush) -> None:
        began = time.perf_counter()
        write(flush, self.tables, self.outlet)
        counted.note_flush(flush, time.perf_counter() - began)


_runtimes: dict[tuple[int, JobConfig], Runtime] = {}


def runtime(config: JobConfig) -> Runtime:
    """Return this lane's runtime for a job, made at the first call."""
    key = this_lane(), config
    if key not in _runtimes:
        engine: sa.Engine = open_control(config.control_url)
        ids_client = connect(config.database, numpy=True)
        _runtimes[key] = Runtime(
            config,
            Tables(connect(config.database), connect(config.database, numpy=True)),
            Judge(StoredIds(ids_client, config.before_ids), IdFilter(limit_bytes=config.id_filter_bytes)),
            Decoders(lambda number: load_definitions(engine, number), config.partitions),
            KafkaOutlet(config.brokers, config.topic, config.progress_topic, config.expected_delay_us),
            FutureGuard(lambda: store_clock_ms(config.database)),
            let_go=(ids_client.disconnect, engine.dispose),
        )
    return _runtimes[key]


def forget() -> None:
    """Drop this lane's open chunks and clients: after a failure, everything is read again from the frontier."""
    _leave(this_lane())


def _leave(lane: int) -> None:
    OPEN.leave(lane)
    for key in [key for key in list(_runtimes) if key[0] == lane]:
        _runtimes.pop(key).close()
    close_readers(lane)


_LANES = Lanes(_leave)


def turn(topic_id: str, partition: int) -> AbstractContextManager[int]:
    """Return the turn of a partition that has a lane of its own, where a runner has several threads."""
    return _LANES.turn((topic_id, partition))


def release(config: JobConfig, keep: Collection[int]) -> None:
    """Let go of all other partitions: somebody else books them, and should one come back, it is read anew."""
    reader_of(config.brokers, config.topic, config.topic_id).keep(keep)
    for topic_id, partition in [key for key in OPEN if key[0] == config.topic_id and key[1] not in keep]:
        del OPEN[topic_id, partition]
        runtime(config).judge.filter.unload(topic_id, partition)
        counted.forget(partition)
    counted.forget_others(keep)


def next_position(config: JobConfig, topic_id: str, partition: int) -> int:
    """Return the offset that this process reads next of a partition."""
    return runtime(config).open_chunk(partition).here.offset


def restart_place(config: JobConfig, topic_id: str, partition: int) -> int:
    """Return the offset from which a new process would have to read."""
    return runtime(config).open_chunk(partition).turned.offset
