"""When the pipeline calls itself ready: a probe must see a broker that is away, though polling it raises nothing."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from pipeline import fold as folding
from pipeline import metrics
from pipeline.batches import Fetch
from pipeline.book import OpenChunks, Place
from pipeline.runtime import release
from tallyman.metrics import REGISTRY
from tests.fetches import fetch_of
from tests.unit.pipeline.events import Walk, body
from tests.unit.pipeline.test_job import CONFIG


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


def test_late_records_that_wait_for_minutes_say_so(clock: Clock) -> None:
    """They are safe for days, so a broker that restarts is none; a group that may not be read is."""
    metrics.note_nothing_to_read()
    assert not metrics.note_late_waits("usage.v1", "GroupAuthorizationFailedError: tallyman.late.usage.v1")
    assert metrics.ready() == (True, "0 partitions")
    clock.now += 121
    metrics.note_nothing_to_read()
    assert metrics.note_late_waits("usage.v1", "GroupAuthorizationFailedError: tallyman.late.usage.v1")
    ready, why = metrics.ready()
    assert not ready
    assert why == (
        "what comes late to topic usage.v1 was not copied for 121 s, and retention will take it: "
        "GroupAuthorizationFailedError: tallyman.late.usage.v1"
    )
    metrics.note_late_copied("usage.v1")
    assert metrics.ready() == (True, "0 partitions")
    metrics.note_late_unreadable("usage.v1", 3, "bytes")
    assert "topic usage.v1, partition 3, is not copied" in metrics.ready()[1]
    metrics.forget_late("usage.v1")
    assert metrics.ready() == (True, "0 partitions")


def test_chunks_that_are_opened_meanwhile_are_no_reason_not_to_be_ready(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe asks in a thread of its own."""
    chunks = OpenChunks()

    class Chunk:
        @property
        def unwritten(self) -> bool:
            chunks["t", len(chunks)] = self  # type: ignore[assignment]
            return False

    chunks["t", 0] = Chunk()  # type: ignore[assignment]
    monkeypatch.setattr(metrics, "OPEN", chunks)
    metrics.note_nothing_to_read()
    assert metrics.ready() == (True, "2 partitions")


def test_what_comes_to_a_quiet_partition_waits_since_it_came(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tick, while it was written, had the worker say that nothing was acknowledged for half a minute."""
    monkeypatch.setattr(folding, "time", clock)
    walk = Walk().send(body(1))
    walk.flush()
    chunk = walk.chunk
    chunk.flushed_at = clock.now
    monkeypatch.setattr(metrics, "OPEN", {(chunk.topic_id, chunk.partition): chunk})
    clock.now += 30
    walk.send(body(2))
    metrics.note_nothing_to_read()
    assert chunk.unwritten
    assert metrics.ready() == (True, "1 partitions")
    clock.now += 10
    walk.send(body(3))
    clock.now += 6
    metrics.note_nothing_to_read()
    assert metrics.ready() == (False, f"partition {chunk.partition}: nothing was acknowledged for 16 s")


def test_a_tick_that_came_back_is_forgotten(clock: Clock) -> None:
    metrics.note_tick(3)
    metrics.note_fetch(fetch(records=1))
    clock.now += 60
    metrics.note_fetch(fetch(records=0))
    assert metrics.ready() == (True, "0 partitions")


def test_nothing_is_said_of_what_became_another_workers_while_this_one_had_failed(clock: Clock) -> None:
    """No chunk is open then. Its log clock would stand still for ever, and its tick never come back."""
    metrics.note_fetch(fetch(records=1))
    metrics.note_booked(3, Place(5, 1_793_575_212_345))
    metrics.note_end(3, 9)
    metrics.note_booked(2, Place(7, 1_793_575_212_345))
    metrics.note_tick(3)
    release(CONFIG, {2})
    clock.now += 31
    metrics.note_nothing_to_read()
    assert metrics.ready() == (True, "0 partitions")
    shown = generate_latest(REGISTRY).decode()
    for name in ("offset", "log_clock_seconds", "lag_records"):
        assert f'tallyman_pipeline_{name}{{partition="3"}}' not in shown
    assert 'tallyman_pipeline_offset{partition="2"} 7.0' in shown


def fetch(records: int) -> Fetch:
    return fetch_of([(b"", (("tallyman-tick", b"1"),), 1_793_575_212_345)] * records, partition=3)
