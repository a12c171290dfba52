"""Partitions that are set aside because their log is not what was booked; the others are booked on.

What one process sets aside is its own observation: nothing is decided by it. It tries such a partition again when an
operator has decided a repair, or when it is started again; one whose clock was ahead, also after some minutes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection

from pipeline import metrics as counted
from pipeline.frontier import read_frontier
from pipeline.runtime import JobConfig
from tallyman.clickhouse import connect, store_errors
from tallyman.errors import DamageError, StoreError, StoreRefusedError
from tallyman.repairs import note_quarantine, read_repairs

log = logging.getLogger(__name__)

LOOK_FOR_REPAIRS_S = 1.0
CLOCK_AGAIN_S = 300.0  # a clock that was a little ahead is not any more after a while


class SetAside:
    """The partitions of this worker, or of the job of a cluster, that are set aside.

    A partition is set aside when it fails a second time at the same offset: between the two, its frontier was read
    once more, and somebody else may have booked it on.
    """

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._suspects: dict[int, int] = {}  # partition -> the offset at which it failed once
        self._aside: dict[int, int] = {}  # partition -> how many repairs it had then
        self._again: dict[int, float] = {}  # partition -> when it is tried again without one
        self._lock = threading.Lock()

    def without(self, partitions: Collection[int]) -> frozenset[int]:
        """Return those of some partitions that are to be read."""
        with self._lock:
            return frozenset(partitions) - self._aside.keys()

    def meet(self, cause: BaseException) -> BaseException:
        """Set the partition aside that is to blame, if one is, or give it another try.

        Returns:
            Why its reader starts again, or must end: retriable if it is worth another try.
        """
        if not isinstance(cause, DamageError):
            return cause
        try:
            self.note(cause)
        except (StoreError, StoreRefusedError) as error:
            return error
        return StoreError(f"partition {cause.partition} is read from its frontier again, or set aside: {cause}")

    def note(self, error: DamageError) -> bool:
        """Note that a partition failed; return whether it is set aside now.

        Raises:
            StoreError, StoreRefusedError: ClickHouse did not take it; the partition is not set aside.
        """
        config, partition = self._config, error.partition
        client = connect(config.database)
        try:
            frontier = read_frontier(client, config.topic_id, partition, config.chunk_size)
            place = frontier.reached.offset
            if self._suspects.get(partition) != place:
                self._suspects[partition] = place
                return False
            with store_errors(client, "quarantines"):
                note_quarantine(client, config.topic_id, partition, place, error.reason, str(error))
        finally:
            client.disconnect()
        with self._lock:
            self._aside[partition] = frontier.repairs
            if error.reason == "clock":
                self._again[partition] = time.monotonic() + CLOCK_AGAIN_S
        counted.note_quarantine(partition, str(error))
        log.error("partition_quarantined", extra={"partition": partition, "offset": place, "error": str(error),
                                                  "next_step": f"tallyman repair {partition}"})  # fmt: skip
        return True

    def look(self) -> None:
        """Take back what was repaired, and what may have passed by itself. Called now and then."""
        with self._lock:
            aside, now = dict(self._aside), time.monotonic()
            passed = [partition for partition, again in self._again.items() if now >= again]
        for partition in passed:
            self._take_back(partition)
            log.info("partition_tried_again", extra={"partition": partition})
        if not aside:
            return
        client = connect(self._config.database)
        try:
            with store_errors(client, "reading repairs"):
                known = {number: len(read_repairs(client, self._config.topic_id, number)) for number in aside}
        finally:
            client.disconnect()
        for partition, repairs in known.items():
            if repairs > aside[partition]:
                self._take_back(partition)
                log.info("partition_repaired", extra={"partition": partition, "repairs": repairs})

    def _take_back(self, partition: int) -> None:
        with self._lock:
            self._aside.pop(partition, None)
            self._again.pop(partition, None)
            self._suspects.pop(partition, None)
        counted.note_repaired(partition)
