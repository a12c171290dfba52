"""What each kind of case sends and asks: one small module each, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.vectors.kinds import (
    arithmetic,
    corrections,
    durability,
    http,
    levels,
    lives,
    others,
    prices,
    series,
    sets,
    times,
    value,
)
from tests.vectors.model import Plan, Vector

KINDS: Mapping[str, Callable[[Vector], Plan]] = {
    "active_days": sets.plan_days,
    "bucketed": prices.plan,
    "convert": arithmetic.plan,
    "correction": corrections.plan,
    "durability": durability.plan,
    "expression": others.plan_expression,
    "http": http.plan,
    "late": others.plan,
    "lifecycle": lives.plan,
    "meter": others.plan_meter,
    "robustness": others.plan,
    "rounding": arithmetic.plan,
    "series": series.plan,
    "set": sets.plan_set,
    "time_weighted": levels.plan,
    "timestamp": times.plan_timestamp,
    "value": value.plan,
    "window": times.plan_window,
}
