"""Billing periods and windows: half-open spans between instants, computed from a local calendar.

Every edge is computed from its own date, never from the edge before it, so that spans tile: what ends
one begins the next, over month ends, leap days, clock changes and days that a zone has skipped.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

from tallyman.errors import UsageQueryError
from tallyman.usage import WINDOWS, Window

# What the store's times can hold: seconds since 1970 in 32 bits, in whole minutes.
FIRST_MOMENT = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MOMENT = datetime(2106, 2, 7, 6, 28, tzinfo=UTC)
FIRST_YEAR, LAST_YEAR = 1971, 2105  # of which every month lies between them in every zone
MONTH_FORM = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A billing period `[start, end)`.

    Attributes:
        month: The month that it is named after and begins in, "2026-10".
        start: First instant, UTC.
        end: First instant that is no longer in it, UTC.
        first_day: The local date it begins on.
        last_day: The last local date in it, as people write it.
    """

    month: str
    zone: str
    start: datetime
    end: datetime
    first_day: date
    last_day: date


@lru_cache(maxsize=512)
def find_zone(name: str) -> ZoneInfo:
    """Return a zone by its IANA name.

    Raises:
        UsageQueryError: There is no such zone; the message has the nearest name.
    """
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, ModuleNotFoundError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise _no_zone(name) from error
    except KeyError as error:
        raise _no_zone(name) from error


def _no_zone(name: str) -> UsageQueryError:
    by_lower = {zone.lower(): zone for zone in available_timezones()}
    near = get_close_matches(name.lower(), by_lower, n=1)
    hint = f'; did you mean "{by_lower[near[0]]}"?' if near else ""
    return UsageQueryError(f'zone: expected an IANA name such as Europe/Berlin, got "{name}"{hint}')


def start_of_day(day: date, zone: str) -> datetime:
    """Return the first instant of a local date, UTC.

    Where midnight does not exist the day begins later (America/Santiago, 2026-09-06: at 01:00); a date that
    the zone skipped (Pacific/Apia, 2011-12-30) begins and ends where the next one begins. Where midnight comes
    twice the first counts.
    """
    tz = find_zone(zone)
    midnight = datetime(day.year, day.month, day.day, tzinfo=tz).astimezone(UTC)
    if midnight.astimezone(tz).replace(tzinfo=None) == datetime(day.year, day.month, day.day):  # noqa: DTZ001
        return midnight
    # The wall clock jumped over midnight: find the jump, to the second.
    late = midnight + timedelta(hours=26)
    early = midnight - timedelta(hours=26)
    while late - early > timedelta(seconds=1):
        middle = early + timedelta(seconds=int((late - early).total_seconds()) // 2)
        if middle.astimezone(tz).date() < day:
            early = middle
        else:
            late = middle
    return late


def month_period(month: str, zone: str, anchor_day: int = 1) -> Period:
    """Return the billing period that begins in a month.

    Args:
        month: "2026-10".
        anchor_day: 1 to 31, the day on which periods begin; in a shorter month its last day, and the month
            after that the anchor day again.

    Raises:
        UsageQueryError: No such month, zone or day.
    """
    parts = MONTH_FORM.fullmatch(month)
    if parts is None or not int(parts[1]):
        raise UsageQueryError(f'month: expected a year and a month such as 2026-10, got "{month}"')
    if not FIRST_YEAR <= int(parts[1]) <= LAST_YEAR:
        raise UsageQueryError(f'month: expected one of {FIRST_YEAR} to {LAST_YEAR}, got "{month}"')
    if not 1 <= anchor_day <= 31:
        raise UsageQueryError(f"anchor_day: expected 1 to 31, got {anchor_day}")
    year, number = int(parts[1]), int(parts[2])
    first_day = _anchored(year, number, anchor_day)
    next_day = _anchored(year + number // 12, number % 12 + 1, anchor_day)
    return Period(
        month=month,
        zone=zone,
        start=start_of_day(first_day, zone),
        end=start_of_day(next_day, zone),
        first_day=first_day,
        last_day=next_day - timedelta(days=1),
    )


def previous_month(today: date) -> str:
    """Return the calendar month before the one that a date is in, as "2026-10"."""
    last = today.replace(day=1) - timedelta(days=1)
    return f"{last.year:04d}-{last.month:02d}"


def _anchored(year: int, month: int, anchor_day: int) -> date:
    return date(year, month, min(anchor_day, monthrange(year, month)[1]))


def window_edges(window: Window, start: datetime, end: datetime, zone: str) -> tuple[datetime, ...]:
    """Return the instants at which windows begin and end between `start` and `end`, UTC, in order.

    The first is `start`, the last is `end`; those between are where the zone's local clock begins a new
    minute, hour, day, week (Monday) or month. In the hour that a clock change repeats, each pass is a window
    of its own, also where the clock changes in the middle of an hour.

    Raises:
        UsageQueryError: No such window or zone, an instant without a zone, or nothing between start and end.
    """
    if start.tzinfo is None or end.tzinfo is None:
        raise UsageQueryError("from, to: expected instants with a zone, such as 2026-10-01T00:00:00+02:00")
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    if start >= end:
        got = f"{start.isoformat()} and {end.isoformat()}"
        raise UsageQueryError(f"from, to: expected from before to, got {got}")
    if window not in WINDOWS:
        near = get_close_matches(str(window), WINDOWS, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise UsageQueryError(f'window: expected one of {", ".join(WINDOWS)}, got "{window}"{hint}')
    inner = _EDGES[window](start, end, zone)
    return (start, *sorted({edge for edge in inner if start < edge < end}), end)


def _local_days(start: datetime, end: datetime, zone: str) -> Iterator[date]:
    """Yield local dates from the one before `start` to the one after `end`."""
    tz = find_zone(zone)
    day = start.astimezone(tz).date() - timedelta(days=1)
    last = end.astimezone(tz).date() + timedelta(days=1)
    while day <= last:
        yield day
        day += timedelta(days=1)


def _days(start: datetime, end: datetime, zone: str) -> list[datetime]:
    return [start_of_day(day, zone) for day in _local_days(start, end, zone)]


def _weeks(start: datetime, end: datetime, zone: str) -> list[datetime]:
    return [start_of_day(day, zone) for day in _local_days(start, end, zone) if day.weekday() == 0]


def _months(start: datetime, end: datetime, zone: str) -> list[datetime]:
    return [start_of_day(day, zone) for day in _local_days(start, end, zone) if day.day == 1]


def _hours(start: datetime, end: datetime, zone: str) -> list[datetime]:
    # From each day's own beginning: an offset may change by half an hour (Australia/Lord_Howe) on the way, and in the
    # middle of an hour (Pacific/Chatham, at a quarter to): there the local clock begins another one.
    tz = find_zone(zone)
    edges: list[datetime] = []
    for opens, closes in pairwise(_days(start, end, zone)):
        edge, local = opens, opens.astimezone(tz)
        while edge < closes:
            edges.append(edge)
            following = edge + timedelta(hours=1) - timedelta(minutes=local.minute, seconds=local.second)
            then = following.astimezone(tz)
            if then.utcoffset() != local.utcoffset():
                following = _change_between(edge, following, tz)
                then = following.astimezone(tz)
            edge, local = following, then
    return edges


def _change_between(early: datetime, late: datetime, tz: ZoneInfo) -> datetime:
    """Return the first instant, to the second, at which a zone no longer has the offset that it had at `early`."""
    offset = early.astimezone(tz).utcoffset()
    while late - early > timedelta(seconds=1):
        middle = early + timedelta(seconds=int((late - early).total_seconds()) // 2)
        if middle.astimezone(tz).utcoffset() == offset:
            early = middle
        else:
            late = middle
    return late


def _minutes(start: datetime, end: datetime, zone: str) -> list[datetime]:
    find_zone(zone)
    first = start.replace(second=0, microsecond=0)
    return [first + timedelta(minutes=n) for n in range(1, int((end - first) / timedelta(minutes=1)) + 1)]


def _total(start: datetime, end: datetime, zone: str) -> list[datetime]:
    find_zone(zone)
    return []


_EDGES: dict[Window, Callable[[datetime, datetime, str], list[datetime]]] = {
    "minute": _minutes,
    "hour": _hours,
    "day": _days,
    "week": _weeks,
    "month": _months,
    "total": _total,
}
