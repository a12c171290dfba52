"""What comes late into a topic that has ended, sent on from a real Kafka to a real Kafka."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pipeline.late import LateRecords
from pipeline.read import read_range
from pipeline.unpack import MAX_BYTES
from tallyman.books import Topic
from tallyman.kafka import end_offsets, make_consumer, make_producer, read_topic
from tests.integration.booking import wait_for
from tests.stack import FreshTopic

pytestmark = pytest.mark.integration

HEADERS = [("content-type", b"application/x-ndjson"), ("empty", b"")]


@pytest.fixture
def topics(kafka_broker: str, fresh_topic: FreshTopic) -> tuple[Topic, Topic]:
    found = []
    for base, partitions in (("usage.events", 2), ("usage.more", 1)):
        name = fresh_topic(base, partitions=partitions)
        info = read_topic([kafka_broker], name)
        assert info is not None
        found.append(Topic(info.topic_id, name, partitions, 1 << 16, True))
    return found[0], found[1]


@contextmanager
def sending_on(broker: str, ended: Topic, following: Topic, begins: dict[int, int]) -> Iterator[None]:
    stop = threading.Event()
    late = LateRecords((broker,), ended, following.name, begins, stop)
    late.start()
    try:
        yield
    finally:
        stop.set()
        late.close()


def send(broker: str, topic: Topic, partition: int, *values: bytes | None) -> None:
    producer = make_producer([broker], compression_type="zstd", max_request_size=1 << 30)
    for value in values:
        producer.send(topic.name, value, key=b"acme", partition=partition, headers=HEADERS).get(60)
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
        wait_for(lambda: "late_records_unreadable" in caplog.text, "the partition to be set aside", patience_s=60)
        send(kafka_broker, ended, 1, b"later")
        wait_for(comes(kafka_broker, following, b"late 0", b"late 1", b"later"), "what came later", patience_s=60)
    (told,) = [record for record in caplog.records if record.message == "late_records_unreadable"]
    assert (told.partition, told.levelname) == (0, "ERROR")  # type: ignore[attr-defined]


def test_what_lies_before_the_end_is_not_looked_at(
    kafka_broker: str, topics: tuple[Topic, Topic], caplog: pytest.LogCaptureFixture
) -> None:
    """A partition may have been repaired: what nobody could read stands before the end marker."""
    ended, following = topics
    send(kafka_broker, ended, 0, bytes(MAX_BYTES + 1), b"end", b"late 0")
    with caplog.at_level(logging.ERROR), sending_on(kafka_broker, ended, following, {0: 2, 1: 0}):
        wait_for(comes(kafka_broker, following, b"late 0"), "what came late", patience_s=60)
    assert "late_records_unreadable" not in caplog.text
