"""Hold what was made of sealed usage against it: blocks, from which long ranges are read, and what seals say, by
which questions choose bookings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from clickhouse_driver import Client

from pipeline.replay import Wanted
from tallyman.blocks import BLOCKS_S

FIGURES = ("rows", "events", "sum", "min", "max", "latest", "latest_us", "series")
_SETTINGS = {"max_bytes_before_external_group_by": 2 << 30}
_LAST_S = 2**32 - 1
# What both sides add up to. A series' hash times its figures adds up like them, however rows are cut: blocks of older
# versions have one row of a counter where newer ones have one for each incarnation.
_SUMS = (
    "tuple(toUInt8(countIf(side = {0}) > 0), sumIf(r.count, side = {0}), sumIf(r.sum, side = {0}),"
    " minIf(r.min, side = {0}), maxIf(r.max, side = {0}), argMaxIf(r.latest, (r.latest_us, r.latest_by), side = {0}),"
    " maxIf(r.latest_us, side = {0}),"
    " sumIf(cityHash64(series, start) * (toUInt64(r.count) + 3 * toUInt64(r.sum)), side = {0}))"
)
_BOTH = (
    f"SELECT booking, seconds, meter, definitions, {_SUMS.format(0)} AS minutes, {_SUMS.format(1)} AS blocks FROM ("  # noqa: S608
    "SELECT booking, arrayJoin(%(sizes)s) AS seconds, meter, definitions, cityHash64(subject, dimensions) AS series,"
    " toUInt32(minute) - toUInt32(minute) %% seconds AS start, count, toInt256(sum) AS sum, min, max, latest,"
    " latest_us, latest_by, 0 AS side"
    " FROM usage WHERE generation = 0 AND booking IN %(bookings)s AND {meters}"
    " AND minute >= toDateTime(%(from)s, 'UTC') AND minute < toDateTime(%(to)s, 'UTC')"
    " UNION ALL "
    "SELECT booking, seconds, meter, definitions, cityHash64(subject, dimensions) AS series, toUInt32(start), count,"
    " sum, min, max, latest, latest_us, latest_by, 1 AS side"
    " FROM usage_rolled_up WHERE (booking, attempt) IN %(attempts)s AND {meters}"
    " AND start >= toDateTime(%(from)s, 'UTC') AND start < toDateTime(%(to)s, 'UTC')"
    ") AS r GROUP BY booking, seconds, meter, definitions HAVING minutes != blocks"
    " ORDER BY booking, meter, definitions, seconds DESC"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksDifference:
    """Blocks of one size of a sealed booking that do not come to what its minutes come to.

    Attributes:
        events, in_blocks: How many events its minutes and the blocks count.
        differs: Which of `FIGURES` do not agree; `series`: all do in sum, but not for each series and time.
    """

    booking: int
    seconds: int
    meter: str
    definitions: int
    events: int
    in_blocks: int
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What a sealed booking holds."""

    rows: int
    events: int
    first_minute: datetime
    last_minute: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SealDifference:
    """A sealed booking whose seal and usage disagree; None stands for the side that has nothing."""

    booking: int
    sealed: Extent | None
    held: Extent | None


def compare_blocks(client: Client, first: int, last: int, wanted: Wanted) -> Iterator[BlocksDifference]:
    """Yield where the blocks that readers take differ from the minutes of their booking, month by month.

    Args:
        first, last: Bookings. One that has no blocks yet is read from its minutes.
        wanted: Of half days that lie in its range in part all is compared.
    """
    largest = BLOCKS_S[0]
    asked: dict[str, Any] = {
        "sizes": list(BLOCKS_S),
        "from": wanted.first * 60 // largest * largest,
        "to": min(-(-wanted.end * 60 // largest) * largest, _LAST_S),
        "meters": sorted(wanted.meters or ("",)),
    }
    sql = _BOTH.replace("{meters}", "1" if wanted.meters is None else "meter IN %(meters)s")
    for _, month in groupby(_attempts(client, first, last), key=lambda each: each[0]):
        attempts = [(booking, attempt) for _, booking, attempt in month]
        values = {**asked, "attempts": attempts, "bookings": [booking for booking, _ in attempts]}
        for booking, seconds, meter, definitions, minutes, blocks in client.execute(sql, values, settings=_SETTINGS):
            differs = tuple(name for name, ours, theirs in zip(FIGURES, minutes, blocks, strict=True) if ours != theirs)
            yield BlocksDifference(booking=booking, seconds=seconds, meter=meter, definitions=definitions,
                                   events=minutes[1], in_blocks=blocks[1], differs=differs)  # fmt: skip


def _attempts(client: Client, first: int, last: int) -> Sequence[tuple[int, int, int]]:
    """Return (month, booking, attempt) of what is rolled up: the attempts whose rows readers take."""
    rows: Sequence[tuple[int, int, int]] = client.execute(
        "SELECT toYYYYMM(toDate(intDiv(booking, 1000))), booking, min(attempt) FROM rolled_up"
        " WHERE booking >= %(first)s AND booking <= %(last)s GROUP BY booking ORDER BY booking",
        {"first": first, "last": last},
    )
    return rows


def compare_seals(client: Client, first: int, last: int) -> Iterator[SealDifference]:
    """Yield the sealed bookings of which usage does not hold what their seals say."""
    rows = client.execute(
        "SELECT booking, anyIf((rows, events, first_minute, last_minute), side = 0) AS sealed,"
        " anyIf((rows, events, first_minute, last_minute), side = 1) AS held FROM ("
        "SELECT booking, rows, events, first_minute, last_minute, 0 AS side FROM seals FINAL"
        " WHERE generation = 0 AND rows > 0 AND booking >= %(first)s AND booking <= %(last)s"
        " UNION ALL "
        "SELECT booking, count(), sum(count), min(minute), max(minute), 1 AS side FROM usage"
        " WHERE booking >= %(first)s AND booking <= %(last)s GROUP BY booking"
        ") GROUP BY booking HAVING sealed != held ORDER BY booking",
        {"first": first, "last": last},
    )
    for booking, sealed, held in rows:
        yield SealDifference(booking=booking, sealed=_extent(sealed), held=_extent(held))


def _extent(values: tuple[int, int, datetime, datetime]) -> Extent | None:
    rows, events, first, last = values
    if not rows:
        return None
    first, last = first.replace(tzinfo=UTC), last.replace(tzinfo=UTC)
    return Extent(rows=rows, events=events, first_minute=first, last_minute=last)
