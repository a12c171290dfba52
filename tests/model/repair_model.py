"""Executable specification of a repair: booking goes on behind a damaged place, by an operator's decision.

Retention eats what was not booked yet. A repair first has the store refuse whoever does not know of it, waits for what
is under way, looks at what the rows hold, then decides once where booking goes on. Everything behind lies in a booking
of its own, so that no row of before is replaced.

    python -m tests.model.repair_model 20000                  # all rules on
    python -m tests.model.repair_model 2000 fence_first       # without the rules named
    python -m tests.model.repair_model 500 each               # without one rule of repair at a time
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from tests.model.chunk_check import Booking, CheckedWorld, interleave, read
from tests.model.chunk_model import (
    CHUNK,
    CLOSES,
    DAY,
    InsertError,
    OpenChunk,
    Place,
    Rules,
    Store,
    booking_after,
    close,
    seal,
)
from tests.model.judging import Known, Record, accept, judge
from tests.model.survey import command

Rows = list[tuple[tuple, int, tuple]]


class Repair(NamedTuple):
    """A decision: what is booked below `first` stays, [first, place.offset) is skipped, booking goes on at `place`."""

    first: int
    place: Place


@dataclass(frozen=True)
class RepairRules(Rules):
    """The protocol, and what a repair adds to it."""

    fence_first: bool = True  # the store refuses rows of whoever does not know of the repair, before it is decided
    wait_for_inserts: bool = True  # what was under way when the fence went up is there before it is decided
    first_is_what_rows_hold: bool = True  # rows may be ahead of progress; what they hold is booked
    ids_before_rows: bool = True  # and its ids are there: a flush that wrote both side by side would not know
    undone_ids_forgotten: bool = True  # ids from there on by who did not know of the repair never counted
    booking_of_its_own: bool = True  # what comes behind is booked under a number that no record of the log opens
    decided_once: bool = True  # the first decision stays, whoever else decides


class Fenced(Exception):
    """The store refuses rows of a process that does not know of a repair: it reads the frontier again."""


class FencedStore(Store):
    """ClickHouse with a constraint for each repair, and with inserts that happen after nobody waits any more."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.fences: dict[int, int] = {}  # partition -> how many repairs a writer must know of
        self.under_way: list[tuple[str, Rows]] = []

    def insert_as(self, known: Mapping[int, int], table: str, rows: Rows, failing: float) -> None:
        """Insert rows of a process that knows of so many repairs of each partition."""
        if any(known[key[0]] < self.fences.get(key[0], 0) for key, _, _ in rows):
            raise Fenced(table)
        if self.rng.random() < failing * 4:
            self.under_way.append((table, rows))
            raise InsertError("timeout")
        self.insert(table, rows, failing)

    def arrive(self) -> None:
        """Let one insert happen that was under way."""
        if self.under_way:
            self.insert(*self.under_way.pop(self.rng.randrange(len(self.under_way))), failing=0)


class View:
    """The world as one process sees it: its rows say of which repairs it knew when it opened a partition."""

    def __init__(self, world: RepairedWorld) -> None:
        self.world, self.known = world, dict[int, int]()
        self._late: Rows = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    @property
    def store(self) -> View:
        return self

    def insert(self, table: str, rows: Rows, failing: float) -> None:
        if table == "ids":
            rows = [(key, version, (*value, self.known[key[0]])) for key, version, value in rows]
        if table == "ids" and not self.world.rules.ids_before_rows:
            self._late = rows  # they come behind the rows, and before progress all the same
            return
        if table == "progress" and self._late:
            self.world.store.insert_as(self.known, "ids", self._late, failing)
            self._late = []
        self.world.store.insert_as(self.known, table, rows, failing)


class DecidedWorld(CheckedWorld):
    """A world that knows what should be visible in it when booking went on behind damaged places.

    Attributes:
        repairs: The decisions for each partition, in order.
    """

    repairs: Sequence[Sequence[Repair]]

    def undone(self, partition: int, offset: int, known: int) -> bool:
        """Whether what somebody wrote who knew of so many repairs was undone by a later one."""
        return any(each.first <= offset for each in self.repairs[partition][known:])

    def skipped(self, partition: int, offset: int) -> bool:
        return any(each.first <= offset < each.place.offset for each in self.repairs[partition])

    def book_all(self) -> list[list[Booking]]:
        """Book every partition as the log and the decisions have it: the oracle."""
        booked: list[list[Booking]] = []
        self.verdicts = [{} for _ in self.logs]
        for partition, log in enumerate(self.logs):
            place, seen, mine = Place(0, 0, 0, 0), dict[str, Known](), list[Booking]()
            for record in log.records:
                if self.skipped(partition, record.offset):
                    continue
                place = after(self.decided(partition, place, record.offset), record)
                event = record.event
                at_home = event is not None and self.home(event) == partition
                verdict = judge(record, place.clock, place.meters, at_home, seen)
                if event is not None:
                    self.verdicts[partition][record.offset] = verdict
                if event is not None and verdict == "accepted":
                    accept(event, max(place.clock, event.minute), place.meters, seen)
                    subject, value = self.meter(event, place.meters)
                    row = (record.offset // CHUNK, place.booking, place.meters, subject, event.minute)
                    mine.append(Booking(record.offset, place.clock, event.identity, row, value))
            booked.append(mine)
        return booked

    def bookings(self) -> list[list[Booking]]:
        key = sum(len(log.records) for log in self.logs) + sum(map(len, self.repairs)) * 10**6
        if self.right[0] != key:
            self.right = key, self.book_all()
        return self.right[1]

    def decided(self, partition: int, place: Place, offset: int) -> Place:
        """Return the place before the record at `offset`: a decision counts for what stands behind it."""
        for each in self.repairs[partition]:
            if each.place.offset <= offset and place.booking < each.place.booking:
                place = each.place
        return place


class RepairedWorld(DecidedWorld):
    """A world in which retention reaches what is not booked."""

    rules: RepairRules
    store: FencedStore
    repairs: list[list[Repair]]
    patience = 60_000  # each restart sends strays home again

    def __init__(self, seed: int, rules: RepairRules) -> None:
        super().__init__(seed, rules)
        self.store = FencedStore(random.Random(seed))
        self.repairs = [[] for _ in self.logs]

    def makers(self) -> Sequence[Callable[[], Iterator[None]]]:
        return [
            *[lambda: work(self)] * 3,
            *[lambda: seal(self)] * 2,
            *[lambda: repair(self)] * 2,
            lambda: wear(self),
            lambda: close(self),
            lambda: read(self),
        ]

    def anew(self) -> RepairedWorld:
        again = RepairedWorld(0, self.rules)
        again.repairs = self.repairs
        return again

    def frontier(self, partition: int) -> tuple[int, Place, Place, Place]:
        repairs = self.repairs[partition]
        if not repairs or self.replaying:
            return super().frontier(partition)
        place = repairs[-1].place
        mine = {key[1]: value for key, value in self.store.final("progress").items() if key[0] == partition}
        chunk, start = place.offset // CHUNK, place
        fresh = {number: value for number, value in mine.items() if value[1].booking >= place.booking}
        if not self.rules.booking_of_its_own:
            fresh = {number: value for number, value in mine.items() if value[1].offset > place.offset}
        while fresh.get(chunk, (0,))[0] >= CHUNK:
            chunk, start = chunk + 1, fresh[chunk][1]
        _, here, turned = fresh.get(chunk, (0, start, start))
        return chunk, start, turned, here

    def booked(self) -> bool:
        """All is booked or skipped, and nothing is under way."""
        return not self.store.under_way and super().booked()


def after(place: Place, record: Record) -> Place:
    clock = max(place.clock, record.appended_at)
    booking = booking_after(place.booking, clock, record)
    return Place(record.offset + 1, clock, booking, max(place.meters, record.meters))


class RepairedChunk(OpenChunk):
    """An open chunk of a process that knows of some repairs; a replay meets them where they were decided."""

    world: RepairedWorld

    def book(self, held: list[OpenChunk]) -> Any:
        went_on = yield from super().book(held)
        for place, chunk in enumerate(held):
            if not isinstance(chunk, RepairedChunk):  # the next chunk
                here, turned = chunk.here, chunk.turned
                held[place] = RepairedChunk(self.world, self.partition, chunk.number, here, turned, chunk.seen)
        return went_on

    def place_after(self, record: Record, offset: int) -> Place:
        if not self.world.replaying:
            return super().place_after(record, offset)
        if self.passes(record):
            return self.here._replace(offset=offset)
        return after(self.world.decided(self.partition, self.here, record.offset), record)

    def fold(self, record: Record) -> None:
        if not self.passes(record):
            super().fold(record)

    def passes(self, record: Record) -> bool:
        """Whether a replay passes a record, which the raw archive may still have."""
        return self.world.replaying and self.world.skipped(self.partition, record.offset)


def work(world: RepairedWorld) -> Iterator[None]:
    """Run a worker; what it cannot read it leaves alone, until a repair says where to go on."""
    rng = world.rng
    while True:
        held: list[OpenChunk] = []
        view = View(world)
        for partition in rng.sample(range(len(world.logs)), rng.randint(1, len(world.logs))):
            held.append((yield from open_chunk(view, partition)))
        with suppress(Fenced):
            for _ in range(rng.randint(1, 24)):
                if not (yield from rng.choice(held).book(held)):
                    break
                yield
        yield


def open_chunk(view: View, partition: int) -> Any:
    """Return the open chunk of a partition: repairs first, then the frontier, then the ids below it."""
    world = view.world
    view.known[partition] = len(world.repairs[partition])
    number, _, turned, _ = world.frontier(partition)
    yield
    seen: dict[str, Known] = {}
    for (owner, offset), (identity, known, repairs) in sorted(world.store.final("ids").items()):
        undone = world.undone(partition, offset, repairs) and world.rules.undone_ids_forgotten
        if owner == partition and offset < turned.offset and not undone:
            seen[identity] = known
    yield
    return RepairedChunk(view, partition, number, turned, turned, seen)  # type: ignore[arg-type]


def repair(world: RepairedWorld) -> Iterator[None]:
    """Run the operator's command. It may be killed anywhere and run again, and two may run at once."""
    rules, store, rng = world.rules, world.store, world.rng
    while True:
        yield
        partition = rng.randrange(len(world.logs))
        log, known = world.logs[partition], len(world.repairs[partition])
        fenced = store.fences.get(partition, 0) > known  # by a repair that was killed, perhaps
        if world.replaying or (world.frontier(partition)[2].offset >= log.start and not fenced):
            continue  # nothing is wrong there
        goes_on_at = log.start + rng.choice((0, 0, 1, 3))  # the operator may pass more
        if rules.fence_first:
            store.fences[partition] = max(store.fences.get(partition, 0), known + 1)
            yield
        while store.under_way and rules.wait_for_inserts:
            store.arrive()
            yield
        _, _, _, reached = world.frontier(partition)
        first = reached.offset
        if rules.first_is_what_rows_hold:
            first = max(first, rows_hold(world, partition, reached))
        goes_on_at = max(goes_on_at, first)
        world.opened = max(world.opened, world.now // DAY * CLOSES, reached.booking) + 1
        booking = world.opened if rules.booking_of_its_own else reached.booking
        place = Place(goes_on_at, reached.clock, booking, max(reached.meters, world.meters))
        yield
        if len(world.repairs[partition]) == known:
            world.repairs[partition].append(Repair(first, place))
        elif not rules.decided_once:
            world.repairs[partition][known] = Repair(first, place)
        if not rules.fence_first:
            store.fences[partition] = max(store.fences.get(partition, 0), known + 1)


def rows_hold(world: RepairedWorld, partition: int, reached: Place) -> int:
    """Return up to which offset rows of the open chunk hold usage, which may be further than progress says."""
    number = reached.offset // CHUNK
    covered = [
        version
        for key, (version, _, _) in world.store.tables["usage_hot"].items()
        if key[:2] == (partition, number) and key[2] >= 0
    ]
    return number * CHUNK + max(covered, default=0)


def wear(world: RepairedWorld) -> Iterator[None]:
    """Let retention eat what is not booked now and then, and let inserts happen that nobody waits for any more."""
    while True:
        yield
        if world.calm or world.rng.random() < 0.15:
            world.store.arrive()
        partition = world.rng.randrange(len(world.logs))
        log = world.logs[partition]
        if not world.calm and len(world.repairs[partition]) < 3 and world.rng.random() < 0.1:
            reached = world.frontier(partition)[2].offset
            log.start = max(log.start, min(log.end, reached + world.rng.randint(1, 6)))


def run_schedule(seed: int, rules: RepairRules) -> None:
    """Run one interleaving of the model."""
    interleave(RepairedWorld(seed, rules), 500, happening=0.3)


ADDED = tuple(rule.name for rule in fields(RepairRules) if rule.name not in {rule.name for rule in fields(Rules)})

if __name__ == "__main__":
    command(run_schedule, RepairRules(), ADDED)
