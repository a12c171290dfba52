"""Show how complete usage is: a duty of a worker, with a connection of its own."""

from __future__ import annotations

from datetime import timedelta
from typing import get_args

from clickhouse_driver import Client

from tallyman.completeness import read_completeness
from tallyman.heard import count_collectors, read_gaps
from tallyman.metrics import gauge
from tallyman.usage import CollectorState

WATCH_EVERY_S = 15.0


class Watch:
    """Reads completeness and sets the metrics that tell it.

    Args:
        partitions, expected_delay: See `read_completeness`.
    """

    def __init__(self, client: Client, partitions: int, expected_delay: timedelta) -> None:
        self._client, self._partitions, self._expected_delay = client, partitions, expected_delay

    def close(self) -> None:
        """Let go of the connection."""
        self._client.disconnect()

    def watch(self) -> None:
        """Look once.

        Whatever goes wrong is raised as it is: not being able to look is no reason to stop booking.
        """
        delay = self._expected_delay
        try:
            found = read_completeness(self._client, expected_delay=delay, partitions=self._partitions)
            states, gaps = count_collectors(self._client), read_gaps(self._client, any_followed=False)
        except Exception:
            self._client.disconnect()
            raise
        if found.complete_to is not None:
            gauge("tallyman_pipeline_complete_to_seconds").set(found.complete_to.timestamp())
        for each in found.partitions:
            if each.clock is not None:
                mark = (each.clock - delay).timestamp()
                gauge("tallyman_pipeline_watermark_seconds").labels(str(each.partition)).set(mark)
        for state in get_args(CollectorState):
            gauge("tallyman_pipeline_collectors").labels(state).set(states.get(state, 0))
        missing = sum(gap.last - gap.first + 1 for gap in gaps if gap.last is not None)
        gauge("tallyman_pipeline_missing_batches").set(missing)
