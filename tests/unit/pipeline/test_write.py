"""The order of writes on which the promises rest, and what happens when one of them is not acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.book import Forward, RawRecord
from pipeline.write import Flush, Progress, Tables, write
from tallyman.errors import StoreError
from tallyman.metrics import REGISTRY
from tests.fetches import NOON_MS
from tests.unit.pipeline.events import Walk, body, new_chunk

ORDER = ["forwards", "ids", "dead_letters", "conflicts", "events", "usage_hot", "progress"]


class Store(Tables):
    """Tables that keep what was inserted, and fail where a test says so."""

    def __init__(self, fails_at: str = "", times: int = 1) -> None:
        self.inserts: list[tuple[str, Any]] = []
        self.fails_at, self.times = fails_at, times

    def _insert(self, sql: str, columns: Sequence[Any]) -> None:
        table = sql.split()[2]
        if table == self.fails_at and self.times:
            self.times -= 1
            raise StoreError(f"ClickHouse did not acknowledge {table}")
        self.inserts.append((table, columns))

    @property
    def tables(self) -> list[str]:
        return [table for table, _ in self.inserts]


class Wire:
    """An outlet that remembers; `log` is shared with whoever wants to see the order."""

    def __init__(self) -> None:
        self.sent: list[Forward] = []
        self.pushes: list[Progress] = []

    def forward(self, forwards: Sequence[Forward]) -> None:
        self.sent += forwards

    def push(self, progress: Progress) -> None:
        self.pushes.append(progress)

    def close(self) -> None:
        return


def full_flush() -> Flush:
    """Return a flush that has something for every table."""
    walk = Walk().send(body(1), body(1, time="2026-10-31T11:00:00Z"), b"{", body(2))
    walk.chunk.forwards.append(Forward(1, b"", body(3), ()))
    walk.chunk.raw.append(RawRecord(0, NOON_MS, walk.chunk.here.booking, (), body(1)))
    return walk.cut()


def wait_never(seconds: float) -> None:
    return


def failed_flushes() -> float:
    found = REGISTRY.get_sample_value("tallyman_pipeline_flush_errors_total")
    return found or 0.0


def test_the_order_of_writes() -> None:
    """Forwards before ids, ids before usage, progress behind everything, and the push last of all."""
    store, wire, seen = Store(), Wire(), []
    for step in full_flush().steps(store, wire):
        assert not wire.pushes
        seen.append(step)
    assert seen == ORDER and store.tables == ORDER[1:] and len(wire.sent) == len(wire.pushes) == 1


@pytest.mark.parametrize("table", ORDER[1:])
def test_progress_is_never_written_before_what_it_covers(table: str) -> None:
    store, wire = Store(table), Wire()
    with pytest.raises(StoreError):
        list(full_flush().steps(store, wire))
    assert "progress" not in store.tables and not wire.pushes


@pytest.mark.parametrize("table", ORDER[1:])
def test_after_a_failure_everything_is_written_again_and_forwards_are_not_sent_twice(table: str) -> None:
    store, wire, flush = Store(table), Wire(), full_flush()
    before = failed_flushes()
    write(flush, store, wire, pause=wait_never)
    assert failed_flushes() == before + 1, "an outage that passes is seen, too"
    assert store.tables == [*ORDER[1 : ORDER.index(table)], *ORDER[1:]]
    assert (len(wire.sent), len(wire.pushes), flush.chunk.acknowledged) == (1, 1, flush.chunk.here)


def test_a_key_stays_dirty_until_its_progress_is_acknowledged() -> None:
    flush = full_flush()
    with pytest.raises(StoreError):
        list(flush.steps(Store("progress"), Wire()))
    chunk = flush.chunk
    assert chunk.table.changed and chunk.accepted.unwritten() and chunk.dead and chunk.conflicts and chunk.raw
    write(flush, Store(), Wire(), pause=wait_never)
    assert not (chunk.table.changed or chunk.accepted.unwritten() or chunk.dead or chunk.conflicts or chunk.raw)


def test_a_store_that_stays_away_ends_the_writing_with_its_error() -> None:
    with pytest.raises(StoreError, match="did not acknowledge ids"):
        write(full_flush(), Store("ids", 10**6), Wire(), patience_s=0, pause=wait_never)


def test_a_flush_without_usage_still_moves_the_progress() -> None:
    walk, store, wire = Walk().send(b"", headers=(("tallyman-tick", b"1"),)), Store(), Wire()
    write(walk.cut(), store, wire)
    assert store.tables == ["progress"] and wire.pushes[0].touched == []


def test_the_next_flush_holds_only_what_changed_with_its_whole_total() -> None:
    """A row replaces itself: it carries the total of its chunk and booking, never a difference."""
    walk, store, wire = Walk().send(body(1), body(2, subject="Łukasz")), Store(), Wire()
    write(walk.cut(), store, wire)
    walk.send(body(3))
    write(walk.cut(), store, wire)
    rows = [columns for table, columns in store.inserts if table == "usage_hot"]
    assert [sorted(zip(columns[1], columns[15], columns[16], strict=True)) for columns in rows] == [
        [("Zoë Åström", 1, 1_500_000), ("Łukasz", 1, 1_500_000)], [("Zoë Åström", 2, 3_000_000)],
    ]  # fmt: skip
    assert [set(columns[11]) for columns in rows] == [{2}, {3}]


def test_a_push_names_who_was_touched_and_when() -> None:
    walk, wire = Walk().send(body(1), body(2, time="2026-10-31T11:30:00Z")), Wire()
    write(walk.cut(), Store(), wire)
    assert wire.pushes[0].touched == [("compute.hours", "Zoë Åström", NOON_MS // 60_000 - 30, NOON_MS // 60_000)]
    assert (wire.pushes[0].covered, wire.pushes[0].place) == (2, walk.chunk.here)


def test_a_push_names_each_tenant_once_whatever_the_order_of_series_and_minutes() -> None:
    events = [body(n, time=f"2026-10-31T11:{minute:02}:00Z", subject=subject, data={"hours": 1, "region": region})
              for n, (subject, region, minute) in enumerate([
                  ("Łukasz", "b", 40), ("Zoë Åström", "a", 20), ("Łukasz", "a", 10), ("Łukasz", "a", 50),
                  ("Zoë Åström", "b", 25), ("Łukasz", "b", 5)])]  # fmt: skip
    walk, wire = Walk().send(*events), Wire()
    write(walk.cut(), Store(), wire)
    touched = [push.touched for push in wire.pushes]
    eleven = NOON_MS // 60_000 - 60
    assert sorted(touched[0] or ()) == [("compute.hours", "Zoë Åström", eleven + 20, eleven + 25),
                                        ("compute.hours", "Łukasz", eleven + 5, eleven + 50)]  # fmt: skip


def test_dead_letters_of_two_bookings_are_two_blocks() -> None:
    """Each within one ClickHouse partition, so that each is written whole or not at all."""
    walk, store = Walk(chunk=new_chunk()).send(b"{").send(b"[", at_ms=NOON_MS + 86_400_000), Store()
    write(walk.cut(), store, Wire())
    blocks = [columns for table, columns in store.inserts if table == "dead_letters"]
    assert [(columns[2], len(set(columns[6]))) for columns in blocks] == [([0], 1), ([1], 1)]


def test_rows_say_what_their_meter_keeps_and_nothing_else() -> None:
    """A sum's row has no minimum; else two flushes of one total could differ."""
    store = Store()
    write(full_flush(), store, Wire())
    (columns,) = (columns for table, columns in store.inserts if table == "usage_hot")
    assert set(columns[17]) == set(columns[18]) == set(columns[19]) == {0} and set(columns[21]) == {bytes(16)}
