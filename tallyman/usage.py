"""Usage as readers see it: exact quantities per window, and how complete they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

Window = Literal["minute", "hour", "day", "week", "month", "total"]
WINDOWS: tuple[Window, ...] = ("minute", "hour", "day", "week", "month", "total")


@dataclass(frozen=True, slots=True)
class Totals:
    """What is known of one series in one span of time, scaled integers as stored.

    Merging is associative and commutative; `EMPTY` is its identity. `latest` is ordered by (time, identity),
    so that two readings at the same time have one winner, whoever adds them and in whichever order.
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
    """Return what is known when both are."""
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
        up_to_booking: Only what was booked up to this booking and in it, sealed or not.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A decision: what is booked below `from_offset` stays, the offsets up to `to_offset` are skipped.

    Attributes:
        number: Which repair of its partition, from 1.
        chunk_size: The topic's. The chunk that was open, and all up to `to_offset`, are closed by this decision.
        from_clock_ms, to_clock_ms: The log clock where booking stopped, and when the first record behind was appended:
            what was skipped was appended in between.
        from_booking: The booking in which booking stopped; `booking`: the one that begins at `to_offset`.
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

    def touches(self, start: datetime, end: datetime, up_to_booking: int | None = None) -> bool:
        """Whether usage of [start, end) may be missing because of it: by the log's clock, to which events are close."""
        booked = up_to_booking is None or up_to_booking >= self.from_booking
        return self.skipped > 0 and booked and self.from_clock < end and self.to_clock >= start


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageAnswer:
    """Rows in order of (start, groups), and up to which event time nothing is missing that has been sent.

    Attributes:
        repaired: Decisions to go on behind a damaged place, by which usage of the range may be missing.
    """

    query: UsageQuery
    unit: str
    rows: tuple[UsageRow, ...]
    complete_to: datetime | None
    sealed_to: int
    repaired: tuple[Repair, ...] = ()
