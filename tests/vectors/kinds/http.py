"""`http`: what an interface takes in, and which questions it refuses.

What the log takes is judged behind any door, so events go to Kafka: a 2xx is an event that counts, a 4xx a dead letter
with its reason, and a question is refused by `read_usage` with a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from tallyman.cli.times import parse_moment
from tallyman.errors import EventError, UsageQueryError
from tallyman.event import format_of
from tests.vectors.books import Books, Question
from tests.vectors.building import (
    DEFAULTS,
    aggregation,
    dotted,
    meter,
    raw_of,
    scale_of,
    time_text,
    type_of,
    wire,
    zone_of,
)
from tests.vectors.compare import RowOptions, check_rows, instant
from tests.vectors.json_text import read_json, write_json
from tests.vectors.kinds.meter import check_refused, conditions_of, dimensions_of, grouped_by, window_named
from tests.vectors.kinds.outcomes import INGESTED, check_dead, check_outcomes, error_of, status_of
from tests.vectors.model import Form, Incomparable, Mismatch, NotOffered, Outgoing, Plan, Unknown, Vector
from tests.vectors.windows import WindowSize, named_size

_DOOR = "no HTTP interface yet: judged where its events and questions go, by the log and by read_usage"
# What a peer's sentence about a question is about, and the words of ours that are about the same.
_ABOUT = (
    (r"\bfrom\b|\bto\b|equal|before|after", r"\bfrom\b|\bto\b"), (r"zone", "zone"), (r"window", "window"),
)  # fmt: skip
_ATTRIBUTES = ("specversion", "id", "source", "type", "subject", "time", "data")
_LEFT_OUT = ("missing", "without", "omit")


def plan(vector: Vector) -> Plan:
    """Plan an ingest or a question, whichever the case is about."""
    expected = vector.expected if isinstance(vector.expected, Mapping) else {}
    told = "limit" in vector.query or any(name in expected for name in INGESTED)
    if "ingest" in str(vector.query.get("operation", "")) or vector.events or told:
        made = plan_ingest(vector)
        made.remarks = [_DOOR]
        return made
    return _plan_question(vector)


def _plan_question(vector: Vector) -> Plan:
    query, expected = vector.query, vector.expected
    zone = zone_of(query)
    try:
        end = _typed("to", query["to"]) if query.get("to") else None
        usual = end - timedelta(days=1) if end else instant(DEFAULTS["time"])
        start = _typed("from", query["from"]) if query.get("from") else usual
    except UsageQueryError as error:
        return _refused(vector, str(error))
    # A name that is to be refused is one that the meter does not have.
    dimensions = {} if status_of(expected) >= 400 else dimensions_of(query)
    definition = meter(vector, aggregation="count", dimensions=dimensions)
    try:
        meter(vector, **aggregation(query.get("aggregation", "COUNT"), query))
    except (Unknown, NotOffered) as error:
        return _refused(vector, str(error))
    question = Question(
        meter=str(query["meter"]) if status_of(expected) == 404 and query.get("meter") else definition.meter,
        start=start,
        end=end or start + timedelta(days=1),
        zone=zone,
        size=_size(query, is_refused=status_of(expected) >= 400),
        group_by=grouped_by(query),
        as_told=status_of(expected) >= 400,
        **conditions_of(query),
    )

    def check(books: Books) -> str:
        if not {"status", "error"} & set(expected):
            raise Incomparable(f"expected holds nothing to compare: {', '.join(expected) or 'nothing'}")
        if status_of(expected) < 400:
            rows = books.ask(question)
            if "rows" in expected:
                check_rows(rows, expected["rows"], RowOptions(vector.tolerance, (question.start, question.end)))
            return f"{len(rows)} rows"
        return _about_the_same(expected, check_refused(books, question))

    return Plan(meters=[definition], check=check, remarks=[_DOOR])


def _typed(name: str, text: Any) -> datetime:
    """Read a time as the command line does, which refuses what is none.

    Raises:
        UsageQueryError: It means no instant.
    """
    return parse_moment(name, str(text), "UTC", datetime.now(UTC))


def _refused(vector: Vector, told: str) -> Plan:
    def check(books: Books) -> str:
        if status_of(vector.expected) < 400:
            raise Mismatch(f"expected an answer, got a refusal: {told}")
        return _about_the_same(vector.expected, f"refused: {told}")

    return Plan(check=check, remarks=[_DOOR])


def _about_the_same(expected: Any, told: str) -> str:
    """Return our refusal.

    Raises:
        Mismatch: It is about something else than the expected one.
    """
    about = next((ours for pattern, ours in _ABOUT if re.search(pattern, str(error_of(expected)).lower())), "")
    if not re.search(about, told):
        raise Mismatch(f'expected a refusal for "{error_of(expected)}", got {told}')
    return told


def _size(query: Mapping[str, Any], *, is_refused: bool) -> WindowSize | None:
    """Return the windows that are asked for; what is to be refused as it is, for `read_usage` to judge.

    Windows that are not ours can be put together of ours, but to `read_usage` their name means nothing.
    """
    name = window_named(query)
    if not name:
        return None
    as_told = WindowSize(str(name))  # type: ignore[arg-type]
    try:
        size = named_size(str(name))
    except Unknown:
        return as_told
    return size if size.ours or not is_refused else as_told


def plan_ingest(vector: Vector) -> Plan:
    """Send events of which a case tells only some fields."""
    events: list[Outgoing] = []
    for fields in vector.events:
        if not isinstance(fields, Mapping):
            raise Unknown(f"an event that is no object: {fields!r}")
        for _ in range(int(fields.get("repeat", 1))):
            events.append(_event(vector, fields, len(events)))
    sent = [event.wire for event in events if event.wire]
    kind = _type(vector)
    datas = [event["data"] for event in sent if isinstance(event.get("data"), Mapping)]
    path = dotted(vector.query.get("valueProperty", "$.value"))
    valued = "valueProperty" in vector.query or any(path in data for data in datas)
    settings: dict[str, Any] = {"aggregation": "count"}
    if valued:
        settings = {"aggregation": "sum", "value": path, "scale": scale_of(sent, path)}
    many = len(events) > 1 or "batch" in str(vector.query.get("operation", ""))
    whole = all(event.wire for event in events)
    return Plan(
        meters=[meter(vector, event_type=kind, **settings)],
        events=events,
        forms=_forms(vector, is_batch=many and whole),
        check=lambda books: _check_ingest(books, vector, events),
    )


def _forms(vector: Vector, *, is_batch: bool) -> Sequence[Form]:
    if any("headers" in event for event in vector.events):
        return ("binary",)
    return ("batch",) if is_batch else ("single",)


def _type(vector: Vector) -> str | None:
    told = (event.get("type") or _attributes(event).get("type") for event in vector.events)
    return type_of(vector).get("type") or next((str(kind) for kind in told if kind), None)


def _event(vector: Vector, fields: Mapping[str, Any], n: int) -> Outgoing:
    """Return an event; what the case does not tell is as it should be."""
    if isinstance(fields.get("headers"), Mapping):
        return _with_headers(vector, fields)
    if raw := raw_of(fields):
        return raw
    known = {name: fields[name] for name in _ATTRIBUTES if name in fields}
    if "timestamp" in fields:  # of an interface that takes times without a zone for UTC
        known["time"] = time_text(fields["timestamp"])
    told = next((fields[name] for name in _LEFT_OUT if name in fields), ())
    left_out = [told] if isinstance(told, str) else told
    has_values = any(isinstance(event, Mapping) and "value" in event for event in vector.events)
    usual = {"value": 1} if has_values and "value" not in left_out else {}
    data = {"data": {"value": fields["value"]} if "value" in fields else usual}
    made = wire(vector, **{"id": f"e{n}"} | type_of(vector) | data | known)
    for name in left_out:
        made.pop(name, None)
    event = Outgoing.of(made)
    event.content_type = str(fields.get("content_type", ""))
    if _is_batch(event.content_type):
        event.body = b"[" + event.body + b"]"
    return event


def _headers(fields: Mapping[str, Any]) -> dict[str, str]:
    told = fields.get("headers")
    named = told.items() if isinstance(told, Mapping) else ()
    return {str(name).lower().replace("_", "-"): str(value) for name, value in named}


def _attributes(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return an event's attributes as an HTTP client's headers have them: percent-encoded."""
    return {name[3:]: unquote(value) for name, value in _headers(fields).items() if name.startswith("ce-")}


def _with_headers(vector: Vector, fields: Mapping[str, Any]) -> Outgoing:
    """Return an event as an HTTP client sends it, in binary mode or as a structured event with its content type."""
    content_type, body = _headers(fields).get("content-type", ""), fields.get("body", fields.get("data"))
    if content_type.lower().startswith("application/cloudevents"):
        text = body.encode() if isinstance(body, str) else write_json(body)
        return Outgoing(body=text, content_type=content_type)
    attributes = _attributes(fields)
    made = wire(vector, **attributes, data=read_json(body) if isinstance(body, str) else body)
    for name in set(made) - set(attributes) - {"data"}:
        del made[name]
    return Outgoing.of(made)


def _is_batch(content_type: str) -> bool:
    try:
        return format_of(content_type) == "batch"
    except EventError:
        return False


def _check_ingest(books: Books, vector: Vector, events: Sequence[Outgoing]) -> str:
    expected, limit = vector.expected, vector.query.get("limit")
    status = status_of(expected)
    if limit is not None and len(events) > int(limit) and (status >= 400 or expected.get("accepted") == 0):
        raise NotOffered("a batch has no smaller limit than a record: 4 MiB and 65,536 events")
    if not events and status >= 400:
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
