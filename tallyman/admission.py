"""Make of a dead letter the record that lets it in again: judged before, at home, with the identity that it had."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from tallyman.binary import compose, gather_attributes, is_binary
from tallyman.dead_letters import DeadLetter
from tallyman.errors import EventError
from tallyman.event import (
    ADMITTED,
    COLLECTOR,
    CONTENT_TYPE,
    CORRECTS,
    EPOCH,
    INDEX,
    MAX_RECORD_BYTES,
    SEQUENCE,
    SINGLE,
    decode_event,
    format_of,
    home_key,
    split_record,
)
from tallyman.headers import Headers, RecordKind, kind_of
from tallyman.kafka import TopicInfo, partition_of
from tallyman.mend import CONTENT_TYPE_CHANGE, mend

_JUDGED = (ADMITTED, b"1")


@dataclass(frozen=True, slots=True)
class Admission:
    """A record that lets a dead letter in again; `events` of them are in it, of this type if it is one."""

    partition: int
    key: bytes | None
    value: bytes
    headers: Headers
    events: int = 1
    type: str = ""


def admit(
    letter: DeadLetter, changes: Mapping[str, bytes], topic: TopicInfo, before: Collection[str] = ()
) -> Admission:
    """Return the record for a dead letter, mended.

    The same letter always gives the same record, so that sending it again changes nothing.

    Args:
        before: The ids of the topics that this one follows.

    Raises:
        EventError: It cannot be let in like this; why, and what would help.
    """
    if letter.topic_id != topic.topic_id and letter.topic_id not in before:
        raise EventError(
            "unknown_format", f"it belongs to topic {letter.topic_id}, which is not the one that is booked"
        )
    if letter.reason == "number_reused":
        raise EventError("number_reused", "its number belongs to other content; send its usage as events with ids")
    if letter.size_bytes > MAX_RECORD_BYTES:
        raise EventError("too_large", f"{letter.size_bytes} bytes; send it again in smaller records")
    changes = dict(changes)
    headers, content_type = dict(letter.headers), letter.content_type
    if CONTENT_TYPE_CHANGE in changes:
        content_type = msgspec.json.decode(changes.pop(CONTENT_TYPE_CHANGE), type=str)
        headers = {name: value for name, value in headers.items() if name.lower() != CONTENT_TYPE}
        headers[CONTENT_TYPE] = content_type.encode()
    kind = kind_of(tuple(headers.items()))
    named = {name.lower(): value for name, value in headers.items()}
    if kind.problem is not None and COLLECTOR in named:
        raise kind.problem  # who it is stands there, and nowhere else
    if is_binary(named, content_type):
        return _event(letter, compose(gather_attributes(named), letter.body), changes, kind, topic)
    if kind.problem is not None:
        raise kind.problem
    if format_of(content_type) == "single":
        return _event(letter, letter.body, changes, kind, topic)
    if changes:
        raise EventError("wrong_type", "a whole record cannot be mended, only an event")
    return _record(letter, content_type, kind, topic)


def _event(
    letter: DeadLetter, body: bytes, changes: Mapping[str, bytes], kind: RecordKind, topic: TopicInfo
) -> Admission:
    foreign = kind.sequence < 0
    value = mend(body, changes, own_identity=foreign)
    event = decode_event(value)
    if len(value) > MAX_RECORD_BYTES:
        raise EventError("too_large", f"{len(value)} bytes after mending")
    content = (CONTENT_TYPE, SINGLE.encode())
    if foreign:
        key = home_key(event.subject, event.source)
        headers = (content, _JUDGED, *(((CORRECTS, str(kind.corrects).encode()),) if kind.corrects else ()))
        return Admission(partition_of(key, topic.partitions), key, value, headers, 1, event.type)
    index = kind.event_index if kind.event_index >= 0 else letter.event_index
    headers = (content, *_number(kind), (INDEX, str(index).encode()), _JUDGED)
    key = kind.collector.encode()
    return Admission(partition_of(key, topic.partitions), key, value, headers, 1, event.type)


def _record(letter: DeadLetter, content_type: str, kind: RecordKind, topic: TopicInfo) -> Admission:
    content = (CONTENT_TYPE, content_type.encode())
    if kind.sequence >= 0:
        key = kind.collector.encode()
        headers = (content, *_number(kind), _JUDGED)
        return Admission(partition_of(key, topic.partitions), key, letter.body, headers)
    if format_of(content_type) == "arrow":
        raise EventError("missing_field", "an Arrow batch without a number cannot be counted once")
    events = len(split_record(content_type, letter.body))
    return Admission(letter.partition, None, letter.body, (content, _JUDGED), events)


def _number(kind: RecordKind) -> Headers:
    return (
        (COLLECTOR, kind.collector.encode()),
        (EPOCH, kind.epoch.encode()),
        (SEQUENCE, str(kind.sequence).encode()),
    )
