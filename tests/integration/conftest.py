"""What tests on the real engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clickhouse_driver import Client

from tallyman.local.folder import ClickHouseEndpoint
from tests.usage_rows import fresh_database


@pytest.fixture
def client(clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[Client]:
    """Connect to an empty database with the schema, which no other test sees."""
    with fresh_database(clickhouse_endpoint) as client:
        yield client
