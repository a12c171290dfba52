"""The filter may say "perhaps" for a new id, never "new" for an old one; the exact answer is by position."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.identities import EVERYTHING, Accepted, AcceptedIds, IdColumns, IdFilter
from tests.unit.pipeline.events import StoredHere

TOPIC = "Zx3mQ0aQTq6uT6mZo0n2eA"


def some_ids(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed).integers(0, 2**64, (2, count), np.uint64)
    return numbers[0], numbers[1]


def loaded(bits: int) -> IdFilter:
    known = IdFilter(bits)
    known.load(StoredHere(), TOPIC, 0, EVERYTHING)
    return known


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=80))
def test_an_id_that_was_added_is_never_called_new(ids: list[tuple[int, int]]) -> None:
    """Also in a filter so small that ids share bytes, and grow over several layers."""
    known = loaded(64)
    high, low = (np.array(column, np.uint64) for column in zip(*ids, strict=True))
    for first in range(0, len(ids), 7):
        known.add(high[first : first + 7], low[first : first + 7])
    assert known.perhaps(TOPIC, 0, high, low).all()


@pytest.mark.parametrize("count, step", [(50_000, 500), (200_000, 200_000), (1_000_000, 70_000)])
def test_less_than_two_in_a_hundred_new_ids_are_suspected(count: int, step: int) -> None:
    """However many there are, and whether they come in small flushes or in one long stream from the store."""
    known = loaded(1 << 20)  # one layer for 100,000
    high, low = some_ids(count, 1)
    for first in range(0, count, step):
        known.add(high[first : first + step], low[first : first + step])
    assert known.perhaps(TOPIC, 0, high[:5000], low[:5000]).all()
    assert known.perhaps(TOPIC, 0, *some_ids(100_000, 2)).mean() < 0.02


def test_until_it_is_loaded_a_filter_says_perhaps_to_everything() -> None:
    known = loaded(1 << 16)
    assert known.perhaps(TOPIC, 1, *some_ids(10, 1)).all() and not known.perhaps(TOPIC, 0, *some_ids(10, 1)).all()


def test_after_a_partition_was_somebody_elses_a_filter_is_sure_of_nothing_until_it_is_loaded_again() -> None:
    known = loaded(1 << 16)
    known.load(StoredHere(), TOPIC, 1, EVERYTHING)
    known.add(*some_ids(10, 1))
    known.unload(TOPIC, 0)
    assert known.perhaps(TOPIC, 0, *some_ids(10, 2)).all()
    assert not known.perhaps(TOPIC, 1, *some_ids(10, 2)).any()
    assert known.perhaps(TOPIC, 1, *some_ids(10, 1)).all()
    known.load(StoredHere(), TOPIC, 0, EVERYTHING)
    assert not known.perhaps(TOPIC, 0, *some_ids(10, 2)).any()


def test_a_load_that_began_before_the_partition_left_does_not_count() -> None:
    """It cannot have seen what somebody else has accepted since."""
    known = IdFilter(1 << 16)

    class LeavesMeanwhile(StoredHere):
        def stream(self, topic_id: str, partition: int, below: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            known.unload(topic_id, partition)
            yield some_ids(10, 1)

    known.load(LeavesMeanwhile(), TOPIC, 0, EVERYTHING)
    assert known.perhaps(TOPIC, 0, *some_ids(10, 2)).all()


def test_what_was_accepted_before_a_load_began_is_still_known_when_another_partition_came_meanwhile() -> None:
    """It may not be written yet: the load does not find it."""
    known = IdFilter(1 << 16)
    known.expect(TOPIC, 1)
    known.add(*some_ids(10, 1))
    known.expect(TOPIC, 0)
    known.unload(TOPIC, 0)
    known.load(StoredHere(), TOPIC, 1, EVERYTHING)
    assert known.perhaps(TOPIC, 1, *some_ids(10, 1)).all()


def columns(*rows: tuple[int, int, int]) -> IdColumns:
    high, low, offsets = (np.array(column, np.uint64) for column in zip(*rows, strict=True))
    nothing = np.zeros(len(rows), np.int64)
    return IdColumns(high, low, offsets.astype(np.int64), nothing, nothing, nothing.astype(np.uint64),
                     np.ones(len(rows), np.uint32))  # fmt: skip


def test_the_newest_acceptance_of_an_id_is_found() -> None:
    """An id that was forgotten and used again answers for its second use."""
    accepted = AcceptedIds()
    accepted.add(columns((1, 1, 10), (2, 2, 11)))
    accepted.add(columns((1, 1, 30), (1, 9, 31)))
    assert accepted.find([(1, 1), (3, 3)]) == {(1, 1): Accepted(30, 0, 0, 0)}


def test_ids_are_forgotten_below_an_offset_and_only_those() -> None:
    accepted = AcceptedIds()
    accepted.add(columns((1, 1, 10), (2, 2, 11)))
    accepted.add(columns((3, 3, 12)))
    accepted.acknowledge(2)
    accepted.forget_below(12)
    assert list(accepted.find([(1, 1), (3, 3)])) == [(3, 3)] and not accepted.unwritten()
    accepted.add(columns((4, 4, 13)))
    assert len(accepted) == 2 and [int(block.offsets[0]) for block in accepted.unwritten()] == [13]


def test_what_is_acknowledged_is_not_written_again_but_still_found() -> None:
    accepted = AcceptedIds()
    accepted.add(columns((1, 1, 10)))
    accepted.acknowledge(1)
    accepted.add(columns((2, 2, 11)))
    assert [block.offsets.tolist() for block in accepted.unwritten()] == [[11]]
    assert len(accepted.find([(1, 1), (2, 2)])) == 2
    accepted.clear()
    assert not accepted.find([(1, 1)]) and not accepted.unwritten()
