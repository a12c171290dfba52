"""Which numbered batches stand in the log: per collector and epoch the runs of sequence numbers, and how far it says
that it has sent everything.

Facts only grow: a row that was written for a shorter prefix stays true beside that of a longer one, so whoever reads
joins all rows of an epoch, and what is still missing then is a gap. Nothing here decides what counts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tallyman.headers import RecordKind

MOST_NAMES = 64  # tenants, or types, that are listed of a collector; of more it counts as everybody's
Names = frozenset[str]
NOBODY: Names = frozenset()
EVERYBODY: Names = frozenset({""})


class Feeds(NamedTuple):
    """Whom and what the readings of a batch belong to; "" stands for more than are listed, or not known."""

    subjects: Names = NOBODY
    types: Names = NOBODY


SILENT = Feeds()
UNKNOWN = Feeds(EVERYBODY, EVERYBODY)


class Heard(NamedTuple):
    """One numbered batch at its home, whatever became of its events, and the log clock there.

    Its watermark is at most `furthest_ahead` of that clock, by the definitions in force.
    """

    kind: RecordKind
    clock_ms: int
    feeds: Feeds = SILENT


@dataclass(slots=True)
class Run:
    """Batches first to last, without a gap: watermarks of the first and the last, clocks of the oldest and newest."""

    first: int
    last: int
    first_watermark_us: int
    last_watermark_us: int
    first_clock_ms: int
    clock_ms: int
    is_written: bool = False


@dataclass(slots=True)
class Voice:
    """One epoch of a collector, as far as this stretch of log holds it."""

    runs: list[Run] = field(default_factory=list)
    feeds: Feeds = SILENT

    def add(self, sequence: int, watermark_us: int, clock_ms: int) -> None:
        """Add a batch. In order, the usual case, it makes the last run longer."""
        runs = self.runs
        if runs and runs[-1].last + 1 == sequence:
            run = runs[-1]
            run.last, run.last_watermark_us, run.is_written = sequence, watermark_us, False
            run.clock_ms = max(run.clock_ms, clock_ms)
        else:
            self._insert(Run(sequence, sequence, watermark_us, watermark_us, clock_ms, clock_ms))

    def _insert(self, one: Run) -> None:
        """Add a batch that came out of order, or again."""
        runs = self.runs
        place = bisect_right(runs, one.first, key=lambda run: run.first)
        before = runs[place - 1] if place else None
        if before is not None and one.first <= before.last:  # a copy: it says no more than that somebody lives
            before.clock_ms, before.is_written = max(before.clock_ms, one.clock_ms), False
            return
        if before is not None and before.last + 1 == one.first:
            one, place = _joined(before, one), place - 1
            del runs[place]
        if place < len(runs) and one.last + 1 == runs[place].first:
            one = _joined(one, runs.pop(place))
        runs.insert(place, one)

    def feed(self, feeds: Feeds) -> None:
        """Note whom a batch's readings belong to; the written rows of this stretch do not say it yet."""
        if feeds is self.feeds or feeds is SILENT:
            return
        more = Feeds(*(_bounded(mine | theirs) for mine, theirs in zip(self.feeds, feeds, strict=True)))
        if more != self.feeds:
            self.feeds = more
            for run in self.runs:
                run.is_written = False


@dataclass(slots=True)
class Voices:
    """What was heard in an open chunk since its start, or since its last booking began. A function of the log."""

    by_epoch: dict[tuple[str, str], Voice] = field(default_factory=dict)

    def add(self, heard: Iterable[Heard]) -> None:
        """Add batches of the next stretch of log."""
        for kind, clock_ms, feeds in heard:
            key = kind.collector, kind.epoch
            voice = self.by_epoch.get(key)
            if voice is None:
                voice = self.by_epoch[key] = Voice()
            voice.add(kind.sequence, kind.watermark_us, clock_ms)
            voice.feed(feeds)

    def unwritten(self) -> Iterator[tuple[str, str, Run, Feeds]]:
        """Yield collector, epoch and run of what changed since it was last acknowledged."""
        for (collector, epoch), voice in self.by_epoch.items():
            for run in voice.runs:
                if not run.is_written:
                    yield collector, epoch, run, voice.feeds

    @property
    def changed(self) -> bool:
        """Whether there is something to write."""
        return any(True for _ in self.unwritten())

    def acknowledge(self) -> None:
        """Note that all of it is written."""
        for voice in self.by_epoch.values():
            for run in voice.runs:
                run.is_written = True

    def clear(self) -> None:
        """Begin another stretch: what lies before is acknowledged."""
        self.by_epoch.clear()


def feeds_of(subjects: Iterable[str], types: Iterable[str]) -> Feeds:
    """Return whom a table of series belongs to."""
    return Feeds(_bounded(frozenset(subjects)), _bounded(frozenset(types)))


def _bounded(names: Names) -> Names:
    return EVERYBODY if len(names) > MOST_NAMES or "" in names else names


def _joined(earlier: Run, later: Run) -> Run:
    marks = earlier.first_watermark_us, later.last_watermark_us
    clocks = min(earlier.first_clock_ms, later.first_clock_ms), max(earlier.clock_ms, later.clock_ms)
    return Run(earlier.first, later.last, *marks, *clocks)
