"""What adds up cell by cell: sum, count, avg, min, max, latest, and the sum of bucket maxima."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

from tallyman.aggregations.base import Aggregate, Apart, Cell, Figure, Span, Terms, events_in
from tallyman.meter import Aggregation
from tallyman.usage import EMPTY, Totals, merge


class OfTotals(Aggregate[Totals]):
    """An aggregation whose answer is one field of the totals, or a quotient of two."""

    def empty(self) -> Totals:
        return EMPTY

    def of(self, cell: Cell) -> Totals:
        return cell.totals

    def merge(self, a: Totals, b: Totals) -> Totals:
        return merge(a, b)

    def derive(self, state: Totals, span: Span, terms: Terms) -> Figure | None:
        value = self.value(state, terms) if state.count else None
        return None if value is None else Figure(value, state.count)

    @abstractmethod
    def value(self, totals: Totals, terms: Terms) -> Decimal | None:
        """Return the answer that some totals give."""


class Sum(OfTotals):
    name: Aggregation = "sum"

    def value(self, totals: Totals, terms: Terms) -> Decimal:
        return terms.quantity(totals.sum, totals.count)


class Count(OfTotals):
    name: Aggregation = "count"
    zero_if_empty = True

    def value(self, totals: Totals, terms: Terms) -> Decimal:
        return terms.number_of(totals.count)


class Avg(OfTotals):
    name: Aggregation = "avg"

    def value(self, totals: Totals, terms: Terms) -> Decimal:
        return terms.quantity(Fraction(totals.sum, totals.count))


class Min(OfTotals):
    name: Aggregation = "min"

    def value(self, totals: Totals, terms: Terms) -> Decimal | None:
        return None if totals.min is None else terms.quantity(totals.min)


class Max(OfTotals):
    name: Aggregation = "max"

    def value(self, totals: Totals, terms: Terms) -> Decimal | None:
        return None if totals.max is None else terms.quantity(totals.max)


class Latest(OfTotals):
    """The reading with the largest (time, identity)."""

    name: Aggregation = "latest"

    def value(self, totals: Totals, terms: Terms) -> Decimal | None:
        return None if totals.latest is None else terms.quantity(totals.latest)


class SumOfMaxima(Apart[int]):
    """The largest value of each bucket, summed over the buckets of a window.

    Kept apart by the second in which a minute or bucket begins. A bucket that a window cuts counts in each of
    the two with its own part's maximum.
    """

    name: Aggregation = "sum_of_maxima"

    def key(self, cell: Cell) -> int:
        return cell.start_s

    def derive(self, state: Mapping[int, Totals], span: Span, terms: Terms) -> Figure | None:
        maxima: dict[int, int] = {}
        for start_s, totals in state.items():
            if totals.count > 0 and totals.max is not None:
                bucket = start_s if span.buckets is None else bisect_right(span.buckets, start_s)
                maxima[bucket] = max(totals.max, maxima.get(bucket, totals.max))
        if not maxima:
            return None
        return Figure(terms.quantity(sum(maxima.values()), len(maxima)), events_in(state))
