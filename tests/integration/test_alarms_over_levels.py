"""Alarms over levels: what is only carried goes on, and what is gone falls silent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from clickhouse_driver import Client

from rules.engine import ClickHouseUsage
from rules.model import AlarmRule, Condition, UsageExpression
from rules.rounds import Rounds
from rules.state import read_history
from rules.tables import prepare
from tallyman.control import open_control
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import Meter
from tests.integration.test_usage_carried import DISK, MINUTE, NOON, TODAY, UPTIME, ask, reading
from tests.usage_rows import Booked, book, progress

pytestmark = pytest.mark.integration
CALLS = Meter(meter="calls", event_type="call", aggregation="count", scale=0)


@pytest.fixture
def usage(clickhouse_endpoint: ClickHouseEndpoint, client: Client) -> Iterator[ClickHouseUsage]:
    (database,) = client.execute("SELECT currentDatabase()")[0]
    meters = [DISK, UPTIME, CALLS]
    usage = ClickHouseUsage(replace(clickhouse_endpoint, database=database), meters, timedelta(seconds=10), 1)
    yield usage
    usage.close()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_control(f"sqlite:///{tmp_path / 'control.db'}")
    prepare(engine)
    yield engine
    engine.dispose()


def make_rule(bound: str, meter: str = "disk", by: tuple[str, ...] = ("subject",), **named: Any) -> AlarmRule:
    comparison, threshold = bound.split()
    options = {name: named.pop(name) for name in ("aggregate", "subjects") if name in named}
    return AlarmRule(
        key="t/big", group="t", alert="big", condition=Condition(comparison, Decimal(threshold)),  # type: ignore[arg-type]
        usage=UsageExpression(meter=meter, window=10 * MINUTE, by=by, **options), **named,
    )  # fmt: skip


def let_pass(client: Client, rounds: Rounds, minutes: int = 14) -> None:
    """Let minutes pass in which nobody reports anything."""
    rounds.begin(NOON)
    for minute in range(minutes + 1):
        progress(client, 0, 0, minute + 1, NOON + minute * MINUTE + timedelta(seconds=10), booking=TODAY)
        rounds.run(NOON + (minute + 1) * MINUTE, look_at="all")


def happened(engine: sa.Engine) -> list[str]:
    return [event.to for event in read_history(engine)]


@pytest.mark.parametrize("by", [("subject",), ()])
def test_an_alarm_over_a_level_goes_on_while_the_level_holds(
    client: Client, usage: ClickHouseUsage, engine: sa.Engine, by: tuple[str, ...]
) -> None:
    """Who reports on change says nothing for an hour: the volume still has its 40 GB."""
    book(client, reading(DISK, NOON - MINUTE, 40, "vol-1"))
    let_pass(client, Rounds(engine, [make_rule("above 100", by=by)], ("ops",), usage))
    (row,) = ask(client, DISK, NOON + 3 * MINUTE, NOON + 13 * MINUTE).rows
    assert (row.value, row.events) == (40 * 600, 0)
    assert happened(engine) == ["firing"]


@pytest.mark.parametrize("by", [("subject",), ()])
def test_a_server_that_runs_on_is_not_silent(
    client: Client, usage: ClickHouseUsage, engine: sa.Engine, by: tuple[str, ...]
) -> None:
    book(client, reading(UPTIME, NOON - 5 * MINUTE, 1, "vm-1"))
    rule = make_rule("above 100000", "uptime", by, no_data="alert")
    let_pass(client, Rounds(engine, [rule], ("ops",), usage))
    assert happened(engine) == []


@pytest.mark.parametrize("by", [("subject",), ()])
def test_levels_that_cancel_out_are_a_figure_like_any_other(
    client: Client, usage: ClickHouseUsage, engine: sa.Engine, by: tuple[str, ...]
) -> None:
    book(client, reading(DISK, NOON - MINUTE, 5, "vol-1"), reading(DISK, NOON - MINUTE, -5, "vol-2"))
    let_pass(client, Rounds(engine, [make_rule("below 1", by=by)], ("ops",), usage))
    assert happened(engine) == ["firing"]


@pytest.mark.parametrize("by", [("subject",), ()])
def test_a_level_that_is_gone_falls_silent(
    client: Client, usage: ClickHouseUsage, engine: sa.Engine, by: tuple[str, ...]
) -> None:
    """What is 0 is gone, and has a row only where that was read."""
    book(client, reading(DISK, NOON - 2 * MINUTE, 40, "vol-1"), reading(DISK, NOON - MINUTE, 0, "vol-1"))
    let_pass(client, Rounds(engine, [make_rule("above 100000", by=by, no_data="alert")], ("ops",), usage))
    assert [(event.to, event.reason) for event in read_history(engine)] == [("firing", "no_data")]


@pytest.mark.parametrize("by", [("subject",), ()])
def test_how_many_events_are_behind_a_level_is_0_while_it_is_carried(
    client: Client, usage: ClickHouseUsage, engine: sa.Engine, by: tuple[str, ...]
) -> None:
    book(client, reading(DISK, NOON - MINUTE, 40, "vol-1"))
    let_pass(client, Rounds(engine, [make_rule("below 1", by=by, aggregate="events")], ("ops",), usage))
    assert happened(engine) == ["firing"]


def test_the_0_of_an_empty_range_is_no_series(client: Client, usage: ClickHouseUsage, engine: sa.Engine) -> None:
    """Who asks for one tenant's calls gets a 0; an alarm that tells tenants apart takes it for the silence it is."""
    book(client, Booked(meter="calls", aggregation="count", minute=NOON - MINUTE, scale=0, subject="zoë"))
    rule = make_rule("above 100", "calls", subjects=("zoë",), no_data="alert")
    let_pass(client, Rounds(engine, [rule], ("ops",), usage))
    assert [(event.to, event.reason) for event in read_history(engine)] == [("firing", "no_data")]
