"""One flush takes all open chunks along: none of them may lose a row, and none may be acknowledged too early."""

from __future__ import annotations

from typing import Any, cast

import clickhouse_driver
import pytest

from pipeline import metrics as counted
from pipeline.book import OPEN, Place
from pipeline.fold import due
from pipeline.write import Flush, Tables
from tallyman.errors import StoreError
from tallyman.metrics import REGISTRY
from tests.unit.pipeline.events import Walk, body
from tests.unit.pipeline.test_write import Store, Wire, wait_never, write


def two_walks() -> tuple[Walk, Walk]:
    """Return two partitions' chunks with one event and two, nothing of either acknowledged."""
    first, second = Walk().send(body(1)), Walk().send(body(2), body(3))
    second.chunk.partition = 1
    return first, second


def joint(first: Walk, second: Walk) -> Flush:
    return Flush(first.chunk, first.cut().catalog, ((second.chunk, second.cut().catalog),))


def test_rows_ids_and_progress_of_every_chunk_are_written_in_one_insert_each() -> None:
    first, second = two_walks()
    first.chunk.caught_up = second.chunk.caught_up = True
    store, wire = Store(), Wire()
    write(joint(first, second), store, wire, pause=wait_never)
    assert store.tables == ["ids", "usage_hot", "progress"]
    inserts = dict(store.inserts)
    assert list(inserts["ids"][3]) == [0, 1, 1]  # partitions
    assert sorted(set(inserts["usage_hot"][7])) == [0, 1] and sum(inserts["usage_hot"][15]) == 3
    assert inserts["progress"][1] == [0, 1] and inserts["progress"][5] == [1, 2]  # partition, reached offset
    assert [push.partition for push in wire.pushes] == [0, 1]
    assert not first.chunk.unwritten and not second.chunk.unwritten
    assert not first.chunk.caught_up and not second.chunk.caught_up, "that has to be seen again for the next flush"


def test_metrics_tell_how_far_every_chunk_of_a_joint_flush_is_booked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a partition whose own flush is never the one that is due."""
    monkeypatch.setattr(counted, "_pulse", counted._Pulse(ends={0: 7, 1: 45}))
    first, second = two_walks()
    counted.note_flush(joint(first, second), 0.1)
    assert [shown("offset", partition) for partition in (0, 1)] == [1, 2]
    assert [shown("lag_records", partition) for partition in (0, 1)] == [6, 43]
    assert shown("log_clock_seconds", 1) == second.chunk.here.clock_ms / 1000
    counted.note_booked(1, Place(40, 1000, 2, 1))
    counted.note_flush(joint(first, second), 0.1)
    assert shown("offset", 1) == 40, "it is read again after a restart, and was booked so far before"
    counted.note_end(1, 50)
    assert shown("lag_records", 1) == 10
    counted.forget(1)
    assert shown("lag_records", 1) is None


def shown(name: str, partition: int) -> float | None:
    return REGISTRY.get_sample_value(f"tallyman_pipeline_{name}", {"partition": str(partition)})


@pytest.mark.parametrize("table", ["ids", "usage_hot", "progress"])
def test_a_failed_joint_flush_leaves_every_chunk_to_be_written_again(table: str) -> None:
    first, second = two_walks()
    store, flush = Store(table), joint(first, second)
    with pytest.raises(StoreError):
        list(flush.steps(store, Wire()))
    assert first.chunk.unwritten and second.chunk.unwritten
    store.inserts.clear()
    write(flush, store, Wire(), pause=wait_never)
    inserts = dict(store.inserts)
    assert list(inserts["ids"][3]) == [0, 1, 1] and sum(inserts["usage_hot"][15]) == 3
    assert inserts["progress"][1] == [0, 1]


def test_chunks_of_different_bookings_share_no_block_of_usage_and_the_oldest_comes_first() -> None:
    """A block lies in one ClickHouse partition, else it is not one cut of the log."""
    first, second = two_walks()
    tomorrow = Walk().send(body(4), at_ms=first.chunk.here.clock_ms + 86_400_000)
    store = Store()
    write(joint(tomorrow, second), store, Wire(), pause=wait_never)
    blocks = [columns[4] for table, columns in store.inserts if table == "usage_hot"]
    assert [set(block) for block in blocks] == [{second.chunk.here.booking}, {tomorrow.chunk.here.booking}]
    assert second.chunk.here.booking < tomorrow.chunk.here.booking


def test_a_due_flush_takes_what_the_other_open_chunks_have(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_walks()
    idle = Walk().send(body(5)).flush()
    for walk, partition in ((first, 0), (second, 1), (idle, 2)):
        monkeypatch.setitem(OPEN, (walk.chunk.topic_id, partition), walk.chunk)
    [flush] = due(first.chunk, first.decoders, 0)
    assert [chunk for chunk, _ in flush.others] == [second.chunk]


class Client:
    """Stands for ClickHouse: takes everything."""

    def execute(self, sql: str, columns: Any, *, columnar: bool) -> None:
        assert columnar and sql.startswith("INSERT INTO")

    def disconnect(self) -> None:
        return


def test_rows_are_counted_by_table_when_they_are_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(table: str) -> float:
        return REGISTRY.get_sample_value("tallyman_pipeline_rows_total", {"table": table}) or 0

    before = {table: rows(table) for table in ("ids", "usage_hot", "progress")}
    client = cast("clickhouse_driver.Client", Client())
    write(joint(*two_walks()), Tables(client, client), Wire(), pause=wait_never)
    assert {table: rows(table) - count for table, count in before.items()} == {"ids": 3, "usage_hot": 2, "progress": 2}
