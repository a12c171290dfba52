"""Which blocks of sealed usage tile a question's windows: the largest that no edge cuts, smaller ones beside one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

BLOCKS_S = (43_200, 21_600, 10_800, 3_600, 900)  # each a multiple of the next; as `usage_rolled_up` holds them
_QUARTER_S = BLOCKS_S[-1]
_DAY_S = 86_400


def tiled(edges: Iterable[int]) -> tuple[int, ...]:
    """Return the edges of what blocks tile of windows with these edges, in seconds since 1970, the outermost with it.

    That is all but what the two ends leave of a quarter of an hour; nothing where windows begin inside quarters, or lie
    in one.

    >>> tiled([0, 3_600, 7_200]), tiled([840, 3_600, 7_260]), tiled([60, 3_660, 7_200]), tiled([60, 960])
    ((0, 3600, 7200), (900, 3600, 7200), (), ())
    """
    first, *inside, last = sorted({*edges})
    begin, end = -(-first // _QUARTER_S) * _QUARTER_S, last - last % _QUARTER_S
    if begin >= end or any(edge % _QUARTER_S for edge in inside):
        return ()
    return tuple(sorted({begin, *inside, end}))


def tiles_sql(edges: Collection[int]) -> str:
    """Return the SQL of the blocks (`seconds`, `of_day`, `start`) that tile what lies between edges which fit.

    A block of half a day counts if no edge cuts it, a smaller one if it lies in one that is cut and no edge cuts it
    itself. Their sizes and times of day come first: these say where blocks lie, and where days begin at one time all
    year, they say it all.

    >>> tiles_sql([0, 86_400])
    '(seconds, of_day) IN ((43200, 0), (43200, 43200))'
    >>> tiles_sql([18_000, 104_400])  # a winter's day of New York
    '(seconds, of_day) IN ((43200, 43200), (21600, 21600), (10800, 0), (3600, 10800), (3600, 14400), (3600, 18000))'
    """
    tiles = list(_tiles(_every_day(edges)))
    places = ", ".join(f"({tile.seconds}, {time})" for tile in tiles for time in sorted(tile.times))
    found = f"(seconds, of_day) IN ({places})"
    if not any(tile.days for tile in tiles):
        return found
    return f"{found} AND ({' OR '.join(f'seconds = {tile.seconds}{tile.days}' for tile in tiles)})"


def _every_day(edges: Collection[int]) -> Collection[int]:
    """Return the edges; where each day has one, those of any day on all of them.

    An hour of daylight saving cuts other blocks in summer than in winter. Which lie in which day no index tells, so
    those of both would be read all year, which are more than the small ones that suit both.
    """
    first, last = min(edges), max(edges)
    days = range(first - first % _DAY_S, last + 1, _DAY_S)
    if len(edges) < len(days) - 1:
        return edges
    times = {edge % _DAY_S for edge in edges}
    return {day + time for day in days for time in times if first <= day + time <= last}


class _Tile(NamedTuple):
    """The blocks of one size that count.

    Attributes:
        times: Their times of day.
        days: The SQL of the days on which they count; "" if all do.
    """

    seconds: int
    times: frozenset[int]
    days: str


def _tiles(edges: Collection[int]) -> Iterator[_Tile]:
    span = min(edges), max(edges)
    size, left = 0, frozenset[int]()  # the blocks of the size above that are cut: what smaller ones have to fill
    for seconds in BLOCKS_S:
        cut = frozenset(edge - edge % seconds for edge in edges if edge % seconds)
        everywhere = range(span[0] - span[0] % seconds, span[1], seconds)
        if not size and len(cut) == len(everywhere):
            continue
        inside = (place for block in left for place in range(block, block + size, seconds)) if size else everywhere
        whole = {place for place in inside if place not in cut and span[0] <= place < span[1]}
        if whole:
            times = frozenset(place % _DAY_S for place in whole)
            days = ""
            if _count(times, span) > len(whole):  # some days are unlike others
                if size:
                    days += f" AND intDiv(toUInt32(start), {size}) IN ({_listed(place // size for place in left)})"
                if cut:
                    days += f" AND start NOT IN ({_listed(cut)})"
            yield _Tile(seconds, times, days)
        if not cut:
            return
        size, left = seconds, cut


def _count(times: Iterable[int], span: tuple[int, int]) -> int:
    """Return how often some times of day come in a span."""
    return sum((span[1] - 1 - time) // _DAY_S - (span[0] - 1 - time) // _DAY_S for time in times)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
