"""The identities that ClickHouse holds: asked for by tens of thousands, and read back for the filter."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from clickhouse_driver import Client

from pipeline import frontier
from pipeline.booked import refuse_short_memory
from pipeline.frontier import StoredIds
from pipeline.id_filter import IdFilter
from pipeline.identities import HASHES
from tallyman.clickhouse import connect
from tallyman.errors import ConfigError
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


def test_ids_are_told_in_portions_of_about_one_size_and_each_once(
    ids: StoredIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are; who loads them never holds more than a portion."""
    monkeypatch.setattr(frontier, "_PORTION", 2000)
    portions = list(ids.stream(TOPIC_ID, {0: 40_000}))
    assert all(len(each.high) < 4000 for each in portions) and len(portions) < 60
    assert [each.end for each in portions] == sorted({each.end for each in portions})
    begin = 0
    for each in portions:
        assert not len(each.high) or (begin <= int(each.high.min()) and int(each.high.max()) < each.end)
        begin = each.end
    assert begin == HASHES
    low = np.concatenate([each.low for each in portions])
    assert sorted(low.tolist()) == list(range(40_000))


def test_the_ids_of_several_partitions_are_told_in_one_reading_each_below_its_own_offset(ids: StoredIds) -> None:
    found = np.concatenate([each.low for each in ids.stream(TOPIC_ID, {0: 30_000, 1: 10, 2: STORED})])
    alone = [
        np.concatenate([each.low for each in ids.stream(TOPIC_ID, {number: below})])
        for number, below in ((0, 30_000), (1, 10))
    ]
    assert len(found) == 30_010 and sorted(found.tolist()) == sorted(np.concatenate(alone).tolist())


def test_ids_behind_a_repair_count_only_if_whoever_wrote_them_knew_of_it(database: Client, ids: StoredIds) -> None:
    """The records that an earlier worker accepted there may be judged otherwise since, by other definitions."""
    database.execute(
        "INSERT INTO repairs (topic_id, partition, number, chunk_size, from_offset, to_offset) VALUES",
        [(TOPIC_ID, 0, 1, 65_536, 20_000, 20_003), (TOPIC_ID, 0, 2, 65_536, 30_000, 30_000)],
    )
    database.execute(
        "INSERT INTO ids (identity_high, identity_low, topic_id, partition, offset, repairs) VALUES",
        [(5, number, TOPIC_ID, 0, offset, number) for number, offset in ((1, 20_005), (1, 30_005), (2, 30_006))],
    )
    known = database.execute("SELECT identity_high, identity_low, partition FROM ids WHERE identity_high != 5")
    found = [ids.find(TOPIC_ID, number, STORED, [(high, low) for high, low, at in known if at == number])
             for number in (0, 1)]  # fmt: skip
    assert {each.offset for each in found[0].values()} == set(range(20_000)) and len(found[1]) == STORED
    assert {each.offset for each in ids.find(TOPIC_ID, 0, STORED, [(5, 1), (5, 2)]).values()} == {20_005, 30_006}


def test_a_store_without_ids_is_told_in_few_questions(ids: StoredIds) -> None:
    assert len(list(ids.stream(TOPIC_ID, {2: STORED}))) == 5


def test_a_filter_loaded_from_the_store_calls_none_of_its_ids_new(ids: StoredIds) -> None:
    """Nor one that covers a part of them only."""
    for known in (IdFilter(1 << 20), IdFilter(1 << 12, 1 << 12)):
        known.load(ids, TOPIC_ID, {0: 40_000})
        for portion in ids.stream(TOPIC_ID, {0: 40_000}):
            assert known.perhaps(TOPIC_ID, 0, portion.high, portion.low).all()
        other = np.random.default_rng(1).integers(0, 2**64, (2, 10_000), np.uint64)
        assert known.perhaps(TOPIC_ID, 0, *other).mean() < 1.02 - known.covered


@pytest.mark.parametrize(
    ("kept_for", "is_refused"),
    [
        ("toIntervalDay(37)", False),
        ("toIntervalDay(36)", True),
        ("toIntervalSecond(1)", True),
        ("toIntervalYear(90)", True),  # ends behind 2106, where ClickHouse's seconds begin anew
        ("toIntervalDay(1) WHERE partition = 9", False),  # of a partition that is gone, say: the operator's
    ],
)
def test_a_ttl_on_ids_that_would_let_copies_count_again_is_refused(
    database: Client, kept_for: str, is_refused: bool
) -> None:
    remember, now_ms = timedelta(days=36, hours=1), time.time_ns() // 1_000_000
    refuse_short_memory(database, remember, now_ms)
    database.execute(f"ALTER TABLE ids MODIFY TTL toDateTime(intDiv(remembered_us, 1000000)) + {kept_for}")
    with pytest.raises(ConfigError, match="copies would count again") if is_refused else nullcontext():
        refuse_short_memory(database, remember, now_ms)
