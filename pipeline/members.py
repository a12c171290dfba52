"""Which partitions are this worker's: an even share of them, by Kafka's group protocol.

The group says who reads what, nothing else: no offset is committed, and a worker that reads what is not (or no longer)
its own does no harm. So nothing waits for the group: while it does not answer, a worker goes on with what it had, or
with everything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from pipeline.book import OPEN
from pipeline.runtime import JobConfig
from tallyman.kafka import make_consumer

log = logging.getLogger(__name__)

SESSION_MS = 6_000  # after which a worker that was killed is missed; the least that brokers allow unless told
_HEARTBEAT_MS = 500  # how soon a worker learns that another one has come or gone
_POLL_MS = 200  # how soon a stop is noticed
_REST_S = 1.0
PATIENCE_S = 1.0  # how long a start waits for the group: it answers late when a worker was killed
_LINGER_S, _LONGEST_LINGER_S = 3.0, 600.0


class Group(Protocol):
    """Who reads what."""

    def mine(self) -> frozenset[int] | None:
        """Return the partitions of this worker; None while nobody has said it yet."""
        ...

    def close(self) -> None:
        """Leave: the others take over at once."""
        ...


class Alone:
    """An operator who has named this worker's partitions (`pipeline.partitions`)."""

    def __init__(self, partitions: Iterable[int]) -> None:
        self._partitions = frozenset(partitions)

    def mine(self) -> frozenset[int]:
        return self._partitions

    def close(self) -> None:
        return


class EvenShare(StickyPartitionAssignor):  # type: ignore[misc]
    """Shares the partitions that the topic was made with; their number never changes.

    The client's own metadata may lack the topic while it is fresh or its leader away. Who shares by them then gives
    nothing to anybody, and nobody asks again for minutes.
    """

    def __init__(self, topic: str, partitions: int) -> None:
        super().__init__()
        self._topic, self._partitions = topic, partitions

    def assign(self, cluster: object, members: Any) -> Any:
        """Called by the consumer of the member that shares."""
        return super().assign(self, members)

    def topics(self) -> set[str]:
        return {self._topic}

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return set(range(self._partitions)) if topic == self._topic else None


class Members(ConsumerRebalanceListener):  # type: ignore[misc]
    """A member of the group of all workers of a topic; a thread keeps the membership alive.

    Partitions stay where they are as far as that is even, since each move costs reading an open chunk again.
    """

    def __init__(self, brokers: Sequence[str], topic: str, partitions: int) -> None:
        self._brokers, self._topic, self._partitions = tuple(brokers), topic, partitions
        self._mine: frozenset[int] | None = None
        self._consumer: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="members", daemon=True)
        self._thread.start()

    def mine(self) -> frozenset[int] | None:
        return self._mine

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._consumer = self._join()
                while not self._stop.is_set():
                    self._consumer.poll(timeout_ms=_POLL_MS)
            except Exception as error:  # noqa: BLE001 - a thread that dies silently leaves its partitions to nobody
                log.warning(
                    "group_away",
                    extra={"group": group_of(self._topic), "reason": f"{type(error).__name__}: {error}"[:300],
                           "next_step": "nothing is lost: partitions are read as before, or all of them; "
                                        "if it stays, let the pipeline's principal read this group"},
                )  # fmt: skip
                self._stop.wait(_REST_S)
            finally:
                self._leave()

    def _join(self) -> Any:
        consumer = make_consumer(
            self._brokers,
            group_id=group_of(self._topic),
            partition_assignment_strategy=[EvenShare(self._topic, self._partitions)],
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
            max_poll_interval_ms=2 * SESSION_MS,
            auto_offset_reset="latest",  # nothing is fetched: the partitions are paused
        )
        consumer.subscribe([self._topic], listener=self)
        return consumer

    def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                consumer.close(autocommit=False)
            except Exception as error:  # noqa: BLE001 - the same thread
                log.debug("group_left_with_an_error", extra={"reason": str(error)})

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Called by the consumer, in this object's thread."""
        places = list(assigned)
        if places:
            self._consumer.pause(*places)
        self._mine = frozenset(place.partition for place in places)
        log.info("partitions_assigned", extra={"topic": self._topic, "partitions": sorted(self._mine)})

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Go on with them until it is known whose they are."""


class Share:
    """What this worker reads: its own partitions, and for a while those that it has given away.

    Who takes over begins at the start of the open chunk. Until it has come so far, nobody would see anything new if the
    worker before it had stopped; so that one goes on for twice as long as it took itself to come there. Both write the
    same rows, and the longer prefix wins.
    """

    def __init__(
        self,
        group: Group,
        config: JobConfig,
        clock: Callable[[], float] = time.monotonic,
        leave_out: Callable[[frozenset[int]], frozenset[int]] = lambda partitions: partitions,
    ) -> None:
        self._leave_out = leave_out
        self._group, self._config, self._clock = group, config, clock
        self._since = clock()
        self._own: frozenset[int] = frozenset()
        self._leaving: dict[int, float] = {}  # partition -> until when it is read on
        self._reads: frozenset[int] = frozenset()

    def reads(self) -> frozenset[int]:
        """Return what was to be read at the last look."""
        return self._reads

    def look(self) -> frozenset[int]:
        """Look at the group again; return the partitions to be read from now on. One thread at a time."""
        now, mine = self._clock(), self._group.mine()
        if mine is not None:
            mine = frozenset(number for number in mine if number < self._config.partitions)  # others were added to it
            self._give_away(self._own - mine, now)
            self._own = mine
            waiting = self._leaving.items()
            self._leaving = {number: until for number, until in waiting if number not in mine and now < until}
            self._reads = mine | self._leaving.keys()
        elif now - self._since > PATIENCE_S:
            self._reads = frozenset(self._config.assigned)
        self._reads = self._leave_out(self._reads)
        return self._reads

    def close(self) -> None:
        """Leave the group."""
        self._group.close()

    def _give_away(self, partitions: Iterable[int], now: float) -> None:
        for number in partitions:
            chunk = OPEN.get((self._config.topic_id, number))
            if chunk is not None and chunk.here.offset > chunk.turned.offset:
                self._leaving[number] = now + min(_LINGER_S + 2 * chunk.spent_s, _LONGEST_LINGER_S)


def group_of(topic: str) -> str:
    """Return the name of the group of a topic's workers."""
    return f"tallyman.pipeline.{topic}"
