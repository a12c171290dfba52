"""Times as people type them: a day, a month, a moment, `now`, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from tallyman.errors import UsageQueryError
from tallyman.files import parse_duration
from tallyman.period import FIRST_MOMENT, LAST_MOMENT, find_zone, start_of_day

_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_EXPECTED = "expected a day (2026-10-01), a month (2026-10), a moment (2026-10-01T14:30), now, today, or an age (24h)"


def parse_moment(name: str, text: str, zone: str, now: datetime) -> datetime:
    """Return the instant that a text means; days and months begin at midnight in `zone`.

    Args:
        name: Of the option, for the message.
        text: "2026-10-01", "2026-10", "2026-10-01T14:30", the same with an offset, "now", "today", or "24h" for that
            long ago. Ages and `now` are cut to whole minutes.

    Where 1970 began before UTC did, it begins with UTC: nothing is stored from before.

    Raises:
        UsageQueryError: It is none of these, or beyond what the store's times can hold.
    """
    moment = _moment(name, text, zone, now)
    if FIRST_MOMENT - timedelta(days=1) <= moment <= FIRST_MOMENT:
        return FIRST_MOMENT
    if not FIRST_MOMENT <= moment <= LAST_MOMENT:
        raise UsageQueryError(f'{name}: expected a time from 1970 to 2106, got "{text}"')
    return moment


def _moment(name: str, text: str, zone: str, now: datetime) -> datetime:
    minute = now.astimezone(UTC).replace(second=0, microsecond=0)
    if text == "now":
        return minute
    if text == "today":
        return start_of_day(now.astimezone(find_zone(zone)).date(), zone)
    try:
        if _MONTH.fullmatch(text):
            return start_of_day(date(int(text[:4]), int(text[5:]), 1), zone)
        if _DAY.fullmatch(text):
            return start_of_day(date.fromisoformat(text), zone)
        if text[:1].isdigit() and text[-1:] in "smhdw":
            return minute - parse_duration(text)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise UsageQueryError(f'{name}: {_EXPECTED}, got "{text}"') from error
    return _with_zone(name, moment, text, zone)


def _with_zone(name: str, moment: datetime, text: str, zone: str) -> datetime:
    if moment.tzinfo is not None:
        return moment
    tz = find_zone(zone)
    earlier, later = moment.replace(tzinfo=tz), moment.replace(tzinfo=tz, fold=1)
    if earlier.utcoffset() != later.utcoffset():
        when = "comes twice" if earlier.utcoffset() > later.utcoffset() else "does not exist"  # type: ignore[operator]
        raise UsageQueryError(
            f'{name}: "{text}" {when} in {zone}, where the clock changes; write it with its offset, e.g. {text}+00:00'
        )
    return earlier


def next_minute(now: datetime) -> datetime:
    """Return the end of the minute that is under way."""
    return now.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
