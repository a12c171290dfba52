"""The filter of ids is loaded behind a worker's back: by one thread, for all partitions that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from pipeline import id_loads
from pipeline.book import OPEN
from pipeline.dedupe import Judge
from pipeline.id_filter import IdFilter
from pipeline.id_loads import IdLoads
from pipeline.identities import HASHES, Portion
from pipeline.runtime import Runtime
from pipeline.write import Tables
from tallyman.errors import StoreError
from tests.fetches import TOPIC_ID
from tests.unit.pipeline.events import StoredHere, new_chunk, new_decoders
from tests.unit.pipeline.test_id_filter import some_ids
from tests.unit.pipeline.test_job import CONFIG
from tests.unit.pipeline.test_write import Wire

PATIENCE_S = 30


class Slow:
    """A table of ids that is told when the test says so."""

    def __init__(self) -> None:
        self.asked: list[dict[int, int]] = []
        self.failures = self.told = 0
        self.portions = 1
        self.may_tell, self.was_asked = threading.Semaphore(0), threading.Semaphore(0)

    def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
        self.asked.append(dict(below))
        self.was_asked.release()
        assert self.may_tell.acquire(timeout=PATIENCE_S)
        if self.failures:
            self.failures -= 1
            raise StoreError("ClickHouse is away")
        for number in range(self.portions):
            self.told += 1
            yield Portion(HASHES * (number + 1) // self.portions, *some_ids(10, 1))


class Nobody:
    def disconnect(self) -> None:
        return


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    table = Slow()
    monkeypatch.setattr(id_loads, "connect", lambda *_, **__: Nobody())
    monkeypatch.setattr(id_loads, "StoredIds", lambda _: table)
    monkeypatch.setattr(id_loads, "_LOAD_AGAIN_S", 0)
    yield table
    OPEN.clear()


def opened(loads: IdLoads, partition: int) -> None:
    chunk = OPEN[TOPIC_ID, partition] = new_chunk(partition=partition)
    loads.ask(chunk, loads._filter.expect(TOPIC_ID, partition))


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "ids":
            thread.join(PATIENCE_S)


def sure(known: IdFilter, partition: int) -> bool:
    return not known.perhaps(TOPIC_ID, partition, *some_ids(10, 2)).any()


def test_partitions_that_are_opened_during_a_load_share_the_next_one(table: Slow) -> None:
    """A worker that takes a thousand partitions asks twice, not a thousand times at once."""
    known = IdFilter(1 << 16)
    loads = IdLoads(CONFIG, known)
    opened(loads, 0)
    assert table.was_asked.acquire(timeout=PATIENCE_S)
    for partition in range(1, 1000):
        opened(loads, partition)
    assert sum(thread.name == "ids" for thread in threading.enumerate()) == 1
    table.may_tell.release(2)
    wait_for_threads()
    assert [sorted(each) for each in table.asked] == [[0], list(range(1, 1000))]
    assert all(sure(known, partition) for partition in range(1000))


def test_a_load_is_tried_again_while_clickhouse_is_away_for_what_is_still_open(table: Slow) -> None:
    known = IdFilter(1 << 16)
    loads, table.failures = IdLoads(CONFIG, known), 2
    opened(loads, 0)
    opened(loads, 1)
    assert table.was_asked.acquire(timeout=PATIENCE_S)
    table.may_tell.release()
    wait_until(lambda: len(table.asked) > 1)
    del OPEN[TOPIC_ID, 1]
    table.may_tell.release(4)
    wait_for_threads()
    assert table.asked[-1] == {0: 0} and sure(known, 0) and not sure(known, 1)


def test_a_load_that_fails_in_an_unforeseen_way_is_tried_again(table: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its partitions would ask ClickHouse for every id until the next start."""
    known, answers = IdFilter(1 << 16), iter([ZeroDivisionError("?"), table])

    def stored(_: Any) -> Slow:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(id_loads, "StoredIds", stored)
    table.may_tell.release()
    opened(IdLoads(CONFIG, known), 0)
    wait_for_threads()
    assert sure(known, 0)


def test_a_load_ends_with_the_runtime_that_asked_for_it(table: Slow) -> None:
    """A worker that starts again and again would else read all ids as often at once, each time into a filter of its
    own.
    """
    known = IdFilter(1 << 16)
    stages = Runtime(CONFIG, Tables(Nobody(), Nobody()), Judge(StoredHere(), known), new_decoders(), Wire())
    opened(stages._loads, 0)
    assert table.was_asked.acquire(timeout=PATIENCE_S)
    stages.close()
    table.portions = 1_000
    table.may_tell.release()
    wait_for_threads()
    assert table.told == 1 and known.size == 0
    assert known.perhaps(TOPIC_ID, 0, *some_ids(10, 2)).all()


def test_a_load_that_begins_when_the_partition_has_left_and_is_back_does_not_count(
    table: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops where the first stay began: what another worker accepted meanwhile would pass for new."""
    known = IdFilter(1 << 16)
    loads, connects = IdLoads(CONFIG, known), 0

    def slowly(*_: Any, **__: Any) -> Nobody:
        nonlocal connects
        connects += 1
        if connects == 1:
            known.unload(TOPIC_ID, 0)
            opened(loads, 0)
        return Nobody()

    monkeypatch.setattr(id_loads, "connect", slowly)
    known.expect(TOPIC_ID, 1)  # so that nothing is let go
    opened(loads, 0)
    assert table.was_asked.acquire(timeout=PATIENCE_S)
    assert connects == 2 and known.perhaps(TOPIC_ID, 0, *some_ids(10, 2)).all()
    table.may_tell.release()
    wait_for_threads()
    assert len(table.asked) == 1 and sure(known, 0)


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(PATIENCE_S * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")
