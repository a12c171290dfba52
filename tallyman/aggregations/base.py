"""What all aggregations share: what is stored (`Cell`), what is asked (`Span`, `Terms`), what is answered (`Figure`),
and how one becomes the other (`Aggregate`). Everything here is pure and exact: integers, fractions, decimals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec

from tallyman.aggregations.exact import exact, rounded
from tallyman.meter import Aggregation, Bucket, Of, Rounding
from tallyman.usage import Totals, merge, scaled

State = TypeVar("State")
Key = TypeVar("Key", bound=Hashable)
# Under what the rows of an aggregation are kept apart besides series and minute (`tallyman.meter.item_of`).
Kept = Literal["together", "by value", "by moment"]


class Cell(NamedTuple):
    """What is stored of one series and item in one minute.

    Attributes:
        start_s: Where the minute begins, in seconds since 1970.
    """

    subject: str
    dimensions: str
    start_s: int
    item: str
    totals: Totals


@dataclass(frozen=True, slots=True)
class Terms:
    """What a reader must know of a meter to derive its answers.

    Attributes:
        scale: Decimal digits behind the point of the stored integers.
        factor: What answers are multiplied by.
        offset: What each reading is more by after that.
        rounding, digits: How an answer is rounded, last of all.
        believed_for_us: How long a level holds in silence, how far apart a counter's readings may be. None: for ever.
    """

    scale: int = 0
    factor: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    rounding: Rounding = "exact"
    digits: int = 0
    percentile: Fraction = Fraction(50)
    bucket: Bucket = "hour"
    level: Literal["absolute", "delta"] = "absolute"
    answer: Literal["integral", "average"] = "integral"
    of: Of = "sum"
    believed_for_us: int | None = None

    def quantity(self, number: int | Fraction, readings: int = 1) -> Decimal:
        """Return what a stored number, or something in proportion to it, stands for in the meter's unit.

        Args:
            readings: How many readings are added up in it.
        """
        if isinstance(number, int) and self.factor == 1 and not self.offset and self.rounding == "exact":
            return scaled(number, self.scale)
        return self.shown(number * self.factor / 10**self.scale + readings * self.offset)

    def number_of(self, things: int | Fraction) -> Decimal:
        """Return an answer that has no scale: a number of things, or seconds."""
        return self.shown(things * self.factor)

    def shown(self, answer: Fraction) -> Decimal:
        """Return an answer as it is shown: exactly, or rounded as the meter says."""
        return exact(answer if self.rounding == "exact" else rounded(answer, self.rounding, self.digits))


class _Parameters(msgspec.Struct):
    percentile: str = "50"
    bucket: Bucket = "hour"
    level: Literal["absolute", "delta"] = "absolute"
    answer: Literal["integral", "average"] = "integral"
    of: Of = "sum"
    believed_for_s: str | None = None
    factor: str = "1"
    offset: str = "0"
    rounding: Rounding = "exact"
    digits: str = "0"


@lru_cache(maxsize=1024)
def terms_of(parameters: str, scale: int) -> Terms:
    """Read what `tallyman.meter.parameters_of` wrote."""
    named = msgspec.json.decode(parameters or "{}", type=_Parameters)
    silence = named.believed_for_s
    return Terms(
        scale=scale,
        factor=Fraction(named.factor),
        offset=Fraction(named.offset),
        rounding=named.rounding,
        digits=int(named.digits),
        percentile=Fraction(Decimal(named.percentile)),  # which reads all that a meter may ever have said
        bucket=named.bucket,
        level=named.level,
        answer=named.answer,
        of=named.of,
        believed_for_us=None if silence is None else int(Fraction(silence) * 1_000_000),
    )


@dataclass(frozen=True, slots=True)
class Span:
    """A window `[start_us, end_us)` in microseconds since 1970.

    Attributes:
        buckets: Where buckets begin inside it, in seconds since 1970, in order, the window's own start first;
            None where each minute is one.
        known_to_us: Where the known past ends: levels are carried no further. None: not before the window does.
    """

    start_us: int
    end_us: int
    buckets: tuple[int, ...] | None = None
    known_to_us: int | None = None

    @property
    def known_us(self) -> int:
        """How much of it has passed, as far as is known."""
        end_us = self.end_us if self.known_to_us is None else min(self.end_us, self.known_to_us)
        return max(0, end_us - self.start_us)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a counter's readings prove besides their increments.

    Attributes:
        resets: How often it began again from 0.
        holes: Neighbours that are further apart than they may be.
        decreases: Readings below an earlier one of the same incarnation, which nothing explains; they add nothing.
    """

    resets: int = 0
    holes: int = 0
    decreases: int = 0


@dataclass(frozen=True, slots=True)
class Figure:
    """An answer: its exact value in the meter's unit, from how many events, and what a counter proves."""

    value: Decimal
    events: int
    proof: Proof | None = None


class Aggregate(ABC, Generic[State]):
    """One aggregation: how what is stored is merged, and how an answer is derived from it.

    `merge` is associative and commutative and has `empty()` as its identity: it does not matter who
    adds cells, in which order and in how many parts.
    """

    name: Aggregation
    kept: Kept = "together"
    zero_if_empty: bool = False

    @abstractmethod
    def empty(self) -> State:
        """Return what is known of nothing."""

    @abstractmethod
    def of(self, cell: Cell) -> State:
        """Return what one cell tells."""

    @abstractmethod
    def merge(self, a: State, b: State) -> State:
        """Return what is known when both are."""

    @abstractmethod
    def derive(self, state: State, span: Span, terms: Terms) -> Figure | None:
        """Return the answer for a window, None where there is none.

        Args:
            state: What is known of the window, and for `Timeline`s also of the time before it.
        """

    def add(self, state: State, cell: Cell) -> State:
        """Return what is known with one more cell; `state` may be changed and is not to be used again."""
        return self.merge(state, self.of(cell))

    def gather(self, cells: Iterable[Cell]) -> State:
        """Return what some cells tell together."""
        return reduce(self.add, cells, self.empty())

    def rescaled(self, cell: Cell, factor: int) -> Cell:
        """Return a cell as if its meter's scale had been larger, by a power of ten."""
        return cell if factor == 1 else cell._replace(totals=cell.totals.times(factor))


class Apart(Aggregate[Mapping[Key, Totals]]):
    """An aggregation that must keep totals apart by a key until an answer is derived."""

    @abstractmethod
    def key(self, cell: Cell) -> Key:
        """Return under what a cell's totals are kept."""

    def told(self, cell: Cell) -> Totals:
        """Return what a cell tells of its key."""
        return cell.totals

    def empty(self) -> Mapping[Key, Totals]:
        return {}

    def of(self, cell: Cell) -> Mapping[Key, Totals]:
        return {self.key(cell): self.told(cell)}

    def merge(self, a: Mapping[Key, Totals], b: Mapping[Key, Totals]) -> Mapping[Key, Totals]:
        merged = dict(a)
        for key, totals in b.items():
            _put(merged, key, totals)
        return merged

    def add(self, state: Mapping[Key, Totals], cell: Cell) -> Mapping[Key, Totals]:
        grown = state if isinstance(state, dict) else dict(state)
        _put(grown, self.key(cell), self.told(cell))
        return grown


def _put(state: dict[Key, Totals], key: Key, totals: Totals) -> None:
    before = state.get(key)
    state[key] = totals if before is None else merge(before, totals)


def events_in(state: Mapping[Key, Totals]) -> int:
    """Return how many events are still counted; a voided one is not."""
    return sum(totals.count for totals in state.values())
