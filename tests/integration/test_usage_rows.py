"""A database that tests are lent: empty each time, and as the schema makes it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tallyman.local.folder import ClickHouseEndpoint
from tests.usage_rows import DAY, Booked, book, fresh_database, seal

pytestmark = pytest.mark.integration
TOKEN = {"insert_deduplicate": 1, "deduplicate_insert": "enable", "insert_deduplication_token": "claim"}


def name_of(endpoint: ClickHouseEndpoint, *changes: str) -> str:
    """Borrow a database, fill some of its tables, make changes to it; return its name."""
    with fresh_database(endpoint) as client:
        for table in ("usage_hot", "seals", "usage", "rolling_up", "heard_newest"):
            assert client.execute(f"SELECT count() FROM {table}") == [(0,)]
        noon = Booked(minute=datetime(2026, 10, 5, 12, tzinfo=UTC))
        book(client, noon)
        seal(client, DAY, noon)
        client.execute("INSERT INTO rolling_up (booking) SELECT 7", settings=TOKEN)
        client.execute("INSERT INTO heard (collector, epoch) VALUES", [("c", "e")])
        assert client.execute("SELECT count() FROM rolling_up") == [(1,)]
        for change in changes:
            client.execute(change)
        (name,) = client.execute("SELECT currentDatabase()")[0]
        return str(name)


def test_a_database_is_lent_again_without_rows_and_without_tokens(clickhouse_endpoint: ClickHouseEndpoint) -> None:
    assert name_of(clickhouse_endpoint) == name_of(clickhouse_endpoint)


@pytest.mark.parametrize(
    "change", ["DROP TABLE seals", "ALTER TABLE usage ADD COLUMN more Int8", "CREATE TABLE more (n Int8) ENGINE = Log"]
)
def test_a_database_that_a_test_changed_is_not_lent_again(
    clickhouse_endpoint: ClickHouseEndpoint, change: str
) -> None:
    assert name_of(clickhouse_endpoint, change) != name_of(clickhouse_endpoint)


def test_a_database_that_a_test_dropped_is_not_lent_again(clickhouse_endpoint: ClickHouseEndpoint) -> None:
    with fresh_database(clickhouse_endpoint) as client:
        client.execute(f"DROP DATABASE {client.connection.database}")
    name_of(clickhouse_endpoint)


def test_two_that_ask_at_one_time_have_one_each(clickhouse_endpoint: ClickHouseEndpoint) -> None:
    with fresh_database(clickhouse_endpoint) as one, fresh_database(clickhouse_endpoint) as other:
        assert one.execute("SELECT currentDatabase()") != other.execute("SELECT currentDatabase()")
