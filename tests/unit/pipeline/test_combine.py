"""Beam's `CombinePerKey` adds up what is stored as readers do: one `CombineFn` for each aggregation of the table."""

from __future__ import annotations

import random
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.combine import COMBINE
from tallyman.aggregations import AGGREGATES, Cell, Terms
from tallyman.meter import Aggregation
from tests.unit.aggregations.made import AGGREGATIONS, ANY_EVENTS, FIVE_MINUTES, MINUTE_US, Event, cells_of

TERMS = Terms(scale=3)


def answer(name: Aggregation, cells: list[Cell]) -> Any:
    aggregate: Any = AGGREGATES[name]
    return aggregate.derive(aggregate.gather(cells), FIVE_MINUTES, TERMS)


@pytest.mark.parametrize("name", AGGREGATIONS)
@settings(max_examples=15, deadline=None)
@given(made=ANY_EVENTS, rng=st.randoms())
def test_bundles_in_any_order_give_what_a_reader_derives(
    name: Aggregation, made: list[Event], rng: random.Random
) -> None:
    """Added one by one and many at once, and merged from bundles in any order."""
    cells, combine = cells_of(made, name), COMBINE[name]
    expected = answer(name, cells)
    rng.shuffle(cells)
    cut = rng.randrange(len(cells) + 1)
    bundles = [combine.add_inputs(combine.create_accumulator(), cells[:cut])]
    bundles += [combine.add_input(combine.create_accumulator(), cell) for cell in cells[cut:]]
    rng.shuffle(bundles)
    state: Any = combine.extract_output(combine.merge_accumulators(bundles))
    assert AGGREGATES[name].derive(state, FIVE_MINUTES, TERMS) == expected


def test_every_aggregation_is_combined_per_key_on_a_bounded_pipeline() -> None:
    """Accumulators travel between Beam's steps, also with integers beyond 64 bits and names beyond ASCII."""
    made = [
        Event(n, value, n * MINUTE_US, resource="Zoës vm", incarnation=f"boot-{n // 2}")
        for n, value in enumerate((3, 10**25, 3, 7))
    ]
    stored = [(name, cell) for name in AGGREGATIONS for cell in cells_of(made, name)]
    expected = [(name, answer(name, cells_of(made, name))) for name in AGGREGATIONS]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        cells = pipeline | beam.Create(stored)
        for name in AGGREGATIONS:
            answers = (
                cells
                | f"only {name}" >> beam.Filter(lambda keyed, name=name: keyed[0] == name)
                | f"add up {name}" >> beam.CombinePerKey(COMBINE[name])
                | f"answer {name}" >> beam.MapTuple(lambda n, s: (n, AGGREGATES[n].derive(s, FIVE_MINUTES, TERMS)))
            )
            assert_that(answers, equal_to([pair for pair in expected if pair[0] == name]), label=f"check {name}")
