"""Go on behind a damaged place of a partition, by an operator's decision. The model is `tests/model/repair_model.py`.

First the database is told to refuse whoever does not know of the repair; then what is under way may end; then it is
looked up what the rows hold; then the decision is taken once, in the control store, and told to ClickHouse. It may be
killed anywhere and run again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import msgspec
import numpy as np
import sqlalchemy as sa
from clickhouse_driver import Client

from pipeline.book import Counts
from pipeline.clock import AHEAD_MS, store_clock_ms
from pipeline.close import close_books, open_books, refuse_unbooked
from pipeline.fences import wait_for_inserts
from pipeline.frontier import Frontier, read_frontier
from pipeline.growth import end_again, look_at_line
from pipeline.outlet import append, write_ticks
from pipeline.read import read_range
from tallyman import books
from tallyman.clickhouse import store_errors
from tallyman.control import migrate, read, write
from tallyman.errors import BrokerError, ConfigError, DamageError, LogError, StoreError
from tallyman.event import TICK
from tallyman.headers import kind_of
from tallyman.kafka import end_offsets, log_starts, make_consumer
from tallyman.project import Project
from tallyman.repairs import NOT_JUDGED_ANEW, read_quarantines, read_repairs
from tallyman.topics import ENDED
from tallyman.usage import Repair

MOST_TICKS = 1_000_000
_FENCED = ("usage_hot", "progress", "ids")
_metadata = sa.MetaData()
_decisions = sa.Table(
    "repairs",
    _metadata,
    sa.Column("topic_id", sa.String, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """What a repair would do.

    Attributes:
        problem: What is wrong: retention, cut, digest, bytes or clock; sealed where another line of topics sealed the
            booking that it stands in; fenced where nothing is but that a repair was begun and not decided.
        goes_on_at: The next offset that is booked; `ticks`: how many empty records are written first, so that there is
            one.
        log_start, log_end: What Kafka has.
        to_clock_ms: When the first record behind was appended; now, where there is none yet.
        open_events: How many events of the chunk that booking stopped in are counted; they stay.
        number: Which repair of the partition it is, from 1.
        decided: The decision, where it was taken before and ClickHouse was not told: that is all that is left to do.
    """

    topic: books.Topic
    partition: int
    number: int
    problem: str
    booked: Frontier
    goes_on_at: int
    ticks: int
    log_start: int
    log_end: int
    to_clock_ms: int
    open_events: int
    decided: Repair | None = None

    @property
    def first(self) -> int:
        """The offset up to which everything is booked."""
        return self.booked.reached.offset

    @property
    def skipped(self) -> int:
        """How many offsets would be skipped."""
        return self.goes_on_at - self.first


def plan_repair(project: Project, client: Client, partition: int, at: int | None = None) -> RepairPlan | None:
    """Look at a partition, and say what a repair would do; None when nothing is wrong with it.

    Args:
        at: Where booking shall go on; the first offset that can be read unless said otherwise.

    Raises:
        ConfigError: There is no such partition, nothing was booked yet, or booking cannot go on there.
        LogError: The whole topic was made anew.
        BrokerError, StoreError: Kafka or ClickHouse does not answer.
    """
    topic = look_at_line(project, client)[-1]
    if not 0 <= partition < topic.partitions:
        raise ConfigError(f"PARTITION: expected one from 0 to {topic.partitions - 1}, got {partition}")
    frontier = read_frontier(client, topic.topic_id, partition, topic.chunk_size)
    start, end = _log(project, topic, partition)
    first = max(frontier.reached.offset, _rows_hold(client, frontier, topic.chunk_size))
    decided = _untold(open_books(project), frontier, first)
    if decided is not None:
        return _plan_to_tell(topic, decided, frontier, (start, end), at)
    problem = _problem(client, frontier, start, end)
    if problem is None:
        return None
    if problem in ("clock", "fenced") and at is None:
        try:
            at = _behind_the_future(project, topic, partition, first, end)
        except DamageError as error:
            problem = error.reason
        else:
            problem = "clock" if at > first else problem
    goes_on_at = _goes_on_at(problem, first, start, at)
    if goes_on_at - end > MOST_TICKS:
        raise ConfigError(
            f"partition {partition}: the log ends at {end}, so that going on at {goes_on_at} takes "
            f"{goes_on_at - end:,} empty records, and at most {MOST_TICKS:,} are written. "
            + ("Say less with --at" if at is not None and at > max(first, start) else
               "Give kafka.topic a new name instead: see \"A new topic\" in docs/operations.md")
        )
    return RepairPlan(
        topic=topic, partition=partition, number=frontier.repairs + 1, problem=problem,
        booked=replace(frontier, reached=replace(frontier.reached, offset=first)), goes_on_at=goes_on_at,
        ticks=max(0, goes_on_at - end), log_start=start, log_end=end,
        to_clock_ms=_appended_ms(project, topic, partition, goes_on_at, end),
        open_events=frontier.reached.counts.received,
    )  # fmt: skip


def _plan_to_tell(
    topic: books.Topic, decided: Repair, frontier: Frontier, log: tuple[int, int], at: int | None
) -> RepairPlan:
    if at not in (None, decided.to_offset):
        raise ConfigError(
            f"--at: repair {decided.number} of partition {decided.partition} is decided, and goes on at offset "
            f"{decided.to_offset}: run it without --at, which tells ClickHouse"
        )
    return RepairPlan(
        topic=topic, partition=decided.partition, number=decided.number, problem=decided.reason,
        booked=replace(frontier, reached=replace(frontier.reached, offset=decided.from_offset)),
        goes_on_at=decided.to_offset, ticks=0, log_start=log[0], log_end=log[1], to_clock_ms=decided.to_clock_ms,
        open_events=frontier.reached.counts.received, decided=decided,
    )  # fmt: skip


def repair(
    project: Project, client: Client, plan: RepairPlan, *, who: str, note: str,
    show: Callable[[str], None] = lambda _: None,
) -> Repair:  # fmt: skip
    """Do what was planned; return the decision, which is another's if somebody was faster.

    Args:
        show: Is told each step that is done.

    Raises:
        ConfigError: Meanwhile nothing is wrong any more, the plan cannot be kept, or another line of topics is booked.
        StoreError, BrokerError: It is not finished; run it again.
    """
    for step in steps(project, client, plan, who=who, note=note):
        show(step)
    decided = read_repairs(client, plan.topic.topic_id, plan.partition)
    return decided[plan.number - 1]


def steps(project: Project, client: Client, plan: RepairPlan, *, who: str, note: str) -> Iterator[str]:
    """Repair step by step, yielding what is done; whoever is killed in between runs it again."""
    topic = plan.topic
    if plan.decided is not None:
        yield from _tell_steps(project, client, plan)
        return
    refuse_unbooked(project, open_books(project))  # no close could be written there, behind all that is changed below
    if plan.problem == "clock":
        _ask_leader(project, plan)
        yield "asked"
    _read_again(client, plan)
    with store_errors(client, "fencing usage_hot, progress and ids"):
        _fence(client, plan)
        yield "fenced"
        _wait_for_inserts(client)
    yield "quiet"
    if plan.ticks:
        write_ticks(project.kafka_brokers, topic.name, plan.partition, plan.ticks)
        yield "filled"
    if plan.problem == "clock":
        _send_again(project, plan)
        yield "sent again"
    end_again(project, topic)
    booked = _read_again(client, plan)
    first = max(booked.reached.offset, _rows_hold(client, booked, topic.chunk_size))
    if first > plan.goes_on_at:
        raise ConfigError(f"partition {plan.partition}: it was booked on to offset {first} meanwhile; look again")
    newest = max(booked.reached.booking, _newest_booking(client, booked), booked.sealed_to)
    close = close_books(project)
    if close.booking <= newest:
        raise StoreError(
            f"booking {close.booking} is not behind the one in which partition {plan.partition} stands, and all that "
            f"are sealed ({newest}): the clock of this machine is behind the broker's; set it, or wait until "
            "midnight UTC, then run it again"
        )
    yield "closed"
    reached, hot = booked.reached, _newest_hot(client, booked)
    counts = reached.counts.plus(_counts_ahead(client, booked, first))
    if _is_told(client, plan):
        return  # somebody else was faster, and what was looked up may be of what is booked behind it
    _decide(open_books(project), Repair(
        topic_id=topic.topic_id, partition=plan.partition, number=plan.number, chunk_size=topic.chunk_size,
        from_offset=first, to_offset=plan.goes_on_at, from_clock_ms=reached.clock_ms,
        to_clock_ms=max(plan.to_clock_ms, reached.clock_ms), from_booking=max(reached.booking, hot),
        booking=close.booking, definitions=close.definitions, counts=tuple(counts), reason=plan.problem, note=note,
        who=who, decided_at=datetime.now(UTC).replace(microsecond=0),
    ))  # fmt: skip
    yield "decided"
    _tell_decided(project, client, booked, first)
    yield "told"


def _tell_steps(project: Project, client: Client, plan: RepairPlan) -> Iterator[str]:
    """Tell a decision that was taken before; a ClickHouse that was restored since has no fence for it."""
    with store_errors(client, "fencing usage_hot, progress and ids"):
        _fence(client, plan)
        _wait_for_inserts(client)
    booked = _read_again(client, plan)
    first = max(booked.reached.offset, _rows_hold(client, booked, plan.topic.chunk_size))
    if not _is_told(client, plan) and not _tell_decided(project, client, booked, first):
        raise ConfigError(f"partition {plan.partition}: it was booked on to offset {first} meanwhile; look again")
    yield "told"


def _is_told(client: Client, plan: RepairPlan) -> bool:
    return len(read_repairs(client, plan.topic.topic_id, plan.partition)) >= plan.number


def _read_again(client: Client, plan: RepairPlan) -> Frontier:
    """Return the frontier as it is now.

    Raises:
        ConfigError: The partition was booked to its end meanwhile.
    """
    frontier = read_frontier(client, plan.topic.topic_id, plan.partition, plan.topic.chunk_size)
    if frontier.reached.booking == ENDED:
        raise ConfigError(f"partition {plan.partition}: it was booked to its end meanwhile; there is nothing to repair")
    return frontier


def _problem(client: Client, frontier: Frontier, start: int, end: int) -> str | None:
    """Say what is wrong with a partition; None when nothing is, or when it has ended: nothing is booked into it."""
    if frontier.reached.booking == ENDED:
        return None
    key = frontier.topic_id, frontier.partition
    if frontier.turned.offset < start:
        return "retention"
    if frontier.reached.offset > end:
        return "cut"
    repairs = read_repairs(client)
    aside = read_quarantines(client, {key: frontier.reached.offset}, repairs)
    noticed = next((each.reason for each in aside if (each.topic_id, each.partition) == key), None)
    return noticed or ("fenced" if _is_fenced(client, frontier) else None)


def _goes_on_at(problem: str, first: int, start: int, at: int | None) -> int:
    least = max(first, start)
    if at is None and problem == "bytes":
        raise ConfigError(
            f"the records at offset {first} cannot be read: say with --at OFFSET where booking shall go on behind them"
        )
    if at is not None and at < least:
        raise ConfigError(f"--at: expected {least} or more, got {at}: below it is booked, or is not in Kafka any more")
    return least if at is None else at


def _log(project: Project, topic: books.Topic, partition: int) -> tuple[int, int]:
    consumer = make_consumer(project.kafka_brokers)
    try:
        start = log_starts(consumer, topic.name, [partition])[partition]
        return start, end_offsets(consumer, topic.name, [partition])[partition]
    finally:
        consumer.close()


def _appended_ms(project: Project, topic: books.Topic, partition: int, offset: int, end: int) -> int:
    """Return when the first record at or behind an offset was appended; now, when there is none or it is unreadable."""
    try:
        for fetch in read_range(project.kafka_brokers, topic.name, topic.topic_id, partition, offset, end):
            if len(fetch.offsets):
                return int(fetch.appended_ms[0])
    except LogError:
        pass
    return time.time_ns() // 1_000_000


def _behind_the_future(project: Project, topic: books.Topic, partition: int, first: int, end: int) -> int:
    """Return the offset behind the last record that was appended in the future."""
    behind, limit_ms = first, store_clock_ms(project.clickhouse) + AHEAD_MS
    for fetch in read_range(project.kafka_brokers, topic.name, topic.topic_id, partition, first, end):
        ahead = np.flatnonzero(fetch.appended_ms > limit_ms)
        if len(ahead):
            behind = int(fetch.offsets[ahead[-1]]) + 1
    return behind


def _ask_leader(project: Project, plan: RepairPlan) -> None:
    """Ask the partition's leader for its time, by a tick, before anything is changed: behind the fence nobody books.

    Raises:
        BrokerError: It does not answer, or its clock is still ahead.
    """
    tick = (None, b"", ((TICK, b"1"),))
    _check_clock(project, plan, append(project.kafka_brokers, plan.topic.name, plan.partition, [tick]))


def _check_clock(project: Project, plan: RepairPlan, appended_ms: int) -> None:
    if appended_ms > store_clock_ms(project.clickhouse) + AHEAD_MS:
        raise BrokerError(
            f'topic "{plan.topic.name}": the clock of the leader of partition {plan.partition} is still ahead; set it, '
            "then run this again"
        )


def _send_again(project: Project, plan: RepairPlan) -> None:
    """Append the skipped records once more, in order, so that they have a right time; what was counted counts once.

    Raises:
        BrokerError: Not all were acknowledged, or the leader's clock is still ahead.
    """
    topic, where = plan.topic, (plan.first, min(plan.goes_on_at, plan.log_end))
    for fetch in read_range(project.kafka_brokers, topic.name, topic.topic_id, plan.partition, *where):
        records = [
            (fetch.keys[row], fetch.values[row] or b"", fetch.headers_of(row))
            for row in range(len(fetch))
            if not kind_of(fetch.headers_of(row)).control
        ]
        _check_clock(project, plan, append(project.kafka_brokers, topic.name, plan.partition, records))


def _rows_hold(client: Client, frontier: Frontier, size: int) -> int:
    """Return up to which offset rows hold usage of the open chunk: a flush writes them before its progress."""
    rows = client.execute(
        "SELECT max(covered) FROM usage_hot WHERE topic_id = %(topic)s AND partition = %(partition)s"
        " AND chunk = %(chunk)s AND generation = 0",
        {"topic": frontier.topic_id, "partition": frontier.partition, "chunk": frontier.chunk},
    )
    return int(frontier.chunk * size + rows[0][0])


def _newest_hot(client: Client, frontier: Frontier) -> int:
    """Return the newest booking that rows hold usage of the open chunk in, 0 if none; they may be ahead of progress."""
    rows = client.execute(
        "SELECT max(booking) FROM usage_hot WHERE topic_id = %(topic)s AND partition = %(partition)s"
        " AND chunk = %(chunk)s AND generation = 0",
        {"topic": frontier.topic_id, "partition": frontier.partition, "chunk": frontier.chunk},
    )
    return int(rows[0][0])


def _newest_booking(client: Client, frontier: Frontier) -> int:
    """Return the newest booking of rows at or behind the place reached; a repair's is newer than all of them."""
    mine = "topic_id = %(topic)s AND partition = %(partition)s"
    by_position = (
        f"SELECT max(booking) FROM {table} WHERE {mine} AND offset >= %(offset)s"  # noqa: S608 - our own words
        for table in ("dead_letters", "conflicts", "corrections", "events")
    )
    rows = client.execute(
        " UNION ALL ".join(by_position),
        {"topic": frontier.topic_id, "partition": frontier.partition, "offset": frontier.reached.offset},
    )
    return max(_newest_hot(client, frontier), *(int(booking) for (booking,) in rows))


def _counts_ahead(client: Client, frontier: Frontier, first: int) -> Counts:
    """Return how many dead letters and conflicts there are of what rows hold ahead of progress, which has them not."""
    where = (
        "FINAL WHERE topic_id = %(topic)s AND partition = %(partition)s AND offset >= %(reached)s"
        f" AND offset < %(first)s{NOT_JUDGED_ANEW}"
    )
    dead, conflicts = client.execute(
        f"SELECT (SELECT count() FROM dead_letters {where} AND generation = 0),"  # noqa: S608 - our own words
        f" (SELECT count() FROM conflicts {where})",
        {"topic": frontier.topic_id, "partition": frontier.partition, "reached": frontier.reached.offset,
         "first": first},
    )[0]  # fmt: skip
    return Counts(received=dead + conflicts, duplicate=conflicts, dead=dead, conflict=conflicts)


def _fence(client: Client, plan: RepairPlan) -> None:
    """Let the database refuse rows of the partition, from the open chunk on, by whoever knows of fewer repairs."""
    topic_id, partition, number = plan.topic.topic_id, plan.partition, plan.number
    name = _fence_name(topic_id, partition, number)
    mine = f"topic_id != '{topic_id}' OR partition != {partition} OR repairs >= {number}"
    from_chunk = f"{mine} OR generation != 0 OR chunk < {plan.booked.chunk}"
    checks = {"usage_hot": from_chunk, "progress": from_chunk, "ids": f"{mine} OR offset < {plan.booked.turned.offset}"}
    for table in _FENCED:
        client.execute(f"ALTER TABLE {table} ADD CONSTRAINT IF NOT EXISTS {name} CHECK {checks[table]}")


def _fence_name(topic_id: str, partition: int, number: int) -> str:
    return f"repaired_{topic_id.encode().hex()}_{partition}_{number}"


def _is_fenced(client: Client, frontier: Frontier) -> bool:
    """Whether a fence is up, on any of the tables, for a repair of the partition that is not decided."""
    name = _fence_name(frontier.topic_id, frontier.partition, frontier.repairs + 1)
    tables = client.execute(
        "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name IN %(tables)s",
        {"tables": _FENCED},
    )
    return any(re.search(rf"\b{name}\b", query) for (query,) in tables)


def _wait_for_inserts(client: Client) -> None:
    wait_for_inserts(client, _FENCED, time.monotonic, time.sleep)


def _decide(engine: sa.Engine, decision: Repair) -> None:
    """Take a decision, unless somebody took it before; one that is void gives its number up (`_is_void`)."""
    migrate(engine, "repairs", [_metadata.create_all])
    key = (decision.topic_id, decision.partition, decision.number)
    with write(engine) as connection:
        known = connection.execute(sa.select(_decisions.c.body).where(_is(*key))).scalar()
        if known is not None and not _is_void(_decoded(known), decision.from_offset, decision.from_booking):
            return
        connection.execute(sa.delete(_decisions).where(_is(*key)))
        body = msgspec.json.encode(asdict(decision)).decode()
        connection.execute(sa.insert(_decisions).values(topic_id=key[0], partition=key[1], number=key[2], body=body))


def _is_void(decision: Repair, first: int, booking: int) -> bool:
    """Whether a decision that ClickHouse was not told is of other books: it was taken behind its fence, so that they
    stand where it found them, unless they were restored from before it. What lies between would be lost by it.

    Args:
        first: The offset up to which everything is booked; `booking`: the one in which that stands.
    """
    return decision.from_offset != first or decision.booking < booking


def _is(topic_id: str, partition: int, number: int) -> sa.ColumnElement[bool]:
    mine = _decisions.c
    return sa.and_(mine.topic_id == topic_id, mine.partition == partition, mine.number == number)


def _decoded(body: str) -> Repair:
    return msgspec.json.decode(body, type=Repair)


def _untold(engine: sa.Engine, booked: Frontier, first: int) -> Repair | None:
    """Return the decision that was taken where a partition stands and that ClickHouse was not told, if there is one;
    changes nothing.
    """
    with read(engine) as connection:
        if not sa.inspect(connection).has_table(_decisions.name):
            return None
        body: str | None = connection.execute(
            sa.select(_decisions.c.body).where(_is(booked.topic_id, booked.partition, booked.repairs + 1))
        ).scalar()
    decision = None if body is None else _decoded(body)
    return None if decision is None or _is_void(decision, first, booked.reached.booking) else decision


def _tell_decided(project: Project, client: Client, booked: Frontier, first: int) -> bool:
    """Tell ClickHouse of the decision that was taken where a partition stands; return whether there is one."""
    decision = _untold(open_books(project), booked, first)
    if decision is not None:
        names = list(Repair.__dataclass_fields__)
        with store_errors(client, "repairs"):
            client.execute(
                f"INSERT INTO repairs ({', '.join(names)}) VALUES",
                [tuple(getattr(decision, name) for name in names)],
            )
    return decision is not None
