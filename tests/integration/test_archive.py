"""The raw archive on a real ClickHouse: it gives back every record byte for byte, once, and forgets when it is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
from clickhouse_driver import Client

from pipeline.archive import ArchiveSource, keep_archive_for
from pipeline.book import RawRecord
from pipeline.write import Tables
from tallyman.clickhouse import connect
from tallyman.local.folder import ClickHouseEndpoint
from tests.fetches import NOON_MS, TOPIC_ID

pytestmark = pytest.mark.integration
ODD = (("traceparent", b"\xff\x00\xfe"), ("b3", b""), ("traceparent", b"again"), ("X-Åström", "ö".encode("latin-1")))
DAY = 20_757_000


@pytest.fixture
def endpoint(clickhouse_endpoint: ClickHouseEndpoint, client: Client) -> ClickHouseEndpoint:
    return replace(clickhouse_endpoint, database=client.connection.database)


def test_headers_and_bodies_come_back_byte_for_byte_and_once(endpoint: ClickHouseEndpoint, client: Client) -> None:
    """Values that are no UTF-8, two headers of one name, and a flush that was written twice."""
    records = [RawRecord(3, NOON_MS, DAY, ODD, b"\xff{}"), RawRecord(9, NOON_MS + 7, DAY + 1, (), b"")]
    tables = Tables(connect(endpoint), connect(endpoint, numpy=True))
    for _ in range(2):
        tables.insert_rows("events", (TOPIC_ID, 2), records)
    tables.close()
    source = ArchiveSource(client, TOPIC_ID)
    assert source.reach(2) == (3, 10) and source.reach(0) == (0, 0)
    (fetch,) = source.read(2, 1, 12)
    assert (fetch.first, fetch.next, fetch.offsets.tolist()) == (1, 12, [3, 9])
    assert fetch.headers == [ODD, ()] and fetch.values == [b"\xff{}", b""]
    assert fetch.appended_ms.tolist() == [NOON_MS, NOON_MS + 7]


def test_pages_meet_each_other(endpoint: ClickHouseEndpoint, client: Client) -> None:
    """More than one page: each begins where the one before ended, and nothing is read twice. Large ones are apart."""
    tables = Tables(connect(endpoint), connect(endpoint, numpy=True))
    tables.insert_rows("events", (TOPIC_ID, 0), [RawRecord(n, NOON_MS, DAY, (), b"x") for n in range(0, 40_000, 8)])
    large = [RawRecord(n, NOON_MS, DAY, ODD, bytes(20 << 20)) for n in (96, 800, 816)]
    tables.insert_rows("events", (TOPIC_ID, 0), large)
    tables.close()
    fetches = list(ArchiveSource(client, TOPIC_ID).read(0, 96, 39_200))
    assert len(fetches) > 3 and fetches[0].first == 96 and fetches[-1].next == 39_200
    assert all(sum(map(len, fetch.values)) <= 32 << 20 for fetch in fetches)
    assert all(one.next == two.first for one, two in pairwise(fetches))
    assert [offset for fetch in fetches for offset in fetch.offsets.tolist()] == list(range(96, 39_200, 8))


def test_the_archive_is_kept_as_long_as_the_operator_says(client: Client) -> None:
    """Said again it changes nothing; taken back, nothing is dropped any more."""
    assert not keep_archive_for(client, timedelta(0))
    assert keep_archive_for(client, timedelta(days=90)) and not keep_archive_for(client, timedelta(days=90))
    assert keep_archive_for(client, timedelta(days=400)) and "34560000" in _engine(client)
    assert keep_archive_for(client, timedelta(0)) and "TTL" not in _engine(client)


def _engine(client: Client) -> str:
    text: str = client.execute(
        "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = 'events'"
    )[0][0]
    return text
