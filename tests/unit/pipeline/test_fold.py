"""When the open chunk is flushed: before a booking turns, at its end, when it is time, and when it is large."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline import fold as folding
from pipeline.batches import empty_fetch
from pipeline.book import DAY_MS, OPEN
from pipeline.decode import blocks
from pipeline.dedupe import Judge, count_once
from pipeline.fold import due, due_elsewhere, fold
from pipeline.id_filter import IdFilter
from tests.fetches import NOON_MS, fetch_of
from tests.unit.pipeline.events import StoredHere, Walk, body, new_chunk, new_decoders


@pytest.fixture(autouse=True)
def nothing_open() -> Iterator[None]:
    OPEN.clear()
    yield
    OPEN.clear()


def test_what_a_booking_holds_is_written_before_the_next_begins() -> None:
    chunk, decoders = new_chunk(), new_decoders()
    fetch = fetch_of([(body(1), (), NOON_MS), (body(2), (), NOON_MS + DAY_MS)])
    seen = []
    for block in blocks(fetch, chunk, decoders):
        count_once(block, chunk, decoders.catalog(1), Judge(StoredHere(), IdFilter(1 << 16)))
        for flush in fold(block, chunk, decoders, flush_s=1e9):
            seen.append((chunk.here.offset, chunk.here.booking % 1000, len(flush.chunk.table.take_changes()[1])))
    assert seen == [(1, 0, 1)]
    assert (chunk.turned.offset, chunk.here.offset, len(chunk.table.take_changes()[1])) == (1, 2, 1)


def test_a_chunk_is_written_whole_before_the_next_begins() -> None:
    walk = Walk(chunk=new_chunk(size=8)).send(*(body(i) for i in range(8)))
    assert (walk.chunk.number, walk.chunk.here.offset, len(walk.chunk.table)) == (1, 8, 0)
    assert sum(walk.totals.values()) == 12_000_000


def test_an_open_chunk_is_flushed_when_it_is_time_and_not_before() -> None:
    walk = Walk().send(body(1))
    assert not list(due(walk.chunk, walk.decoders, flush_s=60))
    walk.chunk.flushed_at -= 61
    assert len(list(due(walk.chunk, walk.decoders, flush_s=60))) == 1


def test_who_is_behind_flushes_less_often_than_who_keeps_up() -> None:
    """A pause lasts three times the last flush for the one, once for the other, and never longer than 0.6 s."""
    walk = Walk().send(body(1))
    chunk, other = walk.chunk, new_chunk(partition=1)
    OPEN[chunk.topic_id, 0], OPEN[chunk.topic_id, 1] = chunk, other
    chunk.flush_cost_s, chunk.flushed_at, other.flushed_at = 0.15, time.monotonic() - 0.3, 0
    nothing = empty_fetch(chunk.topic_id, 0, chunk.here.offset)
    walk.go(nothing)
    assert not list(due(chunk, walk.decoders, flush_s=0.2)), "nothing came, but there is more in the log"
    walk.go(replace(nothing, at_end=True))
    other.acknowledged = None
    assert not list(due(chunk, walk.decoders, flush_s=0.2)), "another partition is behind, and would be written, too"
    other.acknowledged = other.here
    assert len(list(due(chunk, walk.decoders, flush_s=0.2))) == 1
    walk.flush()
    chunk.flush_cost_s, chunk.flushed_at = 9, time.monotonic() - 0.61
    assert len(list(due(walk.send(body(2)).chunk, walk.decoders, flush_s=0.2))) == 1


def test_who_has_folded_all_that_there_is_keeps_up_also_while_more_comes_with_every_poll() -> None:
    walk = Walk()
    more = fetch_of([(body(1), (), NOON_MS), (body(2), (), NOON_MS)])
    walk.go(more)
    assert not walk.chunk.caught_up
    two_days = fetch_of([(body(3), (), NOON_MS + DAY_MS), (body(4), (), NOON_MS + 2 * DAY_MS)], first=2)
    last = replace(two_days, at_end=True)
    walk.go(last)
    assert walk.chunk.caught_up
    assert [block.at_end for block in walk.blocks] == [False, False, True], "two bookings: the end lies behind the last"
    assert not last.below(3).at_end


def test_a_partition_whose_turn_comes_behind_another_ones_flush_is_not_written_alone() -> None:
    """Else, under load, each flush has what one fetch brought, and costs as much as one of all partitions."""
    walk, other = Walk().send(body(1)), Walk(chunk=new_chunk(partition=1)).send(body(2))
    for each in (walk.chunk, other.chunk):
        OPEN[each.topic_id, each.partition] = each
    now = time.monotonic()
    walk.chunk.flush_cost_s, walk.chunk.flushed_at = 0.15, now - 0.1
    other.chunk.flush_cost_s, other.chunk.flushed_at = 0.15, now - 5
    assert not list(due(other.chunk, other.decoders, flush_s=0.01))
    assert not list(due_elsewhere(walk.blocks[0], walk.decoders, flush_s=0.01))
    walk.chunk.flushed_at -= 0.4
    (flush,) = due(other.chunk, other.decoders, flush_s=0.01)
    assert [chunk for chunk, _ in flush.others] == [walk.chunk]


def test_a_chunk_of_which_everything_is_acknowledged_is_not_flushed() -> None:
    walk = Walk().send(body(1)).flush()
    assert not list(due(walk.chunk, walk.decoders, flush_s=0))


def test_a_chunk_is_flushed_before_clickhouse_would_cut_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that ClickHouse splits is no longer one cut of the log."""
    monkeypatch.setattr(folding, "MAX_CHANGED_KEYS", 5)
    walk = Walk().send(*(body(i, subject=f"Zoë {i}") for i in range(6)))
    assert walk.totals


def test_a_chunk_is_flushed_before_dead_letters_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MAX_DEAD_LETTERS", 2)
    walk = Walk().send(b"1", b"2")
    assert (len(walk.dead), len(walk.chunk.dead)) == (0, 2)
    walk.send(b"3")
    assert (len(walk.dead), len(walk.chunk.dead)) == (3, 0)


def test_many_readings_of_few_series_are_no_reason_to_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is how many rows a flush would write."""
    monkeypatch.setattr(folding, "MAX_CHANGED_KEYS", 5)
    walk = Walk().send(*(body(i) for i in range(60)))
    assert not walk.totals and walk.chunk.table.changed_rows == 1


def test_any_block_flushes_what_is_due_in_the_other_open_chunks() -> None:
    """A partition that went silent is flushed by the blocks, also the idle ones, of the others."""
    walk, other = Walk().send(body(1)), new_chunk(partition=1)
    other.acknowledged = other.here
    key = (walk.chunk.topic_id, walk.chunk.partition)
    OPEN[key], OPEN[walk.chunk.topic_id, 1] = walk.chunk, other
    block = walk.blocks[0]
    assert not list(due_elsewhere(block, walk.decoders, flush_s=0))  # its own chunk is not "elsewhere"
    block.partition = 1
    assert [flush.chunk for flush in due_elsewhere(block, walk.decoders, flush_s=0)] == [walk.chunk]


def test_what_went_along_with_a_flush_is_not_flushed_again() -> None:
    walk, other = Walk().send(body(1)), Walk(chunk=new_chunk(partition=1)).send(body(2))
    for each in (walk.chunk, other.chunk):
        OPEN[each.topic_id, each.partition] = each
    block = walk.blocks[0]
    block.partition = 2
    flushes = due_elsewhere(block, walk.decoders, flush_s=0)
    flush = next(flushes)
    assert [flush.chunk, *(chunk for chunk, _ in flush.others)] == [walk.chunk, other.chunk]
    for each in (walk.chunk, other.chunk):
        each.acknowledged = each.here
    assert not list(flushes)


def test_beside_hundreds_of_partitions_a_block_looks_once_whether_all_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look goes through all of them."""
    walk, looks = Walk().send(body(1)), []
    for partition in range(300):
        chunk = new_chunk(partition=partition)
        chunk.acknowledged = None
        OPEN[chunk.topic_id, partition] = chunk
    monkeypatch.setattr(folding, "_caught_up", lambda: looks.append(1) or True)
    assert not list(due_elsewhere(walk.blocks[0], walk.decoders, flush_s=60))
    assert len(looks) == 1


def test_a_booking_without_usage_turns_without_a_flush() -> None:
    walk = (
        Walk()
        .send(b"", headers=(("tallyman-tick", b"1"),))
        .send(b"", headers=(("tallyman-tick", b"1"),), at_ms=NOON_MS + DAY_MS)
    )
    assert not walk.totals and walk.chunk.turned.offset == 1
