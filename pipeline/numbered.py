"""Numbered batches of our own collectors: each has one identity, and Arrow ones are understood many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.arrow_events import ArrowDecoder, Batch
from pipeline.book import DeadLetter, Forward
from pipeline.columns import Block, Events
from pipeline.corrections import digest_of
from pipeline.decoders import Decoders
from pipeline.heard import SILENT, UNKNOWN, Heard
from pipeline.identities import IdColumns
from pipeline.letters import complete
from pipeline.lines import Lines
from pipeline.stretch import LogRows, add_lines
from tallyman.errors import EventError
from tallyman.event import MAX_RECORD_BYTES, SINGLE, Event, Series, batch_identity, encode_event
from tallyman.headers import RecordKind
from tallyman.kafka import partition_of
from tallyman.meter import scaled_text


class ArrowRecord(NamedTuple):
    row: int
    kind: RecordKind
    batch: Batch


def add_numbered(
    block: Block,
    log: LogRows,
    row: int,
    kind: RecordKind,
    value: bytes,
    decoders: Decoders,
    arrow: list[ArrowRecord],
) -> None:
    """Decode one numbered batch, or one event of it that is let in again; an empty batch is a heartbeat and holds no
    events. Arrow batches are only opened: those of a block are understood together.
    """
    home = partition_of(kind.collector.encode(), decoders.partitions)
    is_heard = home == block.partition and kind.event_index < 0
    if is_heard:  # also if it turns out to be dead, or a copy: its number is not missing
        block.heard.append(_heard(block, int(log.clocks[row]), kind, value, decoders))
    if len(value) > MAX_RECORD_BYTES:
        raise EventError("too_large", f"expected at most {MAX_RECORD_BYTES} bytes, got {len(value)}")
    if home != block.partition:
        # Not judged here: its rows count, or are dead, where it belongs. The record counts as one.
        block.received += 1
        block.forwards.append(Forward(home, kind.collector.encode(), value, log.headers[row]))
        return
    if kind.format == "arrow":
        _, _, decoder = decoders.get(block.after.definitions)
        batch = decoder.open(value)
        if len(batch.series):
            block.heard[-1] = block.heard[-1]._replace(feeds=batch.feeds)
            arrow.append(ArrowRecord(row, kind, batch))
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


def _heard(block: Block, clock_ms: int, kind: RecordKind, value: bytes, decoders: Decoders) -> Heard:
    """Return what a batch says; its watermark is no further ahead than readings may be, since the largest is kept."""
    latest_us = clock_ms * 1000 + decoders.catalog(block.after.definitions).ahead_us
    if kind.watermark_us > latest_us:
        kind = kind._replace(watermark_us=latest_us)
    return Heard(kind, clock_ms, UNKNOWN if value and kind.format != "arrow" else SILENT)


def _claims(block: Block, log: LogRows, batches: Sequence[tuple[int, RecordKind, int]]) -> IdColumns:
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


def _json_batch(block: Block, log: LogRows, row: int, kind: RecordKind, value: bytes, decoders: Decoders) -> Events:
    _, json_decoder, _ = decoders.get(block.after.definitions)
    lines = Lines()
    add_lines(lines, log, row, kind, value)
    events, dead, ignored = json_decoder.decode(lines, SINGLE, block.after.booking)
    assert block.records is not None
    block.received += len(lines.bodies)
    block.ignored += ignored
    return replace(
        events,
        dead=[complete(letter, block.records) for letter in dead],
        body_of=events.bodies.__getitem__,
    )


def arrow_events(block: Block, log: LogRows, records: Sequence[ArrowRecord], decoders: Decoders) -> Events:
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
