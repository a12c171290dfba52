"""From a fetch to blocks: cut the log where a chunk, a booking or the definitions change, and decode what lies
between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.arrow_events import ArrowDecoder, Batch
from pipeline.batches import Fetch
from pipeline.book import (
    BOOKINGS_PER_DAY,
    DAY_MS,
    DeadLetter,
    Forward,
    OpenChunk,
    Place,
    RawRecord,
    booking_after,
    chain,
)
from pipeline.catalog import Catalog
from pipeline.columns import Block, Events, Records
from pipeline.corrections import digest_of, measure_correction, read_correction
from pipeline.identities import IdColumns
from pipeline.json_events import JsonDecoder, Lines
from pipeline.letters import complete, record_letter
from tallyman.binary import compose
from tallyman.errors import EventError, LogError
from tallyman.event import (
    COLLECTOR,
    CONTENT_TYPE,
    CORRECTS,
    MAX_RECORD_BYTES,
    SINGLE,
    Event,
    Series,
    batch_identity,
    encode_event,
    split_record,
)
from tallyman.headers import Headers, RecordKind, kind_of
from tallyman.kafka import partition_of
from tallyman.meter import Definitions, scaled_text


class Decoders:
    """The decoders of each version of the definitions that this process has met.

    Args:
        load: Returns a version of the definitions; raises LogError, with a sentence, for one that it does not know.
    """

    def __init__(self, load: Callable[[int], Definitions], partitions: int) -> None:
        self._load = load
        self.partitions = partitions
        self._known: dict[int, tuple[Catalog, JsonDecoder, ArrowDecoder]] = {}

    def get(self, number: int) -> tuple[Catalog, JsonDecoder, ArrowDecoder]:
        if number not in self._known:
            # What was sent before the topic's first close is judged by the definitions that this close puts in force.
            catalog = Catalog(self._load(max(number, 1)))
            self._known[number] = catalog, JsonDecoder(catalog, self.partitions), ArrowDecoder(catalog)
        return self._known[number]

    def catalog(self, number: int) -> Catalog:
        return self.get(number)[0]


class _Log(NamedTuple):
    """The records of a fetch that are not folded yet, with what the log decides about each."""

    kinds: list[RecordKind]
    offsets: npt.NDArray[np.int64]
    appended: npt.NDArray[np.int64]
    clocks: npt.NDArray[np.int64]
    bookings: npt.NDArray[np.int64]
    definitions: npt.NDArray[np.int64]
    values: list[bytes | None]
    headers: list[Headers]


def blocks(fetch: Fetch, chunk: OpenChunk, decoders: Decoders, *, archive: bool = False) -> Iterator[Block]:
    """Cut a fetch into blocks; the caller folds each into the chunk before it asks for the next.

    Raises:
        LogError: There is a gap between what is folded and the fetch, or the log is not what was booked.
    """
    if fetch.first > chunk.here.offset:
        raise LogError(
            f"partition {fetch.partition}: expected offset {chunk.here.offset} next, "
            f"got a fetch that begins at {fetch.first}"
        )
    if fetch.next <= chunk.here.offset:
        yield Block(fetch.topic_id, fetch.partition, chunk.here, chunk.here, idle=True)
        return
    log = _read_log(fetch, chunk.here)
    row = 0
    while chunk.here.offset < fetch.next:
        before, stop = chunk.here, min(fetch.next, chunk.end)
        last = _segment_end(log, row, stop)
        offset = stop if last == len(log.offsets) or log.offsets[last] >= stop else int(log.offsets[last - 1]) + 1
        if last > row:
            clock, booking = int(log.clocks[last - 1]), int(log.bookings[last - 1])
            definitions = int(log.definitions[last - 1])
        else:
            clock, booking, definitions = before.clock_ms, before.booking, before.definitions
        digest = chain(before.digest, fetch.digests, before.offset, offset)
        after = Place(offset, clock, booking, definitions, digest, before.counts)
        _meet_again(fetch, chunk, after)
        turns = booking > before.booking or definitions > before.definitions
        block = Block(fetch.topic_id, fetch.partition, before, after,
                      turn=turns, closes=offset == chunk.end)  # fmt: skip
        _fill(block, log, row, last, decoders, archive)
        row = last
        yield block
        if chunk.here.offset != offset:
            raise LogError(f"partition {fetch.partition}: the block up to {offset} was not folded")


def _meet_again(fetch: Fetch, chunk: OpenChunk, after: Place) -> None:
    """Compare the digest where another run's progress stands with ours at the same place."""
    earlier = chunk.earlier
    if earlier is None or after.offset < earlier.offset:
        return
    chunk.earlier = None
    digest = chain(chunk.here.digest, fetch.digests, chunk.here.offset, earlier.offset)
    if digest != earlier.digest:
        raise LogError(
            f"partition {chunk.partition}: below offset {earlier.offset} the log differs from what was booked "
            f"(digest {digest}, booked {earlier.digest}); it was truncated, or its topic made anew. "
            "Nothing is guessed: an operator decides"
        )


def _read_log(fetch: Fetch, here: Place) -> _Log:
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
                bookings[i] = booking_after(int(bookings[i]), int(clocks[i]), kind.opens)
                definitions[i] = max(int(definitions[i]), kind.definitions)
        bookings = np.maximum.accumulate(bookings)
        definitions = np.maximum.accumulate(definitions)
    return _Log(kinds, fetch.offsets[first:], appended, clocks, bookings, definitions, fetch.values[first:], headers)


def _segment_end(log: _Log, row: int, stop: int) -> int:
    """Return the row behind the last one that shares its chunk, booking and definitions with the first."""
    end = int(np.searchsorted(log.offsets, stop))
    if end <= row:
        return row
    same = (log.bookings[row:end] == log.bookings[row]) & (log.definitions[row:end] == log.definitions[row])
    return end if same.all() else row + int(np.argmin(same))


def _fill(block: Block, log: _Log, first: int, last: int, decoders: Decoders, archive: bool) -> None:
    """Decode the records of a block: foreign events together, each numbered batch by itself."""
    _, json_decoder, arrow_decoder = decoders.get(block.after.definitions)
    arrow_decoder.begin()
    booking = block.after.booking
    records = block.records = Records(log.offsets, log.appended, log.values, log.headers)
    foreign, arrow = Lines(), list[_ArrowRecord]()
    rows = range(first, last)
    if archive:
        block.raw = [_raw(log, row, booking) for row in rows]
    if _add_alike(foreign, log, first, last):
        rows = range(0)
    for row in rows:
        kind = log.kinds[row]
        value = log.values[row] or b""
        if kind.control:
            continue
        try:
            if kind.problem is not None:
                raise kind.problem
            if kind.corrects:
                _correction(block, log, row, kind, value, decoders)
            elif kind.sequence >= 0:
                _numbered(block, log, row, kind, value, decoders, arrow)
            else:
                _add_lines(foreign, log, row, kind, value)
        except EventError as error:
            block.received += 1
            block.dead.append(record_letter(block, int(log.offsets[row]), error))
    if arrow:
        block.parts.append(_arrow_batches(block, log, arrow, decoders))
    if foreign.bodies:
        block.received += len(foreign.bodies)
        events, dead, ignored = json_decoder.decode(foreign, SINGLE, booking)
        block.dead += [complete(letter, records) for letter in dead]
        block.ignored += ignored
        if len(events):
            block.parts.append(events)
    _order(block)


def _raw(log: _Log, row: int, booking: int) -> RawRecord:
    return RawRecord(
        int(log.offsets[row]), int(log.appended[row]), booking, log.headers[row], log.values[row] or b""
    )


def _order(block: Block) -> None:
    """Put foreign events that were decoded apart back into log order: the smaller position wins."""
    foreign = [part for part in block.parts if part.claims is None]
    if len(foreign) < 2:
        return
    block.parts = [part for part in block.parts if part.claims is not None]
    block.parts.append(concatenate(foreign))


def concatenate(parts: list[Events]) -> Events:
    """Join foreign events, in log order."""
    columns = (
        "offsets",
        "indexes",
        "appended_ms",
        "clocks_ms",
        "times_us",
        "high",
        "low",
        "digests",
        "homes",
        "admitted",
    )
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    bodies = [body for part in parts for body in part.bodies]
    starts = np.cumsum([0, *(len(part) for part in parts)])
    event = np.concatenate([part.reading_event + start for part, start in zip(parts, starts, strict=False)])
    order = np.lexsort((joined["indexes"], joined["offsets"]))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return Events(
        **{name: column[order] for name, column in joined.items()},
        bodies=[bodies[i] for i in order.tolist()],
        reading_event=places[event],
        reading_series=np.concatenate([part.reading_series for part in parts]),
        reading_value=np.concatenate([part.reading_value for part in parts]),
        content_type=parts[0].content_type,
    )


def _add_alike(lines: Lines, log: _Log, first: int, last: int) -> bool:
    """Add records that hold one foreign event each, all under the same headers, at once; say whether they are such."""
    count, kind = last - first, log.kinds[first] if last > first else None
    if kind is None or kind.format != "single" or kind.attributes is not None or kind.corrects or kind.sequence >= 0:
        return False
    bodies = [value or b"" for value in log.values[first:last]]
    if log.kinds[first:last].count(kind) != count or max(map(len, bodies)) > MAX_RECORD_BYTES:
        return False
    lines.bodies += bodies
    lines.offsets += log.offsets[first:last].tolist()
    lines.indexes += [0] * count
    lines.appended_ms += log.appended[first:last].tolist()
    lines.clocks_ms += log.clocks[first:last].tolist()
    lines.admitted += [kind.admitted] * count
    return True


def _add_lines(lines: Lines, log: _Log, row: int, kind: RecordKind, value: bytes) -> None:
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


def _correction(block: Block, log: _Log, row: int, kind: RecordKind, value: bytes, decoders: Decoders) -> None:
    catalog, decoder, _ = decoders.get(block.after.definitions)
    if kind.attributes is not None:
        value = compose(kind.attributes, value)
    if len(value) > MAX_RECORD_BYTES:
        raise EventError("too_large", f"expected at most {MAX_RECORD_BYTES} bytes, got {len(value)}")
    clocks = int(log.appended[row]), int(log.clocks[row])
    headers = ((CONTENT_TYPE, SINGLE.encode()), (CORRECTS, str(kind.corrects).encode()))
    found = read_correction(value, kind.corrects, decoders.partitions, int(log.offsets[row]), clocks, headers)
    if found.home == block.partition:
        found = measure_correction(found, decoder, catalog, lambda number: decoders.catalog(number).meters)
    block.received += 1
    block.corrections.append(found)


class _ArrowRecord(NamedTuple):
    row: int
    kind: RecordKind
    batch: Batch


def _numbered(
    block: Block,
    log: _Log,
    row: int,
    kind: RecordKind,
    value: bytes,
    decoders: Decoders,
    arrow: list[_ArrowRecord],
) -> None:
    """Decode one numbered batch, or one event of it that is let in again; an empty batch is a heartbeat and holds no
    events. Arrow batches are only opened: those of a block are understood together.
    """
    if len(value) > MAX_RECORD_BYTES:
        raise EventError("too_large", f"expected at most {MAX_RECORD_BYTES} bytes, got {len(value)}")
    home = partition_of(kind.collector.encode(), decoders.partitions)
    if home != block.partition:
        # Not judged here: its rows count, or are dead, where it belongs. The record counts as one.
        block.received += 1
        block.forwards.append(Forward(home, kind.collector.encode(), value, log.headers[row]))
        return
    if kind.format == "arrow":
        _, _, decoder = decoders.get(block.after.definitions)
        batch = decoder.open(value)
        if len(batch.series):
            arrow.append(_ArrowRecord(row, kind, batch))
        return
    part = _json_batch(block, log, row, kind, value, decoders)
    if kind.event_index >= 0:
        # Its identity is not in its bytes; else it is an event like a foreign one, and its copies are too.
        high, low = (np.array([word], np.uint64) for word in _identity(kind))
        block.dead += part.dead
        if len(part):
            block.parts.append(replace(part, high=high, low=low, homes=_column(home, 1), dead=[], body_of=None))
        return
    if not len(part) and not part.dead:
        return
    claims = _claims(block, log, [(row, kind, int(part.times_us.max(initial=0)))])
    high, low = claims.high.repeat(len(part)), claims.low.repeat(len(part))
    block.parts.append(replace(part, high=high, low=low, claims=claims, batch=_column(0, len(part))))


def _claims(block: Block, log: _Log, batches: Sequence[tuple[int, RecordKind, int]]) -> IdColumns:
    """Return the identities of numbered batches (row, kind, newest event time) as they would be accepted."""
    rows = [row for row, _, _ in batches]
    words = np.array([_identity(kind) for _, kind, _ in batches], np.uint64)
    newest = np.array([time_us for _, _, time_us in batches], np.int64)
    digests = [digest_of(log.values[row] or b"") for row in rows]
    return IdColumns(
        words[:, 0],
        words[:, 1],
        log.offsets[rows],
        _column(0, len(rows)),
        np.maximum(log.clocks[rows] * 1000, newest),
        np.array(digests, np.uint64),
        _column(block.after.definitions, len(rows), np.uint32),
    )


def _identity(kind: RecordKind) -> tuple[int, int]:
    index = kind.event_index if kind.event_index >= 0 else None
    high, low = np.frombuffer(batch_identity(kind.collector, kind.epoch, kind.sequence, index), "<u8").tolist()
    return high, low


def _json_batch(block: Block, log: _Log, row: int, kind: RecordKind, value: bytes, decoders: Decoders) -> Events:
    _, json_decoder, _ = decoders.get(block.after.definitions)
    lines = Lines()
    _add_lines(lines, log, row, kind, value)
    events, dead, ignored = json_decoder.decode(lines, SINGLE, block.after.booking)
    assert block.records is not None
    block.received += len(lines.bodies)
    block.ignored += ignored
    return replace(
        events,
        dead=[complete(letter, block.records) for letter in dead],
        body_of=events.bodies.__getitem__,
    )


def _arrow_batches(block: Block, log: _Log, records: Sequence[_ArrowRecord], decoders: Decoders) -> Events:
    _, _, decoder = decoders.get(block.after.definitions)
    rows = decoder.rows([record.batch for record in records])
    sizes = np.array([len(record.batch.series) for record in records], np.int64)
    starts = np.cumsum(sizes) - sizes
    count, where = len(rows.times_us), [record.row for record in records]
    batch = np.arange(len(records)).repeat(sizes)
    indexes = np.arange(count) - starts.repeat(sizes)
    newest = np.maximum.reduceat(rows.times_us, starts).tolist()
    claims = _claims(block, log, [(each.row, each.kind, time) for each, time in zip(records, newest, strict=True)])
    readable = [_ReadableRows(decoder, log.values[each.row] or b"", each.kind) for each in records]
    dead_rows, assigned = sorted(rows.errors), block.records
    assert assigned is not None
    dead = []
    for row in dead_rows:
        error, place, index = rows.errors[row], int(batch[row]), int(indexes[row])
        offset, appended_ms = int(claims.offsets[place]), int(log.appended[where[place]])
        letter = DeadLetter(offset, index, appended_ms, block.after.booking, error.reason, error.detail, b"")
        dead.append(complete(readable[place].fill(letter), assigned))
    block.received += count
    block.ignored += rows.ignored
    kept = rows.wanted
    kept[dead_rows] = False
    event, series, amounts, times = rows.reading_event, rows.reading_series, rows.reading_value, rows.times_us
    if not kept.all():
        chosen = kept[event]
        event, series, amounts = (np.cumsum(kept) - 1)[event[chosen]], series[chosen], amounts[chosen]
        times, batch, indexes = times[kept], batch[kept], indexes[kept]
    size = len(times)
    return Events(
        offsets=claims.offsets[batch],
        indexes=indexes,
        appended_ms=log.appended[where][batch],
        clocks_ms=log.clocks[where][batch],
        times_us=times,
        high=claims.high[batch],
        low=claims.low[batch],
        digests=np.zeros(size, np.uint64),
        homes=_column(block.partition, size),
        admitted=np.array([record.kind.admitted for record in records], np.bool_)[batch],
        bodies=[],
        reading_event=event,
        reading_series=series,
        reading_value=amounts,
        claims=claims,
        batch=batch,
        dead=dead,
        body_of=lambda place: readable[int(batch[place])].body(int(indexes[place])),
    )


def _column(value: Any, size: int, kind: type[np.generic] = np.int64) -> npt.NDArray[Any]:
    """Return a column of one value."""
    return np.full(size, value, kind)


class _ReadableRows:
    """Rows of an Arrow batch as the JSON events that they stand for, so that a person can read and mend them."""

    def __init__(self, decoder: ArrowDecoder, record: bytes, kind: RecordKind) -> None:
        self._decoder, self._record, self._kind = decoder, record, kind
        self._opened: tuple[tuple[Series, ...], Any] | None = None

    def fill(self, letter: DeadLetter) -> DeadLetter:
        """Fill in the body and the names of a dead letter, and return it."""
        series, _ = self._row(letter.index)
        letter.body = self.body(letter.index)
        letter.type, letter.source, letter.subject = series.type, self._kind.collector, series.subject
        return letter

    def body(self, index: int) -> bytes:
        """Write a row."""
        series, row = self._row(index)
        data = {**series.data, "value": scaled_text(row["value"], series.scale)}
        identifier = f"{self._kind.epoch}/{self._kind.sequence}/{index}"
        event = Event(identifier, self._kind.collector, series.type, series.subject, row["time_us"], data)
        try:
            return encode_event(event)
        except OverflowError:  # a time that no calendar has
            return msgspec.json.encode({"id": identifier, "series": series, "row": row})

    def _row(self, index: int) -> tuple[Series, dict[str, Any]]:
        if self._opened is None:
            import pyarrow as pa

            with pa.ipc.open_stream(pa.py_buffer(self._record)) as stream:
                self._opened = self._decoder.series_of(self._record), stream.read_all()
        names, table = self._opened
        row: dict[str, Any] = table.slice(index, 1).to_pylist()[0]
        return names[row["series"]], row
