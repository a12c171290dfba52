"""How far partitions are booked, told from sums of chunks, is what following them chunk by chunk tells."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from clickhouse_driver import Client

from tallyman.completeness import read_reached
from tallyman.topics import ENDED
from tests.usage_rows import DAY, TOPIC

pytestmark = pytest.mark.integration
PARTITIONS, CHUNK, LONGEST = 12, 8, 60
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize("seed", range(12))
def test_holes_short_rows_rows_of_zombies_and_repairs_end_a_run_where_they_are(client: Client, seed: int) -> None:
    rng = random.Random(seed)
    written = {partition: list(_chunks(rng)) for partition in range(PARTITIONS)}
    rows = [(TOPIC, partition, chunk, covered, chunk * CHUNK + covered, 1000 + chunk * CHUNK + covered, booking)
            for partition, chunks in written.items() for chunk, covered, booking in chunks]  # fmt: skip
    rng.shuffle(rows)
    client.execute(
        "INSERT INTO progress (topic_id, partition, chunk, covered, reached_offset, reached_clock_ms, reached_booking)"
        " VALUES",
        rows,
    )
    sealed = {partition: rng.randrange(LONGEST) for partition in written if rng.random() < 0.7}
    places = [_place(partition, chunk) for partition, chunk in sealed.items()]
    client.execute(
        "INSERT INTO seals (booking, generation, rows, events, places) VALUES", [(DAY, 0, 0, 0, json.dumps(places))]
    )
    repaired = {partition: rng.randrange(LONGEST) for partition in written if rng.random() < 0.2}
    client.execute(
        "INSERT INTO repairs (topic_id, partition, number, chunk_size, from_offset, to_offset, from_clock_ms,"
        " to_clock_ms, from_booking, booking, definitions, counts, reason, note, who, decided_at) VALUES",
        [(TOPIC, partition, 1, CHUNK, chunk * CHUNK, chunk * CHUNK + 3, 1000, 2000, DAY, DAY + 2, 1, [0] * 7, "damaged",
          "", "zoë", NOON) for partition, chunk in repaired.items()],
    )  # fmt: skip
    _, found = read_reached(client)
    told = {each.partition: (each.offset, each.booking) for each in found}
    for partition, chunks in written.items():
        expected = _followed(chunks, sealed.get(partition), repaired.get(partition))
        assert told.get(partition, (0, 0)) == expected, partition


def test_what_dashboards_look_at_is_the_seal_or_what_was_booked_since(client: Client) -> None:
    seals = "INSERT INTO seals (booking, generation, rows, events, places) VALUES"
    booked = (
        "INSERT INTO progress (topic_id, partition, chunk, generation, covered, reached_offset, reached_clock_ms,"
        " reached_booking) VALUES"
    )
    reached = "SELECT topic_id, partition, offset, clock_ms FROM reached ORDER BY topic_id, partition"
    ended = [("Before", 0, 900, 0, 8, 7208, 40, ENDED)]
    client.execute(booked, [*ended, *((TOPIC, 0, chunk, 0, 8, chunk * 8 + 8, 1000 + chunk, DAY) for chunk in range(9))])
    unsealed = [("Before", 0, 7208, 40), (TOPIC, 0, 72, 1008)]
    assert client.execute(reached) == unsealed
    # Partition 1 said nothing since the seal, and what is older than its chunk it said before.
    client.execute(booked, [(TOPIC, 1, 4, 0, 8, 40, 1004, DAY), (TOPIC, 0, 9, 1, 8, 999, 9999, DAY)])
    client.execute(seals, [(DAY, 0, 0, 0, json.dumps([_place(0, 9), _place(1, 7)])), (DAY - 1, 0, 0, 0, "[]")])
    assert client.execute(reached) == [("Before", 0, 7208, 40), (TOPIC, 0, 72, 1008), (TOPIC, 1, 56, 5)]
    client.execute(booked, [(TOPIC, 0, 9, 0, 5, 77, 2000, DAY + 1), ("next", 0, 0, 0, 2, 2, 2001, DAY + 1)])
    assert client.execute("SELECT topic_id, partition, now_ms FROM clocks ORDER BY topic_id, partition") == [
        (TOPIC, 0, 2000), (TOPIC, 1, 5), ("next", 0, 2001)
    ]  # fmt: skip


def _chunks(rng: random.Random) -> Iterator[tuple[int, int, int]]:
    """Yield (chunk, covered, booking): mostly whole chunks, some missing, some cut short, some written twice."""
    holes = {rng.randrange(LONGEST)} if rng.random() < 0.3 else set()
    last = rng.randrange(LONGEST)
    for chunk in range(last + 1):
        covered = CHUNK if chunk < last and rng.random() > 0.01 else rng.randint(1, CHUNK)
        if chunk not in holes:
            yield chunk, covered, DAY + 1 + chunk // 20
            if covered > 1 and rng.random() < 0.3:
                yield chunk, covered - 1, DAY + 1 + chunk // 20


def _followed(chunks: list[tuple[int, int, int]], sealed: int | None, repaired: int | None) -> tuple[int, int]:
    """Return offset and booking where the unbroken run of chunks ends, one by one."""
    newest = {chunk: (covered, booking) for chunk, covered, booking in sorted(chunks)}
    chunk, offset, booking = (0, 0, 0) if sealed is None else (sealed, sealed * CHUNK, DAY)
    if repaired is not None and repaired >= chunk:
        chunk, offset, booking = repaired, repaired * CHUNK + 3, DAY + 2
    # Where only the first chunk has a row nothing says how large chunks are: it counts as closed, and none follows.
    while chunk in newest and newest[chunk][1] >= booking:
        offset, booking = chunk * CHUNK + newest[chunk][0], newest[chunk][1]
        if newest[chunk][0] < CHUNK and set(newest) != {0}:
            break
        chunk += 1
    return offset, booking


def _place(partition: int, chunk: int) -> dict[str, Any]:
    return {"topic_id": TOPIC, "partition": partition, "chunk": chunk, "offset": chunk * CHUNK, "clock_ms": 5,
            "booking": DAY, "definitions": 1, "digest": 0}  # fmt: skip
