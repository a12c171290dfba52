"""`http`: what an interface takes in, and which questions it refuses.

What the log takes is judged behind any door, so events go to Kafka: a 2xx is an event that counts, a 4xx a dead letter
with its reason, and a question is refused by `read_usage` with a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from tallyman.errors import EventError
from tallyman.event import format_of
from tests.vectors.books import Books, Question
from tests.vectors.building import DEFAULTS, dotted, meter, raw_of, scale_of, wire
from tests.vectors.compare import instant
from tests.vectors.kinds.meter import check_refused
from tests.vectors.kinds.outcomes import check_dead, check_outcomes, error_of
from tests.vectors.model import Incomparable, Mismatch, NotOffered, Outgoing, Plan, Unknown, Vector
from tests.vectors.windows import WindowSize, named_size

_DOOR = "no HTTP interface yet: judged where its events and questions go, by the log and by read_usage"
# What a peer's sentence about a question is about, and the words of ours that are about the same.
_ABOUT = ((r"\bfrom\b|\bto\b|equal|before|after", "from"), (r"zone", "zone"), (r"window", "window"))
_ATTRIBUTES = ("specversion", "id", "source", "type", "subject", "time", "data")
_LEFT_OUT = ("missing", "without", "omit")
_NO_ZONE = re.compile(r"T[0-9:.]+$")


def plan(vector: Vector) -> Plan:
    """Plan an ingest or a question, whichever the case is about."""
    if "ingest" in str(vector.query.get("operation", "")) or vector.events:
        made = plan_ingest(vector)
        made.remarks = [_DOOR]
        return made
    return _plan_question(vector)


def _plan_question(vector: Vector) -> Plan:
    query, expected = vector.query, vector.expected
    start = instant(query.get("from") or DEFAULTS["time"])
    end = instant(query["to"]) if query.get("to") else start + timedelta(days=1)
    definition = meter(vector, aggregation="count")
    question = Question(meter=definition.meter, start=start, end=end, zone=str(query.get("windowTimeZone") or "UTC"),
                        size=_size(query), group_by=tuple(query.get("groupBy") or ()))  # fmt: skip

    def check(books: Books) -> str:
        if _status(expected) < 400:
            return f"{len(books.ask(question))} rows"
        told = check_refused(books, question)
        about = next((ours for pattern, ours in _ABOUT if re.search(pattern, str(error_of(expected)).lower())), "")
        if about not in told:
            raise Mismatch(f'expected a refusal for "{error_of(expected)}", got {told}')
        return told

    return Plan(meters=[definition], check=check, remarks=[_DOOR])


def _size(query: Mapping[str, Any]) -> WindowSize | None:
    """Return the windows that are asked for; of an unknown name as it is, for `read_usage` to judge."""
    name = query.get("windowSize")
    if not name:
        return None
    try:
        return named_size(str(name))
    except Unknown:
        return WindowSize(str(name))  # type: ignore[arg-type]


def _status(expected: Any) -> int:
    """Return an expected status; "2xx" is 200, and a refusal without a status 400."""
    if not isinstance(expected, Mapping):
        raise Incomparable(f"expected holds no status: {expected!r}")
    status = str(expected.get("status", "")).lower().replace("x", "0")
    if status.isdigit():
        return int(status)
    return 400 if expected.get("error") else 200


def plan_ingest(vector: Vector) -> Plan:
    """Send events of which a case tells only some fields."""
    events: list[Outgoing] = []
    for fields in vector.events:
        if not isinstance(fields, Mapping):
            raise Unknown(f"an event that is no object: {fields!r}")
        for _ in range(int(fields.get("repeat", 1))):
            events.append(_event(vector, fields, len(events)))
    sent = [event.wire for event in events if event.wire]
    datas = [event["data"] for event in sent if isinstance(event.get("data"), Mapping)]
    path = dotted(vector.query.get("valueProperty", "$.value"))
    valued = "valueProperty" in vector.query or any(path in data for data in datas)
    settings: dict[str, Any] = {"aggregation": "count"}
    if valued:
        settings = {"aggregation": "sum", "value": path, "scale": scale_of(sent, path)}
    many = len(events) > 1 or "batch" in str(vector.query.get("operation", ""))
    whole = all(event.wire for event in events)
    return Plan(
        meters=[meter(vector, event_type=_type(vector), **settings)],
        events=events,
        forms=("batch",) if many and whole else ("single",),
        check=lambda books: _check_ingest(books, vector, events),
    )


def _type(vector: Vector) -> str | None:
    return next((str(event["type"]) for event in vector.events if event.get("type")), None)


def _event(vector: Vector, fields: Mapping[str, Any], n: int) -> Outgoing:
    """Return an event; what the case does not tell is as it should be."""
    if raw := raw_of(fields):
        return raw
    known = {name: fields[name] for name in _ATTRIBUTES if name in fields}
    if "timestamp" in fields:  # of an interface that takes times without a zone for UTC
        text = fields["timestamp"]
        known["time"] = f"{text}Z" if isinstance(text, str) and _NO_ZONE.search(text) else text
    data = {"data": {"value": fields["value"]}} if "value" in fields else {}
    made = wire(vector, **{"id": f"e{n}"} | data | known)
    left_out = next((fields[name] for name in _LEFT_OUT if name in fields), ())
    for name in [left_out] if isinstance(left_out, str) else left_out:
        made.pop(name, None)
    event = Outgoing.of(made)
    event.content_type = str(fields.get("content_type", ""))
    if _is_batch(event.content_type):
        event.body = b"[" + event.body + b"]"
    return event


def _is_batch(content_type: str) -> bool:
    try:
        return format_of(content_type) == "batch"
    except EventError:
        return False


def _check_ingest(books: Books, vector: Vector, events: Sequence[Outgoing]) -> str:
    expected, limit = vector.expected, vector.query.get("limit")
    if limit is not None and len(events) > int(limit):
        raise NotOffered("a batch has no smaller limit than a record: 4 MiB and 65,536 events")
    status = _status(expected)
    if not events:
        raise NotOffered("a batch without events is no error: there is nothing in it that could be refused")
    if status >= 400:
        if counted := [event for event in events if books.is_accepted(event)]:
            raise Mismatch(f"expected a refusal, but {len(counted)} of {len(events)} count")
        return "; ".join(dict.fromkeys(check_dead(books, event, error_of(expected)) for event in events))
    told = check_outcomes(books, events, expected)
    if "status" in expected:
        letters = [letter for letter in map(books.letter, events) if letter]
        if letters and not told:
            raise Mismatch(f"expected {expected['status']}, got {letters[0].reason}: {letters[0].detail}")
        told = told or f"{sum(map(books.is_accepted, events))} of {len(events)} count"
    if not told:
        raise Incomparable(f"expected holds nothing to compare: {', '.join(expected)}")
    return told
