"""`value`: what one event counts for, or why it is dead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.vectors.books import Books
from tests.vectors.compare import RowOptions, check_number, check_rows
from tests.vectors.kinds import meter
from tests.vectors.kinds.meter import BLANK_REMARK, Going, blank_groups, go
from tests.vectors.kinds.outcomes import check_dead, error_of, is_refusal
from tests.vectors.model import FORMS, Incomparable, Mismatch, Plan, Vector

_ITEMS = "SELECT DISTINCT item FROM usage_booked WHERE meter = %(meter)s"


def plan(vector: Vector) -> Plan:
    """Send the event by itself; a case of several, or of rows, is a question to a meter."""
    if vector.events and (len(vector.events) > 1 or "rows" in vector.expected):
        return meter.plan(vector)
    if len(vector.events) != 1 or not isinstance(vector.expected, Mapping):
        raise Incomparable(f"expected one event and its value, got {len(vector.events)} and {vector.expected!r}")
    going = go(vector, vector.events, vector.query.get("aggregation", "SUM"))
    blank = blank_groups(list(going.meter.dimensions), going)
    expects_blank = any(text == "" and name in blank for name, text in _groups(vector.expected).items())
    return Plan(
        meters=[going.meter],
        events=going.events,
        forms=FORMS,
        check=lambda books: _check(books, vector, going),
        remarks=[BLANK_REMARK] if expects_blank else [],
    )


def _check_told_apart(books: Books, going: Going, wanted: str) -> str:
    """Make sure that the event counts as one, told apart from others by the text that the case expects."""
    items = {row[0] for row in books.rows(_ITEMS, meter=going.meter.meter)}
    if items != {f"={wanted}"} and str(len(items)) != wanted:
        raise Mismatch(f'expected one that is told apart by "{wanted}", got {", ".join(sorted(items)) or "none"}')
    return f"counted as {', '.join(sorted(items)) or 'nothing'}"


def _groups(expected: Mapping[str, Any]) -> Mapping[str, Any]:
    return expected.get("groupBy") or {}


def _check(books: Books, vector: Vector, going: Going) -> str:
    expected, (event,) = vector.expected, going.events
    is_dead = [bool(expected.get(name)) for name in ("quarantined", "rejected")]
    if is_refusal(expected) or any(is_dead):
        rows = books.ask(going.question)
        check_number("counted rows", sum(row.value != 0 for row in rows), 0)
        return check_dead(books, event, error_of(expected))
    question = replace(going.question, group_by=tuple(going.meter.dimensions) if "groupBy" in expected else ())
    rows = books.ask(question)
    if going.meter.aggregation == "unique_count" and isinstance(expected.get("value"), str):
        return _check_told_apart(books, going, expected["value"])
    if "value" in expected and expected["value"] is None:
        counted = [row for row in rows if row.value or going.meter.aggregation not in ("count", "unique_count")]
        check_rows(counted, [], RowOptions(vector.tolerance, (question.start, question.end)))
        return "no value"
    options = RowOptions(vector.tolerance, (question.start, question.end), blank_groups(question.group_by, going))
    check_rows(rows, [{"value": expected.get("value"), "groupBy": _groups(expected)}], options)
    return f"value {rows[0].value}"
