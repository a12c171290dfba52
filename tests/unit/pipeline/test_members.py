"""A worker reads its share; what it gives away it finishes, so that nobody waits for who takes over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pipeline import members
from pipeline.aggregate import EVERYTHING, Table
from pipeline.book import OPEN, OpenChunk, Place
from pipeline.identities import AcceptedIds
from pipeline.members import PATIENCE_S, Alone, EvenShare, Members, Share
from pipeline.runtime import Database, JobConfig

EVENTS = "usage.events.v1"
TOPIC = "Zx3mQ0aQTq6uT6mZo0n2eA"
DATABASE = Database(host="localhost", port=9000, user="default", password="", database="x")
CONFIG = JobConfig(
    brokers=("localhost:9092",), topic="usage.events.v1", topic_id=TOPIC, partitions=4, assigned=(0, 1, 2, 3),
    chunk_size=8, progress_topic="usage.progress.v1", database=DATABASE, control_url="",
)  # fmt: skip
ALL = frozenset({0, 1, 2, 3})


class ToldGroup:
    """A group that says what the test tells it."""

    def __init__(self) -> None:
        self.told: frozenset[int] | None = None

    def mine(self) -> frozenset[int] | None:
        return self.told

    def close(self) -> None:
        self.told = None


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def group() -> ToldGroup:
    return ToldGroup()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def share(group: ToldGroup, clock: Clock) -> Iterator[Share]:
    yield Share(group, CONFIG, clock)
    OPEN.clear()


def open_chunk(partition: int, *, begun: int, reached: int, spent_s: float) -> None:
    start, here = Place(begun), Place(reached)
    OPEN[TOPIC, partition] = OpenChunk(
        TOPIC, partition, 8, 0, here, start, 0, Table(EVERYTHING), AcceptedIds(), spent_s=spent_s
    )


def test_a_start_waits_a_moment_for_the_group(share: Share, group: ToldGroup) -> None:
    assert share.look() == frozenset()
    group.told = frozenset({1, 3})
    assert share.look() == share.reads() == {1, 3}


def test_a_group_that_does_not_answer_stops_nobody(share: Share, group: ToldGroup, clock: Clock) -> None:
    """All partitions are read then: twice is harmless, and not at all is not."""
    assert share.look() == frozenset()
    clock.now += PATIENCE_S + 0.1
    assert share.look() == ALL
    open_chunk(0, begun=0, reached=5, spent_s=9)
    group.told = frozenset({1})
    assert share.look() == {1}  # the others were never this worker's: somebody else reads them already


def test_what_is_given_away_is_read_on_until_the_other_has_caught_up(
    share: Share, group: ToldGroup, clock: Clock
) -> None:
    group.told = ALL
    share.look()
    open_chunk(2, begun=0, reached=5, spent_s=20)
    group.told = frozenset({0, 1})
    assert share.look() == {0, 1, 2}  # of partition 3 nothing would have to be read again
    clock.now += 42.9
    assert share.look() == {0, 1, 2}
    clock.now += 0.2
    assert share.look() == {0, 1}


def test_what_comes_back_in_time_never_left(share: Share, group: ToldGroup, clock: Clock) -> None:
    group.told = ALL
    share.look()
    open_chunk(2, begun=0, reached=5, spent_s=20)
    group.told = frozenset({0})
    share.look()
    group.told = frozenset({0, 2})
    assert share.look() == {0, 2}
    clock.now += 100
    assert share.look() == {0, 2}


def test_a_worker_without_partitions_reads_none(share: Share, group: ToldGroup, clock: Clock) -> None:
    """There are more workers than partitions."""
    group.told = frozenset()
    assert share.look() == frozenset()
    clock.now += 10
    assert share.look() == frozenset()


def test_an_operator_who_names_partitions_is_obeyed() -> None:
    share = Share(Alone((3, 1)), CONFIG)
    assert share.look() == {1, 3}


class Nothing:
    """What a client knows of a cluster whose topic has just been made."""

    def topics(self) -> set[str]:
        return set()

    def partitions_for_topic(self, topic: str) -> None:
        return None


def test_partitions_are_shared_also_while_the_client_does_not_know_the_topic_yet() -> None:
    """Else no worker would read anything until metadata are five minutes old."""
    share = EvenShare(EVENTS, 4)
    members = [SimpleNamespace(member_id=name, metadata=share.metadata([EVENTS])) for name in ("ada", "zoë")]
    given = share.assign(Nothing(), members)
    shares = [set(numbers) for each in given.values() for _, numbers in each.assigned_partitions]
    assert sorted(map(len, shares)) == [2, 2]
    assert shares[0] | shares[1] == ALL


def test_a_member_joins_again_whatever_its_client_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """kafka-python's network layer knows more errors than Kafka's, and closing it may raise them, too."""
    joined: list[Members] = []
    monkeypatch.setattr(members, "_REST_S", 0.01)

    class Consumer:
        def subscribe(self, topics: list[str], listener: Members) -> None:
            joined.append(listener)

        def poll(self, timeout_ms: int) -> None:
            if len(joined) == 1:
                raise RuntimeError("the selector is closed")
            joined[-1].on_partitions_assigned([])

        def close(self, autocommit: bool) -> None:
            raise ValueError("invalid file descriptor")

    monkeypatch.setattr(members, "make_consumer", lambda *_, **__: Consumer())
    group = Members(("localhost:9092",), EVENTS, 4)
    deadline = time.monotonic() + 10
    while group.mine() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert group.mine() == frozenset()
    group.close()
    assert len(joined) == 2
