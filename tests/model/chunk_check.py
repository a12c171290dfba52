"""Check `chunk_model.py` with seeded interleavings of producers, workers, sealers, readers and log events.

With all rules on no invariant breaks; without one of them, one does, and names itself:
    I1 amounts   final totals = the sum over distinct accepted events
    I2 prefix    what is visible of a partition = the aggregate of a log prefix that reaches the progress read before
    I3 monotone  no key that a reader has seen goes backwards
    I4 sealed    a sealed booking never changes and is right; sealed + later bookings = total
    I5 replay    booking the same log again from offset 0 gives the same rows

    python -m tests.model.chunk_check 20000                              # all rules on
    python -m tests.model.chunk_check 2000 judge_by_log_time             # without the rules named
    python -m tests.model.chunk_check 500 each                           # without one rule at a time
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import chain
from typing import NamedTuple

from tests.model.chunk_model import (
    CHUNK,
    CLOSES,
    CORRECTABLE,
    DAY,
    Broken,
    Rules,
    World,
    add,
    booking_after,
    close,
    seal,
    work,
)
from tests.model.judging import OLDEST, Event, Known, accept, judge
from tests.model.survey import command


class Booking(NamedTuple):
    """One accepted event where it counts; `row` is (chunk, booking, meters, subject, minute)."""

    offset: int
    clock: int
    identity: str
    row: tuple
    value: tuple


class CheckedWorld(World):
    """A world that knows what should be visible in it.

    Attributes:
        patience: How many turns it may take until all is booked and sealed, when nothing happens any more.
    """

    patience = 6000

    def __init__(self, seed: int, rules: Rules) -> None:
        super().__init__(seed, rules)
        self.produced: list[Event] = []
        self.read_counts: dict[tuple, int] = {}
        self.right: tuple[int, list[list[Booking]]] = (-1, [])  # of so many records
        self.checked = 0  # how many blocks were inserted when the rows were last checked

    def makers(self) -> Sequence[Callable[[], Iterator[None]]]:
        """Return what starts each process of a schedule. The last two, which close and read, end with the faults."""
        return [
            *[lambda: work(self)] * 3,
            *[lambda: seal(self)] * 2,
            lambda: close(self),
            lambda: read(self),
        ]

    def anew(self) -> CheckedWorld:
        """Return an empty world of this kind, in which the same log can be booked again."""
        return CheckedWorld(0, self.rules)

    def bookings(self) -> list[list[Booking]]:
        """Book every partition from offset 0 without any fault; everything visible is compared with this."""
        records = sum(len(log.records) for log in self.logs)
        if self.right[0] != records:
            self.right = records, self.book_all()
        return self.right[1]

    def book_all(self) -> list[list[Booking]]:
        booked: list[list[Booking]] = []
        self.verdicts: list[dict[int, str]] = [{} for _ in self.logs]  # of each event, by its offset
        for partition, log in enumerate(self.logs):
            clock, number, meters, seen, mine = 0, 0, 0, dict[str, Known](), list[Booking]()
            for record in log.records:
                clock, event = max(clock, record.appended_at), record.event
                number, meters = booking_after(number, clock, record), max(record.meters, meters)
                at_home = event is not None and self.home(event) == partition
                verdict = judge(record, clock, meters, at_home, seen)
                if event is not None:
                    self.verdicts[partition][record.offset] = verdict
                if event is not None and verdict == "accepted":
                    accept(event, max(clock, event.minute), meters, seen)
                    chunk, by_log = record.offset // CHUNK, self.rules.book_by_log_day
                    subject, value = self.meter(event, meters)
                    booked_in = number if by_log else event.minute // DAY * CLOSES
                    row = (chunk, booked_in, meters if self.rules.meters_in_key else 0, subject, event.minute)
                    mine.append(Booking(record.offset, clock, event.identity, row, value))
            booked.append(mine)
        return booked

    def booked(self) -> bool:
        """Tell whether all that was sent is booked."""
        return all(offset >= log.end for offset, log in zip(self.reached(), self.logs, strict=True))

    def check_prefix(self, rows: dict[tuple, tuple], sealed_to: int, reported: list[int]) -> None:
        """I2: the rows of each partition are the first n bookings for some n, and n reaches the reported offset."""
        for partition, booked in enumerate(self.bookings()):
            booked = [b for b in booked if b.row[1] > sealed_to or not self.rules.book_by_log_day]
            visible = {key[1:]: value for key, value in rows.items() if key[0] == partition}
            prefixes = [number for number, expected in enumerate(prefixes_of(booked)) if expected == visible]
            if not prefixes:
                raise Broken(f"I2 partition {partition}: the visible rows are not a prefix of the log")
            if prefixes[-1] < sum(booking.offset < reported[partition] for booking in booked):
                raise Broken(f"I2 partition {partition}: the rows end before the progress that was read")

    def check(self) -> None:
        """I2, after whatever was done."""
        if self.store.blocks != self.checked:
            self.checked = self.store.blocks
            self.check_prefix(self.hot_rows(), self.sealed_to, self.reached())

    def check_monotone(self) -> None:
        """I3; what can be corrected may go back."""
        usage = {key: value for key, value in self.usage().items() if not key[0].startswith(CORRECTABLE)}
        if any(usage.get(key, (0,))[0] < count for key, count in self.read_counts.items()):
            raise Broken("I3 a key went back")
        self.read_counts = {key: value[0] for key, value in usage.items()}

    def check_end(self) -> None:
        """I1, I4 and I5, when everything has come to rest."""
        by_booking: dict[tuple, tuple] = {}
        by_minute: dict[tuple, tuple] = {}
        for booking in chain.from_iterable(self.bookings()):
            add(by_booking, booking.row[1:], booking.value)
            add(by_minute, booking.row[3:], booking.value)
        counted = Counter((each.identity, each.row[-1]) for each in chain.from_iterable(self.bookings()))
        if max(counted.values(), default=0) > 1:  # used again when it has expired, an id has another minute
            raise Broken("I1 an identity is booked twice")
        usage = self.usage()
        if usage != by_minute:
            raise Broken("I1 the totals differ from the distinct accepted events")
        for number, rows in self.sealed().items():
            right = {key: value for key, value in by_booking.items() if key[0] == number}
            if self.rules.book_by_log_day and rows != right:
                raise Broken(f"I4 sealed booking {number} is wrong")
        self.check_replay(usage)

    def check_replay(self, usage: dict[tuple, tuple]) -> None:
        """I5."""
        again = self.anew()
        again.logs, again.meters = self.logs, self.meters
        again.now, again.replaying = self.now, True
        for log in again.logs:
            log.start = 0  # the raw archive still has what retention removed
        settle(again, [])
        if again.usage() != usage:
            raise Broken("I5 a replay differs")


def prefixes_of(booked: Sequence[Booking]) -> Iterator[dict[tuple, tuple]]:
    """Yield the rows of the first 0, 1, 2 ... bookings; it is one dictionary, which grows."""
    expected: dict[tuple, tuple] = {}
    yield expected
    for booking in booked:
        add(expected, booking.row, booking.value)
        yield expected


def read(world: CheckedWorld):
    """Run a reader that needs two queries, one for progress and one for data."""
    while True:
        told = dict(world.told)
        if world.rules.progress_read_first:
            reported = world.reached()
            yield
            rows, sealed_to = world.hot_rows(), world.sealed_to
        else:
            rows, sealed_to = world.hot_rows(), world.sealed_to
            yield
            reported = world.reached()
        world.check_prefix(rows, sealed_to, [max(place, told.get(number, 0)) for number, place in enumerate(reported)])
        world.check_monotone()


def happen(world: CheckedWorld) -> None:
    """Let one thing happen: send, repeat, replay, correct, tick, abort, expire, step a clock, drop old rows."""
    rng, partition = world.rng, world.rng.randrange(len(world.logs))
    log = world.logs[partition]
    world.now += rng.choice((0, 0, 1, 1, 2))
    what = rng.choices(
        ("event", "copy", "replay", "correct", "tick", "gap", "retention", "clock", "drop"),
        (50, 20, 3, 15, 6, 5, 5, 3, 6),
    )[0]
    if what in ("event", "copy", "replay", "correct"):
        event = sent(world, what)
        if what == "replay" or rng.random() < 0.85:  # else a producer with another partitioner
            log = world.logs[world.home(event)]
        log.append(event, world.now + world.broker_skew, admitted=what == "replay")
    elif what == "tick":
        log.append(None, world.now + world.broker_skew)
    elif what == "gap":
        log.end += rng.randint(1, 5)
    elif what == "retention":  # it must never reach an open booking: alert long before
        kept_from = world.frontier(partition)[2].offset
        log.start = max(log.start, rng.choice((kept_from, rng.randint(0, kept_from))))
    elif what == "clock":
        world.broker_skew = rng.choice((-8, -3, 0, 0, 3))
    elif what == "drop" and world.rules.book_by_log_day:
        hot = world.store.tables["usage_hot"]
        for key in [key for key in hot if key[2] < world.sealed_to]:
            del hot[key]


def sent(world: CheckedWorld, what: str) -> Event:
    """Return what somebody sends: a new event, a copy, or a correction by an operator who was told of any version."""
    rng, produced = world.rng, world.produced
    of = [event for event in produced if event.subject == CORRECTABLE] if what == "correct" else produced
    if what == "event" or not of:
        minute = max(0, world.now - rng.choice((-12, -2, 0, 0, 0, 1, 3, 9, 20, 24, 40)))
        produced.append(Event(f"id-{len(produced)}", rng.choice("aabbc"), minute, rng.randint(1, 9)))
        return produced[-1]
    if what == "correct":
        version = rng.choice(of[-4:])
        now = rng.choice([value for value in (0, 0, rng.randint(1, 9)) if value != version.value])
        produced.append(version.corrected(now))
        return produced[-1]
    event = rng.choice(of[-8 if rng.random() < 0.6 else 0 :])
    if what == "copy" and not event.corrects:
        other = event._replace(value=rng.randint(1, 9))
        if rng.random() < 0.2:
            return other  # the first copy that was accepted wins
        if world.now - event.minute > OLDEST and rng.random() < 0.7:
            produced.append(other._replace(minute=world.now))  # the id is used again: a copy unless it has expired
            return produced[-1]
    return event


def settle(world: CheckedWorld, actors: Sequence[Iterator[None]], turns: int | None = None) -> None:
    """End the faults; let the old processes go on, and a fresh worker book whatever is left.

    Raises:
        Broken: Something is never booked, or never sealed though every partition has left its booking.
    """
    world.calm, world.broker_skew = True, 0
    sealers, worker = bool(actors), world.makers()[0]()
    for _ in range(turns or world.patience):
        next(world.rng.choice((*actors, worker)))
        if world.rng.random() < 0.05 and world.booked() and (not sealers or world.booking_to_seal() is None):
            return worker.close()
    raise Broken("I4 a booking was never sealed" if world.booked() else "I1 the log was never booked to its end")


def interleave(world: CheckedWorld, steps: int, *, happening: float) -> None:
    """Run the processes of a world in a random order, with kills, zombies and what happens to the log meanwhile.

    Raises:
        Broken: At the first step that breaks an invariant.
    """
    makers = world.makers()
    actors, asleep = [make() for make in makers], [0] * len(makers)
    try:
        for step in range(steps):
            who, fate = world.rng.randrange(len(actors)), world.rng.random()
            if world.rng.random() < happening:
                happen(world)
            elif asleep[who] <= step:
                next(actors[who])
                world.check()
                if fate < 0.02:
                    actors[who].close()
                    actors[who] = makers[who]()  # killed, and started again
                elif fate < 0.05:
                    asleep[who] = step + world.rng.choice((10, 40, 120))  # a zombie: goes on later with what it knew
        settle(world, actors[:-2])
    finally:
        for actor in actors:
            actor.close()
    world.check_end()


def run_schedule(seed: int, rules: Rules) -> None:
    """Run one interleaving of the model."""
    interleave(CheckedWorld(seed, rules), 260, happening=0.35)


if __name__ == "__main__":
    command(run_schedule, Rules(), [rule.name for rule in fields(Rules)])
