"""What the pipeline sends to Kafka: forwards, ticks, closes, and the push that tells who waits that usage is
readable.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from kafka.errors import KafkaError, MessageSizeTooLargeError

from pipeline.book import Forward
from pipeline.write import Progress
from tallyman.errors import BrokerError
from tallyman.event import CLOSE, DEFINITIONS, END, TICK
from tallyman.headers import Headers
from tallyman.kafka import ANY_SIZE, MAX_MESSAGE_BYTES, make_producer

_ACK_TIMEOUT_S = 30
_MOST_PUSHED = MAX_MESSAGE_BYTES // 2
_TICKS_AT_ONCE = 10_000
log = logging.getLogger(__name__)


class KafkaOutlet:
    """See `pipeline.write.Outlet`. One producer for each lane, made when it is first needed."""

    def __init__(self, brokers: Sequence[str], topic: str, progress_topic: str, expected_delay_us: int) -> None:
        self._brokers = tuple(brokers)
        self._topic = topic
        self._progress_topic = progress_topic
        self._expected_delay_us = expected_delay_us
        self._made: Any = None

    @property
    def _producer(self) -> Any:
        if self._made is None:
            self._made = make_producer(self._brokers)
        return self._made

    def close(self) -> None:
        """Let go of the producer; what it has not sent yet is pushes and ticks, which may be lost."""
        if self._made is not None:
            self._made.close(timeout=2)
            self._made = None

    def forward(self, forwards: Sequence[Forward]) -> None:
        doing = "forwarding to the home partition"
        try:
            futures = [
                self._producer.send(
                    self._topic,
                    key=each.key or None,
                    value=each.value,
                    headers=list(each.headers),
                    partition=each.partition,
                )
                for each in forwards
            ]
        except KafkaError as error:
            raise _unacknowledged(doing, error) from error
        _acknowledged(futures, doing)

    def tick(self, partition: int) -> None:
        """Move the clock of a silent partition."""
        self._producer.send(self._topic, value=b"", headers=[(TICK, b"1")], partition=partition)

    def push(self, progress: Progress) -> None:
        place = progress.place
        record = {
            "topic": self._topic,
            "topic_id": progress.topic_id,
            "partition": progress.partition,
            "chunk": progress.chunk,
            "covered": progress.covered,
            "offset": place.offset,
            "clock_ms": place.clock_ms,
            "watermark_us": place.clock_ms * 1000 - self._expected_delay_us,
            "booking": place.booking,
            "written_ms": time.time_ns() // 1_000_000,
            "touched": progress.touched,
        }
        value = msgspec.json.encode(record)
        if len(value) > _MOST_PUSHED:  # thousands of long names: whoever waits asks for all
            value = msgspec.json.encode(record | {"touched": None})
        key = f"{self._topic}/{progress.partition}".encode()
        try:
            self._producer.send(self._progress_topic, key=key, value=value)
        except (KafkaError, BrokerError) as error:
            log.warning("push_lost", extra={"partition": progress.partition, "error": str(error)[:500]})


def write_close(brokers: Sequence[str], topic: str, partitions: int, booking: int, definitions: int) -> list[int]:
    """Write one close record into each partition; again after a crash is harmless.

    Returns:
        When each was appended, in milliseconds since 1970 by the clock of the partition's leader.

    Raises:
        BrokerError: Not every partition acknowledged.
    """
    producer = make_producer(tuple(brokers))
    try:
        headers = [(CLOSE, str(booking).encode()), (DEFINITIONS, str(definitions).encode())]
        futures = [producer.send(topic, value=b"", headers=headers, partition=number) for number in range(partitions)]
        written = _acknowledged(futures, f"writing the close that opens booking {booking}")
        return [int(each.timestamp) for each in written]
    finally:
        producer.close(timeout=5)


def write_end(brokers: Sequence[str], topic: str, partitions: int, following: str) -> None:
    """Write an end marker into each partition; again after a crash is harmless.

    Raises:
        BrokerError: Not every partition acknowledged.
    """
    producer = make_producer(tuple(brokers))
    try:
        headers = [(END, following.encode())]
        futures = [producer.send(topic, value=b"", headers=headers, partition=number) for number in range(partitions)]
        _acknowledged(futures, f'writing the end of topic "{topic}"')
    finally:
        producer.close(timeout=5)


def _acknowledged(futures: Sequence[Any], doing: str) -> list[Any]:
    """Return what Kafka says of each record."""
    found = []
    for future in futures:
        try:
            found.append(future.get(timeout=_ACK_TIMEOUT_S))
        except Exception as error:  # kafka-python raises many; none of them means acknowledged
            raise _unacknowledged(doing, error) from error
    return found


def _unacknowledged(doing: str, error: Exception) -> BrokerError:
    too_large = isinstance(error, MessageSizeTooLargeError)
    step = "; raise max.message.bytes of the topic, then do it again" if too_large else ""
    return BrokerError(f"{doing}: Kafka did not acknowledge: {type(error).__name__}: {error}{step}")


def write_ticks(brokers: Sequence[str], topic: str, partition: int, count: int) -> None:
    """Write empty records into a partition, so that its log is at least so much longer.

    Raises:
        BrokerError: Not all were acknowledged.
    """
    producer = make_producer(tuple(brokers))
    try:
        for first in range(0, count, _TICKS_AT_ONCE):
            some = range(first, min(first + _TICKS_AT_ONCE, count))
            futures = [producer.send(topic, value=b"", headers=[(TICK, b"1")], partition=partition) for _ in some]
            _acknowledged(futures, f"writing {count} ticks into partition {partition}")
    finally:
        producer.close(timeout=5)


def append(
    brokers: Sequence[str], topic: str, partition: int, records: Sequence[tuple[bytes | None, bytes, Headers]]
) -> int:
    """Append records (key, value, headers) to a partition; return when the last was, in milliseconds since 1970 by the
    clock of its leader, 0 if there are none.

    Raises:
        BrokerError: Not all were acknowledged; appending them again is safe, their ids count once.
    """
    producer = make_producer(tuple(brokers), max_request_size=ANY_SIZE)
    try:
        futures = [
            producer.send(topic, key=key, value=value, headers=list(headers), partition=partition)
            for key, value, headers in records
        ]
        written = _acknowledged(futures, f"sending again what partition {partition} held")
        return max((int(each.timestamp) for each in written), default=0)
    finally:
        producer.close(timeout=5)
