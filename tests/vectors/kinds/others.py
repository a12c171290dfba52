"""`late`, `robustness` and `expression`: cases that are told in the words of the other kinds, or not offered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.vectors.kinds import http, meter, series, value
from tests.vectors.model import NotOffered, Plan, Vector

_ARRIVAL = ("arrival", "arrives", "arrived", "received", "received_at", "sent_at")
_TOTALS = ("rows", "after_each", "count", "sum", "avg", "min", "max", "latest", "unique_count")


def plan(vector: Vector) -> Plan:
    """Plan a case by what it has: points, a query with rows or totals, one value, or events that count or do not."""
    expected = vector.expected if isinstance(vector.expected, Mapping) else {}
    vector = replace(vector, events=_as_they_arrive(vector.events))
    if vector.events and all(isinstance(event, list) for event in vector.events):
        return series.plan(vector)
    if any(name in expected for name in _TOTALS):
        return meter.plan(vector)
    if len(vector.events) == 1 and "valueProperty" in vector.query:
        return value.plan(vector)
    if "value" in expected or "values" in expected:
        return meter.plan(vector)
    return http.plan_ingest(vector)


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
    ordered = sorted(events, key=lambda event: str(event.get(names[0]) or event.get("time")))
    return [{name: told for name, told in event.items() if name not in names} for event in ordered]
