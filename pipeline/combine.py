"""The algebra of usage as Beam `CombineFn`s, for bounded jobs on any runner.

`beam.CombinePerKey(UsageCombineFn())` totals readings (scaled value, time in microseconds, identity) of what is stored
under one key; many at once go through the same columns as the stream. `beam.CombinePerKey(COMBINE["percentile"])` adds
up what is stored to what an answer is derived from, as readers do: one for each aggregation, from the same table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import islice
from types import MappingProxyType
from typing import Any

import apache_beam as beam
import numpy as np

from pipeline.aggregate import EVERYTHING, Readings, reduce_readings
from tallyman.aggregations import AGGREGATES, Cell
from tallyman.meter import Aggregation
from tallyman.usage import EMPTY, Totals, merge

Element = tuple[int, int, bytes]
_COLUMNS_FROM = 64  # fewer readings are added quicker one by one


class UsageCombineFn(beam.CombineFn):
    """Accumulators are `Totals`; merging them is associative and commutative."""

    def create_accumulator(self) -> Totals:
        return EMPTY

    def add_input(self, accumulator: Totals, element: Element) -> Totals:
        value, time_us, identity = element
        return merge(accumulator, Totals(1, value, value, value, value, (time_us, identity)))

    def add_inputs(self, accumulator: Totals, elements: Iterable[Element]) -> Totals:
        rest = iter(elements)
        while batch := list(islice(rest, 100_000)):
            accumulator = merge(accumulator, total(batch))
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Totals]) -> Totals:
        result = EMPTY
        for accumulator in accumulators:
            result = merge(result, accumulator)
        return result

    def extract_output(self, accumulator: Totals) -> Totals:
        return accumulator


class CellCombineFn(beam.CombineFn):
    """Adds cells up; accumulators and outputs are the states of one aggregation, of which `derive` makes answers."""

    def __init__(self, aggregation: Aggregation) -> None:
        super().__init__()
        self._aggregation = aggregation  # the table is looked up where the work is done: it need not travel

    def create_accumulator(self) -> Any:
        return AGGREGATES[self._aggregation].empty()

    def add_input(self, accumulator: Any, element: Cell) -> Any:
        return AGGREGATES[self._aggregation].add(accumulator, element)

    def merge_accumulators(self, accumulators: Iterable[Any]) -> Any:
        aggregate = AGGREGATES[self._aggregation]
        return reduce(aggregate.merge, accumulators, aggregate.empty())

    def extract_output(self, accumulator: Any) -> Any:
        return accumulator


COMBINE: Mapping[Aggregation, CellCombineFn] = MappingProxyType({name: CellCombineFn(name) for name in AGGREGATES})


def total(elements: Sequence[Element]) -> Totals:
    """Total the readings of one key, by the columns of the streaming path when there are many."""
    if len(elements) < _COLUMNS_FROM:
        result = EMPTY
        for value, time_us, identity in elements:
            result = merge(result, Totals(1, value, value, value, value, (time_us, identity)))
        return result
    values, times, identities = zip(*elements, strict=True)
    words = np.frombuffer(b"".join(identities), ">u8").reshape(-1, 2).astype(np.uint64)
    columns = Readings(
        np.zeros(len(values), np.int64), _narrow(values), np.array(times, np.int64), words[:, 0], words[:, 1]
    )
    row = reduce_readings(columns, EVERYTHING)
    identity = row.by_high.astype(">u8").tobytes() + row.by_low.astype(">u8").tobytes()
    return Totals(int(row.count[0]), int(row.sum[0]), int(row.min[0]), int(row.max[0]), int(row.latest[0]),
                  (int(row.latest_us[0]), identity))  # fmt: skip


def _narrow(values: Sequence[int]) -> np.ndarray:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array(values, object)
