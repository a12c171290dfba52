"""Reading a real Kafka: transactions, holes, retention, codecs, the Beam source, and a broker that goes away."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from pipeline import poll as poll_module
from pipeline.batches import Fetch
from pipeline.poll import Poller
from pipeline.read import STOP, ReadUsage, read_range
from pipeline.source import UsageReader, close_readers
from tallyman.errors import BrokerError, LogError
from tallyman.kafka import (
    check_topic,
    end_offsets,
    ensure_topics,
    log_starts,
    make_consumer,
    make_producer,
    partition_of,
    read_topic,
)
from tallyman.local.kafka import Broker
from tests.integration import reading
from tests.integration.booking import wait_for
from tests.stack import FreshTopic

pytestmark = pytest.mark.integration

TENANT = "Zoë Åström".encode()


@pytest.fixture(autouse=True)
def _fresh_readers() -> Iterator[None]:
    STOP.clear()
    reading.forget()
    yield
    close_readers()


@dataclass(frozen=True, slots=True)
class Topic:
    brokers: list[str]
    name: str
    topic_id: str


@pytest.fixture
def topic(kafka_broker: str, fresh_topic: FreshTopic) -> Topic:
    name = fresh_topic("usage.events", partitions=2)
    info = read_topic([kafka_broker], name)
    assert info is not None
    return Topic([kafka_broker], name, info.topic_id)


def send(topic: Topic, values: list[bytes], partition: int = 0, **options: object) -> None:
    producer = make_producer(topic.brokers, **options)
    for future in [producer.send(topic.name, value, key=TENANT, partition=partition) for value in values]:
        future.get(30)
    producer.close()


def read_all(topic: Topic, partition: int = 0, start: int = 0) -> list[Fetch]:
    consumer = make_consumer(topic.brokers)
    end = end_offsets(consumer, topic.name, [partition])[partition]
    consumer.close()
    return list(read_range(topic.brokers, topic.name, topic.topic_id, partition, start, end))


def values_of(fetches: list[Fetch]) -> list[bytes | None]:
    return [value for fetch in fetches for value in fetch.values]


def places_of(fetches: list[Fetch]) -> list[tuple[int, int]]:
    return [
        place for fetch in fetches for place in zip(fetch.offsets.tolist(), fetch.appended_ms.tolist(), strict=True)
    ]


def test_the_topics_are_made_once_as_the_books_need_them(own_broker: Broker) -> None:
    brokers = [own_broker.bootstrap]
    config = SimpleNamespace(topic="usage.events.v1", progress_topic="usage.progress.v1", partitions=3)
    made = ensure_topics(brokers, config, replication=1)
    assert [(info.name, info.partitions) for info in made] == [("usage.events.v1", 3), ("usage.progress.v1", 1)]
    assert ensure_topics(brokers, config, replication=1) == made
    assert check_topic(brokers, "usage.events.v1", topic_id=made[0].topic_id, partitions=3, replication=1) == made[0]
    with pytest.raises(LogError, match=r"min\.insync\.replicas: expected at least 2, got 1"):
        check_topic(brokers, "usage.events.v1")
    with pytest.raises(LogError, match="expected 4 partitions, got 3; the number never changes"):
        check_topic(brokers, "usage.events.v1", partitions=4, replication=1)


def test_a_topic_made_anew_under_the_old_name_is_refused(topic: Topic) -> None:
    send(topic, [b"{}"])
    admin = KafkaAdminClient(bootstrap_servers=topic.brokers)
    admin.delete_topics([topic.name])
    while read_topic(topic.brokers, topic.name) is not None:
        pass
    options = {"num_partitions": 2, "replication_factor": 1}
    admin.create_topics({topic.name: options}, wait_for_metadata=True)
    admin.close()
    with pytest.raises(LogError, match="got another one of the same name"):
        check_topic(topic.brokers, topic.name, topic_id=topic.topic_id, replication=1)
    send(topic, [b"{}"])
    with pytest.raises(LogError, match="got another one of the same name"):
        read_all(topic)


@pytest.mark.parametrize("codec", [None, "gzip", "lz4", "zstd"])
def test_what_was_sent_is_read_in_every_codec(topic: Topic, codec: str | None) -> None:
    sent = [b'{"id": "%d", "subject": "Zo\xc3\xab"}' % number for number in range(3000)]
    send(topic, sent, compression_type=codec)
    fetches = read_all(topic)
    assert values_of(fetches) == sent
    assert {key for fetch in fetches for key in fetch.keys} == {TENANT}
    assert all((fetch.appended_ms > 1_700_000_000_000).all() for fetch in fetches)


def test_a_read_may_begin_and_end_within_a_batch(topic: Topic) -> None:
    send(topic, [b"%d" % number for number in range(1000)], linger_ms=200)
    fetches = list(read_range(topic.brokers, topic.name, topic.topic_id, 0, 123, 789))
    assert values_of(fetches) == [b"%d" % number for number in range(123, 789)]
    assert (fetches[0].first, fetches[-1].next) == (123, 789)


def test_headers_arrive_as_they_were_sent(topic: Topic) -> None:
    producer = make_producer(topic.brokers)
    headers = [("content-type", b"application/x-ndjson"), ("tallyman-collector", TENANT), ("empty", b"")]
    producer.send(topic.name, b"{}", partition=0, headers=headers).get(30)
    producer.send(topic.name, b"{}", partition=0).get(30)
    producer.close()
    found = [fetch.headers_of(index) for fetch in read_all(topic) for index in range(len(fetch))]
    assert found == [tuple(headers), ()]


def transactions(topic: Topic) -> list[bytes]:
    """Write committed, aborted and plain records in turn; return those that count."""
    producer = KafkaProducer(
        bootstrap_servers=topic.brokers, transactional_id=f"{topic.name}-tx", acks="all", linger_ms=20
    )
    producer.init_transactions()
    counted = []
    for number in range(12):
        values = [b"%d/%d" % (number, part) for part in range(7)]
        producer.begin_transaction()
        for value in values:
            producer.send(topic.name, value, partition=0)
        producer.flush()
        if number % 3 == 1:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
            counted += values
        plain = b"plain %d" % number
        send(topic, [plain])
        counted.append(plain)
    producer.close()
    return counted


def test_aborted_transactions_never_count_and_markers_move_the_position(topic: Topic) -> None:
    counted = transactions(topic)
    fetches = read_all(topic)
    assert values_of(fetches) == counted
    assert [fetch.first for fetch in fetches[1:]] == [fetch.next for fetch in fetches[:-1]]
    offsets = [offset for fetch in fetches for offset in fetch.offsets.tolist()]
    assert len(set(offsets)) == len(counted)
    assert fetches[-1].next == 12 * 9  # seven records, a marker and a plain one in each round
    bases = [base for fetch in fetches for base, _, _ in fetch.digests]
    assert bases == sorted(set(bases))


def read_plainly(topic: Topic, start: int) -> tuple[list[bytes | None], list[tuple[int, int]], int]:
    """Return values, places and the position behind them, as kafka-python itself reads them record by record."""
    consumer, place = make_consumer(topic.brokers), TopicPartition(topic.name, 0)
    end = end_offsets(consumer, topic.name, [0])[0]
    consumer.assign([place])
    consumer.seek(place, start)
    records: list[Any] = []
    while consumer.position(place) < end:
        records += consumer.poll(1000).get(place, [])
    behind = consumer.position(place)
    consumer.close()
    return [each.value for each in records], [(each.offset, each.timestamp) for each in records], behind


def test_the_walk_agrees_with_the_plain_loop_from_every_position(topic: Topic) -> None:
    transactions(topic)
    for start in range(0, 60, 7):
        walked = read_all(topic, start=start)
        assert walked[0].first == start
        assert (values_of(walked), places_of(walked), walked[-1].next) == read_plainly(topic, start)


def test_an_open_transaction_holds_back_what_follows_it(topic: Topic) -> None:
    """Whether it counts is not known yet, so the position must not pass it."""
    producer = KafkaProducer(bootstrap_servers=topic.brokers, transactional_id=f"{topic.name}-open", acks="all")
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic.name, b"perhaps", partition=0).get(30)
    send(topic, [b"behind"])
    reader = UsageReader(topic.topic_id, lambda: Poller(make_consumer(topic.brokers), topic.name, topic.topic_id))
    assert reader.next_fetch(0, 0).next == 0
    producer.commit_transaction()
    producer.close()
    found: list[bytes | None] = []
    position = 0
    while len(found) < 2:
        fetch = reader.next_fetch(0, position)
        found, position = found + fetch.values, fetch.next
    assert found == [b"perhaps", b"behind"]
    reader.close()


def test_a_position_that_retention_removed_is_refused(topic: Topic) -> None:
    send(topic, [b"%d" % number for number in range(20)])
    admin = KafkaAdminClient(bootstrap_servers=topic.brokers)
    admin.delete_records({TopicPartition(topic.name, 0): 12})
    admin.close()
    consumer = make_consumer(topic.brokers)
    assert log_starts(consumer, topic.name, [0, 1]) == {0: 12, 1: 0}
    consumer.close()
    with pytest.raises(LogError, match="go on at offset 5, but the log begins at 12: retention removed 7 offsets"):
        read_all(topic, start=5)
    assert len(values_of(read_all(topic, start=12))) == 8


def test_a_position_behind_the_end_is_refused(topic: Topic) -> None:
    send(topic, [b"{}"] * 3)
    reader = UsageReader(topic.topic_id, lambda: Poller(make_consumer(topic.brokers), topic.name, topic.topic_id))
    with pytest.raises(LogError, match="go on at offset 9, but the log ends at 3"):
        for _ in range(20):
            reader.next_fetch(0, 9)
    reader.close()


def test_the_end_of_a_bounded_read_must_be_there(topic: Topic) -> None:
    send(topic, [b"{}"] * 3)
    with pytest.raises(LogError, match="expected records up to offset 4, but the log ends at 3"):
        list(read_range(topic.brokers, topic.name, topic.topic_id, 0, 0, 4))


def test_an_empty_fetch_says_whether_the_log_ends_there_or_nothing_has_come_yet(topic: Topic) -> None:
    send(topic, [b"{}"] * 3)
    reader = UsageReader(topic.topic_id, lambda: Poller(make_consumer(topic.brokers), topic.name, topic.topic_id))
    assert not reader.next_fetch(0, 0, 0).at_end, "the broker has not answered yet"
    read_until(reader, 0, 3)
    wait_for(lambda: reader.next_fetch(0, 3).at_end, "the end")
    reader.close()


def test_a_reader_goes_back_when_the_book_does(topic: Topic) -> None:
    """A flush failed, the chunk is read again: what was fetched ahead is thrown away."""
    send(topic, [b"%d" % number for number in range(100)])
    reader = UsageReader(topic.topic_id, lambda: Poller(make_consumer(topic.brokers), topic.name, topic.topic_id, 64))
    first = read_until(reader, 0, 40)
    again = read_until(reader, 10, 100)
    assert first[:30] == [b"%d" % number for number in range(30)]
    assert again == [b"%d" % number for number in range(10, 100)]
    reader.close()


def read_until(reader: UsageReader, position: int, end: int) -> list[bytes | None]:
    values: list[bytes | None] = []
    while position < end:
        fetch = reader.next_fetch(0, position)
        assert fetch.first == position
        values, position = values + fetch.values, fetch.next
    return values


def test_a_damaged_batch_is_asked_for_again_and_then_refused(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the wire damaged comes whole the second time; what the disk damaged does not."""
    send(topic, [b"one"])
    real = poll_module.BatchWalk
    damages = [1, 0]

    def damaged(buffer: bytes, *rest: object) -> object:
        if buffer and damages and damages.pop(0):
            buffer = buffer[:-2] + b"\xff\xff"
        return real(buffer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(poll_module, "BatchWalk", damaged)
    assert values_of(read_all(topic)) == [b"one"]
    damages[:] = [1] * 10
    with pytest.raises(LogError, match="checksum"):
        read_all(topic)


def run(topic: Topic, until: int) -> None:
    """Run a pipeline as the service does, until so many records are folded."""
    STOP.clear()
    reading.stop_at(until)
    options = beam.options.pipeline_options.PipelineOptions(["--direct_num_workers=1"])
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        (
            pipeline
            | ReadUsage(
                topic.brokers,
                topic.name,
                topic.topic_id,
                [0, 1],
                positions="tests.integration.reading:next_position",
                restart="tests.integration.reading:restart_place",
            )
            | beam.ParDo(reading.Fold())
        )


def test_a_pipeline_reads_every_record_once_through_rebuilds(topic: Topic) -> None:
    sent = {partition: [b"%d-%d" % (partition, n) for n in range(5000)] for partition in (0, 1)}
    for partition, values in sent.items():
        send(topic, values[:2500], partition)
    run(topic, until=4000)
    for partition, values in sent.items():
        send(topic, values[2500:], partition)
    run(topic, until=10_000)
    assert sent == reading.VALUES


def test_an_idle_pipeline_emits_empty_fetches_and_stops_when_asked(topic: Topic) -> None:
    idle = threading.Thread(target=reading.ask_when_empty, args=(2,))
    idle.start()
    run(topic, until=10**9)
    idle.join()
    assert reading.EMPTY[0] >= 2
    assert reading.EMPTY[1] >= 2


def test_a_pipeline_outlives_its_broker(own_broker: Broker) -> None:
    """It reads on at the same place; nothing is lost, nothing comes twice."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    name = own_broker.create_topic("usage.events", partitions=2)
    info = read_topic([own_broker.bootstrap], name)
    assert info is not None
    topic = Topic([own_broker.bootstrap], name, info.topic_id)
    send(topic, [b"%d" % number for number in range(500)])
    reader = threading.Thread(target=run, args=(topic, 1000))
    reader.start()
    reading.wait_for(500)
    own_broker.kill()
    own_broker.start()
    send(topic, [b"%d" % number for number in range(500, 1000)])
    reader.join(120)
    logging.getLogger("kafka").setLevel(logging.NOTSET)
    assert not reader.is_alive()
    assert reading.VALUES[0] == [b"%d" % number for number in range(1000)]


def test_a_broker_that_was_never_there_is_an_error_that_may_pass() -> None:
    reader = UsageReader("id", lambda: Poller(make_consumer(["127.0.0.1:1"]), "usage.events.v1", "id"))
    with pytest.raises(BrokerError) as raised:
        reader.next_fetch(0, 0)
    assert raised.value.retriable


def test_the_default_partitioner_of_a_producer_agrees_with_ours(topic: Topic) -> None:
    producer = make_producer(topic.brokers)
    keys = [f"Zoë Åström/{number}".encode() for number in range(40)]
    told = Counter(producer.send(topic.name, b"{}", key=key).get(30).partition == partition_of(key, 2) for key in keys)
    producer.close()
    assert told == {True: 40}
