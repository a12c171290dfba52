"""What still arrives in a topic behind its end: copied to the topic that follows, as it came, where it is judged and
counted like anything else.

At least once: a copy more is a duplicate there. How far it came is a committed offset of a consumer group; should that
be lost, everything behind the end is copied again. A partition whose bytes cannot be read stops there; others go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError

from pipeline.batches import Fetch
from pipeline.members import SESSION_MS
from pipeline.poll import PORTION_BYTES, Poller
from tallyman.books import Topic
from tallyman.errors import DamageError
from tallyman.headers import Headers, kind_of
from tallyman.kafka import ANY_SIZE, make_consumer, make_producer, read_topic

log = logging.getLogger(__name__)

_POLL_MS, _REST_S, _ACK_TIMEOUT_S = 500, 2.0, 60


class LateRecords:
    """Sends on what stands behind the end of a topic, until told to stop. Several share the partitions.

    Args:
        following: The name of the topic that is booked now.
        begins: Partition -> the offset of its end marker; a partition added to the topic later is not in it and
            is sent on from its first record.
    """

    def __init__(
        self, brokers: tuple[str, ...], ended: Topic, following: str, begins: Mapping[int, int], stop: threading.Event
    ) -> None:
        self._brokers, self._topic, self._following, self._begins = brokers, ended, following, begins
        self._ended, self._stop = ended.name, stop
        self._poller: Poller | None = None
        self._unreadable: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="late", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Wait for the end, once `stop` is set."""
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.is_set():
            producer: Any = None
            try:
                if self._is_gone():
                    return
                poller = self._poller = self._subscribe()
                producer = make_producer(self._brokers, max_request_size=ANY_SIZE)
                while not self._stop.is_set():
                    self._send_on(poller, producer)
            except DamageError as error:
                self._set_aside(error)
            except Exception as error:  # noqa: BLE001 - a thread that dies silently would be missed for days
                log.warning(
                    "late_records_wait",
                    extra={"topic": self._ended, "reason": f"{type(error).__name__}: {error}"[:300]},
                )
                self._stop.wait(_REST_S)
            finally:
                for client in (self._poller, producer):
                    if client is not None:
                        _let_go(client)
                self._poller = None

    def _is_gone(self) -> bool:
        """Tell whether the topic was deleted: nothing can come late in it any more."""
        info = read_topic(self._brokers, self._ended)
        if info is not None and info.topic_id == self._topic.topic_id:
            return False
        log.info("late_records_end", extra={"topic": self._ended, "reason": "Kafka has it no more"})
        return True

    def _subscribe(self) -> Poller:
        consumer = make_consumer(
            self._brokers,
            group_id=f"tallyman.late.{self._ended}",
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=1_000,
            max_poll_interval_ms=2 * _ACK_TIMEOUT_S * 1_000,
            auto_offset_reset="earliest",  # what retention removed behind the end nobody can send on
        )
        consumer.subscribe([self._ended])
        return Poller(consumer, self._ended, self._topic.topic_id)

    def _send_on(self, poller: Poller, producer: Any) -> None:
        """Copy the next records, and note the place when all copies are acknowledged."""
        found = self._read(poller)
        futures = [
            (partition, offset, producer.send(self._following, key=key, value=value or b"", headers=list(headers)))
            for partition, fetches in found.items()
            for offset, key, value, headers in _records(fetches)
            if not kind_of(headers).control
        ]
        for partition, offset, future in futures:
            self._acknowledged(partition, offset, future)
        if found:
            poller.consumer.commit({
                TopicPartition(self._ended, partition): OffsetAndMetadata(fetches[-1].next, "", -1)
                for partition, fetches in found.items()
            })  # fmt: skip
        if futures:
            sent = {"topic": self._ended, "to": self._following, "records": len(futures)}
            log.info("late_records_sent_on", extra=sent)

    def _read(self, poller: Poller) -> dict[int, list[Fetch]]:
        """Return the next fetches of each partition, none of what lies before the end marker."""
        mine = [place.partition for place in poller.consumer.assignment()]
        poller.pause([partition for partition in mine if partition in self._unreadable])
        found: dict[int, list[Fetch]] = {}
        for fetch in poller.poll(_POLL_MS, PORTION_BYTES):
            found.setdefault(fetch.partition, []).append(fetch)
        for place in poller.consumer.assignment():  # given in this poll, perhaps, and nobody has begun there before
            begin = self._begins.get(place.partition, 0)
            position = poller.consumer.position(place, timeout_ms=_POLL_MS)
            fetches = found.get(place.partition)
            if (fetches[0].first if fetches else position or 0) < begin:
                poller.seek(place.partition, begin)
                found.pop(place.partition, None)
        return found

    def _set_aside(self, error: DamageError) -> None:
        """Read no more of a partition, until the pipeline is started again."""
        self._unreadable.add(error.partition)
        log.error(
            "late_records_unreadable",
            extra={"topic": self._ended, "partition": error.partition, "reason": str(error)[:300],
                   "next_step": 'what lies behind this place is not sent on; see "It says" in '
                                "docs/operations/topic-growth.md"},
        )  # fmt: skip

    def _acknowledged(self, partition: int, offset: int, future: Any) -> None:
        try:
            future.get(timeout=_ACK_TIMEOUT_S)
        except MessageSizeTooLargeError as error:  # compressed less well than its sender did it
            log.error(
                "late_record_too_large",
                extra={"topic": self._ended, "partition": partition, "offset": offset,
                       "reason": str(error)[:300],
                       "next_step": f"it stays where it is; send its events to {self._following} in smaller records"},
            )  # fmt: skip


def _records(fetches: Sequence[Fetch]) -> Iterator[tuple[int, bytes | None, bytes | None, Headers]]:
    """Yield (offset, key, value, headers) of each record."""
    for fetch in fetches:
        for index, offset in enumerate(fetch.offsets.tolist()):
            yield offset, fetch.keys[index], fetch.values[index], fetch.headers_of(index)


def _let_go(client: Any) -> None:
    try:
        client.close()
    except KafkaError as error:
        log.debug("client_closed_with_an_error", extra={"reason": str(error)})
