"""Executable specification of how a topic grows: an end marker, a new topic with more partitions, what carries over.

The first partitions of the world's log are the old topic's, the others the new one's. An end marker is a close that
opens the last of all bookings: nothing behind it counts in the old topic, whoever still writes there is sent on.
`tallyman topic grow` does it (`pipeline.growth`, docs/operations/topic-growth.md).

    python -m tests.model.growth_model 20000                  # all rules on
    python -m tests.model.growth_model 2000 ids_carry_over    # without the rules named
    python -m tests.model.growth_model 500 each               # without one rule of growth at a time
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tests.model.chunk_check import Booking, CheckedWorld, interleave, read
from tests.model.chunk_model import (
    CHUNK,
    CLOSES,
    Broken,
    OpenChunk,
    PartitionLog,
    Place,
    Rules,
    add,
    booking_after,
    close,
    seal,
)
from tests.model.judging import Event, Known, Record, accept, judge
from tests.model.survey import command

ENDED = 10**9  # the booking that an end marker opens


class Stray(Event):
    """An event on its way to the home that its topic gives it."""

    home: int


@dataclass(frozen=True)
class GrowthRules(Rules):
    """The protocol of a topic, and what growth adds to it."""

    old_first: bool = True  # the new topic is booked when every partition of the old one is booked to its end
    nothing_after_the_end: bool = True  # what stands behind an end marker counts in the new topic only
    ids_carry_over: bool = True  # an identity that the old topic accepted is known in every partition of the new one
    places_carry_over: bool = True  # clock, booking and meters of the new partitions begin where the old ones ended
    late_ones_are_sent_on: bool = True  # records behind an end marker are copied to the new topic, as they are


class GrowthWorld(CheckedWorld):
    """A world whose topic grows once."""

    rules: GrowthRules
    patience = 60_000  # each restart sends strays home again, and what was late once more

    def __init__(self, seed: int, rules: GrowthRules) -> None:
        super().__init__(seed, rules)
        self.old = len(self.logs)  # how many partitions the old topic has
        self.new = self.old + 1
        self.marked = False  # end markers stand in every old partition
        self.sent_on: dict[int, int] = {}  # old partition -> up to where its late records were sent on

    @property
    def grown(self) -> bool:
        """Whether the new topic was made."""
        return len(self.logs) > self.old

    def anew(self) -> GrowthWorld:
        again = GrowthWorld(0, self.rules)
        again.old, again.new, again.marked = self.old, self.new, self.marked
        return again

    def makers(self) -> Sequence[Callable[[], Iterator[None]]]:
        return [
            *[lambda: work(self)] * 3,
            *[lambda: seal(self)] * 2,
            *[lambda: send_on(self)] * 2,
            lambda: grow(self),
            lambda: close(self),
            lambda: read(self),
        ]

    def home(self, event: Event) -> int:
        """Return where an event is sent: after the growth not every producer knows of it yet."""
        if isinstance(event, Stray):
            return event.home
        return self.home_in(event, old=not self.grown or self.rng.random() < 0.3)

    def home_in(self, event: Event, *, old: bool) -> int:
        number = zlib.crc32(event.first.encode())
        return number % self.old if old else self.old + number % self.new

    def is_old(self, partition: int) -> bool:
        return partition < self.old

    def frontier(self, partition: int) -> tuple[int, Place, Place, Place]:
        if self.is_old(partition) or not self.rules.places_carry_over:
            return super().frontier(partition)
        mine = {key[1]: value for key, value in self.store.final("progress").items() if key[0] == partition}
        chunk, start = 0, self.carried()
        while mine.get(chunk, (0,))[0] >= CHUNK:
            chunk, start = chunk + 1, mine[chunk][1]
        _, here, turned = mine.get(chunk, (0, start, start))
        return chunk, start, turned, here

    def has_ended(self) -> bool:
        """Tell whether every partition of the old topic is booked to its end."""
        return all(self.frontier(partition)[3].booking == ENDED for partition in range(self.old))

    def carried(self) -> Place:
        """Return the place where every partition of the new topic begins: the latest of the old ones' last places."""
        ends = [self.last_place(partition) for partition in range(self.old)]
        return Place(0, *(max(getattr(end, name) for end in ends) for name in ("clock", "booking", "meters")))

    def last_place(self, partition: int) -> Place:
        """Return the place before an old partition's end marker; the place reached, as long as none was read."""
        mine = sorted(key for key in self.store.tables["progress"] if key[0] == partition)
        for _, here, turned in (self.store.final("progress")[key] for key in mine):
            if here.booking == ENDED:
                return turned
        return super().frontier(partition)[3]

    def booked(self) -> bool:
        """All is booked, and nobody waits behind an end any more."""
        if not self.grown:
            return super().booked()
        if not (self.marked and self.has_ended()):
            return False
        reached = list(zip(self.reached(), self.logs, strict=True))[self.old :]
        waiting = any(self.late_records(partition) for partition in range(self.old)) and not self.replaying
        return all(offset >= log.end for offset, log in reached) and not waiting

    def late_records(self, partition: int) -> list[Record]:
        """Return what stands behind an old partition's end and was not sent on."""
        ends = [record.offset for record in self.logs[partition].records if record.opens == ENDED]
        begin = self.sent_on.get(partition, min(ends, default=10**9))
        return [record for record in self.logs[partition].records if record.offset >= begin and record.event]

    def book_all(self) -> list[list[Booking]]:
        """Book the old topic to its ends, then the new one: the oracle."""
        booked: list[list[Booking]] = []
        self.verdicts = [{} for _ in self.logs]
        carried, carried_seen = Place(0, 0, 0, 0), dict[str, Known]()
        for partition, log in enumerate(self.logs):
            place, seen = (Place(0, 0, 0, 0), {}) if self.is_old(partition) else (carried, dict(carried_seen))
            mine: list[Booking] = []
            for record in log.records:
                there = place_after(place, record)
                if there.booking == ENDED:
                    break
                place = there
                self._book(partition, record, place, seen, mine)
            booked.append(mine)
            if self.is_old(partition):
                carried = Place(0, *(max(pair) for pair in zip(carried[1:], place[1:], strict=True)))
                carried_seen |= seen
        return booked

    def _book(
        self, partition: int, record: Record, place: Place, seen: dict[str, Known], mine: list[Booking]
    ) -> None:
        event = record.event
        at_home = event is not None and self.home_in(event, old=self.is_old(partition)) == partition
        verdict = judge(record, place.clock, place.meters, at_home, seen)
        if event is not None:
            self.verdicts[partition][record.offset] = verdict
        if event is not None and verdict == "accepted":
            accept(event, max(place.clock, event.minute), place.meters, seen)
            subject, value = self.meter(event, place.meters)
            row = (record.offset // CHUNK, place.booking, place.meters, subject, event.minute)
            mine.append(Booking(record.offset, place.clock, event.identity, row, value))

    def check_prefix(self, rows: dict[tuple, tuple], sealed_to: int, reported: list[int]) -> None:
        """I2; who asked for progress before the growth knows nothing of the new topic."""
        super().check_prefix(rows, sealed_to, reported + [0] * (len(self.logs) - len(reported)))

    def check_end(self) -> None:
        """I6, and what holds for every topic."""
        if not self.grown:
            return super().check_end()
        there = {record.event.identity for log in self.logs[self.old :] for record in log.records if record.event}
        for log in self.logs[: self.old]:
            ends = [record.offset for record in log.records if record.opens == ENDED]
            late = {record.event.identity for record in log.records if record.event and record.offset > min(ends)}
            if late - there:
                raise Broken("I6 what stands behind the end was left behind")
        return super().check_end()


def place_after(place: Place, record: Record) -> Place:
    clock = max(place.clock, record.appended_at)
    return Place(
        record.offset + 1, clock, booking_after(place.booking, clock, record), max(place.meters, record.meters)
    )


class GrowingChunk(OpenChunk):
    """An open chunk of either topic."""

    world: GrowthWorld

    def book(self, held: list[OpenChunk]) -> Any:
        went_on = yield from super().book(held)
        for place, chunk in enumerate(held):
            if not isinstance(chunk, GrowingChunk):  # the next chunk
                here, turned = chunk.here, chunk.turned
                held[place] = GrowingChunk(self.world, self.partition, chunk.number, here, turned, chunk.seen)
        return went_on

    def place_after(self, record: Record, offset: int) -> Place:
        if self.here.booking == ENDED:  # nothing turns behind the end, so that the place of the end stays known
            return self.here._replace(offset=offset)
        return super().place_after(record, offset)

    def fold(self, record: Record) -> None:
        world, event = self.world, record.event
        if self.here.booking == ENDED and world.rules.nothing_after_the_end:
            return
        at_home = event is not None and world.home_in(event, old=world.is_old(self.partition)) == self.partition
        verdict = judge(record, self.here.clock, self.here.meters, at_home, self.seen)
        if event is not None and verdict == "stray":
            self.strays.append(Stray(*event))
            self.strays[-1].home = world.home_in(event, old=world.is_old(self.partition))
        if event is not None and verdict == "accepted":
            known = accept(event, max(self.here.clock, event.minute), self.here.meters, self.seen)
            self.ids.append(((self.partition, record.offset), 0, (event.identity, known)))
            subject, value = world.meter(event, self.here.meters)
            key = (self.here.booking, self.here.meters, subject, event.minute)
            add(self.totals, key, value)
            self.dirty.add(key)


def work(world: GrowthWorld) -> Iterator[None]:
    """Run a worker of the topic that is to be booked: the old one to its end, then the new one."""
    rng = world.rng
    while True:
        held: list[OpenChunk] = []
        old = range(world.old)
        new = range(world.old, len(world.logs))
        may_begin = world.grown and (world.has_ended() or not world.rules.old_first)
        yield
        partitions = new if may_begin and (world.rules.old_first or rng.random() < 0.5) else old
        for partition in rng.sample(partitions, rng.randint(1, len(partitions))):
            held.append((yield from open_chunk(world, partition)))
        # Each restart sends strays home again: with few of them the log comes to rest.
        for _ in range(rng.randint(1, 400 if world.calm else 24)):
            if not (yield from rng.choice(held).book(held)):
                break
            yield
        yield


def open_chunk(world: GrowthWorld, partition: int) -> Any:
    """Return the open chunk of a partition: the frontier, the ids below it, and those that the old topic accepted."""
    number, _, turned, _ = world.frontier(partition)
    yield
    seen: dict[str, Known] = {}
    for (owner, offset), (identity, known) in sorted(world.store.final("ids").items()):
        carried = not world.is_old(partition) and world.is_old(owner) and world.rules.ids_carry_over
        if carried or (owner == partition and offset < turned.offset):
            seen[identity] = known
    yield
    return GrowingChunk(world, partition, number, turned, turned, seen)


def grow(world: GrowthWorld) -> Iterator[None]:
    """Run the operator's command; after a crash it is run again, and everything it writes may be there twice."""
    while True:
        yield
        if world.marked or (not world.grown and world.rng.random() < 0.8):
            continue
        if not world.grown:
            world.logs += [PartitionLog() for _ in range(world.new)]
            yield
        world.opened = max(world.opened, world.now // 10 * CLOSES) + 1
        for log in world.logs[world.old :]:  # the first close of the new topic
            log.append(None, world.now + world.broker_skew, opens=world.opened, meters=world.meters)
            yield
        for log in world.logs[: world.old]:
            log.append(None, world.now + world.broker_skew, opens=ENDED)
            yield
        world.marked = True


def send_on(world: GrowthWorld) -> Iterator[None]:
    """Run what copies late records from behind an end marker to the new topic, unjudged. There may be several."""
    while True:
        yield
        if not world.marked or world.replaying or not world.rules.late_ones_are_sent_on:
            continue
        for partition in range(world.old):
            for record in world.late_records(partition):
                event = record.event
                assert event is not None
                # By its key, which a producer with another partitioner had another idea of.
                at = world.home_in(event, old=False) if world.rng.random() < 0.9 else world.old
                world.logs[at].append(event, world.now + world.broker_skew, admitted=record.admitted)
                yield
                if world.rng.random() < 0.9:  # else a crash comes before the place is noted
                    world.sent_on[partition] = max(record.offset + 1, world.sent_on.get(partition, 0))


def run_schedule(seed: int, rules: GrowthRules) -> None:
    """Run one interleaving of the model."""
    interleave(GrowthWorld(seed, rules), 260, happening=0.35)


ADDED = tuple(rule.name for rule in fields(GrowthRules) if rule.name not in {rule.name for rule in fields(Rules)})

if __name__ == "__main__":
    command(run_schedule, GrowthRules(), ADDED)
