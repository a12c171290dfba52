"""Bookings, places and digests: the small rules that every worker must answer alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.book import BOOKINGS_PER_DAY, DAY_MS, OPEN, Counts, Place, booking_after, chain
from pipeline.identities import IdColumns
from pipeline.lanes import inside
from tests.unit.pipeline.events import new_chunk

DAY = 20_757  # 2026-10-31
NOON = DAY * DAY_MS + DAY_MS // 2
TODAY = DAY * BOOKINGS_PER_DAY
DIGESTS = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 3), st.integers(0, 2**32 - 1)), unique_by=lambda d: d[0]
)


def test_a_booking_is_the_day_of_the_log_clock() -> None:
    assert booking_after(0, NOON) == TODAY and booking_after(0, DAY * DAY_MS - 1) == TODAY - BOOKINGS_PER_DAY


def test_a_booking_never_goes_back() -> None:
    assert booking_after(TODAY + 4, NOON) == TODAY + 4 and booking_after(TODAY + 4, NOON, TODAY + 2) == TODAY + 4


def test_a_close_opens_what_it_names_up_to_the_end_of_tomorrow() -> None:
    """The clocks of a partition and of the one who closes may lie on two sides of midnight."""
    last = TODAY + 2 * BOOKINGS_PER_DAY - 1
    assert booking_after(TODAY, NOON, TODAY + 1) == TODAY + 1
    assert booking_after(TODAY, NOON, last) == last
    assert booking_after(TODAY, NOON, last + 1) == TODAY


@given(st.lists(st.tuples(st.integers(0, 9 * DAY_MS), st.integers(0, 12 * BOOKINGS_PER_DAY)), min_size=1))
def test_bookings_only_grow_along_a_log(records: list[tuple[int, int]]) -> None:
    clock = booking = 0
    for appended_ms, opens in records:
        clock = max(clock, appended_ms)
        after = booking_after(booking, clock, opens)
        assert after >= booking and after // BOOKINGS_PER_DAY <= max(clock // DAY_MS + 1, booking // BOOKINGS_PER_DAY)
        booking = after


@given(DIGESTS, st.integers(0, 100))
def test_a_digest_does_not_depend_on_where_the_log_was_cut(batches: list[tuple[int, int, int]], cut: int) -> None:
    batches.sort()
    assert chain(chain(7, batches, 0, cut), batches, cut, 100) == chain(7, batches, 0, 100)


def test_a_digest_tells_another_epoch_another_crc_and_another_place() -> None:
    ways = [(0, 0, 1), (0, 1, 1), (0, 0, 2), (1, 0, 1)]
    assert len({chain(0, [batch], 0, 9) for batch in ways}) == 4


def test_counts_add_up_field_by_field() -> None:
    assert Counts(3, 2, 1).plus(Counts(1, 1)) == Counts(4, 3, 1)


def test_a_chunk_that_was_closed_leaves_nothing_behind_in_the_next() -> None:
    chunk = new_chunk(size=8)
    chunk.here = Place(8, NOON, TODAY, 1, 5, Counts(received=8, aggregated=8))
    chunk.go_on()
    assert (chunk.number, chunk.base, chunk.covered) == (1, 8, 0)
    assert chunk.here == chunk.turned == replace(chunk.here, counts=Counts()) and not chunk.unwritten


def test_a_restart_reads_from_where_the_last_booking_began() -> None:
    chunk = new_chunk()
    chunk.here = Place(5, NOON, TODAY, 1)
    chunk.turn(chunk.here)
    chunk.here = Place(9, NOON, TODAY, 1)
    assert (chunk.turned.offset, chunk.base, chunk.unwritten) == (5, 0, True)


def test_a_worker_of_many_partitions_keeps_no_more_ids_than_one_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty-four times a million would be four gigabytes; also where each partition has a lane of its own."""
    monkeypatch.setattr("pipeline.book.MAX_IDS_IN_MEMORY", 10)
    monkeypatch.setattr(OPEN, "_lanes", {})
    chunks = [new_chunk(partition=partition) for partition in range(5)]
    for chunk in chunks:
        with inside(chunk.partition // 2):
            OPEN[chunk.topic_id, chunk.partition] = chunk
    for chunk in chunks:
        for size in (2, 1):
            ids = np.arange(size, dtype=np.uint64)
            whole = ids.astype(np.int64)
            chunk.accepted.add(IdColumns(ids, ids, whole, whole, whole, ids, ids.astype(np.uint32)))
            chunk.here = replace(chunk.here, offset=chunk.here.offset + size)
            chunk.accepted.acknowledge(1)
            chunk.forget_written_ids()
            assert (len(chunk.accepted), chunk.base) == ((2, 0) if size == 2 else (1, 2)), "the newer half stays"
