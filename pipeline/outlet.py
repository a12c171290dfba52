"""What the pipeline sends to Kafka: forwards, ticks, closes, and the push that tells who waits that usage is
readable.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.book import Forward
from pipeline.write import Progress
from tallyman.errors import BrokerError
from tallyman.event import CLOSE, DEFINITIONS, END, TICK
from tallyman.kafka import make_producer

_ACK_TIMEOUT_S = 30


class KafkaOutlet:
    """See `pipeline.write.Outlet`. One producer for the process, made when it is first needed."""

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
        _acknowledged(futures, "forwarding to the home partition")

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
        key = f"{self._topic}/{progress.partition}".encode()
        self._producer.send(self._progress_topic, key=key, value=msgspec.json.encode(record))


def write_close(brokers: Sequence[str], topic: str, partitions: int, booking: int, definitions: int) -> None:
    """Write one close record into each partition; again after a crash is harmless.

    Raises:
        BrokerError: Not every partition acknowledged.
    """
    producer = make_producer(tuple(brokers))
    try:
        headers = [(CLOSE, str(booking).encode()), (DEFINITIONS, str(definitions).encode())]
        futures = [producer.send(topic, value=b"", headers=headers, partition=number) for number in range(partitions)]
        _acknowledged(futures, f"writing the close that opens booking {booking}")
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


def _acknowledged(futures: Sequence[Any], doing: str) -> None:
    for future in futures:
        try:
            future.get(timeout=_ACK_TIMEOUT_S)
        except Exception as error:  # kafka-python raises many; none of them means acknowledged
            raise BrokerError(f"{doing}: Kafka did not acknowledge: {type(error).__name__}: {error}") from error


def write_ticks(brokers: Sequence[str], topic: str, partition: int, count: int) -> None:
    """Write empty records into a partition, so that its log is at least so much longer.

    Raises:
        BrokerError: Not all were acknowledged.
    """
    producer = make_producer(tuple(brokers))
    try:
        futures = [producer.send(topic, value=b"", headers=[(TICK, b"1")], partition=partition) for _ in range(count)]
        _acknowledged(futures, f"writing {count} ticks into partition {partition}")
    finally:
        producer.close(timeout=5)
