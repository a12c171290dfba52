"""Lines that look alike: what a line's shape is, and how to cut all lines of one shape at once.

A client writes its events with the same keys in the same order; only texts and numbers differ. So a line is cut into
its *free* parts (id, time, metered values, what no meter reads) and its *label*: the rest, joined. Lines with equal
labels have the same structure, the same series and the same home, and a label is understood once, not once a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_LABELLED = frozenset(("source", "type", "subject", "specversion"))
_ENCODED = "data_base64"  # dimensions and values in one text: read line by line
_LARGEST = 1 << 30  # Arrow's offsets are 32 bits wide
# The only number between two texts, and no literal beside it; whatever is written otherwise stays in the label.
_NUMBER = re.compile(rb"([ :\[\]{},]*)(-?[0-9][0-9.]*)([ :\[\]{},]*)")


@dataclass(frozen=True, slots=True)
class Sheet:
    """Lines written one below the other, and where their quotes are.

    Attributes:
        plain: Lines without backslashes and control characters, in valid UTF-8: a quote in them begins or ends a text.
        first, counts: The place of each line's first quote in `quotes`, and how many it has.
    """

    text: bytes
    starts: Ints
    ends: Ints
    quotes: Ints
    first: Ints
    counts: Ints
    plain: Bools


@dataclass(frozen=True, slots=True)
class Free:
    """A value, a part that differs from line to line: from `skip` bytes behind a quote to `back` bytes before the next.

    Attributes:
        role: "id", "time", the name of a field of `data`, or "" for what nobody reads.
        number: Whether it is a JSON number, and not the inside of a text.
    """

    role: str
    number: bool
    quote: int
    skip: int
    back: int


def scan(bodies: Sequence[bytes], lengths: Ints) -> Sheet | None:
    """Find the quotes of all lines, and the lines in which a quote may be something else."""
    text = b"\n".join([*bodies, b""])
    if len(text) >= _LARGEST:
        return None
    array = np.frombuffer(text, np.uint8)
    ends = np.cumsum(lengths + 1) - 1
    starts = ends - lengths
    plain = np.ones(len(bodies), bool)
    control = array < 32
    if np.count_nonzero(control) != len(bodies):
        control[ends] = False
        plain[np.searchsorted(ends, np.flatnonzero(control))] = False
    if b"\\" in text:
        plain[np.searchsorted(ends, np.flatnonzero(array == 92))] = False
    if not text.isascii() and not _is_utf8(text):
        plain &= np.fromiter(map(_is_utf8, bodies), bool, len(bodies))
    quotes = np.flatnonzero(array == 34)
    first = np.searchsorted(quotes, starts)
    return Sheet(text, starts, ends, quotes, first, np.diff(first, append=len(quotes)), plain)


def is_plain(line: bytes) -> bool:
    """Tell whether a quote in a line begins or ends a text: no backslash, no control character, valid UTF-8."""
    return b"\\" not in line and min(line, default=0) >= 32 and _is_utf8(line)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def template_of(line: bytes) -> bytes:
    """Return a plain line with its texts and numbers replaced by their places: lines of one shape have one template.

    >>> template_of(b'{"id":"7","data":{"value":1.5}}')
    b'{"id":"s3","data":{"value":"n8"}}'
    """
    return b"".join(b'"%b"' % part if place % 2 else part for place, part in enumerate(_marked(line)[0]))


def _marked(line: bytes) -> tuple[list[bytes], dict[int, tuple[int, int]]]:
    """Return a line's parts between quotes with markers in the place of values, and what stands around each value."""
    parts = line.split(b'"')
    around: dict[int, tuple[int, int]] = {}
    for place in range(1, len(parts) - 1, 2):
        if not parts[place + 1].lstrip(b" ").startswith(b":"):  # else it is a key
            parts[place] = b"s%d" % place
            around[place] = 0, 0
    for place in range(2, len(parts), 2):
        match = _NUMBER.fullmatch(parts[place])
        if match:
            parts[place] = b'%b"n%d"%b' % (match[1], place, match[3])
            around[place] = len(match[1]), len(match[3])
    return parts, around


def free_parts(line: bytes, labels: frozenset[str]) -> tuple[Free, ...]:
    """Return the free parts of a plain line's shape, in their order; none if lines of this shape cannot be cut.

    Args:
        labels: The fields of `data` that stay in the label: dimensions and filters.
    """
    return tuple(part for part in values_of(line) if not is_label(part, labels))


def is_label(part: Free, labels: frozenset[str]) -> bool:
    """Tell whether a value says what series an event belongs to, and from whom it comes."""
    return part.role in labels or part.role in _LABELLED


def values_of(line: bytes) -> tuple[Free, ...]:
    """Return all values of a plain line, in their order; none if lines of this shape cannot be cut."""
    if line.count(b'"') % 2:
        return ()
    _, around = _marked(line)
    try:
        event = json.loads(template_of(line), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        return ()
    roles = _roles(event) if isinstance(event, dict) and _ENCODED not in event else {}
    if not {"s-id", "s-time"} <= {f"{marker[0]}-{role}" for marker, role in roles.items()}:
        return ()
    return tuple(
        Free(roles.get(f"{'s' if place % 2 else 'n'}{place}", ""), place % 2 == 0, place - 1, skip, back)
        for place, (skip, back) in sorted(around.items())
    )


def pieces_of(line: bytes, values: Sequence[Free]) -> list[bytes]:
    """Return what stands before, between and behind a line's values: one piece more than there are values."""
    parts = line.split(b'"')
    starts = np.cumsum([0, *(len(part) + 1 for part in parts)]).tolist()
    pieces, at = [], 0
    for value in values:
        place = value.quote + 1
        pieces.append(line[at : starts[place] + value.skip])
        at = starts[place] + len(parts[place]) - value.back
    return [*pieces, line[at:]]


def fixed_parts(line: bytes) -> tuple[Ints, Ints]:
    """Return which parts between two quotes are the same in all lines of a shape, and their lengths."""
    parts, (_, around) = line.split(b'"'), _marked(line)
    places = [place for place in range(1, len(parts) - 1) if place not in around]
    return np.array(places, np.int64), np.array([len(parts[place]) for place in places], np.int64)


def _roles(event: dict[str, Any]) -> dict[str, str]:
    """Return what each marker stands for that stands where a meter or the contract may look."""
    data = event.get("data")
    named = [(f"data.{name}", marker) for name, marker in data.items()] if isinstance(data, dict) else []
    named += [(name, event.get(name)) for name in ("id", "time", *_LABELLED)]
    return {marker: role for role, marker in named if isinstance(marker, str)}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("a key stands twice")
    return named


def integers(numbers: Ints) -> pa.Array:
    """Return integers as an Arrow array; `pa.array` does it too, but loads pandas."""
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(np.ascontiguousarray(numbers))])


@dataclass(frozen=True, slots=True)
class Cuts:
    """Lines cut at the same places: Arrow texts over the lines' own bytes, `width` of them for each line."""

    tiles: pa.Array
    width: int
    size: int

    def columns(self, numbers: Sequence[int]) -> list[pa.Array]:
        """Return the free parts with these numbers, a column for each."""
        places = np.arange(self.size) * self.width + (2 * np.array(numbers)[:, None] + 1)
        texts = self.tiles.take(integers(places.ravel()))
        return [texts.slice(i * self.size, self.size) for i in range(len(numbers))]

    def labels(self) -> pa.Array:
        """Return what is left of each line, newline included, as binary."""
        kept = np.arange(0, self.width - 1, 2)
        places = np.arange(self.size)[:, None] * self.width + kept
        pieces = self.tiles.take(integers(places.ravel()))
        _, offsets, text = pieces.buffers()
        offsets = np.frombuffer(offsets, np.int32)[: self.size * len(kept) + 1 : len(kept)]
        return pa.Array.from_buffers(
            pa.binary(), self.size, [None, pa.py_buffer(np.ascontiguousarray(offsets)), text]
        )


def cut(sheet: Sheet, rows: Ints, free: Sequence[Free]) -> tuple[Bools, Cuts]:
    """Cut lines, of which all have the quotes of a shape, into free parts and the rest.

    Returns:
        Which of the lines could be cut, and those lines' cuts.
    """
    width = 2 * len(free) + 2
    edges = np.empty((len(rows), width), np.int32)
    edges[:, 0] = sheet.starts[rows]
    edges[:, -1] = sheet.ends[rows] + 1
    first, counts = sheet.first[rows], sheet.counts[rows]
    for i, part in enumerate(free):
        edges[:, 2 * i + 1] = sheet.quotes[first + part.quote] + (1 + part.skip)
        after = part.quote + 1
        stop = sheet.ends[rows] if len(counts) and after == counts[0] else sheet.quotes[first + after]
        edges[:, 2 * i + 2] = stop - part.back
    numbers = [2 * i + 1 for i, part in enumerate(free) if part.number]
    good: Bools = np.asarray((edges[:, numbers] < edges[:, [i + 1 for i in numbers]]).all(axis=1))
    edges = edges if good.all() else edges[good]
    offsets = np.append(edges.ravel(), np.int32(len(sheet.text)))
    tiles = pa.Array.from_buffers(
        pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(sheet.text)]
    )
    return good, Cuts(tiles, width, len(edges))
