"""What became of everything that was sent: usage as anybody reads it, dead letters, duplicates, conflicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from tallyman.aggregates import read_usage
from tallyman.aggregations import AGGREGATES
from tallyman.clickhouse import connect
from tallyman.meter import Meter
from tallyman.usage import UsageQuery, Window
from tests.integration.booking import OwnProject
from tests.vectors.compare import Row
from tests.vectors.model import Outgoing, Place, Unknown
from tests.vectors.windows import WindowSize

SECOND = "at_second"  # the dimension of events whose range does not begin or end at whole minutes


Part = Literal["broker", "clickhouse", "pipeline"]


class Killable(Protocol):
    """What a case may take away, and has to start again."""

    def start(self) -> None: ...

    def kill(self) -> None: ...


class Letter(NamedTuple):
    """Why an event is dead."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a case asks of one meter.

    Attributes:
        start, end: In whole seconds; where they are no whole minutes, the meter has the dimension `SECOND`.
        subjects: None for all; of none there is no usage.
        size: Of its windows; None for one total.
        as_told: Whether the range is asked for as it stands, also where it is none that can be answered.
        moments: In which windows something may be; those that are not ours are asked for one by one.
    """

    meter: str
    start: datetime
    end: datetime
    subjects: Sequence[str] | None = None
    where: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    exclude: Sequence[Mapping[str, tuple[str | None, ...]]] = ()
    group_by: Sequence[str] = ()
    size: WindowSize | None = None
    zone: str = "UTC"
    as_told: bool = False
    moments: Sequence[datetime] = ()


class Books:
    """Reads what is booked; made once everything is.

    Attributes:
        parts: What a case may kill, and has to start again.
    """

    def __init__(self, own: OwnProject, parts: Mapping[Part, Killable], folder: Path) -> None:
        self.own, self.parts, self.folder = own, parts, folder
        self.project = own.project
        self.client = connect(own.endpoint)
        self.meters: dict[str, Meter] = {meter.meter: meter for meter in self.project.meters}

    def close(self) -> None:
        self.client.disconnect()

    def ask(self, question: Question) -> list[Row]:
        """Answer by `read_usage`.

        Raises:
            UsageQueryError: The question has no answer.
        """
        size = question.size
        if question.subjects is not None and not question.subjects:
            return []  # nobody is asked about: `read_usage` takes no subjects for all of them
        if size is None or size.ours:
            window = size.ours if size and size.ours else "total"
            return self._read(question, question.start, question.end, window)
        rows = []
        for start, end in sorted({size.span(moment, question.zone) for moment in question.moments}):
            first, last = max(start, question.start), min(end, question.end)
            if first < last:
                rows += self._read(question, first, last, "total")
        if not AGGREGATES[self.meters[question.meter].aggregation].zero_if_empty:
            return rows
        # A window of which a condition leaves nothing is none; that nothing is in the whole range is an answer.
        found = [row for row in rows if row.events]
        return found or [row for row in self._read(question, question.start, question.end, "total") if not row.events]

    def _read(self, question: Question, start: datetime, end: datetime, window: Window) -> list[Row]:
        first, last, outside = (start, end, ()) if question.as_told else whole_minutes(start, end)
        query = UsageQuery(
            meter=question.meter,
            start=first,
            end=last,
            subjects=tuple(question.subjects or ()),
            where=question.where,
            exclude=(*question.exclude, *({SECOND: outside} for _ in (1,) if outside)),
            group_by=tuple(question.group_by),
            window=window,
            zone=question.zone,
        )
        answer = read_usage(self.client, query, meters=tuple(self.meters.values()))
        return [Row(row.groups, row.value, max(row.start, start), min(row.end, end), row.events) for row in answer.rows]

    def letter(self, event: Outgoing) -> Letter | None:
        """Return why an event is dead, None if it is not; one that the log refuses for its size never came so far."""
        if event.is_too_large:
            return Letter("too_large", event.problem)
        return self._letters.get(_place(event))

    def is_accepted(self, event: Outgoing) -> bool:
        """Tell whether an event counts, as the first of its copies."""
        return not event.is_too_large and _place(event) in self._accepted

    def is_conflict(self, event: Outgoing) -> bool:
        """Tell whether an event was refused as a copy with other content."""
        return not event.is_too_large and _place(event) in self._conflicts

    def rows(self, sql: str, **values: Any) -> list[Any]:
        """Return the rows of a statement, for what is no usage."""
        found: list[Any] = self.client.execute(sql, values)
        return found

    @cached_property
    def _letters(self) -> dict[Place, Letter]:
        rows = self.rows("SELECT partition, offset, event_index, reason, detail FROM dead_letters FINAL")
        return {Place(*row[:3]): Letter(*row[3:]) for row in rows}

    @cached_property
    def _accepted(self) -> set[Place]:
        return {Place(*row) for row in self.rows("SELECT partition, offset, event_index FROM ids FINAL")}

    @cached_property
    def _conflicts(self) -> set[Place]:
        return {Place(*row) for row in self.rows("SELECT partition, offset, event_index FROM conflicts FINAL")}


def whole_minutes(start: datetime, end: datetime) -> tuple[datetime, datetime, tuple[str, ...]]:
    """Widen a range of whole seconds to whole minutes; return also the seconds that are not in the range."""
    first = start.astimezone(UTC).replace(second=0)
    last = end.astimezone(UTC).replace(second=0)
    if last < end and start < end:
        last += timedelta(minutes=1)
    outside = [first + timedelta(seconds=n) for n in range(int((start - first).total_seconds()))]
    outside += [end + timedelta(seconds=n) for n in range(int((last - end).total_seconds()))]
    return first, last, tuple(map(second_text, outside))


def second_text(moment: datetime) -> str:
    """Write the second in which a moment lies, as the dimension `SECOND` has it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _place(event: Outgoing) -> Place:
    if event.place is None:
        raise Unknown(event.problem or "an event of the case was not sent")
    return event.place
