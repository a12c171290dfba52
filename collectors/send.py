"""Send the spool to Kafka, in order; a batch is forgotten only when Kafka has it on `acks=all`.

Whatever fails, the bytes on disk are sent again under the same numbers, by a new producer, after a pause that grows
and is never the same on two hosts.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from collectors.segments import Position
from collectors.spool import Batch, Spool
from tallyman import metrics
from tallyman.errors import TallymanError
from tallyman.event import ARROW, COLLECTOR, CONTENT_TYPE, EPOCH, SEQUENCE, WATERMARK
from tallyman.kafka import let_go

log = logging.getLogger(__name__)

IN_FLIGHT_BATCHES = 16
IN_FLIGHT_BYTES = 4 * 1024 * 1024
PATIENCE_S = 20.0  # without any answer; then the producer is given up: kafka-python waits with 6 % of a core
# Each time it was in vain it is twice as long, up to 16 times: else a broker that answers a little later than this
# would be sent the same batches for ever.
MOST_DOUBLINGS = 4
PAUSE_LEAST_S, PAUSE_MOST_S = 0.5, 60.0
SAVE_S = 1.0
# The producer itself must never give up on a batch and go on with the next one, which would change the order:
# giving up is decided here. Kafka's largest value, 24 days.
DELIVERY_TIMEOUT_MS = 2**31 - 1


class Delivery(Protocol):
    """kafka-python's future of one record."""

    def get(self, timeout: float | None = None) -> Any: ...


class Producer(Protocol):
    """What is needed of kafka-python's producer."""

    def send(self, topic: str, *, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> Delivery: ...
    def close(self, timeout: float | None = None) -> None: ...


class _Sent(NamedTuple):
    end: Position
    size: int
    watermark_us: int
    since_s: float
    delivery: Delivery


class Sender:
    """A thread between the spool and Kafka; memory is bounded by `IN_FLIGHT_BATCHES` and `IN_FLIGHT_BYTES`.

    Attributes:
        acknowledged_s: When Kafka last acknowledged a batch, or had nothing to acknowledge, by `clock`.
        trouble: Why nothing is acknowledged just now; empty while all is well.
    """

    def __init__(
        self,
        spool: Spool,
        connect: Callable[[], Producer],
        *,
        topic: str,
        collector: str,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
        patience_s: float = PATIENCE_S,
        pause_least_s: float = PAUSE_LEAST_S,
    ) -> None:
        spool.name_epoch(collector)
        self._spool, self._connect, self._topic = spool, connect, topic
        self._clock, self._draw, self._patience_s, self._pause_least_s = clock, draw, patience_s, pause_least_s
        self._stop = threading.Event()
        self._drain_until_s: float | None = None
        self._saved_s = clock()
        self._attempts = self._in_vain = 0
        self.acknowledged_s, self.trouble = clock(), ""
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, drain_s: float) -> None:
        """Send what is left for at most `drain_s`, then stop; what remains is in the spool."""
        self._drain_until_s = self._clock() + drain_s
        self._stop.set()
        self._spool.wake()
        self._thread.join(drain_s + 15.0)

    def _run(self) -> None:
        while True:
            try:
                self._send_until_stopped()
                break
            except Exception as error:
                if not isinstance(error, (TallymanError, KafkaError)):
                    # The thread must outlive whatever a client library raises; nothing is lost, it is made anew.
                    log.exception("sender_failed")
                self._note(error)
            if self._stop.wait(self._pause_s()):
                break  # Kafka is away and we are asked to stop: the spool keeps everything
        self._spool.save()

    def _send_until_stopped(self) -> None:
        """Run one producer's life.

        Raises:
            BrokerError, KafkaError: A batch was not acknowledged; the next life sends it and what follows again.
        """
        producer = self._connect()
        waiting: deque[_Sent] = deque()
        place: Position | None = None
        try:
            while not self._is_out_of_time():
                batch = self._next_batch(place, waiting)
                if batch is not None:
                    waiting.append(self._send(producer, batch))
                    place = batch.end
                elif waiting:
                    self._settle(waiting)
                elif self._stop.is_set():
                    return
        finally:
            metrics.gauge("tallyman_collectors_send_in_flight_batches").set(0)
            let_go(producer)  # what was not acknowledged is still in the spool

    def _next_batch(self, place: Position | None, waiting: deque[_Sent]) -> Batch | None:
        if self._is_full(waiting):
            return None
        batch = self._spool.wait(place, 0.0 if waiting or self._stop.is_set() else 1.0)
        if batch is None and not waiting:
            self.acknowledged_s = self._clock()
            self._save()
        return batch

    def _is_full(self, waiting: deque[_Sent]) -> bool:
        return len(waiting) >= IN_FLIGHT_BATCHES or sum(sent.size for sent in waiting) >= IN_FLIGHT_BYTES

    def _send(self, producer: Producer, batch: Batch) -> _Sent:
        name = batch.collector.encode()
        headers = [
            (COLLECTOR, name),
            (EPOCH, batch.epoch.encode()),
            (SEQUENCE, str(batch.sequence).encode()),
            (CONTENT_TYPE, ARROW.encode()),
            (WATERMARK, str(batch.watermark_us).encode()),
        ]
        delivery = producer.send(self._topic, key=name, value=batch.payload, headers=headers)
        return _Sent(batch.end, len(batch.payload), batch.watermark_us, self._clock(), delivery)

    def _settle(self, waiting: deque[_Sent]) -> None:
        """Wait a little for the oldest batch; on Kafka's yes the spool moves on."""
        metrics.gauge("tallyman_collectors_send_in_flight_batches").set(len(waiting))
        sent = waiting[0]
        since_s = max(sent.since_s, self.acknowledged_s)  # on a slow way the later ones wait for those before
        try:
            sent.delivery.get(timeout=0.2)
        except KafkaTimeoutError:
            if self._clock() - since_s <= self._patience_s * 2.0**self._in_vain:
                return
            self._in_vain = min(self._in_vain + 1, MOST_DOUBLINGS)
            raise
        waiting.popleft()
        if self._clock() - since_s <= self._patience_s:
            self._in_vain = 0
        self._spool.acknowledge(sent.end)
        self._note_success(sent)

    def _note_success(self, sent: _Sent) -> None:
        metrics.counter("tallyman_collectors_batches_acknowledged_total").inc()
        metrics.gauge("tallyman_collectors_watermark_seconds").set(sent.watermark_us / 1_000_000)
        if self.trouble:
            away_s = round(self._clock() - self.acknowledged_s)
            log.info("kafka_is_back", extra={"away_s": away_s, "pending_bytes": self._spool.pending_bytes})
        self.acknowledged_s, self.trouble, self._attempts = self._clock(), "", 0
        self._save()

    def _save(self) -> None:
        if self._clock() - self._saved_s >= SAVE_S:
            self._spool.save()
            self._saved_s = self._clock()

    def _note(self, error: BaseException) -> None:
        metrics.counter("tallyman_collectors_send_errors_total").inc()
        is_new = not self.trouble
        self.trouble = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self._attempts += 1
        if isinstance(error, MessageSizeTooLargeError):
            log.error(
                "batch_too_large", extra={"cause": str(error), "next_step": "raise the topic's max.message.bytes"}
            )
        elif is_new:
            log.warning("kafka_is_away", extra={"cause": self.trouble, "pending_bytes": self._spool.pending_bytes})
        else:
            log.debug("kafka_is_still_away", extra={"cause": self.trouble, "attempts": self._attempts})

    def _pause_s(self) -> float:
        # Spread after the cap, not before it: else all hosts at the cap come back in the same second.
        most_s = min(self._pause_least_s * 2.0 ** min(self._attempts, 16), PAUSE_MOST_S)
        return self._draw(most_s / 2, most_s) if self.trouble else 0.0

    def _is_out_of_time(self) -> bool:
        return self._drain_until_s is not None and self._clock() >= self._drain_until_s
