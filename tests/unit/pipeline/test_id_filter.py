"""The filter may say "perhaps" for a new id, never "new" for an old one, and takes no more memory than it may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.id_filter import IdFilter, _Layer
from pipeline.identities import EVERYTHING, HASHES, Portion
from tallyman.config import PipelineConfig
from tallyman.errors import StoreError
from tests.unit.pipeline.events import StoredHere

TOPIC = "Zx3mQ0aQTq6uT6mZo0n2eA"


def some_ids(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed).integers(0, 2**64, (2, count), np.uint64)
    return numbers[0], numbers[1]


def loaded(bits: int, limit_bytes: int = 1 << 40) -> IdFilter:
    known = IdFilter(bits, limit_bytes)
    known.load(StoredHere(), TOPIC, {0: EVERYTHING})
    return known


class InPortions(StoredHere):
    """A store of identities, told in the order of their hashes, a hundred at a time.

    Attributes:
        told: How many were, so far.
    """

    def __init__(self, high: np.ndarray, low: np.ndarray) -> None:
        super().__init__()
        order = np.argsort(high)
        self._high, self._low = high[order], low[order]
        self.told = 0

    def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
        for first in range(int(np.searchsorted(self._high, np.uint64(start))), len(self._high), 100):
            high, low = self._high[first : first + 100], self._low[first : first + 100]
            self.told += len(high)
            yield Portion(int(high[-1]) + 1 if first + 100 < len(self._high) else HASHES, high, low)


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


def test_while_there_is_room_three_new_ids_of_a_hundred_thousand_are_suspected() -> None:
    """Each holds up its block for a look-up. Two full layers, by the formula 0.6 each."""
    known = loaded(1 << 22)
    known.add(*some_ids(3 * (1 << 22) // 32, 1))
    assert known.perhaps(TOPIC, 0, *some_ids(1_000_000, 2)).sum() < 30


@pytest.mark.parametrize("limit", [2_000, 500, 130, 40, 0])
@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 3000), own=st.integers(0, 300), seed=st.integers(0, 2**32))
def test_a_filter_that_is_full_covers_less_and_calls_no_id_new_that_was_added(
    limit: int, count: int, own: int, seed: int
) -> None:
    """Loaded ones, those that came meanwhile, and those that come behind: at a hundredth of the room that they need."""
    known, stored, mine = IdFilter(512, limit), some_ids(count, seed), some_ids(own, seed + 1)
    store = InPortions(*stored)
    known.add(mine[0][: own // 2], mine[1][: own // 2])
    for end in known._take_in(store, TOPIC, {0: EVERYTHING}, 0):
        known._loaded[TOPIC, 0] = end
        assert known.perhaps(TOPIC, 0, *stored).all()
    known.add(mine[0][own // 2 :], mine[1][own // 2 :])
    for high, low in (stored, mine):
        assert known.perhaps(TOPIC, 0, high, low).all()
    assert known.size <= max(limit, 8)


@pytest.mark.parametrize("bits_each, most", [(21, 0.002), (14, 0.02), (10.5, 0.05), (8.4, 0.12)])
def test_a_filter_without_room_for_another_layer_gets_denser_before_it_covers_less(
    bits_each: float, most: float
) -> None:
    """With half the room that they should have, one new id in twenty is looked up, not every second one."""
    known = loaded(1 << 18, 1 << 18)  # three layers, seven eighths of the limit
    ids = some_ids(int(7 * (1 << 18) / bits_each), 1)
    for first in range(0, len(ids[0]), 20_000):
        known.add(ids[0][first : first + 20_000], ids[1][first : first + 20_000])
    assert known.covered == 1 and known.perhaps(TOPIC, 0, *ids).all()
    assert known.perhaps(TOPIC, 0, *some_ids(100_000, 2)).mean() < most


def test_a_filter_that_is_as_dense_as_it_may_be_covers_less_and_no_more_is_read_of_the_store() -> None:
    """Eight times the ids that fit: a quarter is covered, since layers double, and little more is loaded."""
    high, low = some_ids(800_000, 1)
    store, known = InPortions(high, low), IdFilter(1 << 20, 1 << 18)  # room for 100,000
    known.load(store, TOPIC, {0: EVERYTHING})
    assert known.covered == 1 / 4
    new = some_ids(100_000, 2)
    assert 0.75 < known.perhaps(TOPIC, 0, *new).mean() < 0.8
    covered = new[0] < np.uint64(HASHES // 4)
    assert known.perhaps(TOPIC, 0, new[0][covered], new[1][covered]).mean() < 0.12
    assert store.told < 0.3 * 800_000
    assert known.perhaps(TOPIC, 0, high, low).all()


@pytest.mark.parametrize("limit_mib, begins_with_mib", [(32, 32), (63, 32), (64, 64), (1024, 64)])
def test_a_filter_takes_no_more_than_it_may_from_the_start(limit_mib: int, begins_with_mib: int) -> None:
    """32 MiB is the least that may be set: on Flink each partition has a filter of its own."""
    limit_bytes = PipelineConfig(id_filter_bytes=limit_mib << 20).id_filter_bytes
    assert IdFilter(limit_bytes=limit_bytes).size == begins_with_mib << 20


def test_what_is_loaded_is_of_use_before_all_is() -> None:
    store, known = InPortions(*some_ids(1000, 1)), IdFilter(1 << 16)
    shares = list[float]()

    class Watched(InPortions):
        def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
            for portion in store.stream(topic_id, below, start):
                shares.append(float(known.perhaps(TOPIC, 0, *some_ids(2000, 2)).mean()))
                yield portion

    known.load(Watched(*some_ids(0, 1)), TOPIC, {0: EVERYTHING})
    assert shares[0] == 1 and shares == sorted(shares, reverse=True) and 0.05 < shares[-1] < 0.15
    assert known.perhaps(TOPIC, 0, *some_ids(2000, 2)).mean() < 0.01


class BreaksOff(InPortions):
    """A store that is away now and then."""

    def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
        for number, portion in enumerate(super().stream(topic_id, below, start)):
            if number == 3:
                raise StoreError("ClickHouse is away")
            yield portion


@pytest.mark.parametrize("before", [(), (("earlier", 1),)])
def test_a_load_that_breaks_off_goes_on_where_it_was(before: tuple[tuple[str, int], ...]) -> None:
    """Else what is read again would take room as often as ClickHouse is away."""
    ids = some_ids(1000, 1)
    store, known = BreaksOff(*ids), IdFilter(1 << 16)
    failures = 0
    while failures < 20:
        try:
            known.load(store, TOPIC, {0: EVERYTHING}, before)
            break
        except StoreError:
            failures += 1
    assert 3 <= failures <= 8 and known.perhaps(TOPIC, 0, *ids).all()
    assert store.told <= (1 + len(before)) * 1000 + failures * 100
    assert not known.perhaps(TOPIC, 0, *some_ids(300, 2)).any()


def test_what_earlier_topics_accepted_is_read_again_after_all_was_let_go() -> None:
    ids, known = some_ids(500, 1), IdFilter(1 << 16)

    class Earlier(InPortions):
        def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
            if topic_id == TOPIC:
                return iter([Portion(HASHES, *some_ids(0, 1))])
            return super().stream(topic_id, below, start)

    for _ in range(2):
        known.load(Earlier(*ids), TOPIC, {0: EVERYTHING}, [("earlier", 1)])
        assert known.perhaps(TOPIC, 0, *ids).all() and not known.perhaps(TOPIC, 0, *some_ids(500, 2)).any()
        known.unload(TOPIC, 0)


def test_a_partition_that_opens_again_is_sure_of_nothing_until_it_is_loaded_again() -> None:
    """Somebody else may have booked it up to now."""
    known = loaded(1 << 16)
    known.expect(TOPIC, 0)
    assert known.perhaps(TOPIC, 0, *some_ids(10, 1)).all()


def test_a_filter_that_was_let_go_covers_everything_again() -> None:
    known = loaded(1 << 10, 256)
    known.add(*some_ids(1000, 1))
    assert known.covered < 1
    known.unload(TOPIC, 0)
    known.load(StoredHere(), TOPIC, {0: EVERYTHING})
    assert known.covered == 1 and not known.perhaps(TOPIC, 0, *some_ids(40, 1)).any()


def test_a_filter_may_be_closed_in_the_middle_of_an_addition(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the garbage collector, which ends a turn that a runner has given up, in whatever thread it runs."""
    known = loaded(64)

    def in_between(self: _Layer, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known.close()
        return high, low

    monkeypatch.setattr(_Layer, "add", in_between)
    known.add(*some_ids(10, 1))
    assert known.size == 0 and known.perhaps(TOPIC, 0, *some_ids(10, 1)).all()


def test_until_it_is_loaded_a_filter_says_perhaps_to_everything() -> None:
    known = loaded(1 << 16)
    assert known.perhaps(TOPIC, 1, *some_ids(10, 1)).all() and not known.perhaps(TOPIC, 0, *some_ids(10, 1)).all()


def test_after_a_partition_was_somebody_elses_a_filter_is_sure_of_nothing_until_it_is_loaded_again() -> None:
    known = loaded(1 << 16)
    known.load(StoredHere(), TOPIC, {1: EVERYTHING})
    known.add(*some_ids(10, 1))
    known.unload(TOPIC, 0)
    assert known.perhaps(TOPIC, 0, *some_ids(10, 2)).all()
    assert not known.perhaps(TOPIC, 1, *some_ids(10, 2)).any()
    assert known.perhaps(TOPIC, 1, *some_ids(10, 1)).all()
    known.load(StoredHere(), TOPIC, {0: EVERYTHING})
    assert not known.perhaps(TOPIC, 0, *some_ids(10, 2)).any()


def test_a_load_that_began_before_the_partition_left_does_not_count() -> None:
    """It cannot have seen what somebody else has accepted since."""
    known = IdFilter(1 << 16)

    class LeavesMeanwhile(StoredHere):
        def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
            known.unload(topic_id, *below)
            yield Portion(HASHES, *some_ids(10, 1))

    known.load(LeavesMeanwhile(), TOPIC, {0: EVERYTHING})
    assert known.perhaps(TOPIC, 0, *some_ids(10, 2)).all()


def test_what_was_accepted_before_a_load_began_is_still_known_when_another_partition_came_meanwhile() -> None:
    """It may not be written yet: the load does not find it."""
    known = IdFilter(1 << 16)
    known.expect(TOPIC, 1)
    known.add(*some_ids(10, 1))
    known.expect(TOPIC, 0)
    known.unload(TOPIC, 0)
    known.load(StoredHere(), TOPIC, {1: EVERYTHING})
    assert known.perhaps(TOPIC, 1, *some_ids(10, 1)).all()


def test_partitions_that_wait_are_loaded_in_one_reading_and_no_more_is_read_of_one_that_leaves_meanwhile() -> None:
    """The store goes through the ids of all partitions to find those of one. A worker that waits for its share in vain
    begins with all partitions, and would else be filled with the ids of all.
    """
    known, asked = IdFilter(1 << 16), list[tuple[dict[int, int], int]]()

    class OneLeaves(StoredHere):
        def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
            asked.append((dict(below), start))
            for end, seed in ((HASHES // 4, 1), (HASHES // 2, 3), (HASHES, 4)):
                if end > start:
                    if end == HASHES // 2:
                        known.unload(topic_id, 1)
                    yield Portion(end, *some_ids(10, seed))

    known.load(OneLeaves(), TOPIC, {0: 7, 1: EVERYTHING, 2: 9})
    assert asked == [({0: 7, 1: EVERYTHING, 2: 9}, 0), ({0: 7, 2: 9}, HASHES // 2)]
    assert [known.perhaps(TOPIC, number, *some_ids(10, 2)).any() for number in range(3)] == [False, True, False]
    assert all(known.perhaps(TOPIC, number, *some_ids(10, seed)).all() for number in range(3) for seed in (1, 3, 4))


def test_partitions_that_come_and_go_for_weeks_take_room_once() -> None:
    """Else the filter of a worker that is never restarted would be full one day, of what it holds many times."""
    known, ids = IdFilter(1 << 16, 1 << 14), some_ids(3000, 1)  # one layer and a half
    known.load(StoredHere(), TOPIC, {1: EVERYTHING})
    sizes = set()
    for _ in range(50):
        known.expect(TOPIC, 0)
        known.load(InPortions(*ids), TOPIC, {0: EVERYTHING})
        sizes.add(known.size)
        assert known.perhaps(TOPIC, 0, *ids).all() and not known.perhaps(TOPIC, 0, *some_ids(1000, 2)).any()
        known.unload(TOPIC, 0)
    assert len(sizes) == 1
