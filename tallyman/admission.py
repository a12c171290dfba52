"""Make of a dead letter the record that lets it in again: judged before, at home, with the identity that it had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

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
    Event,
    decode_event,
    decode_record,
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
    """A record that lets a dead letter in again, or a part of it.

    Attributes:
        events: How many are in it, and of which `types`, as far as they can be read.
        whole: It is a numbered batch: one identity for all of them.
    """

    partition: int
    key: bytes | None
    value: bytes
    headers: Headers
    events: int = 1
    types: Mapping[str, int] = field(default_factory=dict)
    whole: bool = False


def admit(
    letter: DeadLetter, changes: Mapping[str, bytes], topic: TopicInfo, before: Collection[str] = ()
) -> tuple[Admission, ...]:
    """Return the record for a dead letter, mended; of a whole record of foreign events, one for each of their homes.

    The same letter always gives the same records, so that sending them again changes nothing.

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
        return (_event(letter, compose(gather_attributes(named), letter.body), changes, kind, topic),)
    if kind.problem is not None:
        raise kind.problem
    if format_of(content_type) == "single":
        return (_event(letter, letter.body, changes, kind, topic),)
    if changes:
        raise EventError("wrong_type", "a whole record cannot be mended, only an event")
    if kind.sequence >= 0:
        return (_batch(letter, content_type, kind, topic),)
    return _records(letter, content_type, topic)


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
        return Admission(partition_of(key, topic.partitions), key, value, headers, 1, {event.type: 1})
    index = kind.event_index if kind.event_index >= 0 else letter.event_index
    headers = (content, *_number(kind), (INDEX, str(index).encode()), _JUDGED)
    key = kind.collector.encode()
    return Admission(partition_of(key, topic.partitions), key, value, headers, 1, {event.type: 1})


def _batch(letter: DeadLetter, content_type: str, kind: RecordKind, topic: TopicInfo) -> Admission:
    headers = ((CONTENT_TYPE, content_type.encode()), *_number(kind), _JUDGED)
    key = kind.collector.encode()
    if format_of(content_type) == "arrow":
        events, types = _arrow_rows(letter.body), Counter[str]()
    else:
        found = list(decode_record(content_type, letter.body))
        events, types = len(found), Counter(each.type for each in found if isinstance(each, Event))
    return Admission(partition_of(key, topic.partitions), key, letter.body, headers, events, types, whole=True)


def _arrow_rows(body: bytes) -> int:
    """Return how many events an Arrow batch has; 1 if it cannot be read, and is one dead letter again."""
    from pyarrow import ArrowInvalid, ipc

    try:
        return int(ipc.open_stream(body).read_all().num_rows)
    except (ArrowInvalid, OSError):
        return 1


def _records(letter: DeadLetter, content_type: str, topic: TopicInfo) -> tuple[Admission, ...]:
    """Cut a record by the homes of its events: elsewhere they would be sent on, and nobody could say what of them
    counts. What is no event stays where it was.
    """
    kind = format_of(content_type)
    if kind == "arrow":
        raise EventError("missing_field", "an Arrow batch without a number cannot be counted once")
    parts: dict[int, list[bytes]] = {}
    types: dict[int, Counter[str]] = {}
    for part in split_record(content_type, letter.body):
        home, name = letter.partition, ""
        with suppress(EventError):
            event = decode_event(part)
            home, name = partition_of(home_key(event.subject, event.source), topic.partitions), event.type
        parts.setdefault(home, []).append(part)
        types.setdefault(home, Counter()).update([name] if name else [])
    headers = ((CONTENT_TYPE, content_type.encode()), _JUDGED)
    return tuple(
        Admission(home, None, b"\n".join(some) if kind == "lines" else b"[" + b",".join(some) + b"]", headers,
                  len(some), types[home])
        for home, some in sorted(parts.items())
    )  # fmt: skip


def _number(kind: RecordKind) -> Headers:
    return (
        (COLLECTOR, kind.collector.encode()),
        (EPOCH, kind.epoch.encode()),
        (SEQUENCE, str(kind.sequence).encode()),
    )
