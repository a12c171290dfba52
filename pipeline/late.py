"""What still arrives in a topic behind its end: copied to the topic that follows, as it came, where it is judged and
counted like anything else.

At least once: a copy more is a duplicate there. How far it came is a committed offset of a consumer group; should that
be lost, everything behind the end is copied again. A partition whose bytes cannot be read stops there; others go on.
What retention took before it was copied, and a record that is too large to be copied, is written down before anything
behind it is: it shows in every figure that it may be missing in.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from kafka import OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from pipeline import metrics as counted
from pipeline.batches import Fetch
from pipeline.members import SESSION_MS, EvenShare
from pipeline.poll import PORTION_BYTES, Poller
from pipeline.runtime import Database
from tallyman.books import Topic
from tallyman.clickhouse import connect, store_errors
from tallyman.errors import DamageError
from tallyman.headers import Headers, kind_of
from tallyman.kafka import ANY_SIZE, let_go, make_consumer, make_producer, read_topic
from tallyman.repairs import LATE, note_lost
from tallyman.topics import ends_of
from tallyman.usage import Repair

log = logging.getLogger(__name__)

_POLL_MS, _REST_S, _ACK_TIMEOUT_S, _ANSWER_MS = 500, 2.0, 60, 10_000
_LOOK_S = 5.0  # how soon it is noticed that one more partition has ended
_NEXT_STEP = "see \"It says\" in docs/operations/topic-growth.md"
End = tuple[int, int, int, int]  # offset of the end marker, and before it log clock, booking and definitions


class Store(Protocol):
    """What is asked of ClickHouse, and told to it."""

    def ends(self) -> Mapping[int, End]:
        """Return the ends of the partitions that have ended."""
        ...

    def note_lost(self, lost: Repair) -> None:
        """Write down what can not be copied any more; again changes nothing."""
        ...


class LateStore:
    """ClickHouse, about one topic; connected as long as it is asked."""

    def __init__(self, database: Database, topic: Topic) -> None:
        self._database, self._topic = database, topic
        self._ends: dict[int, End] = {}

    def ends(self) -> Mapping[int, End]:
        """See `Store`; once all have ended they are not asked for again.

        Raises:
            StoreError, StoreRefusedError: ClickHouse did not tell.
        """
        if len(self._ends) < self._topic.partitions:
            client = connect(self._database)
            try:
                with store_errors(client, "reading which partitions have ended"):
                    self._ends = ends_of(client, self._topic.topic_id)
            finally:
                client.disconnect()
        return self._ends

    def note_lost(self, lost: Repair) -> None:
        client = connect(self._database)
        try:
            with store_errors(client, "writing late_lost"):
                note_lost(client, lost)
        finally:
            client.disconnect()


class _Share(EvenShare):
    """As `EvenShare`, but partitions may be added to the topic at any time."""

    def assign(self, cluster: Any, members: Any) -> Any:
        self._partitions = max(self._partitions, len(cluster.partitions_for_topic(self._topic) or ()))
        return super().assign(cluster, members)


class _Due(NamedTuple):
    """What is to be copied next of a partition, and when the record before it was appended."""

    offset: int
    clock_ms: int


class LateRecords:
    """Sends on what stands behind the ends of a topic's partitions, until told to stop. Several share the partitions.

    A partition that has not ended yet waits; one that was added to the topic is sent on from its first record.

    Args:
        following: The name of the topic that is booked now, or will be when all partitions have ended.
    """

    def __init__(
        self, brokers: tuple[str, ...], ended: Topic, following: str, store: Store, stop: threading.Event
    ) -> None:
        self._brokers, self._topic, self._following, self._store = brokers, ended, following, store
        self._ended, self._stop = ended.name, stop
        self._poller: Poller | None = None
        self._ends: Mapping[int, End] = {}
        self._looked_at = -_LOOK_S
        self._due: dict[int, _Due] = {}
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
                producer = self._connect()
                while not self._stop.is_set():
                    self._send_on(poller, producer)
                    counted.note_late_copied(self._ended)
            except DamageError as error:
                self._set_aside(error)
            except Exception as error:  # noqa: BLE001 - a thread that dies silently would be missed for days
                self._wait(f"{type(error).__name__}: {error}"[:300])
            finally:
                if producer is not None:
                    let_go(producer)  # what was not acknowledged is read and sent again
                if self._poller is not None:
                    self._close_poller(self._poller)
        counted.forget_late(self._ended)

    def _close_poller(self, poller: Poller) -> None:
        try:
            poller.close()
        except KafkaError as error:
            log.debug("client_closed_with_an_error", extra={"reason": str(error)})
        self._poller = None

    def _wait(self, reason: str) -> None:
        """Say why nothing is copied, louder when it stays so: what is not copied in time, retention takes."""
        urgent = counted.note_late_waits(self._ended, reason)
        log.log(logging.ERROR if urgent else logging.WARNING, "late_records_wait",
                extra={"topic": self._ended, "reason": reason, "next_step": _NEXT_STEP})  # fmt: skip
        self._stop.wait(_REST_S)

    def _is_gone(self) -> bool:
        """Tell whether the topic was deleted: nothing can come late in it any more."""
        info = read_topic(self._brokers, self._ended)
        if info is not None and info.topic_id == self._topic.topic_id:
            return False
        counted.forget_late(self._ended)
        log.info("late_records_end", extra={"topic": self._ended, "reason": "Kafka has it no more"})
        return True

    def _subscribe(self) -> Poller:
        consumer = make_consumer(
            self._brokers,
            group_id=f"tallyman.late.{self._ended}",
            # The second is what workers of an older version can.
            partition_assignment_strategy=[_Share(self._ended, self._topic.partitions), RangePartitionAssignor],
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=1_000,
            max_poll_interval_ms=2 * _ACK_TIMEOUT_S * 1_000,
            auto_offset_reset="earliest",  # what retention removed nobody can send on; `_follow` notices each jump
        )
        consumer.subscribe([self._ended])
        self._due.clear()
        return Poller(consumer, self._ended, self._topic.topic_id)

    def _connect(self) -> Any:
        """Return a producer that goes on behind a record that is refused.

        An idempotent one of kafka-python's refuses all that comes after it for the same reason: all of that would be
        called too large.
        """
        return make_producer(
            self._brokers,
            max_request_size=ANY_SIZE,
            enable_idempotence=False,  # a copy more is a duplicate
            max_in_flight_requests_per_connection=1,  # what is tried again stays in order
        )

    def _send_on(self, poller: Poller, producer: Any) -> None:
        """Copy the next records, and note the place when all copies are acknowledged."""
        found, passed = self._read(poller)
        futures = [
            (partition, due, producer.send(self._following, key=key, value=value or b"", headers=list(headers)))
            for partition, fetches in found.items()
            for due, key, value, headers in _records(fetches)
            if not kind_of(headers).control
        ]
        for partition, due, future in futures:
            self._acknowledged(partition, due, future)
        if passed:
            poller.consumer.commit({
                TopicPartition(self._ended, partition): OffsetAndMetadata(due.offset, str(due.clock_ms), -1)
                for partition, due in passed.items()
            })  # fmt: skip
        if futures:
            sent = {"topic": self._ended, "to": self._following, "records": len(futures)}
            log.info("late_records_sent_on", extra=sent)

    def _read(self, poller: Poller) -> tuple[dict[int, list[Fetch]], dict[int, _Due]]:
        """Return the next fetches of each partition, none of what lies before the end marker; and how far the
        partitions come with them that do.
        """
        mine = [place.partition for place in poller.consumer.assignment()]
        self._look_for_ends(mine)
        poller.pause([each for each in mine if each in self._unreadable or not self._has_ended(each)])
        for partition in mine:
            if self._has_ended(partition) and partition not in self._due:
                self._to_the_end(poller, partition, None)
        found: dict[int, list[Fetch]] = {}
        for fetch in poller.poll(_POLL_MS, PORTION_BYTES):
            found.setdefault(fetch.partition, []).append(fetch)
        passed: dict[int, _Due] = {}
        given = {place.partition for place in poller.consumer.assignment()}  # in this poll, perhaps
        self._due = {partition: due for partition, due in self._due.items() if partition in given}
        for partition in given:
            fetches = found.get(partition, [])
            if not self._has_ended(partition):
                if fetches:
                    poller.seek(partition, fetches[0].first)
                    del found[partition]
                continue
            due = self._follow(poller, partition, fetches)
            if due is None:
                found.pop(partition, None)
            elif self._due.get(partition) != due:
                self._due[partition] = passed[partition] = due
        return found, passed

    def _look_for_ends(self, mine: Sequence[int]) -> None:
        now = time.monotonic()
        all_ended = bool(mine) and all(self._has_ended(partition) for partition in mine)
        if not all_ended and now - self._looked_at > _LOOK_S:
            self._ends, self._looked_at = self._store.ends(), now

    def _has_ended(self, partition: int) -> bool:
        return partition in self._ends or partition >= self._topic.partitions

    def _follow(self, poller: Poller, partition: int, fetches: Sequence[Fetch]) -> _Due | None:
        """Return how far a partition comes with what was read of it; None when that is to be read from elsewhere.

        A reader is put to the log's start when what it asks for is not there any more. What lies between is written
        down first (promise P4).
        """
        here = self._to_the_end(poller, partition, fetches[0].first if fetches else None)
        if here is None:
            return None
        end = self._ends.get(partition, (0, 0, 0, 0))
        due = self._due.get(partition)
        if due is None or here > due.offset:  # of another reader of the group, too
            due = max(due or _Due(0, 0), self._committed(poller, TopicPartition(self._ended, partition), end))
        appended = next((fetch.appended_ms for fetch in fetches if len(fetch.offsets)), None)
        if here > due.offset:
            until_ms = int(appended[0]) if appended is not None else time.time_ns() // 1_000_000
            self._lose(partition, due, _Due(here, max(until_ms, due.clock_ms)), end)
        last = next((fetch.appended_ms for fetch in reversed(fetches) if len(fetch.offsets)), None)
        clock_ms = due.clock_ms if last is None else max(due.clock_ms, int(last[-1]))
        return _Due(fetches[-1].next if fetches else here, clock_ms)

    def _to_the_end(self, poller: Poller, partition: int, here: int | None) -> int | None:
        """Return where a partition is read, if that is not before its end marker; else go there."""
        if here is None:
            here = poller.consumer.position(TopicPartition(self._ended, partition), timeout_ms=_POLL_MS)
        begin = self._ends[partition][0] if partition in self._ends else 0
        if here is not None and here < begin:
            poller.seek(partition, begin)
            return None
        return here

    def _committed(self, poller: Poller, place: TopicPartition, end: End) -> _Due:
        """Return what is to be copied next, as far as it is written down; else what stands behind the end marker."""
        found = poller.consumer.committed(place, metadata=True, timeout_ms=_ANSWER_MS)
        begin = end[0] + 1 if place.partition in self._ends else 0
        if found is None or found.offset < begin:
            return _Due(begin, end[1])
        # An older Tallyman wrote no time.
        return _Due(found.offset, int(found.metadata) if (found.metadata or "").isdecimal() else end[1])

    def _lose(self, partition: int, due: _Due, behind: _Due, end: End) -> None:
        """Write down that offsets are gone that were not copied."""
        self._note_lost(partition, due, behind, end)
        log.error(
            "late_records_lost",
            extra={"topic": self._ended, "partition": partition, "from_offset": due.offset,
                   "to_offset": behind.offset, "to": self._following,
                   "reason": "retention took them behind the topic's end before they were copied",
                   "next_step": f"figures of that time say so; have them sent again; {_NEXT_STEP}"},
        )  # fmt: skip

    def _note_lost(self, partition: int, due: _Due, behind: _Due, end: End) -> None:
        topic = self._topic
        self._store.note_lost(Repair(
            topic_id=topic.topic_id, partition=partition, number=0, chunk_size=topic.chunk_size,
            from_offset=due.offset, to_offset=behind.offset, from_clock_ms=due.clock_ms, to_clock_ms=behind.clock_ms,
            from_booking=end[2], booking=end[2], definitions=end[3], counts=(), reason=LATE, note="", who="",
            decided_at=datetime.now(UTC).replace(microsecond=0),
        ))  # fmt: skip

    def _set_aside(self, error: DamageError) -> None:
        """Read no more of a partition, until the pipeline is started again."""
        self._unreadable.add(error.partition)
        counted.note_late_unreadable(self._ended, error.partition, str(error)[:300])
        log.error(
            "late_records_unreadable",
            extra={"topic": self._ended, "partition": error.partition, "reason": str(error)[:300],
                   "next_step": f"what lies behind this place is not sent on; {_NEXT_STEP}"},
        )  # fmt: skip

    def _acknowledged(self, partition: int, due: _Due, future: Any) -> None:
        try:
            future.get(timeout=_ACK_TIMEOUT_S)
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:  # compressed less well than by its sender
            behind = _Due(due.offset + 1, due.clock_ms)
            self._note_lost(partition, due, behind, self._ends.get(partition, (0, 0, 0, 0)))
            log.error(
                "late_record_too_large",
                extra={"topic": self._ended, "partition": partition, "offset": due.offset,
                       "reason": str(error)[:300],
                       "next_step": "figures of that time say so; it stays where it is as long as the topic does: send"
                                    f" its events to {self._following} in smaller records; {_NEXT_STEP}"},
            )  # fmt: skip


def _records(fetches: Sequence[Fetch]) -> Iterator[tuple[_Due, bytes | None, bytes | None, Headers]]:
    """Yield (place, key, value, headers) of each record."""
    for fetch in fetches:
        for index, place in enumerate(zip(fetch.offsets.tolist(), fetch.appended_ms.tolist(), strict=True)):
            yield _Due(*place), fetch.keys[index], fetch.values[index], fetch.headers_of(index)
