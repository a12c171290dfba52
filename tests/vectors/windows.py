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
    "PT1M": "minute", "PT1H": "hour", "P1D": "day", "P1W": "week", "P1M": "month",
}  # fmt: skip
_MONTHS = {"QUARTER": 3, "HALF": 6, "HALF_YEAR": 6, "YEAR": 12}
_MINUTES = {"MIN": 1, "MINUTE": 1, "H": 60, "HOUR": 60, "D": 1440, "DAY": 1440}
_COUNTED = re.compile(r"([0-9]+)_?(MIN|MINUTE|H|HOUR|D|DAY)S?")


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
        length = timedelta(minutes=self.minutes)
        # Every zone's offset is a multiple of 15 minutes; longer windows count from the local midnight.
        origin = datetime.fromtimestamp(0, UTC)
        if 60 % self.minutes and zone != "UTC":
            origin = start_of_day(moment.astimezone(find_zone(zone)).date(), zone)
        start = origin + (moment - origin) // length * length
        return start, start + length

    def _months(self, moment: datetime, zone: str) -> tuple[datetime, datetime]:
        day = moment.astimezone(find_zone(zone)).date()
        first = day.year * 12 + (day.month - 1) // self.months * self.months
        edges = [self._month(n, zone) for n in (first - self.months, first, first + self.months)]
        return (edges[1], edges[2]) if edges[1] <= moment else (edges[0], edges[1])

    def _month(self, number: int, zone: str) -> datetime:
        name = date(number // 12, number % 12 + 1, 1).strftime("%Y-%m")
        return month_period(name, zone, self.anchor_day).start


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
        day = anchor if isinstance(anchor, int) else int(str(anchor)[8:10])
        return replace(WindowSize(months=1), anchor_day=day)
    if text in _OURS:
        return WindowSize(_OURS[text])
    if text in _MONTHS:
        return WindowSize(months=_MONTHS[text])
    counted = _COUNTED.fullmatch(text)
    if counted and int(counted[1]):
        return sized(int(counted[1]) * _MINUTES[counted[2]] * 60)
    raise Unknown(f'unknown window size "{name}"')


def sized(seconds: int) -> WindowSize:
    """Return the window size of a whole number of minutes."""
    ours: dict[int, Window] = {60: "minute", 3600: "hour", 86400: "day"}
    return WindowSize(ours[seconds]) if seconds in ours else WindowSize(minutes=seconds // 60)


def calendar_size(letter: str) -> WindowSize:
    """Return the calendar window of a letter: Y, H (half a year), Q, M, W, D.

    Raises:
        Unknown: There is none.
    """
    sizes = {"Y": WindowSize(months=12), "H": WindowSize(months=6), "Q": WindowSize(months=3)}
    sizes |= {"M": WindowSize("month"), "W": WindowSize("week"), "D": WindowSize("day")}
    if letter.upper() not in sizes:
        raise Unknown(f'unknown calendar "{letter}"')
    return sizes[letter.upper()]
