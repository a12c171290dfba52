"""What sums under several definitions are worth together: each as much as the definitions that booked it make of it.

So a row that comes later, of whomever, never changes what those before it are worth (docs/decisions/0055).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import NamedTuple

from tallyman.aggregations import Terms, terms_of
from tallyman.meter import Aggregation

# Of these a row's sum is one for each event, whatever the meter's scale is: how many events there are says it all.
_ONE_EACH = frozenset(("count", "unique_count", "lifecycle"))


class Made(NamedTuple):
    """How a row came to be: what the definitions that booked it say of its meter."""

    definitions: int
    aggregation: str
    scale: int
    parameters: str


class Worth(NamedTuple):
    """What a row of some making is worth, in parts that all rows of a figure have in common.

    Attributes:
        by_sum: How many parts one of the stored sum is.
        by_event: How many parts each event adds.
    """

    by_sum: int
    by_event: int

    def of(self, total: int, events: int) -> int:
        """Return how many parts a row is worth."""
        return total * self.by_sum + events * self.by_event


@lru_cache(maxsize=1024)
def worths(made: Collection[Made], newest: Made, aggregation: Aggregation) -> tuple[Mapping[Made, Worth], Terms]:
    """Return what rows are worth to a figure that adds them up, and by which terms it follows from their parts.

    Args:
        made: How the rows of the figure's group came to be; the newest of them says how the answer is rounded.
        aggregation: As what they are read: "sum", "avg" or "count".
    """
    each = {one: _converted(one, newest, aggregation) for one in made}
    scale = max((terms.scale for terms, _ in each.values()), default=0)
    unit = 10**scale
    shares = [share for terms, _ in each.values() for share in (terms.factor, terms.offset * unit)]
    parts = lcm(*(share.denominator for share in shares))
    found = {}
    for one, (terms, by_events) in each.items():
        times = int(terms.factor * parts * 10 ** (scale - terms.scale))
        more = int(terms.offset * unit * parts)
        found[one] = Worth(0, times + more) if by_events else Worth(times, more)
    rounding = terms_of(newest.parameters, scale)
    return found, replace(rounding, factor=Fraction(1, parts), offset=Fraction(0))


def _converted(made: Made, newest: Made, aggregation: Aggregation) -> tuple[Terms, bool]:
    """Return by which terms a row is converted, and whether only its events are."""
    if aggregation == "count":  # of what was not counted before only how many there were is known, in no unit
        parameters = made.parameters if made.aggregation == "count" else newest.parameters
        return replace(terms_of(parameters, 0), offset=Fraction(0)), True
    by_events = made.aggregation in _ONE_EACH
    return terms_of(made.parameters, 0 if by_events else made.scale), by_events
