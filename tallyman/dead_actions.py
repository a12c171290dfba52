"""Let dead letters in again through Kafka, or set them aside for good; both can be looked at first and run again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from kafka.errors import KafkaError

from tallyman.admission import Admission, admit
from tallyman.dead_letters import DeadLetter, LetterChoice, count_groups, mark_handled, read_certain_keys, read_slices
from tallyman.errors import BrokerError, EventError, UsageQueryError
from tallyman.kafka import make_producer
from tallyman.line import read_topic_now
from tallyman.send import SendReport, SentBatch, runs_of

if TYPE_CHECKING:
    from clickhouse_driver import Client

    from tallyman.project import Project

OnProgress = Callable[[int, int], None]  # (letters done, letters chosen)
_REFUSALS_KEPT = 20
_MARKS_AT_ONCE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionReport:
    """What was done, or would be.

    Attributes:
        groups: (reason, type, source) -> how many letters can be let in, or are discarded.
        refused: (reason, sentence) -> how many letters cannot be let in, and `examples` of them (position, sentence).
        sent: What Kafka acknowledged; None for a preview and for a discard.
    """

    chosen: int
    groups: Mapping[tuple[str, str, str], int]
    refused: int = 0
    examples: tuple[tuple[str, str], ...] = ()
    sent: SendReport | None = None

    @property
    def accepted(self) -> int:
        return sum(self.groups.values())


def discard(client: Client, choice: LetterChoice, *, preview: bool) -> ActionReport:
    """Set dead letters aside: they stay where they are, and are no longer shown unless asked for.

    Raises:
        UsageQueryError: There is no such reason, or a position is none or ambiguous.
    """
    keys = read_certain_keys(client, choice)
    groups = count_groups(client, choice)
    if not preview:
        for first in range(0, len(keys), _MARKS_AT_ONCE):
            mark_handled(client, keys[first : first + _MARKS_AT_ONCE], "discarded")
    return ActionReport(chosen=len(keys), groups=groups)


def retry(
    project: Project,
    client: Client,
    choice: LetterChoice,
    changes: Mapping[str, bytes],
    *,
    preview: bool,
    on_progress: OnProgress = lambda done, chosen: None,
) -> ActionReport:
    """Send dead letters through Kafka again, mended; each is marked when it is acknowledged.

    A crash in between leaves letters open that were sent: retrying them again changes nothing, they count once.

    Raises:
        UsageQueryError: As `discard`; or several events would get the same id.
        LogError: The topic is missing or wrong.
        BrokerError: Kafka did not acknowledge all; run it again.
    """
    began = time.monotonic()
    keys = read_certain_keys(client, choice)
    if "id" in changes and len(keys) > 1:
        raise UsageQueryError(f"--set id: {len(keys)} letters would become one event; mend them one by one")
    now = read_topic_now(project)
    topic, before = now.info, now.before_ids
    groups: Counter[tuple[str, str, str]] = Counter()
    types: Counter[str] = Counter()
    refused, examples, done, events, size = 0, list[tuple[str, str]](), 0, 0, 0
    offsets: dict[int, list[int]] = {}
    batches: list[SentBatch] = []
    mended = _written(changes)
    producer = None if preview else make_producer(project.kafka_brokers)
    try:
        for letters in read_slices(client, keys):
            admitted: list[tuple[DeadLetter, tuple[Admission, ...]]] = []
            for letter in letters:
                try:
                    admitted.append((letter, admit(letter, changes, topic, before)))
                except EventError as error:
                    refused += 1
                    if len(examples) < _REFUSALS_KEPT:
                        examples.append((letter.position, f"{error.reason}: {error.detail}"))
            groups.update((each.reason, each.type, each.source) for each, _ in admitted)
            records = [record for _, each in admitted for record in each]
            if producer is not None:
                for record, (partition, offset) in zip(records, _send(producer, topic.name, records), strict=True):
                    offsets.setdefault(partition, []).append(offset)
                    if record.whole:
                        batches.append(SentBatch(partition, offset, record.events, record.types))
                mark_handled(client, [letter for letter, _ in admitted], "retried", mended)
            events += sum(record.events for record in records)
            size += sum(len(record.value) for record in records)
            for record in records:
                types.update(record.types if not record.whole else ())
            done += len(letters)
            on_progress(done, len(keys))
    finally:
        if producer is not None:
            producer.close(timeout=5)  # nothing is under way any more, or it failed
    sent = None
    if not preview:
        runs = {partition: runs_of(found) for partition, found in sorted(offsets.items())}
        sent = SendReport(topic=topic, events=events, records=sum(map(len, offsets.values())), bytes=size,
                          took_s=time.monotonic() - began, offsets=runs, types=types,
                          batches=tuple(batches))  # fmt: skip
    return ActionReport(
        chosen=len(keys), groups=dict(groups.most_common()), refused=refused, examples=tuple(examples), sent=sent
    )


def _send(producer: Any, topic: str, records: list[Admission]) -> list[tuple[int, int]]:
    try:
        futures = [
            producer.send(topic, each.value, key=each.key, partition=each.partition, headers=list(each.headers))
            for each in records
        ]
        producer.flush()
        return [(told.partition, told.offset) for told in (future.get(timeout=300) for future in futures)]
    except KafkaError as error:
        raise BrokerError(
            f'dead letters: expected Kafka to acknowledge every record in "{topic}", got {type(error).__name__}: '
            f"{error}; run the same command again when Kafka is back: an event counts once"
        ) from error


def _written(changes: Mapping[str, bytes]) -> str:
    return (
        msgspec.json.encode({name: msgspec.Raw(value) for name, value in changes.items()}).decode() if changes else ""
    )
