"""One chaos run from its first process to its last comparison."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from clickhouse_driver import errors as driver_errors

from pipeline.rollup import roll_up_missing
from tallyman.clickhouse import connect
from tallyman.kafka import read_topic
from tallyman.reconcile import read_counts
from tests.chaos import evidence, sameness
from tests.chaos.disks import Kind
from tests.chaos.faults import Chaos
from tests.chaos.growth import Growth, lots_until_quiet
from tests.chaos.parts import Helper, Parts
from tests.chaos.recount import recount
from tests.chaos.usage_made import EVENTS_IN_LOT, READINGS_IN_BATCH, Made, events_in
from tests.chaos.watch import Watch

_REPLAY_DATABASE = "replayed"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """`events`: at least so many that count. `workers`: how many share the partitions, beside the twin."""

    events: int
    seed: int
    workers: int
    disks: Kind


@dataclass
class Outcome:
    """What a run found. `checks`: what was checked, how much of it, and the result in a word."""

    seed: int
    events: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    checks: list[tuple[str, int, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def note(self, what: str, how_much: int, differences: Sequence[str]) -> None:
        self.checks.append((what, how_much, f"{len(differences)} differ" if differences else "right"))
        self.differences += evidence.shortened(differences)


class Run:
    """Sends, strikes, calms down, compares."""

    def __init__(
        self, folder: Path, options: RunOptions, faults: Sequence[str], rng: random.Random, watch: Watch
    ) -> None:
        self._options, self._faults, self._watch = options, faults, watch
        self._made = Made(options.seed, (int(time.time()) // 60 - 15) * 60_000_000)
        self.parts = Parts(folder, self._made, workers=options.workers, disks=options.disks)
        self.chaos = Chaos(self.parts, rng, watch.until)
        self.outcome = Outcome(options.seed, kills=self.chaos.kills, struck=self.chaos.struck)
        watch.state = self._state

    def go(self) -> Outcome:
        self._watch.doing("starting everything")
        self.parts.start()
        try:
            seals = evidence.SealWatch(self.parts.project.clickhouse)
            self._make_chaos()
            self._calm_down()
            self._compare(seals)
            self._grow(seals)
            return self.outcome
        finally:
            self._watch.doing("stopping everything")
            self.parts.stop()

    def _state(self) -> str:
        board = self.parts.board
        sent = events_in(board["agent.done"], board["client.done"])
        return f"{sent:,} events sent, {sum(self.chaos.kills.values())} kills"

    def _make_chaos(self) -> None:
        """Strike every fault of the plan, each with its share of the usage."""
        share = self._options.events / len(self._faults)
        for number, fault in enumerate(self._faults, 1):
            self._watch.doing(f'fault {number} of {len(self._faults)}, "{fault}",')
            # Three quarters come from agents, as in the field.
            batches, lots = (round(share * part / size) for part, size in _SHARES)
            self.chaos.allow(max(1, batches), max(1, lots))
            self.chaos.between()
            self.chaos.strike(fault)
        self.chaos.allow(0, lots_until_quiet(self.parts.board["client.allowed"]))

    def _calm_down(self, before_booking: Callable[[], None] = lambda: None) -> None:
        """Wait until everything that was accepted is booked, and close and seal it."""
        parts, board, chaos = self.parts, self.parts.board, self.chaos
        self._watch.doing("letting the senders finish")
        for name in ("host", *parts.workers):
            board[f"{name}.clock_us"] = 0
        board["finish"] = 1
        for sender in ("agent", "client", "host"):
            self._watch.until(f"{sender} has finished", lambda: board[f"{sender}.finished"])  # noqa: B023
        before_booking()
        self._book_all("booking all of it")
        self._watch.doing("closing and sealing")
        closed = chaos.close()
        self._watch.until(f"booking {closed} is sealed", lambda: (parts.sealed_to() or 0) >= closed)
        self._book_all("booking the close")

    def _book_all(self, doing: str) -> None:
        """Wait until all that stands in the log is booked, as long as anything moves."""
        self._watch.doing(doing)
        ends = self.chaos.answer("the broker answers", self.parts.ends)
        while not self.chaos.is_booked_to(ends):
            booked = self.chaos.booked()
            self._watch.until(f"{sum(ends.values()) - booked:,} offsets are booked",
                              lambda: self.chaos.booked() > booked or self.chaos.is_booked_to(ends))  # noqa: B023  # fmt: skip

    def _compare(self, seals: evidence.SealWatch) -> None:
        parts, board, outcome = self.parts, self.parts.board, self.outcome
        batches, lots = board["agent.done"], board["client.done"]
        outcome.events = events_in(batches, lots)
        with self._workers_rest():
            ends = self.chaos.answer("ClickHouse answers", parts.booked)
            sealed_to = self.chaos.answer("ClickHouse answers", parts.sealed_to)
            client = connect(parts.project.clickhouse)
            self._watch.doing("comparing totals")
            totals = evidence.compare_totals(client, self._made, batches, lots, board["host.accepted"])
            outcome.note("events stored = acknowledged, by series, item and minute", outcome.events, totals)
            self._watch.doing("counting the log again")
            found = read_topic(parts.project.kafka_brokers, parts.project.config.kafka.topic)
            assert found is not None
            recounted = recount(parts.project, found.topic_id, ends)
            differences, outcome.counts = evidence.reconcile(client, recounted)
            outcome.note("events received = sum of their fates, by partition and chunk", outcome.counts["received"],
                         differences)  # fmt: skip
            dead = evidence.compare_dead_letters(client, self._made, lots)
            outcome.note("dead letters, by reason and bytes", outcome.counts["dead"], dead)
            conflicts = evidence.compare_conflicts(client, lots)
            outcome.note("conflicts, against the first copy", outcome.counts["conflict"], conflicts)
            late = evidence.count_late(client)
            on_time = ["no event was late enough for a later booking"] if "close" in self._faults and not late else []
            outcome.note("series and minutes in several bookings", late, on_time)
            self._watch.doing("looking at sealed bookings again")
            changed = seals.finish()
            outcome.note("sealed bookings, unchanged since their seal", len(seals.seen), changed)
            self._replay(client, ends, sealed_to)
            stopped = [name for name in parts.workers if "log_differs" in parts.log_of(name)]
            outcome.note("workers that found the log changed", len(stopped), [f"{name} did" for name in stopped])

    @contextmanager
    def _workers_rest(self) -> Iterator[None]:
        """Hold what would only write ticks now."""
        for name in self.parts.workers:
            self.parts.signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            for name in self.parts.workers:
                self.parts.signal(name, signal.SIGCONT)

    def _replay(self, client: Any, ends: Mapping[int, int], sealed_to: int) -> None:
        """Book the log from zero into an empty database, and compare row by row."""
        self._watch.doing("replaying the log from zero")
        parts = self.parts
        endpoint = parts.project.clickhouse
        client.execute(f"CREATE DATABASE {_REPLAY_DATABASE}")
        second = replace(endpoint, database=_REPLAY_DATABASE)
        folder = parts.folder / _REPLAY_DATABASE
        database = {"host": second.host, "port": second.port, "database": second.database}
        parts.make_project(folder, more=f"clickhouse: {msgspec.json.encode(database).decode()}\n")
        places = [f"{partition}:{end}" for partition, end in ends.items()]
        argv = (sys.executable, "-m", "tests.chaos.replay", str(folder), str(parts.data), *places)
        helper = Helper(argv, parts.folder / "replay.log")
        replayed = connect(second)
        reached = -1
        while helper.code is None:
            self._watch.until(f"more than {reached:,} offsets are replayed",
                              lambda: helper.code is not None or _reached(replayed) > reached)  # noqa: B023  # fmt: skip
            reached = _reached(replayed)
        if helper.code:
            self.outcome.note("replay from zero", 0, [f"the replay ended with {helper.code}; see replay.log"])
            return
        self._watch.doing("rolling up what killed sealers left")
        while roll_up_missing(client, taken_for_s=0):  # as a worker does it an hour later
            pass
        self._watch.doing("comparing the replay")
        for compared in sameness.compare_replay(client, replayed, ends, sealed_to):
            name = f"replay from zero: {compared.what} (sha256 {compared.sha256[:12]})"
            self.outcome.note(name, compared.rows, [compared.difference] if compared.difference else [])

    def _grow(self, seals: evidence.SealWatch) -> None:
        """Add partitions behind the pipeline's back, and bring it through by the runbook for a new topic."""
        growth, parts, outcome = Growth(self.parts, self._watch), self.parts, self.outcome
        what = "workers that stopped with a sentence when partitions were added"
        outcome.note(what, len(parts.workers), growth.add_partitions())
        self.chaos.struck["partitions added"] += 1
        growth.bring_through()
        self._calm_down(growth.wait_for_late_records)
        batches, lots = parts.board["agent.done"], parts.board["client.done"]
        before, outcome.events = outcome.events, events_in(batches, lots)
        with self._workers_rest():
            client = connect(parts.project.clickhouse)
            self._watch.doing("comparing totals of both topics")
            totals = evidence.compare_totals(client, self._made, batches, lots, parts.board["host.accepted"])
            outcome.note("events of both topics stored = acknowledged", outcome.events - before, totals)
            chunks = read_counts(client)
            outcome.note("chunks of both topics whose counts add up", len(chunks),
                         [f"{chunk}: {fault}" for chunk in chunks for fault in chunk.faults])  # fmt: skip
            dead = evidence.compare_dead_letters(client, self._made, lots)
            dead += evidence.compare_conflicts(client, lots)
            outcome.note("dead letters and conflicts of both topics", lots, dead)
            changed = seals.finish()
            outcome.note("sealed bookings of both topics, unchanged", len(seals.seen), changed)


_SHARES = ((0.75, READINGS_IN_BATCH), (0.25, EVENTS_IN_LOT))


def _reached(client: Any) -> int:
    """Return how many offsets are booked; -1 before there is a table."""
    try:
        rows = client.execute("SELECT max(reached_offset) FROM progress GROUP BY partition")
    except driver_errors.ServerException:
        return -1
    return sum(row[0] for row in rows)
