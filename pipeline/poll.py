"""Fetches from a `KafkaConsumer`, walked batch by batch. The only place that knows kafka-python's private names.

`Poller` puts a class of ours where the consumer keeps the records of a response (`consumer._fetcher.PartitionRecords`).
A kafka-python that has no such place is refused: its plain records do not say in which batches they came, so nothing
would show whether the log is what was booked, and every partition that was would look damaged.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import kafka
from kafka import TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from pipeline.batches import BatchWalk, Fetch
from tallyman.errors import BrokerError, ConfigError, DamageError, LogError
from tallyman.kafka import end_offsets, log_starts, topic_id_text

log = logging.getLogger(__name__)

# A fetch is folded in one go, so its size bounds how long the other partitions wait: about 15 ms of single events.
PORTION_BYTES = 2 * 1024 * 1024
# What one poll decompresses; the rest of the answers stays as small as it came. It is half a second of single events,
# so that the next answer is there before they are folded.
POLL_BYTES = 32 * PORTION_BYTES
PATIENCE_S = 60.0  # how long a job that ends waits for the next records: a leader is elected, a broker started, in less
_UNIT_BYTES = 64 * 1024  # for each of them a fetch counts as a record where kafka-python limits a poll
_EXPECTED = {"fetch_offset", "tp", "records", "aborted_transactions", "on_drain"}


class Poller:
    """Reads partitions of one topic through one consumer.

    Raises:
        ConfigError: The installed kafka-python is not one of those that we know.
    """

    def __init__(self, consumer: Any, topic: str, topic_id: str, portion_bytes: int = PORTION_BYTES) -> None:
        self.consumer = consumer
        self._topic, self._topic_id = topic, topic_id
        self._doubtful: dict[int, int] = {}  # partition -> position at which its bytes were wrong once
        try:
            _put_walk_into(consumer, topic_id, portion_bytes)
        except ConfigError:
            consumer.close()
            raise

    def assign(self, partitions: Sequence[int]) -> None:
        """Read these partitions from now on; those that were read before keep their positions."""
        self.consumer.assign([self._place(partition) for partition in partitions])

    def seek(self, partition: int, position: int) -> None:
        """Go on at `position`; what was fetched for another one is thrown away."""
        self.consumer.seek(self._place(partition), position)

    def log_end(self, partition: int) -> int | None:
        """Return where the broker's last answer said that the log ends; None before the first one."""
        end: int | None = self.consumer.highwater(self._place(partition))
        return end

    def pause(self, partitions: Sequence[int]) -> None:
        """Fetch nothing for exactly these partitions until told otherwise."""
        wanted = {self._place(partition) for partition in partitions}
        now = self.consumer.paused()
        if wanted - now:
            self.consumer.pause(*(wanted - now))
        if now - wanted:
            self.consumer.resume(*(now - wanted))

    def poll(self, timeout_ms: int, about_bytes: int = POLL_BYTES) -> list[Fetch]:
        """Return what has arrived, waiting for it up to `timeout_ms`; fetches of one partition are in order.

        Args:
            about_bytes: How much may be decompressed: one fetch at least, and the last one may be larger than what is
                left. What is not taken waits, compressed, for the next poll.

        Raises:
            LogError: The log does not have what was asked for, is another topic's, or its bytes are wrong twice.
            BrokerError: Kafka refused; after a while it may be asked again.
        """
        self._check_topic_id()
        try:
            fetches = self._poll(timeout_ms, about_bytes)
        except OffsetOutOfRangeError as error:
            self._explain(error.args[0])
            return []
        except LogTruncationError as error:
            raise LogError(
                f'topic "{self._topic}": the log was cut behind a place that was read already ({error}); an unclean '
                "leader election does that. Nothing more is counted; "
                'see "When the pipeline stops" in docs/operations.md'
            ) from error
        except KafkaError as error:
            said = f"{type(error).__name__}: {error}"
            raise BrokerError(f'topic "{self._topic}": expected records, got {said}') from error
        for fetch in fetches:
            self._doubtful.pop(fetch.partition, None)
        return fetches

    def wait(self, partition: int, position: int) -> list[Fetch]:
        """Return what arrives next of the one partition that is read, for jobs that end: they need all of it.

        A consumer gives back nothing while the brokers are away, as where nothing is to be had; but here it is known
        that the log goes on.

        Args:
            position: Where that is.

        Raises:
            LogError, BrokerError: As `poll`; or nothing came for a minute.
        """
        until = time.monotonic() + PATIENCE_S
        while not (fetches := self.poll(500)):
            if time.monotonic() > until:
                raise BrokerError(
                    f'topic "{self._topic}", partition {partition}: expected the records from offset {position} on, '
                    f"got none for {PATIENCE_S:.0f} s. Is Kafka away, or the partition without a leader? Run this "
                    "again when it is back: what is half done is done to its end then"
                )
        return fetches

    def close(self) -> None:
        self.consumer.close()

    def _poll(self, timeout_ms: int, about_bytes: int) -> list[Fetch]:
        found: list[Fetch | _Unreadable | None] = []
        units = max(1, about_bytes // _UNIT_BYTES)
        for portions in self.consumer.poll(timeout_ms=timeout_ms, max_records=units).values():
            found += portions
        for item in found:
            if isinstance(item, _Unreadable):
                self._ask_again(item)
        return [item for item in found if isinstance(item, Fetch)]

    def _ask_again(self, item: _Unreadable) -> None:
        """Read the place once more: what was damaged on its way comes whole, what is damaged on disk does not."""
        if self._doubtful.get(item.partition) == item.position:
            raise DamageError(item.partition, "bytes", f'topic "{self._topic}", {item.error}') from item.error
        log.warning("fetch_unreadable", extra={"partition": item.partition, "reason": str(item.error)})
        self._doubtful[item.partition] = item.position

    def _check_topic_id(self) -> None:
        cluster: Any = getattr(self.consumer, "_cluster", None)
        known = cluster.topic_id(self._topic) if hasattr(cluster, "topic_id") else None
        if known is not None and topic_id_text(known) != self._topic_id:
            raise LogError(
                f'topic "{self._topic}": expected the topic {self._topic_id} that was booked, got another one of the '
                f"same name ({topic_id_text(known)}); give the new one a new name"
            )

    def _explain(self, wanted: dict[TopicPartition, int]) -> None:
        """Say why a position is not in the log; return if it is there after all."""
        partitions = [place.partition for place in wanted]
        starts = log_starts(self.consumer, self._topic, partitions)
        ends = end_offsets(self.consumer, self._topic, partitions)
        for place, position in wanted.items():
            start, end = starts[place.partition], ends[place.partition]
            where = f'topic "{self._topic}", partition {place.partition}: expected to go on at offset {position}'
            if position < start:
                raise DamageError(
                    place.partition,
                    "retention",
                    f"{where}, but the log begins at {start}: retention removed {start - position} offsets that are "
                    'not booked. Nothing is guessed: see "When the pipeline stops" in docs/operations.md'
                )
            if position > end:
                raise DamageError(
                    place.partition,
                    "cut",
                    f"{where}, but the log ends at {end}: it was cut or made anew. "
                    'Nothing is guessed: see "When the pipeline stops" in docs/operations.md'
                )

    def _place(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)


class _Unreadable:
    """Stands among fetches for bytes that are no batches: the other partitions' fetches must not be lost with them."""

    __slots__ = ("error", "partition", "position")

    def __init__(self, error: LogError, partition: int, position: int) -> None:
        self.error, self.partition, self.position = error, partition, position


def check_client() -> None:
    """Refuse a kafka-python that is not one of those that we know.

    Raises:
        ConfigError: The sentence says which one to install.
    """
    try:
        from kafka.consumer.fetcher import Fetcher
    except ImportError:
        Fetcher = None
    _place_of_walk(Fetcher)


def _place_of_walk(fetcher: Any) -> Any:
    """Return the class in whose stead a consumer may keep `Fetch`es."""
    base: Any = getattr(fetcher, "PartitionRecords", None)
    known = isinstance(base, type) and all(callable(getattr(base, name, None)) for name in ("take", "drain"))
    if not known or not set(inspect.signature(base).parameters) >= _EXPECTED:
        raise ConfigError(
            "kafka-python: expected a version that keeps an answer of Kafka's as 3.0.12 does, got "
            f"{kafka.__version__}: without that nothing shows whether the log is what was booked; "
            "pip install 'kafka-python==3.0.12', then start again"
        )
    return base


def _put_walk_into(consumer: Any, topic_id: str, portion_bytes: int) -> None:
    """Let the consumer keep `Fetch`es where it kept records."""
    fetcher: Any = getattr(consumer, "_fetcher", None)
    base = _place_of_walk(fetcher)

    class WalkedRecords(base):  # type: ignore[valid-type,misc]
        """The response for one partition; the fetcher takes portions from it until it is drained."""

        def __init__(self, fetch_offset: int, tp: TopicPartition, records: Any, **options: Any) -> None:
            super().__init__(fetch_offset, tp, records, **options)
            aborted = [(entry.producer_id, entry.first_offset) for entry in options.get("aborted_transactions") or ()]
            self._walk = BatchWalk(bytes(records._buffer), topic_id, tp.partition, fetch_offset, aborted)

        def take(self, n: int | None = None) -> list[Fetch | _Unreadable | None]:
            """Return the next portion, and None for each further unit of its size: the fetcher goes on to the next
            portion as long as it has not got so many records as it was asked for.
            """
            first = self._walk.position
            try:
                fetch = self._walk.next_fetch(portion_bytes)
            except LogError as error:
                self.drain()  # the position stays, so that the same place is asked for again
                return [_Unreadable(error, self.topic_partition.partition, first)]
            if fetch is None:
                self.drain()
                return []
            self.next_fetch_offset = self._walk.position
            self.leader_epoch = self._walk.leader_epoch
            self.bytes_read = 1  # nonzero: the fetcher moves this partition to the end of its round
            return [fetch, *repeat(None, min(fetch.size // _UNIT_BYTES, (n or 1) - 1))]

        def drain(self) -> None:
            super().drain()
            # kafka-python 3.0.12 takes up what it has put aside for a partition that was paused only where this is
            # None, and leaves there what is drained: the partition would stand still for ever.
            if getattr(fetcher, "_next_partition_records", None) is self:
                fetcher._next_partition_records = None

    fetcher.PartitionRecords = WalkedRecords
