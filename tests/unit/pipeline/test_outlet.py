"""What goes to Kafka from a flush, when Kafka or a record is not as it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, TopicAuthorizationFailedError

from pipeline.book import Forward, Place
from pipeline.outlet import KafkaOutlet, append, write_close, write_end, write_ticks
from pipeline.write import Progress
from tallyman.errors import BrokerError
from tallyman.event import MAX_NAME_BYTES
from tallyman.kafka import MAX_MESSAGE_BYTES


class Answer:
    """What Kafka says of a record."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def get(self, timeout: float) -> None:
        if self.error is not None:
            raise self.error

    def add_callback(self, call: Callable[[None], None]) -> None:
        if self.error is None:
            call(None)

    def add_errback(self, call: Callable[[Exception], None]) -> None:
        if self.error is not None:
            call(self.error)


class Producer:
    """Takes what it is given, or says no before it has sent anything."""

    def __init__(self, error: Exception | None = None, answer: Exception | None = None) -> None:
        self.error, self.answer, self.sent, self.asked = error, answer, list[Any](), 0

    def send(self, topic: str, **record: Any) -> Answer:
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.sent.append(record)
        return Answer(self.answer)

    def flush(self, timeout: float) -> None:
        self.close(timeout)

    def close(self, timeout: float) -> None:
        if self.answer is not None:  # as kafka-python does while batches are left
            raise KafkaTimeoutError("Failed to flush")


def outlet(producer: Producer) -> KafkaOutlet:
    made = KafkaOutlet(("nowhere:9092",), "usage.events.v1", "usage.progress.v1", 0)
    made._made = made._pushes._made = producer
    return made


def progress(subjects: int) -> Progress:
    touched = [("compute.hours", f"{number:06}".ljust(MAX_NAME_BYTES, "x"), 1, 2) for number in range(subjects)]
    return Progress("t", 3, 0, 10, Place(offset=10), touched)


def test_a_push_names_whose_usage_changed() -> None:
    producer = Producer()
    outlet(producer).push(progress(2))
    assert len(msgspec.json.decode(producer.sent[0]["value"])["touched"]) == 2


def test_a_push_about_thousands_of_long_names_names_none_so_that_kafka_takes_it() -> None:
    producer = Producer()
    outlet(producer).push(progress(8_500))
    (record,) = producer.sent
    assert msgspec.json.decode(record["value"])["touched"] is None and len(record["value"]) < MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    "producer",
    [
        Producer(KafkaTimeoutError("no metadata")),
        Producer(MessageSizeTooLargeError("large")),
        Producer(answer=TopicAuthorizationFailedError("told later")),
    ],
)
def test_pushes_that_kafka_does_not_take_hold_nothing_up_and_are_told_of_once(
    producer: Producer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would wait for a topic that is gone, and a flush with it."""
    caplog.set_level("INFO", "pipeline.outlet")
    now = 1000.0
    monkeypatch.setattr("pipeline.outlet.time.monotonic", lambda: now)
    pushes = outlet(producer)
    tried = []
    for _ in range(120):
        now += 1
        pushes.push(progress(1))
        tried.append(producer.asked)
    assert tried[:16] == [1] * 5 + [2] * 10 + [3], "it rests, ever longer"
    assert tried[-1] == 5
    assert [record.message for record in caplog.records] == ["push_lost"]
    producer.error = producer.answer = None
    now += 60
    pushes.push(progress(1))
    pushes.push(progress(1))
    assert producer.asked == 7
    assert [record.message for record in caplog.records] == ["push_lost", "pushes_go_on"]


def test_pushes_wait_for_their_topic_no_longer_than_a_flush_may_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict[str, Any]()
    monkeypatch.setattr("pipeline.outlet.make_producer", lambda _, **given: options.update(given) or Producer())
    KafkaOutlet(("nowhere:9092",), "usage.events.v1", "usage.progress.v1", 0).push(progress(1))
    assert options["max_block_ms"] <= 1000


@pytest.mark.parametrize(
    "write",
    [
        lambda brokers, topic: write_close(brokers, topic, 2, 20_000_001, 1),
        lambda brokers, topic: write_end(brokers, topic, 2, "usage.events.v2"),
        lambda brokers, topic: write_ticks(brokers, topic, 0, 3),
        lambda brokers, topic: append(brokers, topic, 0, [(None, b"{}", ())]),
    ],
    ids=["close", "end", "ticks", "append"],
)
def test_what_cannot_even_be_sent_is_not_acknowledged(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.outlet.make_producer", lambda *_, **__: Producer(KafkaTimeoutError("no metadata")))
    with pytest.raises(BrokerError, match="Kafka did not acknowledge: KafkaTimeoutError"):
        write(("nowhere:9092",), "usage.events.v1")


def test_a_record_that_its_sender_compressed_better_than_we_do_says_what_lets_it_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict[str, Any]()

    def make(brokers: tuple[str, ...], **given: Any) -> Producer:
        options.update(given)
        return Producer(answer=MessageSizeTooLargeError("larger than max.message.bytes"))

    monkeypatch.setattr("pipeline.outlet.make_producer", make)
    with pytest.raises(BrokerError, match=r"what partition 3 held: .*; raise max\.message\.bytes of"):
        append(("nowhere:9092",), "usage.events.v1", 3, [(None, bytes(2 * MAX_MESSAGE_BYTES), ())])
    assert options["max_request_size"] > 100 * MAX_MESSAGE_BYTES, "only the broker knows what is too large"


def test_a_forward_that_kafka_does_not_take_is_not_acknowledged() -> None:
    with pytest.raises(BrokerError, match="forwarding to the home partition: Kafka did not acknowledge: KafkaTimeout"):
        outlet(Producer(KafkaTimeoutError("no metadata"))).forward([Forward(0, b"", b"{}", ())])
