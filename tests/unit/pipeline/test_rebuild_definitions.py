"""When new definitions have been in force for long enough that what came before them is sealed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.rebuild import _refuse_unsealed_before
from tallyman import books
from tallyman.control import open_control
from tallyman.errors import RebuildError
from tallyman.meter import Definitions
from tallyman.rebuilds import Switch

DAY = 20_787_000
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


def test_a_rebuild_waits_for_the_booking_before_its_definitions(tmp_path: Path) -> None:
    """Whatever closes come behind, the older booking is sealed as soon as every partition has left it."""
    engine = open_control(f"sqlite:///{tmp_path / 'control.db'}")
    books.prepare(engine)
    books.next_close(engine, NOON, "topic")
    books.add_definitions(engine, Definitions(number=0, meters=()))
    wrong_day = books.next_close(engine, NOON.replace(year=2027), "topic")  # by a machine whose clock is a year ahead
    right = books.next_close(engine, NOON, "topic")
    assert (right.booking, right.definitions, wrong_day.definitions) == (DAY + 2, 1, 1)
    assert books.newest_close(engine, 1, reached=DAY + 2) is None, "it may be cut off"
    for close in (wrong_day, right):
        books.mark_written(engine, close.booking)
    assert books.newest_close(engine, 1, reached=DAY + 1) is None
    assert books.newest_close(engine, 1, reached=DAY + 2) == DAY + 2
    assert books.newest_close(engine, 1, reached=DAY + 1000) == DAY + 2
    late = books.next_close(engine, NOON, "topic")
    books.mark_void(engine, late.booking)  # cut off, and written again the day after
    assert books.newest_close(engine, 1, reached=DAY + 1000) == DAY + 2
    assert late.booking not in [each.booking for each in books.unwritten_closes(engine, "topic")]
    engine.dispose()
    for last in (DAY + 1, DAY + 900):
        _refuse_unsealed_before(DAY + 2, switch(last))
    told = rf"booking {DAY + 1} is not sealed yet.*sealed is up to booking {DAY}\. Wait"
    with pytest.raises(RebuildError, match=told):
        _refuse_unsealed_before(DAY + 2, switch(DAY))
    with pytest.raises(RebuildError, match=r"no close has opened a booking for definitions 1.*First: tallyman close"):
        _refuse_unsealed_before(None, switch(DAY))


def switch(last: int) -> Switch:
    return Switch(generation=1, definitions=1, meters=("compute.hours",), span=(0, 900), last=last)
