"""When the pipeline calls itself ready: a probe must see a broker that is away, though polling it raises nothing."""

from __future__ import annotations

import pytest

from pipeline import metrics
from pipeline.batches import Fetch
from tests.fetches import fetch_of


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    monkeypatch.setattr(metrics, "_pulse", metrics._Pulse(started=clock.now))
    monkeypatch.setattr(metrics, "OPEN", {})
    return clock


def test_a_tick_that_does_not_come_back_says_that_kafka_is_away(clock: Clock) -> None:
    metrics.note_fetch(fetch(records=0))
    metrics.note_tick(3)
    assert metrics.ready() == (True, "0 partitions")
    clock.now += 31
    metrics.note_tick(3)  # tried again; the first one is still away
    metrics.note_fetch(fetch(records=0))
    assert metrics.ready() == (False, "partition 3: the tick sent 31 s ago did not come back; is Kafka away?")


def test_a_tick_that_came_back_is_forgotten(clock: Clock) -> None:
    metrics.note_tick(3)
    metrics.note_fetch(fetch(records=1))
    clock.now += 60
    metrics.note_fetch(fetch(records=0))
    assert metrics.ready() == (True, "0 partitions")


def fetch(records: int) -> Fetch:
    return fetch_of([(b"", (("tallyman-tick", b"1"),), 1_793_575_212_345)] * records, partition=3)
