"""Which identities were accepted: the exact answer, for the few of which the filter (`pipeline.id_filter`) is not sure.

"Seen" means accepted at a smaller position of the log. Ids below the chunk's base are rows in ClickHouse, looked up by
batch; ids from the base on are kept here until the chunk is closed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.compiled import load_id_kernel

U64 = npt.NDArray[np.uint64]
HASHES = 1 << 64  # an identity's first number lies below
EVERYTHING = (1 << 63) - 1  # an offset behind all others
_MARKS_EACH = 16


class Accepted(NamedTuple):
    """An accepted identity: where, until when its copies count as copies, the digest of its content, the
    definitions under which it was counted, how many topics of the line ago that was, and whether the identity was
    accepted before as well, and had expired.
    """

    offset: int
    event_index: int
    remembered_us: int
    digest: int
    definitions: int = 1
    topics_ago: int = 0
    again: bool = False

    @property
    def place(self) -> tuple[int, int, int]:
        """What grows along the line, for one identity and what corrects it: they have one home."""
        return -self.topics_ago, self.offset, self.event_index

    def after(self, other: Accepted | None) -> Accepted:
        """Return the newer one of two acceptances of an identity, or of two rows of one."""
        if other is None:
            return self
        newer = self if self.place > other.place else other
        return newer._replace(again=self.again or other.again or self.place != other.place)

    @property
    def where(self) -> str:
        return f"offset {self.offset}" + (" of an earlier topic" if self.topics_ago else "")


class IdColumns(NamedTuple):
    """Accepted identities as columns, in log order; what `ids` holds."""

    high: U64
    low: U64
    offsets: npt.NDArray[np.int64]
    indexes: npt.NDArray[np.int64]
    remembered_us: npt.NDArray[np.int64]
    digests: U64
    definitions: npt.NDArray[np.uint32]

    def where(self, rows: npt.NDArray[np.bool_]) -> IdColumns:
        """Return some of the rows."""
        return IdColumns(
            self.high[rows], self.low[rows], self.offsets[rows], self.indexes[rows], self.remembered_us[rows],
            self.digests[rows], self.definitions[rows],
        )  # fmt: skip


class Portion(NamedTuple):
    """Accepted identities as columns. `end`: with these, all whose `identity_high` is below it have been given."""

    end: int
    high: U64
    low: U64


class IdStore(Protocol):
    """The `ids` table, as far as counting once needs it."""

    def find(
        self, topic_id: str, partition: int, below: int, identities: list[tuple[int, int]]
    ) -> dict[tuple[int, int], Accepted]:
        """Return the newest acceptance below an offset of each identity that has one."""
        ...

    def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
        """Yield the accepted identities of some partitions, each below an offset, in the order of their hashes, from
        one on.
        """
        ...


class AcceptedIds:
    """The identities accepted since the chunk's base, in log order; those not yet acknowledged are at the end."""

    def __init__(self) -> None:
        self._blocks: list[IdColumns] = []
        self._ends: list[int] = []  # how many ids there are up to the end of each block
        self._written = 0
        self._high = np.empty(0, np.uint64)  # of the first blocks, one behind the other, and room for more
        self._joined = 0  # how many blocks that are: those that were there when somebody asked

    def add(self, columns: IdColumns) -> None:
        if len(columns.high):
            self._ends.append(len(self) + len(columns.high))
            self._blocks.append(columns)

    def clear(self) -> None:
        self._blocks, self._ends, self._written = [], [], 0
        self._high, self._joined = np.empty(0, np.uint64), 0

    def forget_to(self, most: int, below: int) -> int:
        """Let go of the oldest written ids below an offset until so many are left; return the offset behind them."""
        left, behind, first = len(self), 0, 0
        for block in self._blocks[: self._written]:
            last = int(block.offsets.max())
            if left <= most or last >= below:
                break
            left, behind, first = left - len(block.high), max(behind, last + 1), first + 1
        kept, written = self._blocks[first:], self._written - first
        self.clear()
        for block in kept:
            self.add(block)
        self._written = written
        return behind

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def unwritten(self) -> list[IdColumns]:
        return self._blocks[self._written :]

    def acknowledge(self, blocks: int) -> None:
        self._written += blocks

    def find(self, identities: Iterable[tuple[int, int]], below: int = EVERYTHING) -> dict[tuple[int, int], Accepted]:
        """Return the newest acceptance below an offset of each identity that was accepted since the base.

        A million are gone through in two milliseconds, block by block in thirty.
        """
        wanted = set(identities)
        found: dict[tuple[int, int], Accepted] = {}
        for row in _rows_of(self._join(), np.array([high for high, _ in wanted], np.uint64)):
            number = bisect_right(self._ends, row)
            block, row = self._blocks[number], row - (self._ends[number - 1] if number else 0)
            key = (int(block.high[row]), int(block.low[row]))
            if key in wanted and int(block.offsets[row]) < below:
                this = Accepted(
                    int(block.offsets[row]),
                    int(block.indexes[row]),
                    int(block.remembered_us[row]),
                    int(block.digests[row]),
                    int(block.definitions[row]),
                )
                found[key] = this.after(found.get(key))
        return found

    def _join(self) -> U64:
        """Return the first numbers of all, in order."""
        size, begin = len(self), self._ends[self._joined - 1] if self._joined else 0
        if size > len(self._high):
            room = np.empty(max(size, 2 * len(self._high)), np.uint64)
            room[:begin] = self._high[:begin]
            self._high = room
        if size > begin:
            np.concatenate([block.high for block in self._blocks[self._joined :]], out=self._high[begin:size])
            self._joined = len(self._blocks)
        return self._high[:size]


def _rows_of(high: U64, wanted: U64) -> list[int]:
    """Return where one of those that are wanted stands."""
    kernel = load_id_kernel()
    if kernel is None:
        return np.flatnonzero(np.isin(high, wanted)).tolist()
    found = np.zeros(len(high), bool)
    marks = np.zeros(1 << (_MARKS_EACH * len(wanted)).bit_length(), bool)
    kernel.find_wanted(high, np.sort(wanted), marks, found)
    return np.flatnonzero(found).tolist()
