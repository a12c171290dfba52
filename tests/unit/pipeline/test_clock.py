"""Records that were appended in the future stay out of the books, whichever clock is wrong."""

from __future__ import annotations

import time

import pytest

from pipeline.batches import Fetch
from pipeline.clock import AHEAD_MS, FutureGuard
from tallyman.errors import DamageError
from tests.fetches import fetch_of

NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000


def fetch(*appended_ms: int) -> Fetch:
    return fetch_of([(b"{}", (), each) for each in appended_ms])


class Clocks:
    """This machine's clock, and ClickHouse's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, own_ms: int, store_ms: int) -> None:
        self.store_ms, self.asked, self.monotonic = store_ms, 0, 0.0
        monkeypatch.setattr(time, "time_ns", lambda: own_ms * 1_000_000)
        monkeypatch.setattr(time, "monotonic", lambda: self.monotonic)
        self.guard = FutureGuard(self.ask)

    def ask(self) -> int:
        self.asked += 1
        return self.store_ms


def test_what_was_appended_now_or_a_little_ahead_is_read_and_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch, NOW_MS, NOW_MS)
    for each in (fetch(), fetch(NOW_MS - HOUR_MS, NOW_MS), fetch(NOW_MS + AHEAD_MS)):
        assert clocks.guard.past(each) is each
    assert clocks.asked == 0


def test_a_record_of_tomorrow_is_damage_and_what_stands_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Clocks(monkeypatch, NOW_MS, NOW_MS).guard
    mixed = fetch(NOW_MS, NOW_MS, NOW_MS + 24 * HOUR_MS, NOW_MS)
    kept = guard.past(mixed)
    assert (kept.first, kept.next, kept.offsets.tolist()) == (0, 2, [0, 1])
    with pytest.raises(DamageError, match="the record at offset 0 was appended at 2026-09-22") as found:
        guard.past(fetch(NOW_MS + 24 * HOUR_MS, NOW_MS))
    assert (found.value.partition, found.value.reason) == (mixed.partition, "clock")
    assert found.value.passes_in_s == (24 * HOUR_MS - AHEAD_MS) // 1000
    with pytest.raises(DamageError) as found:
        guard.past(fetch(NOW_MS + AHEAD_MS + 1, NOW_MS + 24 * HOUR_MS))
    assert found.value.passes_in_s == 1, "the first record's time is what is waited for"


def test_a_worker_whose_own_clock_is_behind_goes_by_clickhouse_and_asks_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = Clocks(monkeypatch, NOW_MS - 400 * 24 * HOUR_MS, NOW_MS)
    each = fetch(NOW_MS + AHEAD_MS)
    assert clocks.guard.past(each) is each and clocks.guard.past(each) is each
    assert clocks.asked == 1
    clocks.monotonic = 59.0
    later = fetch(NOW_MS + AHEAD_MS + 59_000)
    assert clocks.guard.past(later) is later and clocks.asked == 1
    clocks.monotonic = 61.0
    assert clocks.guard.past(each) is each and clocks.asked == 2


def test_a_worker_and_a_clickhouse_that_are_both_behind_stop_the_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Clocks(monkeypatch, NOW_MS - HOUR_MS, NOW_MS - HOUR_MS).guard
    with pytest.raises(DamageError, match="the clock of the partition's leader is, or was, ahead"):
        guard.past(fetch(NOW_MS))
