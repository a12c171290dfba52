"""How much waits in the memory of a reader that is behind, and for how long."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, repeat
from typing import Any, cast

import pytest

from pipeline.poll import POLL_BYTES, PORTION_BYTES
from pipeline.read import ALONE, ReadPartition, Stop, no_lane
from pipeline.source import ALL_FULL_BYTES, FULL_BYTES, UsageReader, _Queue
from tests.fetches import NOON_MS, TOPIC_ID, fetch_of


class Poller:
    """Stands for a consumer: says what it was told."""

    def __init__(self) -> None:
        self.paused: list[int] = []
        self.about_bytes: list[int] = []
        self.end: int | None = 0

    def pause(self, partitions: list[int]) -> None:
        self.paused = partitions

    def poll(self, timeout_ms: int, about_bytes: int) -> list[Any]:
        self.about_bytes.append(about_bytes)
        return []

    def log_end(self, partition: int) -> int | None:
        return self.end


def reader(*sizes: int) -> UsageReader:
    made = UsageReader(TOPIC_ID, lambda: cast("Any", None))
    for partition, size in enumerate(sizes):
        queue = made._queues[partition] = _Queue()
        made._behind[partition] = 0
        if size:
            queue.put(replace(fetch_of([(b"{}", (), NOON_MS)], partition=partition), size=size))
    return made


def test_nothing_more_is_fetched_for_a_partition_of_which_enough_waits() -> None:
    assert reader(0, FULL_BYTES - 1, FULL_BYTES)._full(0) == [2]


def test_of_a_hundred_partitions_that_are_behind_no_more_waits_than_fits() -> None:
    """Only who is asked for something and has nothing gets it then, so that no partition starves."""
    each = ALL_FULL_BYTES // 100 + 1
    assert each < FULL_BYTES
    crowded = reader(0, *[each] * 100, 0)
    assert crowded._full(0) == list(range(1, 102))
    assert crowded._full(101) == list(range(101))
    assert crowded._full(7) == list(range(102))


def test_a_poll_takes_no_more_than_there_is_room_for() -> None:
    for waiting, expected in ((0, POLL_BYTES), (ALL_FULL_BYTES - 5, 5), (2 * ALL_FULL_BYTES, 1)):
        made, poller = reader(0, waiting), Poller()
        made._poller = cast("Any", poller)
        made.next_fetch(0, 0)
        assert poller.about_bytes == [expected]


def test_keys_and_headers_take_room_like_values() -> None:
    queue = _Queue()
    queue.put(replace(fetch_of([(None, (), NOON_MS)]), size=FULL_BYTES))
    assert queue.size == FULL_BYTES
    assert queue.take(1).size == FULL_BYTES
    assert (queue.size, bool(queue)) == (0, False)


def test_the_end_of_the_log_lies_behind_what_the_broker_said_and_not_where_it_sent_nothing_more() -> None:
    for end, waiting, expected in ((None, 0, False), (1, 0, True), (2, 0, False), (0, 0, True), (1, 1, False)):
        made, poller = reader(1), Poller()
        made._poller, poller.end = cast("Any", poller), end
        if waiting:
            made._queues[0].put(replace(fetch_of([(b"{}", (), NOON_MS)], first=1), size=PORTION_BYTES))
        assert made.next_fetch(0, 0).at_end is expected
    made._poller, poller.end = cast("Any", poller), 2
    made._behind[0] = 2
    made._queues[0].clear()
    assert made.next_fetch(0, 2).at_end, "an idle poll"
    poller.end = 3
    assert not made.next_fetch(0, 2).at_end


def test_who_has_nothing_waiting_gives_way_to_those_who_have() -> None:
    assert reader(0, 1).gives_way(0)
    assert not reader(1, 1).gives_way(0)
    assert not reader(0, 0).gives_way(0)


def test_a_trickle_does_not_keep_the_turn_from_partitions_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is up to 100 ms: beside three partitions that trickle, the fourth would wait for 300 and a flush."""

    class Reader:
        topic_id, others = TOPIC_ID, chain((False, False), repeat(True))

        def next_fetch(self, partition: int, position: int, idle_ms: int) -> Any:
            return fetch_of([(b"{}", (), NOON_MS)], partition=partition, first=position)

        def waiting(self) -> int:
            return 1

        def gives_way(self, partition: int) -> bool:
            return next(self.others)

    class Tracker:
        deferred: list[Any] = []  # noqa: RUF012 - of one test

        def try_claim(self, place: int) -> bool:
            return True

        def defer_remainder(self, after: Any) -> None:
            self.deferred.append(after)

    monkeypatch.setattr("pipeline.read.STOP", Stop())  # a pipeline that ran before was asked to end
    monkeypatch.setattr("pipeline.read.reader_of", lambda *_: Reader())
    monkeypatch.setattr("pipeline.read.LONGEST_TURN_S", 3600)
    monkeypatch.setattr("pipeline.read.ROUND_S", 3600)
    turns = ReadPartition((), "usage", lambda *_: 0, lambda *_: 0, no_lane, ALONE)
    assert len(list(turns._fetches(TOPIC_ID, 0, Tracker()))) == 3
    assert Tracker.deferred == [0], "the next turn at once"
