"""Window sizes by the names that peers give them: ours where we have them, else as spans of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from tallyman.period import find_zone, month_period, start_of_day, window_edges
from tallyman.usage import Window
from tests.vectors.model import Unknown

_OURS: dict[str, Window] = {
    "MINUTE": "minute", "HOUR": "hour", "DAY": "day", "WEEK": "week", "MONTH": "month",
    "HOURLY": "hour", "DAILY": "day", "WEEKLY": "week", "MONTHLY": "month",
}  # fmt: skip
_MONTHS = {"QUARTER": 3, "QUARTERLY": 3, "HALF": 6, "HALF_YEAR": 6, "YEAR": 12, "YEARLY": 12}
_HOUR, _DAY = 60, 1440
_MINUTE = timedelta(minutes=1)
# A number and a unit: "15MIN", "5m" (a minute, while "M" is a month), "300s"; or an ISO 8601 duration.
_COUNTED = re.compile(r"(?P<number>[0-9]+)_?(?P<unit>[A-Za-z]+)")
_ISO = re.compile(r"P(?:(?P<number>[0-9]+)(?P<unit>[YMWD])|T(?P<of_day>[0-9]+)(?P<clock>[HMS]))")
_CLOCK = {"H": "HOUR", "M": "MINUTE", "S": "SECOND"}
_NAMED_UNITS = {"m": "MINUTE", "M": "MONTH"}
_UNITS = {
    "S": "SECOND", "SEC": "SECOND", "MIN": "MINUTE", "H": "HOUR", "HR": "HOUR", "D": "DAY", "W": "WEEK",
    "MON": "MONTH", "Q": "QUARTER", "Y": "YEAR",
}  # fmt: skip
_SECONDS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86400}
_YEAR = 12  # months


@dataclass(frozen=True, slots=True)
class WindowSize:
    """How long windows are: one of ours, or so many calendar months, or so many minutes.

    Attributes:
        anchor_day: Of the month, on which windows of one month begin.
    """

    ours: Window | None = None
    months: int = 0
    minutes: int = 0
    anchor_day: int = 1

    @property
    def longest(self) -> timedelta:
        """A length that no such window exceeds."""
        if self.months or self.minutes > 1440:
            return timedelta(days=31 * self.months + 1, minutes=self.minutes)
        return timedelta(days={"week": 8, "month": 32}.get(self.ours or "", 2))

    def span(self, moment: datetime, zone: str) -> tuple[datetime, datetime]:
        """Return the window in which a moment lies."""
        if self.ours:
            edges = window_edges(self.ours, moment - self.longest, moment + self.longest, zone)
            return max(edge for edge in edges if edge <= moment), min(edge for edge in edges if edge > moment)
        if self.months:
            return self._months(moment, zone)
        if zone == "UTC":
            origin, length = datetime.fromtimestamp(0, UTC), timedelta(minutes=self.minutes)
            start = origin + (moment - origin) // length * length
            return start, start + length
        return self._days(moment, zone) if self.minutes > _DAY else self._part_of_day(moment, zone)

    def _part_of_day(self, moment: datetime, zone: str) -> tuple[datetime, datetime]:
        """Cut the local day by its wall clock, from midnight to the next one.

        Where an hour comes twice, windows of an hour and less are cut in each pass, longer ones in the first only.
        """
        day = moment.astimezone(find_zone(zone)).date()
        opens, closes = start_of_day(day, zone), start_of_day(day + timedelta(days=1), zone)
        midnight = datetime(day.year, day.month, day.day, tzinfo=find_zone(zone))
        passes = (0, 1) if self.minutes <= _HOUR else (0,)
        walls = (midnight + timedelta(minutes=n) for n in range(0, _DAY, self.minutes))
        inner = {_first_at(wall.replace(fold=fold)) for wall in walls for fold in passes}
        edges = [opens, *sorted(edge for edge in inner if opens < edge < closes), closes]
        return max(edge for edge in edges if edge <= moment), min(edge for edge in edges if edge > moment)

    def _days(self, moment: datetime, zone: str) -> tuple[datetime, datetime]:
        """Count local days from the one that began 1970."""
        length, rest = divmod(self.minutes, _DAY)
        if rest:
            raise Unknown(f"windows of {self.minutes} minutes by the calendar of {zone}")
        origin, day = date(1970, 1, 1), moment.astimezone(find_zone(zone)).date()
        first = origin + timedelta(days=(day - origin).days // length * length)
        return start_of_day(first, zone), start_of_day(first + timedelta(days=length), zone)

    def _months(self, moment: datetime, zone: str) -> tuple[datetime, datetime]:
        day = moment.astimezone(find_zone(zone)).date()
        first = day.year * 12 + (day.month - 1) // self.months * self.months
        edges = [self._month(n, zone) for n in (first - self.months, first, first + self.months)]
        return (edges[1], edges[2]) if edges[1] <= moment else (edges[0], edges[1])

    def _month(self, number: int, zone: str) -> datetime:
        name = date(number // 12, number % 12 + 1, 1).strftime("%Y-%m")
        return month_period(name, zone, self.anchor_day).start


def _first_at(wall: datetime) -> datetime:
    """Return when a wall clock shows a time; one that it jumps over, when it jumps."""
    moment = wall.astimezone(UTC)
    zone = wall.tzinfo
    if moment.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return moment
    at = min(wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
    while at.astimezone(zone).replace(tzinfo=None) < wall.replace(tzinfo=None):
        at += _MINUTE
    return at


def named_size(name: str, anchor: str | int | None = None) -> WindowSize:
    """Return the window size of a name such as DAY, 15MIN or QUARTER.

    Args:
        anchor: The day of the month on which months begin, or a date that has it.

    Raises:
        Unknown: There is none of this name.
    """
    text = name.upper()
    if anchor is not None:
        if _OURS.get(text) != "month":
            raise Unknown(f'windows of a "{name}" that are anchored on a day')
        told = str(anchor)
        day = int(told if told.isdigit() else told[8:10])
        return replace(WindowSize(months=1), anchor_day=day)
    if text in _OURS:
        return WindowSize(_OURS[text])
    if text in _MONTHS:
        return WindowSize(months=_MONTHS[text])
    if iso := _ISO.fullmatch(text):
        number, unit = int(iso["of_day"] or iso["number"]), _CLOCK.get(iso["clock"] or "", iso["unit"])
    elif counted := _COUNTED.fullmatch(name):
        number, unit = int(counted["number"]), counted["unit"]
    else:
        raise Unknown(f'unknown window size "{name}"')
    return _counted(number, unit, name)


def _counted(number: int, unit: str, name: str) -> WindowSize:
    """Return the window size of a number of units.

    Raises:
        Unknown: There is no such unit, or the calendar has no windows of so many.
    """
    upper = unit.upper()
    unit = _NAMED_UNITS.get(unit) or _UNITS.get(upper) or _UNITS.get(upper.removesuffix("S"), upper.removesuffix("S"))
    months = number * {"MONTH": 1, "QUARTER": 3, "YEAR": _YEAR}.get(unit, 0)
    if months and _YEAR % months == 0:
        return WindowSize("month") if months == 1 else WindowSize(months=months)
    if unit == "WEEK" and number == 1:
        return WindowSize("week")
    seconds = number * _SECONDS.get(unit, 0)
    if not seconds or seconds % 60:
        raise Unknown(f'unknown window size "{name}"')
    return sized(seconds)


def sized(seconds: int) -> WindowSize:
    """Return the window size of a whole number of minutes."""
    ours: dict[int, Window] = {60: "minute", 3600: "hour", 86400: "day"}
    return WindowSize(ours[seconds]) if seconds in ours else WindowSize(minutes=seconds // 60)


def calendar_size(letter: str) -> WindowSize:
    """Return the calendar window of a letter, Y, H (half a year), Q, M, W, D, or of a name.

    Raises:
        Unknown: There is none.
    """
    sizes = {"Y": WindowSize(months=12), "H": WindowSize(months=6), "Q": WindowSize(months=3)}
    sizes |= {"M": WindowSize("month"), "W": WindowSize("week"), "D": WindowSize("day")}
    return sizes.get(letter.upper()) or named_size(letter)
