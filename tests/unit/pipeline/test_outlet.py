"""What goes to Kafka from a flush, when Kafka or a record is not as it should be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from pipeline.book import Forward, Place
from pipeline.outlet import KafkaOutlet, append
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


class Producer:
    """Takes what it is given, or says no before it has sent anything."""

    def __init__(self, error: Exception | None = None, answer: Exception | None = None) -> None:
        self.error, self.answer, self.sent = error, answer, list[Any]()

    def send(self, topic: str, **record: Any) -> Answer:
        if self.error is not None:
            raise self.error
        self.sent.append(record)
        return Answer(self.answer)

    def close(self, timeout: float) -> None:
        return


def outlet(producer: Producer) -> KafkaOutlet:
    made = KafkaOutlet(("nowhere:9092",), "usage.events.v1", "usage.progress.v1", 0)
    made._made = producer
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


@pytest.mark.parametrize("error", [KafkaTimeoutError("no metadata"), MessageSizeTooLargeError("large")])
def test_a_push_that_kafka_does_not_take_is_lost_and_booking_goes_on(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    outlet(Producer(error)).push(progress(1))
    assert [record.message for record in caplog.records] == ["push_lost"]


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
