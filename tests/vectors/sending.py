"""Pack events into Kafka records, in each form that producers use, and remember where each event came to stand."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any

from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from collectors.arrow import Reading, encode_readings
from tallyman.errors import EventError
from tallyman.event import ARROW, BATCH, COLLECTOR, CONTENT_TYPE, CORRECTS, EPOCH, LINES, SEQUENCE, SINGLE, Series
from tallyman.event import parse_time as microseconds
from tallyman.kafka import make_producer
from tallyman.meter import parse_quantity
from tests.vectors.json_text import write_json
from tests.vectors.model import Form, Outgoing, Place, Wire

Headers = list[tuple[str, bytes]]
_EVENTS_PER_RECORD = 500
_BYTES_PER_RECORD = 1_000_000
_ARROW_SCALE = 9
_ATTRIBUTES = ("specversion", "id", "source", "type", "subject", "time")


@dataclass(frozen=True, slots=True)
class Record:
    """A record, and the events in it in order."""

    value: bytes
    headers: Headers
    events: Sequence[Outgoing]


def pack(events: Sequence[Outgoing], form: Form) -> Iterator[Record]:
    """Yield the records that carry some events, in order; what has a content type of its own goes by itself."""
    for alone, run in groupby(events, key=_goes_alone):
        members = list(run)
        if alone or form == "single":
            yield from map(_single, members)
        elif form == "binary":
            yield from (_binary(event) or _single(event) for event in members)
        elif form == "arrow":
            yield _arrow(members) or _lines(members)
        else:
            yield from map(_batch if form == "batch" else _lines, _parts(members))


def _goes_alone(event: Outgoing) -> bool:
    return bool(event.content_type or event.corrects or len(event.body) > _BYTES_PER_RECORD)


def _parts(events: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """Yield runs of events that fit into a record."""
    first = size = 0
    for n, event in enumerate(events):
        if n > first and (n - first == _EVENTS_PER_RECORD or size + len(event.body) > _BYTES_PER_RECORD):
            yield events[first:n]
            first, size = n, 0
        size += len(event.body)
    if events:
        yield events[first:]


def send(kafka: str, topic: str, records: Sequence[Record]) -> None:
    """Append records in order; when this returns each event knows its place, or why it was not sent."""
    producer = make_producer((kafka,))
    try:
        told = [_begin(producer, topic, record) for record in records]
        for record, future in zip(records, told, strict=True):
            _finish(record, future)
    finally:
        producer.close(timeout=5)


def _begin(producer: Any, topic: str, record: Record) -> Any:
    try:
        return producer.send(topic, value=record.value, headers=record.headers, partition=0)
    except KafkaError as error:
        return error


def _finish(record: Record, future: Any) -> None:
    try:
        if isinstance(future, KafkaError):
            raise future
        at = future.get(timeout=30)
    except KafkaError as error:
        for event in record.events:
            event.problem = f"the log does not take it: {error}"
            event.is_too_large = isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError)
        return
    for index, event in enumerate(record.events):
        event.place = Place(at.partition, at.offset, index)


def _single(event: Outgoing) -> Record:
    headers = [(CONTENT_TYPE, (event.content_type or SINGLE).encode())]
    if event.corrects:
        headers.append((CORRECTS, str(event.corrects).encode()))
    return Record(event.body, headers, [event])


def _batch(events: Sequence[Outgoing]) -> Record:
    return Record(b"[" + b",".join(event.body for event in events) + b"]", [(CONTENT_TYPE, BATCH.encode())], events)


def _lines(events: Sequence[Outgoing]) -> Record:
    return Record(b"\n".join(event.body for event in events), [(CONTENT_TYPE, LINES.encode())], events)


def _binary(event: Outgoing) -> Record | None:
    """Return a record in CloudEvents' binary mode, None for an event that it cannot carry."""
    wire = event.wire or {}
    texts = all(isinstance(wire.get(name), str) and wire[name] for name in _ATTRIBUTES)
    if not texts or set(wire) - {*_ATTRIBUTES, "data"}:
        return None
    headers = [(f"ce_{name}", wire[name].encode()) for name in _ATTRIBUTES]
    return Record(write_json(wire.get("data", {})), [(CONTENT_TYPE, b"application/json"), *headers], [event])


def _arrow(events: Sequence[Outgoing]) -> Record | None:
    """Return a numbered batch as our own collectors send it, None where the events are not of its shape."""
    try:
        batch = encode_readings([_reading(event.wire or {}) for event in events])
    except (EventError, KeyError, TypeError, ValueError):
        return None
    if len({(event.wire or {}).get("id") for event in events}) < len(events):
        return None  # a row has no id by which a copy would be found
    headers = [(CONTENT_TYPE, ARROW), (COLLECTOR, "vectors"), (EPOCH, uuid.uuid4().hex), (SEQUENCE, "1")]
    return Record(batch, [(name, text.encode()) for name, text in headers], events)


def _reading(wire: Wire) -> Reading:
    data: Mapping[str, Any] = dict(wire["data"])
    value = data["value"]
    names = {name: text for name, text in data.items() if name != "value"}
    if not all(text is None or isinstance(text, str) for text in names.values()):
        raise ValueError("only texts can be dimensions of an Arrow series")
    if not isinstance(value, int | Decimal):
        raise ValueError("only numbers can be values of an Arrow row")
    series = Series(type=wire["type"], subject=wire["subject"], scale=_ARROW_SCALE, data=names)
    time_us, scaled = microseconds(wire["time"]), parse_quantity(value, _ARROW_SCALE)
    return Reading(series, time_us, time_us, scaled)
