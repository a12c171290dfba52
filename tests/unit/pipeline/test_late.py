"""What is told of a record behind a topic's end that cannot be copied, before anything behind it is called copied."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from pipeline import late as room
from pipeline.late import LateRecords, LateStore, _Due
from pipeline.runtime import Database
from tallyman.books import Topic
from tallyman.errors import StoreError
from tallyman.usage import Repair

APPENDED_MS = 1_780_000_000_000


@pytest.mark.parametrize("refusal", [MessageSizeTooLargeError, RecordListTooLargeError])
def test_a_late_record_that_is_too_large_is_named_where_it_lacks(refusal: type[Exception]) -> None:
    lost: list[Repair] = []
    store = SimpleNamespace(ends=dict, note_lost=lost.append)
    late = LateRecords((), Topic("old", "usage.v1", 2, 64, True), "usage.v2", store, threading.Event())  # type: ignore[arg-type]

    def refused(timeout: float) -> Any:
        raise refusal("1048588 bytes")

    late._acknowledged(1, _Due(7, APPENDED_MS), SimpleNamespace(get=refused))
    (told,) = lost
    assert (told.topic_id, told.partition, told.from_offset, told.to_offset, told.reason) == ("old", 1, 7, 8, "late")
    assert told.from_clock_ms == told.to_clock_ms == APPENDED_MS

    def away(_: Repair) -> None:
        raise StoreError("ClickHouse is away")

    store.note_lost = away
    with pytest.raises(StoreError):  # its place is not committed
        late._acknowledged(1, _Due(7, APPENDED_MS), SimpleNamespace(get=refused))


def test_the_ends_of_a_thousand_partitions_are_asked_for_in_one_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few seconds, by each worker, until the last one has ended; nothing is copied meanwhile. Then no more."""
    asked: list[str] = []
    ended = [(number, 7, APPENDED_MS, 20_600_000, 1) for number in range(1000)]

    def execute(sql: str, values: dict[str, Any]) -> Any:
        asked.append(sql)
        return ended[: 400 * len(asked)]

    monkeypatch.setattr(room, "connect", lambda _: SimpleNamespace(execute=execute, disconnect=lambda: None))
    database = Database(host="", port=0, user="", password="", database="")
    store = LateStore(database, Topic("old", "usage.v1", 1000, 64, True))
    assert [len(store.ends()) for _ in range(5)] == [400, 800, 1000, 1000, 1000]
    assert len(asked) == 3
