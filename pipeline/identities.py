"""Which identities were accepted: a filter that says "certainly new", and the exact answer for the few that may not be.

"Seen" means accepted at a smaller position of the log. Ids below the chunk's base are rows in ClickHouse, looked up by
batch; ids from the base on are kept here until the chunk is closed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
_PROBES, _BITS_EACH = 8, 20
EVERYTHING = (1 << 63) - 1  # an offset behind all others


class Accepted(NamedTuple):
    """An accepted identity: where, until when its copies count as copies, the digest of its content, the
    definitions under which it was counted, and whether that was in an earlier topic of the line.
    """

    offset: int
    event_index: int
    remembered_us: int
    digest: int
    definitions: int = 1
    earlier: bool = False

    def is_before(self, offset: int) -> bool:
        """Whether it was accepted before the record at an offset."""
        return self.earlier or self.offset < offset

    @property
    def where(self) -> str:
        return f"offset {self.offset}" + (" of an earlier topic" if self.earlier else "")


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


class IdStore(Protocol):
    """The `ids` table, as far as counting once needs it."""

    def find(
        self, topic_id: str, partition: int, below: int, identities: list[tuple[int, int]]
    ) -> dict[tuple[int, int], Accepted]:
        """Return the newest acceptance below an offset of each identity that has one."""
        ...

    def stream(self, topic_id: str, partition: int, below: int) -> Iterator[tuple[U64, U64]]:
        """Yield the accepted identities of a partition below an offset as columns."""
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

    def find(self, identities: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Accepted]:
        """Return the newest acceptance of each identity that was accepted since the base. Rare, so it may cost."""
        wanted = set(identities)
        high = np.fromiter((i[0] for i in wanted), np.uint64, len(wanted))
        found: dict[tuple[int, int], Accepted] = {}
        for block in self._blocks:
            for row in np.flatnonzero(np.isin(block.high, high)).tolist():
                key = (int(block.high[row]), int(block.low[row]))
                if key in wanted:
                    found[key] = Accepted(
                        int(block.offsets[row]),
                        int(block.indexes[row]),
                        int(block.remembered_us[row]),
                        int(block.digests[row]),
                        int(block.definitions[row]),
                    )
        return found


class IdFilter:
    """A Bloom filter over identities, one for the process. It may say "perhaps" for a new one, never "new" for
    an old one.

    Until `load` has read what ClickHouse holds, everything is "perhaps": a worker may start at once, only slower.
    """

    def __init__(self, bits: int = 1 << 28) -> None:
        self._bits = bits
        self._layers: list[_Layer] = [_Layer(bits)]
        self._loading: dict[tuple[str, int], object] = {}  # partition -> the load that counts, to come or done
        self._loaded: set[tuple[str, int]] = set()
        self._carried: _Layer | None = None  # the first layer, once what earlier topics accepted is in
        self._lock, self._carrying = threading.Lock(), threading.Lock()

    def add(self, high: U64, low: U64) -> None:
        with self._lock:
            while len(high):
                room = self._layers[-1].room
                if not room:
                    self._layers.append(_Layer(self._layers[-1].bits * 2))
                    continue
                self._layers[-1].add(high[:room], low[:room])
                high, low = high[room:], low[room:]

    def perhaps(self, topic_id: str, partition: int, high: U64, low: U64) -> npt.NDArray[np.bool_]:
        """Tell which identities may have been accepted before."""
        if (topic_id, partition) not in self._loaded:
            return np.ones(len(high), bool)
        result = self._layers[0].perhaps(high, low)
        for layer in self._layers[1:]:
            result |= layer.perhaps(high, low)
        return result

    def expect(self, topic_id: str, partition: int) -> None:
        """Be sure of nothing in a partition until it is loaded: somebody else may have booked it up to now.

        From here on nothing that is added is let go, though the load has yet to begin: it will not find it again.
        """
        with self._lock:
            self._loading[topic_id, partition] = object()
            self._loaded.discard((topic_id, partition))

    def load(
        self, store: IdStore, topic_id: str, partition: int, below: int, before: Sequence[tuple[str, int]] = ()
    ) -> None:
        """Read the accepted identities of a partition; ask after its frontier was read, so that none below it
        is missed.

        Args:
            below: Where this process began to read: what it accepts from there on it adds itself. Were those in that
                stand there already, everything that is read again after a restart would be asked of ClickHouse.
            before: The partitions of the topics before: theirs are read once for all partitions.
        """
        key, this = (topic_id, partition), object()
        with self._lock:
            self._loading[key] = this
        self._carry(store, before)
        for high, low in store.stream(topic_id, partition, below):
            self.add(high, low)
        with self._lock:
            if self._loading.get(key) is this:
                self._loaded.add(key)

    def _carry(self, store: IdStore, before: Sequence[tuple[str, int]]) -> None:
        with self._carrying:
            first = self._layers[0]
            if not before or self._carried is first:
                return
            for key in before:
                for high, low in store.stream(*key, EVERYTHING):
                    self.add(high, low)
            self._carried = first

    def unload(self, topic_id: str, partition: int) -> None:
        """Be sure of nothing in a partition that somebody else books from now on, until it is loaded again.

        Its identities stay in the filter as long as other partitions are loaded: they cost room, and no mistakes.
        """
        with self._lock:
            self._loading.pop((topic_id, partition), None)
            self._loaded.discard((topic_id, partition))
            if not self._loading:
                self._layers = [_Layer(self._bits)]


class _Layer:
    """One fixed Bloom filter: eight probes; full at one id for each twenty bits (0.014 % false "perhaps").

    A false one costs a look-up in ClickHouse, which with ten million ids there takes 0.1 s for a hundred of them.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._capacity = bits // _BITS_EACH
        self._bytes = np.zeros(bits >> 3, np.uint8)
        self._count = 0

    @property
    def room(self) -> int:
        """How many more identities go in."""
        return self._capacity - self._count

    def _positions(self, high: U64, low: U64) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]]:
        # Kirsch and Mitzenmacher: two independent hashes make any number of probes. Identities are hashes already.
        mask, step = np.uint64(self.bits - 1), low | np.uint64(1)
        at = high
        for _ in range(_PROBES):
            bit = at & mask
            yield (bit >> np.uint64(3)).astype(np.int64), np.uint8(1) << (bit & np.uint64(7)).astype(np.uint8)
            at = at + step

    def add(self, high: U64, low: U64) -> None:
        self._count += len(high)
        for byte, bit in self._positions(high, low):
            # Two identities that share a byte overwrite each other in one assignment: repeat for those, they are few.
            while len(byte):
                self._bytes[byte] |= bit
                missing = (self._bytes[byte] & bit) == 0
                byte, bit = byte[missing], bit[missing]

    def perhaps(self, high: U64, low: U64) -> npt.NDArray[np.bool_]:
        """Tell which may be in; each probe looks only at those that all probes before have let through."""
        result = np.zeros(len(high), bool)
        left = np.arange(len(high))
        mask, step = np.uint64(self.bits - 1), low | np.uint64(1)
        at = high
        for _ in range(_PROBES):
            bit = at & mask
            there = (self._bytes[(bit >> np.uint64(3)).astype(np.int64)] >> (bit & np.uint64(7)).astype(np.uint8)) & 1
            hit = there.astype(bool)
            left, at, step = left[hit], at[hit], step[hit]
            if not len(left):
                return result
            at = at + step
        result[left] = True
        return result
