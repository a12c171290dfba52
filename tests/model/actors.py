"""What runs in production, as processes of a schedule: the stages of the job, the sealer, a reader.

`deployed` puts the few things in place that a machine gives to the code and that a seed must decide instead:
connections, threads and the monotonic clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from clickhouse_driver import errors as driver_errors

from pipeline import book, fold, id_loads, runtime, write
from pipeline.decoders import Decoders
from pipeline.dedupe import Judge
from pipeline.frontier import StoredIds
from pipeline.id_filter import IdFilter
from pipeline.runtime import JobConfig, Runtime
from pipeline.seal import Sealer
from pipeline.write import Tables
from tallyman.errors import BrokerError, LogError, StoreError
from tests.model.chunk_model import close
from tests.model.process import Process, running
from tests.model.world import TOPIC, LogOutlet, RealWorld, ask, definitions

NEVER_S = float("inf")
RESTARTED_AFTER = (StoreError, BrokerError, LogError, driver_errors.Error)


class Clock:
    """The `time` of the code that runs in a schedule: a second goes by with each look at it."""

    def __init__(self) -> None:
        self._now_s = 1e9

    def monotonic(self) -> float:
        self._now_s += 1
        return self._now_s

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        running().pause("sleep")


@contextmanager
def deployed(world: RealWorld) -> Iterator[None]:
    """Let production code find this world's connections, threads and time."""
    clock = Clock()
    patient = partial(write.write, patience_s=world.patience_s, pause=clock.sleep)
    with ExitStack() as stack:
        for module in (fold, write, runtime, id_loads):
            stack.enter_context(patch.object(module, "time", clock))
        stack.enter_context(patch.object(runtime, "write", patient))
        threads = SimpleNamespace(Thread=partial(_Thread, world), Lock=threading.Lock)
        stack.enter_context(patch.object(id_loads, "threading", threads))
        for module in (runtime, id_loads):
            stack.enter_context(patch.object(module, "connect", lambda _, numpy=False: world.door(numpy=numpy)))
        stack.enter_context(patch.object(fold, "MAX_CHANGED_KEYS", world.most_keys))
        world.faults.block_rows = world.block_rows
        # Most schedules do without what nobody reads in them.
        world.faults.unread = () if world.archive else ("dead_letters", "conflicts")
        stack.enter_context(patch.object(book, "MAX_IDS_IN_MEMORY", world.most_ids))
        yield


class _Thread:
    """A thread that production code starts: another one of its process, if the world lets it come to life."""

    def __init__(self, world: RealWorld, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> None:
        self._world, self._body = world, partial(target, *args)

    def start(self) -> None:
        if self._world.rng.random() < self._world.threads_share:
            running().start(self._body)


class _Config:
    """As much of a `JobConfig` as a `Runtime` asks for."""

    topic_id, database = TOPIC, None
    before = ()  # it follows no topic

    def __init__(self, chunk_size: int, archive: bool, flush_s: Callable[[], float]) -> None:
        self.chunk_size, self.archive, self._flush_s = chunk_size, archive, flush_s

    @property
    def flush_s(self) -> float:
        return self._flush_s()


class Worker:
    """A worker: what `pipeline.runtime` holds for it, driven as Beam drives the job.

    Args:
        flush_s: Asked for each flush that may be due: after how many seconds it is.
    """

    def __init__(self, world: RealWorld, flush_s: Callable[[], float], chunk_size: int) -> None:
        self._world = world
        self.runtime = Runtime(
            cast(JobConfig, _Config(chunk_size, world.archive, flush_s)),
            Tables(world.door(), world.door(numpy=True)),
            Judge(StoredIds(world.door(numpy=True)), IdFilter(1 << 10, limit_bytes=256)),
            Decoders(definitions, len(world.logs)),
            LogOutlet(world),
        )

    def book(self, partition: int, most: int) -> None:
        """Fetch some records of a partition and let them go through all stages."""
        position = self.runtime.open_chunk(partition).here.offset
        running().pause("fetch")
        for block in self.runtime.decode(self._world.fetch(partition, position, most)):
            for flush in self.runtime.sum(self.runtime.count(block)):
                self.runtime.write(flush)


def stepwise(world: RealWorld, main: Callable[[RealWorld], None]) -> Iterator[None]:
    """Run a process from pause to pause; closing the generator kills it."""
    process = Process(lambda _: main(world))
    try:
        while True:
            process.resume(world.rng.randrange(process.threads))
            yield
    finally:
        process.kill()


def work(world: RealWorld) -> None:
    """Run a worker of `chunk_model.work`."""
    rng = world.rng
    while True:
        due = lambda: 0.0 if rng.random() < world.flush_share else NEVER_S  # noqa: E731
        worker = Worker(world, due, world.chunk_size)
        held = rng.sample(range(len(world.logs)), rng.randint(1, len(world.logs)))
        try:
            for _ in range(rng.randint(4, 30)):
                worker.book(rng.choice(held), rng.randint(1, world.most_records))
        except RESTARTED_AFTER:
            running().pause("restart")
        runtime.forget()


def seal(world: RealWorld) -> None:
    """Run the sealer of one worker's upkeep."""
    partitions = [(TOPIC, number, world.chunk_size) for number in range(len(world.logs))]
    sealer = Sealer(world.door(), partitions, taken_for_s=world.rng.choice([0, 3600]))
    while True:
        try:
            sealer.seal_all()
            if world.rng.random() < 0.3 and sealer.drop_old_hot(world.now_ms(), 0):
                world.dropped += 1
            if world.rng.random() < 0.2:
                sealer.roll_up_missing()
                sealer.join_heard()
        except (StoreError, driver_errors.Error):
            pass
        running().pause("rest")


def read(world: RealWorld) -> None:
    """Run a dashboard: ask for everything, again and again."""
    while True:
        try:
            dropped = world.dropped
            answer = ask(world.door(), len(world.logs))
            if world.dropped == dropped:  # hot rows stay for a day: no question takes that long
                world.check_answer(answer)
        except driver_errors.Error:
            pass
        running().pause("rest")


def start_all(world: RealWorld) -> None:
    """Say what a schedule runs."""
    world.start = [
        *[partial(stepwise, main=work)] * 3,
        *[partial(stepwise, main=seal)] * 2,
        close,
        partial(stepwise, main=read),
    ]
