"""What the pipeline sends to Kafka: forwards, ticks, closes, and the push that tells who waits that usage is
readable.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from kafka.errors import KafkaError, MessageSizeTooLargeError

from pipeline.book import Forward
from pipeline.write import Progress
from tallyman.errors import BrokerError
from tallyman.event import CLOSE, DEFINITIONS, END, TICK
from tallyman.headers import Headers
from tallyman.kafka import ANY_SIZE, MAX_MESSAGE_BYTES, let_go, make_producer

_ACK_TIMEOUT_S = 30
_MOST_PUSHED = MAX_MESSAGE_BYTES // 2
_PUSH_WAIT_MS = 1000  # for the topic's metadata, in the middle of a flush
_PUSH_REST_S, _PUSH_LONGEST_REST_S = 5.0, 60.0
_TICKS_AT_ONCE = 10_000
log = logging.getLogger(__name__)


class KafkaOutlet:
    """See `pipeline.write.Outlet`. Its producers are made when they are first needed."""

    def __init__(self, brokers: Sequence[str], topic: str, progress_topic: str, expected_delay_us: int) -> None:
        self._brokers = tuple(brokers)
        self._topic = topic
        self._expected_delay_us = expected_delay_us
        self._made: Any = None
        self._ticking: Any = None
        self._pushes = _Pushes(self._brokers, progress_topic)

    @property
    def _producer(self) -> Any:
        if self._made is None:
            self._made = make_producer(self._brokers)
        return self._made

    def close(self) -> None:
        """Let go of the producers; what they have not sent yet is pushes and ticks, which may be lost."""
        self._pushes.close()
        for producer in (self._made, self._ticking):
            if producer is not None:
                let_go(producer, wait_s=2)
        self._made = self._ticking = None

    def forward(self, forwards: Sequence[Forward]) -> None:
        doing = "forwarding to the home partition"
        records = [
            {"key": each.key or None, "value": each.value, "headers": list(each.headers), "partition": each.partition}
            for each in forwards
        ]
        _send_all(self._producer, self._topic, records, doing)

    def tick(self, partition: int) -> None:
        """Move the clock of a silent partition.

        Nobody waits to hear what became of it, so its producer must go on behind one that is refused: an idempotent one
        of kafka-python's refuses all that comes after it.
        """
        if self._ticking is None:
            self._ticking = make_producer(self._brokers, enable_idempotence=False)  # a tick more does no harm
        self._ticking.send(self._topic, value=b"", headers=[(TICK, b"1")], partition=partition)

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
        self._pushes.send(key, value)


class _Pushes:
    """Sends pushes with a producer of their own, and never holds booking up: after one that is lost, those of the next
    seconds are not even tried. The rules engine makes up for them by looking in its own time.
    """

    def __init__(self, brokers: Sequence[str], topic: str) -> None:
        self._brokers, self._topic = tuple(brokers), topic
        self._made: Any = None
        self._again_at = self._rest_s = 0.0
        self._lock = threading.Lock()  # the producer's own thread tells what became of a push

    def send(self, key: bytes, value: bytes) -> None:
        if time.monotonic() < self._again_at:
            return
        try:
            if self._made is None:
                self._made = _make_push_producer(self._brokers)
            future = self._made.send(self._topic, key=key, value=value)
        except (KafkaError, BrokerError) as error:
            self._lost(error)
        else:
            future.add_callback(self._taken)
            future.add_errback(self._lost)

    def close(self) -> None:
        if self._made is not None:
            let_go(self._made, wait_s=2)
            self._made = None

    def _taken(self, _: Any) -> None:
        with self._lock:
            was_lost, self._again_at, self._rest_s = self._rest_s > 0, 0.0, 0.0
        if was_lost:
            log.info("pushes_go_on", extra={"topic": self._topic})

    def _lost(self, error: BaseException) -> None:
        with self._lock:
            if time.monotonic() < self._again_at:
                return  # it was under way when another one was lost
            is_first = not self._rest_s
            self._rest_s = min(max(_PUSH_REST_S, 2 * self._rest_s), _PUSH_LONGEST_REST_S)
            self._again_at = time.monotonic() + self._rest_s
        if is_first:
            said = f"{type(error).__name__}: {error}"[:500]
            step = f'alarms are late until Kafka takes them again; if "{self._topic}" is gone, start the pipeline again'
            log.warning("push_lost", extra={"topic": self._topic, "error": said, "next_step": step})


def _make_push_producer(brokers: Sequence[str]) -> Any:
    return make_producer(
        brokers,
        enable_idempotence=False,  # a push that comes twice does no harm
        max_block_ms=_PUSH_WAIT_MS,
        request_timeout_ms=5_000,
        delivery_timeout_ms=10_000,  # so long it may wait for a leader; then it is old news
    )


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
        records = [{"value": b"", "headers": headers, "partition": number} for number in range(partitions)]
        written = _send_all(producer, topic, records, f"writing the close that opens booking {booking}")
        return [int(each.timestamp) for each in written]
    finally:
        let_go(producer)


def write_end(brokers: Sequence[str], topic: str, partitions: int, following: str) -> None:
    """Write an end marker into each partition; again after a crash is harmless.

    Raises:
        BrokerError: Not every partition acknowledged.
    """
    producer = make_producer(tuple(brokers))
    try:
        headers = [(END, following.encode())]
        records = [{"value": b"", "headers": headers, "partition": number} for number in range(partitions)]
        _send_all(producer, topic, records, f'writing the end of topic "{topic}"')
    finally:
        let_go(producer)


def _send_all(producer: Any, topic: str, records: Iterable[dict[str, Any]], doing: str) -> list[Any]:
    """Send records and return what Kafka says of each.

    Raises:
        BrokerError: Not all were acknowledged; a record may not even be taken, while nobody knows where it belongs.
    """
    try:
        futures = [producer.send(topic, **record) for record in records]
        return [future.get(timeout=_ACK_TIMEOUT_S) for future in futures]
    except Exception as error:  # kafka-python raises many; none of them means acknowledged
        raise _unacknowledged(doing, error) from error


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
            records = ({"value": b"", "headers": [(TICK, b"1")], "partition": partition} for _ in some)
            _send_all(producer, topic, records, f"writing {count} ticks into partition {partition}")
    finally:
        let_go(producer)


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
        all_of_them = (
            {"key": key, "value": value, "headers": list(headers), "partition": partition}
            for key, value, headers in records
        )
        written = _send_all(producer, topic, all_of_them, f"sending again what partition {partition} held")
        return max((int(each.timestamp) for each in written), default=0)
    finally:
        let_go(producer)
