"""Schedules written by hand: what stands in the log, and how far each process goes before another one goes on.

After every step of every process the invariants are checked, so that a script only has to bring about the bad day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa

from pipeline import runtime
from pipeline.seal import Sealer
from tallyman import books
from tests.model.actors import NEVER_S, RESTARTED_AFTER, Worker, deployed, seal, start_all, stepwise
from tests.model.chunk_check import settle
from tests.model.chunk_model import CHUNK, DAY, PartitionLog
from tests.model.judging import Event
from tests.model.process import Process, running
from tests.model.store import Store
from tests.model.switches import Switch
from tests.model.world import TOPIC, RealWorld, ask

AnyHand = TypeVar("AnyHand", bound="Hand")
IDLE = "idle"
_PATIENCE = 400  # statements of one process; what takes longer never comes
_SETTLED_AFTER = 1500


class Script:
    """A world of two partitions without faults, at minute 20 of the model (the first of its third day)."""

    def __init__(self, store: Store) -> None:
        world = self.world = RealWorld(0, store)
        world.logs = [PartitionLog(), PartitionLog()]
        world.most_keys, world.block_rows, world.most_ids = 900_000, 1 << 20, 1_000_000
        world.archive, world.threads_share, world.faults.share = False, 0.0, 0.0
        start_all(world)
        self._hands: list[Hand] = []
        self._control: sa.Engine | None = None

    # The log.

    def send(
        self, partition: int = 0, minute: int = 20, *, at: int = 20, value: int = 1, subject: str = "a",
        admitted: bool = False,
    ) -> Event:  # fmt: skip
        """Append an event to its home."""
        return self.again(self.event(partition, minute, value, subject), partition, at=at, admitted=admitted)

    def event(self, partition: int = 0, minute: int = 20, value: int = 1, subject: str = "a") -> Event:
        """Make an event that is at home in a partition; nobody sent it yet."""
        identity = next(
            name
            for name in (f"id-{len(self.world.produced)}-{number}" for number in range(100))
            if self.world.home(Event(name, subject, minute, value)) == partition
        )
        event = Event(identity, subject, minute, value)
        self.world.produced.append(event)
        return event

    def again(self, event: Event, partition: int = 0, *, at: int = 20, admitted: bool = False) -> Event:
        """Append a copy of an event to a partition."""
        self.world.now = max(self.world.now, at)
        self.world.logs[partition].append(event, at, admitted=admitted)
        return event

    def correct(self, event: Event, value: int, partition: int = 0, *, at: int = 20) -> Event:
        """Append what makes the next version of an event: 0 voids it."""
        return self.again(event.corrected(value), partition, at=at)

    def tick(self, partition: int = 0, *, at: int = 20, times: int = 1) -> None:
        self.world.now = max(self.world.now, at)
        for _ in range(times):
            self.world.logs[partition].append(None, at)

    def fill(self, partition: int = 0, *, at: int = 20) -> None:
        """Append ticks up to the end of the chunk."""
        self.tick(partition, at=at, times=-self.world.logs[partition].end % CHUNK)

    def apply(self, partition: int, opens: int, *, at: int = 20) -> None:
        """Append the close that puts the second definitions in force."""
        self.world.meters = 1
        self.world.logs[partition].append(None, at, opens=opens, meters=1)

    def expire(self, partition: int, start: int) -> None:
        """Let retention move the start of the log."""
        self.world.logs[partition].start = start

    # Processes.

    def worker(self) -> WorkerHand:
        return self._begin(WorkerHand(self.world))

    def configured_worker(self, chunk_size: int) -> WorkerHand:
        """Start a worker as `pipeline.worker` does, with what the control store knows of the topic.

        Raises:
            ConfigError: Its configuration has another chunk size than the topic.
        """
        if self._control is None:
            self._control = sa.create_engine("sqlite://")
            books.prepare(self._control)
        mine = books.Topic(TOPIC, TOPIC, len(self.world.logs), chunk_size, founded=True)
        return self._begin(WorkerHand(self.world, books.register_topic(self._control, mine).chunk_size))

    def sealer(self) -> SealerHand:
        return self._begin(SealerHand(self.world))

    def reader(self) -> ReaderHand:
        return self._begin(ReaderHand(self.world))

    def _begin(self, hand: AnyHand) -> AnyHand:
        self._hands.append(hand)
        return hand

    def close(self) -> None:
        """Kill what is left."""
        for hand in self._hands:
            hand.kill()

    def fail(self, statement: str, *, executed: bool) -> None:
        """Leave the next statement that begins so without an answer."""
        self.world.faults.planned[statement] = executed

    def end(self) -> None:
        """Let fresh processes book and seal what is left, and check everything."""
        sealer = stepwise(self.world, seal)
        try:
            settle(self.world, [sealer], turns=_SETTLED_AFTER)
        finally:
            sealer.close()
        self.world.check_end()


class Hand:
    """A process that does what it is told, as far as it is told."""

    def __init__(self, world: RealWorld) -> None:
        self.world = world
        self.stopped: Exception | None = None  # what it could not go on after
        self._orders: list[Callable[[], object]] = []
        self._process = Process(lambda _: self._serve())
        self.go()

    def begin(self) -> None:
        """Set up, inside the process; again after a failure, as a restart does."""

    def _serve(self) -> None:
        self.begin()
        while True:
            running().pause(IDLE)
            while self._orders:
                try:
                    self._orders.pop(0)()
                except RESTARTED_AFTER as error:
                    self.stopped = error
                    self.begin()

    def go(self, order: Callable[[], object] | None = None, *, before: str = IDLE) -> None:
        """Go on, with a new order if there is one, until just before a statement that contains these words."""
        self._orders += [order] if order else []
        for _ in range(_PATIENCE):
            self._process.resume()
            self.world.check()
            if before in self._process.at:
                return
        raise RuntimeError(f'the script waits for "{before}", the process is at "{self._process.at[:60]}"')

    def step(self) -> None:
        """Go on with one statement."""
        self._process.resume()
        self.world.check()

    def kill(self) -> None:
        self._process.kill()

    def run_threads(self) -> None:
        """Let all other threads of the process come to their ends."""
        while self._process.threads > 1:
            self._process.resume(1)


class WorkerHand(Hand):
    """A worker; flushes are due when its order says so."""

    def __init__(self, world: RealWorld, chunk_size: int = CHUNK) -> None:
        self.chunk_size = chunk_size
        super().__init__(world)

    def begin(self) -> None:
        runtime.forget()
        self.flush = False
        self.worker = Worker(self.world, lambda: 0.0 if self.flush else NEVER_S, self.chunk_size)

    def book(self, partition: int = 0, most: int = 100, *, flush: bool = False, before: str = IDLE) -> None:
        """Fetch up to so many records of a partition, and let them go through all stages."""

        def order() -> None:
            self.flush = flush
            self.worker.book(partition, most)

        self.go(order, before=before)


class SealerHand(Hand):
    def begin(self) -> None:
        partitions = [(TOPIC, number, CHUNK) for number in range(len(self.world.logs))]
        self.sealer = Sealer(self.world.door(), partitions)

    def seal(self, *, before: str = IDLE) -> None:
        """Seal what can be sealed."""
        self.go(lambda: self.sealer.seal_all(), before=before)

    def drop(self) -> None:
        """Drop the hot rows of what was sealed, a day and more later."""
        self.world.now += 2 * DAY
        self.go(lambda: self.sealer.drop_old_hot(self.world.now_ms(), 0))


class ReaderHand(Hand):
    def ask(self, *, before: str = IDLE) -> None:
        """Read all usage, and check what the answer claims."""
        self.go(lambda: self.world.check_answer(ask(self.world.door(), len(self.world.logs))), before=before)


@contextmanager
def scripted(store: Store, deployment: Mapping[str, Any], switch: Switch) -> Iterator[Script]:
    """Set the stage for one script."""
    script = Script(store)
    for name, value in deployment.items():
        setattr(script.world, name, value)
    with deployed(script.world), switch(script.world):
        try:
            yield script
        finally:
            script.close()
