"""Partitions that are set aside because their log is not what was booked, or because a repair of them was begun and not
decided; the others are booked on.

What one process sets aside is its own observation: nothing is decided by it. It tries such a partition again when an
operator has decided a repair, when another worker has booked it on, or when it is started again; one whose clock was
ahead, also when that time has come.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from clickhouse_driver import Client

from pipeline import metrics as counted
from pipeline.frontier import Frontier, read_frontier
from pipeline.runtime import JobConfig
from pipeline.write import sealed_error
from tallyman.clickhouse import connect, store_errors
from tallyman.errors import DamageError, FencedError, StoreError, StoreRefusedError
from tallyman.repairs import note_quarantine, read_repairs
from tallyman.topics import ENDED

log = logging.getLogger(__name__)

LOOK_FOR_REPAIRS_S = 1.0
# Asked for all at once; a frontier, which decides, is only read where this one says more.
_FURTHEST = "SELECT partition, offset FROM reached WHERE topic_id = %(topic)s AND partition IN %(partitions)s"
# What passes by itself is tried again when it has: not at once, since what stands behind it has its time soon after it,
# and not in a year, since the clocks that say so may be set right.
SOONEST_AGAIN_S, LATEST_AGAIN_S = 300.0, 3600.0


class _Since(NamedTuple):
    """How a partition was set aside: how many repairs it had then, and how far it was booked."""

    repairs: int
    offset: int


class SetAside:
    """The partitions of this worker, or of the job of a cluster, that are set aside.

    A partition is set aside when it fails a second time at the same offset: between the two, its frontier was read
    once more, and somebody else may have booked it on. One that is fenced off by a repair that nobody has decided yet
    is set aside at once: ClickHouse refuses a block of rows whole, those of all other partitions with it.
    """

    def __init__(self, config: JobConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._suspects: dict[int, int] = {}  # partition -> the offset at which it failed once
        self._aside: dict[int, _Since] = {}
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
        if not isinstance(cause, DamageError | FencedError):
            return cause
        try:
            if isinstance(cause, FencedError):
                self.note_fence(cause)
            else:
                self.note(cause)
        except (StoreError, StoreRefusedError) as error:
            return error
        return StoreError(f"partition {cause.partition} is read from its frontier again, or set aside: {cause}")

    def note(self, error: DamageError) -> bool:
        """Note that a partition failed; return whether it is set aside now.

        Raises:
            StoreError, StoreRefusedError: ClickHouse did not take it; the partition is not set aside.
        """
        if error.reason == "sealed" and error.partition in self._note_sealed(error):
            return True
        with self._frontier(error.partition) as (client, frontier):
            place = frontier.reached.offset
            if self._suspects.get(error.partition) != place:
                self._suspects[error.partition] = place
                return False
            next_step = f"tallyman repair {error.partition}"
            self._set_aside(client, frontier, error.reason, str(error), next_step)
        if error.passes_in_s is not None:
            with self._lock:
                wait_s = min(max(error.passes_in_s, SOONEST_AGAIN_S), LATEST_AGAIN_S)
                self._again[error.partition] = self._clock() + wait_s
        return True

    def _note_sealed(self, error: DamageError) -> set[int]:
        """Set every partition aside that stands in what is sealed, and return them.

        That is a fact, which no second try changes; and all of a topic stand there that was not booked meanwhile.
        """
        found = set()
        for partition in sorted(self.without(self._config.assigned)):
            with self._frontier(partition) as (client, frontier):
                if frontier.in_sealed:
                    sentence = str(sealed_error(partition, frontier.reached.booking))
                    self._set_aside(client, frontier, error.reason, sentence, f"tallyman repair {partition}")
                    found.add(partition)
        return found

    def note_fence(self, error: FencedError) -> bool:
        """Note that ClickHouse took no rows of a partition; return whether it is set aside now.

        It is not if the repair is decided: then it is read from there.

        Raises:
            StoreError, StoreRefusedError: ClickHouse did not take it; the partition is not set aside.
        """
        with self._frontier(error.partition) as (client, frontier):
            if frontier.repairs >= error.number:
                return False
            next_step = f"run tallyman repair {error.partition} again"
            sentence = (
                f"repair {error.number} of partition {error.partition} was begun and is not decided; until it is, the "
                f"database takes no rows of the partition: {next_step}"
            )
            self._set_aside(client, frontier, "fenced", sentence, next_step)
        return True

    @contextmanager
    def _frontier(self, partition: int) -> Iterator[tuple[Client, Frontier]]:
        client = connect(self._config.database)
        try:
            yield client, read_frontier(client, self._config.topic_id, partition, self._config.chunk_size)
        finally:
            client.disconnect()

    def _set_aside(self, client: Client, frontier: Frontier, reason: str, sentence: str, next_step: str) -> None:
        partition, place = frontier.partition, frontier.reached.offset
        if frontier.reached.booking == ENDED:  # nobody waits for it, and nothing of it can be repaired
            with self._lock:
                self._aside[partition] = _Since(frontier.repairs, place)
            log.warning("partition_has_ended", extra={"partition": partition, "offset": place, "error": sentence})
            return
        with store_errors(client, "quarantines"):
            note_quarantine(client, frontier.topic_id, partition, place, reason, sentence)
        with self._lock:
            self._aside[partition] = _Since(frontier.repairs, place)
            self._again.pop(partition, None)
        counted.note_quarantine(partition, sentence)
        log.error("partition_quarantined", extra={"partition": partition, "offset": place, "error": sentence,
                                                  "next_step": next_step})  # fmt: skip

    def look(self) -> None:
        """Take back what was repaired or booked on, and what may have passed by itself. Called now and then."""
        with self._lock:
            aside, now = dict(self._aside), self._clock()
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
                furthest = dict(client.execute(_FURTHEST, {"topic": self._config.topic_id, "partitions": tuple(aside)}))
        finally:
            client.disconnect()
        for partition, repairs in known.items():
            if repairs > aside[partition].repairs:
                self._take_back(partition)
                self._suspects.pop(partition, None)
                log.info("partition_repaired", extra={"partition": partition, "repairs": repairs})
            elif furthest.get(partition, 0) > aside[partition].offset:
                self._look_how_far(partition, aside[partition])

    def _look_how_far(self, partition: int, since: _Since) -> None:
        """Take a partition back that another worker has booked on: that one can read it."""
        with self._frontier(partition) as (_, frontier):
            place = frontier.reached.offset
        if place > since.offset:
            self._take_back(partition)
            log.info("partition_booked_on", extra={"partition": partition, "offset": place})

    def close(self) -> None:
        """Say nothing more of partitions: their topic is no longer booked by this process."""
        with self._lock:
            aside = list(self._aside)
        for partition in aside:
            self._take_back(partition)

    def _take_back(self, partition: int) -> None:
        """Read a partition again. If only time has passed, it stays suspect: it need not fail twice once more."""
        with self._lock:
            self._aside.pop(partition, None)
            self._again.pop(partition, None)
        counted.note_repaired(partition)
