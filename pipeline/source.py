"""One Kafka consumer for each lane of a process and topic, and a queue for each partition that is read in it.

It lives in this module, not in a `DoFn`, because runners throw `DoFn` instances away while the process lives on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from pipeline import metrics as counted
from pipeline.batches import Fetch, empty_fetch, join
from pipeline.lanes import this_lane
from pipeline.poll import POLL_BYTES, PORTION_BYTES, Poller
from tallyman.errors import BrokerError
from tallyman.kafka import make_consumer

log = logging.getLogger(__name__)

IDLE_MS = 200  # how long an idle process sleeps; also how soon it notices a stop
POLL_EVERY_S = 0.02  # so that a fetch for a quiet partition is always under way while busy ones are folded
FULL_BYTES = 6 * PORTION_BYTES  # waiting for one partition: no more is fetched for it
ALL_FULL_BYTES = 128 * PORTION_BYTES  # waiting in all: only partitions with nothing waiting get a fetch


class _Queue:
    """What was fetched of a partition and waits for its turn, with its size in bytes."""

    def __init__(self) -> None:
        self.fetches: deque[Fetch] = deque()
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self.fetches)

    def put(self, fetch: Fetch) -> None:
        self.fetches.append(fetch)
        self.size += fetch.size

    def take(self, about_bytes: int) -> Fetch:
        """Return the fetches at the front as one, of about so many bytes together.

        One at a time would be too few: between two turns come several small ones, and those would wait for as many
        turns of all the other partitions and their flushes.
        """
        taken = [self.fetches.popleft()]
        size = taken[0].size
        while self.fetches and size + self.fetches[0].size <= about_bytes:
            taken.append(self.fetches.popleft())
            size += taken[-1].size
        self.size -= size
        return join(taken)

    def clear(self) -> None:
        self.fetches.clear()
        self.size = 0


class UsageReader:
    """Reads any partitions of a topic at the positions that its callers want."""

    def __init__(self, topic_id: str, make_poller: Callable[[], Poller]) -> None:
        self.topic_id = topic_id
        self._make_poller = make_poller
        self._poller: Poller | None = None
        self._queues: dict[int, _Queue] = {}
        self._behind: dict[int, int] = {}  # partition -> position behind all that was fetched
        self._lock = threading.RLock()
        self._failures = 0
        self._polled = 0.0

    def next_fetch(self, partition: int, position: int, idle_ms: int = IDLE_MS) -> Fetch:
        """Return what lies at `position`; an empty fetch when nothing does, after a while if all partitions are idle.

        Args:
            idle_ms: How long that while is at most.

        Raises:
            LogError: The log does not have it, or is not what was booked.
            BrokerError: Kafka does not answer; call `rest`, then try again.
        """
        with self._lock:
            poller = self._open(partition, position)
            queue = self._queues[partition]
            if not queue or time.monotonic() - self._polled > POLL_EVERY_S:
                poller.pause(self._full(partition))
                about_bytes = min(POLL_BYTES, max(1, ALL_FULL_BYTES - self._size()))
                self._take_in(poller, poller.poll(0 if any(self._queues.values()) else idle_ms, about_bytes))
                self._polled = time.monotonic()
            self._failures = 0
            end = poller.log_end(partition)
            if end is not None:
                counted.note_end(partition, end)
            fetch = queue.take(PORTION_BYTES) if queue else empty_fetch(self.topic_id, partition, position)
            return replace(fetch, at_end=not queue and end is not None and end <= fetch.next)

    def keep(self, partitions: Iterable[int]) -> None:
        """Read no other partitions than these any more; what was fetched of them is thrown away."""
        with self._lock:
            left = self._queues.keys() - set(partitions)
            for partition in left:
                del self._queues[partition]
                self._behind.pop(partition, None)
            if left and not self._queues:
                self.close()
            elif left and self._poller is not None:
                self._poller.assign(sorted(self._queues))

    def waiting(self) -> int:
        """Return how many partitions have something waiting."""
        return sum(1 for queue in self._queues.values() if queue)

    def gives_way(self, partition: int) -> bool:
        """Return whether others have something waiting and a partition has not: what trickles in for it can wait."""
        return not self._queues.get(partition) and any(self._queues.values())

    def _full(self, asked: int) -> list[int]:
        """Return the partitions for which nothing more is to be fetched just now, when one is asked for what it has."""
        if self._size() < ALL_FULL_BYTES:
            return [partition for partition, queue in self._queues.items() if queue.size >= FULL_BYTES]
        return [partition for partition, queue in self._queues.items() if queue or partition != asked]

    def _size(self) -> int:
        return sum(queue.size for queue in self._queues.values())

    def rest(self, error: BrokerError) -> None:
        """Wait a little after a failure, longer after each, but never so long that a stop or a flush would suffer."""
        if self._failures == 0:
            log.warning("kafka_away", extra={"topic_id": self.topic_id, "reason": str(error)})
        self._failures += 1
        time.sleep(min(0.05 * 2 ** min(self._failures, 5), 0.5))

    def close(self) -> None:
        """Let go of the consumer; the next read makes a new one."""
        with self._lock:
            if self._poller is not None:
                self._poller.close()
            self._poller = None
            self._queues.clear()
            self._behind.clear()

    def _open(self, partition: int, position: int) -> Poller:
        """Make sure that the partition is read, and from `position` on."""
        if self._poller is None:
            self._poller = self._make_poller()
        if partition not in self._queues:
            self._queues[partition] = _Queue()
            self._poller.assign(sorted(self._queues))
        queue = self._queues[partition]
        if (queue.fetches[0].first if queue else self._behind.get(partition)) != position:
            queue.clear()
            self._poller.seek(partition, position)
            self._behind[partition] = position
        return self._poller

    def _take_in(self, poller: Poller, fetches: list[Fetch]) -> None:
        for fetch in fetches:
            if fetch.first == self._behind[fetch.partition]:
                self._queues[fetch.partition].put(fetch)
                self._behind[fetch.partition] = fetch.next
            else:  # a poll failed behind it, and what it had brought before went with it
                poller.seek(fetch.partition, self._behind[fetch.partition])


_READERS: dict[tuple[int, tuple[str, ...], str, str], UsageReader] = {}
_LOCK = threading.Lock()


def reader_of(brokers: tuple[str, ...], topic: str, topic_id: str) -> UsageReader:
    """Return this lane's reader of a topic; it connects when it is first read."""
    key = (this_lane(), brokers, topic, topic_id)
    with _LOCK:
        if key not in _READERS:
            _READERS[key] = UsageReader(topic_id, lambda: Poller(make_consumer(brokers), topic, topic_id))
        return _READERS[key]


def close_readers(lane: int | None = None) -> None:
    """Close the consumers of a lane; of the whole process at its end or between tests."""
    keys = [key for key in list(_READERS) if lane is None or key[0] == lane]
    for reader in [_READERS.pop(key, None) for key in keys]:
        if reader is not None:
            reader.close()
