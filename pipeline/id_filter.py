"""A filter in front of the accepted identities: of most events it knows that nobody counted them before.

Where memory is used up, the filter first gets denser, and is less sure. Identities are hashes, so every range of hashes
holds its share of them: then it covers a smaller range, and of what lies outside it says "perhaps", which costs a
look-up and no mistake. Only what is covered is loaded, so that neither memory nor the time to load grows with what is
remembered.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.compiled import load_id_kernel
from pipeline.identities import EVERYTHING, HASHES, U64, IdStore

log = logging.getLogger(__name__)

_PROBES, _BITS_EACH = 8, 32
_DENSER = {32: 20, 20: 14, 14: 10, 10: 7}  # bits for each id, where there is no room for another layer
_DENSE_LAYERS = 3  # the largest; the others hold few ids, and would be as unsure
_SHARES = 64  # of the range of hashes; without room for all, the upper half of those still covered is given up
_SHARE_BITS = 58  # of a hash lie below the number of its share
_FIRST_BITS, LIMIT_BYTES = 1 << 29, 1 << 30
_DENSE = "no action is needed: up to a third of new ids are looked up; raise id_filter_bytes to make that fewer"
_FULL = "no action is needed: ids that it does not cover are looked up; raise id_filter_bytes to cover more of them"

_Key = tuple[str, int]  # (topic id, partition)


class _Cover(NamedTuple):
    """What the filter holds at a moment: the lower shares of the hashes, in layers, the newest last."""

    shares: int
    layers: tuple[_Layer, ...]

    @property
    def end(self) -> int:
        """The hash below which it covers."""
        return self.shares << _SHARE_BITS

    def perhaps(self, high: U64, low: U64, known: int = HASHES) -> npt.NDArray[np.bool_]:
        """Tell which of some identities may be in; all may that it does not cover, or from the hash `known` on."""
        known = min(known, self.end)
        if known < HASHES:
            result = np.ones(len(high), bool)
            inside = np.flatnonzero(high < np.uint64(known)) if known else ()
            if len(inside):
                result[inside] = self._perhaps(high[inside], low[inside])
            return result
        return self._perhaps(high, low)

    def _perhaps(self, high: U64, low: U64) -> npt.NDArray[np.bool_]:
        result = self.layers[0].perhaps(high, low)
        for layer in self.layers[1:]:
            result |= layer.perhaps(high, low)
        return result


class IdFilter:
    """A Bloom filter over identities, one for the process. It may say "perhaps" for a new one, never "new" for
    an old one.

    Until `load` has read what ClickHouse holds, everything is "perhaps": a worker may start at once, only slower.

    Args:
        bits: Of the first layer, fewer where not so many may be; each further one has twice as many. A power of two.
        limit_bytes: What all layers together may take; at least eight.
    """

    def __init__(self, bits: int = _FIRST_BITS, limit_bytes: int = LIMIT_BYTES) -> None:
        self._bits, self._limit = min(bits, _power_of_two(max(8 * limit_bytes, _SHARES))), limit_bytes
        self._cover = self._empty()
        self._loading: dict[_Key, object] = {}  # partition -> the load that counts, to come or done
        self._loaded: dict[_Key, int] = {}  # partition -> the hash below which its load has come
        self._carried: dict[str, int] = {}  # the same of earlier topics
        self._left: set[_Key] = set()  # partitions that were unloaded, and whose identities are still in it
        self._lock = threading.RLock()  # it may be closed by the garbage collector, in any thread, also in `add`
        self._carrying = threading.Lock()

    def add(self, high: U64, low: U64) -> None:
        with self._lock:
            while True:
                if self._cover.end < HASHES:
                    inside = high < np.uint64(self._cover.end)
                    high, low = high[inside], low[inside]
                for layer in self._cover.layers:
                    high, low = layer.add(high, low)
                if not len(high):
                    return
                self._grow()

    def perhaps(self, topic_id: str, partition: int, high: U64, low: U64) -> npt.NDArray[np.bool_]:
        """Tell which identities may have been accepted before."""
        loaded = self._loaded.get((topic_id, partition), 0)
        return self._cover.perhaps(high, low, loaded)  # asked for second: what is loaded by now is in it

    def expect(self, topic_id: str, partition: int) -> object:
        """Be sure of nothing in a partition until it is loaded: somebody else may have booked it up to now. Return what
        its load has to show: it may begin late, when the partition has left, and is back.

        From here on nothing that is added is let go, though the load has yet to begin: it will not find it again.
        """
        with self._lock:
            expected = self._loading[topic_id, partition] = object()
            self._loaded.pop((topic_id, partition), None)
            return expected

    def load(
        self,
        store: IdStore,
        topic_id: str,
        below: Mapping[int, int],
        before: Sequence[tuple[str, int]] = (),
        expected: Mapping[int, object] | None = None,
    ) -> None:
        """Read the accepted identities of some partitions, all in one reading, but for those that leave meanwhile; ask
        after their frontiers were read, so that none below one is missed. What is read is of use at once, and is not
        read again if this fails and is tried once more.

        Args:
            below: Where this process began to read each of them. Ids from there on are added as they are accepted:
                loading them now would make every event that is read again after a restart look like a copy.
            before: The topics before and how many partitions each has: theirs are read once for all partitions.
            expected: What `expect` returned of each; they are expected from now on where that is not said.
        """
        loads: dict[_Key, object] = {
            (topic_id, partition): expected[partition] if expected else object() for partition in below
        }
        with self._lock:
            if not expected:
                self._loading.update(loads)
            back = any(key in self._left for key in loads)
        self._carry(store, before)
        while loads := self._still(loads):
            start = min(self._loaded.get(key, 0) for key in loads)
            left = {partition: below[partition] for _, partition in loads}
            for end in self._take_in(store, topic_id, left, start, back=back):
                with self._lock:
                    mine = self._still(loads)
                    for key in mine:
                        self._loaded[key] = max(end, self._loaded.get(key, 0))
                if len(mine) < len(loads):  # a start that the group kept waiting began with all of them
                    break
            else:
                return

    def _still(self, loads: Mapping[_Key, object]) -> dict[_Key, object]:
        """Return those of some loads that count."""
        return {key: load for key, load in loads.items() if self._loading.get(key) is load}

    def _carry(self, store: IdStore, before: Sequence[tuple[str, int]]) -> None:
        with self._carrying:
            carried = self._carried
            for topic_id, partitions in before:
                below = dict.fromkeys(range(partitions), EVERYTHING)
                for end in self._take_in(store, topic_id, below, carried.get(topic_id, 0)):
                    carried[topic_id] = end

    def _take_in(
        self, store: IdStore, topic_id: str, below: Mapping[int, int], start: int, *, back: bool = False
    ) -> Iterator[int]:
        """Add what is accepted of some partitions, from a hash on as far as the filter covers; yield how far all is.

        If the filter is emptied meanwhile, what was added is gone, and the load has to be asked for again.

        Args:
            back: Whether it may hold most of it. What it holds takes no room again: partitions come and go for weeks.
        """
        if start >= self._cover.end:
            return
        for end, high, low in store.stream(topic_id, below, start):
            if back:
                missing = ~self._cover.perhaps(high, low)
                high, low = high[missing], low[missing]
            self.add(high, low)
            yield end
            if end >= self._cover.end:
                return

    def unload(self, topic_id: str, partition: int) -> None:
        """Be sure of nothing in a partition that somebody else books from now on, until it is loaded again.

        Its identities stay in the filter as long as other partitions are loaded: they cost room, and no mistakes.
        """
        with self._lock:
            self._loading.pop((topic_id, partition), None)
            self._loaded.pop((topic_id, partition), None)
            self._left.add((topic_id, partition))
            if not self._loading:
                self._cover, self._carried = self._empty(), {}
                self._left.clear()

    def close(self) -> None:
        """Let go of everything, for good: a load that runs ends with the portion that it reads just now."""
        with self._lock:
            self._loading.clear()
            self._loaded.clear()
            self._cover = _Cover(0, ())

    @property
    def covered(self) -> float:
        """How much of the range of hashes it covers, 0 to 1."""
        return self._cover.shares / _SHARES

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return sum(layer.size for layer in self._cover.layers)

    def _empty(self) -> _Cover:
        return _Cover(_SHARES, (_Layer(self._bits, _SHARES),))

    def _grow(self) -> None:
        """Add a layer. If there is no room for it, fill those that are there more densely; else cover half as much, and
        again, until there is.
        """
        shares, layers = self._cover
        if not layers:  # it was closed
            return
        bits = 2 * layers[-1].bits
        whole = bits + sum(layer.bits for layer in layers)
        bits_each = max(layer.bits_each for layer in layers[-_DENSE_LAYERS:])
        if whole // _SHARES * shares > 8 * self._limit and bits_each in _DENSER:
            log.info("id_filter_dense", extra={"bits_each": _DENSER[bits_each], "next_step": _DENSE})
            for layer in layers[-_DENSE_LAYERS:]:
                if layer.bits_each == bits_each:
                    layer.fill_to(_DENSER[bits_each])
            return
        while shares and whole // _SHARES * shares > 8 * self._limit:
            shares //= 2
        if shares < self._cover.shares:
            log.warning("id_filter_full", extra={"covers": shares / _SHARES, "bytes": self._limit, "next_step": _FULL})
            layers = tuple(layer.lower(shares) for layer in layers)
        self._cover = _Cover(shares, (*layers, _Layer(bits, shares)) if shares else ())


class _Layer:
    """One fixed Bloom filter: eight probes; full at one id for each 32 bits (0.0006 % false "perhaps"), or for fewer:
    at each twenty it is 0.014 %, at each seven 4.6 %, (1 - e^(-8/7))^8 (Bloom 1970).

    A false one holds up a whole block: a look-up in ClickHouse, ten milliseconds on a busy machine. At a hundred
    thousand new ids a second 0.014 % are fourteen of them. Each share of the hashes has its own part, and is full by
    itself: what is loaded comes in the order of hashes.

    Args:
        bits: As many as it would have for the whole range of hashes.
        shares: How many it has, the lower ones.
    """

    def __init__(self, bits: int, shares: int) -> None:
        self.bits, self._shares = bits, shares
        self._share_bits = bits // _SHARES
        self._bytes = np.zeros(-(-self._share_bits * shares // 8), np.uint8)
        self._room = np.full(shares, -(-self._share_bits // _BITS_EACH))  # how many more go into each share
        self.bits_each = _BITS_EACH  # for each id, when it is full

    @property
    def size(self) -> int:
        return len(self._bytes)

    def lower(self, shares: int) -> _Layer:
        """Return a copy of its lower shares."""
        kept = _Layer(self.bits, shares)
        kept._bytes[:] = self._bytes[: len(kept._bytes)]
        kept._room[:] = self._room[:shares]
        kept.bits_each = self.bits_each
        return kept

    def fill_to(self, bits_each: int) -> None:
        """Make room for more, up to an id for each so many bits."""
        self._room += -(-self._share_bits // bits_each) - -(-self._share_bits // self.bits_each)
        self.bits_each = bits_each

    def add(self, high: U64, low: U64) -> tuple[U64, U64]:
        """Add those for which there is room; return the others."""
        share = (high >> np.uint64(_SHARE_BITS)).astype(np.int64)
        if not len(high) or not self._room[share].any():
            return high, low
        wanted = np.bincount(share, minlength=self._shares)
        if (wanted <= self._room).all():
            self._room -= wanted
            self._set(high, low)
            return high[:0], low[:0]
        fits = _rank(share) < self._room[share]
        self._room -= np.minimum(wanted, self._room)
        self._set(high[fits], low[fits])
        return high[~fits], low[~fits]

    def _begin(self, high: U64, low: U64) -> tuple[np.uint64, U64, U64]:
        """Return the mask of places in a share, where each identity's share begins, and its steps between probes."""
        size = self._share_bits
        return np.uint64(size - 1), (high >> np.uint64(_SHARE_BITS)) * np.uint64(size), low | np.uint64(1)

    def _set(self, high: U64, low: U64) -> None:
        # Kirsch and Mitzenmacher: two independent hashes make any number of probes. Identities are hashes already.
        kernel = load_id_kernel()
        if kernel is not None:
            kernel.set_bits(self._bytes, self._share_bits, _SHARE_BITS, _PROBES, high, low)
            return
        mask, share, step = self._begin(high, low)
        at = high
        for _ in range(_PROBES):
            place = share + (at & mask)
            byte = (place >> np.uint64(3)).astype(np.int64)
            bit = np.uint8(1) << (place & np.uint64(7)).astype(np.uint8)
            # Two identities that share a byte overwrite each other in one assignment: repeat for those, they are few.
            while len(byte):
                self._bytes[byte] |= bit
                missing = (self._bytes[byte] & bit) == 0
                byte, bit = byte[missing], bit[missing]
            at = at + step

    def perhaps(self, high: U64, low: U64) -> npt.NDArray[np.bool_]:
        """Tell which may be in; each probe looks only at those that all probes before have let through."""
        result, kernel = np.zeros(len(high), bool), load_id_kernel()
        if kernel is not None:
            kernel.find_bits(self._bytes, self._share_bits, _SHARE_BITS, _PROBES, high, low, result)
            return result
        left = np.arange(len(high))
        mask, share, step = self._begin(high, low)
        at = high
        for _ in range(_PROBES):
            place = share + (at & mask)
            there = self._bytes[(place >> np.uint64(3)).astype(np.int64)] >> (place & np.uint64(7)).astype(np.uint8)
            hit = (there & 1).astype(bool)
            left, at, step, share = left[hit], at[hit], step[hit], share[hit]
            if not len(left):
                return result
            at = at + step
        result[left] = True
        return result


def _power_of_two(most: int) -> int:
    """Return the largest one that is not more."""
    return 1 << most.bit_length() - 1


def _rank(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many of the same value stand before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return rank
