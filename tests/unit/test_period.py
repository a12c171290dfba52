"""Periods and windows tile: no gap, no overlap, for every anchor day, zone and year."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallyman.errors import UsageQueryError
from tallyman.period import find_zone, month_period, previous_month, start_of_day, window_edges
from tests.vectors import billing_cases

ZONES = st.sampled_from(sorted(zone for zone in available_timezones() if not zone.startswith(("posix", "right"))))
MONTHS = [f"{n:02d}" for n in range(1, 13)]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def hours(start: datetime, end: datetime) -> int:
    return int((end - start) / timedelta(hours=1))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 31), ZONES, st.integers(1975, 2060))
def test_the_periods_of_a_year_tile(anchor_day, zone, year):
    months = [f"{year - 1}-12", *(f"{year}-{n}" for n in MONTHS), f"{year + 1}-01"]
    periods = [month_period(month, zone, anchor_day) for month in months]
    for one, following in pairwise(periods):
        assert one.end == following.start
        assert one.start < one.end
        assert one.last_day + timedelta(days=1) == following.first_day


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 31), ZONES, st.integers(1975, 2060), st.sampled_from(MONTHS))
def test_a_period_begins_on_its_anchor_day_or_the_last_day_of_a_shorter_month(anchor_day, zone, year, month):
    first = month_period(f"{year}-{month}", zone, anchor_day).first_day
    assert f"{first:%Y-%m}" == f"{year}-{month}"
    assert first.day == anchor_day or (first.day < anchor_day and (first + timedelta(days=1)).day == 1)


@pytest.mark.parametrize(
    "case",
    [case for case in billing_cases("period_boundaries") if case["price"]["period"] == "monthly"],
    ids=lambda case: case["id"],
)
def test_anchored_months_are_those_of_other_billing_systems(case):
    anchor = date.fromisoformat(case["price"]["anchor"])
    for n, (first, following) in enumerate(case["expected_lines"]):
        months = anchor.month - 1 + n
        period = month_period(f"{anchor.year + months // 12}-{months % 12 + 1:02d}", "UTC", anchor.day)
        assert (str(period.first_day), str(period.last_day + timedelta(days=1))) == (first, following)


def test_a_berlin_october_has_745_hours_and_a_march_743():
    october, march = month_period("2026-10", "Europe/Berlin"), month_period("2026-03", "Europe/Berlin")
    assert (october.start, october.end) == (utc("2026-09-30T22:00Z"), utc("2026-10-31T23:00Z"))
    assert hours(october.start, october.end) == 745
    assert hours(march.start, march.end) == 743


def test_december_runs_into_the_next_year():
    period = month_period("2026-12", "Asia/Kolkata")
    assert (period.start, period.end) == (utc("2026-11-30T18:30Z"), utc("2026-12-31T18:30Z"))
    assert period.last_day == date(2026, 12, 31)


def test_a_day_whose_midnight_does_not_exist_begins_where_the_clock_jumped_to():
    assert start_of_day(date(2026, 9, 6), "America/Santiago") == utc("2026-09-06T01:00-03:00")


def test_a_jump_that_begins_before_midnight_is_found_to_the_second():
    """Toronto, 30 March 1919: 23:30 became 00:30 of the 31st."""
    assert start_of_day(date(1919, 3, 31), "America/Toronto") == utc("1919-03-31T00:30-04:00")


def test_a_date_that_the_zone_skipped_is_empty():
    """Samoa went from 29 to 31 December 2011."""
    skipped = start_of_day(date(2011, 12, 30), "Pacific/Apia")
    assert skipped == start_of_day(date(2011, 12, 31), "Pacific/Apia") == utc("2011-12-31T00:00+14:00")


@pytest.mark.parametrize("month", ["2026-13", "2026-00", "2026-1", "October", "0000-01", "٢٠٢٦-١٠", "2026-10\n"])
def test_what_is_no_month_is_refused(month):
    with pytest.raises(UsageQueryError, match="expected a year and a month such as 2026-10"):
        month_period(month, "UTC")


@pytest.mark.parametrize("anchor_day", [0, 32, -1])
def test_what_is_no_day_of_a_month_is_refused(anchor_day):
    with pytest.raises(UsageQueryError, match="anchor_day: expected 1 to 31"):
        month_period("2026-10", "UTC", anchor_day)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Europe/Berln", 'did you mean "Europe/Berlin"'), ("europe/pariss", "Europe/Paris"), ("../passwd", ""), ("", "")],
)
def test_an_unknown_zone_is_refused_with_the_nearest_name(name, hint):
    with pytest.raises(UsageQueryError, match="expected an IANA name such as Europe/Berlin") as caught:
        find_zone(name)
    assert hint in str(caught.value)


def test_the_month_before_january_is_last_december():
    assert previous_month(date(2026, 1, 31)) == "2025-12"
    assert previous_month(date(2026, 3, 1)) == "2026-02"


def test_days_have_23_24_or_25_hours():
    edges = window_edges("day", utc("2026-10-24T00:00+02:00"), utc("2026-10-27T00:00+01:00"), "Europe/Berlin")
    assert [hours(*pair) for pair in pairwise(edges)] == [24, 25, 24]


def test_weeks_begin_on_monday_in_their_zone():
    edges = window_edges("week", utc("2026-10-01T00:00+02:00"), utc("2026-11-01T00:00+01:00"), "Europe/Berlin")
    local = [edge.astimezone(ZoneInfo("Europe/Berlin")) for edge in edges[1:-1]]
    assert [f"{edge:%a %d %H:%M}" for edge in local] == ["Mon 05 00:00", "Mon 12 00:00", "Mon 19 00:00", "Mon 26 00:00"]


def test_months_are_the_billing_periods_of_the_first():
    edges = window_edges("month", utc("2026-01-01T00:00Z"), utc("2027-01-01T00:00Z"), "America/St_Johns")
    assert edges[1:-1] == tuple(month_period(f"2026-{month}", "America/St_Johns").start for month in MONTHS)


def test_the_hour_that_comes_twice_is_two_windows():
    edges = window_edges("hour", utc("2026-11-01T05:00Z"), utc("2026-11-01T08:00Z"), "America/New_York")
    assert edges == tuple(utc(f"2026-11-01T0{n}:00Z") for n in (5, 6, 7, 8))


@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("Pacific/Chatham", "2026-09-26T14:00Z"),  # 2:45 becomes 3:45
        ("Pacific/Chatham", "2026-04-04T14:00Z"),  # 3:45 becomes 2:45
        ("America/Caracas", "2016-05-01T07:00Z"),  # 2:30 becomes 3:00
        ("Antarctica/Casey", "2020-10-03T16:01Z"),  # 0:01 becomes 3:01
        ("America/St_Johns", "2007-11-04T02:31Z"),  # 0:01 becomes 23:01 of the day before
        ("Asia/Colombo", "1996-10-25T18:00Z"),  # 0:30 becomes 0:00
        ("Australia/Lord_Howe", "2026-04-04T15:00Z"),  # 2:00 becomes 1:30
        ("Australia/Lord_Howe", "2026-10-03T15:30Z"),  # 2:00 becomes 2:30
        ("Europe/Berlin", "2026-10-25T01:00Z"),
    ],
)
def test_a_window_of_an_hour_lies_in_one_pass_of_one_hour_of_the_local_clock(zone, change):
    moment, tz = utc(change), ZoneInfo(zone)
    edges = window_edges("hour", moment - timedelta(hours=4), moment + timedelta(hours=4), zone)
    hours_seen = []
    for start, end in pairwise(edges):
        minutes = [(start + n * timedelta(minutes=1)).astimezone(tz) for n in range(round((end - start).seconds / 60))]
        (hour,) = {(local.date(), local.hour, local.utcoffset()) for local in minutes}
        hours_seen.append(hour)
    assert len(set(hours_seen)) == len(hours_seen), "no hour is cut in two"


def test_hours_follow_the_local_clock_in_half_hour_zones():
    edges = window_edges("hour", utc("2026-10-01T00:00+05:30"), utc("2026-10-01T02:00+05:30"), "Asia/Kolkata")
    assert edges == (utc("2026-09-30T18:30Z"), utc("2026-09-30T19:30Z"), utc("2026-09-30T20:30Z"))


def test_a_range_that_is_cut_keeps_its_own_ends():
    edges = window_edges("day", utc("2026-10-01T10:30Z"), utc("2026-10-02T09:15Z"), "UTC")
    assert edges == (utc("2026-10-01T10:30Z"), utc("2026-10-02T00:00Z"), utc("2026-10-02T09:15Z"))


def test_a_total_is_one_window_and_minutes_are_sixty_to_the_hour():
    start, end = utc("2026-10-01T10:00Z"), utc("2026-10-01T11:00Z")
    assert window_edges("total", start, end, "UTC") == (start, end)
    assert len(window_edges("minute", start, end, "UTC")) == 61


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["hour", "day", "week", "month"]),
    ZONES,
    st.integers(0, 50 * 365 * 24 * 60),
    st.integers(1, 60 * 24 * 60),
    st.integers(1, 99),
)
def test_windows_tile_and_do_not_depend_on_where_the_question_begins(window, zone, start, minutes, later):
    begin = datetime(1990, 1, 1, tzinfo=UTC) + timedelta(minutes=start)
    end = begin + timedelta(minutes=minutes)
    edges = window_edges(window, begin, end, zone)
    assert edges[0] == begin
    assert edges[-1] == end
    assert all(one < following for one, following in pairwise(edges))
    middle = begin + (end - begin) * later / 100
    assert set(window_edges(window, middle, end, zone)[1:]) == {edge for edge in edges if edge > middle}


def test_a_question_without_a_span_or_with_an_unknown_window_is_refused():
    start, end = utc("2026-10-01T00:00Z"), utc("2026-10-02T00:00Z")
    with pytest.raises(UsageQueryError, match="expected from before to"):
        window_edges("day", end, start, "UTC")
    with pytest.raises(UsageQueryError, match='got "dya"; did you mean "day"'):
        window_edges("dya", start, end, "UTC")  # type: ignore[arg-type]
    with pytest.raises(UsageQueryError, match="expected instants with a zone"):
        window_edges("day", start.replace(tzinfo=None), end, "UTC")
