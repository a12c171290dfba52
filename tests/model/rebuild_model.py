"""Executable specification of a rebuild: new definitions for past usage, booked aside and put in force at once.

A rebuild covers some meters, a range of minutes and every booking up to a sealed one. Its rows lie in a table of their
own under its generation; a list in the control store says which generations are in force. Generation 0 never changes.

    python -m tests.model.rebuild_model 20000                     # all rules on
    python -m tests.model.rebuild_model 2000 compare_and_set      # without the rules named
    python -m tests.model.rebuild_model 500 each                  # without one rule of rebuilding at a time

What breaks names itself, beside what `chunk_check.py` knows:
    I7 in force  what is read = every accepted event once, by the definitions of what covers it
    I8 forward   in a range that was rebuilt nothing counts by older definitions than the rebuild's, late usage neither
    I9 reader    no reader misses usage that was visible without rebuilds, or sees more than was accepted
    I10 list     a generation that an operator was told is in force stays so until it is taken back itself
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain

from tests.model.chunk_check import CheckedWorld, interleave, read
from tests.model.chunk_model import (
    BLOCK,
    CLOSES,
    CORRECTABLE,
    DAY,
    NEVER,
    Broken,
    InsertError,
    Place,
    Rules,
    add,
    booking_after,
    seal,
    work,
)
from tests.model.judging import Event, Record
from tests.model.survey import command

NEWEST = 3  # more definitions than these are not applied in a schedule
Rows = dict[tuple, tuple]


@dataclass(frozen=True)
class RebuildRules(Rules):
    """The protocol of booking, and what rebuilds add to it."""

    booked_aside: bool = True  # rows of a rebuild never touch those that were sealed
    only_what_is_sealed: bool = True  # a rebuild ends with a booking into which nothing can come any more
    older_ones_are_sealed: bool = True  # nothing behind that booking was or will be booked by older definitions
    nothing_unread: bool = True  # a rebuild that cannot read all of the log up to there is refused
    judged_as_booked: bool = True  # what was accepted then is accepted now: the ids decide, at their positions
    a_number_of_its_own: bool = True  # each attempt has its own generation: a zombie writes beside, never into another
    all_rows_first: bool = True  # the switch comes when every block was acknowledged
    compare_and_set: bool = True  # the switch is refused when the list is not what this rebuild began with
    cut_off_in_the_list: bool = True  # the list says up to which booking a rebuild counts; later ones count as booked
    range_and_meters_only: bool = True  # a rebuild covers the minutes and meters that it booked
    whole_range_goes: bool = True  # what is covered goes, also where the rebuild has no row in its place
    list_read_once: bool = True  # what is left out and what is put in its place come from one reading of the list
    list_not_after_the_seal: bool = True  # the list is read before the seal, so that no hot row is covered
    newest_copy_counts: bool = True  # of the copies of the list that readers have, the one that was made last


@dataclass(frozen=True)
class Switch:
    """An entry of the list: what a generation covers."""

    generation: int
    definitions: int
    meters: frozenset[str]
    minutes: range
    last: int  # booking

    def covers(self, meter: str, minute: int, booking: int) -> bool:
        return booking <= self.last and self.about(meter, minute)

    def about(self, meter: str, minute: int) -> bool:
        return meter in self.meters and minute in self.minutes


Switches = tuple[Switch, ...]


class RebuildWorld(CheckedWorld):
    """A world in which past usage is rebuilt. Its meters are the events' subjects."""

    rules: RebuildRules

    def __init__(self, seed: int, rules: RebuildRules) -> None:
        super().__init__(seed, rules)
        self.switches: Switches = ()  # control store: the generations in force, the newest last
        self.copied: tuple[int, Switches] = 0, ()  # ClickHouse: the copy of the list that readers have, and its number
        self.switched = 0  # control store: how often the list was changed
        self.generations = 0  # control store: the newest number that was given out
        self.promised: Switches = ()  # what operators were told, in this order
        self.announced = 0  # the newest list of which an operator was told that readers have it

    def makers(self) -> Sequence[Callable[[], Iterator[None]]]:
        return [
            *[lambda: work(self)] * 3,
            *[lambda: seal(self)] * 2,
            *[lambda: operate(self)] * 2,
            lambda: ask(self),
            lambda: close(self),
            lambda: read(self),
        ]

    def anew(self) -> RebuildWorld:
        return RebuildWorld(0, self.rules)

    def meter(self, event: Event, meters: int) -> tuple[str, tuple]:
        """Apply definitions: each has its own unit, and splits a meter into other series than the one before."""
        if event.subject == CORRECTABLE:  # taken back from the series in which it was counted
            count = bool(event.value) - bool(event.was)
            return f"{event.subject}.0", (count, (event.value - event.was) * 1000**meters, NEVER)
        series = f"{event.subject}.{event.value % (meters + 1)}"
        return series, (1, event.value * 1000**meters, (event.minute, event.identity))

    def check(self) -> None:
        """I10, and what holds after whatever was done."""
        super().check()
        if self.switches != self.promised:
            raise Broken("I10 one command undid another")
        if self.copied[0] < self.announced:
            raise Broken("I10 readers have an older list than an operator was told")

    def put_in_force(self, known: int, switches: Switches, promised: Switches) -> Iterator[None]:
        """Change the list, unless somebody else changed it since it was read; then copy it to where readers take it."""
        if self.switched == known or not self.rules.compare_and_set:
            self.switches, self.promised, self.switched = switches, promised, self.switched + 1
            changed = self.switched, switches
            for _ in range(self.rng.choice((1, 20))):
                yield
            self.publish(*changed)
            self.announced = max(self.announced, changed[0])

    def publish(self, number: int, switches: Switches) -> None:
        """Write a copy of the list for readers; it may come late, and twice."""
        if number > self.copied[0] or not self.rules.newest_copy_counts:
            self.copied = number, switches

    def sealed_rows(self, sealed_to: int) -> Rows:
        """Return generation 0 of what is sealed, by (booking, definitions, series, minute)."""
        every = chain.from_iterable(rows.items() for booking, rows in self.sealed().items() if booking <= sealed_to)
        return dict(every)

    def answer(self, left_out: Switches, put_in: Switches, sealed: Rows, hot: Rows) -> Rows:
        """Return the total per (series, minute): rebuilt rows instead of the sealed ones that they cover."""
        totals: Rows = {}
        rebuilt = self.store.final("usage_rebuilt")
        there = {(generation, *key_of_place(key)) for generation, *key in rebuilt}
        for key, value in sealed.items():
            generation = in_force(left_out, key)
            if not generation or (not self.rules.whole_range_goes and (generation, *key_of_place(key)) not in there):
                add(totals, key[2:], value)
        for (generation, *rest), value in rebuilt.items():
            if in_force(put_in, rest) == generation:
                add(totals, tuple(rest[2:]), value)
        for key, value in hot.items():
            add(totals, key[4:], value)
        return totals

    def check_answer(self, answer: Mapping[tuple, tuple], sealed: Rows, hot: Rows) -> None:
        """I9: counted per meter and minute, whatever the definitions."""
        seen, least, most = (Counter[tuple[str, int]]() for _ in range(3))
        for (series, minute), value in answer.items():
            seen[meter_of(series), minute] += value[0]
        for key, value in (*sealed.items(), *hot.items()):
            least[meter_of(key[-2]), key[-1]] += value[0]
        for booking in chain.from_iterable(self.bookings()):
            most[meter_of(booking.row[3]), booking.row[4]] += 1
        if any(seen[key] < count for key, count in least.items()):
            raise Broken("I9 a reader misses usage")
        if any(count > most[key] for key, count in seen.items() if key[0] != CORRECTABLE):
            raise Broken("I9 a reader sees more than was accepted")

    def check_end(self) -> None:
        """I7 and I8, and what holds for generation 0 as if there had never been a rebuild."""
        super().check_end()
        events = {(number, record.offset): record.event for number, log in enumerate(self.logs)
                  for record in log.records}  # fmt: skip
        right: Rows = {}
        for partition, booked in enumerate(self.bookings()):
            for booking in booked:
                event = events[partition, booking.offset]
                assert event is not None
                _, number, definitions, _, minute = booking.row
                about = [each for each in self.switches if each.about(event.subject, minute)]
                applied = next((each.definitions for each in reversed(about) if number <= each.last), definitions)
                if applied < max((each.definitions for each in about), default=0):
                    raise Broken("I8 usage of a rebuilt range counts by older definitions")
                series, value = self.meter(event, applied)
                add(right, (series, minute), value)
        answer = self.answer(self.switches, self.switches, self.sealed_rows(self.sealed_to), self.hot_rows())
        if answer != right:
            raise Broken("I7 what is in force is not every accepted event once")


def meter_of(series: str) -> str:
    return series.partition(".")[0]


def key_of_place(key: Sequence) -> tuple:
    """Return (booking, series, minute) of a row's key: what is left of it when its definitions do not count."""
    booking, _, series, minute = key
    return booking, series, minute


def in_force(switches: Switches, key: Sequence) -> int:
    """Return the generation that counts at a row's place: the last one in the list that covers it."""
    booking, _, series, minute = key
    covering = (each.generation for each in reversed(switches) if each.covers(meter_of(series), minute, booking))
    return next(covering, 0)


def placed(records: Sequence[Record]) -> Iterator[tuple[Record, Place]]:
    """Yield each record with the place behind it: what decides its booking and its definitions."""
    clock = booking = meters = 0
    for record in records:
        clock = max(clock, record.appended_at)
        booking, meters = booking_after(booking, clock, record), max(meters, record.meters)
        yield record, Place(record.offset + 1, clock, booking, meters)


def operate(world: RebuildWorld) -> Iterator[None]:
    """Run an operator's commands; there may be several operators at a time."""
    while True:
        yield
        what = world.rng.random()
        world.publish(world.switched, world.switches)  # what somebody who was killed has left out
        if what < 0.7:
            yield from rebuild(world)
        elif what < 0.75:
            yield from undo(world)


def rebuild(world: RebuildWorld) -> Iterator[None]:
    """Rebuild once. Killed in between, it leaves rows that nobody reads."""
    rng, rules = world.rng, world.rules
    known, switches, definitions, last = world.switched, world.switches, world.meters, world.sealed_to
    if not rules.only_what_is_sealed:
        last = max(world.frontier(number)[3].booking for number in range(len(world.logs)))
    first, length = rng.randint(0, world.now), rng.choice((10, 30, 90))
    chosen = frozenset(rng.choice(("a", "b", "ab", "abc")))
    switch = Switch(next_generation(world), definitions, chosen, range(first, first + length), last)
    yield
    if last < 0 or not may_rebuild(world, switch):
        return
    rows = yield from book_aside(world, switch)
    if not rules.booked_aside:
        return replace_sealed(world, switch, rows)
    if not (yield from write(world, switch, rows)):
        return
    for _ in range(rng.choice((1, 10))):
        yield  # the operator looks at the preview
    listed = as_listed(world, switch)
    yield from world.put_in_force(known, (*switches, listed), (*world.promised, listed))


def next_generation(world: RebuildWorld) -> int:
    """Return a number for an attempt; it stays used when the attempt comes to nothing."""
    if not world.rules.a_number_of_its_own:
        return max((each.generation for each in world.switches), default=0) + 1
    world.generations += 1
    return world.generations


def may_rebuild(world: RebuildWorld, switch: Switch) -> bool:
    """Tell whether the log can be read, and the definitions hold for all that is booked behind the rebuild."""
    from_archive = world.rng.random() < 0.5
    for log in world.logs:
        if world.rules.nothing_unread and not from_archive and log.start > 0:
            return False
        behind = [place.meters for _, place in placed(log.records) if place.booking > switch.last]
        if world.rules.older_ones_are_sealed and (not behind or min(behind) < switch.definitions):
            return False
    return True


def book_aside(world: RebuildWorld, switch: Switch) -> Iterator[None]:
    """Return the rows of a rebuild, by (booking, definitions, series, minute)."""
    accepted = {key: value[0] for key, value in world.store.final("ids").items()}
    rows: Rows = {}
    for partition, log in enumerate(world.logs):
        yield
        for record, place in placed(log.records):
            event = record.event
            if event is None or not switch.covers(event.subject, event.minute, place.booking):
                continue
            if not world.rules.nothing_unread and record.offset < log.start:
                continue
            if world.rules.judged_as_booked and (partition, record.offset) not in accepted:
                continue
            series, value = world.meter(event, switch.definitions)
            add(rows, (place.booking, switch.definitions, series, event.minute), value)
    return rows


def write(world: RebuildWorld, switch: Switch, rows: Rows) -> Iterator[None]:
    """Write rows under their generation; return whether all was acknowledged."""
    keyed = [((switch.generation, *key), 0, value) for key, value in sorted(rows.items())]
    for first in range(0, len(keyed), BLOCK):
        try:
            world.store.insert("usage_rebuilt", keyed[first : first + BLOCK], failing=0.2)
        except InsertError:
            if world.rules.all_rows_first:
                return False
        yield
    return True


def replace_sealed(world: RebuildWorld, switch: Switch, rows: Rows) -> None:
    for booking, sealed in world.store.sealed.items():
        kept = {key: value for key, value in sealed.items() if not switch.covers(meter_of(key[2]), key[3], booking)}
        world.store.sealed[booking] = kept | {key: value for key, value in rows.items() if key[0] == booking}


def as_listed(world: RebuildWorld, switch: Switch) -> Switch:
    """Return what the list says of a rebuild."""
    every = range(-100, 10_000)
    last = switch.last if world.rules.cut_off_in_the_list else 10**9
    if world.rules.range_and_meters_only:
        return Switch(switch.generation, switch.definitions, switch.meters, switch.minutes, last)
    return Switch(switch.generation, switch.definitions, frozenset("abc"), every, last)


def undo(world: RebuildWorld) -> Iterator[None]:
    """Take the last rebuild back: what it replaced counts again."""
    known, switches = world.switched, world.switches
    yield
    promised = tuple(each for each in world.promised if each not in switches[-1:])
    yield from world.put_in_force(known, switches[:-1], promised)


def ask(world: RebuildWorld) -> Iterator[None]:
    """Run a reader of what is in force: first the list, then the seal with the rows."""
    rules = world.rules
    while True:
        yield
        switches = world.copied[1]
        if rules.list_not_after_the_seal:
            yield
        sealed, hot = world.sealed_rows(world.sealed_to), world.hot_rows()
        if not rules.list_not_after_the_seal:
            for _ in range(world.rng.choice((1, 20))):
                yield
            switches = world.copied[1]
        again = switches if rules.list_read_once else world.copied[1]
        world.check_answer(world.answer(switches, again, sealed, hot), sealed, hot)


def close(world: RebuildWorld) -> Iterator[None]:
    """Close the books now, and perhaps apply the next definitions, as `chunk_model.close` does."""
    while True:
        yield
        if world.rng.random() < 0.9:
            continue
        behind = world.rng.choice((0, 0, DAY))
        world.opened = max(world.opened, (world.now - behind) // DAY * CLOSES) + 1
        opens, apply = world.opened, world.rng.random() < 0.1
        if apply:
            world.meters = min(world.meters + 1, NEWEST)
        meters = world.meters if apply else 0
        for log in world.logs:
            for _ in range(world.rng.choice((1, 1, 2))):
                log.append(None, world.now + world.broker_skew, opens=opens, meters=meters)
                yield


def run_schedule(seed: int, rules: RebuildRules) -> None:
    """Run one interleaving of the model."""
    interleave(RebuildWorld(seed, rules), 3000, happening=0.04)


ADDED = tuple(rule.name for rule in fields(RebuildRules) if rule.name not in {rule.name for rule in fields(Rules)})

if __name__ == "__main__":
    command(run_schedule, RebuildRules(), ADDED)
