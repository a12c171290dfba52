"""How much a counter counted: increments between its readings, which resets and holes do not falsify."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from tallyman.aggregations.base import Figure, Proof, Span, Terms
from tallyman.aggregations.moments import Group, Moment, Moments, Timeline, place_of, tally_events
from tallyman.aggregations.values import Numbers, at_share, deviation
from tallyman.meter import Aggregation, Of

_NOTHING = Proof()
# What can be made of increments in order of time, by itself.
_OF: Mapping[Of, Callable[[Sequence[int]], int | Fraction]] = {
    "sum": sum,
    "avg": lambda amounts: Fraction(sum(amounts), len(amounts)),
    "min": min,
    "max": max,
    "first": lambda amounts: amounts[0],
    "latest": lambda amounts: amounts[-1],
}


class Increment(NamedTuple):
    """What a reading adds to the one before it."""

    moment: Moment
    amount: int
    proof: Proof


class Counter(Timeline):
    """What is made of a counter's increments, each at the time of the later reading.

    - The first reading of a resource in its series adds nothing: nobody knows from where it counted.
    - A new incarnation of a resource begins at 0, so all of its first reading was counted since.
    - Inside an incarnation a counter cannot go back. A reading below an earlier one is told and adds nothing, and
      what follows adds only what is above the highest one: after a clock that stepped nothing counts twice.
    - Where the incarnation of either reading is unknown, a lower reading counts as a reset to 0.
    """

    name: Aggregation = "counter"

    def derive_each(
        self, state: Moments, spans: Sequence[Span], terms: Terms, group_of: Callable[[Moment], Group | None]
    ) -> Mapping[tuple[int, Group], Figure]:
        starts = [span.start_us for span in spans]
        made: dict[tuple[int, Group], list[Increment]] = defaultdict(list)
        for increment in increments(state, terms):
            index, group = place_of(spans, starts, increment.moment.time_us), group_of(increment.moment)
            if index is not None and group is not None:
                made[index, group].append(increment)
        events = tally_events(state, spans, group_of)
        figures = {place: _figure(mine, terms, events[place]) for place, mine in made.items()}
        return {place: figure for place, figure in figures.items() if figure is not None}


def _figure(made: list[Increment], terms: Terms, events: int) -> Figure | None:
    made.sort(key=_order)
    value = _value([increment.amount for increment in made], terms)
    if value is None:
        return None
    proofs = [increment.proof for increment in made if increment.proof is not _NOTHING]
    proof = Proof(*(sum(getattr(each, name) for each in proofs) for name in ("resets", "holes", "decreases")))
    return Figure(value, events, proof)


def _value(amounts: Sequence[int], terms: Terms) -> Decimal | None:
    """Return what is made of increments in order of time; of a single one there is no deviation."""
    if terms.of == "count":
        return terms.number_of(len(amounts))
    if terms.of == "stddev":
        return deviation(_numbers(amounts), terms)
    if terms.of == "percentile":
        return terms.quantity(at_share(_numbers(amounts), terms.percentile))
    return terms.quantity(_OF[terms.of](amounts))


def _numbers(amounts: Sequence[int]) -> Numbers:
    return sorted(Tally(amounts).items())


def _order(increment: Increment) -> tuple[int, tuple[str, ...]]:
    """Order increments by time, and those at one instant by whose they are."""
    moment = increment.moment
    return moment.time_us, (moment.subject, moment.dimensions, moment.resource or "", moment.incarnation or "")


def increments(state: Moments, terms: Terms) -> Iterator[Increment]:
    """Yield what each reading adds, by resource and in order of time."""
    tracks: dict[tuple[str, str, str | None], dict[Moment, int]] = defaultdict(dict)
    for moment, totals in state.items():
        if totals.count > 0:
            # Of several readings at one instant the highest counts: it was counted up to there.
            track, one = tracks[moment.subject, moment.dimensions, moment.resource], moment._replace(by="", version="")
            track[one] = max(totals.max or 0, track.get(one, totals.max or 0))
    for track in tracks.values():
        reader = _Reader(terms.believed_for_us)
        for moment in sorted(
            track, key=lambda moment: (moment.time_us, moment.incarnation is not None, moment.incarnation or "")
        ):
            step = reader.read(moment, track[moment])
            if step is not None:
                yield Increment(moment, *step)


class _Reader:
    """Reads the counter of one resource in one series."""

    def __init__(self, believed_for_us: int | None) -> None:
        self._believed_for_us = believed_for_us
        self._peaks: dict[str | None, int] = {}
        self._before: Moment | None = None

    def read(self, moment: Moment, value: int) -> tuple[int, Proof] | None:
        """Return what a reading adds, None for the first."""
        before, self._before = self._before, moment
        step = None if before is None else self._step(before, moment, value)
        peak = self._peaks.get(moment.incarnation, value)
        self._peaks[moment.incarnation] = value if moment.incarnation is None else max(value, peak)
        return step

    def _step(self, before: Moment, moment: Moment, value: int) -> tuple[int, Proof]:
        silence_us = moment.time_us - before.time_us
        hole = self._believed_for_us is not None and silence_us > self._believed_for_us
        if moment.incarnation is None or before.incarnation is None:
            last = self._peaks[before.incarnation]
            reset, decrease, amount = value < last, False, value if value < last else value - last
        elif moment.incarnation not in self._peaks:
            reset, decrease, amount = True, False, value
        else:
            peak = self._peaks[moment.incarnation]
            reset, decrease, amount = False, value < peak, max(0, value - peak)
        return amount, Proof(reset, hole, decrease) if reset or hole or decrease else _NOTHING
