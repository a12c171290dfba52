"""Write a flush of an open chunk to ClickHouse, in the order on which the promises rest.

Forwards, ids, dead letters and conflicts, raw records, usage, heard batches, progress; then the push to whoever waits
for progress.
Every row is keyed by position or by (series, minute, chunk) and replaces itself, so that a flush may be written again,
by this process or by a zombie of it, as often as need be.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Protocol

import numpy as np
from clickhouse_driver import Client

from pipeline.aggregate import IntArray, Reduced
from pipeline.archive import MapOfPairs
from pipeline.book import Forward, OpenChunk, Place
from pipeline.catalog import EXTREMES_COUNT, LATEST_COUNTS, Catalog
from pipeline.identities import IdColumns
from pipeline.repeated import plain, repeat
from tallyman.clickhouse import TYPE_MISMATCH, refusal, store_errors
from tallyman.errors import DamageError, FencedError, SealedError, StoreError
from tallyman.metrics import counter

log = logging.getLogger(__name__)
GENERATION = 0
# What the driver raises while it writes our values as a column of another type than the schema's.
_UNFIT = (AttributeError, TypeError, ValueError)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_TOUCHED = 20_000
_IDS = (
    "INSERT INTO ids (identity_high, identity_low, topic_id, partition, offset, event_index, remembered_us, digest,"
    " definitions, repairs) VALUES"
)
_DEAD = (
    "INSERT INTO dead_letters (topic_id, partition, offset, event_index, generation, appended_at, booking, reason,"
    " detail, content_type, type, source, subject, headers, body) VALUES"
)
_CONFLICTS = (
    "INSERT INTO conflicts (topic_id, partition, offset, event_index, first_offset, first_event_index, booking,"
    " appended_at, body) VALUES"
)
_CORRECTIONS = (
    "INSERT INTO corrections (topic_id, partition, offset, subject, source, id, version, first_offset, booking,"
    " appended_at, reason, was, now) VALUES"
)
_EVENTS = "INSERT INTO events (topic_id, partition, offset, appended_at, booking, headers, body) VALUES"
_HEARD = (
    "INSERT INTO heard (collector, epoch, topic_id, partition, chunk, booking, definitions, first, last,"
    " first_watermark_us, last_watermark_us, first_clock_ms, clock_ms, subjects, types, covered) VALUES"
)
_USAGE = (
    "INSERT INTO usage_hot (meter, subject, dimensions, minute, booking, definitions, topic_id, partition, chunk,"
    " generation, item, covered, aggregation, scale, parameters, count, sum, min, max, latest, latest_us, latest_by,"
    " repairs) VALUES"
)
_PROGRESS = (
    "INSERT INTO progress (topic_id, partition, chunk, generation, covered,"
    " reached_offset, reached_clock_ms, reached_booking, reached_definitions, reached_digest,"
    " turned_offset, turned_clock_ms, turned_booking, turned_definitions, turned_digest,"
    " reached_counts, turned_counts, repairs) VALUES"
)


class Outlet(Protocol):
    """What leaves the writer for Kafka: forwards, which must be acknowledged, and pushes of progress, which
    need not.
    """

    def forward(self, forwards: Sequence[Forward]) -> None:
        """Send records to their home partitions; return when all are acknowledged.

        Raises:
            BrokerError: Not all were; sending all again is safe, their ids count once.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...

    def push(self, progress: Progress) -> None:
        """Tell whoever waits that usage is readable up to a place. Losing a push loses nothing: the next one
        tells more.
        """
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """What a flush made readable."""

    topic_id: str
    partition: int
    chunk: int
    covered: int
    place: Place
    touched: list[tuple[str, str, int, int]] | None  # (meter, subject, first minute, last minute); None: too many


@dataclass(slots=True)
class Cut:
    """What one open chunk has to write: everything folded in so far that is not acknowledged yet."""

    chunk: OpenChunk
    catalog: Catalog
    ids: list[IdColumns]
    changes: Reduced
    slots: IntArray

    @property
    def key(self) -> tuple[str, int]:
        return self.chunk.topic_id, self.chunk.partition

    def acknowledge(self, now: float, cost_s: float) -> None:
        """Note that all of it is written."""
        chunk = self.chunk
        chunk.accepted.acknowledge(len(self.ids))
        chunk.dead.clear()
        chunk.conflicts.clear()
        chunk.corrections.clear()
        chunk.raw.clear()
        chunk.table.acknowledge(self.slots)
        chunk.voices.acknowledge()
        chunk.acknowledged = chunk.here
        chunk.forget_written_ids()
        chunk.flushed_at, chunk.flush_cost_s, chunk.caught_up = now, cost_s, False

    def progress(self) -> Progress:
        chunk, touched = self.chunk, _touched(self.changes, self.catalog) if len(self.slots) else []
        return Progress(*self.key, chunk.number, chunk.covered, chunk.here, touched)


@dataclass(slots=True)
class Flush:
    """A cut through an open chunk, and through others that have something to write: together they cost little more."""

    chunk: OpenChunk
    catalog: Catalog
    others: tuple[tuple[OpenChunk, Catalog], ...] = ()

    def steps(self, tables: Tables, outlet: Outlet) -> Iterator[str]:
        """Write step by step, yielding the name of each table that was acknowledged.

        Raises:
            StoreError: A write was not acknowledged. What was is there already; write the whole flush again.
            DamageError: It would be booked in what another line of topics sealed; nothing is written.
        """
        began = time.monotonic()
        chunks = [(self.chunk, self.catalog), *self.others]
        for chunk, _ in chunks:
            if chunk.in_sealed:
                raise sealed_error(chunk.partition, chunk.here.booking)
        forwards = [forward for chunk, _ in chunks for forward in chunk.forwards]
        if forwards:
            outlet.forward(forwards)
            for chunk, _ in chunks:
                chunk.forwards.clear()
            yield "forwards"
        cuts = [
            Cut(chunk, catalog, chunk.accepted.unwritten(), *chunk.table.take_changes()) for chunk, catalog in chunks
        ]
        # Not beside usage: what usage holds a repair calls booked, also ahead of progress (docs/decisions/0028).
        if any(cut.ids for cut in cuts):
            tables.insert_ids([((*cut.key, cut.chunk.repairs), cut.ids) for cut in cuts if cut.ids])
            yield "ids"
        for table, name in _BY_POSITION:
            rows = [(cut.key, getattr(cut.chunk, name)) for cut in cuts if getattr(cut.chunk, name)]
            for key, mine in rows:
                tables.insert_rows(table, key, mine)
            if rows:
                yield table
        for booking in sorted({cut.chunk.here.booking for cut in cuts if len(cut.slots)}):
            tables.insert_usage([cut for cut in cuts if len(cut.slots) and cut.chunk.here.booking == booking])
            yield "usage_hot"
        # Behind usage, so that whoever reads a watermark finds what it speaks of; before progress, so that whoever
        # reads a log clock knows every collector that spoke below it.
        heard = [row for cut in cuts for row in _heard_rows(cut.chunk)]
        if heard:
            tables.insert_heard(heard)
            yield "heard"
        tables.insert_progress([cut.chunk for cut in cuts])
        now = time.monotonic()
        for cut in cuts:
            cut.acknowledge(now, now - began)
        yield "progress"
        for cut in cuts:
            outlet.push(cut.progress())


class Tables:
    """The tables that a worker writes.

    Args:
        client: For columns of Python values.
        numbers: For numpy columns: eight times as fast, but it has no 128-bit integers, maps or arrays.
    """

    usage_table = "usage_hot"

    def __init__(self, client: Client, numbers: Client) -> None:
        self._client = client
        self._numbers = numbers

    def close(self) -> None:
        """Let go of the connections."""
        self._client.disconnect()
        self._numbers.disconnect()

    def _insert(self, sql: str, columns: Sequence[Any]) -> None:
        client = self._numbers if isinstance(columns[0], np.ndarray) else self._client
        into = sql.split("(")[0].strip()
        with store_errors(client, into):
            try:
                client.execute(sql, columns, columnar=True)
                counter("tallyman_pipeline_rows_total").labels(into.rpartition(" ")[2]).inc(len(columns[0]))
            except _UNFIT as error:  # half a block is sent
                client.disconnect()
                raise refusal(TYPE_MISMATCH, into, f"{type(error).__name__}: {error}") from error

    def insert_ids(self, cuts: Sequence[tuple[tuple[str, int, int], list[IdColumns]]]) -> None:
        """Insert accepted identities of some (topic id, partition, repairs known) as one block."""
        blocks = [block for _, mine in cuts for block in mine]
        sizes = [sum(len(block.high) for block in mine) for _, mine in cuts]
        joined = IdColumns(
            *(np.concatenate(column) if len(blocks) > 1 else column[0] for column in zip(*blocks, strict=True))
        )
        self._insert(
            _IDS,
            [
                plain(joined.high, np.uint64),
                plain(joined.low, np.uint64),
                _repeated([key[0] for key, _ in cuts], sizes),
                plain(np.repeat([key[1] for key, _ in cuts], sizes), np.uint32),
                plain(joined.offsets, np.uint64),
                plain(joined.indexes, np.uint32),
                plain(joined.remembered_us, np.int64),
                plain(joined.digests, np.uint64),
                plain(joined.definitions, np.uint32),
                plain(np.repeat([key[2] for key, _ in cuts], sizes), np.uint32),
            ],
        )

    def insert_rows(self, table: str, key: tuple[str, int], rows: Sequence[Any]) -> None:
        """Insert dead letters, conflicts or raw records, one block for each booking."""
        for booking in sorted({row.booking for row in rows}):
            mine = [row for row in rows if row.booking == booking]
            common: list[Any] = [[key[0]] * len(mine), [key[1]] * len(mine), [row.offset for row in mine]]
            appended = [row.appended_ms for row in mine]
            columns = _ROW_COLUMNS[table](mine, appended)
            self._insert(_ROW_SQL[table], common + columns)

    def insert_usage(self, cuts: Sequence[Cut]) -> None:
        """Insert the changed rows of cuts of one booking: one block of one ClickHouse partition."""
        columns = [_usage_columns(cut.chunk, cut.changes, cut.catalog) for cut in cuts]
        joined = (
            columns[0]
            if len(columns) == 1
            else [list(chain.from_iterable(each)) for each in zip(*columns, strict=True)]
        )
        self._insert(_USAGE.replace("usage_hot", self.usage_table, 1), joined)

    def insert_heard(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert which numbered batches stand in the log."""
        self._insert(_HEARD, [list(column) for column in zip(*rows, strict=True)])

    def insert_progress(self, chunks: Sequence[OpenChunk]) -> None:
        """Insert how far chunks are booked: what they hold up to there is acknowledged."""
        self._insert(_PROGRESS, [list(column) for column in zip(*map(_progress_row, chunks), strict=True)])


def write(
    flush: Flush, tables: Tables, outlet: Outlet, *, patience_s: float = 60, pause: Callable[[float], None] = time.sleep
) -> None:
    """Write a flush until all of it is acknowledged.

    Raises:
        StoreError: ClickHouse did not acknowledge for `patience_s`; the caller starts again from the frontier.
        StoreRefusedError: It will not, however often it is asked.
        DamageError: It would be booked in what another line of topics sealed.
    """
    deadline = time.monotonic() + patience_s
    wait_s = 0.05
    while True:
        try:
            for _ in flush.steps(tables, outlet):
                pass
            return
        except SealedError as error:
            mine = [flush.chunk, *(chunk for chunk, _ in flush.others)]
            first = next(chunk for chunk in mine if chunk.here.booking <= error.booking)
            raise sealed_error(first.partition, first.here.booking) from error
        except FencedError:
            raise
        except StoreError as error:
            counter("tallyman_pipeline_flush_errors_total").inc()
            if time.monotonic() > deadline:
                raise
            log.warning("flush_retried", extra={"partition": flush.chunk.partition, "error": str(error)})
            pause(wait_s)
            wait_s = min(2 * wait_s, 5)


def sealed_error(partition: int, booking: int) -> DamageError:
    """Say that a partition stands in a booking that is sealed: nobody would see what is booked there now."""
    return DamageError(
        partition, "sealed",
        f"booking {booking}, in which the partition stands, was sealed while another topic was booked in its place",
    )  # fmt: skip


def _progress_row(chunk: OpenChunk) -> tuple[Any, ...]:
    here, turned = chunk.here, chunk.turned
    return (
        chunk.topic_id,
        chunk.partition,
        chunk.number,
        GENERATION,
        chunk.covered,
        *_place_columns(here),
        *_place_columns(turned),
        list(here.counts),
        list(turned.counts),
        chunk.repairs,
    )


def _heard_rows(chunk: OpenChunk) -> Iterator[tuple[Any, ...]]:
    place = chunk.topic_id, chunk.partition, chunk.number, chunk.here.booking, chunk.here.definitions
    for collector, epoch, run, feeds in chunk.voices.unwritten():
        marks = run.first, run.last, run.first_watermark_us, run.last_watermark_us
        clocks = run.first_clock_ms, run.clock_ms
        yield collector, epoch, *place, *marks, *clocks, sorted(feeds.subjects), sorted(feeds.types), chunk.covered


def _usage_columns(chunk: OpenChunk, rows: Reduced, catalog: Catalog) -> list[list[Any]]:
    size = len(rows.keys)
    codes, series = (rows.keys >> 32).tolist(), catalog.series
    numbers = [series.meters[code] for code in codes]
    meters = [catalog.meters[number] for number in numbers]
    extremes = np.array([meter.aggregation in EXTREMES_COUNT for meter in meters], bool)
    latest = np.array([meter.aggregation in LATEST_COUNTS for meter in meters], bool)
    return [
        [meter.meter for meter in meters],
        [series.subjects[code] for code in codes],
        [series.dimensions[code] for code in codes],
        ((rows.keys & 0xFFFFFFFF) * 60).tolist(),
        [chunk.here.booking] * size,
        [chunk.here.definitions] * size,
        [chunk.topic_id] * size,
        [chunk.partition] * size,
        [chunk.number] * size,
        [GENERATION] * size,
        [series.items[code] for code in codes],
        [chunk.covered] * size,
        [meter.aggregation for meter in meters],
        [meter.scale for meter in meters],
        [catalog.parameters[number] for number in numbers],
        rows.count.tolist(),
        rows.sum.tolist(),
        np.where(extremes, rows.min, 0).tolist(),
        np.where(extremes, rows.max, 0).tolist(),
        np.where(latest, rows.latest, 0).tolist(),
        np.where(latest, rows.latest_us, 0).tolist(),
        _identity_bytes(rows, latest),
        [chunk.repairs] * size,
    ]


def _touched(rows: Reduced, catalog: Catalog) -> list[tuple[str, str, int, int]] | None:
    """Return of each meter and tenant the first and the last minute that rows change; None: they are too many."""
    keys = np.sort(rows.keys)
    codes, minutes = keys >> 32, keys & 0xFFFFFFFF
    first = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
    last = np.concatenate([first[1:], [len(keys)]]) - 1
    spans: dict[tuple[int, str], tuple[int, int]] = {}
    meters, subjects = catalog.series.meters, catalog.series.subjects
    for code, begin, end in zip(codes[first].tolist(), minutes[first].tolist(), minutes[last].tolist(), strict=True):
        name = meters[code], subjects[code]
        known = spans.get(name)
        spans[name] = (begin, end) if known is None else (min(known[0], begin), max(known[1], end))
        if len(spans) > MAX_TOUCHED:
            return None
    return [(catalog.meters[meter].meter, subject, *span) for (meter, subject), span in spans.items()]


def _identity_bytes(rows: Reduced, latest: Any) -> list[bytes]:
    nothing = bytes(16)
    if not latest.any():
        return [nothing] * len(rows.keys)
    # Big-endian, so that ClickHouse orders the bytes as we order (high, low).
    words = np.stack([rows.by_high, rows.by_low], axis=1).astype(">u8").tobytes()
    return [words[16 * i : 16 * i + 16] if yes else nothing for i, yes in enumerate(latest.tolist())]


def _repeated(texts: list[str], sizes: list[int]) -> Any:
    """Return each text as often as its size says."""
    if len(set(texts)) == 1:
        return repeat(texts[0], sum(sizes))
    return np.repeat(np.array(texts, object), sizes)


def _same(text: str, size: int) -> Any:
    return np.full(size, text, object)


def _place_columns(place: Place) -> list[int]:
    return [place.offset, place.clock_ms, place.booking, place.definitions, place.digest]


def _milliseconds(appended: list[int]) -> list[datetime]:
    return [_EPOCH + timedelta(milliseconds=each) for each in appended]


def _dead_columns(rows: Sequence[Any], appended: list[int]) -> list[Any]:
    return [
        [row.index for row in rows],
        [GENERATION] * len(rows),
        _milliseconds(appended),
        [row.booking for row in rows],
        *(
            [getattr(row, name) for row in rows]
            for name in ("reason", "detail", "content_type", "type", "source", "subject")
        ),
        [dict(row.headers) for row in rows],
        [row.body for row in rows],
    ]


def _conflict_columns(rows: Sequence[Any], appended: list[int]) -> list[Any]:
    names = ("index", "first_offset", "first_index", "booking")
    return [
        *([getattr(row, name) for row in rows] for name in names),
        _milliseconds(appended),
        [row.body for row in rows],
    ]


def _correction_columns(rows: Sequence[Any], appended: list[int]) -> list[Any]:
    names = ("subject", "source", "id", "version", "first_offset", "booking")
    return [
        *([getattr(row, name) for row in rows] for name in names),
        _milliseconds(appended),
        *([getattr(row, name) for row in rows] for name in ("reason", "was", "now")),
    ]


def _event_columns(rows: Sequence[Any], appended: list[int]) -> list[Any]:
    headers = [MapOfPairs(row.headers) for row in rows]
    return [_milliseconds(appended), [row.booking for row in rows], headers, [row.body for row in rows]]


_BY_POSITION = (("dead_letters", "dead"), ("conflicts", "conflicts"), ("corrections", "corrections"), ("events", "raw"))
_ROW_SQL = {"dead_letters": _DEAD, "conflicts": _CONFLICTS, "corrections": _CORRECTIONS, "events": _EVENTS}
_ROW_COLUMNS: dict[str, Callable[[Sequence[Any], list[int]], list[Any]]] = {
    "dead_letters": _dead_columns,
    "conflicts": _conflict_columns,
    "corrections": _correction_columns,
    "events": _event_columns,
}
