"""What a job that counts again cannot read it names, and goes on; what else goes wrong comes out as it was raised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from clickhouse_driver.errors import ServerException

from pipeline import recount
from pipeline.as_booked import Rebuilding
from pipeline.audit import AuditReport, Span, Unchecked, _Audit
from pipeline.book import Place
from pipeline.booked import BookedChunk
from pipeline.recount import Recounted, Task
from pipeline.replay import LogSource, Wanted
from pipeline.runtime import Database
from tallyman.errors import DamageError, LogError, RebuildError, TallymanError

CONFIG = recount.RecountConfig(
    brokers=("nowhere:9092",), topics=(("t1", "usage.events.v1", 2),),
    database=Database(host="nowhere", port=9000, user="", password="", database="tallyman"),
    control_url="sqlite:////nowhere", source="log", name="recount_1", wanted=Wanted(),
)  # fmt: skip
TASKS = [Task("t1", 0, 8, chunk, Place(8 * chunk), (8 * chunk + 8,)) for chunk in range(3)]
RETENTION = DamageError(0, "retention", 'topic "usage.events.v1", partition 0: retention removed 9 offsets')


class Found:
    """The table of what was found."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def execute(self, sql: str, rows: Any = None) -> list[tuple[Any, ...]]:
        if sql.startswith("INSERT"):
            self.rows += rows
            return []
        return [(len(self.rows),)] if "count()" in sql else sorted(self.rows)

    def disconnect(self) -> None:
        return


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., recount.Found]:
    """Count chunks again, of which the second one fails."""

    def run(error: Exception, config: recount.RecountConfig = CONFIG) -> recount.Found:
        def count(task: Task, *_: object) -> Recounted:
            if task.chunk == 1:
                raise error
            return Recounted(task.topic_id, task.partition, task.chunk, [], 0, 0)

        table = Found()
        for name in ("recount", "recount_as_booked"):
            monkeypatch.setattr(recount, name, count)
        monkeypatch.setattr(recount, "connect", lambda _: table)
        process = SimpleNamespace(client=table, stages={"t1": SimpleNamespace()}, source=lambda _: None,
                                  close=lambda: None)  # fmt: skip
        monkeypatch.setitem(recount._PROCESSES, config, process)
        client: Any = table
        return recount.run_tasks(config, TASKS, lambda done, of: None, client)

    return run


def test_a_chunk_that_retention_took_meanwhile_is_named_and_the_others_are_counted(job: Any) -> None:
    """Hours of an audit were lost in a traceback with the first record that retention took behind its back."""
    found = job(RETENTION)
    assert [each.chunk for each in found.chunks] == [0, 2]
    assert found.unread == {("t1", 0, 1): "retention took records of it from the log meanwhile"}


def test_damaged_bytes_are_named_as_they_are(job: Any) -> None:
    assert job(DamageError(0, "bytes", "near offset 9: got: crc")).unread == {("t1", 0, 1): "near offset 9: got: crc"}


def test_a_rebuild_of_what_cannot_be_read_any_more_is_refused_with_a_sentence(job: Any) -> None:
    rebuilding = replace(CONFIG, rebuilding=Rebuilding(2, ("compute.hours",), 20_000_000))
    with pytest.raises(RebuildError, match=r"partition 0, offsets 8 to 15: retention took .*meanwhile\. Nothing was"):
        job(RETENTION, rebuilding)


@pytest.mark.parametrize("error", [LogError("made anew"), ServerException("DB::Exception: no", 497)])
def test_what_else_goes_wrong_is_raised_as_it_was(error: Exception, job: Any) -> None:
    """Beam adds the name of a step to its text, and loses the code by which a refusal has its sentence."""
    with pytest.raises(type(error)) as raised:
        job(error)
    assert (str(raised.value), getattr(raised.value, "code", None)) == (str(error), getattr(error, "code", None))


def test_an_audit_says_of_which_offsets_nothing_was_proven() -> None:
    audit = _Audit.__new__(_Audit)
    topic: Any = SimpleNamespace(name="usage.events.v1")
    audit._topics, audit._report = {"t1": topic}, AuditReport(source="log")
    places = [Place(8 * number, booking=20_000_000) for number in range(4)]
    chunks = [BookedChunk("t1", 0, 8, n, places[n], places[n + 1], 20_000_000) for n in range(3)]
    audit._report.reach = {("usage.events.v1", 0): 0}
    counted = audit._without_unread(chunks, {("t1", 0, 0): "gone", ("t1", 0, 1): "gone"})
    span, bookings = Span("usage.events.v1", 0, 0, 15), (20_000_000, 20_000_000)
    assert (counted, audit._report.unchecked) == (chunks[2:], [Unchecked(span, bookings, "gone")])
    assert audit._report.reach == {("usage.events.v1", 0): 16}


def test_a_log_that_was_cut_is_damage_of_its_partition_alone() -> None:
    log = LogSource.__new__(LogSource)
    log._topic, log._ends = "usage.events.v1", {}
    ends: Any = lambda partition: (0, 4)  # noqa: E731
    log.reach = ends  # type: ignore[method-assign]
    with pytest.raises(DamageError, match="up to offset 8, but it ends at 4") as raised:
        next(log.read(3, 0, 8))
    assert isinstance(raised.value, TallymanError) and (raised.value.partition, raised.value.reason) == (3, "cut")
