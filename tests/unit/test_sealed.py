"""How far what is booked says how high levels are."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tallyman.sealed import decided_to

DAY = 20_758  # 2026-11-01, in days since 1970


@pytest.mark.parametrize(
    ("booking", "day"), [(DAY * 1000 - 2, 31), (DAY * 1000 - 1, 1), (DAY * 1000, 1), (DAY * 1000 + 999, 2)]
)
def test_levels_are_carried_to_where_the_day_of_the_next_booking_begins(booking: int, day: int) -> None:
    assert decided_to(booking) == datetime(2026, 11 if day < 3 else 10, day, tzinfo=UTC)


def test_a_booking_of_before_or_behind_all_days_is_no_error() -> None:
    assert decided_to(0).year == 1970 and decided_to((1 << 32) - 1).year > 2026
