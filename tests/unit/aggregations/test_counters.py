"""Counters: increments that resets, holes, stepped clocks and voided readings do not falsify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallyman.aggregations import AGGREGATES, Figure, Proof, Span, Terms
from tallyman.meter import Of
from tests.unit.aggregations.made import Event, cells_of

COUNTER: Any = AGGREGATES["counter"]
SECOND_US = 1_000_000
MINUTES = [Span(n * 60 * SECOND_US, (n + 1) * 60 * SECOND_US) for n in range(6)]


def readings(*points: Any, resource: str = "eth0", first: int = 0) -> list[Event]:
    """Return (second, value) or (second, value, incarnation) as events."""
    return [
        Event(first + n, point[1], point[0] * SECOND_US, resource=resource, incarnation=(*point, None)[2])
        for n, point in enumerate(points)
    ]


def by_minute(made: Sequence[Event], **terms: Any) -> dict[int, Decimal]:
    found = COUNTER.derive_each(COUNTER.gather(cells_of(made, "counter")), MINUTES, Terms(**terms), lambda moment: "")
    return {index: figure.value for (index, _), figure in sorted(found.items())}


def total(made: Sequence[Event], **terms: Any) -> Figure | None:
    found: Figure | None = COUNTER.derive(
        COUNTER.gather(cells_of(made, "counter")), Span(0, 1_000 * SECOND_US), Terms(**terms)
    )
    return found


# By definition: each reading looks for itself at all that were taken before it.


def slowly(made: list[Event], believed_us: int) -> tuple[list[tuple[int, int]], Proof]:
    steps, resets, holes, decreases = [], 0, 0, 0
    for event in made:
        mine = [
            e for e in made
            if (e.resource, e.dimensions) == (event.resource, event.dimensions) and e.time_us < event.time_us
        ]  # fmt: skip
        if not mine:
            continue
        last = max(mine, key=lambda e: e.time_us)
        holes += event.time_us - last.time_us > believed_us
        same = [e.value for e in mine if e.incarnation == event.incarnation]
        if event.incarnation is None:
            resets += event.value < last.value
            steps.append((event.time_us, event.value - (last.value if event.value >= last.value else 0)))
        elif not same:
            resets += 1
            steps.append((event.time_us, event.value))
        else:
            decreases += event.value < max(same)
            steps.append((event.time_us, max(0, event.value - max(same))))
    return steps, Proof(resets, holes, decreases)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_increments_are_what_each_reading_finds_when_it_looks_back(data: st.DataObject) -> None:
    """Of several resources and incarnations, in any order of arrival; a meter names incarnations or does not."""
    names = data.draw(st.sampled_from([[None], ["boot-1", "boot-2", "boot-3"]]))
    times = data.draw(st.lists(st.integers(0, 400), max_size=25, unique=True))
    made = [
        Event(
            number, data.draw(st.integers(0, 20)), time * SECOND_US,
            resource=data.draw(st.sampled_from(["eth0", "eth1", None])), incarnation=data.draw(st.sampled_from(names)),
        )
        for number, time in enumerate(times)
    ]  # fmt: skip
    believed_us = 60 * SECOND_US
    steps, proof = slowly(made, believed_us)
    found = total(made, believed_for_us=believed_us)
    assert found == (Figure(Decimal(sum(amount for _, amount in steps)), len(made), proof) if steps else None)
    tiled = by_minute(made, believed_for_us=believed_us)
    for index, span in enumerate(MINUTES):
        mine = [amount for at_us, amount in steps if span.start_us <= at_us < span.end_us]
        assert tiled.get(index) == (sum(mine) if mine else None)


HOLED = readings((0, 50), (4, 55), (62, 65), (74, 66), (84, 70), (182, 105), (202, 108), (222, 200), (249, 202))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ("latest", [5, 4, 92, 2]),
        ("first", [5, 10, 35, 2]),
        ("sum", [5, 15, 130, 2]),
        ("max", [5, 10, 92, 2]),
        ("min", [5, 1, 3, 2]),
        ("count", [1, 3, 3, 1]),
        ("avg", [5, 5, "43.33333333333333333333333333", 2]),
        ("percentile", [5, 4, 35, 2]),
    ],
)
def test_a_minute_without_a_reading_has_no_row_and_what_was_counted_comes_later(of: Of, expected: list[Any]) -> None:
    assert by_minute(HOLED, of=of) == dict(zip((0, 1, 3, 4), map(Decimal, expected), strict=True))


# What Gnocchi publishes of a counter that is read every ten seconds, by the minute.
GROWING = readings(
    (0, 10), (70, 13), (80, 13), (90, 15), (100, 18), (110, 20), (120, 22), (130, 26), (140, 30), (150, 31), (160, 37),
    (170, 55), (180, 62), (190, 100), (200, 102), (210, 103), (220, 104), (230, 110),
)  # fmt: skip


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({"of": "percentile", "percentile": Fraction(95)}, [3, 15, "30.25"]),
        ({"of": "percentile", "percentile": Fraction(50)}, [2, 4, 4]),
        ({"of": "percentile", "percentile": Fraction(95), "factor": Fraction(1, 5)}, ["0.6", 3, "6.05"]),
        ({"of": "stddev"}, ["1.224744871391589049098642037", "6.210206652492867460413115117",
                            "14.35850502895989749030247244"]),
    ],
)  # fmt: skip
def test_a_counter_tells_at_which_speed_it_ran_most_of_the_time(terms: Any, expected: list[Any]) -> None:
    assert by_minute(GROWING, **terms) == dict(zip((1, 2, 3), map(Decimal, expected), strict=True))


def test_one_increment_has_no_deviation() -> None:
    assert total(readings((0, 1), (60, 5)), of="stddev") is None
    assert total(readings((0, 1), (60, 5), (120, 9)), of="stddev") == Figure(Decimal(0), 3, Proof())


def test_a_hole_is_told_but_nothing_is_lost_in_it() -> None:
    assert total(HOLED, believed_for_us=60 * SECOND_US) == Figure(Decimal(152), 9, Proof(holes=1))


def test_neighbours_may_be_as_far_apart_as_the_meter_says_and_no_further() -> None:
    made = readings((0, 1), (60, 2), (121, 3))
    assert total(made, believed_for_us=60 * SECOND_US) == Figure(Decimal(2), 3, Proof(holes=1))


def test_the_first_reading_of_a_counter_adds_nothing() -> None:
    assert total(readings((0, 10**12))) is None
    assert total([*readings((0, 10**12)), *readings((5, 7), (6, 9), resource="eth1", first=10)]) == Figure(
        Decimal(2), 3, Proof()
    )


def test_a_host_that_booted_again_counts_from_nothing() -> None:
    made = readings((0, 100, "boot-1"), (10, 150, "boot-1"), (20, 500, "boot-2"), (30, 510, "boot-2"))
    assert total(made) == Figure(Decimal(560), 4, Proof(resets=1))


def test_without_a_boot_id_only_a_lower_reading_is_a_reset() -> None:
    assert total(readings((0, 100), (10, 150), (20, 40), (30, 50))) == Figure(Decimal(100), 4, Proof(resets=1))


def test_after_a_clock_that_stepped_back_nothing_counts_twice() -> None:
    """Readings 100, 110, 120, 130 of one boot; the second and third were taken with a clock 25 s behind."""
    made = readings((50, 100, "boot-1"), (35, 110, "boot-1"), (45, 120, "boot-1"), (80, 130, "boot-1"))
    assert total(made) == Figure(Decimal(20), 4, Proof(decreases=1))


def test_a_late_reading_of_the_boot_before_belongs_to_that_boot() -> None:
    made = readings((0, 100, "boot-1"), (20, 5, "boot-2"), (25, 130, "boot-1"), (30, 9, "boot-2"))
    assert total(made) == Figure(Decimal(5 + 30 + 4), 4, Proof(resets=1))


def test_a_meter_that_begins_to_name_incarnations_bills_nothing_again() -> None:
    """New definitions say where the boot id stands: the counter went on, and nobody proved a reset."""
    made = readings((0, 10**12), (10, 10**12 + 5), (20, 10**12 + 7, "boot-1"), (30, 10**12 + 9, "boot-1"))
    assert total(made) == Figure(Decimal(9), 4, Proof())


def test_an_increment_belongs_to_the_minute_of_its_later_reading() -> None:
    assert by_minute(readings((50, 10), (70, 90))) == {1: 80}


def test_a_voided_reading_is_as_if_it_had_not_been() -> None:
    cells = cells_of(readings((0, 10), (10, 10**9), (20, 12)), "counter")
    void = cells[1]._replace(totals=replace(cells[1].totals, count=-1, sum=-(10**9)))
    found = COUNTER.derive(COUNTER.gather([*cells, void]), Span(0, 60 * SECOND_US), Terms())
    assert found == Figure(Decimal(2), 2, Proof())


def test_of_two_readings_at_one_instant_the_higher_one_counts_and_nothing_is_a_reset() -> None:
    """Each has an item of its own, so that either can be voided."""
    for made in (readings((0, 10), (60, 4), (60, 20)), readings((0, 10), (60, 20), (60, 4), first=1)):
        assert total(made) == Figure(Decimal(10), 3, Proof())
