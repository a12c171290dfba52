"""The identities that ClickHouse holds: asked for by tens of thousands, and read back for the filter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from clickhouse_driver import Client

from pipeline.frontier import StoredIds
from tallyman.clickhouse import connect
from tallyman.local.folder import ClickHouseEndpoint
from tests.fetches import TOPIC_ID
from tests.usage_rows import fresh_database

pytestmark = pytest.mark.integration
STORED = 50_000
HIGHEST = (1 << 64) - 1


@pytest.fixture
def database(clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[Client]:
    with fresh_database(clickhouse_endpoint) as client:
        yield client


@pytest.fixture
def ids(database: Client, clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[StoredIds]:
    """Fifty thousand, at random, of each of two partitions; the first and the last that there can be among them."""
    for partition in range(2):
        database.execute(
            "INSERT INTO ids (identity_high, identity_low, topic_id, partition, offset, event_index, remembered_us,"
            f" digest) SELECT multiIf(number = 0, 0, number = 1, {HIGHEST}, sipHash64(number, {partition})), number,"
            f" '{TOPIC_ID}', {partition}, number, 0, 0, 7 FROM numbers({STORED})"
        )
    client = connect(replace(clickhouse_endpoint, database=database.connection.database), numpy=True)
    yield StoredIds(client)
    client.disconnect()


def test_as_many_ids_as_a_large_fetch_has_are_asked_for_at_once(database: Client, ids: StoredIds) -> None:
    """While a worker's filter is not loaded, or a file is sent again, that is every event of it."""
    known = database.execute("SELECT identity_high, identity_low FROM ids WHERE partition = 1 AND offset < 20000")
    new = [(high ^ 1, low) for high, low in known]
    found = ids.find(TOPIC_ID, 1, STORED, [*new, *known])
    assert found.keys() == set(known)
    assert {each.offset for each in found.values()} == set(range(20_000))
