"""How readings become totals: the one algebra of counts, sums, minima, maxima and latest values, in columns
and one by one.

`reduce_readings` and `Table` serve the streaming path on numpy columns of scaled integers; `pipeline.combine`
is the same
algebra for Beam's `CombinePerKey`. A test holds them equal. Everything here is pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
ANY_INTS = npt.NDArray[Any]  # int64, or object (Python integers) where 64 bits might not do
_FITS = 1 << 62
_MOST = (1 << 63) - 1
_LARGE = 1 << 17  # slots from which on a table grows by quarters


class Needs(NamedTuple):
    """What some meter asks for beyond counts and sums; what none does is neither worked out nor held."""

    extremes: bool = False
    latest: bool = False


SUMS_ALONE, EVERYTHING = Needs(), Needs(extremes=True, latest=True)


@dataclass(slots=True)
class Readings:
    """Readings as columns: row i is a value of the series-minute `keys[i]`.

    Attributes:
        keys: series code << 32 | minute.
        values: Scaled integers, int64 or object.
        times_us, by_high, by_low: Event time and identity, which order `latest`; read only if that is needed.
        weights: As how many each counts; -1 takes one back. None: all as one.
    """

    keys: IntArray
    values: ANY_INTS
    times_us: IntArray
    by_high: npt.NDArray[np.uint64]
    by_low: npt.NDArray[np.uint64]
    weights: IntArray | None = None

    def __len__(self) -> int:
        return len(self.keys)


_NO_ORDER = np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.uint64)
_COLUMNS = ("keys", "values", "times_us", "by_high", "by_low")
_SUMS, _EXTREMES, _LATEST = ("keys", "count", "sum"), ("min", "max"), ("latest", "latest_us", "by_high", "by_low")


def encode_keys(series: npt.NDArray[np.int32], minutes: IntArray) -> IntArray:
    """Return one integer for each (series, minute)."""
    return (series.astype(np.int64) << 32) | minutes


def wide_enough(values: ANY_INTS) -> ANY_INTS:
    """Return the values as int64 where any sum of them fits 64 bits, else as Python integers: a sum must never wrap."""
    if values.dtype == object or not len(values):
        return values
    largest = max(abs(int(values.max())), abs(int(values.min())))
    return values if largest * len(values) < _FITS else values.astype(object)


@dataclass(slots=True)
class Reduced:
    """One row for each distinct key, in key order. Columns that nobody needs are zero throughout, and take no room."""

    keys: IntArray
    count: IntArray
    sum: ANY_INTS
    min: ANY_INTS
    max: ANY_INTS
    latest: ANY_INTS
    latest_us: IntArray
    by_high: npt.NDArray[np.uint64]
    by_low: npt.NDArray[np.uint64]


def reduce_readings(readings: Readings, needs: Needs) -> Reduced:
    """Total readings by key.

    Args:
        readings: At least one row.
        needs: The order by (time, identity), which the latest value asks for, costs a sort of four columns.
    """
    values = wide_enough(readings.values)
    cells = _cells(readings.keys) if values.dtype != object else None
    if cells is not None:
        return _reduce_cells(readings, values, cells, needs)
    if needs.latest:
        order = np.lexsort((readings.by_low, readings.by_high, readings.times_us, readings.keys))
    else:
        order = np.argsort(readings.keys)
    keys = readings.keys[order]
    values = values[order]
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    ends = np.append(starts[1:], len(keys))
    found = _with_zeros(
        keys[starts],
        ends - starts if readings.weights is None else np.add.reduceat(readings.weights[order], starts),
        np.add.reduceat(values, starts),
    )
    if needs.extremes:
        found.min, found.max = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    if needs.latest:
        _take_latest(found, readings, order[ends - 1])
    return found


def _with_zeros(keys: IntArray, count: IntArray, total: ANY_INTS) -> Reduced:
    nothing = np.broadcast_to(np.int64(0), len(keys))
    none = np.broadcast_to(np.uint64(0), len(keys))
    return Reduced(keys, count, total, nothing, nothing, nothing, nothing, none, none)


def _take_latest(found: Reduced, readings: Readings, rows: IntArray) -> None:
    found.latest, found.latest_us = readings.values[rows], readings.times_us[rows]
    found.by_high, found.by_low = readings.by_high[rows], readings.by_low[rows]


def _cells(keys: IntArray) -> tuple[IntArray, int] | None:
    """Return a small number for each key, in the order of the keys, and how many numbers there are; None where the
    keys are spread too thinly for that.
    """
    series, minutes = keys >> 32, keys & 0xFFFFFFFF
    first_series, first_minute = int(series.min()), int(minutes.min())
    width = int(minutes.max()) - first_minute + 1
    size = (int(series.max()) - first_series + 1) * width
    if size > max(4 * len(keys), 1 << 16):
        return None
    return (series - first_series) * width + (minutes - first_minute), size


def _reduce_cells(readings: Readings, values: ANY_INTS, cells: tuple[IntArray, int], needs: Needs) -> Reduced:
    """Total readings by scattering them into cells: several times as fast as sorting them, where there are few."""
    at, size = cells
    rows = np.bincount(at, minlength=size)
    used = np.flatnonzero(rows)
    total = np.zeros(size, np.int64)
    np.add.at(total, at, values)
    count = rows
    if readings.weights is not None:
        count = np.zeros(size, np.int64)
        np.add.at(count, at, readings.weights)
    last = np.zeros(size, np.int64)
    last[at] = np.arange(len(at))  # of a cell's rows the last one written stays
    found = _with_zeros(readings.keys[last[used]], count[used], total[used])
    if needs.extremes:
        least, most = np.full(size, _MOST), np.full(size, -_MOST)
        np.minimum.at(least, at, values)
        np.maximum.at(most, at, values)
        found.min, found.max = least[used], most[used]
    if needs.latest:
        newest = np.full(size, -_MOST)
        np.maximum.at(newest, at, readings.times_us)
        tied = np.flatnonzero(readings.times_us == newest[at])
        order = tied[np.lexsort((readings.by_low[tied], readings.by_high[tied]))]
        last[at[order]] = order
        _take_latest(found, readings, last[used])
    return found


class Table:
    """The totals of one booking in one chunk: a slot for each series-minute; remembers which slots changed.

    Readings are kept as they come and reduced when somebody asks (`take_changes`), so that a fetch costs an append.
    All is in columns, 40 bytes for a slot of sums and 90 for one with everything: a million live series have to fit a
    worker.
    """

    def __init__(self, needs: Needs = SUMS_ALONE) -> None:
        self._needs = needs
        self.pending: list[Readings] = []
        self.pending_rows = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything: a new booking or a new chunk begins."""
        self.pending.clear()
        self.pending_rows = 0
        self._keys, self._slots = np.zeros(0, np.int64), np.zeros(0, np.int32)  # keys in order, and where each lies
        self._size = 0
        self._columns = Reduced(*_empty_columns())
        self._kept = (*_SUMS, *(_EXTREMES if self._needs.extremes else ()), *(_LATEST if self._needs.latest else ()))
        self._dirty = np.zeros(0, bool)

    def need(self, needs: Needs) -> None:
        """Say what is needed of what will be added; nothing may have been added yet."""
        if needs != self._needs:
            self._needs = needs
            self.clear()

    def add(self, readings: Readings) -> None:
        """Take readings in."""
        if len(readings):
            if not self._needs.latest:
                readings = Readings(readings.keys, readings.values, *_NO_ORDER, readings.weights)
            self.pending.append(readings)
            self.pending_rows += len(readings)
            if self.pending_rows > 1_000_000:
                self.fold()

    @property
    def changed(self) -> bool:
        return bool(self.pending) or self.changed_rows > 0

    @property
    def changed_rows(self) -> int:
        """How many slots changed since they were acknowledged; what is pending does not count yet."""
        return int(np.count_nonzero(self._dirty))

    def fold(self) -> None:
        """Merge what is pending into the slots."""
        if not self.pending:
            return
        reduced = reduce_readings(_concatenate(self.pending), self._needs)
        self.pending.clear()
        self.pending_rows = 0
        where, fresh = self._find(reduced.keys)
        self._reserve(self._size)
        self._widen(reduced)
        self._merge(where, fresh, reduced)
        self._dirty[where] = True

    def _find(self, keys: IntArray) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Return the slots of keys, which are in order and each there once, and which of them are new."""
        at = np.searchsorted(self._keys, keys)
        fresh = np.ones(len(keys), bool)
        inside = np.flatnonzero(at < self._size)
        fresh[inside] = self._keys[at[inside]] != keys[inside]
        where = np.empty(len(keys), np.int64)
        where[~fresh] = self._slots[at[~fresh]]
        new = int(np.count_nonzero(fresh))
        if new:
            where[fresh] = np.arange(self._size, self._size + new)
            self._keys = np.insert(self._keys, at[fresh], keys[fresh])
            self._slots = np.insert(self._slots, at[fresh], where[fresh])
            self._size += new
        return where, fresh

    def _reserve(self, size: int) -> None:
        columns, there = self._columns, len(self._columns.keys)
        if size <= there:
            return
        room = max(size, 1024, there * 2 if there < _LARGE else there + there // 4)
        self._dirty = np.concatenate((self._dirty, np.zeros(room - there, bool)))
        for name in self._kept:  # one by one, so that only one of them is there twice
            old = getattr(columns, name)
            setattr(columns, name, np.concatenate((old, np.zeros(room - there, old.dtype))))

    def _widen(self, reduced: Reduced) -> None:
        """Go over to Python integers before a 64-bit sum could wrap."""
        columns = self._columns
        if columns.sum.dtype != object:
            ours = int(np.abs(columns.sum[: self._size]).max(initial=0))
            theirs = max(abs(int(reduced.sum.max())), abs(int(reduced.sum.min())))
            if reduced.sum.dtype == object or ours + theirs >= _FITS:
                columns.sum = columns.sum.astype(object)
        for name in {"min", "max", "latest"}.intersection(self._kept):
            if getattr(reduced, name).dtype == object and getattr(columns, name).dtype != object:
                setattr(columns, name, getattr(columns, name).astype(object))

    def _merge(self, where: IntArray, fresh: npt.NDArray[np.bool_], new: Reduced) -> None:
        columns = self._columns
        first, again = where[fresh], where[~fresh]
        for name in self._kept:
            getattr(columns, name)[first] = getattr(new, name)[fresh]
        if not len(again):
            return
        more = Reduced(*(getattr(new, name)[~fresh] for name in Reduced.__slots__))
        columns.count[again] += more.count
        columns.sum[again] = columns.sum[again] + more.sum
        if self._needs.extremes:
            columns.min[again] = np.minimum(columns.min[again], more.min)
            columns.max[again] = np.maximum(columns.max[again], more.max)
        if self._needs.latest:
            newer = _later(more, columns, again)
            for name in _LATEST:
                getattr(columns, name)[again[newer]] = getattr(more, name)[newer]

    def take_changes(self) -> tuple[Reduced, IntArray]:
        """Return the rows whose newest value is not acknowledged, and their slots for `acknowledge`."""
        self.fold()
        slots = np.flatnonzero(self._dirty)
        columns = self._columns
        rows = _with_zeros(columns.keys[slots], columns.count[slots], columns.sum[slots])
        for name in self._kept[len(_SUMS) :]:
            setattr(rows, name, getattr(columns, name)[slots])
        return rows, slots

    def acknowledge(self, slots: IntArray) -> None:
        """Mark rows as written. Nothing may have been folded in between."""
        self._dirty[slots] = False

    def codes(self) -> IntArray:
        """Return the series code of each slot, in order."""
        self.fold()
        return self._keys >> 32

    def series(self) -> set[int]:
        """Return the codes of all series that have a slot."""
        return set(self.codes().tolist())

    def renumber(self, kept: IntArray) -> None:
        """Replace the code of each series by its place in `kept`, which grows and has all that have a slot."""
        self.fold()
        for keys in (self._keys, self._columns.keys[: self._size]):
            keys[:] = (np.searchsorted(kept, keys >> 32) << 32) | (keys & 0xFFFFFFFF)  # their order stays

    def __len__(self) -> int:
        return self._size


def _empty_columns() -> tuple[Any, ...]:
    kinds: list[type[np.generic]] = [np.int64] * 7 + [np.uint64] * 2
    return tuple(np.zeros(0, kind) for kind in kinds)


def _concatenate(parts: list[Readings]) -> Readings:
    if len(parts) == 1:
        return parts[0]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    if all(part.weights is None for part in parts):
        return Readings(**columns)
    weights = [np.ones(len(part), np.int64) if part.weights is None else part.weights for part in parts]
    return Readings(**columns, weights=np.concatenate(weights))


def _later(new: Reduced, old: Reduced, at: IntArray) -> npt.NDArray[np.bool_]:
    """Tell where the new latest value wins by (time, identity)."""
    time_equal = new.latest_us == old.latest_us[at]
    high_equal = new.by_high == old.by_high[at]
    result: npt.NDArray[np.bool_] = (new.latest_us > old.latest_us[at]) | (
        time_equal & ((new.by_high > old.by_high[at]) | (high_equal & (new.by_low > old.by_low[at])))
    )
    return result
