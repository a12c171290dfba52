"""`late`, `robustness` and `expression`: cases that are told in the words of the other kinds, or not offered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.vectors.compare import instant
from tests.vectors.kinds import durability, http, levels, meter, series, value
from tests.vectors.model import NotOffered, Plan, Unknown, Vector

_ARRIVAL = (
    "arrival", "arrives", "arrived", "arrived_at", "arrival_time", "received", "received_at", "sent_at", "ingested_at",
)  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OF_ONE_EVENT = ("value", "groupBy", "error", "status", "quarantined")
_OVER_TIME = re.compile(r"(time|sum).?weighted|weighted.?sum", re.IGNORECASE)
_TOTALS = ("rows", "after_each", "count", "sum", "avg", "min", "max", "latest", "unique_count")


def plan(vector: Vector) -> Plan:
    """Plan a case by what it has: points, a query with rows or totals, one value, or events that count or do not."""
    expected = vector.expected if isinstance(vector.expected, Mapping) else {}
    vector = replace(vector, events=_as_they_arrive(vector.events))
    if vector.events and all(isinstance(event, list) for event in vector.events):
        return series.plan(vector)
    if any(name in expected for name in _TOTALS):
        return meter.plan(vector)
    if any(isinstance(event, Mapping) and {"count", "state"} <= set(event) for event in vector.events):
        return durability.plan(vector)
    if len(vector.events) == 1 and "valueProperty" in vector.query and any(name in expected for name in _OF_ONE_EVENT):
        return value.plan(vector)
    if "value" in expected or "values" in expected:
        return meter.plan(vector)
    return http.plan_ingest(vector)


def plan_meter(vector: Vector) -> Plan:
    """Plan a `meter` case, also one that asks for a level over time."""
    name = str(vector.query.get("aggregation", ""))
    return levels.plan(vector) if _OVER_TIME.search(name) else meter.plan(vector)


def plan_expression(vector: Vector) -> Plan:
    """Refuse: a meter reads one value."""

    def check(books: Any) -> str:
        raise NotOffered("a meter reads one value and converts it; computing with several belongs to the producer")

    return Plan(check=check)


def _as_they_arrive(events: Any) -> list[Any]:
    """Return events in the order in which they come in, without what says so."""
    names = [name for name in _ARRIVAL if any(isinstance(event, Mapping) and name in event for event in events)]
    if not names:
        return list(events)
    ordered = sorted(events, key=lambda event: _moment(event.get(names[0]) or event.get("time")))
    return [{name: told for name, told in event.items() if name not in names} for event in ordered]


def _moment(told: Any) -> tuple[datetime, Decimal, str]:
    """Return what arrivals are ordered by: instants, or bare numbers, or texts."""
    if isinstance(told, int | Decimal):
        return _EPOCH, Decimal(told), ""
    try:
        return instant(told), Decimal(0), ""
    except Unknown:
        return _EPOCH, Decimal(0), str(told)
