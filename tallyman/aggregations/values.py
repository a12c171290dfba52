"""What is counted value by value: how many distinct ones, which lies at a given share of them, how far they scatter."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from typing import TypeAlias

from tallyman.aggregations.base import Aggregate, Cell, Figure, Kept, Span, Terms
from tallyman.aggregations.exact import root
from tallyman.meter import Aggregation

Counted: TypeAlias = Mapping[str, int]  # how often each value was there
Numbers: TypeAlias = Sequence[tuple[int, int]]  # the numbers that were there, in order, and how often each was


class ByValue(Aggregate[Counted]):
    """Kept apart by the value; one whose events were all voided is not there any more."""

    kept: Kept = "by value"

    def empty(self) -> Counted:
        return {}

    def of(self, cell: Cell) -> Counted:
        return {cell.item: cell.totals.count}

    def merge(self, a: Counted, b: Counted) -> Counted:
        merged = dict(a)
        for item, count in b.items():
            merged[item] = merged.get(item, 0) + count
        return merged

    def add(self, state: Counted, cell: Cell) -> Counted:
        grown = state if isinstance(state, dict) else dict(state)
        grown[cell.item] = grown.get(cell.item, 0) + cell.totals.count
        return grown


class UniqueCount(ByValue):
    name: Aggregation = "unique_count"
    zero_if_empty = True

    def derive(self, state: Counted, span: Span, terms: Terms) -> Figure | None:
        distinct = sum(count > 0 for count in state.values())
        return Figure(terms.number_of(distinct), sum(state.values())) if distinct else None


class OfNumbers(ByValue):
    """An aggregation over numbers: an item is the scaled value."""

    def rescaled(self, cell: Cell, factor: int) -> Cell:
        return cell if factor == 1 else cell._replace(item=str(int(cell.item) * factor))


class Percentile(OfNumbers):
    """The value at a share of the ranks, interpolated linearly between the two closest ones.

    Rank (n - 1) x p / 100 of n values in order, from 0: the definition of numpy, R (type 7) and spreadsheets.
    """

    name: Aggregation = "percentile"

    def derive(self, state: Counted, span: Span, terms: Terms) -> Figure | None:
        counted = _counted(state)
        if not counted:
            return None
        return Figure(terms.quantity(at_share(counted, terms.percentile)), _how_many(counted))


class Stddev(OfNumbers):
    """The sample standard deviation (n - 1); one value has none."""

    name: Aggregation = "stddev"

    def derive(self, state: Counted, span: Span, terms: Terms) -> Figure | None:
        counted = _counted(state)
        scatter = deviation(counted, terms)
        return None if scatter is None else Figure(scatter, _how_many(counted))


def at_share(counted: Numbers, percentile: Fraction) -> int | Fraction:
    """Return what lies at a share of the ranks of some numbers, of which there is at least one."""
    upto = list(accumulate(count for _, count in counted))
    rank = (upto[-1] - 1) * percentile / 100
    below = rank.numerator // rank.denominator
    low = counted[bisect_right(upto, below)][0]
    high = counted[min(bisect_right(upto, below + 1), len(counted) - 1)][0]
    return low + (high - low) * (rank - below)


def deviation(counted: Numbers, terms: Terms) -> Decimal | None:
    """Return how far some scaled numbers scatter, as it is shown; None of fewer than two."""
    size = _how_many(counted)
    if size < 2:
        return None
    total = sum(value * count for value, count in counted)
    squares = sum(value * value * count for value, count in counted)
    variance = Fraction(size * squares - total * total, size * (size - 1))
    return terms.shown(Fraction(root(variance * (terms.factor / 10**terms.scale) ** 2)))


def _how_many(counted: Numbers) -> int:
    return sum(count for _, count in counted)


def _counted(state: Counted) -> Numbers:
    return sorted((int(item), count) for item, count in state.items() if count > 0)
