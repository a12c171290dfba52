"""Executable specification of which definitions are in force: closes that are cut off, overtaken, or go behind an end.

A control store numbers definitions and closes; a close is in force partition by partition, where it stands in the log.
Commands and starts of a pipeline are processes that may be killed before each step, and run beside each other. What
is counted by which definitions follows from the log alone; what a command says must be true of it.

    python -m tests.model.close_model 20000                        # all rules on
    python -m tests.model.close_model 2000 a_start_mends           # without the rules named
    python -m tests.model.close_model 500 each                     # without one rule at a time
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from tests.model.chunk_model import Broken
from tests.model.survey import command

END = -1  # what an end marker puts in force
STEPS = 160


@dataclass(frozen=True)
class CloseRules:
    """What `pipeline.close` and `tallyman.books` keep to, each of which can be switched off."""

    in_force_is_written: bool = True  # a close counts as in force when it stands in every partition, not when numbered
    closes_name_their_topic: bool = True  # one that was written into another topic says nothing of this one
    looks_once_more: bool = True  # behind its close, `apply` writes another if a topic follows meanwhile
    a_start_mends: bool = True  # a start of the pipeline writes a close where a topic lacks definitions


@dataclass(slots=True)
class Close:
    """A close as the control store has it."""

    definitions: int
    topic: int
    written: bool = False


class Record(NamedTuple):
    """A control record in a partition's log."""

    booking: int
    definitions: int


@dataclass(slots=True)
class Topic:
    """A topic: the logs of its partitions, and whether books were opened in it."""

    logs: list[list[Record]]
    founded: bool = False


@dataclass(slots=True)
class CloseWorld:
    """Kafka, the control store, and the project's files."""

    rules: CloseRules
    rng: random.Random
    files: int = 1  # which version of the definitions stands in the project's files
    numbered: list[int] = field(default_factory=list)  # definitions by number, from 1
    closes: dict[int, Close] = field(default_factory=dict)  # by booking
    topics: list[Topic] = field(default_factory=list)  # a line: each follows the one before

    def newest(self) -> int:
        """Return the number of the topic that no other follows, which is made when there is none."""
        if not self.topics:
            self.topics.append(Topic([[], []]))
        return len(self.topics) - 1

    def number(self) -> int:
        """Number the definitions of the files, unless they are the newest; return the newest number."""
        if not self.numbered or self.numbered[-1] != self.files:
            self.numbered.append(self.files)
        return len(self.numbered)

    def next_close(self, topic: int) -> int:
        booking = max(self.closes, default=0) + 1
        self.closes[booking] = Close(len(self.numbered), topic)
        return booking

    def closed(self, topic: int) -> int:
        """Return the newest definitions that the control store takes for in force in a topic."""
        mine = [close.definitions for close in self.closes.values()
                if (close.written or not self.rules.in_force_is_written)
                and (close.topic == topic or not self.rules.closes_name_their_topic)]  # fmt: skip
        return max(mine, default=0)

    def in_force(self, topic: int) -> list[int]:
        """Return what each partition of a topic is counted by behind all that stands in it, as booking finds it."""
        begins = max(self.in_force(topic - 1)) if topic else 0
        found = []
        for log in self.topics[topic].logs:
            definitions = begins
            for record in log:
                if record.definitions == END:
                    break
                definitions = max(definitions, record.definitions)
            found.append(definitions)
        return found

    def booked(self) -> int:
        """Return the topic that is booked once all that stands in the logs is: the first that has not ended."""
        return next(number for number, topic in enumerate(self.topics) if not all(map(has_ended, topic.logs)))


def has_ended(log: list[Record]) -> bool:
    return any(record.definitions == END for record in log)


def write_close(world: CloseWorld, topic: int, booking: int) -> Iterator[None]:
    """Write a close into each partition of a topic; whoever comes first, a killed one is written again."""
    close = world.closes[booking]
    for log in world.topics[topic].logs:
        yield
        log.append(Record(booking, close.definitions))
    yield
    close.written = True


def write_next(world: CloseWorld, topic: int) -> Iterator[None]:
    booking = world.next_close(topic)
    yield from write_close(world, topic, booking)


def founded(world: CloseWorld, found: list[int]) -> Iterator[None]:
    """Find the newest topic, and open the books in it: its first close, and the end of the one before."""
    topic = world.newest()
    yield
    if not world.topics[topic].founded:
        if not topic:
            world.number()
            yield
        yield from write_next(world, topic)
        if topic:
            for log in world.topics[topic - 1].logs:
                yield
                log.append(Record(0, END))
        yield
        world.topics[topic].founded = True
    found.append(topic)


def start(world: CloseWorld) -> Iterator[None]:
    """Start a pipeline: what somebody else left undone is done before anything is booked."""
    found: list[int] = []
    yield from founded(world, found)
    topic = found[0]
    for booking, close in sorted(world.closes.items()):
        if not close.written and (close.topic == topic or not world.rules.closes_name_their_topic):
            yield from write_close(world, topic, booking)
    yield
    lacks = world.closed(topic) < max((close.definitions for close in world.closes.values()), default=0)
    if lacks and world.rules.a_start_mends:
        yield from write_next(world, topic)


def close_newest(world: CloseWorld, topic: int) -> Iterator[None]:
    while True:
        yield from write_next(world, topic)
        yield
        if world.newest() == topic or not world.rules.looks_once_more:
            return
        found: list[int] = []
        yield from founded(world, found)
        topic = found[0]


def apply(world: CloseWorld) -> Iterator[None]:
    """Put the definitions of the files in force, or say that they are."""
    found: list[int] = []
    yield from founded(world, found)
    topic = found[0]
    after = world.number()
    yield
    books = max((number for number, each in enumerate(world.topics) if each.founded), default=topic)
    if world.closed(books) != after:
        yield from close_newest(world, topic)
    # What it says is true of all that is appended from now on, in the topic that is booked and in all that follow.
    check_applied(world, after, topic)


def check_applied(world: CloseWorld, after: int, topic: int) -> None:
    """C1: nothing that comes from now on is counted by older definitions than a command said are in force.

    Where an end stands nothing is counted any more: it is sent on to the topic that follows.
    """
    for number in range(min(world.booked(), topic), len(world.topics)):
        found = zip(world.topics[number].logs, world.in_force(number), strict=True)
        going_on = [definitions for log, definitions in found if not has_ended(log)]
        if going_on and min(going_on) < after:
            raise Broken(f"C1 definitions {after} were said to be in force; in topic {number} some go by {going_on}")


def close(world: CloseWorld) -> Iterator[None]:
    found: list[int] = []
    yield from founded(world, found)
    yield from close_newest(world, found[0])


def grow(world: CloseWorld) -> Iterator[None]:
    """Make a topic that follows the newest one, if that one has books, and open them there."""
    newest = world.newest()
    yield
    if newest == world.newest() and world.topics[newest].founded and len(world.topics) < 4:
        world.topics.append(Topic([[] for _ in range(len(world.topics[newest].logs) + 1)]))
    yield
    yield from start(world)


def edit(world: CloseWorld) -> Iterator[None]:
    """Somebody changes the files, or takes a change back."""
    yield
    world.files = world.rng.randint(1, 4)


def check_calm(world: CloseWorld) -> None:
    """C2: once a pipeline has started undisturbed, all partitions go by the newest definitions that any close named."""
    topic = world.booked()
    wanted = max(each.definitions for each in world.closes.values())
    if topic != world.newest() or set(world.in_force(topic)) != {wanted}:
        raise Broken(f"C2 definitions {wanted} were closed; in topic {topic} partitions go by {world.in_force(topic)}")


def run_schedule(seed: int, rules: CloseRules) -> None:
    """Run one interleaving of commands, each of which may be killed at each step, then an undisturbed start."""
    rng = random.Random(seed)
    world = CloseWorld(rules, rng)
    makers: list[Callable[[CloseWorld], Iterator[None]]] = [start, apply, apply, close, grow, edit]
    at_work: list[Iterator[None]] = []
    process: Iterator[None] | None = None
    for _ in range(STEPS):
        if len(at_work) < 3 and rng.random() < 0.3:
            at_work.append(rng.choice(makers)(world))
        if process not in at_work or rng.random() < 0.15:  # mostly one runs on while the others are paused
            process = rng.choice(at_work) if at_work else None
        if process is not None and (rng.random() < 0.04 or next(process, "done") == "done"):
            at_work.remove(process)
    for _ in start(world):
        pass
    check_calm(world)


ADDED = tuple(rule.name for rule in fields(CloseRules))

if __name__ == "__main__":
    command(run_schedule, CloseRules(), ADDED)
