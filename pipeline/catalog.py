"""What each type of event means under one version of the definitions, and the numbers that stand for its series.

A series is (meter, subject, dimensions, item); inside a process it has a number, so that the work is done on integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.aggregate import Needs
from pipeline.series import LastMet, SeriesKey, SeriesTable
from tallyman.meter import (
    BY_ITEM,
    Definitions,
    Meter,
    dimension_text,
    encode_dimensions,
    find,
    item_of,
    parameters_of,
)

if TYPE_CHECKING:
    from pipeline.columns import Events

LATEST_COUNTS = frozenset(("latest", "first", "time_weighted", "lifecycle"))
EXTREMES_COUNT = frozenset(("min", "max", "sum_of_maxima", "counter"))
ITEMS_KEPT = 200_000  # met since the last clearing; those of open chunks stay in any case
SERIES_KEPT = 200_000  # that were not met lately
_LONGEST_US = 1 << 60
LATELY = 2  # tables of each partition: a chunk's, or a booking's part of it


class Catalog:
    """The meters of one version of the definitions, by event type, and the series met so far."""

    def __init__(self, definitions: Definitions) -> None:
        self.definitions = definitions
        self.meters: tuple[Meter, ...] = definitions.meters
        self.by_type: dict[str, tuple[int, ...]] = {}
        for number, meter in enumerate(definitions.meters):
            self.by_type[meter.event_type] = (*self.by_type.get(meter.event_type, ()), number)
        self.ignored = frozenset(definitions.ignore)
        self.series = SeriesTable()
        self.met = LastMet()
        # A tenant has many series, and many tenants have the same dimensions: one copy of each text does for all. Not
        # `sys.intern`, which some versions of Python keep for ever.
        self._texts: dict[str, str] = {}
        # Items come without end: the young are those met since the last clearing, the old those before.
        self._young: dict[SeriesKey, int] = {}
        self._old: dict[SeriesKey, int] = {}
        self._free: list[int] = []
        self.parameters = tuple(map(parameters_of, definitions.meters))
        self.by_item = frozenset(n for n, meter in enumerate(self.meters) if meter.aggregation in BY_ITEM)
        self.oldest_us = _microseconds(definitions.oldest_accepted)
        self._oldest_us_of = np.array([_microseconds(definitions.oldest_of(each)) for each in self.meters], np.int64)
        self.ahead_us = _microseconds(definitions.furthest_ahead)
        self.remember_us = _microseconds(definitions.longest_accepted) + self.ahead_us
        kinds = {meter.aggregation for meter in definitions.meters}
        self.needs = Needs(extremes=not kinds.isdisjoint(EXTREMES_COUNT), latest=not kinds.isdisjoint(LATEST_COUNTS))

    def oldest_us_of(self, events: Events) -> npt.NDArray[np.int64] | int:
        """Return how late each of these events may come: as the least patient of the meters says that count it."""
        if (self._oldest_us_of == self.oldest_us).all():
            return self.oldest_us
        meters = np.frombuffer(self.series.meters, np.uint32)[events.reading_series]
        oldest = np.full(len(events), _LONGEST_US, np.int64)
        np.minimum.at(oldest, events.reading_event, self._oldest_us_of[meters])
        return oldest

    def series_of(self, meter: int, subject: str, data: Mapping[str, Any]) -> int:
        """Return the number of an event's series, or -1 when the meter's filter leaves the event out.

        Raises:
            EventError: A dimension has a value that it cannot have.
        """
        definition = self.meters[meter]
        for path, wanted in definition.where.items():
            if dimension_text(path, find(data, path)) not in wanted:
                return -1
        named = {name: dimension_text(path, find(data, path)) for name, path in definition.dimensions.items()}
        dimensions, one = encode_dimensions(named), self._texts.setdefault
        return self.number(SeriesKey(meter, one(subject, subject), one(dimensions, dimensions)))

    def with_item(self, series: int, data: Mapping[str, Any], time_us: int, value: int, by: bytes = b"") -> int:
        """Return the number of what a reading of a series is counted under: the series itself, where it adds up.

        Raises:
            EventError: There is nothing that the meter could count it under.
        """
        key = self.series[series]
        if key.meter not in self.by_item:
            return series
        self.met.touch(series)
        item = item_of(self.meters[key.meter], data, time_us, value, by)
        return self.number(SeriesKey(key.meter, key.subject, key.dimensions, item))

    def number(self, key: SeriesKey) -> int:
        """Return the number that stands for a series in this process."""
        if key.item:
            return self._number_of_item(key)
        return self.series.number(key)

    def _number_of_item(self, key: SeriesKey) -> int:
        number = self._young.get(key)
        if number is not None:
            return number
        number = self._old.pop(key, None)
        if number is None and self._free:
            number = self._free.pop()
            self.series.replace(number, key)
        elif number is None:
            number = self.series.append(key)
        self._young[key] = number
        return number

    @property
    def crowded(self) -> bool:
        """Whether it is time to forget the items of chunks that are closed."""
        return len(self._young) > ITEMS_KEPT

    def forget_items(self, in_use: Iterable[int]) -> None:
        """Let go of items that no open chunk holds (`in_use`) and that were not met since the last time."""
        kept = set(in_use)
        gone = [(key, number) for key, number in self._old.items() if number not in kept]
        for key, number in gone:
            del self._old[key]
            self._free.append(number)
        self._old |= self._young
        self._young = {}

    def note_met(self, numbers: npt.NDArray[np.int64]) -> None:
        """Note that a table holds values of series; of those with an item it is noted as they come."""
        if len(numbers) and self.by_item:
            meters = np.frombuffer(self.series.meters, np.uint32)[numbers]
            numbers = numbers[~np.isin(meters, list(self.by_item))]
        self.met.touch_all(numbers)

    def has_many_idle(self, partitions: int) -> bool:
        """Tell whether most series have not been met lately, and so many that it is worth learning the others anew.

        Series that come to no table, such as those of events that are forwarded, are learned again and again; that is
        why some time passes before it is true for the first time.

        Args:
            partitions: How many have a chunk open under these definitions.
        """
        tables = LATELY * partitions
        if self.met.cleared < tables:
            return False
        busy = self.met.lately(tables)
        return self.series.lasting - busy > max(SERIES_KEPT, busy)


def _microseconds(duration: timedelta) -> int:
    """Return what may be added to any clock in 64 bits: what is longer reaches beyond all years either way."""
    return min(round(duration.total_seconds() * 1_000_000), _LONGEST_US)
