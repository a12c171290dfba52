"""A job on a cluster is judged by what became readable, whatever the cluster says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import follow
from pipeline import metrics as counted
from pipeline.follow import Follower
from tallyman.errors import BrokerError
from tests.unit.pipeline.test_job import CONFIG


class World:
    """A clock, the ends of the log, and what ClickHouse has: both doors that a follower looks through."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ends: dict[int, int] | BrokerError = {0: 0}
        self.reached = {0: (0, 0)}
        self.closed = 0

    def read_ends(self, consumer: Any, topic: str, partitions: Any) -> dict[int, int]:
        if isinstance(self.ends, BrokerError):
            raise self.ends
        return self.ends

    def execute(self, sql: str, values: Any) -> list[tuple[int, int, int]]:
        return [(partition, *place) for partition, place in self.reached.items()]

    def close(self) -> None:
        self.closed += 1

    disconnect = close


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(follow, "make_consumer", lambda brokers: world)
    monkeypatch.setattr(follow, "end_offsets", world.read_ends)
    monkeypatch.setattr(follow, "connect", lambda database: world)
    return world


@pytest.fixture
def follower(world: World) -> Follower:
    return Follower(CONFIG, clock=lambda: world.now)


def look(world: World, follower: Follower, after_s: float, **seen: Any) -> tuple[bool, str]:
    world.now += after_s
    vars(world).update(seen)
    follower.look()
    return follower.ready()


def test_a_partition_that_is_set_aside_is_said_before_one_that_stands_still(world: World, follower: Follower) -> None:
    look(world, follower, 1, ends={0: 9})
    counted.note_quarantine(0, "the log was cut")
    try:
        ready, reason = look(world, follower, 1000)
        assert not ready and reason.startswith("partition 0 is set aside") and reason.endswith("the log was cut")
    finally:
        counted.note_repaired(0)
    assert "nothing was booked for" in look(world, follower, 1)[1]


def test_a_partition_that_stands_still_is_said_by_name(world: World, follower: Follower) -> None:
    """Flink says RUNNING of it, and completes its checkpoints."""
    assert follower.ready() == (False, "nothing is known of the partitions yet")
    assert look(world, follower, 0) == (True, "1 partitions")
    assert look(world, follower, 60, ends={0: 500}) == (True, "1 partitions")
    assert look(world, follower, 10, reached={0: (300, 5)})[0]
    assert look(world, follower, 14)[0]
    is_ready, why = look(world, follower, 2, ends={0: 900})
    assert not is_ready
    assert why.startswith("partition 0: nothing was booked for 16 s; it stands at offset 300 and the log ends at 900")
    assert look(world, follower, 1, reached={0: (310, 5)})[0]


def test_a_partition_without_news_is_well_for_ever(world: World, follower: Follower) -> None:
    look(world, follower, 0, ends={0: 7}, reached={0: (7, 1)})
    for _ in range(10):
        assert look(world, follower, 1000)[0]


def test_silence_is_counted_from_the_last_record_whoever_reads_it(world: World, follower: Follower) -> None:
    assert follower.silent_s(0) == 0
    look(world, follower, 0, ends={0: 7})
    look(world, follower, 20)
    assert follower.silent_s(0) == 20
    look(world, follower, 1, ends={0: 8}, reached={0: (3, 1)})
    assert follower.silent_s(0) == 0


def test_servers_that_do_not_answer_are_said_and_asked_again_afresh(world: World, follower: Follower) -> None:
    look(world, follower, 0)
    with pytest.raises(BrokerError):
        look(world, follower, 20, ends=BrokerError("Kafka does not answer"))
    assert follower.ready() == (False, "Kafka or ClickHouse did not answer for 20 s")
    assert world.closed
    assert look(world, follower, 0, ends={0: 0})[0]
