"""Sealing on the real engine: what is dropped when, what is looked at every second, and how large a booking may be."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Thread
from typing import Any

import pytest
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from pipeline import seal as seal_room
from pipeline.fences import wait_for_inserts
from pipeline.seal import Sealer
from tallyman.aggregates import read_completeness, read_known, read_rows, read_usage
from tallyman.clickhouse import connect
from tallyman.completeness import _near, _read_seal
from tallyman.errors import StoreError
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.usage import EMPTY, Totals, UsageQuery, merge
from tests.integration.booking import wait_for
from tests.usage_rows import DAY, TOPIC, Booked, book, progress, seal

pytestmark = pytest.mark.integration
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_who_asked_a_minute_ago_what_is_sealed_still_finds_the_rest_where_it_was(client: Client) -> None:
    """A booking of long ago that is sealed only now: its hot rows stay until nobody looks at them any more."""
    query = UsageQuery(meter="compute.vcpu_seconds", start=NOON, end=NOON + timedelta(hours=1))
    book(client, Booked(minute=NOON, value=7))
    known = read_known(client)
    seal(client, DAY, Booked(minute=NOON, value=7))
    sealer, now_ms = Sealer(client, []), (DAY // 1000 + 3) * 86_400_000
    assert sealer.drop_old_hot(now_ms) == []
    assert [row.value for row in read_rows(client, query, known)] == [7]
    assert [row.value for row in read_usage(client, query).rows] == [7]
    assert sealer.drop_old_hot(now_ms, sealed_for_s=0) == [DAY]
    assert [row.value for row in read_usage(client, query).rows] == [7]


def test_chunks_below_a_seal_are_not_read_again_beside_a_partition_that_is_silent(client: Client) -> None:
    """A silent partition stays in its first chunk for weeks, while a busy one closes a thousand a day."""
    columns = "topic_id, partition, chunk, covered, reached_offset, reached_clock_ms, reached_booking"
    clock_ms = round(NOON.timestamp() * 1000)
    client.execute(
        f"INSERT INTO progress ({columns}) SELECT '{TOPIC}', 1, number, 16, 16 * number + 16, {clock_ms}, {DAY + 1}"
        " FROM numbers(5000)"
    )
    progress(client, 0, 0, 4, NOON + MINUTE, booking=DAY + 1)
    place = {"topic_id": TOPIC, "clock_ms": clock_ms, "booking": DAY}
    places = [place | {"partition": n, "chunk": chunk, "offset": 16 * chunk} for n, chunk in ((0, 0), (1, 4990))]
    row = (DAY, 0, 1, 1, NOON, NOON, json.dumps(places))
    client.execute(
        "INSERT INTO seals (booking, generation, rows, events, first_minute, last_minute, places) VALUES", [row]
    )
    near, named = _near(_read_seal(client))
    chunks = client.execute(f"SELECT chunk FROM progress WHERE partition = 1{near} ORDER BY chunk", named)
    assert chunks == [(number,) for number in range(4990, 5000)]
    found = {each.partition: each.offset for each in read_completeness(client).partitions}
    assert found == {0: 4, 1: 80_000}


def test_looking_whether_there_is_something_to_seal_asks_no_partition_by_itself(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done every second, by every worker."""
    seal(client, DAY - 1)
    for partition in range(40):
        progress(client, partition, 0, 4, NOON, booking=DAY)
    asked: list[str] = []
    original = Client.execute
    monkeypatch.setattr(Client, "execute", lambda self, sql, *args, **named: (
        asked.append(sql), original(self, sql, *args, **named))[1])  # fmt: skip
    assert Sealer(client, [(TOPIC, partition, 16) for partition in range(40)]).seal_all() == []
    assert 0 < len(asked) < 6
    progress(client, 7, 0, 5, NOON, booking=DAY + 1)  # the others hold it
    assert Sealer(client, [(TOPIC, partition, 16) for partition in range(40)]).seal_all() == []


def test_a_booking_larger_than_what_a_server_drops_unless_told_is_sealed_and_dropped(client: Client) -> None:
    """ClickHouse refuses to drop 50 GB: some two billion rows. Here it is a byte, and our settings say otherwise."""
    limits = {"max_table_size_to_drop": 1, "max_partition_size_to_drop": 1}
    seal(client, DAY, Booked(minute=NOON, value=7))
    book(client, Booked(minute=NOON, value=7))
    with pytest.raises(driver_errors.ServerException, match="TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT"):
        client.execute(f"ALTER TABLE usage_hot DROP PARTITION {DAY}", settings=limits)
    assert all(client.settings[name] == 0 for name in limits)
    assert Sealer(client, []).drop_old_hot((DAY // 1000 + 3) * 86_400_000, sealed_for_s=0) == [DAY]


def test_a_staging_table_that_cannot_be_dropped_keeps_no_booking_from_being_sealed(client: Client) -> None:
    book(client, Booked(minute=NOON, value=7))
    progress(client, 0, 0, 4, NOON, booking=DAY + 1)
    client.settings["max_table_size_to_drop"] = 1  # of everything that goes wrong with a drop
    told: list[str] = []
    sealed = Sealer(client, [(TOPIC, 0, 8)]).seal_all(told.append)
    assert told[:2] == ["frontier, 0 done", "staging, 0 done"], "who waits sees it go on"
    assert [(each.booking, each.rows, each.events) for each in sealed] == [(DAY, 1, 1)]
    assert client.execute("SHOW TABLES LIKE 'usage_staging_%%'") != []


def test_behind_a_fence_only_inserts_into_what_it_is_on_are_waited_for(
    client: Client, clickhouse_endpoint: ClickHouseEndpoint
) -> None:
    """An audit counts for hours into a table of its own."""
    endpoint = replace(clickhouse_endpoint, database=str(client.connection.database))
    slow = "INSERT INTO {} (partition) SELECT sleepEachRow(0.4) FROM numbers(5) SETTINGS max_block_size = 1"
    client.execute("CREATE TABLE recount_x (partition UInt8) ENGINE = MergeTree ORDER BY partition")
    threads = [
        Thread(target=connect(endpoint).execute, args=(slow.format(table),)) for table in ("recount_x", "usage_hot")
    ]
    for thread in threads:
        thread.start()
    mine = "current_database = currentDatabase() AND query_kind = 'Insert'"
    under_way = f"SELECT count() FROM system.processes WHERE {mine}"
    try:
        wait_for(lambda: client.execute(under_way) == [(2,)], "two inserts")
        wait_for_inserts(client, ["progress", "ids"], patience_s=0)
        with pytest.raises(StoreError, match="1 inserts were under way"):
            wait_for_inserts(client, ["usage_hot", "ids"], patience_s=0)
    finally:
        for thread in threads:
            thread.join(120)
        client.execute("DROP TABLE recount_x")


def test_a_sealer_that_slept_leaves_what_another_one_sealed_as_it_is(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended between looking up to where is sealed and looking for what waits; the other one seals, and tidies."""
    book(client, Booked(minute=NOON, value=7), Booked(minute=NOON + timedelta(hours=2), value=5, booking=DAY + 1))
    progress(client, 0, 0, 4, NOON + timedelta(hours=3), booking=DAY + 2)
    partitions, slept, look = [(TOPIC, 0, 8)], list[bool](), seal_room.begin_sealing

    def sleep(*words: Any) -> bool:
        if not slept:
            slept.append(True)
            other = Sealer(client, partitions)
            assert [each.booking for each in other.seal_all()] == [DAY, DAY + 1]
            assert other.drop_old_hot((DAY // 1000 + 3) * 86_400_000, sealed_for_s=0) == [DAY, DAY + 1]
        return look(*words)

    with monkeypatch.context() as patch:
        patch.setattr(seal_room, "begin_sealing", sleep)
        assert Sealer(client, partitions).seal_all() == []
    query = UsageQuery(meter="compute.vcpu_seconds", start=NOON, end=NOON + timedelta(hours=4))
    assert sum(row.value for row in read_usage(client, query).rows) == 12
    assert client.execute("SELECT booking, rows FROM seals ORDER BY booking") == [(DAY, 1), (DAY + 1, 1)]


@pytest.mark.parametrize("seed", range(3))
def test_a_seal_holds_what_merging_the_longest_rows_gives_column_by_column(client: Client, seed: int) -> None:
    """The seal's SQL and `merge` are the same algebra, written twice; zombies' shorter rows are no part of either."""
    rng, longest = Random(seed), dict[tuple[Any, ...], tuple[int, Totals]]()
    progress(client, 0, 0, 4, NOON, booking=DAY + 1)
    rows = []
    for number in range(600):
        series = (rng.choice("ab"), rng.choice(("{}", '{"az":null}')), NOON + rng.randrange(3) * MINUTE, DAY,
                  rng.randrange(1, 3), 0, rng.choice(("", "17")))  # fmt: skip
        place, covered = (rng.randrange(2), rng.randrange(4)), rng.randrange(1, 16)
        latest_at = rng.randrange(5), bytes([rng.randrange(3), number >> 8, number & 255]).ljust(16, b"\0")
        large = rng.randrange(-(2**100), 2**100)
        totals = Totals(rng.randrange(9), large, large - rng.randrange(9), large + rng.randrange(9), large, latest_at)
        rows.append((*series, *place, TOPIC, covered, totals.count, totals.sum, totals.min, totals.max, totals.latest,
                     *latest_at))  # fmt: skip
        if covered > longest.get((series, place), (0,))[0]:
            longest[series, place] = covered, totals
        elif covered == longest[series, place][0]:
            rows.pop()  # as long, and of the same log: it would be the same row
    columns = (
        "subject, dimensions, minute, booking, definitions, generation, item, partition, chunk, topic_id, covered,"
        " count, sum, min, max, latest, latest_us, latest_by, meter, aggregation, scale, parameters"
    )
    shared = ("some.meter", "sum", 9, "p")
    for aside in ({"generation": 3}, {"booking": DAY + 1}):  # of a rebuild, and what is still open
        place = 5 if "generation" in aside else 3
        rows.append((*rows[0][:place], next(iter(aside.values())), *rows[0][place + 1 :]))
    client.execute("SYSTEM STOP MERGES usage_hot")
    for first in range(0, len(rows), 100):
        client.execute(
            f"INSERT INTO usage_hot ({columns}) VALUES", [(*row, *shared) for row in rows[first : first + 100]]
        )
    wanted: dict[tuple[Any, ...], Totals] = {}
    for (series, _), (_, totals) in longest.items():
        wanted[series] = merge(wanted.get(series, EMPTY), totals)
    try:
        assert [seal.booking for seal in Sealer(client, [(TOPIC, 0, 16)]).seal_all()] == [DAY]
    finally:
        client.execute("SYSTEM START MERGES usage_hot")
    found = client.execute(
        "SELECT subject, dimensions, minute, booking, definitions, generation, item, count, sum, min, max, latest,"
        " latest_us, hex(latest_by), meter, aggregation, scale, parameters FROM usage"
    )
    told = {row[:7]: Totals(*row[7:12], latest_at=(row[12], bytes.fromhex(row[13]))) for row in found}
    assert {row[14:] for row in found} == {shared} and len(told) == len(found)
    assert told == wanted
