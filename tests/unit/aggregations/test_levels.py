"""Levels and states over time: carried, believed, ended; checked against looking at every single microsecond."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallyman.aggregations import AGGREGATES, Figure, Moment, Span, Terms, Timeline
from tallyman.aggregations.exact import exact
from tallyman.meter import Aggregation
from tallyman.usage import Totals
from tests.unit.aggregations.made import Event, cells_of, events

HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000


def answers(name: Aggregation, made: Sequence[Event], terms: Terms, *spans: Span) -> dict[tuple[int, str], Figure]:
    """Return the figures by window and dimensions."""
    aggregate: Any = AGGREGATES[name]
    assert isinstance(aggregate, Timeline)
    state = aggregate.gather(cells_of(made, name))
    return dict(aggregate.derive_each(state, spans, terms, lambda moment: moment.dimensions))


def figure(name: Aggregation, made: Sequence[Event], span: Span, **terms: Any) -> Figure | None:
    aggregate: Any = AGGREGATES[name]
    found: Figure | None = aggregate.derive(aggregate.gather(cells_of(made, name)), span, Terms(**terms))
    return found


def readings(*points: tuple[int, int], **named: Any) -> list[Event]:
    """Return (time in hours, value) as events."""
    return [Event(n, value, hour * HOUR_US, **named) for n, (hour, value) in enumerate(points)]


# One microsecond after the other, by definition.


def level_at(name: str, made: list[Event], at_us: int, terms: Terms) -> dict[str, list[int]]:
    """Return the levels that hold in one microsecond, by the dimensions they count for."""
    if name == "time_weighted" and terms.level == "delta":
        names = {event.dimensions for event in made if event.time_us <= at_us}
        return {n: [sum(e.value for e in made if e.dimensions == n and e.time_us <= at_us)] for n in names}
    newest: dict[Any, Event] = {}
    for event in sorted(made, key=lambda event: (event.time_us, event.identity)):
        if event.time_us <= at_us:
            newest[event.resource, event.dimensions if name == "time_weighted" else ""] = event
    found: dict[str, list[int]] = {}
    for event in newest.values():
        if terms.believed_for_us is None or at_us < event.time_us + terms.believed_for_us:
            height = event.value if name == "time_weighted" else int(event.value > 0)
            found.setdefault(event.dimensions, []).append(height)
    return found


def slowly(name: str, made: list[Event], terms: Terms, spans: Sequence[Span]) -> dict[tuple[int, str], tuple[int, int]]:
    """Return level x microseconds and events by window and dimensions."""
    found: dict[tuple[int, str], tuple[int, int]] = {}
    for index, span in enumerate(spans):
        for at_us in range(span.start_us, span.end_us):
            if span.known_to_us is not None and at_us >= span.known_to_us:
                break
            for dimensions, heights in level_at(name, made, at_us, terms).items():
                area, _ = found.get((index, dimensions), (0, 0))
                if any(heights) or (index, dimensions) in found:
                    found[index, dimensions] = area + sum(heights), 0
        read = [event for event in made if span.start_us <= event.time_us < span.end_us]
        last = {
            (event.time_us, event.resource, event.dimensions): event
            for event in sorted(read, key=lambda event: event.identity)
        }
        telling = {event.dimensions for event in last.values() if name == "time_weighted" or event.value > 0}
        for event in read:
            if event.dimensions in telling or (index, event.dimensions) in found:
                area, count = found.get((index, event.dimensions), (0, 0))
                found[index, event.dimensions] = area, count + 1
    return found


TILES = (Span(10, 17), Span(17, 20), Span(20, 34))
SOME = events(st.integers(0, 36), st.integers(-2, 3))


@pytest.mark.parametrize("name", ["time_weighted", "lifecycle"])
@settings(max_examples=80, deadline=None)
@given(
    made=SOME,
    believed=st.one_of(st.none(), st.integers(1, 15)),
    known=st.one_of(st.none(), st.integers(5, 40)),
    level=st.sampled_from(["absolute", "delta"]),
)
def test_the_area_is_what_adding_up_every_microsecond_gives(
    name: Aggregation, made: list[Event], believed: int | None, known: int | None, level: Any
) -> None:
    terms = Terms(believed_for_us=None if level == "delta" else believed, level=level)
    spans = [replace(span, known_to_us=known) for span in TILES]
    found = answers(name, made, terms, *spans)
    expected = slowly(name, made, terms, spans)
    assert {place: (each.value, each.events) for place, each in found.items()} == {
        place: (exact(Fraction(area, 10**6)), count) for place, (area, count) in expected.items()
    }


@settings(max_examples=60, deadline=None)
@given(made=SOME, believed=st.one_of(st.none(), st.integers(1, 15)))
def test_windows_add_up_to_the_window_that_they_tile(made: list[Event], believed: int | None) -> None:
    terms = Terms(believed_for_us=believed)
    parts = answers("time_weighted", made, terms, *TILES)
    whole = answers("time_weighted", made, terms, Span(10, 34))
    for dimensions in {dimensions for _, dimensions in parts}:
        mine = [each for (_, name), each in parts.items() if name == dimensions]
        assert whole[0, dimensions].value == sum(each.value for each in mine)
        assert whole[0, dimensions].events == sum(each.events for each in mine)


# The cases that people ask about.

MARCH = Span(int(datetime(2023, 3, 1, tzinfo=UTC).timestamp()) * 10**6,
             int(datetime(2023, 4, 1, tzinfo=UTC).timestamp()) * 10**6)  # fmt: skip
APRIL = Span(MARCH.end_us, int(datetime(2023, 5, 1, tzinfo=UTC).timestamp()) * 10**6)
SEVEN = [(96, 2), (97, 3), (97.5, 1), (98, -4), (100, -2), (101, 10), (101.5, -10)]


def changes(start_us: int, *points: tuple[float, int]) -> list[Event]:
    return [Event(n, value, start_us + int(hour * HOUR_US)) for n, (hour, value) in enumerate(points)]


@pytest.mark.parametrize(
    ("points", "span", "expected"),
    [
        (SEVEN, MARCH, "0.0221774193548387096774193548"),
        ([(96, 1000)], MARCH, "870.9677419354838709677419355"),
        ([(-30, 1000), *SEVEN], MARCH, "1000.022177419354838709677419"),
        ([(96, 2500)], MARCH, "2177.419354838709677419354839"),
        ([(96, 2500), (31 * 24 + 72, -2000), (31 * 24 + 120, -200)], APRIL, "533.3333333333333333333333333"),
    ],
)
def test_a_level_built_from_changes_is_averaged_over_the_month(
    points: list[tuple[float, int]], span: Span, expected: str
) -> None:
    """The level goes on from month to month, from the first change ever."""
    found = figure("time_weighted", changes(MARCH.start_us, *points), span, level="delta", answer="average")
    assert found is not None
    assert abs(found.value - Decimal(expected)) < Decimal("1e-24")


def test_a_deleted_server_ran_six_hours_whatever_order_its_events_came_in() -> None:
    made = [Event(1, 0, 6 * HOUR_US, resource="vm-1"), Event(2, 1, 0, resource="vm-1")]
    assert figure("lifecycle", made, Span(0, DAY_US)) == Figure(Decimal(21_600), 2)
    assert figure("lifecycle", made, Span(0, DAY_US), factor=Fraction(1, 3600)) == Figure(Decimal(6), 2)


def test_a_day_without_an_event_has_the_level_that_is_carried_over_it() -> None:
    made = readings((0, 40), resource="vol-1")
    days = [Span(n * DAY_US, (n + 1) * DAY_US) for n in range(3)]
    found = answers("time_weighted", made, Terms(), *days)
    assert [(place[0], each.value, each.events) for place, each in sorted(found.items())] == [
        (n, 40 * 86_400, 1 if n == 0 else 0) for n in range(3)
    ]


def test_a_level_that_ended_leaves_no_rows_of_nothing_behind() -> None:
    """What is long gone would else show a 0 for every window until the end of time."""
    made = readings((0, 40), (30, 0))
    days = [Span(n * DAY_US, (n + 1) * DAY_US) for n in range(4)]
    found = answers("time_weighted", made, Terms(), *days)
    assert {place[0]: each.value for place, each in found.items()} == {0: 40 * 86_400, 1: 40 * 21_600}


def test_a_window_in_which_a_level_stays_at_nothing_says_so_if_it_was_read() -> None:
    assert figure("time_weighted", readings((1, 0)), Span(0, DAY_US)) == Figure(Decimal(0), 1)


def test_a_silent_level_is_believed_only_so_long() -> None:
    made = readings((0, 2), (5, 3))
    assert figure("time_weighted", made, Span(0, DAY_US), believed_for_us=2 * HOUR_US) == Figure(
        Decimal((2 * 2 + 3 * 2) * 3600), 2
    )


def test_a_level_is_not_carried_into_a_future_that_nobody_knows() -> None:
    """A question for the whole month in the middle of it gives what was so far."""
    made = readings((0, 10))
    span = Span(0, DAY_US, known_to_us=6 * HOUR_US)
    assert figure("time_weighted", made, span) == Figure(Decimal(10 * 6 * 3600), 1)
    assert figure("time_weighted", made, span, answer="average") == Figure(Decimal(10), 1)
    later = Span(DAY_US, 2 * DAY_US, known_to_us=6 * HOUR_US)
    assert figure("time_weighted", made, later) is None


def test_an_average_of_a_window_that_has_not_begun_is_none() -> None:
    made = readings((25, 10))
    span = Span(DAY_US, 2 * DAY_US, known_to_us=6 * HOUR_US)
    assert figure("time_weighted", made, span, answer="average") is None
    assert figure("time_weighted", made, span) == Figure(Decimal(0), 1)


def test_levels_of_several_resources_add_up() -> None:
    made = [*readings((0, 10), resource="vol-1"), Event(9, 5, 12 * HOUR_US, resource="vol-2")]
    assert figure("time_weighted", made, Span(0, DAY_US), answer="average") == Figure(Decimal("12.5"), 2)


def test_levels_that_cancel_out_are_told_as_nothing_not_left_out() -> None:
    made = [*readings((0, 5), resource="lent"), Event(9, -5, 0, resource="borrowed"), Event(10, 0, 40 * HOUR_US)]
    days = [Span(n * DAY_US, (n + 1) * DAY_US) for n in range(3)]
    found = answers("time_weighted", made, Terms(), *days)
    assert [(each.value, each.events) for _, each in sorted(found.items())] == [(0, 2), (0, 1), (0, 0)]


def test_a_resized_server_leaves_its_old_flavor() -> None:
    made = [
        Event(1, 1, 0, resource="vm-1", dimensions='{"flavor":"small"}'),
        Event(2, 1, 6 * HOUR_US, resource="vm-1", dimensions='{"flavor":"large"}'),
        Event(3, 0, 9 * HOUR_US, resource="vm-1", dimensions='{"flavor":"large"}'),
    ]
    found = answers("lifecycle", made, Terms(), Span(0, DAY_US))
    assert {name: each.value for (_, name), each in found.items()} == {
        '{"flavor":"small"}': 6 * 3600, '{"flavor":"large"}': 3 * 3600,
    }  # fmt: skip


def test_a_deletion_that_does_not_say_of_what_makes_no_row_of_its_own() -> None:
    made = [
        Event(1, 1, 0, resource="vm-1", dimensions='{"flavor":"small"}'),
        Event(2, 0, 6 * HOUR_US, resource="vm-1", dimensions='{"flavor":null}'),
    ]
    days = [Span(n * DAY_US, (n + 1) * DAY_US) for n in range(2)]
    found = answers("lifecycle", made, Terms(), *days)
    assert found == {(0, '{"flavor":"small"}'): Figure(Decimal(6 * 3600), 1)}


def test_a_server_that_is_deleted_at_midnight_has_no_row_for_the_new_day() -> None:
    made = [Event(1, 1, 18 * HOUR_US, resource="vm-1"), Event(2, 0, DAY_US, resource="vm-1")]
    days = [Span(n * DAY_US, (n + 1) * DAY_US) for n in range(2)]
    assert [place[0] for place in answers("lifecycle", made, Terms(), *days)] == [0]


def test_a_server_that_was_deleted_as_it_was_made_is_told_with_nothing() -> None:
    made = [
        Event(1, 1, HOUR_US, resource="vm-1", dimensions='{"flavor":"small"}'),
        Event(2, 0, HOUR_US, resource="vm-1", dimensions='{"flavor":null}'),
    ]
    assert answers("lifecycle", made, Terms(), Span(0, DAY_US)) == {(0, '{"flavor":"small"}'): Figure(Decimal(0), 1)}


def test_of_a_creation_and_a_deletion_at_one_instant_the_last_one_is_told() -> None:
    made = [Event(1, 1, HOUR_US, resource="vm-1"), Event(2, 0, HOUR_US, resource="vm-1")]
    assert figure("lifecycle", made, Span(0, DAY_US)) is None
    assert figure("lifecycle", made[::-1], Span(0, DAY_US)) is None


def test_what_a_filter_leaves_out_still_ends_what_it_lets_in() -> None:
    made = [
        Event(1, 1, 0, resource="vm-1", dimensions="small"),
        Event(2, 1, 6 * HOUR_US, resource="vm-1", dimensions="large"),
    ]
    aggregate: Any = AGGREGATES["lifecycle"]

    def only_small(moment: Moment) -> str | None:
        return "" if moment.dimensions == "small" else None

    state = aggregate.gather(cells_of(made, "lifecycle"))
    found = aggregate.derive_each(state, [Span(0, DAY_US)], Terms(), only_small)
    assert found == {(0, ""): Figure(Decimal(6 * 3600), 1)}


def test_two_devices_of_one_host_have_levels_of_their_own() -> None:
    """Of a level the series is part of what it belongs to: a host reports each of its disks."""
    made = [
        Event(1, 10, 0, resource="host-1", dimensions="sda"),
        Event(2, 20, HOUR_US, resource="host-1", dimensions="sdb"),
    ]
    found = answers("time_weighted", made, Terms(answer="average"), Span(HOUR_US, DAY_US))
    assert {name: each.value for (_, name), each in found.items()} == {"sda": 10, "sdb": 20}


def test_a_voided_reading_leaves_the_level_before_it() -> None:
    aggregate: Any = AGGREGATES["time_weighted"]
    cells = cells_of(readings((0, 10), (6, 99)), "time_weighted")
    void = cells[1]._replace(totals=replace(cells[1].totals, count=-1, sum=-99))
    found = aggregate.derive(aggregate.gather([*cells, void]), Span(0, DAY_US), Terms())
    assert found == Figure(Decimal(10 * 86_400), 1)


@pytest.mark.parametrize(("name", "rows"), [("time_weighted", 3), ("lifecycle", 2)])
def test_windows_in_which_nothing_holds_take_no_room(name: Aggregation, rows: int) -> None:
    """A month by minutes, in which a server of each of 20 tenants ran for two: some thousand tenants must fit, too."""
    aggregate = AGGREGATES[name]
    assert isinstance(aggregate, Timeline)
    state = {
        Moment(str(tenant), "{}", minute * 60_000_000, "r", None): Totals(1, latest=level, latest_at=(0, b""))
        for tenant in range(20)
        for minute, level in ((10, 1), (12, 0))
    }
    spans = [Span(minute * 60_000_000, (minute + 1) * 60_000_000) for minute in range(44_640)]
    tracemalloc.start()
    found = aggregate.derive_each(state, spans, Terms(), lambda moment: moment.subject)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == rows * 20
    assert peak < 5_000_000
