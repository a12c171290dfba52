"""`ReadUsage`: Kafka as an unbounded Beam source without a JVM, one element for each fetch.

Beam's part is small: it hands each partition its turn. Where reading begins is not Beam's to know: the book (ClickHouse
and the open chunks of this process) says it, so that every restart, of whatever runner, re-reads from a safe place.
Reading, folding and writing must stay fused: a turn asks the book for the next position after each fetch it gave away.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import PickleCoder
from apache_beam.io.iobase import RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration

from pipeline.batches import Fetch, empty_fetch
from pipeline.poll import Poller
from pipeline.source import IDLE_MS, UsageReader, reader_of
from tallyman.errors import BrokerError, LogError
from tallyman.kafka import end_offsets, make_consumer

log = logging.getLogger(__name__)

Position = Callable[[str, int], int]  # (topic id, partition) -> offset
Element = tuple[str, int]  # (topic id, partition)

Turn = Callable[[str, int], AbstractContextManager[object]]  # around a turn of (topic id, partition)

LONGEST_TURN_S = 0.1
ROUND_S = 0.2  # how long the busy partitions of a process together may keep another one waiting


class Pace(NamedTuple):
    """How a partition without news waits.

    Attributes:
        idle_ms: In the turn, at most; the other partitions of the thread wait too, unless something comes for them.
        rest_s: Between turns, where the runner does not give one at once (the local one does whatever we ask for).
    """

    idle_ms: int = IDLE_MS
    rest_s: float = 0.0


ALONE = Pace()
BESIDE_OTHERS = Pace(idle_ms=10, rest_s=0.1)


def no_lane(topic_id: str, partition: int) -> AbstractContextManager[object]:
    """Stand for a turn where one thread has them all."""
    return nullcontext()


class Stop:
    """Asks all readers of this process to end their pipelines, and counts their turns, so that one knows when."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.turns = 0

    def ask(self) -> None:
        """Let every `ReadUsage` of this process finish: `Pipeline.run()` returns within one turn of each partition."""
        self._asked.set()

    def clear(self) -> None:
        """Allow a new pipeline; readers go on with the consumers that they have."""
        self._asked.clear()
        self.turns = 0

    def asked(self) -> bool:
        return self._asked.is_set()


STOP = Stop()


@dataclass(frozen=True, slots=True)
class LogRestriction:
    """A restriction: the log from `begin` on, the place where a restart must begin; `done` when somebody stopped it.

    -1 before the first claim. It is what a runner checkpoints; the book is asked all the same.
    """

    begin: int = -1
    done: bool = False


class LogTracker(RestrictionTracker):
    """Claims restart places in growing order; a claim of None ends the stretch."""

    def __init__(self, stretch: LogRestriction) -> None:
        self._stretch = stretch

    def current_restriction(self) -> LogRestriction:
        return self._stretch

    def try_claim(self, position: int | None) -> bool:
        if self._stretch.done:
            return False
        if position is None:
            self._stretch = replace(self._stretch, done=True)
        else:
            self._stretch = LogRestriction(max(self._stretch.begin, position))
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[LogRestriction, LogRestriction] | None:
        """Hand the rest back to the runner; a partition has no second half that another could read."""
        if fraction_of_remainder != 0 or self._stretch.done:
            return None
        rest, self._stretch = self._stretch, replace(self._stretch, done=True)
        return self._stretch, rest

    def check_done(self) -> bool:
        if not self._stretch.done:
            raise ValueError(f"the log from {self._stretch.begin} on was neither stopped nor handed back")
        return True

    def is_bounded(self) -> bool:
        return False


class Stretches(RestrictionProvider):
    """Makes the restriction of a partition."""

    def initial_restriction(self, element: Element) -> LogRestriction:
        return LogRestriction()

    def create_tracker(self, restriction: LogRestriction) -> LogTracker:
        return LogTracker(restriction)

    def restriction_size(self, element: Element, restriction: LogRestriction) -> int:
        return 1

    def restriction_coder(self) -> PickleCoder:
        return PickleCoder()

    def truncate(self, element: Element, restriction: LogRestriction) -> None:
        return None


class ReadPartition(beam.DoFn):
    """Gives a partition its turns."""

    def __init__(
        self,
        brokers: tuple[str, ...],
        topic: str,
        positions: str | Position,
        restart: str | Position,
        turn: Turn,
        pace: Pace,
    ) -> None:
        self._brokers, self._topic = brokers, topic
        self._positions, self._restart = positions, restart
        self._turn, self._pace = turn, pace

    @beam.DoFn.unbounded_per_element()
    def process(
        self, element: Element, tracker: Any = beam.DoFn.RestrictionParam(Stretches())  # noqa: B008  Beam's way
    ) -> Iterator[Fetch]:
        with self._turn(*element):
            yield from self._fetches(*element, tracker)

    def _fetches(self, topic_id: str, partition: int, tracker: Any) -> Iterator[Fetch]:
        reader = reader_of(self._brokers, self._topic, topic_id)
        next_position, restart_place = named(self._positions), named(self._restart)
        STOP.turns += 1
        began = time.monotonic()
        while not STOP.asked():
            position = next_position(topic_id, partition)
            fetch = _read_or_wait(reader, partition, position, self._pace.idle_ms)
            if not tracker.try_claim(restart_place(topic_id, partition)):
                return
            yield fetch
            turn_s = min(LONGEST_TURN_S, ROUND_S / max(1, reader.waiting()))
            nothing = fetch.next == fetch.first
            if nothing or time.monotonic() - began >= turn_s or reader.gives_way(partition):
                tracker.defer_remainder(Duration(seconds=self._pace.rest_s if nothing else 0))
                return
        tracker.try_claim(None)


def _read_or_wait(reader: UsageReader, partition: int, position: int, idle_ms: int) -> Fetch:
    """Return the next fetch, an empty one while the broker is away: what is folded in already must still be written."""
    try:
        return reader.next_fetch(partition, position, idle_ms)
    except BrokerError as error:
        reader.rest(error)
        return empty_fetch(reader.topic_id, partition, position)


@lru_cache(maxsize=64)
def named(name: str | Position) -> Position:
    """Return the function that a dotted name ("package.module:function") stands for here, or the one given."""
    if callable(name):
        return name
    module, _, function = name.partition(":")
    found: Position = getattr(importlib.import_module(module), function)
    return found


class ReadUsage(beam.PTransform):
    """Read partitions of a topic for ever, until `STOP.ask()`: one element in for each partition, one `Fetch` out.

    Args:
        topic_id: The topic as it was checked at start; another one under the same name is refused.
        positions: (topic id, partition) -> the offset that is read next, asked before each fetch: a picklable function
            or its dotted name.
        restart: (topic id, partition) -> the offset where a restart must begin, asked for each claim.
        turn: (topic id, partition) -> what a turn happens in, with all that the runner fuses behind it.
        pace: How a partition without news waits.
    """

    def __init__(
        self,
        brokers: Sequence[str],
        topic: str,
        topic_id: str,
        partitions: Sequence[int],
        *,
        positions: str | Position,
        restart: str | Position,
        turn: Turn = no_lane,
        pace: Pace = ALONE,
    ) -> None:
        super().__init__()
        self._topic_id, self._partitions = topic_id, tuple(partitions)
        self._read = ReadPartition(tuple(brokers), topic, positions, restart, turn, pace)

    def expand(self, begin: Any) -> Any:
        elements: list[Element] = [(self._topic_id, partition) for partition in self._partitions]
        return begin | "Partitions" >> beam.Create(elements) | "Read" >> beam.ParDo(self._read).with_output_types(Fetch)


def read_range(
    brokers: Sequence[str], topic: str, topic_id: str, partition: int, start: int, end: int
) -> Iterator[Fetch]:
    """Yield the records with offsets in [start, end), for bounded jobs: rebuild, audit, repair.

    Raises:
        LogError: The log does not reach from `start` to `end`.
        BrokerError: Kafka does not answer, or gives nothing of it for a minute.
    """
    poller = Poller(make_consumer(brokers), topic, topic_id)
    try:
        behind = end_offsets(poller.consumer, topic, [partition])[partition]
        if end > behind:
            where = f'topic "{topic}", partition {partition}'
            raise LogError(f"{where}: expected records up to offset {end}, but the log ends at {behind}")
        poller.assign([partition])
        poller.seek(partition, start)
        position = start
        while position < end:
            for fetch in poller.wait(partition, position):
                if position < end:
                    part = fetch.below(end)
                    position = part.next
                    yield part
    finally:
        poller.close()
