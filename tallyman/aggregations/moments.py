"""What aggregations share whose readings must be put in order of time: a level, a state, a counter.

Their rows hold one moment each, so nothing is lost before an answer is asked for; an answer may depend on what was
read before its window.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec

from tallyman.aggregations.base import Apart, Cell, Figure, Kept, Span, Terms, events_in
from tallyman.meter import Aggregation
from tallyman.usage import Totals

Group = TypeVar("Group", bound=Hashable)
_ITEM = msgspec.json.Decoder(list[str | None])


class Moment(NamedTuple):
    """Whose reading it is, and when it was taken (microseconds since 1970).

    `resource` is what has the level, state or counter, `incarnation` what changes when a counter starts again;
    None where a meter does not name them. `by` tells apart the events of one moment, `version` an amended one from what
    it was before.
    """

    subject: str
    dimensions: str
    time_us: int
    resource: str | None
    incarnation: str | None
    by: str = ""
    version: str = ""


Moments: TypeAlias = Mapping[Moment, Totals]


def moment_of(cell: Cell) -> Moment:
    """Return the moment that a cell is kept under."""
    time_us, resource, incarnation, *more = _ITEM.decode(cell.item)
    whose = [each or "" for each in more]
    return Moment(cell.subject, cell.dimensions, int(time_us or 0), resource, incarnation, *whose)


class ByMoment(Apart[Moment]):
    """Kept apart by the moment; one whose event was voided is not there any more.

    What takes a reading back tells no value of its own: it only makes the count 0.
    """

    kept: Kept = "by moment"

    def key(self, cell: Cell) -> Moment:
        return moment_of(cell)

    def told(self, cell: Cell) -> Totals:
        totals = cell.totals
        return totals if totals.count > 0 else Totals(totals.count, totals.sum)


class First(ByMoment):
    """The earliest reading; of several at one time, as with `latest`, the one with the largest identity."""

    name: Aggregation = "first"

    def derive(self, state: Moments, span: Span, terms: Terms) -> Figure | None:
        there = [totals for totals in state.values() if totals.count > 0 and totals.latest is not None]
        if not there:
            return None
        earliest_us = min(totals.latest_at[0] for totals in there)
        first = max((totals for totals in there if totals.latest_at[0] == earliest_us), key=lambda t: t.latest_at)
        return Figure(terms.quantity(first.latest or 0), events_in(state))


class Timeline(ByMoment):
    """An aggregation that follows readings through time.

    `derive` takes everything that is known until the window ends, however old.
    """

    def derive(self, state: Moments, span: Span, terms: Terms) -> Figure | None:
        return self.derive_each(state, (span,), terms, lambda moment: ()).get((0, ()))

    @abstractmethod
    def derive_each(
        self, state: Moments, spans: Sequence[Span], terms: Terms, group_of: Callable[[Moment], Group | None]
    ) -> Mapping[tuple[int, Group], Figure]:
        """Return the answers for many windows and groups, by the window's place and the group.

        Args:
            spans: Windows in order, each beginning where the one before it ends.
            group_of: The group that a moment counts for; None for none, though what follows may depend on it.
        """


def place_of(spans: Sequence[Span], starts: Sequence[int], time_us: int) -> int | None:
    """Return which of some adjoining windows an instant lies in; `starts` are their beginnings."""
    index = bisect_right(starts, time_us) - 1
    return index if index >= 0 and time_us < spans[index].end_us else None


def tally_events(
    state: Moments, spans: Sequence[Span], group_of: Callable[[Moment], Group | None]
) -> Tally[tuple[int, Group]]:
    """Count events by window and group."""
    starts = [span.start_us for span in spans]
    events: Tally[tuple[int, Group]] = Tally()
    for moment, totals in state.items():
        index, group = place_of(spans, starts, moment.time_us), group_of(moment)
        if index is not None and group is not None and totals.count:
            events[index, group] += totals.count
    return events
