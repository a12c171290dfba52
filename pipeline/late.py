"""What still arrives in a topic behind its end: copied to the topic that follows, as it came, where it is judged and
counted like anything else.

At least once: a copy more is a duplicate there. How far it came is a committed offset of a consumer group; should that
be lost, everything behind the end is copied again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from kafka import OffsetAndMetadata
from kafka.errors import KafkaError, MessageSizeTooLargeError

from pipeline.members import SESSION_MS
from tallyman.books import Topic
from tallyman.headers import kind_of
from tallyman.kafka import ANY_SIZE, make_consumer, make_producer, read_topic

log = logging.getLogger(__name__)

_POLL_MS, _REST_S, _ACK_TIMEOUT_S = 500, 2.0, 60
_AT_ONCE = 2_000  # records under way


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
        self._consumer: Any = None
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
                self._consumer = self._subscribe()
                producer = make_producer(self._brokers, max_request_size=ANY_SIZE)
                while not self._stop.is_set():
                    self._send_on(producer)
            except Exception as error:  # noqa: BLE001 - a thread that dies silently would be missed for days
                log.warning(
                    "late_records_wait",
                    extra={"topic": self._ended, "reason": f"{type(error).__name__}: {error}"[:300]},
                )
                self._stop.wait(_REST_S)
            finally:
                for client in (self._consumer, producer):
                    if client is not None:
                        _let_go(client)
                self._consumer = None

    def _is_gone(self) -> bool:
        """Tell whether the topic was deleted: nothing can come late in it any more."""
        info = read_topic(self._brokers, self._ended)
        if info is not None and info.topic_id == self._topic.topic_id:
            return False
        log.info("late_records_end", extra={"topic": self._ended, "reason": "Kafka has it no more"})
        return True

    def _subscribe(self) -> Any:
        consumer = make_consumer(
            self._brokers,
            group_id=f"tallyman.late.{self._ended}",
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=1_000,
            max_poll_interval_ms=2 * _ACK_TIMEOUT_S * 1_000,
            max_poll_records=_AT_ONCE,
            auto_offset_reset="earliest",  # what retention removed behind the end nobody can send on
        )
        consumer.subscribe([self._ended])
        return consumer

    def _send_on(self, producer: Any) -> None:
        """Copy the next records, and note the place when all copies are acknowledged."""
        found = self._consumer.poll(timeout_ms=_POLL_MS)
        for place in list(found):
            begin = self._begins.get(place.partition, 0)
            if found[place][0].offset < begin:  # nobody has begun here before
                self._consumer.seek(place, begin)
                del found[place]
        late = [
            (record, tuple((name, value or b"") for name, value in record.headers or ()))
            for records in found.values()
            for record in records
        ]
        futures = [
            (record, producer.send(self._following, key=record.key, value=record.value or b"", headers=list(headers)))
            for record, headers in late
            if not kind_of(headers).control
        ]
        for record, future in futures:
            self._acknowledged(record, future)
        if found:
            self._consumer.commit(
                {place: OffsetAndMetadata(records[-1].offset + 1, "", -1) for place, records in found.items()}
            )
        if futures:
            sent = {"topic": self._ended, "to": self._following, "records": len(futures)}
            log.info("late_records_sent_on", extra=sent)


    def _acknowledged(self, record: Any, future: Any) -> None:
        try:
            future.get(timeout=_ACK_TIMEOUT_S)
        except MessageSizeTooLargeError as error:  # compressed less well than its sender did it
            log.error(
                "late_record_too_large",
                extra={"topic": self._ended, "partition": record.partition, "offset": record.offset,
                       "reason": str(error)[:300],
                       "next_step": f"it stays where it is; send its events to {self._following} in smaller records"},
            )  # fmt: skip


def _let_go(client: Any) -> None:
    try:
        client.close()
    except KafkaError as error:
        log.debug("client_closed_with_an_error", extra={"reason": str(error)})
