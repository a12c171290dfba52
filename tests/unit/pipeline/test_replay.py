"""Counting again needs no more memory than counting did: what nobody writes is let go of, ids are flushed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.archive import ArchiveSource
from pipeline.batches import Fetch
from pipeline.book import OpenChunk, Place
from pipeline.dedupe import Judge
from pipeline.replay import Anything, ReplayTables, Stages, Wanted, replay
from tests.fetches import NOON_MS, TOPIC_ID, fetch_of
from tests.unit.pipeline.events import NDJSON, Walk, body, new_decoders

EACH, ONCE = 50, 20  # events of a record; records until all come again
ENTIRE = 3 * ONCE


def record(offset: int) -> bytes:
    """Records of events that nobody wants, then of new ones, then of the same ones again."""
    kind = "forgotten" if offset < ONCE else "server"
    return b"\n".join(body(f"{offset % ONCE}-{n}", type=kind) for n in range(EACH))


class Again:
    """The log, one record a fetch."""

    name = "log"

    def reach(self, partition: int) -> tuple[int, int]:
        return 0, ENTIRE

    def read(self, partition: int, start: int, stop: int) -> Iterator[Fetch]:
        for offset in range(start, stop):
            yield fetch_of([(record(offset), NDJSON, NOON_MS)], first=offset)

    def close(self) -> None:
        return


def test_neither_dead_letters_nor_ids_of_a_whole_chunk_wait_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what comes out is what was booked, also where ClickHouse answers for ids that were let go of."""
    most = 4 * EACH
    booked = Walk().send(*map(record, range(ENTIRE)), headers=NDJSON).flush()
    held: list[tuple[int, int]] = []

    def look(block: Any, chunk: OpenChunk, catalog: Any) -> None:
        held.append((len(chunk.dead), len(chunk.accepted)))

    monkeypatch.setattr("pipeline.book.MAX_IDS_IN_MEMORY", most)
    client: Any = None  # no meter is wanted, so nothing is inserted
    tables = ReplayTables(client, client, "recount", Wanted(frozenset()))
    stages = Stages(new_decoders(), Judge(booked.store, Anything()), tables, look)
    chunk = stages.chunk_at(TOPIC_ID, 0, 64, 0, Place())
    (place,) = replay(chunk, Again(), [ENTIRE], stages)
    assert place.counts == booked.chunk.here.counts
    assert (place.counts.dead, place.counts.aggregated, place.counts.duplicate) == (1000, 1000, 1000)
    assert max(dead for dead, _ in held) == EACH and max(ids for _, ids in held) <= most + EACH
    assert tables.ids.count == sum(map(len, booked.store.rows.values())) == 1000


class Archive:
    """ClickHouse with small records, then large ones."""

    def __init__(self) -> None:
        self.most = 0

    def execute(self, sql: str, values: dict[str, Any], settings: object = None) -> list[tuple[Any, ...]]:
        offsets = range(values["start"], values["end"])
        sizes = [(offset, 100 if offset < 5000 else 512 * 1024) for offset in offsets]
        if "length(body)" in sql:
            return sizes
        self.most = max(self.most, sum(size for _, size in sizes))
        return [(offset, NOON_MS, [], [], b"") for offset, _ in sizes]


def test_a_page_of_the_archive_is_as_small_as_its_records_are_large() -> None:
    client: Any = Archive()
    fetches = list(ArchiveSource(client, TOPIC_ID).read(0, 0, 9000))
    assert client.most <= 32 << 20
    assert [offset for fetch in fetches for offset in fetch.offsets.tolist()] == list(range(9000))
