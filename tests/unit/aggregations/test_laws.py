"""Whoever adds what is stored, in which order and in how many parts: what is known at the end is the same."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallyman.aggregations import AGGREGATES, Cell, Terms
from tallyman.meter import BY_MOMENT, BY_VALUE, CORRECTABLE, Aggregation
from tallyman.usage import Totals
from tests.unit.aggregations.made import AGGREGATIONS, ANY_EVENTS, FIVE_MINUTES, Event, cells_of

TERMS = Terms(scale=3, percentile=Fraction(95), believed_for_us=90_000_000)
every_aggregation = pytest.mark.parametrize("name", AGGREGATIONS)


def voided(cells: list[Cell], name: Aggregation, rng: random.Random) -> list[Cell]:
    """Take some of the cells back, as a later booking does, where the meter can."""
    taken = [cell for cell in cells if rng.random() < 0.3] if name in CORRECTABLE else []
    return cells + [cell._replace(totals=voiding(cell.totals, name)) for cell in taken]


def voiding(read: Totals, name: Aggregation) -> Totals:
    """Return what takes one event back; where a row keeps a value, with the other sign, under the same identity."""
    if name not in BY_MOMENT:
        return Totals(-1, -read.sum)
    return Totals(-1, -read.sum, -(read.max or 0), -(read.min or 0), -(read.latest or 0), read.latest_at)


def test_the_table_has_every_aggregation_under_its_own_name() -> None:
    assert set(AGGREGATES) == set(get_args(Aggregation))
    assert all(aggregate.name == name for name, aggregate in AGGREGATES.items())


@every_aggregation
def test_rows_are_kept_apart_as_the_pipeline_keeps_them(name: Aggregation) -> None:
    kept = "by value" if name in BY_VALUE else "by moment" if name in BY_MOMENT else "together"
    assert AGGREGATES[name].kept == kept


@every_aggregation
@settings(max_examples=20, deadline=None)
@given(made=ANY_EVENTS, rng=st.randoms())
def test_merging_is_associative_and_commutative_and_knows_nothing(
    name: Aggregation, made: list[Event], rng: random.Random
) -> None:
    aggregate: Any = AGGREGATES[name]
    cells = voided(cells_of(made, name), name, rng)
    parts = [aggregate.gather(cells[n::3]) for n in range(3)]
    a, b, c = parts
    assert aggregate.merge(aggregate.merge(a, b), c) == aggregate.merge(a, aggregate.merge(b, c))
    assert aggregate.merge(a, b) == aggregate.merge(b, a)
    assert aggregate.merge(a, aggregate.empty()) == a == aggregate.merge(aggregate.empty(), a)
    assert parts == [aggregate.gather(cells[n::3]) for n in range(3)]  # merging changed none of them


@every_aggregation
@settings(max_examples=20, deadline=None)
@given(made=ANY_EVENTS, rng=st.randoms())
def test_an_answer_does_not_depend_on_how_what_is_stored_was_added_up(
    name: Aggregation, made: list[Event], rng: random.Random
) -> None:
    aggregate: Any = AGGREGATES[name]
    cells = voided(cells_of(made, name), name, rng)
    at_once = aggregate.gather(cells)
    rng.shuffle(cells)
    cut = rng.randrange(len(cells) + 1)
    halves = aggregate.merge(aggregate.gather(cells[:cut]), aggregate.gather(cells[cut:]))
    one_by_one = aggregate.empty()
    for cell in cells:
        one_by_one = aggregate.merge(one_by_one, aggregate.of(cell))
    answers = [aggregate.derive(state, FIVE_MINUTES, TERMS) for state in (at_once, halves, one_by_one)]
    assert answers[0] == answers[1] == answers[2]


@every_aggregation
def test_nothing_has_no_answer(name: Aggregation) -> None:
    """The one 0 row of an empty range is the question's, not the aggregation's."""
    aggregate: Any = AGGREGATES[name]
    assert aggregate.derive(aggregate.empty(), FIVE_MINUTES, TERMS) is None
    assert aggregate.zero_if_empty is (name in ("count", "unique_count"))


@pytest.mark.parametrize("name", [name for name in AGGREGATIONS if name not in ("lifecycle", "unique_count")])
@settings(max_examples=20, deadline=None)
@given(made=ANY_EVENTS)
def test_a_larger_scale_says_the_same(name: Aggregation, made: list[Event]) -> None:
    """A meter that got more digits reads what it stored before as what it meant then."""
    aggregate: Any = AGGREGATES[name]
    cells = cells_of(made, name)
    larger = [aggregate.rescaled(cell, 100) for cell in cells]
    before = aggregate.derive(aggregate.gather(cells), FIVE_MINUTES, TERMS)
    assert aggregate.derive(aggregate.gather(larger), FIVE_MINUTES, replace(TERMS, scale=5)) == before
