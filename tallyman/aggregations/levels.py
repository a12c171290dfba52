"""How high and how long: the integral of a level over time, or its average; the seconds spent in some states."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from operator import itemgetter
from typing import NamedTuple

from tallyman.aggregations.base import Figure, Span, Terms
from tallyman.aggregations.moments import Group, Moment, Moments, Timeline, tally_events
from tallyman.meter import Aggregation
from tallyman.usage import Totals

SECOND_US = 1_000_000


class Stretch(NamedTuple):
    """A level that holds from one instant to another, in microseconds; `end_us` None: nobody knows an end."""

    moment: Moment
    height: int
    start_us: int
    end_us: int | None


class _Change(NamedTuple):
    """What changes at an instant: the sum of the levels of a group, and how many of them are not 0."""

    time_us: int
    height: int
    alive: int


class OfLevels(Timeline):
    """An aggregation over the levels of resources, which add up.

    A level holds until the next one of the same track, as long as it is believed, and never longer than the past
    is known. A window in which nothing was read and no level holds has no answer.
    """

    def derive_each(
        self, state: Moments, spans: Sequence[Span], terms: Terms, group_of: Callable[[Moment], Group | None]
    ) -> Mapping[tuple[int, Group], Figure]:
        changes: dict[Group, list[_Change]] = defaultdict(list)
        for stretch in self.stretches(state, terms):
            group = group_of(stretch.moment)
            if group is not None:
                changes[group].extend(_changes(stretch, spans[-1]))
        starts = [span.start_us for span in spans]
        areas = {  # most groups hold nothing in most windows
            (index, group): area
            for group, mine in changes.items()
            for index, area in _sweep(sorted(mine), spans, starts)
        }
        events = tally_events(state, spans, group_of)
        figures = {}
        for place in self.spoken_of(state, spans, group_of) | areas.keys():
            figure = self.figure(areas.get(place, 0), spans[place[0]], terms, events[place])
            if figure is not None:
                figures[place] = figure
        return figures

    def spoken_of(
        self, state: Moments, spans: Sequence[Span], group_of: Callable[[Moment], Group | None]
    ) -> set[tuple[int, Group]]:
        """Return the windows and groups that have an answer because of what was read in them, whatever it was."""
        return set(tally_events(state, spans, group_of))

    @abstractmethod
    def stretches(self, state: Moments, terms: Terms) -> Iterator[Stretch]:
        """Yield where which level holds."""

    @abstractmethod
    def figure(self, area: int, span: Span, terms: Terms, events: int) -> Figure | None:
        """Return the answer for level x microseconds in a window."""


class TimeWeighted(OfLevels):
    """A level summed over seconds, or its average over the window.

    A track is a resource in its series. A value is the level itself, or (`level: delta`) what the level changes by.
    """

    name: Aggregation = "time_weighted"

    def stretches(self, state: Moments, terms: Terms) -> Iterator[Stretch]:
        if terms.level == "delta":
            return _running(state)
        return _holding(state, terms, lambda moment: (moment.subject, moment.dimensions, moment.resource), _level)

    def figure(self, area: int, span: Span, terms: Terms, events: int) -> Figure | None:
        if terms.answer == "integral":
            return Figure(terms.quantity(Fraction(area, SECOND_US)), events)
        return Figure(terms.quantity(Fraction(area, span.known_us)), events) if span.known_us else None


class Lifecycle(OfLevels):
    """Seconds that resources spent in the states that count.

    A track is a resource of a subject: when its dimensions change, it leaves the old ones for the new ones. What
    ends it tells nothing of where it is told: a deletion that has no flavor makes no row for servers without one.
    """

    name: Aggregation = "lifecycle"

    def spoken_of(
        self, state: Moments, spans: Sequence[Span], group_of: Callable[[Moment], Group | None]
    ) -> set[tuple[int, Group]]:
        last: dict[Hashable, tuple[bytes, Moment]] = {}  # of each series, resource and instant
        for moment, totals in state.items():
            if totals.count > 0:
                place = moment.subject, moment.dimensions, moment.resource, moment.time_us
                last[place] = max(last.get(place, (b"", moment)), (totals.latest_at[1], moment), key=itemgetter(0))
        counted = {moment: state[moment] for _, moment in last.values() if _is_counted(state[moment])}
        return super().spoken_of(counted, spans, group_of)

    def stretches(self, state: Moments, terms: Terms) -> Iterator[Stretch]:
        return _holding(state, terms, lambda moment: (moment.subject, moment.resource), _is_counted)

    def figure(self, area: int, span: Span, terms: Terms, events: int) -> Figure | None:
        return Figure(terms.number_of(Fraction(area, SECOND_US)), events)


def _level(totals: Totals) -> int:
    return totals.latest or 0


def _is_counted(totals: Totals) -> int:
    return int(_level(totals) > 0)


def _holding(
    state: Moments, terms: Terms, track_of: Callable[[Moment], Hashable], level_of: Callable[[Totals], int]
) -> Iterator[Stretch]:
    """Yield each level until the next one of its track; of several at one instant the largest identity's holds."""
    tracks: dict[Hashable, list[tuple[int, bytes, Moment]]] = defaultdict(list)
    for moment, totals in state.items():
        if totals.count > 0:
            tracks[track_of(moment)].append((moment.time_us, totals.latest_at[1], moment))
    for track in tracks.values():
        track.sort(key=lambda reading: (*reading[:2], reading[2].dimensions))
        ends: Iterable[int | None] = (*(time_us for time_us, _, _ in track[1:]), None)
        for (time_us, _, moment), end_us in zip(track, ends, strict=True):
            yield Stretch(moment, level_of(state[moment]), time_us, _believed(time_us, end_us, terms))


def _believed(time_us: int, end_us: int | None, terms: Terms) -> int | None:
    if terms.believed_for_us is None:
        return end_us
    lapses_us = time_us + terms.believed_for_us
    return lapses_us if end_us is None else min(end_us, lapses_us)


def _running(state: Moments) -> Iterator[Stretch]:
    """Yield the running sum of changes in each series; a voided one changes nothing."""
    tracks: dict[tuple[str, str], list[Moment]] = defaultdict(list)
    for moment in state:
        tracks[moment.subject, moment.dimensions].append(moment)
    for track in tracks.values():
        track.sort(key=lambda moment: moment.time_us)
        height, ends = 0, (*(moment.time_us for moment in track[1:]), None)
        for moment, end_us in zip(track, ends, strict=True):
            height += state[moment].sum
            yield Stretch(moment, height, moment.time_us, end_us)


def _changes(stretch: Stretch, last: Span) -> Iterator[_Change]:
    """Yield what a stretch changes where it begins and ends, within the past that is known."""
    known_to_us = last.end_us if last.known_to_us is None else min(last.end_us, last.known_to_us)
    end_us = known_to_us if stretch.end_us is None else min(stretch.end_us, known_to_us)
    if stretch.height and stretch.start_us < end_us:
        yield _Change(stretch.start_us, stretch.height, 1)
        yield _Change(end_us, -stretch.height, -1)


def _sweep(
    changes: Sequence[_Change], spans: Sequence[Span], starts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield the place of each window in which a level is not 0, and level x microseconds in it, in order of time.

    Args:
        starts: Where the windows begin.
    """
    height = alive = place = index = 0
    while index < len(spans) and (alive or place < len(changes)):
        if not alive:  # nothing holds until the next change
            index = max(index, bisect_right(starts, changes[place].time_us) - 1)
        span = spans[index]
        size, ever, at_us = 0, False, span.start_us
        while place < len(changes) and changes[place].time_us < span.end_us:
            change = changes[place]
            if change.time_us > at_us:
                size, ever, at_us = size + height * (change.time_us - at_us), ever or alive > 0, change.time_us
            height, alive, place = height + change.height, alive + change.alive, place + 1
        if ever or alive:
            yield index, size + height * (span.end_us - at_us)
        index += 1
