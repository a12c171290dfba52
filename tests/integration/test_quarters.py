"""Quarters of an hour, made when a booking is sealed: the same figures as the minutes', on the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from clickhouse_driver import Client

from pipeline.rollup import roll_up, roll_up_missing
from tallyman.aggregates import read_usage
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.usage import UsageAnswer, UsageQuery, Window
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
    assert roll_up(client, DAY) == 7
    assert quarters(client) == [
        ("compute.vcpu_seconds", "2026-10-05 12:00:00", "", "sum", 2, 16, 0, 0, 0),
        ("compute.vcpu_seconds", "2026-10-05 12:15:00", "", "sum", 1, 16, 0, 0, 0),
        ("level", "2026-10-05 12:00:00", "", "time_weighted", 1, 1, 0, 0, 1),
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


ROWS = [
    Booked(meter=meter, aggregation=meter, scale=0, minute=NOON + n * 7 * MINUTE, value=n % 11 + 1, sum=n % 11 + 1,
           booking=DAY + n % 3, latest_us=n, dimensions={"size": "LS"[n % 2]},
           item=f"={n % 13}" if meter == "unique_count" else str(n % 11 + 1) if meter == "percentile" else "",
           parameters='{"percentile":"95"}' if meter == "percentile" else '{"bucket":"hour"}'
           if meter == "sum_of_maxima" else "")
    for meter in ("sum", "count", "avg", "min", "max", "latest", "unique_count", "percentile", "sum_of_maxima")
    for n in range(600)
]  # fmt: skip


def answers(client: Client, start: datetime, window: Window, zone: str) -> list[UsageAnswer]:
    end = start + timedelta(days=2)
    names = sorted({row.meter for row in ROWS})
    return [read_usage(client, UsageQuery(meter=name, start=start, end=end, window=window, zone=zone,
                                          group_by=("size",))) for name in names]  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/St_Johns"])
@pytest.mark.parametrize("window", ["hour", "day", "total"])
def test_quarters_answer_as_minutes_do(client: Client, window: Window, zone: str) -> None:
    """Every aggregation that adds up, in zones half and three quarters of an hour off; the minutes are not needed."""
    for booking in range(DAY, DAY + 3):
        seal(client, booking, *(row for row in ROWS if row.booking == booking))
    before = answers(client, NOON, window, zone)
    assert all(answer.rows for answer in before)
    assert roll_up_missing(client) == [DAY, DAY + 1, DAY + 2]
    client.execute("TRUNCATE TABLE usage")
    assert answers(client, NOON, window, zone) == before


def test_bookings_without_quarters_and_ranges_between_them_are_read_from_minutes(client: Client) -> None:
    for booking in range(DAY, DAY + 3):
        seal(client, booking, *(row for row in ROWS if row.booking == booking))
    for start in (NOON, NOON + 7 * MINUTE):
        before = answers(client, start, "total", "UTC")
        roll_up(client, DAY + 1)
        assert answers(client, start, "total", "UTC") == before
        client.execute("TRUNCATE TABLE rollups")
