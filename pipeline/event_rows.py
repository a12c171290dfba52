"""Events in the making: columns that are filled row by row, or many rows at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.meanings import FoundEvents
from tallyman.errors import EventError


@dataclass(slots=True)
class EventRows:
    """One row for each line: what became of it (0 fine, 1 dead, 2 ignored), when and where it counts, and who it is.

    Attributes:
        errors: Why a line is dead: the first reason that was found.
        rows, series, values: The readings, in pieces.
    """

    kind: npt.NDArray[np.int8]
    times: npt.NDArray[np.int64]
    homes: npt.NDArray[np.int64]
    identities: npt.NDArray[np.uint64]
    errors: dict[int, EventError] = field(default_factory=dict)
    rows: list[npt.NDArray[np.int64]] = field(default_factory=list)
    series: list[npt.NDArray[np.int32]] = field(default_factory=list)
    values: list[npt.NDArray[Any]] = field(default_factory=list)

    @classmethod
    def of(cls, count: int) -> EventRows:
        """Return rows of which nothing is known."""
        return cls(
            np.zeros(count, np.int8), np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros((count, 2), "<u8")
        )

    def fail(self, row: int, error: EventError) -> None:
        """Call a line dead."""
        self.kind[row] = 1
        self.errors.setdefault(row, error)

    def identify(self, rows: Any, identities: bytes) -> None:
        """Set the identities of rows, 16 bytes each."""
        self.identities[rows] = np.frombuffer(identities, "<u8").reshape(-1, 2)

    def read(self, rows: npt.NDArray[np.int64], series: npt.NDArray[np.int32], values: npt.NDArray[Any]) -> None:
        """Add readings."""
        self.rows.append(rows)
        self.series.append(series)
        self.values.append(values)

    def take(self, found: FoundEvents) -> None:
        """Add events that were found together."""
        self.times[found.rows] = found.times
        self.homes[found.rows] = found.homes
        self.identities[found.rows] = found.identities
        self.kind[found.unwanted] = 2
        for readings in found.readings:
            self.read(*readings)

    def readings(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[Any]]:
        """Return all readings: row, series, value."""
        if not self.rows:
            return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64)
        if len(self.rows) == 1:
            return self.rows[0], self.series[0], self.values[0]
        return np.concatenate(self.rows), np.concatenate(self.series), np.concatenate(self.values)
