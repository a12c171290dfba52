"""What goes to Kafka from a flush, when Kafka or a record is not as it should be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from pipeline.book import Forward, Place
from pipeline.outlet import KafkaOutlet
from pipeline.write import Progress
from tallyman.errors import BrokerError
from tallyman.event import MAX_NAME_BYTES
from tallyman.kafka import MAX_MESSAGE_BYTES


class Producer:
    """Takes what it is given, or says no before it has sent anything."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.sent = error, list[Any]()

    def send(self, topic: str, **record: Any) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(record)


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


def test_a_forward_that_kafka_does_not_take_is_not_acknowledged() -> None:
    with pytest.raises(BrokerError, match="forwarding to the home partition: Kafka did not acknowledge: KafkaTimeout"):
        outlet(Producer(KafkaTimeoutError("no metadata"))).forward([Forward(0, b"", b"{}", ())])
