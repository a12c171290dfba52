"""What adds up and what is counted by value: exact answers, checked against a plain reading of every event."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallyman.aggregations import AGGREGATES, Cell, Figure, Span, Terms, terms_of
from tallyman.aggregations.exact import exact, root
from tallyman.meter import Aggregation, Meter, parameters_of
from tallyman.usage import Totals
from tests.unit.aggregations.made import ANY_EVENTS, FIVE_MINUTES, MINUTE_US, Event, cells_of

DAY = Span(0, 86_400_000_000)


def answer(name: Aggregation, made: Sequence[Event], terms: Terms, span: Span = DAY) -> Figure | None:
    aggregate: Any = AGGREGATES[name]
    figure: Figure | None = aggregate.derive(aggregate.gather(cells_of(made, name)), span, terms)
    return figure


def of_values(name: Aggregation, values: Sequence[int], **terms: Any) -> Decimal | None:
    figure = answer(name, [Event(n, value, n) for n, value in enumerate(values)], Terms(**terms))
    return None if figure is None else figure.value


def plainly(name: str, made: list[Event], percentile: Fraction) -> Fraction | None:
    """Look at every event by itself."""
    values = sorted(event.value for event in made)
    if not values or (name == "stddev" and len(values) == 1):
        return None
    match name:
        case "sum":
            return Fraction(sum(values))
        case "count":
            return Fraction(len(values))
        case "avg":
            return Fraction(sum(values), len(values))
        case "min" | "max":
            return Fraction(values[0] if name == "min" else values[-1])
        case "latest":
            return Fraction(max(made, key=lambda event: (event.time_us, event.identity)).value)
        case "first":
            earliest = min(event.time_us for event in made)
            return Fraction(max((e for e in made if e.time_us == earliest), key=lambda event: event.identity).value)
        case "unique_count":
            return Fraction(len(set(values)))
        case "stddev":
            return statistics.variance([Fraction(value) for value in values])  # of which the root is shown
        case "percentile":
            rank = (len(values) - 1) * percentile / 100
            below, above = values[int(rank)], values[min(int(rank) + 1, len(values) - 1)]
            return below + (above - below) * (rank - int(rank))
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name", ["sum", "count", "avg", "min", "max", "latest", "first", "unique_count", "stddev", "percentile"]
)
@settings(max_examples=40, deadline=None)
@given(made=ANY_EVENTS, percentile=st.fractions(0, 100, max_denominator=10))
def test_the_answer_is_what_a_plain_look_at_every_event_gives(
    name: Aggregation, made: list[Event], percentile: Fraction
) -> None:
    found = answer(name, made, Terms(percentile=percentile))
    expected = plainly(name, made, percentile)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.events == len(made)
    if name == "stddev":
        assert found.value == root(expected)
    else:
        assert found.value == exact(expected)


@settings(max_examples=40, deadline=None)
@given(made=ANY_EVENTS, cuts=st.sets(st.integers(1, 4)))
def test_the_maximum_of_each_bucket_is_summed(made: list[Event], cuts: set[int]) -> None:
    buckets = [0, *sorted(cuts)]
    expected = 0
    for first, end in zip(buckets, [*buckets[1:], 6], strict=True):
        mine = [event.value for event in made if first <= event.time_us // MINUTE_US < end]
        expected += max(mine, default=0)
    span = Span(0, FIVE_MINUTES.end_us, tuple(60 * minute for minute in buckets))
    found = answer("sum_of_maxima", made, Terms(), span)
    assert (found and found.value) == (Decimal(expected) if made else None)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("percentile", [2, 3, 3, 5, 5], "3.48"),
        ("percentile", [8, 11, 22, 10, 42, 9], "10.8"),
        ("percentile", [4, 2], "3.12"),
        ("stddev", [2, 3, 3, 5, 5], "1.341640786499873817845504201"),
        ("stddev", [4, 2], "1.414213562373095048801688724"),
        ("stddev", [3, 6, 5], "1.527525231651946668862682398"),
        ("stddev", [8, 11, 22, 10, 42, 9], "13.26649916142159939645973095"),
        ("stddev", [1, 5], "2.828427124746190097603377448"),
        ("stddev", [1, 1], "0"),
    ],
)
def test_figures_that_other_systems_publish(name: Aggregation, values: list[int], expected: str) -> None:
    """Of 56 % and of samples; the published ones are floats, ours carry 28 digits."""
    assert of_values(name, values, percentile=Fraction(56)) == Decimal(expected)


@pytest.mark.parametrize(("percentile", "expected"), [(0, 1), (50, "2.5"), (100, 4), ("99.9", "3.997")])
def test_a_percentile_may_be_any_number_from_the_least_to_the_largest(percentile: str, expected: Any) -> None:
    assert of_values("percentile", [4, 1, 3, 2], percentile=Fraction(percentile)) == Decimal(expected)


def test_one_value_has_no_deviation_but_a_percentile() -> None:
    assert of_values("stddev", [7]) is None
    assert of_values("percentile", [7], percentile=Fraction(99)) == 7


def test_a_distinct_value_whose_events_were_all_voided_is_not_counted() -> None:
    """Nor is one that was taken back in what is read, and counted in what is not."""
    aggregate: Any = AGGREGATES["unique_count"]
    told = (("=a", 2), ("=b", 1), ("=a", -1), ("=b", -1), ("=c", -1))
    cells = [Cell("Zoë", "{}", 0, item, Totals(count)) for item, count in told]
    assert aggregate.derive(aggregate.gather(cells), DAY, Terms()) == Figure(Decimal(1), 0)


def test_the_first_reading_that_was_voided_leaves_the_second() -> None:
    """The taking back may lie in a later booking, and tells no value of its own."""
    aggregate: Any = AGGREGATES["first"]
    cells = cells_of([Event(1, 5, 100), Event(2, 7, 200)], "first")
    void = cells[0]._replace(totals=Totals(-1, -5, -5, -5, -5, cells[0].totals.latest_at))
    for order in ([*cells, void], [void, *cells]):
        assert aggregate.derive(aggregate.gather(order), DAY, Terms()) == Figure(Decimal(7), 1)


def test_an_amended_event_counts_as_what_it_is_now() -> None:
    """The pipeline keeps it beside what it was, under a version of its own."""
    aggregate: Any = AGGREGATES["first"]
    (was,) = cells_of([Event(1, 5, 100)], "first")
    void = was._replace(totals=Totals(-1, -5, -5, -5, -5, was.totals.latest_at))
    now = was._replace(item=was.item.replace("]", ',"1"]'), totals=Totals(1, 9, 9, 9, 9, was.totals.latest_at))
    assert aggregate.derive(aggregate.gather([void, now, was]), DAY, Terms()) == Figure(Decimal(9), 1)


def test_an_average_is_exact_where_it_ends_and_else_carries_28_digits() -> None:
    assert of_values("avg", [1, 2]) == Decimal("1.5")
    assert of_values("avg", [1, 1, 0]) == Decimal("0.6666666666666666666666666667")
    huge = [10**30 + 1, 10**30]
    assert of_values("avg", huge) == Decimal("1000000000000000000000000000000.5")


@pytest.mark.parametrize(
    ("value", "factor", "expected"),
    [
        (3, "2/3", "2"),
        (1, "2/3", "0.6666666666666666666666666667"),
        (5, "1/1073741824", "0.000000004656612873077392578125"),
        (7200, "1/3600", "2"),
    ],
)
def test_a_unit_is_converted_by_an_exact_fraction(value: int, factor: str, expected: str) -> None:
    for name in ("sum", "max", "first", "percentile", "avg"):
        assert of_values(name, [value], factor=Fraction(factor)) == Decimal(expected)
    assert of_values("stddev", [value, -value], factor=Fraction(factor)) == root(2 * (value * Fraction(factor)) ** 2)


def test_a_count_is_converted_too_and_has_no_scale() -> None:
    assert of_values("count", [5, 5, 5], factor=Fraction(2, 3), scale=9) == 2
    assert of_values("unique_count", [5, 5, 5], factor=Fraction(1, 2), scale=9) == Decimal("0.5")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sum", "106.8"), ("avg", "35.6"), ("min", "33.8"), ("max", "37.4"), ("latest", "37.4"), ("first", "33.8"),
     ("percentile", "35.6"), ("sum_of_maxima", "37.4"), ("count", "5.4")],
)  # fmt: skip
def test_what_each_value_is_more_by_is_added_once_for_each_that_is_summed(name: Aggregation, expected: str) -> None:
    """1, 2 and 3 degrees Celsius are 33.8, 35.6 and 37.4 degrees Fahrenheit."""
    terms: dict[str, Any] = {"factor": Fraction("1.8"), "offset": Fraction(32)}
    assert of_values(name, [1, 2, 3], **terms) == Decimal(expected)


@pytest.mark.parametrize(
    ("value", "how", "digits", "expected"),
    [
        (123_456, "nearest", 0, "123"), (123_456, "down", 0, "123"), (123_456, "up", 0, "124"),
        (123_456, "down", -2, "100"), (123_456, "up", -2, "200"), (123_456, "nearest", 2, "123.46"),
        (2_500, "nearest", 0, "3"), (-2_500, "nearest", 0, "-3"), (-2_500, "up", 0, "-2"), (-2_500, "down", 0, "-3"),
        (0, "up", 0, "0"), (1, "exact", 0, "0.001"),
    ],
)  # fmt: skip
def test_an_answer_is_rounded_last_of_all(value: int, how: str, digits: int, expected: str) -> None:
    for name in ("sum", "max", "first", "percentile", "avg"):
        assert of_values(name, [value], scale=3, rounding=how, digits=digits) == Decimal(expected)


def test_a_conversion_comes_before_the_rounding_and_a_fraction_is_never_rounded_twice() -> None:
    assert of_values("sum", [99], scale=1, factor=Fraction(10), rounding="up") == 99
    assert of_values("avg", [4, 5], rounding="nearest") == 5
    assert of_values("avg", [1, 0, 0], factor=Fraction(3), rounding="up") == 1
    assert of_values("stddev", [1, 5], rounding="down", digits=2) == Decimal("2.82")
    assert of_values("count", [7, 7, 7], factor=Fraction(1, 2), rounding="up") == 2


def test_no_digit_is_lost_or_added_whatever_the_callers_decimal_context() -> None:
    with localcontext(prec=3):
        assert of_values("sum", [10**40 + 1], scale=9) == Decimal("10000000000000000000000000000000.000000001")
        assert of_values("avg", [2, 0, 0]) == Decimal("0.6666666666666666666666666667")
        assert of_values("stddev", [1, 5]) == Decimal("2.828427124746190097603377448")


def test_what_a_meter_says_of_itself_is_what_its_reader_knows() -> None:
    meter = Meter(
        meter="m", event_type="t", aggregation="time_weighted", level="absolute", answer="average", multiply_by="1/3600"
    )
    assert terms_of(parameters_of(meter), 4) == Terms(scale=4, factor=Fraction(1, 3600), answer="average")
    assert terms_of("", 9) == Terms(scale=9)
    assert terms_of('{"believed_for_s":"1500000e-6","of":"max"}', 0) == Terms(believed_for_us=1_500_000, of="max")
    assert terms_of('{"percentile":"99.9"}', 0).percentile == Fraction(999, 10)
    assert terms_of('{"bucket":"day"}', 0).bucket == "day"
    priced = Meter(meter="m", event_type="t", aggregation="sum", add="-1/2", rounding="up", digits=-1)
    assert terms_of(parameters_of(priced), 0) == Terms(offset=Fraction(-1, 2), rounding="up", digits=-1)
    speed = Meter(meter="m", event_type="t", aggregation="counter", of="percentile", percentile="95")
    assert terms_of(parameters_of(speed), 0) == Terms(of="percentile", percentile=Fraction(95))
    assert parameters_of(replace(speed, of="max", percentile="")) == '{"of":"max"}'
    odd = replace(speed, percentile=" 9__5\n")  # as no file may say it any more, and some definitions in force do
    assert terms_of(parameters_of(odd), 0).percentile == 95
