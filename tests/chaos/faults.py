"""What goes wrong in a chaos run. Each fault waits for a sign that its victim works, strikes, and waits for a sign that
somebody noticed; nothing here counts on how long anything takes.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, islice
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from pipeline.close import close_books
from tallyman.control import open_control, read
from tallyman.errors import BrokerError, StoreError
from tallyman.local.clickhouse import DISK_RESERVE_BYTES
from tests.chaos.board import TWIN, Board
from tests.chaos.disks import SmallDisk
from tests.chaos.parts import Helper, Parts
from tests.chaos.sealer import STEPS

_SECOND_US, _DAY_US = 1_000_000, 86_400_000_000
_AHEAD_MOST_US = 2400 * _SECOND_US  # well within what the project accepts ahead
_FEED_EVERY_S = 0.5
_Answer = TypeVar("_Answer")


class Waiting(Protocol):
    """Waits until something is so, telling the person who looks; raises TimeoutError when it never is."""

    def __call__(self, what: str, is_so: Callable[[], Any]) -> None: ...


@dataclass
class Chaos:
    """What a fault works with.

    Attributes:
        kills: How often each part was killed with -9; `struck`: how often each fault struck.
    """

    parts: Parts
    rng: random.Random
    wait: Waiting
    kills: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    _marks: dict[str, int] = field(default_factory=dict)  # what a victim had done when it was last killed
    _fed: float = 0.0

    @cached_property
    def _control(self) -> sa.Engine:
        return open_control(self.parts.project.control_url)

    @property
    def board(self) -> Board:
        return self.parts.board

    def strike(self, fault: str) -> None:
        FAULTS[fault](self)
        self.struck[fault] += 1

    def between(self) -> None:
        """Let something happen between two faults: nothing (both at once), a little, or all that was in the log."""
        draw = self.rng.random()
        if draw < 0.2:
            return
        if draw < 0.7:
            booked = self.booked()
            self.wait_fed("something is booked", lambda: self.booked() > booked)
        else:
            ends = self.answer("the broker answers", self.parts.ends)
            self.wait("all of the log is booked", lambda: self.is_booked_to(ends))

    def answer(self, what: str, ask: Callable[[], _Answer | None]) -> _Answer:
        """Ask until there is an answer."""
        answers: list[_Answer] = []

        def is_answered() -> bool:
            answers.extend(found for found in (ask(),) if found is not None)
            return bool(answers)

        self.wait(what, is_answered)
        return answers[0]

    def booked(self) -> int:
        """Return how many offsets are booked; waits while ClickHouse is away."""
        return sum(self.answer("ClickHouse answers", self.parts.booked).values())

    def is_booked_to(self, ends: Mapping[int, int]) -> bool:
        booked = self.parts.booked()
        return booked is not None and all(booked.get(partition, 0) >= end for partition, end in ends.items())

    def allow(self, batches: int, lots: int) -> None:
        """Let the senders send more."""
        self.board["agent.allowed"] += batches
        self.board["client.allowed"] += lots

    def wait_fed(self, what: str, is_so: Callable[[], Any]) -> None:
        """Wait until something is so for which events must flow: who has sent all it may is allowed a little more."""

        def is_so_at_last() -> Any:
            return is_so() or self._feed()

        self.wait(what, is_so_at_last)

    def _feed(self) -> bool:
        board = self.board
        if time.monotonic() - self._fed > _FEED_EVERY_S:
            self._fed = time.monotonic()
            self.allow(board["agent.done"] >= board["agent.allowed"], board["client.done"] >= board["client.allowed"])
        return False

    def kill(self, name: str, has_done: Callable[[], int | None]) -> None:
        """Kill a part that has done something since it was last killed."""
        done = mark = self._marks.get(name, 0)

        def has_done_more() -> bool:
            nonlocal done
            done = has_done() or 0
            return done > mark

        self.wait_fed(f"{name} does something", has_done_more)
        self.parts.kill(name)
        self.kills[name] += 1
        self._marks[name] = done

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Hold a part, clocks and all: the kernel gives it no time until the block ends."""
        self.parts.signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.parts.signal(name, signal.SIGCONT)

    def close(self) -> int:
        """End the open booking, and return the number of the newest one that was closed."""
        while True:
            try:
                return close_books(self.parts.project).booking - 1
            except (BrokerError, StoreError):  # it stands in the control store, and whoever starts next writes it
                self.answer("the broker answers", self.parts.ends)

    def closes(self) -> int:
        """Return how many closes have a number."""
        with read(self._control) as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM closes").scalar_one())


# Kills


def kill_agent(chaos: Chaos) -> None:
    chaos.kill("agent", lambda: chaos.board["agent.done"])


def kill_host(chaos: Chaos) -> None:
    chaos.kill("host", lambda: chaos.board["host.accepted"])


def kill_client(chaos: Chaos) -> None:
    chaos.kill("client", lambda: chaos.board["client.done"])


def kill_worker(chaos: Chaos) -> None:
    """Kill one of those that share the partitions, in turn."""
    sharing = [name for name in chaos.parts.workers if name != TWIN]
    _kill_worker(chaos, min(sharing, key=lambda name: chaos.kills[name]))


def kill_twin(chaos: Chaos) -> None:
    _kill_worker(chaos, TWIN)


def _kill_worker(chaos: Chaos, name: str) -> None:
    # Its count begins again with each process, so no mark is kept.
    chaos.wait_fed(f"{name} has written", lambda: chaos.parts.flushes(name))
    chaos.parts.kill(name)
    chaos.kills[name] += 1


def kill_broker(chaos: Chaos) -> None:
    chaos.answer("the broker answers", chaos.parts.ends)
    chaos.kill("kafka", lambda: sum((chaos.parts.ends() or {}).values()))


def kill_database(chaos: Chaos) -> None:
    chaos.kill("clickhouse", lambda: sum((chaos.parts.booked() or {}).values()))


def kill_sealer(chaos: Chaos) -> None:
    """Kill it between two steps; those behind the first are reached when there is a booking to seal."""
    before = chaos.parts.ended["sealer"]
    looks = chaos.board["sealer.looks"]
    step = chaos.rng.randrange(len(STEPS))
    chaos.wait("the sealer looks", lambda: chaos.board["sealer.looks"] > looks)
    chaos.board["sealer.dies_at"] = step + 1
    if step:
        closed = chaos.close()
        chaos.wait(
            "somebody seals", lambda: chaos.parts.ended["sealer"] > before or (chaos.parts.sealed_to() or 0) >= closed
        )
    if chaos.parts.ended["sealer"] == before:  # a worker was faster, and there is nothing to seal for it
        chaos.board["sealer.dies_at"] = 1
    chaos.wait("the sealer dies", lambda: chaos.parts.ended["sealer"] > before)
    chaos.kills["sealer"] += chaos.parts.ended["sealer"] - before


def kill_close(chaos: Chaos) -> None:
    """Kill `tallyman close` when it has its number, before or while it writes to the log."""
    where = ("--project", str(chaos.parts.folder), "--data", str(chaos.parts.data))
    while True:
        before = chaos.closes()
        helper = Helper((sys.executable, "-m", "tallyman", "close", *where), chaos.parts.folder / "close.log")
        chaos.wait("tallyman close takes a number", lambda: chaos.closes() > before or helper.code is not None)  # noqa: B023
        if helper.kill():
            chaos.kills["close"] += 1
            return


# Restarts, and parts that stand still


def _restart(chaos: Chaos, name: str) -> None:
    ended = chaos.parts.ended[name]
    chaos.parts.signal(name, signal.SIGTERM)
    chaos.wait(f"{name} has stopped", lambda: chaos.parts.ended[name] > ended)


def restart_broker(chaos: Chaos) -> None:
    chaos.answer("the broker answers", chaos.parts.ends)
    _restart(chaos, "kafka")


def restart_database(chaos: Chaos) -> None:
    chaos.booked()
    _restart(chaos, "clickhouse")


def stop_broker(chaos: Chaos) -> None:
    """The broker stands still while agents go on accepting."""
    accepted = chaos.board["host.accepted"]
    with chaos.stopped("kafka"):
        chaos.wait("the host's agent accepts meanwhile", lambda: chaos.board["host.accepted"] > accepted)


def stop_database(chaos: Chaos) -> None:
    """ClickHouse stands still while Kafka goes on."""
    chaos.answer("the broker answers", chaos.parts.ends)
    sent = chaos.board["client.done"]
    with chaos.stopped("clickhouse"):
        chaos.wait_fed("the client sends meanwhile", lambda: chaos.board["client.done"] > sent)


def stop_agents(chaos: Chaos) -> None:
    """The agents stand still: when they go on, every clock has jumped for them."""
    booked = chaos.booked()
    with chaos.stopped("agent"), chaos.stopped("host"):
        chaos.wait_fed("others are booked meanwhile", lambda: chaos.booked() > booked)


def zombie(chaos: Chaos) -> None:
    """A worker stands still in whatever it does; another one overtakes it, often beyond a seal; then it goes on."""
    name = chaos.rng.choice(chaos.parts.workers)
    chaos.wait_fed(f"{name} has written", lambda: chaos.parts.flushes(name))
    written = chaos.parts.flushes(name)
    booked = chaos.booked()
    with chaos.stopped(name):
        chaos.wait_fed("others overtake", lambda: chaos.booked() > booked)
        if chaos.rng.random() < 0.7:
            closed = chaos.close()
            chaos.wait("the zombie's booking is sealed", lambda: (chaos.parts.sealed_to() or 0) >= closed)
    # More than before; or it gave up, and its successor counts from 0.
    chaos.wait_fed("the zombie writes", lambda: (chaos.parts.flushes(name) or written) != written)


# Disks


def fill_spool(chaos: Chaos) -> None:
    refused = chaos.board["agent.refused"]

    def is_refused() -> bool:
        chaos.parts.spool_disk.fill()  # again: sent segments are deleted meanwhile, and processes may be new
        return chaos.board["agent.refused"] > refused

    try:
        chaos.wait_fed("the spool refuses", is_refused)
    finally:
        chaos.parts.spool_disk.free()


def fill_database(chaos: Chaos) -> None:
    """Fill ClickHouse's disk as a disk gets full: first all but a part of the reserve, then, when nothing is being
    written any more, the last byte. What is being written just then the engine loses without an error.
    """
    chaos.booked()
    chaos.wait("a table to try", lambda: chaos.parts.ask(_SCRATCH) is not None)
    sent = chaos.board["client.done"]

    def is_refused(but_for: int = 0) -> bool:
        chaos.parts.database_disk.fill(but_for=but_for)
        return chaos.parts.ask("INSERT INTO chaos_scratch SELECT randomString(1000) FROM numbers(2000)") is None

    def is_quiet() -> bool:
        return is_refused(DISK_RESERVE_BYTES // 4) and chaos.parts.ask(_WRITES) == [(0,)]

    try:
        if isinstance(chaos.parts.database_disk, SmallDisk):
            chaos.wait("ClickHouse writes nothing more", is_quiet)
        chaos.wait("ClickHouse refuses", is_refused)
        chaos.wait_fed("the client sends meanwhile", lambda: is_refused() and chaos.board["client.done"] > sent)
    finally:
        chaos.parts.database_disk.free()
    chaos.wait("the table is dropped", lambda: chaos.parts.ask("DROP TABLE IF EXISTS chaos_scratch") is not None)


_WRITES = "SELECT (SELECT count() FROM system.merges) + countIf(query_kind = 'Insert') FROM system.processes"
_SCRATCH = "CREATE TABLE IF NOT EXISTS chaos_scratch (bytes String) ENGINE = MergeTree ORDER BY ()"


# Clocks


def step_host_clock(chaos: Chaos) -> None:
    """Set the wall clock of a measuring host forward, or a little back."""
    accepted, ahead = chaos.board["host.accepted"], chaos.board["host.clock_us"]
    step_us = chaos.rng.choice((-3, -1, 20, 45, 90)) * _SECOND_US
    chaos.board["host.clock_us"] = min(ahead + step_us, _AHEAD_MOST_US)
    chaos.wait("the host's agent accepts again", lambda: chaos.board["host.accepted"] > accepted)


def step_worker_clock(chaos: Chaos) -> None:
    """Set the wall clock of a worker by days."""
    name = chaos.rng.choice(chaos.parts.workers)
    chaos.board[f"{name}.clock_us"] = chaos.rng.choice((-400, -2, -1, 0, 1, 2, 40, 400)) * _DAY_US
    booked = chaos.booked()
    chaos.wait_fed("something is booked", lambda: chaos.booked() > booked)


def close_booking(chaos: Chaos) -> None:
    """End the booking while events of its minutes still come, and see it sealed."""
    closed = chaos.close()
    chaos.wait(f"booking {closed} is sealed", lambda: (chaos.parts.sealed_to() or 0) >= closed)


KILLS: Mapping[str, Callable[[Chaos], None]] = {
    "kill agent": kill_agent,
    "kill worker": kill_worker,
    "kill broker": kill_broker,
    "kill client": kill_client,
    "kill twin": kill_twin,
    "kill database": kill_database,
    "kill sealer": kill_sealer,
    "kill host": kill_host,
    "kill close": kill_close,
}
OTHERS: Mapping[str, Callable[[Chaos], None]] = {
    "zombie": zombie,
    "close": close_booking,
    "spool full": fill_spool,
    "database full": fill_database,
    "host's clock set": step_host_clock,
    "worker's clock set": step_worker_clock,
    "broker stands still": stop_broker,
    "database stands still": stop_database,
    "agents stand still": stop_agents,
    "broker restarts": restart_broker,
    "database restarts": restart_database,
}
FAULTS: Mapping[str, Callable[[Chaos], None]] = {**KILLS, **OTHERS}


def plan(kills: int, rng: random.Random) -> Sequence[str]:
    """Return the faults of a run in their order: each victim's turn comes equally often, everything else at least once,
    and one of the others for every third kill.
    """
    others = max(len(OTHERS), kills // 3)
    faults = [*islice(cycle(KILLS), kills), *islice(cycle(OTHERS), others)]
    rng.shuffle(faults)
    return faults
