"""Let dead letters in again through Kafka, or set them aside for good; both can be looked at first and run again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from kafka.errors import KafkaError

from tallyman.admission import Admission, admit
from tallyman.dead_letters import DeadLetter, LetterChoice, count_groups, mark_handled, read_certain_keys, read_slices
from tallyman.errors import BrokerError, EventError, UsageQueryError
from tallyman.kafka import let_go, make_producer
from tallyman.line import TopicNow, topic_to_mend
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
        refused: How many letters cannot be let in; `examples`: (position, sentence) of the first of them.
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
    groups = count_groups(client, choice, of_keys=True)
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
        ConfigError: Another line of topics is booked now: nobody would read what is sent.
        LogError: The topic is missing or wrong.
        BrokerError: Kafka did not acknowledge all; run it again.
    """
    began = time.monotonic()
    keys = read_certain_keys(client, choice)
    if "id" in changes and len(keys) > 1:
        raise UsageQueryError(f"--set id: {len(keys)} letters would become one event; mend them one by one")
    retrying = _Retrying(topic_to_mend(project, client), changes)
    producer = None if preview else make_producer(project.kafka_brokers)
    try:
        for letters in read_slices(client, keys):
            admitted = retrying.admit(letters)
            records = [record for _, each in admitted for record in each]
            if producer is not None:
                retrying.note_sent(records, _send(producer, retrying.topic.name, records))
                mark_handled(client, [letter for letter, _ in admitted], "retried", retrying.mended)
            on_progress(retrying.done, len(keys))
    finally:
        if producer is not None:
            let_go(producer)  # nothing is under way any more, or it failed
    sent = None if preview else retrying.sent(time.monotonic() - began)
    return retrying.report(len(keys), sent)


class _Retrying:
    """What becomes of dead letters that are let in again, slice by slice.

    Attributes:
        topic: Where they go.
        mended: The changes, as the mark of a letter keeps them.
        done: How many letters were looked at.
    """

    def __init__(self, now: TopicNow, changes: Mapping[str, bytes]) -> None:
        self.topic, self._before = now.info, now.before_ids
        self._changes, self.mended = changes, _written(changes)
        self.done = self._refused = self._events = self._size = 0
        self._examples: list[tuple[str, str]] = []
        self._groups: Counter[tuple[str, str, str]] = Counter()
        self._types: Counter[str] = Counter()
        self._offsets: dict[int, list[int]] = {}
        self._batches: list[SentBatch] = []

    def admit(self, letters: Sequence[DeadLetter]) -> list[tuple[DeadLetter, tuple[Admission, ...]]]:
        """Return the letters that can be let in, mended, each with its records."""
        admitted: list[tuple[DeadLetter, tuple[Admission, ...]]] = []
        for letter in letters:
            try:
                admitted.append((letter, admit(letter, self._changes, self.topic, self._before)))
            except EventError as error:
                self._refused += 1
                if len(self._examples) < _REFUSALS_KEPT:
                    self._examples.append((letter.position, f"{error.reason}: {error.detail}"))
        self._groups.update((each.reason, each.type, each.source) for each, _ in admitted)
        for record in (record for _, records in admitted for record in records):
            self._events += record.events
            self._size += len(record.value)
            self._types.update(record.types if not record.whole else ())
        self.done += len(letters)
        return admitted

    def note_sent(self, records: Sequence[Admission], places: Sequence[tuple[int, int]]) -> None:
        """Note at which (partition, offset) each record was acknowledged."""
        for record, (partition, offset) in zip(records, places, strict=True):
            self._offsets.setdefault(partition, []).append(offset)
            if record.whole:
                self._batches.append(SentBatch(partition, offset, record.events, record.types))

    def sent(self, took_s: float) -> SendReport:
        return SendReport(
            topic=self.topic, events=self._events, records=sum(map(len, self._offsets.values())), bytes=self._size,
            took_s=took_s, offsets={each: runs_of(found) for each, found in sorted(self._offsets.items())},
            types=self._types, batches=tuple(self._batches),
        )  # fmt: skip

    def report(self, chosen: int, sent: SendReport | None) -> ActionReport:
        return ActionReport(
            chosen=chosen, groups=dict(self._groups.most_common()), refused=self._refused,
            examples=tuple(self._examples), sent=sent,
        )  # fmt: skip


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
