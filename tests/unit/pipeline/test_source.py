"""How much waits in the memory of a reader that is behind."""

from __future__ import annotations

from typing import Any, cast

from pipeline.source import ALL_FULL_BYTES, FULL_BYTES, UsageReader, _Queue


def reader(*sizes: int) -> UsageReader:
    made = UsageReader("topic", lambda: cast("Any", None))
    for partition, size in enumerate(sizes):
        queue = made._queues[partition] = _Queue()
        queue.size = size
    return made


def test_nothing_more_is_fetched_for_a_partition_of_which_enough_waits() -> None:
    assert reader(0, FULL_BYTES - 1, FULL_BYTES)._full() == [2]


def test_of_a_hundred_partitions_that_are_behind_no_more_waits_than_fits() -> None:
    """Only what waits for nothing is fetched then, so that no partition starves."""
    each = ALL_FULL_BYTES // 100 + 1
    assert each < FULL_BYTES
    assert reader(0, *[each] * 100, 0)._full() == list(range(1, 101))
