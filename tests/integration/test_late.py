"""What comes late into a topic that has ended, sent on from a real Kafka to a real Kafka."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from pipeline import late as room
from pipeline import metrics as counted
from pipeline.late import End, LateRecords
from pipeline.read import read_range
from pipeline.unpack import MAX_BYTES
from tallyman.books import Topic
from tallyman.errors import StoreError
from tallyman.event import END
from tallyman.kafka import end_offsets, make_consumer, make_producer, read_topic
from tallyman.usage import Repair
from tests.integration.booking import wait_for
from tests.stack import FreshTopic

pytestmark = pytest.mark.integration

ENDED_MS = 1_780_000_000_000
HEADERS = [("content-type", b"application/x-ndjson"), ("empty", b"")]


@pytest.fixture
def topics(kafka_broker: str, fresh_topic: FreshTopic) -> tuple[Topic, Topic]:
    ended, following = fresh_topic("usage.events", partitions=2), fresh_topic("usage.more", partitions=1)
    return topic_of(kafka_broker, ended, 2), topic_of(kafka_broker, following, 1)


def topic_of(broker: str, name: str, partitions: int) -> Topic:
    info = read_topic([broker], name)
    assert info is not None
    return Topic(info.topic_id, name, partitions, 1 << 16, True)


@dataclass
class Shelf:
    """What stands in ClickHouse's place."""

    begins: dict[int, int]
    lost: list[Repair] = field(default_factory=list)
    away: bool = False

    def ends(self) -> dict[int, End]:
        return {partition: (offset, ENDED_MS, 20_600_000, 1) for partition, offset in self.begins.items()}

    def note_lost(self, lost: Repair) -> None:
        if self.away:
            raise StoreError("ClickHouse is away")
        self.lost.append(lost)

    @property
    def gaps(self) -> set[tuple[int, int, int]]:
        return {(each.partition, each.from_offset, each.to_offset) for each in self.lost}


@contextmanager
def sending_on(broker: str, ended: Topic, following: Topic, begins: dict[int, int] | Shelf) -> Iterator[Shelf]:
    stop, shelf = threading.Event(), begins if isinstance(begins, Shelf) else Shelf(begins)
    late = LateRecords((broker,), ended, following.name, shelf, stop)
    late.start()
    try:
        yield shelf
    finally:
        stop.set()
        late.close()


def eat(broker: str, topic: Topic, partition: int, below: int) -> None:
    """Remove records as retention does."""
    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        admin.delete_records({TopicPartition(topic.name, partition): below})
    finally:
        admin.close()


def send(broker: str, topic: Topic, partition: int, *values: bytes | None) -> None:
    producer = make_producer([broker], compression_type="zstd", max_request_size=1 << 30)
    for value in values:
        producer.send(topic.name, value, key=b"acme", partition=partition, headers=HEADERS).get(60)
    producer.close()


def send_end(broker: str, topic: Topic, partition: int) -> None:
    producer = make_producer([broker])
    producer.send(topic.name, b"", partition=partition, headers=[(END, b"the next")]).get(60)
    producer.close()


def arrived(broker: str, topic: Topic) -> list[tuple[bytes | None, bytes | None, object]]:
    consumer = make_consumer([broker])
    end = end_offsets(consumer, topic.name, [0])[0]
    consumer.close()
    return [
        (fetch.keys[row], fetch.values[row], fetch.headers_of(row))
        for fetch in read_range([broker], topic.name, topic.topic_id, 0, 0, end)
        for row in range(len(fetch))
    ]


def values(broker: str, topic: Topic) -> list[bytes | None]:
    return sorted(value or b"" for _, value, _ in arrived(broker, topic))


def comes(broker: str, topic: Topic, *expected: bytes) -> Callable[[], bool]:
    return lambda: values(broker, topic) == sorted(expected)


def test_records_behind_the_end_are_sent_on_as_they_came_and_once(
    kafka_broker: str, topics: tuple[Topic, Topic]
) -> None:
    ended, following = topics
    send(kafka_broker, ended, 0, b"booked", b"end", b"late 0")
    send(kafka_broker, ended, 1, b"end", b"late 1")
    with sending_on(kafka_broker, ended, following, {0: 2, 1: 1}):
        wait_for(comes(kafka_broker, following, b"late 0", b"late 1"), "what came late")
        send(kafka_broker, ended, 1, b"later")
        wait_for(comes(kafka_broker, following, b"late 0", b"late 1", b"later"), "what came later")
    with sending_on(kafka_broker, ended, following, {0: 2, 1: 1}):
        send(kafka_broker, ended, 0, b"last")
        wait_for(comes(kafka_broker, following, b"last", b"late 0", b"late 1", b"later"), "what came last")
    assert {(key, headers) for key, _, headers in arrived(kafka_broker, following)} == {(b"acme", tuple(HEADERS))}


def test_a_partition_with_a_batch_that_is_too_large_stops_there_and_the_others_go_on(
    kafka_broker: str, topics: tuple[Topic, Topic], caplog: pytest.LogCaptureFixture
) -> None:
    """Some kilobytes that are more than 256 MiB when decompressed ended every worker that booked the new topic."""
    ended, following = topics
    send(kafka_broker, ended, 0, b"end", b"late 0", bytes(MAX_BYTES + 1), b"hidden")
    send(kafka_broker, ended, 1, b"end", b"late 1")
    with caplog.at_level(logging.ERROR), sending_on(kafka_broker, ended, following, {0: 1, 1: 1}):
        wait_for(lambda: "late_records_unreadable" in caplog.text, "the partition to be set aside")
        send(kafka_broker, ended, 1, b"later")
        wait_for(comes(kafka_broker, following, b"late 0", b"late 1", b"later"), "what came later")
    (told,) = [record for record in caplog.records if record.message == "late_records_unreadable"]
    assert (told.partition, told.levelname) == (0, "ERROR")  # type: ignore[attr-defined]


def test_what_comes_behind_a_record_that_is_too_large_is_copied(kafka_broker: str, fresh_topic: FreshTopic) -> None:
    """All of it was called too large, too, and lost, as long as the worker lived."""
    ended, following = (
        topic_of(kafka_broker, fresh_topic(partitions=2), 2),
        topic_of(kafka_broker, fresh_topic(partitions=1, max_message_bytes="100000"), 1),
    )
    send(kafka_broker, ended, 0, b"end", b"late 0", os.urandom(300_000), b"late 2")
    send(kafka_broker, ended, 1, b"end", b"late 1")
    with sending_on(kafka_broker, ended, following, {0: 1, 1: 1}) as shelf:
        wait_for(lambda: shelf.lost, "the record that is too large to be named")
        send(kafka_broker, ended, 0, b"later")
        wait_for(comes(kafka_broker, following, b"late 0", b"late 1", b"late 2", b"later"), "all others")
    assert shelf.gaps == {(0, 2, 3)}


def test_what_lies_before_the_end_is_not_looked_at(
    kafka_broker: str, topics: tuple[Topic, Topic], caplog: pytest.LogCaptureFixture
) -> None:
    """A partition may have been repaired: what nobody could read stands before the end marker."""
    ended, following = topics
    send(kafka_broker, ended, 0, bytes(MAX_BYTES + 1), b"end", b"late 0")
    with caplog.at_level(logging.ERROR), sending_on(kafka_broker, ended, following, {0: 2, 1: 0}):
        wait_for(comes(kafka_broker, following, b"late 0"), "what came late")
    assert "late_records_unreadable" not in caplog.text


def test_what_retention_took_before_it_was_copied_is_written_down_once(
    kafka_broker: str, topics: tuple[Topic, Topic], caplog: pytest.LogCaptureFixture
) -> None:
    """The reader was put to the log's start, and nothing said that there had been anything before it."""
    ended, following = topics
    send(kafka_broker, ended, 0, b"booked", b"end", b"gone 0", b"gone 1", b"late 0")
    send(kafka_broker, ended, 1, b"end")
    eat(kafka_broker, ended, 0, 4)
    eat(kafka_broker, ended, 1, 1)  # the end marker itself is no loss
    with caplog.at_level(logging.ERROR), sending_on(kafka_broker, ended, following, {0: 1, 1: 0}) as shelf:
        wait_for(comes(kafka_broker, following, b"late 0"), "what is there")
        send(kafka_broker, ended, 1, b"late 1")
        wait_for(comes(kafka_broker, following, b"late 0", b"late 1"), "what came later")
    assert shelf.gaps == {(0, 2, 4)}
    (lost,) = shelf.lost
    assert (lost.reason, lost.from_clock_ms, lost.from_booking) == ("late", ENDED_MS, 20_600_000)
    assert lost.from_clock_ms < lost.to_clock_ms <= time.time_ns() // 1_000_000
    assert [each.message for each in caplog.records if each.levelname == "ERROR"] == ["late_records_lost"]
    with sending_on(kafka_broker, ended, following, {0: 1, 1: 0}) as shelf:
        send(kafka_broker, ended, 0, b"last")
        wait_for(comes(kafka_broker, following, b"late 0", b"late 1", b"last"), "what came last")
    assert not shelf.lost


def test_what_retention_takes_while_nobody_copies_begins_where_copying_stopped(
    kafka_broker: str, topics: tuple[Topic, Topic]
) -> None:
    ended, following = topics
    send_end(kafka_broker, ended, 0)
    send(kafka_broker, ended, 0, b"late 0")
    with sending_on(kafka_broker, ended, following, {0: 0, 1: 0}):
        wait_for(comes(kafka_broker, following, b"late 0"), "what came late")
    between_ms = time.time_ns() // 1_000_000
    send(kafka_broker, ended, 0, b"gone", b"gone, too")
    eat(kafka_broker, ended, 0, 4)  # nothing is left of it
    with sending_on(kafka_broker, ended, following, Shelf({0: 0, 1: 0}, away=True)) as shelf:
        time.sleep(4)  # twice as long as it takes to try again
        shelf.away = False
        wait_for(lambda: shelf.lost, "what is lost to be written down")
    assert shelf.gaps == {(0, 2, 4)}
    assert ENDED_MS < shelf.lost[0].from_clock_ms <= between_ms <= shelf.lost[0].to_clock_ms
    with sending_on(kafka_broker, ended, following, {0: 0, 1: 0}) as shelf:
        send(kafka_broker, ended, 0, b"later")
        wait_for(comes(kafka_broker, following, b"late 0", b"later"), "what came later")
    assert not shelf.lost


def test_a_partition_that_has_not_ended_waits_and_the_others_do_not(
    kafka_broker: str, topics: tuple[Topic, Topic], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, following = topics
    monkeypatch.setattr(room, "_LOOK_S", 0.2)
    send_end(kafka_broker, ended, 0)
    send(kafka_broker, ended, 0, b"late 0")
    send(kafka_broker, ended, 1, b"not booked yet")
    with sending_on(kafka_broker, ended, following, {0: 0}) as shelf:
        wait_for(comes(kafka_broker, following, b"late 0"), "what came late")
        send_end(kafka_broker, ended, 1)
        send(kafka_broker, ended, 1, b"late 1")
        time.sleep(1)
        assert values(kafka_broker, following) == [b"late 0"]
        shelf.begins[1] = 1
        wait_for(comes(kafka_broker, following, b"late 0", b"late 1"), "what came late to the other one")
    assert not shelf.lost


def test_a_worker_whose_late_records_wait_for_minutes_is_not_ready(
    kafka_broker: str, topics: tuple[Topic, Topic], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that may not be read was a warning only, until retention had taken what waited."""
    ended, following = topics
    monkeypatch.setattr(counted, "LATE_WAITS_S", 0.1)
    monkeypatch.setattr(room, "_REST_S", 0.2)
    send(kafka_broker, ended, 0, b"end", b"gone")
    eat(kafka_broker, ended, 0, 2)
    with sending_on(kafka_broker, ended, following, Shelf({0: 0, 1: 0}, away=True)) as shelf:
        wait_for(lambda: "ClickHouse is away" in counted.late_waits(), "it to be said")
        shelf.away = False
        wait_for(lambda: not counted.late_waits(), "it to be taken back")
