"""How a job on a cluster is doing, seen from outside: how long the log is, and how far ClickHouse has it.

Flink says RUNNING of a job in which a partition stands still. What counts is what became readable.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from pipeline.metrics import STANDS_STILL_S, late_waits, set_aside
from pipeline.runtime import JobConfig
from tallyman.clickhouse import connect
from tallyman.kafka import end_offsets, make_consumer
from tallyman.metrics import gauge

_REACHED = "SELECT partition, offset, clock_ms FROM reached WHERE topic_id = %(topic)s"


@dataclass(slots=True)
class _Seen:
    """A partition at the last look; times by the monotonic clock."""

    end: int
    grown_at: float
    reached: int = 0
    moved_at: float = 0.0  # when something was booked last, or nothing was left to book


class Follower:
    """Looks at both ends of every partition now and then.

    Args:
        clock: Seconds; only differences count.
    """

    def __init__(self, config: JobConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._seen: dict[int, _Seen] = {}
        self._looked_at = clock()
        self._consumer: Any = None
        self._client: Client | None = None

    def look(self) -> None:
        """Ask Kafka for the log's ends and ClickHouse for what is booked.

        Raises:
            BrokerError, clickhouse_driver.errors.Error, OSError: One of them does not answer; look again later.
        """
        try:
            ends = self._read_ends()
            reached = self._read_reached()
        except BaseException:
            self.close()
            raise
        now = self._looked_at = self._clock()
        for partition, end in ends.items():
            offset, clock_ms = reached.get(partition, (0, 0))
            self._note(partition, end, offset, now)
            gauge("tallyman_pipeline_offset").labels(str(partition)).set(offset)
            gauge("tallyman_pipeline_log_clock_seconds").labels(str(partition)).set(clock_ms / 1000)
            gauge("tallyman_pipeline_lag_records").labels(str(partition)).set(max(0, end - offset))

    def _note(self, partition: int, end: int, reached: int, now: float) -> None:
        seen = self._seen.setdefault(partition, _Seen(end, now, reached, now))
        if reached != seen.reached or seen.reached >= seen.end:
            seen.reached, seen.moved_at = reached, now
        if end != seen.end:
            seen.end, seen.grown_at = end, now

    def silent_s(self, partition: int) -> float:
        """Return for how long nothing was appended to a partition; 0 before the first look."""
        seen = self._seen.get(partition)
        return 0.0 if seen is None else self._clock() - seen.grown_at

    def ready(self) -> tuple[bool, str]:
        """Say whether usage is being booked, and if not, why."""
        now = self._clock()
        if now - self._looked_at > STANDS_STILL_S:
            return False, f"Kafka or ClickHouse did not answer for {now - self._looked_at:.0f} s"
        if not self._seen:
            return False, "nothing is known of the partitions yet"
        if aside := set_aside():
            return False, aside
        for partition, seen in sorted(self._seen.items()):
            if seen.reached < seen.end and now - seen.moved_at > STANDS_STILL_S:
                return False, (
                    f"partition {partition}: nothing was booked for {now - seen.moved_at:.0f} s; it stands at offset "
                    f"{seen.reached} and the log ends at {seen.end}; look at the job's exceptions in Flink"
                )
        if waits := late_waits():
            return False, waits
        return True, f"{len(self._seen)} partitions"

    def close(self) -> None:
        """Let go of the connections; the next look makes new ones."""
        consumer, client = self._consumer, self._client
        self._consumer = self._client = None
        with suppress(Exception):  # it was about to be thrown away
            if consumer is not None:
                consumer.close()
        if client is not None:
            client.disconnect()

    def _read_ends(self) -> dict[int, int]:
        if self._consumer is None:
            self._consumer = make_consumer(self._config.brokers)
        return end_offsets(self._consumer, self._config.topic, self._config.assigned)

    def _read_reached(self) -> dict[int, tuple[int, int]]:
        if self._client is None:
            self._client = connect(self._config.database)
        rows = self._client.execute(_REACHED, {"topic": self._config.topic_id})
        return {partition: (offset, clock_ms) for partition, offset, clock_ms in rows}
