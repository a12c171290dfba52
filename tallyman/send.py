"""Send a file of usage events to Kafka, each to its home partition, and wait until it is counted.

A file may simply be sent again: an id counts once. Nothing is judged here; a line that is no event is sent like the
others and becomes a dead letter, which can be looked at and put right.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from kafka.errors import KafkaError

from tallyman.errors import BrokerError, ConfigError, EventFileError, StoreError
from tallyman.event import CONTENT_TYPE, LINES, SINGLE
from tallyman.event_file import EventFile, open_events
from tallyman.ignored import count_ignored
from tallyman.kafka import MAX_MESSAGE_BYTES, TopicInfo, let_go, make_producer
from tallyman.line import read_topic_now
from tallyman.packing import LINES_PER_RECORD, PackedRecord, Packer
from tallyman.project import Project
from tallyman.repairs import NOT_JUDGED_ANEW, NOT_UNDONE
from tallyman.topics import ENDED

log = logging.getLogger(__name__)

LONGEST_LINE = MAX_MESSAGE_BYTES - 4096  # more than this no record can hold
_WINDOW_BYTES = 32 * 1024 * 1024  # handed to the producer and not yet acknowledged
_WINDOW_RECORDS = 5000
_RUNS_PER_QUERY = 500
_ASK_AGAIN_S = 0.5

Progress = Callable[[int, int | None], None]  # (bytes of the file acknowledged, bytes of the file or None)
Runs = Sequence[tuple[int, int]]
Ask = Callable[[str, Mapping[str, Any]], Any]  # a statement and its values to the rows of the answer


@dataclass(frozen=True, slots=True)
class SentBatch:
    """A numbered batch that was sent: one identity for all its events, of these types as far as is known."""

    partition: int
    offset: int
    events: int
    types: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReport:
    """What was sent and acknowledged.

    Attributes:
        events: Events, or lines that are none.
        offsets: Partition -> runs of offsets (first, last), in order, that hold them and nothing else.
        types: Event type -> how many of them; those in `batches`, which are in all the rest, are not among them.
        too_long: Lines that no Kafka record can hold; they were not sent.
    """

    topic: TopicInfo
    events: int
    records: int
    bytes: int
    took_s: float
    offsets: Mapping[int, Runs]
    types: Mapping[str, int]
    too_long: tuple[int, ...] = ()
    batches: tuple[SentBatch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the events of a `SendReport`; the four numbers add up to all that was sent."""

    aggregated: int
    duplicate: int
    dead: int
    ignored: int = 0


def send_file(
    project: Project, path: Path | str, on_progress: Progress | None = None, *, single: bool = False
) -> SendReport:
    """Send a file of events; return when every record is acknowledged by every in-sync replica.

    Args:
        path: NDJSON, one JSON event or an array of them, gzipped or not; "-" for standard input.
        single: One record for each event, as an application would send it, instead of up to 500 in one.

    Raises:
        BrokerError: Kafka did not acknowledge all of it; the same file may be sent again.
        LogError: The topic is missing or wrong.
        EventFileError: The file is cut off or damaged; the message says how much of it is acknowledged.
        UsageQueryError: It is one array that is too large to be read at once; nothing was sent.
        OSError: The file cannot be opened.
    """
    began = time.monotonic()
    topic = read_topic_now(project).info
    file = open_events(path, LONGEST_LINE)
    producer = make_producer(project.kafka_brokers)
    sending = _Sending(producer, topic, str(path), file, on_progress or (lambda done, total: None))
    try:
        packer = Packer(topic.partitions, 1 if single else LINES_PER_RECORD)
        for lines in file:
            for record in packer.pack(lines):
                sending.send(record)
        for record in packer.rest():
            sending.send(record)
        sending.finish()
    except EventFileError as error:
        sending.finish()
        raise EventFileError(
            f"{error}; {sending.events:,} events are acknowledged; get the whole file and send it again: an id counts "
            "once"
        ) from error
    finally:
        file.close()
        let_go(producer)  # nothing is under way any more, or it failed
    return SendReport(
        topic=topic,
        events=sending.events,
        records=sending.records,
        bytes=sending.bytes,
        took_s=time.monotonic() - began,
        offsets={partition: merged(runs) for partition, runs in sorted(sending.runs.items())},
        types=packer.types,
        too_long=tuple(sorted(file.too_long)),
    )


class _Sending:
    """Records handed to the producer, and what Kafka said of each; in order, with a bound."""

    def __init__(self, producer: Any, topic: TopicInfo, name: str, file: EventFile, on_progress: Progress) -> None:
        self._producer, self._topic, self._name = producer, topic, name
        self._file, self._on_progress = file, on_progress
        self._flying: deque[tuple[Any, PackedRecord, int]] = deque()
        self._flying_bytes = 0
        self.events = self.records = self.bytes = 0  # acknowledged
        self.runs: dict[int, list[tuple[int, int]]] = {}  # what was acknowledged, as it came: a stream has no end

    def send(self, record: PackedRecord) -> None:
        """Hand over a record, waiting for older ones when too much is under way."""
        content_type = SINGLE if record.key is not None else LINES
        try:
            future = self._producer.send(
                self._topic.name,
                record.value,
                key=record.key,
                partition=record.partition,
                headers=[(CONTENT_TYPE, content_type.encode())],
            )
        except KafkaError as error:
            raise self._failed(error) from error
        self._flying.append((future, record, self._file.done))
        self._flying_bytes += len(record.value)
        while self._flying_bytes > _WINDOW_BYTES or len(self._flying) > _WINDOW_RECORDS:
            self._land()
        while self._flying and self._flying[0][0].is_done:
            self._land()

    def finish(self) -> None:
        """Wait until all is acknowledged."""
        self._producer.flush()
        while self._flying:
            self._land()
        self._on_progress(self._file.done, self._file.total)

    def _land(self) -> None:
        future, record, done = self._flying[0]
        try:
            told = future.get(timeout=300)
        except KafkaError as error:
            raise self._failed(error) from error
        self._flying.popleft()
        self._flying_bytes -= len(record.value)
        self.events += record.events
        self.records += 1
        self.bytes += len(record.value)
        _append(self.runs.setdefault(record.partition, []), told.offset, told.offset)
        self._on_progress(done, self._file.total)

    def _failed(self, error: KafkaError) -> BrokerError:
        return BrokerError(
            f'{self._name}: expected Kafka to acknowledge every record in "{self._topic.name}", got '
            f"{type(error).__name__}: {error}; {self.events} events are acknowledged. "
            "Send the same file again when Kafka is back: an id counts once"
        )


def runs_of(offsets: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return offsets as runs (first, last) without holes.

    >>> runs_of([4, 3, 5, 9])
    ((3, 5), (9, 9))
    """
    return merged((offset, offset) for offset in offsets)


def merged(runs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return runs in order, those that touch as one.

    >>> merged([(4, 5), (1, 1), (2, 3), (9, 9)])
    ((1, 5), (9, 9))
    """
    found: list[tuple[int, int]] = []
    for first, last in sorted(runs):
        _append(found, first, last)
    return tuple(found)


def _append(runs: list[tuple[int, int]], first: int, last: int) -> None:
    """Add a run behind the others: to the last one, if it goes on there."""
    if runs and first == runs[-1][1] + 1:
        runs[-1] = runs[-1][0], last
    else:
        runs.append((first, last))


def wait_for(
    project: Project,
    report: SendReport,
    *,
    on_progress: Callable[[int], None] | None = None,
    patience_s: float = 120.0,
) -> Outcome:
    """Wait until the pipeline has booked everything that was sent; say what became of it.

    Args:
        on_progress: Told how many offsets are still to be booked.
        patience_s: How long the pipeline may stand still.

    Raises:
        StoreError: Nothing was booked for `patience_s`, or ClickHouse did not answer for as long.
        BrokerError: Kafka did not give back what was sent, to tell what is ignored from copies.
        ConfigError: The topic had ended: what was sent counts in the one that follows, at other places.
    """
    from tallyman.clickhouse import connect

    client = connect(project.clickhouse)
    try:
        ask = partial(_ask, client, patience_s)
        _wait_until_booked(ask, report, on_progress or (lambda left: None), patience_s)
        fates = [_fate_of_batch(project, ask, report.topic, batch) for batch in report.batches]
        fates.append(_fate_of_others(project, ask, report))
    finally:
        client.disconnect()
    return Outcome(**{each.name: sum(getattr(fate, each.name) for fate in fates) for each in fields(Outcome)})


def _fate_of_batch(project: Project, ask: Ask, topic: TopicInfo, batch: SentBatch) -> Outcome:
    """Say what became of a numbered batch: a copy or refused as a whole, else event by event."""
    place = {batch.partition: ((batch.offset, batch.offset),)}
    accepted = _count(ask, "ids", topic, place, NOT_UNDONE)
    dead = _count(ask, "dead_letters", topic, place, NOT_JUDGED_ANEW)
    if not accepted:
        return Outcome(aggregated=0, duplicate=0 if dead else batch.events, dead=batch.events if dead else 0)
    rest = batch.events - dead
    ignored = count_ignored(project, topic, place, batch.types, rest)
    return Outcome(aggregated=rest - ignored, duplicate=0, dead=dead, ignored=ignored)


def _fate_of_others(project: Project, ask: Ask, report: SendReport) -> Outcome:
    offsets, events = report.offsets, report.events
    if report.batches:
        apart = {(each.partition, each.offset) for each in report.batches}
        places = {number: chain.from_iterable(range(first, last + 1) for first, last in runs)
                  for number, runs in offsets.items()}  # fmt: skip
        offsets = {number: runs_of([each for each in there if (number, each) not in apart])
                   for number, there in places.items()}  # fmt: skip
        events -= sum(each.events for each in report.batches)
    aggregated = _count(ask, "ids", report.topic, offsets, NOT_UNDONE)
    dead = _count(ask, "dead_letters", report.topic, offsets, NOT_JUDGED_ANEW)
    rest = events - aggregated - dead
    ignored = count_ignored(project, report.topic, offsets, report.types, rest)
    return Outcome(aggregated=aggregated, duplicate=rest - ignored, dead=dead, ignored=ignored)


def _wait_until_booked(ask: Ask, report: SendReport, on_progress: Callable[[int], None], patience_s: float) -> None:
    ends = {partition: runs[-1][1] + 1 for partition, runs in report.offsets.items()}
    best, moved = None, time.monotonic()
    while ends:
        # A chunk begins when the one before is closed, so the furthest place says that all before it is booked.
        where = "FROM progress WHERE topic_id = %(topic_id)s AND partition IN %(partitions)s AND generation = 0"
        asked = {"topic_id": report.topic.topic_id, "partitions": tuple(ends), "ended": ENDED}
        reached = dict(ask(f"SELECT partition, max(reached_offset) {where} GROUP BY partition", asked))
        ended = ask(
            f"SELECT partition, min(turned_offset) {where} AND reached_booking = %(ended)s GROUP BY partition", asked
        )
        _refuse_behind_the_end(report, dict(ended))
        left = sum(max(0, end - reached.get(partition, 0)) for partition, end in ends.items())
        on_progress(left)
        if left == 0:
            return
        if best is None or left < best:
            best, moved = left, time.monotonic()
        elif time.monotonic() - moved > patience_s:
            raise StoreError(
                f'topic "{report.topic.name}": expected everything sent to be booked, but {left} offsets have waited '
                f"{patience_s:.0f} s without a step; everything sent is safe in Kafka. Is the pipeline running? "
                'See "tallyman status"'
            )
        time.sleep(0.2)


def _refuse_behind_the_end(report: SendReport, topic_ends: Mapping[int, int]) -> None:
    """Do not wait for what stands behind the end of a topic."""
    if any(runs[-1][1] >= topic_ends.get(partition, 1 << 62) for partition, runs in report.offsets.items()):
        raise ConfigError(
            f'kafka.topic: "{report.topic.name}" has ended; what was sent is copied to the topic that follows and '
            'counts there once. Set kafka.topic to that one: "tallyman topic list" names it'
        )


def _count(ask: Ask, table: str, topic: TopicInfo, offsets: Mapping[int, Runs], condition: str) -> int:
    """Count the rows of a table at exactly the places that were sent."""
    total = 0
    for partition, runs in offsets.items():
        for start in range(0, len(runs), _RUNS_PER_QUERY):
            some = runs[start : start + _RUNS_PER_QUERY]
            places = " OR ".join(f"offset BETWEEN {int(first)} AND {int(last)}" for first, last in some)
            ((count,),) = ask(
                f"SELECT count() FROM {table} FINAL WHERE topic_id = %(topic_id)s AND partition = %(partition)s"  # noqa: S608
                f" AND ({places}){condition}",
                {"topic_id": topic.topic_id, "partition": partition},
            )
            total += count
    return total


def _ask(client: Any, patience_s: float, sql: str, values: Mapping[str, Any]) -> Any:
    """Ask ClickHouse; wait for one that is away, as it is while it is started again, and for tables that the pipeline
    has still to make when it is started for the first time.
    """
    from clickhouse_driver.errors import Error, ErrorCodes

    from tallyman.clickhouse import NETWORK_ERRORS

    not_yet = (ErrorCodes.UNKNOWN_DATABASE, ErrorCodes.UNKNOWN_TABLE)

    deadline = time.monotonic() + patience_s
    while True:
        try:
            return client.execute(sql, values)
        except (Error, *NETWORK_ERRORS) as error:
            client.disconnect()
            may_pass = isinstance(error, NETWORK_ERRORS) or getattr(error, "code", None) in not_yet
            if not may_pass or time.monotonic() > deadline:
                said = (getattr(error, "message", "") or str(error) or type(error).__name__).splitlines()[0]
                raise StoreError(
                    f"ClickHouse: expected how far usage is booked, got {said}; everything sent is safe in Kafka. "
                    'See "tallyman status", and send the same file again: an id counts once'
                ) from error
        time.sleep(_ASK_AGAIN_S)
