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

from kafka import ConsumerRebalanceListener, OffsetAndMetadata
from kafka.errors import KafkaError

from pipeline.members import SESSION_MS
from tallyman.errors import BrokerError
from tallyman.headers import kind_of
from tallyman.kafka import make_consumer, make_producer

log = logging.getLogger(__name__)

_POLL_MS, _REST_S, _ACK_TIMEOUT_S = 500, 2.0, 60
_AT_ONCE = 2_000  # records under way


class LateRecords(ConsumerRebalanceListener):  # type: ignore[misc]
    """Sends on what stands behind the end of a topic, until told to stop. Several share the partitions.

    Args:
        begins: Partition -> the offset of its end marker; a partition added to the topic later is not in it and
            is sent on from its first record.
    """

    def __init__(
        self, brokers: tuple[str, ...], ended: str, following: str, begins: Mapping[int, int], stop: threading.Event
    ) -> None:
        self._brokers, self._ended, self._following, self._begins = brokers, ended, following, begins
        self._stop = stop
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
                self._consumer = self._subscribe()
                producer = make_producer(self._brokers)
                while not self._stop.is_set():
                    self._send_on(producer)
            except (KafkaError, BrokerError) as error:
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
        consumer.subscribe([self._ended], listener=self)
        return consumer

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Begin behind the end marker where nobody has begun before; the consumer calls it in this object's thread."""
        for place in assigned:
            if self._consumer.committed(place) is None and place.partition in self._begins:
                self._consumer.seek(place, self._begins[place.partition])

    def on_partitions_revoked(self, revoked: Any) -> None:
        """What is under way is committed by nobody then, and sent on once more."""

    def _send_on(self, producer: Any) -> None:
        """Copy the next records, and note the place when all copies are acknowledged."""
        found = self._consumer.poll(timeout_ms=_POLL_MS)
        futures = [
            producer.send(self._following, key=record.key, value=record.value, headers=list(record.headers or ()))
            for records in found.values()
            for record in records
            if not kind_of(tuple((name, value or b"") for name, value in record.headers or ())).control
        ]
        for future in futures:
            future.get(timeout=_ACK_TIMEOUT_S)
        if found:
            self._consumer.commit(
                {place: OffsetAndMetadata(records[-1].offset + 1, "", -1) for place, records in found.items()}
            )
        if futures:
            sent = {"topic": self._ended, "to": self._following, "records": len(futures)}
            log.info("late_records_sent_on", extra=sent)


def _let_go(client: Any) -> None:
    try:
        client.close()
    except KafkaError as error:
        log.debug("client_closed_with_an_error", extra={"reason": str(error)})
