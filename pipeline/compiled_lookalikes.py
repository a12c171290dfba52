"""JSON lines of one shape to columns by the compiled loops of `pipeline.kernel`; Python sees each distinct label once.

As in `pipeline.lookalikes`, which does the same without a compiler, nothing is judged here: a line that is not plainly
in order is left to the decoder for single lines, and a test holds the three ways equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.homes import identity_prefix
from pipeline.lines import PADDING, Stretch
from pipeline.meanings import LEARNED, UNKNOWN, Bools, FoundEvents, Ints, Labels, Meanings, Scaled, only, to_forget
from pipeline.shapes import is_label, is_plain, pieces_of, template_of, values_of
from pipeline.values import scale_column

FEW = 8  # fewer lines of a shape are not worth their fixed costs (`bench.decode`)
_MOST_SHAPES = 8  # in one stretch of log
_KNOWN_SHAPES = 64
_KNOWN_LABELS = 1 << 17  # of one shape; and of all together no more than fit (`pipeline.meanings`)
_POWERS = np.array([10**n for n in range(19)], np.int64)
_MOST = ((1 << 63) - 1) // _POWERS  # what may be multiplied by each of them


class _Book:
    """The numbers of a shape's labels, as `kernel.read_lines` looks them up, and what they mean.

    A hash table with open addressing: `table` has a number or -1 in each slot, `marks` the numbers' hashes, `places`
    where each label's words begin in `pool`; `counts` how many labels and words there are.
    """

    def __init__(self, width: int) -> None:
        self.labels = Labels(width)
        self.table = np.full(1024, -1, np.int64)
        self.marks = np.zeros(512, np.uint64)
        self.places = np.zeros(513, np.int64)
        self.pool = np.zeros(1 << 13, np.uint64)
        self.counts = np.zeros(2, np.int64)
        self.edges = np.zeros(513, np.int64)  # where each label's prefix begins in `prefixes`
        self.prefixes = np.zeros(1 << 13, np.uint8)

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        arrays = (self.table, self.marks, self.places, self.pool, self.edges, self.prefixes)
        return sum(each.nbytes for each in arrays) + self.labels.size

    def make_room(self, more: int) -> int:
        """Grow for some labels more; return how many there may be in all."""
        room = len(self.labels) + more
        while room > len(self.marks):
            self.marks, self.places = _twice(self.marks), _twice(self.places, len(self.places) - 1)
            self.edges = _twice(self.edges, len(self.edges) - 1)
            self.table = np.full(2 * len(self.table), -1, np.int64)
            self._fill_table()
        while len(self.pool) < self.counts[1] + 32 * more:
            self.pool = _twice(self.pool)
        return room

    def _fill_table(self) -> None:
        mask = len(self.table) - 1
        slots = (self.marks[: len(self.labels)] >> np.uint64(20)).astype(np.int64) & mask
        for number, slot in enumerate(slots.tolist()):
            while self.table[slot] >= 0:
                slot = (slot + 1) & mask
            self.table[slot] = number

    def add_prefix(self, number: int, prefix: bytes) -> None:
        """Keep what stands before the ids of a label, the newest one."""
        begin = int(self.edges[number])
        end = begin + len(prefix)
        while end + PADDING > len(self.prefixes):
            self.prefixes = _twice(self.prefixes)
        self.prefixes[begin:end] = np.frombuffer(prefix, np.uint8)
        self.edges[number + 1] = end


@dataclass(slots=True)
class _Shape:
    """A shape as the loops take it."""

    example: bytes
    pieces: npt.NDArray[np.uint8]
    edges: Ints
    kinds: Ints
    roles: Ints
    slots: Ints
    quantities: dict[str, int]
    book: _Book


@dataclass(frozen=True, slots=True)
class _Read:
    """What the loops found in lines: their labels, and for each quantity and line its digits and where it stands."""

    labels: Ints
    times: Ints
    ids: Ints
    mantissas: Ints
    decimals: Ints
    begins: Ints
    ends: Ints

    @classmethod
    def of(cls, lines: int, quantities: int) -> _Read:
        return cls(np.empty(lines, np.int64), np.empty(lines, np.int64), np.empty((lines, 2), np.int64),
                   *(np.zeros((max(quantities, 1), lines), np.int64) for _ in range(4)))  # fmt: skip


class CompiledLookalikes:
    """Read the lines that share a shape under one catalog.

    Args:
        few: Fewer lines of one shape are left to the other way.
    """

    def __init__(self, kernel: ModuleType, meanings: Meanings, few: int = FEW) -> None:
        self._kernel, self._meanings, self._few = kernel, meanings, max(few, 1)
        self._shapes: dict[bytes, _Shape | None] = {}
        self._learned = 0  # labels, since it was last looked at how much memory they all take

    def read(self, stretch: Stretch) -> tuple[list[FoundEvents], Ints]:
        """Return the events found, and the rows that are left to the other way."""
        rest = np.ones(len(stretch), bool)
        found: list[FoundEvents] = []
        waiting = np.arange(len(stretch) if self._meanings.types else 0)
        for _ in range(_MOST_SHAPES):
            if len(waiting) < self._few:
                break
            shape = self._shape(stretch.bodies[waiting[0]])
            if shape is None:
                waiting = waiting[1:]
                continue
            events, others = self._read_shape(stretch, waiting, shape)
            found.append(events)
            rest[events.rows] = False
            # A first line that is odd, though its shape is known, would be the next example, too.
            waiting = others[1:] if len(others) and others[0] == waiting[0] else others
        return found, np.flatnonzero(rest)

    def _shape(self, line: bytes) -> _Shape | None:
        if not is_plain(line):
            return None
        template = template_of(line)
        if template not in self._shapes:
            if len(self._shapes) >= _KNOWN_SHAPES:
                self._shapes.clear()
            self._shapes[template] = self._learn_shape(line)
        return self._shapes[template]

    def _learn_shape(self, line: bytes) -> _Shape | None:
        values = values_of(line)
        if not values:
            return None
        pieces, kernel = pieces_of(line, values), self._kernel
        quantities: dict[str, int] = {}
        roles = []
        for value in values:
            if is_label(value, self._meanings.labels):
                roles.append(kernel.LABEL)
            elif value.role in self._meanings.quantities:
                roles.append(kernel.QUANTITY)
                quantities[value.role] = len(quantities)
            else:
                roles.append({"id": kernel.ID, "time": kernel.TIME}.get(value.role, kernel.UNREAD))
        return _Shape(
            line,
            np.frombuffer(b"".join(pieces) + bytes(PADDING), np.uint8),
            np.cumsum([0, *map(len, pieces)]),
            np.array([kernel.NUMBER if value.number else kernel.TEXT for value in values]),
            np.array(roles),
            np.array([quantities.get(value.role, 0) for value in values]),
            quantities,
            _Book(self._meanings.width),
        )

    def _read_shape(self, stretch: Stretch, rows: Ints, shape: _Shape) -> tuple[FoundEvents, Ints]:
        """Return what was found in rows, and the rows that may have another shape."""
        text = np.frombuffer(stretch.text, np.uint8)
        read = self._read_lines(text, stretch, rows, shape)
        labels = shape.book.labels
        good = read.labels >= 0
        good[good] = labels.kinds[read.labels[good]] != UNKNOWN
        at = np.flatnonzero(good)
        readings, wanted = self._meanings.measure(at, labels, read.labels[at], good, _scaling(stretch, shape, read))
        if not good.all():
            at = np.flatnonzero(good)
        label = read.labels[at]
        kept = [(rows[mine], series, values) for mine, series, values in only(readings, good)]
        identities = self._identify(text, read.ids[at], label, shape)
        events = FoundEvents(rows[at], read.times[at], labels.homes[label], identities, kept, rows[good & ~wanted])
        return events, rows[read.labels == self._kernel.NOT_SO]

    def _read_lines(self, text: npt.NDArray[np.uint8], stretch: Stretch, rows: Ints, shape: _Shape) -> _Read:
        """Read lines, and learn some of the labels that are new."""
        if self._learned > LEARNED:
            self._keep_what_fits()
        if len(shape.book.labels) > _KNOWN_LABELS:
            shape.book = _Book(self._meanings.width)
        book = shape.book
        known = len(book.labels)
        # To learn a label costs more than to decode a line: where labels never come again, few are learned in vain.
        room = book.make_room(32 + len(rows) // 8)
        read = _Read.of(len(rows), len(shape.quantities))
        self._kernel.read_lines(
            text, stretch.starts, stretch.ends, rows, shape.pieces, shape.edges, shape.kinds, shape.roles, shape.slots,
            book.table, book.marks, book.places, book.pool, book.counts, room,
            read.labels, read.times, read.ids, read.mantissas, read.decimals, read.begins, read.ends,
        )  # fmt: skip
        new = np.flatnonzero(read.labels >= known)
        example = np.zeros(int(book.counts[0]) - known, np.int64)
        example[read.labels[new][::-1] - known] = rows[new][::-1]
        for row in example.tolist():
            self._learn(book, stretch.bodies[row], shape)
        self._learned += len(example)
        return read

    def _keep_what_fits(self) -> None:
        """Forget the labels of the largest shapes if those of all take too much memory."""
        shapes = [shape for shape in self._shapes.values() if shape is not None]
        for number in to_forget([shape.book.size for shape in shapes]):
            shapes[number].book = _Book(self._meanings.width)
        self._learned = 0

    def _learn(self, book: _Book, line: bytes, shape: _Shape) -> None:
        meaning = self._meanings.of(line, shape.quantities)
        if meaning is None:
            book.add_prefix(book.labels.add(None, UNKNOWN, ()), b"")
        else:
            number = book.labels.add(self._meanings.home_of(meaning), meaning.kind, meaning.series)
            book.add_prefix(number, identity_prefix(meaning.subject, meaning.source))

    def _identify(
        self, text: npt.NDArray[np.uint8], ids: Ints, label: Ints, shape: _Shape
    ) -> npt.NDArray[np.uint64]:
        edges, words = shape.book.edges, np.empty((len(label), 2), np.uint64)
        sizes = (edges[1:] - edges[:-1])[label] + ids[:, 1] - ids[:, 0]
        short = sizes <= self._kernel.BLOCK
        if short.all():
            self._kernel.identify(text, ids, label, shape.book.prefixes, edges, words)
            return words
        some = np.empty((int(short.sum()), 2), np.uint64)
        self._kernel.identify(text, ids[short], label[short], shape.book.prefixes, edges, some)
        words[short] = some
        for row in np.flatnonzero(~short).tolist():
            hasher = shape.book.labels.begins[label[row]]()
            hasher.update(text[ids[row, 0] : ids[row, 1]])
            words[row] = np.frombuffer(hasher.digest(), "<u8")
        return words


def _scaling(stretch: Stretch, shape: _Shape, read: _Read) -> Scaled:
    def scaled(path: str, mine: Ints, scale: int) -> tuple[npt.NDArray[Any], Bools]:
        """Multiply where the product fits into 64 bits for certain; the others by Arrow's decimals."""
        slot = shape.quantities[path]
        mantissas, decimals = read.mantissas[slot][mine], read.decimals[slot][mine]
        shift = scale - decimals
        fine: Bools = (decimals >= 0) & (shift >= 0)
        shift[~fine] = 0
        fine &= np.abs(mantissas) <= _MOST[shift]
        values: npt.NDArray[Any] = mantissas * _POWERS[shift]
        if fine.all():
            return values, fine
        odd = np.flatnonzero(~fine)
        begins, ends = read.begins[slot][mine[odd]].tolist(), read.ends[slot][mine[odd]].tolist()
        texts = [stretch.text[begin:end].decode() for begin, end in zip(begins, ends, strict=True)]
        wide, sure = scale_column(pa.array(texts, pa.string()), scale)
        values = values.astype(object) if wide.dtype == object else values
        values[odd], fine[odd] = wide, sure
        return values, fine

    return scaled


def _twice(array: npt.NDArray[Any], more: int | None = None) -> npt.NDArray[Any]:
    """Return an array with as many elements more."""
    return np.concatenate([array, np.zeros(len(array) if more is None else more, array.dtype)])
