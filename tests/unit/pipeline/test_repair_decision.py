"""A repair is decided once; a decision of books that are gone, since ClickHouse was restored, binds nobody."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from pipeline.book import Counts, Place
from pipeline.frontier import Frontier
from pipeline.repair import _decide, _untold
from tallyman.control import open_control
from tallyman.usage import Repair

DECIDED = Repair(
    topic_id="Ecl5Q0nRQo2TbJGAGKdzDA", partition=0, number=1, chunk_size=16, from_offset=10, to_offset=12,
    from_clock_ms=1, to_clock_ms=2, from_booking=20_787_000, booking=20_787_001, definitions=1, counts=(0,) * 7,
    reason="retention", note="", who="zoë", decided_at=datetime(2026, 11, 30, tzinfo=UTC),
)  # fmt: skip


def standing(booking: int = 20_787_000, repairs: int = 0) -> Frontier:
    place = Place(0, 1, booking, 1, 0, Counts())
    return Frontier(DECIDED.topic_id, 0, 0, place, place, place, repairs)



def test_a_decision_is_told_only_where_its_books_stand(control_url: str) -> None:
    """Restored from before it, ClickHouse stands before records that the decision took for booked."""
    engine = open_control(control_url)
    assert _untold(engine, standing(), first=10) is None
    _decide(engine, DECIDED)
    _decide(engine, replace(DECIDED, to_offset=14, who="łukasz"))  # of two operators the first decides
    assert _untold(engine, standing(), first=10) == DECIDED
    assert _untold(engine, standing(), first=6) is None
    assert _untold(engine, standing(), first=13) is None
    assert _untold(engine, standing(booking=20_788_000), first=10) is None
    assert _untold(engine, standing(repairs=1), first=10) is None
    anew = replace(DECIDED, from_offset=6, from_booking=20_787_000, booking=20_787_005)
    _decide(engine, anew)
    assert _untold(engine, standing(), first=10) is None
    assert _untold(engine, standing(), first=6) == anew
    engine.dispose()
