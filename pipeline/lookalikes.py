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

from pipeline.homes import identify
from pipeline.meanings import LEARNED, FoundEvents, Labels, Meanings, Scaled, only, to_forget
from pipeline.shapes import Bools, Cuts, Free, Ints, Sheet, cut, fixed_parts, free_parts, integers, scan, template_of
from pipeline.values import are_numbers, lengths_of, scale_column, time_column
from tallyman.event import MAX_NAME_BYTES

FEW = 256  # fewer lines of a shape are quicker one by one (`bench.decode`)
_MOST_SHAPES = 8  # in one stretch of log
_KNOWN_SHAPES = 64
_KNOWN_LABELS = 1 << 17  # of one shape; a label is as long as a line
_ENTRY_BYTES = 200  # what a label takes besides its text: the object, its number and its place in the dict
_FOREIGN, _NEW = -1, -2  # labels: left to the other way; not met before


@dataclass(slots=True)
class _Shape:
    template: bytes
    free: tuple[Free, ...]
    fixed: tuple[Ints, Ints]
    labels: Labels
    numbers: dict[bytes, int] = field(default_factory=dict)
    mixed: bool = False  # lines of other shapes have as many quotes
    text_bytes: int = 0  # of all labels

    @property
    def size(self) -> int:
        """About how many bytes its labels take."""
        return self.text_bytes + _ENTRY_BYTES * len(self.numbers) + self.labels.size

    def forget(self) -> None:
        self.labels, self.numbers, self.text_bytes = Labels(self.labels.meters), {}, 0

    def columns(self, cuts: Cuts) -> dict[str, pa.Array]:
        """Return the free parts that matter: by their role, and unread numbers by their place."""
        names = {part.role or str(i): i for i, part in enumerate(self.free) if part.role or part.number}
        return dict(zip(names, cuts.columns(list(names.values())), strict=True))


class Lookalikes:
    """Read the lines that share a shape under one catalog.

    Args:
        few: Fewer lines of one shape are left to the other way.
    """

    def __init__(self, meanings: Meanings, few: int = FEW) -> None:
        self._meanings, self._few = meanings, max(few, 1)
        self._shapes: dict[bytes, _Shape | None] = {}
        self._learned = 0  # labels, since it was last looked at how much memory they all take

    def read(self, bodies: Sequence[bytes], lengths: Ints) -> tuple[list[FoundEvents], Ints]:
        """Return the events found, and the rows that are left to the other way."""
        done = np.zeros(len(bodies), bool)
        found: list[FoundEvents] = []
        sheet = scan(bodies, lengths) if len(bodies) >= self._few and self._meanings.types else None
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
            free = free_parts(line, self._meanings.labels)
            labels = Labels(self._meanings.width)
            self._shapes[template] = _Shape(template, free, fixed_parts(line), labels) if free else None
        return self._shapes[template]

    def _read_shape(
        self, sheet: Sheet, bodies: Sequence[bytes], rows: Ints, shape: _Shape
    ) -> tuple[Ints, FoundEvents]:
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
        at = np.flatnonzero(good)
        readings, wanted = self._meanings.measure(at, shape.labels, label[at], good, _scaling(columns))
        if not shape.mixed and not (fits.all() and good.all()):
            odd = (rows[~fits] if not fits.all() else lines[~good])[0]
            if template_of(bodies[odd]) != shape.template:
                shape.mixed = True
                return self._read_shape(sheet, bodies, rows, shape)
        chosen = np.flatnonzero(good)
        label = label[chosen]
        begins = map(shape.labels.begins.__getitem__, label.tolist())
        ids = columns["id"] if good.all() else columns["id"].take(integers(chosen))
        identities = np.frombuffer(b"".join(identify(begins, ids.cast(pa.binary()).to_pylist())), "<u8")
        kept = [(lines[at], series, values) for at, series, values in only(readings, good)]
        homes = shape.labels.homes[label]
        return rows, FoundEvents(lines[chosen], times[chosen], homes, identities.reshape(-1, 2), kept,
                                 lines[good & ~wanted])  # fmt: skip

    def _understand(
        self, shape: _Shape, cuts: Cuts, lines: Ints, good: Bools, bodies: Sequence[bytes]
    ) -> Ints:
        """Return the number of each line's label; some of the new ones are learned."""
        encoded = cuts.labels().dictionary_encode()
        codes = np.asarray(encoded.indices)
        texts = encoded.dictionary.to_pylist()
        if self._learned > LEARNED:
            self._keep_what_fits()
        if len(shape.numbers) > _KNOWN_LABELS:
            shape.forget()
        known = shape.numbers
        numbers = np.array([known.get(text, _NEW) for text in texts], np.int64)
        new = np.flatnonzero(numbers == _NEW)
        if len(new):
            example = np.full(len(texts), -1, np.int64)
            example[codes[good][::-1]] = lines[good][::-1]
            # To learn a label costs twice a line's decoding: where labels never come again, few are learned in vain.
            for code in new[: 32 + len(lines) // 8].tolist():
                if example[code] >= 0:
                    numbers[code] = known[texts[code]] = self._learn(shape, bodies[example[code]])
                    shape.text_bytes += len(texts[code])
                    self._learned += 1
        result: Ints = numbers[codes]
        return result

    def _keep_what_fits(self) -> None:
        """Forget the labels of the largest shapes if those of all take too much memory."""
        shapes = [shape for shape in self._shapes.values() if shape is not None]
        for number in to_forget([shape.size for shape in shapes]):
            shapes[number].forget()
        self._learned = 0

    def _learn(self, shape: _Shape, line: bytes) -> int:
        """Return the number of a label that is met for the first time, from a line that has it."""
        if template_of(line) != shape.template:
            return _FOREIGN
        meaning = self._meanings.of(line, [part.role for part in shape.free])
        if meaning is None:
            return _FOREIGN
        return shape.labels.add(self._meanings.home_of(meaning), meaning.kind, meaning.series)


def _scaling(columns: dict[str, pa.Array]) -> Scaled:
    def scaled(path: str, mine: Ints, scale: int) -> tuple[npt.NDArray[Any], Bools]:
        texts = columns[path]
        return scale_column(texts if len(mine) == len(texts) else texts.take(integers(mine)), scale)

    return scaled


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
