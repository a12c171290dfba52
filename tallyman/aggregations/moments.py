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

from tallyman.aggregations.base import Apart, Cell, Figure, Kept, Span, Terms
from tallyman.usage import Totals

Group = TypeVar("Group", bound=Hashable)
_ITEM = msgspec.json.Decoder(tuple[str, str | None, str | None])


class Moment(NamedTuple):
    """Whose reading it is, and when it was taken (microseconds since 1970).

    `resource` is what has the level, state or counter, `incarnation` what changes when a counter starts again;
    None where a meter does not name them.
    """

    subject: str
    dimensions: str
    time_us: int
    resource: str | None
    incarnation: str | None


Moments: TypeAlias = Mapping[Moment, Totals]


def moment_of(cell: Cell) -> Moment:
    """Return the moment that a cell is kept under."""
    time_us, resource, incarnation = _ITEM.decode(cell.item)
    return Moment(cell.subject, cell.dimensions, int(time_us), resource, incarnation)


class Timeline(Apart[Moment]):
    """An aggregation that follows readings through time.

    `derive` takes everything that is known until the window ends, however old.
    """

    kept: Kept = "by moment"

    def key(self, cell: Cell) -> Moment:
        return moment_of(cell)

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
