"""The sealer on its own: seal what can be sealed, and say what the rest waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from clickhouse_driver import Client

from pipeline.frontier import Frontier, read_frontier
from pipeline.growth import look_at_line
from pipeline.seal import Seal, Sealer, read_sealed_to
from tallyman.clickhouse import connect, store_errors
from tallyman.errors import TallymanError
from tallyman.kafka import end_offsets, make_consumer
from tallyman.project import Project
from tallyman.topics import note_line, refuse_other_line

log = logging.getLogger(__name__)
_LOOK_EVERY_S, _REST_S = 1.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Laggard:
    """A partition that has not left a booking.

    Attributes:
        offset: The next record to book; `behind`: how many records are in the log from there on.
        clock_ms: The log clock there, 0 before anything was booked.
        booking: The one that it is in.
    """

    partition: int
    offset: int
    behind: int
    clock_ms: int
    booking: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealed:
    """A booking that holds usage and is not sealed; it is waiting for laggards, if there are any."""

    booking: int
    rows: int
    events: int
    laggards: tuple[Laggard, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealReport:
    """What was sealed, up to where everything is, and what is left."""

    sealed: tuple[Seal, ...]
    sealed_to: int
    unsealed: tuple[Unsealed, ...]


class SealDesk:
    """Seals a project's books."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._client: Client = connect(project.clickhouse)
        self._consumer = make_consumer(project.kafka_brokers)
        self._begin()

    def _begin(self) -> None:
        """Take up the topic that is booked now."""
        self._line = look_at_line(self._project, self._client)
        topic = self._topic = self._line[-1]
        self._partitions = [(topic.topic_id, number, topic.chunk_size) for number in range(topic.partitions)]
        self._sealer = Sealer(self._client, self._partitions)

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()
        self._client.disconnect()

    def seal(self, show: Callable[[str], None] = lambda _: None) -> SealReport:
        """Seal every booking that all partitions have left.

        Args:
            show: Is told how it goes.

        Raises:
            ConfigError: Another line of topics is booked now.
            StoreError: ClickHouse did not acknowledge; nothing is half sealed, call again.
        """
        return self._report(self._seal(show))

    def _note(self) -> None:
        """Note how the line goes on; which line is booked, only who books decides.

        Raises:
            ConfigError: It is another one.
        """
        with store_errors(self._client, "reading which topics are booked"):
            refuse_other_line(self._client, self._line[0].topic_id, self._topic.name)
            note_line(self._client, self._line)

    def _seal(self, show: Callable[[str], None] = lambda _: None) -> tuple[Seal, ...]:
        self._note()
        sealed = tuple(self._sealer.seal_all(show))
        if self._sealer.ended:
            self._begin()
            self._note()
            sealed += tuple(self._sealer.seal_all(show))
        with store_errors(self._client, "tidying usage_hot and usage"):
            show("making blocks of what was sealed")
            self._sealer.roll_up_missing()
            self._sealer.join_heard()
            self._sealer.drop_old_hot(time.time_ns() // 1_000_000)
            self._sealer.drop_leftovers()
        return sealed

    def look(self) -> SealReport:
        """Say what could be sealed, and what the rest waits for; nothing is sealed."""
        return self._report(())

    def watch(self, stop: threading.Event) -> Iterator[SealReport]:
        """Seal on and on, yielding at first and whenever something was sealed, until told to stop.

        ClickHouse, Kafka or the control store may be away meanwhile: it is tried again, and what was sealed before it
        could be told is told later.

        Raises:
            ConfigError: Another line of topics is booked now.
            LogError, StoreRefusedError: Somebody has to mend something first.
        """
        first, sealed = True, list[Seal]()
        while not stop.is_set():
            try:
                sealed += self._seal()
                if first or sealed:
                    report = self._report(sealed)
                    first, sealed = False, []
                    yield report
            except TallymanError as error:
                if not error.retriable:
                    raise
                log.warning("seal_retried", extra={"error": str(error)[:500]})
                stop.wait(_REST_S)
            stop.wait(_LOOK_EVERY_S)

    def _report(self, sealed: Sequence[Seal]) -> SealReport:
        ends = end_offsets(self._consumer, self._topic.name, range(self._topic.partitions))
        with store_errors(self._client, "reading what is sealed"):
            frontiers = [read_frontier(self._client, *partition) for partition in self._partitions]
            sealed_to = read_sealed_to(self._client)
            rows = self._client.execute(
                "SELECT booking, count(), sum(h.count) FROM usage_hot AS h FINAL WHERE booking > %(sealed_to)s"
                " AND generation = 0 GROUP BY booking ORDER BY booking",
                {"sealed_to": sealed_to},
            )
        return SealReport(
            sealed=tuple(sealed),
            sealed_to=sealed_to,
            unsealed=tuple(
                Unsealed(booking=booking, rows=int(count), events=int(events),
                         laggards=_laggards(booking, frontiers, ends))
                for booking, count, events in rows
            ),
        )  # fmt: skip


def _laggards(booking: int, frontiers: Sequence[Frontier], ends: dict[int, int]) -> tuple[Laggard, ...]:
    return tuple(
        Laggard(
            partition=frontier.partition,
            offset=frontier.reached.offset,
            behind=max(0, ends[frontier.partition] - frontier.reached.offset),
            clock_ms=frontier.reached.clock_ms,
            booking=frontier.reached.booking,
        )
        for frontier in frontiers
        if frontier.reached.booking <= booking
    )
