"""Which bookings are sealed, month by month: where usage of a range may lie, and whether blocks of it may be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from tallyman.period import FIRST_MOMENT, LAST_MOMENT
from tallyman.rebuilds import Range

if TYPE_CHECKING:
    from clickhouse_driver import Client

# The months are those by which tables of sealed usage are partitioned.
MONTHS_SQL = (
    "SELECT groupArray((first, last, first_s, last_s, others)) FROM (SELECT min(booking) AS first,"
    " max(booking) AS last, toUnixTimestamp(min(first_minute)) AS first_s, toUnixTimestamp(max(last_minute)) AS last_s,"
    " countIf(booking NOT IN (SELECT booking FROM rolled_up WHERE attempt = 1)) AS others"
    " FROM seals WHERE rows > 0 GROUP BY toYYYYMM(toDate(intDiv(booking, 1000))))"
)


class SealedMonth(NamedTuple):
    """The sealed bookings of one month that hold usage.

    Attributes:
        first, last: Bookings.
        first_s, last_s: The first and the last minute of their usage, in seconds since 1970.
        others: How many have no blocks of the first attempt; of those one has to ask what is there.
    """

    first: int
    last: int
    first_s: int
    last_s: int
    others: int


Months = tuple[SealedMonth, ...]
_BOOKINGS_PER_DAY = 1000
_LAST_DAY = (LAST_MOMENT - FIRST_MOMENT).days


def decided_to(booking: int) -> datetime:
    """Return the instant up to which bookings no later than this one decide how high levels are.

    It is where the day of the next number begins: the log has come into that day, wherever it goes on, and the number
    alone says so, whoever asks and whenever.

    >>> f"{decided_to(20757999):%d %b} {decided_to(20758000):%d %b} {decided_to(20758001):%d %b}"
    '01 Nov 01 Nov 01 Nov'
    """
    day = (booking + 1) // _BOOKINGS_PER_DAY
    return FIRST_MOMENT + timedelta(days=max(0, min(day, _LAST_DAY)))


def months_of(rows: Iterable[Sequence[int]]) -> Months:
    """Return what `MONTHS_SQL` gives."""
    return tuple(SealedMonth(*map(int, row)) for row in rows)


def read_months(client: Client) -> Months:
    """Read the months; those in which nothing is sealed are left out."""
    return months_of(client.execute(MONTHS_SQL)[0][0])


def about(months: Months, span: Range) -> Months:
    """Return the months whose bookings may hold usage of a range of minutes."""
    return tuple(month for month in months if month.last_s >= span[0] and month.first_s < span[1])
