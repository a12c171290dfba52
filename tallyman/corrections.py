"""Void and amend events that were counted: find one by its identity, and send what takes it back through Kafka.

History is kept: the event, each correction of it and what usage was booked when stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError

from tallyman.binary import compose
from tallyman.errors import BrokerError, UsageQueryError
from tallyman.event import (
    CONTENT_TYPE,
    CORRECTION,
    CORRECTS,
    SINGLE,
    decode_event,
    home_key,
    identity,
    split_record,
    version_identity,
)
from tallyman.headers import Headers, headers_of, kind_of
from tallyman.kafka import TopicInfo, let_go, make_consumer, make_producer, partition_of, read_topic
from tallyman.line import TopicNow, read_topic_now, topic_to_mend
from tallyman.mend import mend
from tallyman.repairs import NOT_JUDGED_ANEW, NOT_UNDONE, read_repairs
from tallyman.send import SendReport, runs_of

if TYPE_CHECKING:
    from clickhouse_driver import Client

    from tallyman.project import Project

_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What an event counted as for a time.

    Attributes:
        number: 0 is the event as it came; each correction makes the next.
        text: Its bytes; empty since it is void.
        booking: Where a correction was booked; 0 for the event itself.
    """

    number: int
    text: bytes
    position: str
    booking: int = 0
    at: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """An event that was counted, and its corrections, oldest first.

    Attributes:
        definitions: Those under which it was accepted as what it counts as now; 0 if that is not known.
    """

    subject: str
    source: str
    id: str
    versions: tuple[Version, ...]
    definitions: int = 0

    @property
    def now(self) -> Version:
        return self.versions[-1]


def read_history(project: Project, client: Client, subject: str, source: str, event_id: str) -> History:
    """Find an event that was counted, and what was done to it since.

    Its bytes come from the raw archive, else from Kafka.

    Raises:
        UsageQueryError: No such event was counted, or its bytes are gone.
        BrokerError: Kafka does not answer.
    """
    now = read_topic_now(project)
    line = [*now.before_ids, now.info.topic_id]
    accepted = _read_newest(client, identity(subject, source, event_id), line)
    if accepted is None:
        raise UsageQueryError(
            f'event: expected one that was counted, got id "{event_id}" of {source} for {subject}; '
            "a dead letter is mended with: tallyman dead retry; what a TTL on ids has taken is not known any more"
        )
    topic_id, partition, offset, index, definitions = accepted
    headers, body = _read_record(project, client, now, topic_id, partition, offset)
    first = Version(number=0, text=_cut(headers, body, index), position=f"{partition}:{offset}:{index}")
    later = tuple(_read_corrections(client, (subject, source, event_id), line, (topic_id, offset)))
    if later:
        newest = _read_newest(client, version_identity(subject, source, event_id, later[-1].number), line)
        definitions = 0 if newest is None else newest[-1]
    return History(
        subject=subject, source=source, id=event_id, versions=(first, *later), definitions=definitions
    )


def _read_newest(client: Client, accepted: bytes, line: Sequence[str]) -> tuple[str, int, int, int, int] | None:
    """Return where an identity was accepted last: topic id, partition, offset, index, and under which definitions.

    Args:
        line: The ids of the topics that are booked, the oldest first.
    """
    high, low = _words(accepted)
    rows = client.execute(
        "SELECT topic_id, partition, offset, event_index, definitions FROM ids"  # noqa: S608 - our own words
        f" WHERE identity_high = %(high)s AND identity_low = %(low)s{NOT_UNDONE}"
        " ORDER BY indexOf(%(line)s, topic_id) DESC, offset DESC LIMIT 1",
        {"high": high, "low": low, "line": line},
    )
    return rows[0] if rows else None


def amended(history: History, changes: Mapping[str, bytes]) -> bytes:
    """Return the bytes of an event as it shall count; of a void one, as it last counted.

    Raises:
        EventError: The change would make another event of it.
    """
    last = next(version.text for version in reversed(history.versions) if version.text)
    return mend(last, changes, own_identity=True)


def refuse_same(history: History, now: bytes) -> None:
    """Refuse a correction that changes nothing.

    Raises:
        UsageQueryError: It counts so already.
    """
    if now == history.now.text:
        raise UsageQueryError(f'event: "{history.id}" counts so already; there is nothing to correct')


def correct(project: Project, client: Client, history: History, now: bytes, reason: str) -> SendReport:
    """Send the correction that makes an event count as `now`, empty for nothing; return when Kafka acknowledged it.

    Sending it twice corrects once.

    Raises:
        UsageQueryError: It counts so already.
        ConfigError: Another line of topics is booked now: nobody would read it.
        BrokerError: Kafka did not acknowledge; run it again.
    """
    began = time.monotonic()
    refuse_same(history, now)
    topic = topic_to_mend(project, client).info
    version = history.now.number + 1
    moment = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    body = write_correction(history.now.text, now, event_id=f"{history.id}/{version}", time=moment, reason=reason)
    headers = [(CONTENT_TYPE, SINGLE.encode()), (CORRECTS, str(version).encode())]
    key = home_key(history.subject, history.source)
    partition = partition_of(key, topic.partitions)
    producer = make_producer(project.kafka_brokers)
    try:
        told = producer.send(topic.name, body, key=key, partition=partition, headers=headers).get(timeout=_PATIENCE_S)
    except KafkaError as error:
        raise BrokerError(
            f"correction: expected Kafka to acknowledge it, got {type(error).__name__}: {error}; "
            "run the same command again when Kafka is back: it corrects once"
        ) from error
    finally:
        let_go(producer)
    runs = {told.partition: runs_of([told.offset])}
    return SendReport(topic=topic, events=1, records=1, bytes=len(body), took_s=time.monotonic() - began,
                      offsets=runs, types={CORRECTION: 1})  # fmt: skip


def write_correction(was: bytes, now: bytes, *, event_id: str, time: str, reason: str) -> bytes:
    """Write the event of a correction; `was` and `now` are the event's bytes, empty for nothing."""
    named = decode_event(was or now)
    return msgspec.json.encode({
        "specversion": "1.0", "id": event_id, "source": named.source, "type": CORRECTION, "subject": named.subject,
        "time": time, "data": {"was": was.decode(), "now": now.decode(), "reason": reason},
    })  # fmt: skip


def _read_corrections(
    client: Client, names: tuple[str, str, str], line: Sequence[str], first: tuple[str, int]
) -> Iterator[Version]:
    """Yield the corrections of an event that count, oldest first.

    They are written before usage, so a repair may have skipped one that is there, or had it judged anew; then `ids`
    says whether it was accepted. What lies before the event corrected another one, whose id it has.

    Args:
        names: Subject, source and id.
        line: The ids of the topics that are booked, the oldest first.
        first: The event's topic id and offset.
    """
    subject, source, event_id = names
    rows = client.execute(
        "SELECT version, now, topic_id, partition, offset, booking, appended_at, reason FROM corrections FINAL"
        " WHERE subject = %(subject)s AND source = %(source)s AND id = %(id)s ORDER BY version",
        {"subject": subject, "source": source, "id": event_id},
    )
    repairs = read_repairs(client) if rows else ()
    accepted = _read_accepted(client, names, [row[0] for row in rows]) if repairs else set()
    for version, now, topic_id, partition, offset, booking, appended, reason in rows:
        if _place(line, topic_id, offset) < _place(line, *first):
            continue
        doubtful = any(each.undoes(topic_id, partition, offset, booking) for each in repairs)
        if not doubtful or (version, topic_id, partition, offset) in accepted:
            yield Version(number=version, text=_bytes(now), position=f"{partition}:{offset}:0", booking=booking,
                          at=appended.replace(tzinfo=UTC), reason=reason)  # fmt: skip


def _place(line: Sequence[str], topic_id: str, offset: int) -> tuple[int, int]:
    return line.index(topic_id) if topic_id in line else -1, offset


def _read_accepted(
    client: Client, names: tuple[str, str, str], versions: Sequence[int]
) -> set[tuple[int, str, int, int]]:
    """Return which versions of an event were accepted, with topic id, partition and offset."""
    by_identity = {_words(version_identity(*names, version)): version for version in versions}
    rows = client.execute(
        "SELECT identity_high, identity_low, topic_id, partition, offset FROM ids"  # noqa: S608 - our own words
        f" WHERE identity_high IN %(high)s AND (identity_high, identity_low) IN %(both)s{NOT_UNDONE}",
        {"high": tuple(high for high, _ in by_identity), "both": tuple(by_identity)},
    )
    return {(by_identity[high, low], topic_id, partition, offset) for high, low, topic_id, partition, offset in rows}


def _read_record(
    project: Project, client: Client, now: TopicNow, topic_id: str, partition: int, offset: int
) -> tuple[Headers, bytes]:
    rows = client.execute(
        "SELECT headers, body FROM events WHERE topic_id = %(topic)s AND partition = %(partition)s"  # noqa: S608
        f" AND offset = %(offset)s{NOT_JUDGED_ANEW} LIMIT 1",
        {"topic": topic_id, "partition": partition, "offset": offset},
        settings={"strings_as_bytes": True},
    )
    if rows:
        headers, body = rows[0]
        return tuple((_bytes(name).decode(), _bytes(value)) for name, value in dict(headers).items()), _bytes(body)
    name = now.name_of(topic_id)
    found = read_topic(project.kafka_brokers, name) if name else None
    if found is None or found.topic_id != topic_id:
        raise UsageQueryError(f"event: it was counted from topic {topic_id}, of which neither archive nor log is left")
    return _read_log(project, found, partition, offset)


def _read_log(project: Project, topic: TopicInfo, partition: int, offset: int) -> tuple[Headers, bytes]:
    consumer = make_consumer(project.kafka_brokers)
    where = TopicPartition(topic.name, partition)
    try:
        consumer.assign([where])
        if consumer.beginning_offsets([where])[where] <= offset:
            consumer.seek(where, offset)
            deadline = time.monotonic() + _PATIENCE_S
            while time.monotonic() < deadline:
                for record in consumer.poll(timeout_ms=500, max_records=1).get(where, ()):
                    if record.offset == offset:
                        return headers_of(record.headers), record.value or b""
    except KafkaError as error:
        raise BrokerError(f"event at {partition}:{offset}: {type(error).__name__}: {error}") from error
    finally:
        consumer.close()
    raise UsageQueryError(
        f"event: its bytes at {partition}:{offset} are neither in the archive nor in the log any more; "
        "send the difference as an event of its own"
    )


def _cut(headers: Headers, body: bytes, index: int) -> bytes:
    kind = kind_of(headers)
    if kind.attributes is not None:
        return compose(kind.attributes, body)
    return split_record(kind.content_type, body)[index]


def _words(identity: bytes) -> tuple[int, int]:
    high, low = (int.from_bytes(half, "little") for half in (identity[:8], identity[8:]))
    return high, low


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
