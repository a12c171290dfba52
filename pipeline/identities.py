"""Which identities were accepted: the exact answer, for the few of which the filter (`pipeline.id_filter`) is not sure.

"Seen" means accepted at a smaller position of the log. Ids below the chunk's base are rows in ClickHouse, looked up by
batch; ids from the base on are kept here until the chunk is closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
HASHES = 1 << 64  # an identity's first number lies below
EVERYTHING = (1 << 63) - 1  # an offset behind all others


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
        self._written = 0

    def add(self, columns: IdColumns) -> None:
        if len(columns.high):
            self._blocks.append(columns)

    def clear(self) -> None:
        self._blocks.clear()
        self._written = 0

    def forget_below(self, offset: int) -> None:
        """Let go of written ids below an offset."""
        kept = [i for i, block in enumerate(self._blocks) if i >= self._written or int(block.offsets.max()) >= offset]
        self._written = sum(i < self._written for i in kept)
        self._blocks = [self._blocks[i] for i in kept]

    def __len__(self) -> int:
        return sum(len(block.high) for block in self._blocks)

    def unwritten(self) -> list[IdColumns]:
        return self._blocks[self._written :]

    def acknowledge(self, blocks: int) -> None:
        self._written += blocks

    def find(self, identities: Iterable[tuple[int, int]], below: int = EVERYTHING) -> dict[tuple[int, int], Accepted]:
        """Return the newest acceptance below an offset of each identity that was accepted since the base. Rare, so it
        may cost.
        """
        wanted = set(identities)
        high = np.fromiter((i[0] for i in wanted), np.uint64, len(wanted))
        found: dict[tuple[int, int], Accepted] = {}
        for block in self._blocks:
            for row in np.flatnonzero(np.isin(block.high, high)).tolist():
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
