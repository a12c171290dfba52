"""From what a source shows now and what it showed before, tell what was used between: pure arithmetic on integers.

Two clocks are read: the wall clock says *when*, the boottime clock says *how long*. A counter is only compared within
one incarnation. What cannot be known is not guessed: it is flagged, and the next interval has a new baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from collectors.arrow import Reading
from tallyman.event import Series

MILLISECOND_US = 1_000
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
# NTP slews by at most 500 ppm, 30 ms a minute; what is more than this was a step.
STEP_US = 500_000
# A level is held for this long: a gap that is longer is not measured, rather than billed at a guess.
LEVEL_HOLD_US = 2 * MINUTE_US
# A wall clock that was set back by more than this had been wrong before: waiting for it to catch up helps nobody.
LONGEST_HOLD_US = 3600 * SECOND_US

LARGEST = 2**63 - 1

Flag = Literal["boot", "returned", "dropped", "too_large"]


class Moment(NamedTuple):
    """Both clocks at once, microseconds, and the boot in which the second one runs."""

    wall_us: int
    boot_us: int
    boot_id: str


class Counter(NamedTuple):
    """A number that only grows within an incarnation; 0 at boot. What was used is the difference of two readings."""

    type: str
    data: Mapping[str, str]
    value: int
    scale: int
    incarnation: str


class Level(NamedTuple):
    """A number that holds for a while, such as bytes of memory. What was used is value x seconds."""

    type: str
    data: Mapping[str, str]
    value: int


Sample = Counter | Level


class CounterBook(msgspec.Struct, frozen=True, array_like=True):
    """Where a counter stood when an interval was last accepted."""

    type: str
    data: dict[str, str]
    value: int
    incarnation: str


class Book(msgspec.Struct, frozen=True, array_like=True):
    """What one collector must know to go on after a crash; it lies in the spool, in the batch that it belongs to.

    Attributes:
        next_us: Wall clock at which the next interval starts: the end of the last accepted one.
        wall_us, boot_us, boot_id: The clocks when it was accepted.
        subject: Whose usage was measured then; empty in a book of an older version.
    """

    next_us: int
    wall_us: int
    boot_us: int
    boot_id: str
    counters: tuple[CounterBook, ...]
    subject: str = ""


class Closed(NamedTuple):
    """An interval's readings, where to go on from, and what was odd: (flag, type) for each counter."""

    readings: tuple[Reading, ...]
    book: Book
    flags: tuple[tuple[Flag, str], ...]


def boundary_before(wall_us: int, interval_us: int) -> int:
    """Return the newest multiple of the interval; none of them lies inside a minute if the interval divides it."""
    return wall_us - wall_us % interval_us


def step_between(before: Moment, now: Moment) -> int:
    """Return by how much the wall clock was set between two moments, in microseconds; 0 if it was not.

    Boots have no common clock, so between two of them only a wall clock that went back is seen.
    """
    elapsed_us = now.wall_us - before.wall_us
    if before.boot_id != now.boot_id:
        return min(elapsed_us, 0)
    drift_us = elapsed_us - (now.boot_us - before.boot_us)
    return drift_us if abs(drift_us) > STEP_US else 0


def is_held(book: Book, until_us: int) -> bool:
    """Whether the wall clock stands at or before what was already read: a reading would have to lie in the future.

    Readings wait then, and counters go on counting. After a step of more than `LONGEST_HOLD_US` they do not wait:
    the times that were sent before were wrong, not these.
    """
    return 0 <= book.next_us - until_us <= LONGEST_HOLD_US


def close_interval(
    book: Book | None,
    samples: Sequence[Sample],
    used: Mapping[str, int],
    now: Moment,
    until_us: int,
    make_series: Callable[[Sample], Series],
) -> Closed:
    """Turn what a source shows now into the readings since the book was written.

    Args:
        book: None at the very first time: everything is a baseline then, and nothing is billed.
        samples: All of a source. A counter that is missing here is gone.
        used: What the levels used since the book was written, by `level_key`, in value x milliseconds.
        until_us: Wall clock at which the next interval starts, not after now; `is_held` has said that it may.

    Returns:
        Readings dated at the interval's start, which is where the one before ended. A counter beyond 64 bits, which
        only a broken driver shows, has none and holds up no other: its next reading within them goes on from before.
    """
    if book is None:
        fitting = tuple(_to_book(sample) for sample in samples if isinstance(sample, Counter) and fits(sample))
        return Closed((), Book(until_us, now.wall_us, now.boot_us, now.boot_id, fitting), ())
    start_us, end_us = _span(book, now, until_us)
    has_booted = book.boot_id != now.boot_id
    known = {(entry.type, *sorted(entry.data.items())): entry for entry in book.counters}
    readings: list[Reading] = []
    flags: list[tuple[Flag, str]] = []
    counters: list[CounterBook] = []
    for sample in samples:
        if isinstance(sample, Level):
            value = used.get(level_key(sample), 0)
            readings.append(Reading(make_series(sample), start_us, end_us, value))
            continue
        entry = known.get((sample.type, *sorted(sample.data.items())))
        if not fits(sample):
            flags.append(("too_large", sample.type))
            counters += [entry] if entry else []
            continue
        counters.append(_to_book(sample))
        first, flag = _first_end(entry, sample, has_booted)
        if flag:
            flags.append((flag, sample.type))
        if first is not None:
            value = sample.value - first
            readings.append(Reading(make_series(sample), start_us, end_us, value, first, sample.value))
    after = Book(until_us, now.wall_us, now.boot_us, now.boot_id, tuple(counters))
    return Closed(tuple(readings), after, tuple(flags))


def fits(sample: Sample) -> bool:
    """Whether a counter fits 64 bits; what a level used is only known when the interval ends."""
    return isinstance(sample, Level) or -LARGEST <= sample.value <= LARGEST


def _span(book: Book, now: Moment, until_us: int) -> tuple[int, int]:
    """Return from when to when the readings count, by the wall clock: never in the future."""
    has_booted = book.boot_id != now.boot_id
    # After a boot the kernel's counters began with it, which the wall clock of this boot can date.
    elapsed_us = now.boot_us if has_booted else now.boot_us - book.boot_us
    if book.next_us > until_us:  # set back by more than is waited for: date it by the new clock
        return min(now.wall_us - elapsed_us, until_us), until_us
    if has_booted:
        return min(max(book.next_us, now.wall_us - elapsed_us), until_us), until_us
    if step_between(Moment(book.wall_us, book.boot_us, book.boot_id), now) > 0:
        # Set forward: it lasted as long as the boottime clock says; the jump is nobody's usage.
        return book.next_us, min(book.next_us + elapsed_us, until_us)
    return book.next_us, until_us


def _first_end(entry: CounterBook | None, sample: Counter, has_booted: bool) -> tuple[int | None, Flag | None]:
    """Return where a counter stood at the interval's start, None where that cannot be known."""
    if has_booted:
        return 0, ("boot" if entry else None)  # another boot is the proof that it began at 0
    if entry is None:
        return None, None  # new here: what it counted before may have been anybody's
    if entry.incarnation != sample.incarnation:
        return None, "returned"
    if sample.value < entry.value:
        return None, "dropped"
    return entry.value, None


def _to_book(sample: Counter) -> CounterBook:
    return CounterBook(sample.type, dict(sample.data), sample.value, sample.incarnation)


def level_key(sample: Level) -> str:
    return "\0".join((sample.type, *(f"{name}={value}" for name, value in sorted(sample.data.items()))))


class LevelMeter:
    """Adds up value x milliseconds of boottime, at each sampling, until an interval is accepted.

    Milliseconds, because bytes x microseconds of a minute need more than 64 bits above 150 GB; both ends are cut to
    them on the same clock, so that intervals still sum exactly.
    """

    LEVEL_SCALE = 3

    def __init__(self, since_us: int | None) -> None:
        self._since_us = since_us
        self.used: dict[str, int] = {}
        self.unmeasured_us = 0

    def add(self, samples: Sequence[Sample], boot_us: int) -> None:
        """Count the time since the last sampling at the level that is seen now; a long gap is not measured."""
        since_us, self._since_us = self._since_us, boot_us
        if since_us is None:
            return
        if not 0 <= boot_us - since_us <= LEVEL_HOLD_US:
            self.unmeasured_us += max(boot_us - since_us, 0)
            return
        elapsed_ms = boot_us // MILLISECOND_US - since_us // MILLISECOND_US
        for sample in samples:
            if isinstance(sample, Level):
                key = level_key(sample)
                self.used[key] = self.used.get(key, 0) + sample.value * elapsed_ms

    def clear(self) -> None:
        """Begin again: an interval was accepted with what is here."""
        self.used = {}
