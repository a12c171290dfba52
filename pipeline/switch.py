"""Put a rebuild in force, take it back, say what it changes and which there are: see `pipeline.rebuild`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal

import sqlalchemy as sa
from clickhouse_driver import Client

from pipeline.close import open_books
from tallyman import generations
from tallyman.aggregates import read_usage
from tallyman.errors import RebuildError
from tallyman.generations import Attempt, Listed, May
from tallyman.project import Project
from tallyman.rebuilds import Switch, Switches, read_copy, read_switches, read_switches_with, refuse_lost
from tallyman.sealed import read_months
from tallyman.stored import Source
from tallyman.usage import UsageQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one meter's usage is in the range of a rebuild, by one list.

    Attributes:
        total: Over the whole range; None where there is no usage.
    """

    series: int
    minutes: int
    events: int
    total: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterChange:
    """What a rebuild changes of one meter."""

    meter: str
    unit: str
    before: Side
    after: Side

    @property
    def difference(self) -> Decimal:
        return (self.after.total or Decimal(0)) - (self.before.total or Decimal(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedAttempt:
    """A rebuild, and where it stands: in force, ready, or unfinished (stopped, or still at work)."""

    attempt: Attempt
    state: str


def put_in_force(project: Project, client: Client, generation: int, may: May) -> Listed:
    """Let a rebuild count from now on: append it to the list, and write the list to where readers take it from.

    Args:
        may: Asked once more in the transaction that switches: usage may have been invoiced since.

    Raises:
        RebuildError: It is not complete, or somebody changed the list since it was begun.
    """
    with _engine(project) as engine:
        generations.publish(engine, client)  # somebody who was killed may have left it out
        refuse_lost(client, (generations.find_ready(engine, generation).switch,))
        generations.put_in_force(engine, generation, may)
        return generations.publish(engine, client)


def undo(project: Project, client: Client, generation: int, may: May) -> Listed:
    """Take the newest rebuild in force back.

    Args:
        may: As in `put_in_force`.

    Raises:
        RebuildError: It is not the newest one.
    """
    with _engine(project) as engine:
        try:
            generations.take_back(engine, generation, may, read_copy(client))
        except RebuildError:
            with suppress(RebuildError):  # what speaks against it would hide which one has to go first
                generations.publish(engine, client)  # somebody who was killed may have left it out
            raise
        return generations.publish(engine, client)


def read_attempts(project: Project, client: Client) -> Sequence[ListedAttempt]:
    """Return all rebuilds with where they stand; see that readers have the list that the control store has."""
    with _engine(project) as engine:
        listed = generations.publish(engine, client)
        return [
            ListedAttempt(attempt=each, state=_state(each, listed)) for each in generations.read_attempts(engine)
        ]  # fmt: skip


def find_switch(project: Project, client: Client, generation: int) -> Switch:
    """Return what a rebuild covers.

    Raises:
        RebuildError: There is none of this number, nor do readers go by one.
    """
    with _engine(project) as engine:
        try:
            return generations.find_attempt(engine, generation).switch
        except RebuildError:
            for each in read_copy(client).switches:  # which a control store that was restored does not know
                if each.generation == generation:
                    return each
            raise


def compare(project: Project, client: Client, generation: int) -> Sequence[MeterChange]:
    """Return what a rebuild changes, meter by meter; of one in force what it has changed."""
    after = read_switches_with(client, generation)
    before = tuple(each for each in read_switches(client) if each.generation != generation)
    return [_change(project, client, name, after[-1], before, after) for name in after[-1].meters]


def _change(
    project: Project, client: Client, name: str, switch: Switch, before: Switches, after: Switches
) -> MeterChange:
    unit = next((meter.unit for meter in project.meters if meter.meter == name), "")
    sides = [_side(project, client, name, switch, switches) for switches in (before, after)]
    return MeterChange(meter=name, unit=unit, before=sides[0], after=sides[1])


def _side(project: Project, client: Client, name: str, switch: Switch, switches: Switches) -> Side:
    query = UsageQuery(meter=name, start=switch.start, end=switch.end, group_by=())
    answer = read_usage(client, query, meters=project.meters, switches=switches,
                        partitions=project.config.kafka.partitions)  # fmt: skip
    source = Source(client, query, answer.sealed_to, answer.sealed_to, read_months(client), switches)
    table = source.table("subject, dimensions, minute, count", switch.span)
    series, minutes, events = client.execute(
        "SELECT uniqExact(subject, dimensions), uniqExact(subject, dimensions, minute), sum(count)"  # noqa: S608
        f" FROM {table}",
        {"meter": name},
    )[0]
    total = answer.rows[0].value if answer.rows else None
    return Side(series=int(series), minutes=int(minutes), events=int(events), total=total)


def _state(attempt: Attempt, listed: Listed) -> str:
    if attempt.switch.generation in listed.generations:
        return "in force"
    return "ready" if attempt.ready else "unfinished"


@contextmanager
def _engine(project: Project) -> Iterator[sa.Engine]:
    engine = open_books(project)
    generations.prepare(engine)
    try:
        yield engine
    finally:
        engine.dispose()
