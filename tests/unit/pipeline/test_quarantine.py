"""Which partitions are set aside, and when they are tried again."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pipeline import metrics as counted
from pipeline import quarantine
from pipeline.quarantine import LATEST_AGAIN_S, SOONEST_AGAIN_S, SetAside
from tallyman.errors import DamageError, FencedError, StoreError
from tallyman.topics import ENDED


class Store:
    """What ClickHouse has of partition 3, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset, self.booking, self.repairs, self.now_s = 7, 20_787_001, 0, 0.0
        self.in_sealed: set[int] = set()
        self.furthest = 0  # of what progress has, also what is not a frontier
        self.notes: list[tuple[int, str]] = []
        monkeypatch.setattr(quarantine, "connect", lambda database: self)
        monkeypatch.setattr(quarantine, "read_frontier", self.read_frontier)
        monkeypatch.setattr(counted, "_pulse", counted._Pulse())  # other tests fill it, too
        monkeypatch.setattr(quarantine, "read_repairs", lambda client, topic_id, partition: (None,) * self.repairs)
        monkeypatch.setattr(quarantine, "note_quarantine", self.note_quarantine)
        config = SimpleNamespace(database=None, topic_id="t", chunk_size=8, assigned=(1, 2, 3))
        self.aside = SetAside(config, clock=lambda: self.now_s)

    def execute(self, question: str, values: object) -> list[tuple[int, int]]:
        return [(3, max(self.offset, self.furthest))]

    def disconnect(self) -> None: ...

    def read_frontier(self, client: object, topic_id: str, partition: int, size: int) -> SimpleNamespace:
        place = SimpleNamespace(offset=self.offset, booking=self.booking)
        return SimpleNamespace(topic_id=topic_id, partition=partition, reached=place, repairs=self.repairs,
                               in_sealed=partition in self.in_sealed)  # fmt: skip

    def note_quarantine(self, client: object, topic_id: str, partition: int, place: int, *why: str) -> None:
        self.notes.append((place, why[0]))

    def fails(self, error: Exception) -> bool:
        """Let partition 3 fail; return whether it is set aside."""
        assert isinstance(self.aside.meet(error), StoreError), "its reader starts again"
        return not self.reads()

    def reads(self) -> bool:
        return 3 in self.aside.without([2, 3])

    def reads_at(self, now_s: float) -> bool:
        self.now_s = now_s
        self.aside.look()
        return self.reads()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    yield Store(monkeypatch)
    counted.note_repaired(3)


def ahead(passes_in_s: int) -> DamageError:
    return DamageError(3, "clock", "the record at offset 7 was appended tomorrow", passes_in_s)


def test_a_partition_is_set_aside_when_it_fails_twice_at_one_place(store: Store) -> None:
    cut = DamageError(3, "cut", "the log ends at 5")
    assert not store.fails(cut)
    store.offset = 8  # somebody else booked it on
    assert not store.fails(cut)
    assert store.fails(cut) and store.notes == [(8, "cut")]
    assert store.aside.without([2, 3]) == {2}
    assert not store.reads_at(10 * LATEST_AGAIN_S), "no time brings back what was cut"
    store.repairs = 1
    assert store.reads_at(10 * LATEST_AGAIN_S)
    assert not store.fails(cut), "after a repair it fails twice again"


def test_what_was_appended_in_the_future_is_tried_again_when_its_time_has_come(store: Store) -> None:
    assert not store.fails(ahead(1500)) and store.fails(ahead(1500))
    assert not store.reads_at(1499) and store.reads_at(1500)


@pytest.mark.parametrize("passes_in_s, again_s", [(1, SOONEST_AGAIN_S), (400 * 86_400, LATEST_AGAIN_S)])
def test_neither_every_second_nor_in_a_year(store: Store, passes_in_s: int, again_s: float) -> None:
    store.fails(ahead(passes_in_s))
    store.fails(ahead(passes_in_s))
    assert not store.reads_at(again_s - 1) and store.reads_at(again_s)


def test_a_partition_that_is_only_tried_again_need_not_fail_twice(store: Store) -> None:
    """Each failure costs the worker a start."""
    store.fails(ahead(9000))
    store.fails(ahead(9000))
    for hour in (1, 2):
        assert store.reads_at(hour * LATEST_AGAIN_S)
        assert store.fails(ahead(9000))
    assert store.notes == [(7, "clock")] * 3


def test_a_fence_without_a_decision_sets_its_partition_aside_at_once_and_until_then(store: Store) -> None:
    fenced = FencedError(3, 1, "INSERT INTO ids: a repair fenced the partition since it was read")
    assert store.fails(fenced) and store.notes == [(7, "fenced")]
    assert "run tallyman repair 3 again" in counted.set_aside()
    assert not store.reads_at(10 * LATEST_AGAIN_S)
    store.repairs = 1
    assert store.reads_at(10 * LATEST_AGAIN_S) and counted.set_aside() == ""


def test_behind_a_repair_that_is_decided_a_partition_is_only_read_anew(store: Store) -> None:
    store.repairs = 1
    assert not store.fails(FencedError(3, 1, "INSERT INTO ids: a repair fenced the partition since it was read"))
    assert store.notes == []


def test_a_partition_that_was_set_aside_for_its_clock_and_is_fenced_now_waits_for_a_decision(store: Store) -> None:
    assert not store.fails(ahead(1500)) and store.fails(ahead(1500)) and store.reads_at(1500)
    assert store.fails(FencedError(3, 1, "INSERT INTO ids: a repair fenced the partition since it was read"))
    assert not store.reads_at(10 * LATEST_AGAIN_S)


def test_all_partitions_that_stand_in_what_is_sealed_are_set_aside_at_once(store: Store) -> None:
    """All of a topic that is gone back to do: each by itself would cost the worker two starts."""
    store.in_sealed = {1, 3}
    assert store.fails(DamageError(3, "sealed", "booking 20787001 was sealed"))
    assert store.notes == [(7, "sealed")] * 2 and store.aside.without([1, 2, 3]) == {2}
    store.repairs = 1
    assert store.reads_at(1) and store.aside.without([1, 2, 3]) == {1, 2, 3}


def test_what_is_only_about_to_be_sealed_is_tried_once_more(store: Store) -> None:
    """The database refuses it before the seal is written; who was to write it may be killed."""
    refused = DamageError(3, "sealed", "booking 20787001 was sealed")
    assert not store.fails(refused) and store.fails(refused)


def test_what_is_no_damage_sets_nothing_aside(store: Store) -> None:
    error = RuntimeError("Beam")
    assert store.aside.meet(error) is error and store.reads()


@pytest.mark.parametrize("error", [DamageError(3, "retention", "the log starts at 9"), FencedError(3, 1, "fenced")])
def test_a_partition_that_has_ended_is_no_longer_read_and_nobody_is_called(store: Store, error: Exception) -> None:
    """Nothing of it counts any more, and nobody waits for it."""
    store.booking = ENDED
    store.fails(error)
    assert store.fails(error) and store.notes == [] and counted.ready()[1].find("set aside") < 0
    assert not store.reads_at(10 * LATEST_AGAIN_S)


def test_a_partition_that_another_worker_books_on_is_no_longer_set_aside(store: Store) -> None:
    """Its leader moved, say: who stopped at it can read it, too, and need not say that it cannot."""
    cut = DamageError(3, "cut", "the log ends at 5")
    assert not store.fails(cut) and store.fails(cut) and counted.set_aside()
    store.furthest = 99  # of who was ahead of a gap
    assert not store.reads_at(1) and counted.set_aside()
    store.offset = 8
    assert store.reads_at(2) and counted.set_aside() == ""
    assert not store.fails(cut) and store.fails(cut), "at another place it fails twice again"


def test_when_its_topic_is_over_nobody_says_any_more_that_a_partition_is_set_aside(store: Store) -> None:
    cut = DamageError(3, "cut", "the log ends at 5")
    assert not store.fails(cut) and store.fails(cut)
    store.aside.close()
    assert counted.set_aside() == ""
