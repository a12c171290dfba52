"""What a worker does beside booking: seal, keep silent partitions' clocks moving, look at the topic's settings again.

Each duty is a thread that survives what goes wrong in it: ClickHouse or Kafka may be away, and the next try comes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

from pipeline import metrics as counted
from pipeline.late import LateRecords, LateStore
from pipeline.outlet import KafkaOutlet
from pipeline.runtime import JobConfig
from pipeline.seal import Sealer
from tallyman import books
from tallyman.clickhouse import connect, keep_views, store_errors
from tallyman.control import open_control
from tallyman.errors import LogError, StoreRefusedError
from tallyman.kafka import check_topic

log = logging.getLogger(__name__)
_FOLLOW_S = 0.05
SEAL_EVERY_S, CHECK_EVERY_S, FOLLOWED_EVERY_S, REST_S = 1.0, 60.0, 30.0, 5.0


class Over(threading.Event):
    """Set when a worker has no more to do for a topic; at the latest when the whole service stops."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop
        threading.Thread(target=self._follow, name="over", daemon=True).start()

    def _follow(self) -> None:
        while not self.wait(_FOLLOW_S):
            if self._stop.is_set():
                self.set()


class Upkeep:
    """The duties of one worker for one topic; `fault` says why it must stop, if it must.

    Args:
        over: Ends the duties; set by them when the topic is booked to its end, or something is wrong.
        replication: Copies of the topic; 1 for the embedded stack.
        reads: Says which partitions this worker reads just now.
        silent_s: Says for how many seconds nothing came from a partition.
        more: Further duties, each with how often it is done, in seconds.
    """

    def __init__(
        self,
        config: JobConfig,
        over: threading.Event,
        replication: int,
        reads: Callable[[], Collection[int]],
        *,
        silent_s: Callable[[int], float] = counted.silent_s,
        more: Sequence[tuple[Callable[[], None], float]] = (),
    ) -> None:
        self._config = config
        self._reads, self._silent_s = reads, silent_s
        self._over = over
        self._replication = replication
        self.fault: LogError | StoreRefusedError | None = None
        everything = [(config.topic_id, number, config.chunk_size) for number in range(config.partitions)]
        self._client = connect(config.database)
        self._sealer = Sealer(self._client, everything)
        self._outlet = KafkaOutlet(config.brokers, config.topic, config.progress_topic, config.expected_delay_us)
        self._late: list[LateRecords] = []
        self._followed = False
        self._threads = [
            threading.Thread(target=self._keep, args=duty, name=duty[0].__name__.strip("_"), daemon=True)
            for duty in (
                (self._seal, SEAL_EVERY_S),
                (self._tick, min(1.0, config.tick_s / 4)),
                (self._check, CHECK_EVERY_S),
                (self._send_on_early, FOLLOWED_EVERY_S),
                *more,
            )
        ]

    def start(self) -> None:
        for topic in self._config.before:
            self._send_on(topic, self._config.topic)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Wait for the duties to end, once `over` is set; also for those that were never begun."""
        begun = [thread for thread in self._threads if thread.ident is not None]
        for thread in begun:
            thread.join(timeout=5)
        for sender in list(self._late):
            sender.close()
        self._outlet.close()
        if not any(thread.is_alive() for thread in begun):  # one that hangs still has it
            self._client.disconnect()

    def _keep(self, duty: Callable[[], None], every_s: float) -> None:
        while not self._over.wait(every_s):
            try:
                duty()
            except (LogError, StoreRefusedError) as error:
                self.fault = error
                self._over.set()
            except Exception as error:  # noqa: BLE001 - a duty that dies silently would be missed for days
                log.warning(
                    "upkeep_retried", extra={"duty": duty.__name__, "error": f"{type(error).__name__}: {error}"[:300]}
                )
                self._over.wait(REST_S)

    def _seal(self) -> None:
        """Seal what all partitions have left."""
        for seal in self._sealer.seal_all():
            counted.note_seal(seal)
        with store_errors(self._client, "tidying usage_hot and usage"):
            self._sealer.roll_up_missing()
            self._sealer.join_heard()
            self._sealer.drop_old_hot(time.time_ns() // 1_000_000)
            self._sealer.drop_leftovers()
        if self._sealer.ended:
            log.info("topic_ended", extra={"topic": self._config.topic})
            self._over.set()

    def _tick(self) -> None:
        """Write a tick into every partition that was silent too long: its clock, and so its bookings, move on."""
        for partition in self._reads():
            if self._silent_s(partition) > self._config.tick_s:
                counted.note_tick(partition)
                self._outlet.tick(partition)

    def _check(self) -> None:
        """Refuse to go on when somebody made the topic anew, resized it or changed a setting that loses usage.

        What was added to a topic that is followed by another one is sent on to that one. Views that a migrator of
        an older version wrote back, which was paused in its start, are made anew.
        """
        config = self._config
        check_topic(
            config.brokers,
            config.topic,
            topic_id=config.topic_id,
            partitions=None if config.followed else config.partitions,
            replication=self._replication,
        )
        client = connect(config.database)
        try:
            with store_errors(client, "views"):
                keep_views(client)
        finally:
            client.disconnect()

    def _send_on_early(self) -> None:
        """See whether another topic follows this one now; then copy what comes behind its ends, partition by partition.

        Not only when all have ended: one may take longer than Kafka keeps what comes late in the others.
        """
        config = self._config
        if self._followed:
            return
        engine = open_control(config.control_url)
        try:
            line = books.read_line(engine, config.topic)
        finally:
            engine.dispose()
        for topic, following in pairwise(line):
            if topic.topic_id == config.topic_id and following.founded:
                self._followed = True
                self._send_on(topic, following.name)

    def _send_on(self, topic: books.Topic, following: str) -> None:
        """Have what still arrives behind the ends of a topic copied to another one."""
        config = self._config
        sender = LateRecords(config.brokers, topic, following, LateStore(config.database, topic), self._over)
        self._late.append(sender)
        sender.start()
