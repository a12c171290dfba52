"""Usage as readers see it: exact quantities per window, and how complete they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

Window = Literal["minute", "hour", "day", "week", "month", "total"]
WINDOWS: tuple[Window, ...] = ("minute", "hour", "day", "week", "month", "total")


@dataclass(frozen=True, slots=True)
class Totals:
    """What is known of one series in one span of time, scaled integers as stored.

    Merging is associative and commutative; `EMPTY` is its identity. `latest` is ordered by (time, identity),
    so that two readings at the same time have one winner, whoever adds them and in whichever order (`merge` says where
    there is none).
    """

    count: int = 0
    sum: int = 0
    min: int | None = None
    max: int | None = None
    latest: int | None = None
    latest_at: tuple[int, bytes] = (-1, b"")

    def times(self, factor: int) -> Totals:
        """Return the same quantities as integers of a larger scale."""

        def scaled_up(value: int | None) -> int | None:
            return None if value is None else value * factor

        least, most, latest = scaled_up(self.min), scaled_up(self.max), scaled_up(self.latest)
        return Totals(self.count, self.sum * factor, least, most, latest, self.latest_at)


EMPTY = Totals()


def merge(a: Totals, b: Totals) -> Totals:
    """Return what is known when both are.

    Commutative where identities differ, as those of events do. Rows of one numbered batch share theirs: of two of one
    series and microsecond, which its collector must not write, `latest` is one, and it may be either.
    """
    newer = a if a.latest_at >= b.latest_at else b
    return Totals(
        a.count + b.count,
        a.sum + b.sum,
        b.min if a.min is None else a.min if b.min is None else min(a.min, b.min),
        b.max if a.max is None else a.max if b.max is None else max(a.max, b.max),
        newer.latest,
        newer.latest_at,
    )


def scaled(value: int, scale: int) -> Decimal:
    """Return a stored integer as the exact decimal it stands for."""
    return Decimal(value).scaleb(-scale) if abs(value) < 10**27 else Decimal(f"{value}e-{scale}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """A question about one meter.

    Attributes:
        start: First instant, with a zone.
        end: First instant that is not asked for, with a zone.
        subjects: Tenants; empty for all.
        where: Dimension name -> values of which one must match; None matches a missing dimension.
        exclude: Conditions like `where`: what meets all of one of them is left out.
        group_by: Dimension names, and `subject`, by which rows are told apart.
        zone: IANA name in which hours, days, weeks (from Monday) and months begin.
        sealed_only: Only what the books have closed. Invoices ask so.
        up_to_booking: Only what was booked up to this booking and in it, sealed or not. Like `sealed_only` it carries
            levels to where the day of the next booking begins, whenever one asks.
    """

    meter: str
    start: datetime
    end: datetime
    subjects: tuple[str, ...] = ()
    where: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    exclude: tuple[Mapping[str, tuple[str | None, ...]], ...] = ()
    group_by: tuple[str, ...] = ("subject",)
    window: Window = "total"
    zone: str = "UTC"
    sealed_only: bool = False
    up_to_booking: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """One figure: half-open window, the groups asked for, and the value as an exact decimal in the meter's unit.

    Attributes:
        events: How many came in this window; 0 where a level is carried over it.
        resets: Of a counter: how often it began again from 0. None for other meters, as are the next two.
        holes: Of a counter: neighbouring readings that are further apart than the meter allows.
        decreases: Of a counter: readings below an earlier one of the same incarnation; they add nothing.
    """

    start: datetime
    end: datetime
    groups: Mapping[str, str | None]
    value: Decimal
    events: int
    resets: int | None = None
    holes: int | None = None
    decreases: int | None = None


CollectorState = Literal["live", "silent", "retired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorSeen:
    """A collector, by what the log holds of it.

    Attributes:
        watermark: Event time up to which it says it has sent everything; None if it does not say.
        last_heard: By the log clock.
        sequence: Of the newest epoch, the largest number.
        subjects, types: Whom and what its readings belong to; "" stands for more than are listed, or not known.
    """

    name: str
    state: CollectorState
    watermark: datetime | None
    last_heard: datetime
    epoch: str
    sequence: int
    epochs: int
    subjects: frozenset[str]
    types: frozenset[str]

    def may_feed(self, subjects: Collection[str], kind: str | None) -> bool:
        """Whether readings of these tenants (none: of any) and this type (None: of any) may come from it."""
        known = bool(self.subjects) and "" not in self.subjects
        fits = not known or not subjects or not self.subjects.isdisjoint(subjects)
        return fits and (kind is None or not self.types or "" in self.types or kind in self.types)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Batches that a collector numbered and that did not come.

    Attributes:
        last: None where an epoch was followed by another: whether it had more, nobody can know.
        start, end: Their readings lie between; None where that is not known.
    """

    collector: str
    epoch: str
    first: int
    last: int | None
    start: datetime | None
    end: datetime | None

    def touches(self, start: datetime | None, end: datetime | None) -> bool:
        """Whether readings of [start, end) may be missing."""
        before = start is not None and self.end is not None and self.end <= start
        behind = end is not None and self.start is not None and self.start >= end
        return not before and not behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A decision: what is booked below `from_offset` stays, the offsets up to `to_offset` are skipped.

    Attributes:
        number: Which repair of its partition, from 1; 0 for what is no decision: what stood behind a topic's end
            and was not copied, reason `late`. What is said of bookings is then those in which it ended.
        chunk_size: The topic's. The chunk that was open, and all up to `to_offset`, are closed by this decision.
        from_clock_ms, to_clock_ms: The log clock where booking stopped, and when the first record behind was appended:
            what was skipped was appended in between.
        from_booking: The booking in which booking stopped, the newest that what stays is booked in; `booking`: the one
            that begins at `to_offset`.
        counts: What became of the events of the chunk before.
        reason: What was wrong; `note` and `who` are the operator's.
    """

    topic_id: str
    partition: int
    number: int
    chunk_size: int
    from_offset: int
    to_offset: int
    from_clock_ms: int
    to_clock_ms: int
    from_booking: int
    booking: int
    definitions: int
    counts: tuple[int, ...]
    reason: str
    note: str
    who: str
    decided_at: datetime

    @property
    def chunk(self) -> int:
        """The chunk in which booking goes on."""
        return self.to_offset // self.chunk_size

    @property
    def skipped(self) -> int:
        """How many offsets were skipped; markers and holes among them are no records."""
        return self.to_offset - self.from_offset

    @property
    def from_clock(self) -> datetime:
        return datetime.fromtimestamp(self.from_clock_ms / 1000, UTC)

    @property
    def to_clock(self) -> datetime:
        return datetime.fromtimestamp(self.to_clock_ms / 1000, UTC)

    def undoes(self, topic_id: str, partition: int, offset: int, booking: int) -> bool:
        """Whether what was written of a record, in this booking, was skipped, or judged anew in a later one."""
        here = (topic_id, partition) == (self.topic_id, self.partition)
        return here and offset >= self.from_offset and booking < self.booking

    def touches(self, start: datetime, end: datetime, up_to_booking: int | None = None) -> bool:
        """Whether usage of [start, end) may be missing because of it: by the log's clock, to which events are close."""
        booked = up_to_booking is None or up_to_booking >= self.from_booking
        return self.skipped > 0 and booked and self.from_clock < end and self.to_clock >= start


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageAnswer:
    """Rows in order of (start, groups), and up to which event time nothing is missing that has been sent.

    Attributes:
        repaired: Decisions to go on behind a damaged place, by which usage of the range may be missing, or what levels
            are carried into it from.
        held_by: The silent collectors that hold `complete_to` back, the furthest behind first.
        behind: Live ones that have not said all of the range yet, though the log has passed it: they still send what
            they kept. By name.
        gaps: What is missing, or may be, in the range that was asked for, or before it as long as levels are believed.
        rebuilt: The generations that count in some of the range, beside what was booked; of several the last wins.
        felt_for: How long what is missing may decide what comes behind it: a level may have ended there.
    """

    query: UsageQuery
    unit: str
    rows: tuple[UsageRow, ...]
    complete_to: datetime | None
    sealed_to: int
    repaired: tuple[Repair, ...] = ()
    held_by: tuple[CollectorSeen, ...] = ()
    behind: tuple[CollectorSeen, ...] = ()
    gaps: tuple[Gap, ...] = ()
    rebuilt: tuple[int, ...] = ()
    felt_for: timedelta = timedelta(0)

    def is_complete(self, row: UsageRow) -> bool | None:
        """Whether all that was sent of a row's window is in it: its end is reached, and nothing of it is missing.

        None where the question left out by itself what was booked later.
        """
        if self.query.sealed_only or self.query.up_to_booking is not None:
            return None
        if self.complete_to is None or row.end > self.complete_to:
            return False
        since = row.start - self.felt_for
        missing = any(gap.touches(since, row.end) for gap in self.gaps)
        return not missing and not any(repair.touches(since, row.end) for repair in self.repaired)
