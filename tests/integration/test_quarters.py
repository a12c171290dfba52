"""Quarters of an hour, made when a booking is sealed: the same figures as the minutes', on the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from clickhouse_driver import Client

from pipeline.rollup import roll_up, roll_up_missing
from tallyman.local.folder import ClickHouseEndpoint
from tests.usage_rows import DAY, Booked, fresh_database, seal

pytestmark = pytest.mark.integration
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def client(clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[Client]:
    with fresh_database(clickhouse_endpoint) as client:
        yield client


def quarters(client: Client) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = client.execute(
        "SELECT meter, toString(quarter), item, aggregation, count, sum, min, max, latest"
        " FROM usage_quarter FINAL ORDER BY ALL"
    )
    return rows


def test_a_quarter_holds_what_its_minutes_hold(client: Client) -> None:
    seal(
        client,
        DAY,
        *(Booked(minute=NOON + n * MINUTE, value=n + 1, scale=0) for n in (0, 14, 15)),
        *(Booked(meter="low", aggregation="min", minute=NOON + n * MINUTE, value=n, scale=0, sum=0) for n in (3, 9)),
        *(Booked(meter="now", aggregation="latest", minute=NOON + n * MINUTE, value=n, scale=0, sum=0, latest_us=n)
          for n in (9, 3)),
        *(Booked(meter="who", aggregation="unique_count", item=f"={n % 2}", minute=NOON + n * MINUTE, scale=0)
          for n in range(4)),
        Booked(meter="level", aggregation="time_weighted", item='["1",null,null]', minute=NOON, scale=0),
    )  # fmt: skip
    assert roll_up(client, DAY) == 6
    assert quarters(client) == [
        ("compute.vcpu_seconds", "2026-10-05 12:00:00", "", "sum", 2, 16, 0, 0, 0),
        ("compute.vcpu_seconds", "2026-10-05 12:15:00", "", "sum", 1, 16, 0, 0, 0),
        ("low", "2026-10-05 12:00:00", "", "min", 2, 0, 3, 9, 0),
        ("now", "2026-10-05 12:00:00", "", "latest", 2, 0, 0, 0, 9),
        ("who", "2026-10-05 12:00:00", "=0", "unique_count", 2, 2, 0, 0, 0),
        ("who", "2026-10-05 12:00:00", "=1", "unique_count", 2, 2, 0, 0, 0),
    ]


def test_rolling_up_twice_changes_nothing(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, scale=0), Booked(minute=NOON + MINUTE, scale=0))
    first = roll_up(client, DAY), quarters(client)
    assert (roll_up(client, DAY), quarters(client)) == first


def test_what_was_sealed_before_there_were_quarters_is_rolled_up_once(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, scale=0))
    seal(client, DAY + 1)
    seal(client, DAY + 2, Booked(minute=NOON, scale=0))
    assert roll_up_missing(client) == [DAY, DAY + 2]
    assert roll_up_missing(client) == []
    assert client.execute("SELECT booking, rows FROM rollups FINAL ORDER BY booking") == [(DAY, 1), (DAY + 2, 1)]
