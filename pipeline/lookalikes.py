"""JSON events of one shape to columns at once: Python sees each distinct label, never the single line.

Nothing is judged here. A line that is not plainly in order is left to the decoder for single lines, which knows the
reasons; so the two ways cannot disagree on an event, and a test holds them equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.catalog import Catalog
from pipeline.homes import Home, Homes, identify
from pipeline.shapes import Bools, Cuts, Free, Ints, Sheet, cut, fixed_parts, free_parts, integers, scan, template_of
from pipeline.values import are_numbers, lengths_of, scale_column, time_column
from tallyman.errors import EventError
from tallyman.event import MAX_NAME_BYTES, decode_event

FEW = 256  # fewer lines of a shape are quicker one by one (`bench.decode`)
_MOST_SHAPES = 8  # in one stretch of log
_KNOWN_SHAPES = 64
_KNOWN_LABELS = 1 << 17  # of one shape; a label is as long as a line
_FOREIGN, _NEW = -1, -2  # labels: left to the other way; not met before


@dataclass(frozen=True, slots=True)
class Found:
    """Events in order, as columns; of `unwanted` rows all meters' filters say no.

    Attributes:
        identities: 16 bytes for each row.
        readings: (rows, series, values) for each meter.
    """

    rows: Ints
    times: Ints
    homes: Ints
    identities: bytes
    readings: list[tuple[Ints, npt.NDArray[np.int32], npt.NDArray[Any]]]
    unwanted: Ints


@dataclass(slots=True)
class _Labels:
    """What the labels of one shape mean: a number for each, and columns by this number."""

    meters: int
    numbers: dict[bytes, int] = field(default_factory=dict)
    homes: Ints = field(default_factory=lambda: np.zeros(64, np.int64))
    types: Ints = field(default_factory=lambda: np.zeros(64, np.int64))
    begins: list[Any] = field(default_factory=list)
    series: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        self.series = np.full((64, self.meters), -1, np.int32)

    def add(self, home: Home, kind: int, series: Sequence[int]) -> int:
        number = len(self.begins)
        if number == len(self.homes):
            self.homes, self.types = np.resize(self.homes, 2 * number), np.resize(self.types, 2 * number)
            self.series = np.resize(self.series, (2 * number, self.meters))
        self.begins.append(home.begin)
        self.homes[number], self.types[number] = home.partition, kind
        self.series[number] = -1
        self.series[number, : len(series)] = series
        return number


@dataclass(slots=True)
class _Shape:
    template: bytes
    free: tuple[Free, ...]
    fixed: tuple[Ints, Ints]
    labels: _Labels
    mixed: bool = False  # lines of other shapes have as many quotes

    def has(self, role: str) -> bool:
        """Tell whether there is a free part with this role."""
        return any(part.role == role for part in self.free)

    def columns(self, cuts: Cuts) -> dict[str, pa.Array]:
        """Return the free parts that matter: by their role, and unread numbers by their place."""
        names = {part.role or str(i): i for i, part in enumerate(self.free) if part.role or part.number}
        return dict(zip(names, cuts.columns(list(names.values())), strict=True))


class Lookalikes:
    """Read the lines that share a shape under one catalog.

    Args:
        few: Fewer lines of one shape are left to the other way.
        left_out: Types of events that are none of ours: their meters look deeper than the first level of `data`.
    """

    def __init__(self, catalog: Catalog, homes: Homes, left_out: set[str], few: int) -> None:
        self._catalog, self._homes, self._few = catalog, homes, max(few, 1)
        self._types = [name for name in catalog.by_type if name not in left_out]
        self._width = max(map(len, catalog.by_type.values()), default=0)
        self._read_by_name = frozenset(
            f"data.{path}" for meter in catalog.meters for path in (*meter.dimensions.values(), *meter.where)
        )
        self._shapes: dict[bytes, _Shape | None] = {}

    def read(self, bodies: Sequence[bytes], lengths: Ints) -> tuple[list[Found], Ints]:
        """Return the events found, and the rows that are left to the other way."""
        done = np.zeros(len(bodies), bool)
        found: list[Found] = []
        sheet = scan(bodies, lengths) if len(bodies) >= self._few and self._types else None
        waiting = np.flatnonzero(sheet.plain) if sheet else np.zeros(0, np.int64)
        for _ in range(_MOST_SHAPES):
            if sheet is None or len(waiting) < self._few:
                break
            rows = waiting[sheet.counts[waiting] == sheet.counts[waiting[0]]]
            shape = self._shape(bodies[waiting[0]]) if len(rows) >= self._few else None
            if shape is None:
                tried = rows if len(rows) < self._few else rows[:1]
            else:
                tried, events = self._read_shape(sheet, bodies, rows, shape)
                found.append(events)
                done[events.rows] = True
            left = np.zeros(len(bodies), bool)
            left[waiting] = True
            left[tried] = False
            waiting = np.flatnonzero(left)
        return found, np.flatnonzero(~done)

    def _shape(self, line: bytes) -> _Shape | None:
        template = template_of(line)
        if template not in self._shapes:
            if len(self._shapes) >= _KNOWN_SHAPES:
                self._shapes.clear()
            free = free_parts(line, self._read_by_name)
            self._shapes[template] = _Shape(template, free, fixed_parts(line), _Labels(self._width)) if free else None
        return self._shapes[template]

    def _read_shape(
        self, sheet: Sheet, bodies: Sequence[bytes], rows: Ints, shape: _Shape
    ) -> tuple[Ints, Found]:
        """Return the rows that were tried, and what was found in them; others may have another shape."""
        if shape.mixed:
            rows = rows[_same_lengths(sheet, rows, shape)]
        fits, cuts = cut(sheet, rows, shape.free)
        lines = rows[fits]
        columns = shape.columns(cuts)
        times, good = time_column(columns["time"])
        good &= _in_order(columns, shape)
        label = self._understand(shape, cuts, lines, good, bodies)
        good &= label >= 0
        readings, wanted = self._measure(shape, columns, label, good)
        if not shape.mixed and not (fits.all() and good.all()):
            odd = (rows[~fits] if not fits.all() else lines[~good])[0]
            if template_of(bodies[odd]) != shape.template:
                shape.mixed = True
                return self._read_shape(sheet, bodies, rows, shape)
        chosen = np.flatnonzero(good)
        label = label[chosen]
        begins = map(shape.labels.begins.__getitem__, label.tolist())
        ids = columns["id"] if good.all() else columns["id"].take(integers(chosen))
        identities = b"".join(identify(begins, ids.cast(pa.binary()).to_pylist()))
        kept = [(lines[at], series, values) for at, series, values in _only(readings, good)]
        return rows, Found(lines[chosen], times[chosen], shape.labels.homes[label], identities, kept,
                           lines[good & ~wanted])  # fmt: skip

    def _understand(
        self, shape: _Shape, cuts: Cuts, lines: Ints, good: Bools, bodies: Sequence[bytes]
    ) -> Ints:
        """Return the number of each line's label; some of the new ones are learned."""
        encoded = cuts.labels().dictionary_encode()
        codes = np.asarray(encoded.indices)
        texts = encoded.dictionary.to_pylist()
        if len(shape.labels.numbers) > _KNOWN_LABELS:
            shape.labels = _Labels(self._width)
        known = shape.labels.numbers
        numbers = np.array([known.get(text, _NEW) for text in texts], np.int64)
        new = np.flatnonzero(numbers == _NEW)
        if len(new):
            example = np.full(len(texts), -1, np.int64)
            example[codes[good][::-1]] = lines[good][::-1]
            # To learn a label costs twice a line's decoding: where labels never come again, few are learned in vain.
            for code in new[: 32 + len(lines) // 8].tolist():
                if example[code] >= 0:
                    numbers[code] = known[texts[code]] = self._learn(shape, bodies[example[code]])
        result: Ints = numbers[codes]
        return result

    def _learn(self, shape: _Shape, line: bytes) -> int:
        """Return the number of a label that is met for the first time, from a line that has it."""
        if template_of(line) != shape.template:
            return _FOREIGN
        try:
            event = decode_event(line)
            if event.type not in self._types:
                return _FOREIGN
            numbers = self._catalog.by_type[event.type]
            series = [self._catalog.series_of(number, event.subject, event.data) for number in numbers]
        except EventError:
            return _FOREIGN
        for number, found in zip(numbers, series, strict=True):
            meter = self._catalog.meters[number]
            if found >= 0 and meter.aggregation != "count" and not shape.has(f"data.{meter.value}"):
                return _FOREIGN
        return shape.labels.add(self._homes.find(event.subject, event.source), self._types.index(event.type), series)

    def _measure(
        self, shape: _Shape, columns: dict[str, pa.Array], label: Ints, good: Bools
    ) -> tuple[list[tuple[Ints, npt.NDArray[np.int32], npt.NDArray[Any]]], Bools]:
        """Return each meter's readings, and which lines some meter wants; lines whose value is in doubt lose `good`."""
        readings = []
        wanted = np.zeros(len(label), bool)
        at = np.flatnonzero(good)
        types = shape.labels.types[label[at]]
        for kind in np.flatnonzero(np.bincount(types)):
            members = at[types == kind]
            for i, number in enumerate(self._catalog.by_type[self._types[kind]]):
                series = shape.labels.series[label[members], i]
                mine, series = members[series >= 0], series[series >= 0]
                wanted[mine] = True
                meter = self._catalog.meters[number]
                if meter.aggregation == "count":
                    values: npt.NDArray[Any] = np.ones(len(mine), np.int64)
                elif len(mine):
                    texts = columns[f"data.{meter.value}"]
                    texts = texts if len(mine) == len(texts) else texts.take(integers(mine))
                    values, fine = scale_column(texts, meter.scale)
                    if not meter.allow_negative:
                        fine &= values >= 0
                    good[mine[~fine]] = False
                if len(mine):
                    readings.append((mine, series, values))
        return readings, wanted


def _same_lengths(sheet: Sheet, rows: Ints, shape: _Shape) -> Bools:
    """Tell which lines have keys and punctuation as long as the shape's."""
    places, lengths = shape.fixed
    edges = sheet.first[rows][:, None] + places
    same: Bools = (sheet.quotes[edges] - sheet.quotes[edges - 1] - 1 == lengths).all(axis=1)
    return same


def _in_order(columns: dict[str, pa.Array], shape: _Shape) -> Bools:
    """Tell which lines have an id of a length that it may have, and JSON numbers where the shape has numbers."""
    lengths = lengths_of(columns["id"])
    good: Bools = (lengths > 0) & (lengths <= MAX_NAME_BYTES)
    for i, part in enumerate(shape.free):
        if part.number:
            good &= are_numbers(columns[part.role or str(i)])
    return good


def _only(
    readings: list[tuple[Ints, npt.NDArray[np.int32], npt.NDArray[Any]]], good: Bools
) -> list[tuple[Ints, npt.NDArray[np.int32], npt.NDArray[Any]]]:
    if good.all():
        return readings
    return [(at[good[at]], series[good[at]], values[good[at]]) for at, series, values in readings]
