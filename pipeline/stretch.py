"""The records of a fetch that are not folded yet: what the log decides about each, and their bytes as lines."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.arrow_stream import most_rows
from pipeline.batches import Fetch
from pipeline.book import BOOKINGS_PER_DAY, DAY_MS, Place, RawRecord, booking_after
from pipeline.compiled import load_kernel
from pipeline.lines import Cuts, Lines, Stretch, join
from tallyman.binary import compose
from tallyman.errors import EventError
from tallyman.event import COLLECTOR, MAX_RECORD_BYTES, MAX_RECORD_EVENTS, Format, split_record
from tallyman.headers import Headers, RecordKind, kind_of
from tallyman.topics import ENDED

_LONG = 4096
_SHORT_LINE = 32  # bytes; an event has more
_BETWEEN: Mapping[Format | None, int] = {"lines": ord("\n"), "batch": ord(",")}  # events; more stand inside of them
# What a block may hold of bytes and of events, and one record more: what these become takes many times their bytes.
_MOST = np.array([[MAX_RECORD_BYTES], [MAX_RECORD_EVENTS]])


class LogRows(NamedTuple):
    """The records of a fetch that are not folded yet, with what the log decides about each.

    Attributes:
        sizes: Of each record, its bytes, and how many events are in it at most.
    """

    kinds: list[RecordKind]
    offsets: npt.NDArray[np.int64]
    appended: npt.NDArray[np.int64]
    clocks: npt.NDArray[np.int64]
    bookings: npt.NDArray[np.int64]
    definitions: npt.NDArray[np.int64]
    values: list[bytes | None]
    headers: list[Headers]
    sizes: npt.NDArray[np.int64]


def read_log(fetch: Fetch, here: Place) -> LogRows:
    first = int(np.searchsorted(fetch.offsets, here.offset))
    headers: list[Headers] = fetch.headers[first:] if fetch.headers else [()] * (len(fetch.offsets) - first)
    cache: dict[Headers, RecordKind] = {}
    kinds: list[RecordKind] = []
    for each in headers:
        kind = cache.get(each)
        if kind is None:
            kind = cache[each] = kind_of(each)
        kinds.append(kind)
    appended = fetch.appended_ms[first:]
    clocks = np.maximum.accumulate(np.maximum(appended, here.clock_ms))
    bookings = np.maximum(clocks // DAY_MS * BOOKINGS_PER_DAY, here.booking)
    definitions = np.full(len(clocks), here.definitions, np.int64)
    if len(cache) > 1 or (kinds and kinds[0].control):
        for i, kind in enumerate(kinds):
            if kind.control:
                bookings[i] = ENDED if kind.ends else booking_after(int(bookings[i]), int(clocks[i]), kind.opens)
                definitions[i] = max(int(definitions[i]), kind.definitions)
        bookings = np.maximum.accumulate(bookings)
        definitions = np.maximum.accumulate(definitions)
    # Nothing moves behind the end of a topic: its last place is where that booking began.
    ended = int(np.searchsorted(bookings, ENDED))
    definitions[ended:] = definitions[ended - 1] if ended else here.definitions
    if here.booking == ENDED:
        clocks[:] = here.clock_ms
    elif ended < len(clocks):
        clocks[ended:] = clocks[ended]
    values = fetch.values[first:]
    sizes = sizes_of(values, kinds, {kind.format for kind in cache.values()})
    return LogRows(kinds, fetch.offsets[first:], appended, clocks, bookings, definitions, values, headers, sizes)


def sizes_of(
    values: list[bytes | None], kinds: list[RecordKind], formats: Collection[Format | None]
) -> npt.NDArray[np.int64]:
    """Return the bytes of each record, and how many events are in it at most.

    Args:
        formats: Those of all kinds.
    """
    sizes = np.ones((2, len(values)), np.int64)
    try:
        sizes[0] = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
    except TypeError:  # some have none
        sizes[0] = [len(value or b"") for value in values]
    if not {"lines", "batch", "arrow"}.isdisjoint(formats):
        for row, (value, kind) in enumerate(zip(values, kinds, strict=True)):
            if value and kind.format in _BETWEEN:
                sizes[1, row] += _count(value, _BETWEEN[kind.format])
            elif value and kind.format == "arrow":
                sizes[1, row] = most_rows(value)
    return sizes


def _count(text: bytes, octet: int) -> int:
    """Do what `bytes.count` does, where it is long in a fifth of the time."""
    if len(text) < _LONG:
        return text.count(octet)
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == octet))


def segment_end(log: LogRows, row: int, stop: int) -> int:
    """Return the row behind the last one that shares its chunk, booking and definitions with the first, and that makes
    no more of them together than fits.
    """
    end = int(np.searchsorted(log.offsets, stop))
    if end <= row:
        return row
    same = (log.bookings[row:end] == log.bookings[row]) & (log.definitions[row:end] == log.definitions[row])
    end = end if same.all() else row + int(np.argmin(same))
    full = (np.cumsum(log.sizes[:, row:end], axis=1) >= _MOST).any(axis=0)
    return row + int(np.argmax(full)) + 1 if full.any() else end


def raw_record(log: LogRows, row: int, booking: int) -> RawRecord:
    return RawRecord(
        int(log.offsets[row]), int(log.appended[row]), booking, log.headers[row], log.values[row] or b""
    )


def read_alike(log: LogRows, first: int, last: int) -> Stretch | None:
    """Return the lines of records that hold foreign events in JSON, all under the same headers; else nothing."""
    count, kind = last - first, log.kinds[first] if last > first else None
    if kind is None or kind.attributes is not None or kind.corrects or kind.sequence >= 0 or kind.control:
        return None
    if kind.format not in ("single", "lines") or kind.problem is not None or log.kinds[first:last].count(kind) != count:
        return None
    bodies = [value or b"" for value in log.values[first:last]]
    if log.sizes[0, first:last].max() > MAX_RECORD_BYTES:
        return None
    if kind.format == "lines" and any(log.sizes[1, first:last] > MAX_RECORD_EVENTS):
        return None
    clocks = np.stack([log.appended[first:last], log.clocks[first:last]])
    if kind.format == "single":
        places = np.stack([log.offsets[first:last], np.zeros(count, np.int64), *clocks])
        return Stretch.of(bodies, places, np.full(count, kind.admitted))
    return _read_lines(bodies, log.offsets[first:last], clocks, kind.admitted)


def _read_lines(
    bodies: list[bytes], offsets: npt.NDArray[np.int64], clocks: npt.NDArray[np.int64], admitted: bool
) -> Stretch | None:
    """Do to records of lines what `split_record` does to one, if the compiled loops are there."""
    kernel = load_kernel()
    if kernel is None:
        return None
    text = join(bodies)
    array, ends = np.frombuffer(text, np.uint8), np.empty(len(text) // _SHORT_LINE + 1, np.int64)
    count = kernel.find_lines(array, ends)
    if count > len(ends):
        ends = np.empty(count, np.int64)
        kernel.find_lines(array, ends)
    ends = ends[:count]
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    record_ends = np.cumsum(np.fromiter(map(len, bodies), np.int64, len(bodies)) + 1) - 1
    record = np.searchsorted(record_ends, starts)
    # What begins with no more than a space may be blank; an event begins with a brace.
    blank = [row for row in np.flatnonzero(array[starts] <= 32).tolist() if not text[starts[row] : ends[row]].strip()]
    if blank:
        kept = np.ones(len(starts), bool)
        kept[blank] = False
        starts, ends, record = starts[kept], ends[kept], record[kept]
    counts = np.bincount(record, minlength=len(bodies))
    indexes = np.arange(len(record)) - (np.cumsum(counts) - counts)[record]
    places = np.stack([offsets[record], indexes, *clocks[:, record]])
    return Stretch(Cuts(text, starts, ends), text, starts, ends, places, np.full(len(starts), admitted))


def add_lines(lines: Lines, log: LogRows, row: int, kind: RecordKind, value: bytes) -> None:
    if kind.attributes is not None:
        value = compose(kind.attributes, value)
    if kind.format == "arrow":
        raise EventError("missing_field", f"Arrow batches must be numbered: header {COLLECTOR} is missing")
    if kind.format == "single" and len(value) <= MAX_RECORD_BYTES:
        parts = [value]
    else:
        parts = split_record(kind.content_type, value)
    lines.bodies += parts
    count = len(parts)
    lines.offsets += [int(log.offsets[row])] * count
    lines.indexes += range(count)
    lines.appended_ms += [int(log.appended[row])] * count
    lines.clocks_ms += [int(log.clocks[row])] * count
    lines.admitted += [kind.admitted] * count
