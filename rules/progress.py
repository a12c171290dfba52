"""The pipeline's pushes: read from the newest on, all that wait in one go."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError

from rules.rounds import Touch
from tallyman.errors import BrokerError
from tallyman.kafka import make_consumer

log = logging.getLogger(__name__)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Push(msgspec.Struct):
    """What the rules engine needs of a `usage.progress.v1` record."""

    touched: list[tuple[str, str, int, int]] | None
    written_ms: int = 0


@dataclass(frozen=True, slots=True)
class News:
    """What came in since the last time.

    Attributes:
        records: How many pushes that were; 0 when nothing came.
        touches: None when everything may have changed.
        oldest_written: When the first of them was written.
    """

    records: int
    touches: tuple[Touch, ...] | None
    oldest_written: datetime | None = None


class ProgressReader:
    """Follows the progress topic. A push that is missed is made up for by the rules' intervals."""

    def __init__(self, brokers: Sequence[str], topic: str) -> None:
        """Place itself behind the newest push.

        Raises:
            BrokerError: Kafka does not answer, or there is no such topic yet.
        """
        self._consumer: Any = make_consumer(brokers)
        try:
            partitions = self._consumer.partitions_for_topic(topic)
            if not partitions:
                raise BrokerError(f'topic "{topic}": expected it to exist, got none; start the pipeline, it makes it')
            self._consumer.assign([TopicPartition(topic, number) for number in sorted(partitions)])
            self._consumer.seek_to_end()
            for place in self._consumer.assignment():
                self._consumer.position(place)  # now, not at the first poll: what comes from here on is seen
        except KafkaError as error:
            self._consumer.close()
            raise BrokerError(f'topic "{topic}": expected to follow it, got {type(error).__name__}: {error}') from error
        except BrokerError:
            self._consumer.close()
            raise

    def read(self, wait_s: float) -> News:
        """Return everything that waits, or wait for the first push.

        Raises:
            BrokerError: Kafka is away, or the place is gone; make a new reader and look at all rules.
        """
        try:
            found = self._consumer.poll(timeout_ms=max(1, round(wait_s * 1000)))
        except KafkaError as error:
            raise BrokerError(f"progress: expected to go on reading, got {type(error).__name__}: {error}") from error
        values = [record.value for records in found.values() for record in records]
        return read_news(values)

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def read_news(values: Sequence[bytes | None]) -> News:
    """Return what pushes say together; one that cannot be read means that anything may have changed."""
    spans: dict[tuple[str, str], tuple[int, int]] = {}
    everything = False
    written = []
    for value in values:
        try:
            push = msgspec.json.decode(value or b"", type=_Push)
        except msgspec.MsgspecError as error:
            log.warning("push_not_read", extra={"error": str(error)})
            everything = True
            continue
        written.append(push.written_ms)
        everything |= push.touched is None
        for meter, subject, first, last in push.touched or ():
            known = spans.get((meter, subject), (first, last))
            spans[meter, subject] = min(known[0], first), max(known[1], last)
    touches = tuple(
        Touch(meter, subject, _minute(first), _minute(last + 1)) for (meter, subject), (first, last) in spans.items()
    )
    oldest = _EPOCH + timedelta(milliseconds=min(written)) if written else None
    return News(len(values), None if everything else touches, oldest)


def _minute(number: int) -> datetime:
    return _EPOCH + timedelta(minutes=number)
