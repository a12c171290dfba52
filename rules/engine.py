"""The rules engine as a service: follow the pipeline's pushes, decide, commit, deliver.

    usage.progress.v1 -> Rounds (usage from ClickHouse, states in the control store) -> outbox -> Sender
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from rules import outbox, tables
from rules.check import ALARMS_FOLDER, check_endpoints
from rules.load import load_rules
from rules.progress import News, ProgressReader
from rules.rounds import Rounds
from rules.sender import Sender, show_waiting
from rules.state import AlarmEvent, read_history
from tallyman.aggregates import Known, read_known, read_rows
from tallyman.clickhouse import NETWORK_ERRORS, Endpoint, connect, next_step
from tallyman.control import open_control
from tallyman.errors import StoreError, TallymanError
from tallyman.meter import Meter
from tallyman.metrics import counter, histogram, serve
from tallyman.project import Project
from tallyman.usage import UsageQuery, UsageRow

__all__ = ["AlarmEvent", "main", "read_history"]

log = logging.getLogger(__name__)
_LONGEST_POLL_S = 0.5  # how soon a stop is noticed
_STUCK_AFTER_S = 30.0
_SHOW_EVERY_S = 5.0


class ClickHouseUsage:
    """Usage from ClickHouse; one connection, for one thread, made anew after a failure."""

    def __init__(self, endpoint: Endpoint, meters: Sequence[Meter], expected_delay: timedelta, partitions: int) -> None:
        self._endpoint = endpoint
        self._meters = meters
        self._expected_delay = expected_delay
        self._partitions = partitions
        self._client: Client | None = None
        self._known: Known | None = None

    def complete_to(self) -> datetime | None:
        """Return up to which event time nothing is missing that was sent in time."""
        try:
            return self._look().completeness.complete_to
        except (driver_errors.Error, *NETWORK_ERRORS) as error:
            raise self._failed(error) from error

    def read(self, query: UsageQuery) -> Sequence[UsageRow]:
        """Answer a question about one meter, from what was known when `complete_to` was asked last.

        Raises:
            StoreError: ClickHouse does not answer, or not with usage.
        """
        try:
            return read_rows(self._connected(), query, self._known or self._look(), meters=self._meters)
        except (driver_errors.Error, *NETWORK_ERRORS) as error:
            raise self._failed(error) from error

    def _look(self) -> Known:
        self._known = read_known(self._connected(), expected_delay=self._expected_delay, partitions=self._partitions)
        return self._known

    def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(*NETWORK_ERRORS):
                client.disconnect()

    def _connected(self) -> Client:
        self._client = self._client or connect(self._endpoint, timeout_s=10)
        return self._client

    def _failed(self, error: Exception) -> StoreError:
        self.close()
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        mend = f"; {step}" if (step := next_step(error)) else ""
        return StoreError(f"ClickHouse: expected usage, got {said}{mend}; alarms stay as they are until it answers")


class Health:
    """How the engine is, for /readyz; written by its loop, read by the probe."""

    def __init__(self) -> None:
        self.problem = "starting"
        self.seen_alive = time.monotonic()

    def ready(self) -> tuple[bool, str]:
        """Say whether alarms are being decided, and why not."""
        silent_s = time.monotonic() - self.seen_alive
        if silent_s > _STUCK_AFTER_S:
            return False, f"an evaluation is stuck for {silent_s:.0f} s"
        return not self.problem, self.problem or "deciding alarms"

    def note(self, problem: str = "") -> None:
        """Say that the loop goes on, and what keeps it from deciding, if anything does."""
        self.problem = problem
        self.seen_alive = time.monotonic()


def main(project: Project, stop: threading.Event, metrics_port: int | None) -> int:
    """Run the rules engine until told to stop; return the exit code.

    While Kafka, ClickHouse or the control store is away nothing changes; what was missed is made up for.
    """
    check_endpoints(project)
    endpoints = project.config.rules.endpoints
    rules = load_rules(project.folder / ALARMS_FOLDER, project.meters, endpoints)
    engine = open_control(project.control_url)
    tables.prepare(engine)
    outbox.register(engine, {name: endpoint.url for name, endpoint in endpoints.items()})
    health = Health()
    server = serve(metrics_port, health.ready) if metrics_port is not None else None
    sender = Sender(engine, endpoints)
    sender.start()

    def show() -> None:
        show_waiting(outbox.count_waiting(engine), endpoints)

    log.info("rules_started", extra={"rules": len(rules), "endpoints": len(endpoints)})
    try:
        while not stop.is_set():
            usage = ClickHouseUsage(
                project.clickhouse,
                project.meters,
                project.config.usage.expected_delay,
                project.config.kafka.partitions,
            )
            rounds = Rounds(engine, rules, tuple(endpoints), usage)
            try:
                _follow(project, rounds, sender, health, stop, show)
            except TallymanError as error:
                if not error.retriable:
                    raise
                health.note(str(error))
                counter("tallyman_rules_evaluations_total").labels("failed").inc()
                log.warning("rules_wait", extra={"error": str(error)})
                stop.wait(1.0)
            finally:
                usage.close()
    finally:
        sender.stop()
        if server:
            server.close()
        engine.dispose()
    return 0


def _follow(
    project: Project,
    rounds: Rounds,
    sender: Sender,
    health: Health,
    stop: threading.Event,
    show: Callable[[], None],
) -> None:
    """Decide whenever something came in or is due, until told to stop or something is away."""
    reader = ProgressReader(project.kafka_brokers, project.config.kafka.progress_topic)
    try:
        if rounds.begin(datetime.now(UTC)):
            sender.wake()
        news = News(0, None)  # what came while nobody followed: look at everything once
        shown_at = 0.0
        while not stop.is_set():
            now = datetime.now(UTC)
            if news.records or news.touches is None or (rounds.wake_at is not None and rounds.wake_at <= now):
                began = time.monotonic()
                look_at = "all" if news.touches is None else "touched"
                if rounds.run(now, news.touches or (), look_at=look_at):
                    sender.wake()
                histogram("tallyman_rules_evaluation_seconds").observe(time.monotonic() - began)
            health.note()
            if time.monotonic() - shown_at > _SHOW_EVERY_S:
                show()
                shown_at = time.monotonic()
            left_s = _LONGEST_POLL_S
            if rounds.wake_at is not None:
                left_s = (rounds.wake_at - datetime.now(UTC)).total_seconds()
            news = reader.read(min(max(left_s, 0.0), _LONGEST_POLL_S))
    finally:
        reader.close()
