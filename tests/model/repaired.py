"""Schedules on the real tables in which retention reaches what is not booked, and operators repair.

The repairs, the fences and what sets a partition aside are the real code; the oracle is that of
`tests.model.repair_model`. An insert may still be under way when nobody waits for it any more: it arrives when the
repair waits for it, or later, and what began before a fence went up passes it.

A replay is not compared: a fresh database has no decisions, and what replays behind one (`pipeline.recount`) is not a
worker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import sqlalchemy as sa
from clickhouse_driver import errors as driver_errors

from pipeline import quarantine, repair, runtime
from pipeline.batches import Fetch
from pipeline.close import CloseReport
from pipeline.quarantine import SetAside
from pipeline.runtime import JobConfig
from tallyman.books import Topic
from tallyman.errors import ConfigError, DamageError, LogError
from tallyman.project import Project
from tallyman.repairs import read_repairs
from tallyman.usage import Repair as Decision
from tests.model.actors import NEVER_S, RESTARTED_AFTER, Clock, Worker, deployed, read, seal, stepwise
from tests.model.chunk_model import CLOSES, DAY, Place, close
from tests.model.process import running
from tests.model.repair_model import DecidedWorld, Repair
from tests.model.store import Door, Store
from tests.model.world import START_MS, TOPIC, UNIT_MS, RealWorld, model_booking, real_booking

_MOST_REPAIRS = 3  # of a partition, till wear stops damaging it
_ADDS_FENCE = re.compile(r"ALTER TABLE (\w+) ADD CONSTRAINT IF NOT EXISTS (\w+) CHECK")
_GIVEN_UP = (ConfigError, *RESTARTED_AFTER)


class UnderWay(NamedTuple):
    """An insert that nobody waits for any more, and the fences that were up when it began."""

    number: int
    sql: str
    params: Any
    numpy: bool
    options: Mapping[str, Any]
    fences: frozenset[str]


class SlowDoor(Door):
    """A door behind which an insert may go on when the connection is lost."""

    def __init__(self, world: RepairedRealWorld, *, numpy: bool = False) -> None:
        super().__init__(world.real, running(), world.faults, numpy=numpy)
        self._world = world

    def execute(self, sql: str, params: Any = None, **options: Any) -> Any:
        world = self._world
        if "system.processes" in sql:
            running().pause(sql)
            return world.processes(params)
        if sql.startswith(world.slow) and world.rng.random() < world.faults.share * 4:
            running().pause(sql)
            world.begin(sql, params, self._numpy, options)
            raise driver_errors.NetworkError("the connection was lost")
        answer = super().execute(sql, params, **options)
        if fence := _ADDS_FENCE.match(sql):
            world.fences[fence[2]] = {**world.fences.get(fence[2], {}), fence[1]: sql}
        return answer


class RepairedRealWorld(DecidedWorld, RealWorld):
    """A real world with a repair's tables, whose processes are given by `start_repaired`."""

    patience = 20_000
    slow = tuple(f"INSERT INTO {table} " for table in ("usage_hot", "progress", "ids"))

    def __init__(self, seed: int, store: Store) -> None:
        self.under_way: list[UnderWay] = []
        self.fences: dict[str, dict[str, str]] = {}  # by name: the statement for each table
        self._begun = 0
        self.control = sa.create_engine(
            "sqlite://", poolclass=sa.StaticPool, connect_args={"check_same_thread": False}
        )
        RealWorld.__init__(self, seed, store)
        self.archive = False

    def door(self, *, numpy: bool = False) -> Any:
        return SlowDoor(self, numpy=numpy)

    @property  # type: ignore[override]
    def repairs(self) -> Sequence[Sequence[Repair]]:
        found: list[list[Repair]] = [[] for _ in self.logs]
        for each in read_repairs(self.real):  # type: ignore[arg-type]
            found[each.partition].append(_decision(each))
        return found

    def fetch(self, partition: int, position: int, most: int) -> Fetch:
        start = self.logs[partition].start
        if position < start:
            raise DamageError(partition, "retention", f"expected offset {position}, the log begins at {start}")
        return super().fetch(partition, position, most)

    # Inserts that nobody waits for.

    def begin(self, sql: str, params: Any, numpy: bool, options: Mapping[str, Any]) -> None:
        for piece in self.faults.pieces(sql, params):
            self._begun += 1
            self.under_way.append(UnderWay(self._begun, sql, piece, numpy, options, frozenset(self.fences)))

    def processes(self, params: Mapping[str, Any] | None) -> list[tuple[int]]:
        """Answer who asks what is under way: all, or which of some; meanwhile one of them arrives."""
        if params is None:
            return [(each.number,) for each in self.under_way]
        self.arrive()
        return [(each.number,) for each in self.under_way if each.number in params["ids"]]

    def arrive(self) -> None:
        """Let one insert happen. It has passed the fences that went up since; of the others it may be refused."""
        if not self.under_way:
            return
        each = self.under_way.pop(self.rng.randrange(len(self.under_way)))
        table = each.sql.split()[2]
        since = {name: on[table] for name, on in self.fences.items() if name not in each.fences and table in on}
        for name in since:
            self.real.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        with suppress(driver_errors.Error):
            self.real.execute(each.sql, each.params, numpy=each.numpy, **each.options)
        for statement in since.values():
            self.real.execute(statement)

    def booked(self) -> bool:
        return not self.under_way and super().booked()

    def _check_counts(self) -> None:
        """What a repair finds in rows ahead of progress is booked, and counted nowhere."""

    def check_replay(self, usage: dict[tuple, tuple]) -> None:
        """See the top."""


def _decision(each: Decision) -> Repair:
    clock = max(each.from_clock_ms - START_MS, 0) // UNIT_MS
    place = Place(each.to_offset, clock, model_booking(each.booking), max(each.definitions, 1) - 1)
    return Repair(each.from_offset, place)


def work(world: RepairedRealWorld) -> None:
    """Run a worker as `pipeline.worker` does: what fails twice at one place, or is fenced, is set aside."""
    rng, config = world.rng, SimpleNamespace(topic_id=TOPIC, database=None, chunk_size=world.chunk_size)
    aside = SetAside(cast(JobConfig, config))
    while True:
        due = lambda: 0.0 if rng.random() < world.flush_share else NEVER_S  # noqa: E731
        worker = Worker(world, due, world.chunk_size)
        held = rng.sample(range(len(world.logs)), rng.randint(1, len(world.logs)))
        try:
            for _ in range(rng.randint(4, 30)):
                if rng.random() < 0.2:
                    aside.look()
                if there := sorted(aside.without(held)):
                    worker.book(rng.choice(there), rng.randint(1, world.most_records))
        except RESTARTED_AFTER as error:
            aside.meet(error)
            running().pause("restart")
        runtime.forget()


def operate(world: RepairedRealWorld) -> None:
    """Run the operator's command, again and again; two may run at once."""
    rng, project = world.rng, cast(Project, SimpleNamespace(kafka_brokers=(), clickhouse=None))
    client = world.door()
    while True:
        number = rng.randrange(len(world.logs))
        at = world.logs[number].start + rng.choice((1, 3)) if rng.random() < 0.3 else None
        try:
            plan = repair.plan_repair(project, client, number, at)
            for _ in repair.steps(project, client, plan, who="", note="") if plan else ():
                running().pause("repair")
        except _GIVEN_UP:
            pass
        running().pause("rest")


def wear(world: RepairedRealWorld) -> Iterator[None]:
    """Let retention eat what is not booked now and then, and let inserts happen that nobody waits for any more."""
    while True:
        yield
        if world.calm or world.rng.random() < 0.15:
            world.arrive()
        number = world.rng.randrange(len(world.logs))
        log = world.logs[number]
        if not world.calm and len(world.repairs[number]) < _MOST_REPAIRS and world.rng.random() < 0.1:
            reached = world.frontier(number)[2].offset
            log.start = max(log.start, min(log.end, reached + world.rng.randint(1, 6)))


def start_repaired(world: RepairedRealWorld) -> None:
    """Say what a schedule with repairs runs."""
    step = cast(Callable[..., Callable[[RealWorld], Iterator[None]]], partial(partial, stepwise))
    world.start = [
        *[step(main=work)] * 3,
        *[step(main=seal)] * 2,
        *[step(main=operate)] * 2,
        cast(Callable[[RealWorld], Iterator[None]], wear),
        close,
        step(main=read),
    ]


class _Time(Clock):
    def __init__(self, world: RepairedRealWorld) -> None:
        super().__init__()
        self._world = world

    def time_ns(self) -> int:
        return self._world.now_ms() * 1_000_000


@contextmanager
def deployed_repaired(world: RepairedRealWorld) -> Iterator[None]:
    """Let production code find this world's connections, threads, time, log and control store."""
    topic = Topic(TOPIC, TOPIC, len(world.logs), world.chunk_size, founded=True)

    def read_range(_brokers: object, _topic: str, _id: str, number: int, start: int, end: int) -> Iterator[Fetch]:
        if end > world.logs[number].end:
            raise LogError(f"the log ends at {world.logs[number].end}")
        while start < end:
            running().pause("fetch")
            part = world.fetch(number, start, world.most_records).below(end)
            start = part.next
            yield part

    def write_ticks(_brokers: object, _topic: str, number: int, count: int) -> None:
        for _ in range(count):
            running().pause("tick")
            world.logs[number].append(None, world.now + world.broker_skew)

    def close_books(_project: object) -> CloseReport:
        clocks = [record.appended_at for log in world.logs for record in log.records] if world.calm else []
        world.opened = max([world.opened, *(clock // DAY * CLOSES for clock in (world.now, *clocks))]) + 1
        opens = world.opened
        for log in world.logs:
            running().pause("close")
            log.append(None, world.now + world.broker_skew, opens=opens)
        return CloseReport(real_booking(opens), world.meters + 1 if world.meters else 0)  # 0: as the model has it

    found: Mapping[str, Any] = {
        "look_at_line": lambda _project, _client: (topic,),
        "_log": lambda _project, _topic, number: (world.logs[number].start, world.logs[number].end),
        "end_again": lambda _project, _topic: None,
        "open_books": lambda _project: world.control,
        "store_clock_ms": lambda _clickhouse: 1 << 50,
        "read_range": read_range,
        "write_ticks": write_ticks,
        "close_books": close_books,
        "time": _Time(world),
    }
    with deployed(world), ExitStack() as stack:
        for name, value in found.items():
            stack.enter_context(patch.object(repair, name, value))
        stack.enter_context(patch.object(quarantine, "connect", lambda _: world.door()))
        yield
