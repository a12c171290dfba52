"""Events and what is stored of them, made for tests: few values, few moments, so that much falls together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import msgspec
from hypothesis import strategies as st

from tallyman.aggregations import AGGREGATES, Cell, Span
from tallyman.meter import BY_MOMENT, BY_VALUE, Aggregation
from tallyman.usage import EMPTY, Totals, merge

MINUTE_US = 60_000_000


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `number` stands for its identity."""

    number: int
    value: int
    time_us: int = 0
    subject: str = "Zoë"
    dimensions: str = "{}"
    resource: str | None = None
    incarnation: str | None = None

    @property
    def identity(self) -> bytes:
        return self.number.to_bytes(16, "big")


def cell_of(event: Event, aggregation: Aggregation) -> Cell:
    """Return what one event leaves behind, as the pipeline keeps it."""
    item = ""
    if aggregation in BY_MOMENT:
        whose = [f"{event.number:x}"] if event.number % 3 else []  # rows of numbered batches do not say
        item = msgspec.json.encode([str(event.time_us), event.resource, event.incarnation, *whose]).decode()
    elif aggregation in BY_VALUE:
        item = f"={event.value}" if aggregation == "unique_count" else str(event.value)
    value = event.value
    totals = Totals(1, value, value, value, value, (event.time_us, event.identity))
    return Cell(event.subject, event.dimensions, event.time_us // MINUTE_US * 60, item, totals)


def cells_of(events: Sequence[Event], aggregation: Aggregation) -> list[Cell]:
    """Return what some events leave behind: one cell for each series, minute and item."""
    stored: dict[tuple[str, str, int, str], list[Cell]] = {}
    for event in events:
        cell = cell_of(event, aggregation)
        stored.setdefault((cell.subject, cell.dimensions, cell.start_s, cell.item), []).append(cell)
    return [Cell(*key, reduce(merge, (cell.totals for cell in cells), EMPTY)) for key, cells in stored.items()]


def events(times_us: st.SearchStrategy[int], values: st.SearchStrategy[int]) -> st.SearchStrategy[list[Event]]:
    """Return lists of events with different identities."""
    made = st.builds(
        Event,
        number=st.integers(0, 2**64),
        value=values,
        time_us=times_us,
        dimensions=st.sampled_from(['{"az":"nord"}', '{"az":null}']),
        resource=st.sampled_from(["vm-1", "vm-2", None]),
        incarnation=st.none(),
    )
    return st.lists(made, max_size=25, unique_by=lambda event: event.number)


ANY_EVENTS = events(st.integers(0, 5 * MINUTE_US), st.one_of(st.integers(-3, 3), st.integers(-(10**30), 10**30)))
AGGREGATIONS = sorted(AGGREGATES)
FIVE_MINUTES = Span(0, 5 * MINUTE_US + 1, None)
