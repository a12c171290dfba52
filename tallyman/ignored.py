"""Tell of events that were sent, and neither count nor are dead, which ones no meter wants: the others are copies.

Most are told by their type. Where every meter of a type has a filter, the events themselves are read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kafka import TopicPartition
from kafka.errors import KafkaError

from tallyman.binary import compose
from tallyman.errors import BrokerError, EventError
from tallyman.event import SINGLE, Event, decode_record
from tallyman.headers import Headers, headers_of, kind_of
from tallyman.in_force import definitions_in_force
from tallyman.kafka import TopicInfo, make_consumer
from tallyman.meter import Definitions, Meter, measure

if TYPE_CHECKING:
    from tallyman.project import Project

Runs = Sequence[tuple[int, int]]
Record = tuple[Headers, bytes]
_POLL_MS = 10_000
_MOST_AT_ONCE = 10_000  # records


class Judge:
    """Says what definitions leave out in silence."""

    def __init__(self, definitions: Definitions) -> None:
        self._meters: dict[str, list[Meter]] = {}
        for meter in definitions.meters:
            self._meters.setdefault(meter.event_type, []).append(meter)
        self._unwanted = set(definitions.ignore) - self._meters.keys()

    def by_type(self, types: Mapping[str, int]) -> int:
        """Return how many events are ignored for their type alone."""
        return sum(number for name, number in types.items() if name in self._unwanted)

    def needs_events(self, types: Mapping[str, int]) -> bool:
        """Whether there are types of which some events may be left out by the filters of all their meters."""
        return any(all(meter.where for meter in self._meters[name]) for name in types if name in self._meters)

    def by_filter(self, records: Iterable[Record]) -> int:
        """Return how many events of these records the filters of all their meters leave out."""
        return sum(self._is_left_out(event) for record in records for event in _events(record))

    def _is_left_out(self, event: Event) -> bool:
        meters = self._meters.get(event.type, ())
        try:
            return bool(meters) and all(measure(meter, event) is None for meter in meters)
        except EventError:  # a dead letter
            return False


def count_ignored(
    project: Project, topic: TopicInfo, offsets: Mapping[int, Runs], types: Mapping[str, int], rest: int
) -> int:
    """Return how many of the `rest` events that neither count nor are dead are ignored, by the definitions in force.

    Args:
        offsets: Partition -> runs of offsets that hold what was sent.
        types: Event type -> how many were sent.

    Raises:
        BrokerError: Kafka does not answer.
    """
    if not rest:
        return 0
    judge = Judge(definitions_in_force(project))
    ignored = judge.by_type(types)
    if ignored < rest and judge.needs_events(types):
        ignored += judge.by_filter(read_records(project.kafka_brokers, topic.name, offsets))
    return min(ignored, rest)


def read_records(brokers: Sequence[str], topic: str, offsets: Mapping[int, Runs]) -> Iterator[Record]:
    """Yield the records at these offsets, as they were sent.

    Raises:
        BrokerError: Kafka does not answer.
    """
    consumer = make_consumer(brokers)
    try:
        for partition, runs in offsets.items():
            where = TopicPartition(topic, partition)
            consumer.assign([where])
            for first, last in runs:
                consumer.seek(where, first)
                while (place := consumer.position(where)) <= last:
                    # No more than what was sent: behind it lies what others sent, and may be large when decompressed.
                    most = min(last - place + 1, _MOST_AT_ONCE)
                    found = consumer.poll(timeout_ms=_POLL_MS, max_records=most).get(where, ())
                    if not found and consumer.position(where) == place:  # else it went past a transaction's marker
                        raise BrokerError(f'"{topic}", partition {partition}: nothing came at offset {place}')
                    yield from ((headers_of(each.headers), each.value or b"") for each in found if each.offset <= last)
    except KafkaError as error:
        raise BrokerError(f'"{topic}": expected to read what was sent, got {type(error).__name__}: {error}') from error
    finally:
        consumer.close()


def _events(record: Record) -> Iterator[Event]:
    headers, value = record
    kind = kind_of(headers)
    if kind.problem is not None or kind.corrects or kind.format == "arrow":  # dead, or never filtered
        return
    content_type, body = kind.content_type, value
    try:
        if kind.attributes is not None:
            content_type, body = SINGLE, compose(kind.attributes, value)
    except EventError:
        return
    yield from (each for each in decode_record(content_type or SINGLE, body) if isinstance(each, Event))
