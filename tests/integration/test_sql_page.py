"""Every statement of docs/sql.md runs as it stands there, and says what `read_usage` says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from clickhouse_driver import Client

from tallyman.aggregates import read_usage
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.usage import UsageQuery
from tests.usage_rows import DAY, TOPIC, Booked, book, fresh_database, progress, seal

pytestmark = pytest.mark.integration
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
STATEMENTS = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
BERLIN = ZoneInfo("Europe/Berlin")
LATE = datetime(2026, 10, 25, 23, 30, tzinfo=UTC)  # on 26 October in Berlin; the day before has 25 hours


@pytest.fixture
def client(clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[Client]:
    """Three days around the change of clocks, sealed and hot, late usage, a copy with other content."""
    with fresh_database(clickhouse_endpoint) as client:
        progress(client, 0, 0, 8, LATE + timedelta(minutes=2))
        seal(client, DAY, *(
            Booked(minute=LATE - timedelta(hours=hours), value=Decimal("0.000000001") + hours) for hours in range(30)
        ))  # fmt: skip
        book(client, *(
            Booked(minute=LATE + timedelta(minutes=minutes), value=minutes + 1, booking=DAY + 1)
            for minutes in (-1500, 0, 5)
        ))  # fmt: skip
        client.execute("INSERT INTO conflicts VALUES", [(TOPIC, 3, 18211, 2, 9000, 0, DAY, LATE, b"{}")])
        yield client


def asked(client: Client, **changed: Any) -> list[tuple[datetime, Decimal]]:
    start, end = (datetime(2026, 10, day, tzinfo=BERLIN) for day in (24, 27))
    query = UsageQuery(meter="compute.vcpu_seconds", subjects=("tenant-zoë",), start=start, end=end, **changed)
    return [(row.start, row.value) for row in read_usage(client, query).rows]


def test_days_of_a_zone_are_those_of_read_usage_also_the_one_of_25_hours(client: Client) -> None:
    found = client.execute(STATEMENTS[0])
    assert found == asked(client, window="day", zone="Europe/Berlin") and len(found) == 3
    for window, made in (("hour", "toStartOfHour"), ("week", "toMonday"), ("month", "toStartOfMonth")):
        days = client.execute(STATEMENTS[0].replace("toStartOfDay", made))
        told = asked(client, window=window, zone="Europe/Berlin")
        assert [value for _, value in days] == [value for _, value in told]


def test_as_of_a_booking_what_came_later_is_not_in_it(client: Client) -> None:
    ((_, wanted),) = asked(client, up_to_booking=DAY)
    ((_, everything),) = asked(client)
    assert client.execute(STATEMENTS[1]) == [(wanted,)] and wanted != everything
    assert client.execute(STATEMENTS[1].replace(f" AND booking <= {DAY}", "")) == [(everything,)]


def test_beside_each_minute_stands_whether_it_is_complete(client: Client) -> None:
    assert client.execute(STATEMENTS[2]) == [
        (LATE, Decimal("1.000000001"), 1), (LATE + timedelta(minutes=5), Decimal(6), 0)
    ]  # fmt: skip


def test_chunks_reconcile_and_both_places_of_a_copy_with_other_content_are_told(client: Client) -> None:
    assert client.execute(STATEMENTS[3]) == []
    assert client.execute(STATEMENTS[4]) == [(3, 18211, 2, 9000, 0, LATE)]
    assert len(STATEMENTS) == 5


def test_the_page_names_every_view_that_is_there(client: Client) -> None:
    """Those beside them are steps of others."""
    found = client.execute("SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View'")
    told = set(re.findall(r"`([a-z_]+)`", PAGE.partition("## Windows")[0]))
    assert {name for (name,) in found} - told == {"clocks", "heard_runs", "reached", "topics_abandoned"}
