"""What labels mean: from whom an event comes, which series it belongs to, and what its meters read.

A label is understood once, from a whole line that has it, by the contract's own decoder; both ways of reading lines
that look alike (`pipeline.lookalikes`, `pipeline.compiled_lookalikes`) ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.catalog import Catalog
from pipeline.homes import Home, Homes
from tallyman.errors import EventError
from tallyman.event import decode_event

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Reading = tuple[Ints, npt.NDArray[np.int32], npt.NDArray[Any]]  # rows, series, values
Scaled = Callable[[str, Ints, int], tuple[npt.NDArray[Any], Bools]]
# What the labels of all shapes under one catalog may take, by which they are forgotten: a tenant may send labels of two
# kilobytes without end, in as many shapes as it likes. Looked at each time that so many more were learned.
KNOWN_BYTES, LEARNED = 512 << 20, 4096
_HASHER_BYTES = 700  # what is kept to identify the events of one tenant and source
UNKNOWN = -1  # the kind of a label that is none of ours: left to the decoder for single lines


@dataclass(frozen=True, slots=True)
class FoundEvents:
    """Events in order, as columns; of `unwanted` rows all meters' filters say no.

    Attributes:
        identities: Two words for each row.
        readings: (rows, series, values) for each meter.
    """

    rows: Ints
    times: Ints
    homes: Ints
    identities: npt.NDArray[np.uint64]
    readings: list[Reading]
    unwanted: Ints


@dataclass(frozen=True, slots=True)
class Meaning:
    """What lines of one label share.

    Attributes:
        kind: The type's place among the types that are read here.
        series: For each meter that wants the type; -1 where its filter says no.
    """

    subject: str
    source: str
    kind: int
    series: Sequence[int]


@dataclass(slots=True)
class Labels:
    """What the labels of one shape mean, as columns by their number."""

    meters: int
    begins: list[Any] = field(default_factory=list)
    homes: Ints = field(default_factory=lambda: np.zeros(64, np.int64))
    kinds: Ints = field(default_factory=lambda: np.zeros(64, np.int64))
    series: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.series = np.full((64, self.meters), -1, np.int32)

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def size(self) -> int:
        """About how many bytes they take, each with a hasher of its own."""
        return self.homes.nbytes + self.kinds.nbytes + self.series.nbytes + _HASHER_BYTES * len(self.begins)

    def add(self, home: Home | None, kind: int, series: Sequence[int]) -> int:
        """Return the next number, which stands for this from now on; without a home it is none of ours."""
        number = len(self.begins)
        if number == len(self.homes):
            self.homes, self.kinds = np.resize(self.homes, 2 * number), np.resize(self.kinds, 2 * number)
            self.series = np.resize(self.series, (2 * number, self.meters))
        self.begins.append(home.begin if home else None)
        self.homes[number], self.kinds[number] = home.partition if home else 0, kind
        self.series[number] = -1
        self.series[number, : len(series)] = series
        return number


def to_forget(sizes: Sequence[int]) -> list[int]:
    """Return which shapes' labels are to be forgotten, by their sizes, so that the others fit: the largest first.

    Whoever sends labels without end loses its own, and others keep theirs.
    """
    found, left = [], sum(sizes)
    for number in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if left <= KNOWN_BYTES:
            break
        found.append(number)
        left -= sizes[number]
    return found


class Meanings:
    """What labels mean under one catalog.

    Args:
        left_out: Types of events that are none of ours: their meters look deeper than the first level of `data`.
    """

    def __init__(self, catalog: Catalog, homes: Homes, left_out: set[str]) -> None:
        self._catalog, self._homes = catalog, homes
        self.types = [name for name in catalog.by_type if name not in left_out]
        self.width = max(map(len, catalog.by_type.values()), default=0)
        self.labels = frozenset(
            f"data.{path}" for meter in catalog.meters for path in (*meter.dimensions.values(), *meter.where)
        )
        self.quantities = frozenset(
            f"data.{meter.value}" for meter in catalog.meters if meter.aggregation != "count"
        )  # fmt: skip

    def of(self, line: bytes, values: Collection[str]) -> Meaning | None:
        """Understand a line's label; nothing, if it is left to the decoder for single lines.

        Args:
            values: The roles of what the line's shape gives as values.
        """
        try:
            event = decode_event(line)
            if event.type not in self.types:
                return None
            numbers = self._catalog.by_type[event.type]
            series = [self._catalog.series_of(number, event.subject, event.data) for number in numbers]
        except EventError:
            return None
        for number, found in zip(numbers, series, strict=True):
            meter = self._catalog.meters[number]
            if found >= 0 and meter.aggregation != "count" and f"data.{meter.value}" not in values:
                return None
        return Meaning(event.subject, event.source, self.types.index(event.type), series)

    def home_of(self, meaning: Meaning) -> Home:
        """Return where events of a label count, and how their identities begin."""
        return self._homes.find(meaning.subject, meaning.source)

    def measure(
        self, at: Ints, labels: Labels, label: Ints, good: Bools, scaled: Scaled
    ) -> tuple[list[Reading], Bools]:
        """Return each meter's readings, and which lines some meter wants; lines whose value is in doubt lose `good`.

        Args:
            at, label: The lines that are good so far, and their labels.
            scaled: Returns the quantities of a field in some lines, times 10**scale, and which of them are certain.
        """
        readings = []
        wanted = np.zeros(len(good), bool)
        kinds = labels.kinds[label]
        for kind in np.flatnonzero(np.bincount(kinds)):
            chosen = slice(None) if (kinds == kind).all() else kinds == kind
            members, of_members = at[chosen], label[chosen]
            for i, number in enumerate(self._catalog.by_type[self.types[kind]]):
                series = labels.series[of_members, i]
                mine, series = (members, series) if (series >= 0).all() else (members[series >= 0], series[series >= 0])
                wanted[mine] = True
                meter = self._catalog.meters[number]
                if meter.aggregation == "count":
                    values: npt.NDArray[Any] = np.ones(len(mine), np.int64)
                elif len(mine):
                    values, fine = scaled(f"data.{meter.value}", mine, meter.scale)
                    if not meter.allow_negative:
                        fine &= values >= 0
                    good[mine[~fine]] = False
                if len(mine):
                    readings.append((mine, series, values))
        return readings, wanted


def only(readings: list[Reading], good: Bools) -> list[Reading]:
    """Return the readings of lines that are good."""
    if good.all():
        return readings
    return [(at[good[at]], series[good[at]], values[good[at]]) for at, series, values in readings]
