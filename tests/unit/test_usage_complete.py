"""Whether a figure is complete: usage is as far as its window's end, and nothing of the window is missing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tallyman.usage import Gap, UsageAnswer, UsageQuery, UsageRow

NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def row(hours: int) -> UsageRow:
    """Return the row of one hour, so many after noon."""
    start = NOON + hours * HOUR
    return UsageRow(start=start, end=start + HOUR, groups={}, value=Decimal(1), events=1)


def told(
    complete_to: datetime | None, *gaps: Gap, felt_for: timedelta = timedelta(0), **asked: Any
) -> list[bool | None]:
    """Return what is said of the hours from noon to four."""
    query = UsageQuery(meter="m", start=NOON, end=NOON + 4 * HOUR, **asked)
    rows = tuple(map(row, range(4)))
    answer = UsageAnswer(
        query=query, unit="", rows=rows, complete_to=complete_to, sealed_to=0, gaps=gaps, felt_for=felt_for
    )
    return [answer.is_complete(each) for each in rows]


def missing(start: datetime, end: datetime | None) -> Gap:
    return Gap(collector="host-01", epoch="e", first=3, last=4, start=start, end=end)


def test_a_window_is_complete_when_usage_is_as_far_as_its_end() -> None:
    assert told(NOON + 2 * HOUR) == [True, True, False, False]
    assert told(NOON + 2 * HOUR - timedelta(microseconds=1)) == [True, False, False, False]
    assert told(None) == [False] * 4


def test_a_window_of_which_batches_are_missing_is_not() -> None:
    minute = timedelta(minutes=1)
    assert told(NOON + 4 * HOUR, missing(NOON + HOUR + minute, NOON + HOUR + 2 * minute)) == [True, False, True, True]
    assert told(NOON + 4 * HOUR, missing(NOON + 3 * HOUR, None)) == [True, True, True, False]


def test_what_is_missing_before_a_level_is_felt_as_long_as_the_level_is_believed() -> None:
    gap = missing(NOON + timedelta(minutes=1), NOON + timedelta(minutes=2))
    assert told(NOON + 4 * HOUR, gap, felt_for=2 * HOUR) == [False, False, False, True]


@pytest.mark.parametrize("asked", [{"sealed_only": True}, {"up_to_booking": 20_731_000}])
def test_who_leaves_out_what_came_later_is_not_told(asked: dict[str, Any]) -> None:
    assert told(NOON + 4 * HOUR, **asked) == [None] * 4
