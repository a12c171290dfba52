"""The lines of a stretch of log: JSON events as bytes, and where each stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
PADDING = 8  # bytes that may be read behind a text; the compiled loops look at so many at once


@dataclass(slots=True)
class Lines:
    """Lines that are gathered record by record."""

    bodies: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    appended_ms: list[int] = field(default_factory=list)
    clocks_ms: list[int] = field(default_factory=list)
    admitted: list[bool] = field(default_factory=list)

    def together(self) -> Stretch:
        """Return them as columns."""
        places = np.array([self.offsets, self.indexes, self.appended_ms, self.clocks_ms], np.int64)
        return Stretch.of(self.bodies, places, np.array(self.admitted, bool))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Lines as columns.

    Attributes:
        bodies: The lines; cut from `text` when somebody asks for one.
        text: All lines, each followed by a byte below 32, and `PADDING` bytes more.
        starts, ends: Where each line is in `text`.
        places: Four rows: offset, index in the record, append time, clock of the log.
        admitted: Judged before.
    """

    bodies: Sequence[bytes]
    text: bytes
    starts: Ints
    ends: Ints
    places: Ints
    admitted: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, bodies: list[bytes], places: Ints, admitted: npt.NDArray[np.bool_]) -> Stretch:
        """Join lines that are cut already."""
        lengths = np.fromiter(map(len, bodies), np.int64, len(bodies))
        ends = np.cumsum(lengths + 1) - 1
        return cls(bodies, join(bodies), ends - lengths, ends, places, admitted)

    def __len__(self) -> int:
        return len(self.starts)


class Cuts(Sequence[bytes]):
    """Lines that are cut from a text when they are asked for: most never are."""

    def __init__(self, text: bytes, starts: Ints, ends: Ints) -> None:
        self.text, self.starts, self.ends = text, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: Any) -> Any:
        return self.text[self.starts[row] : self.ends[row]]

    def where(self, rows: npt.NDArray[Any]) -> Cuts:
        """Return some of them."""
        return Cuts(self.text, self.starts[rows], self.ends[rows])


def join(bodies: Sequence[bytes]) -> bytes:
    """Return texts one below the other, padded."""
    return b"\n".join([*bodies, bytes(PADDING)])
