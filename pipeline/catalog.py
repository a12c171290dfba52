"""What each type of event means under one version of the definitions, and the numbers that stand for its series.

A series is (meter, subject, dimensions); inside a process it has a number, so that the work is done on integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tallyman.meter import Definitions, Meter, dimension_text, encode_dimensions, find


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """A series: its meter's place in the definitions, the tenant, and the dimensions as canonical JSON."""

    meter: int
    subject: str
    dimensions: str


class Catalog:
    """The meters of one version of the definitions, by event type, and the series met so far."""

    def __init__(self, definitions: Definitions) -> None:
        self.definitions = definitions
        self.meters: tuple[Meter, ...] = definitions.meters
        self.by_type: dict[str, tuple[int, ...]] = {}
        for number, meter in enumerate(definitions.meters):
            self.by_type[meter.event_type] = (*self.by_type.get(meter.event_type, ()), number)
        self.ignored = frozenset(definitions.ignore)
        self.series: list[SeriesKey] = []
        self._numbers: dict[SeriesKey, int] = {}
        self.oldest_us = _microseconds(definitions.oldest_accepted.total_seconds())
        self.ahead_us = _microseconds(definitions.furthest_ahead.total_seconds())
        self.remember_us = self.oldest_us + self.ahead_us
        self.ordered = any(meter.aggregation == "latest" for meter in definitions.meters)

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
        return self.number(SeriesKey(meter, subject, encode_dimensions(named)))

    def number(self, key: SeriesKey) -> int:
        """Return the number that stands for a series in this process."""
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.series)
            self.series.append(key)
        return number


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
