"""All aggregations in one table: how what is stored is merged, and how an answer is derived from it, exactly.

Everyone who adds up usage goes by this table: readers, Beam's `CombinePerKey` and audits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tallyman.aggregations.base import Aggregate, Cell, Figure, Proof, Span, Terms, terms_of
from tallyman.aggregations.counters import Counter
from tallyman.aggregations.levels import Lifecycle, TimeWeighted
from tallyman.aggregations.moments import First, Moment, Timeline, moment_of
from tallyman.aggregations.sums import Avg, Count, Latest, Max, Min, Sum, SumOfMaxima
from tallyman.aggregations.values import Percentile, Stddev, UniqueCount
from tallyman.meter import Aggregation

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "Cell",
    "Figure",
    "Moment",
    "Proof",
    "Span",
    "Terms",
    "Timeline",
    "moment_of",
    "terms_of",
]

AGGREGATES: Mapping[Aggregation, Aggregate[Any]] = MappingProxyType(
    {
        "sum": Sum(),
        "count": Count(),
        "avg": Avg(),
        "min": Min(),
        "max": Max(),
        "latest": Latest(),
        "first": First(),
        "unique_count": UniqueCount(),
        "percentile": Percentile(),
        "stddev": Stddev(),
        "sum_of_maxima": SumOfMaxima(),
        "time_weighted": TimeWeighted(),
        "lifecycle": Lifecycle(),
        "counter": Counter(),
    }
)
