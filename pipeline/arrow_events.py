"""Arrow batches of our own collectors to columns: integers all the way, each series' names met once.

The schema and its version are `tallyman.event.ARROW_FIELDS`. All batches of a stretch of log are understood together:
what costs the same for a thousand rows and for forty thousand is paid once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from crc32c import crc32c

from pipeline.arrow_stream import open_messages, read_batches
from pipeline.catalog import Catalog
from pipeline.heard import Feeds, feeds_of
from pipeline.values import narrow
from tallyman.errors import EventError
from tallyman.event import (
    ARROW_FIELDS,
    ARROW_SERIES_KEY,
    ARROW_VERSION,
    ARROW_VERSION_KEY,
    FIRST_US,
    LAST_US,
    MAX_NAME_BYTES,
    Series,
)
from tallyman.meter import MAX_SCALE, QUANTITY_BOUND, scaled_text, value_in
from tallyman.nesting import is_too_deep

ARROW_SCHEMA = pa.schema([pa.field(name, getattr(pa, kind)(), nullable) for name, kind, nullable in ARROW_FIELDS])
_KNOWN_SERIES = 2_000_000  # entries of series tables that are remembered
_KNOWN_BYTES = 64 << 20  # of their texts
_COUNTS, _NO_NEGATIVE, _ROW_BY_ROW = 1, 2, 4
_FINE, _IGNORED, _DEAD = 0, 1, 2
_POWERS = 10 ** np.arange(MAX_SCALE + 1)
_LIMITS = ((1 << 63) - 1) // _POWERS  # larger amounts overflow when they are multiplied
_COLUMNS = ("series", "time_us", "value")
_decode_series = msgspec.json.Decoder(tuple[Series, ...]).decode
Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class ArrowRows:
    """The rows of some batches, and what each means: `errors` are rows that are dead letters."""

    times_us: Ints
    reading_event: Ints
    reading_series: npt.NDArray[np.int32]
    reading_value: npt.NDArray[Any]
    errors: dict[int, EventError]
    ignored: int
    wanted: npt.NDArray[np.bool_]


class Batch(NamedTuple):
    """One batch, opened: its columns, where its series stand among all that are known, and whom they belong to."""

    series: Ints
    times_us: Ints
    values: Ints
    levels: int
    feeds: Feeds


class _Table(NamedTuple):
    text: bytes
    base: int
    size: int
    levels: int
    feeds: Feeds


@dataclass(slots=True)
class _Level:
    """For the nth meter that wants a series: the series' number here (-1: there is none), the power of ten from the
    batch's scale to the meter's, and what else the meter asks for.
    """

    numbers: npt.NDArray[np.int32] = field(default_factory=lambda: np.full(1024, -1, np.int32))
    shifts: npt.NDArray[np.int8] = field(default_factory=lambda: np.zeros(1024, np.int8))
    flags: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(1024, np.uint8))

    def reserve(self, size: int) -> None:
        room = len(self.numbers)
        if size > room:
            more = max(size, 2 * room) - room
            self.numbers = np.append(self.numbers, np.full(more, -1, np.int32))
            self.shifts = np.append(self.shifts, np.zeros(more, np.int8))
            self.flags = np.append(self.flags, np.zeros(more, np.uint8))


class _KnownSeries:
    """The series tables met so far, one behind the other; batches of one collector mostly carry the same table."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.clear()

    def clear(self) -> None:
        self._tables: dict[tuple[int, int], _Table] = {}
        self._size = self._bytes = 0
        self.levels: list[_Level] = []
        self.fates = np.zeros(1024, np.uint8)
        self.errors: dict[int, EventError] = {}
        self.data: dict[int, Mapping[str, Any]] = {}  # of those that a meter understands row by row

    @property
    def full(self) -> bool:
        return self._size > _KNOWN_SERIES or self._bytes > _KNOWN_BYTES

    def table(self, text: bytes) -> _Table:
        """Return where the series of a table stand; a checksum finds a known one much sooner than Python's own hash.

        Raises:
            EventError: `bad_schema`.
        """
        key = crc32c(text), len(text)
        known = self._tables.get(key)
        if known is None or known.text != text:
            known = self._tables[key] = self._add(text)
        return known

    def _add(self, text: bytes) -> _Table:
        if is_too_deep(text):
            raise EventError("bad_schema", f"Arrow batch: {ARROW_SERIES_KEY}: nested too deeply")
        try:
            table = _decode_series(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EventError("bad_schema", f"Arrow batch: {ARROW_SERIES_KEY}: {error}") from error
        for series in table:
            _check_series(series)
        base, self._size, self._bytes = self._size, self._size + len(table), self._bytes + len(text)
        if self._size > len(self.fates):
            self.fates = np.append(self.fates, np.zeros(self._size, np.uint8))
        for level in self.levels:
            level.reserve(self._size)
        levels = 0
        for place, series in enumerate(table, base):
            levels = max(levels, self._understand(place, series))
        feeds = feeds_of((each.subject for each in table), (each.type for each in table))
        return _Table(text, base, len(table), levels, feeds)

    def _understand(self, place: int, series: Series) -> int:
        """Find the meters that want a series, and return how many they are."""
        catalog = self._catalog
        numbers = catalog.by_type.get(series.type, ())
        try:
            found = [catalog.series_of(meter, series.subject, series.data) for meter in numbers]
        except EventError as error:
            return self._refuse(place, error)
        kept = [(meter, number) for meter, number in zip(numbers, found, strict=True) if number >= 0]
        if not numbers and series.type not in catalog.ignored:
            return self._refuse(place, EventError("unknown_meter", f'type: no meter wants "{series.type}"'))
        if not kept:
            self.fates[place] = _IGNORED
        for depth, (meter, number) in enumerate(kept):
            if depth == len(self.levels):
                self.levels.append(_Level())
            level, definition = self.levels[depth], catalog.meters[meter]
            level.reserve(self._size)
            level.numbers[place], level.shifts[place] = number, definition.scale - series.scale
            # The column stands for `data.value`; a meter may look elsewhere, as it would in a JSON event.
            alone = meter in catalog.by_item or definition.value_paths not in ((), ("value",))
            level.flags[place] = (
                _COUNTS * (definition.aggregation == "count")
                + _NO_NEGATIVE * (not definition.allow_negative)
                + _ROW_BY_ROW * alone
            )
            if alone:
                self.data[place] = series.data
        return len(kept)

    def _refuse(self, place: int, error: EventError) -> int:
        self.fates[place] = _DEAD
        # Not the error that was raised: its traceback holds all that was being read then, and would for as long as
        # the series is known.
        self.errors[place] = EventError(error.reason, error.detail)
        return 0


class ArrowDecoder:
    """Turn Arrow batches into columns under one catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._known = _KnownSeries(catalog)

    def begin(self) -> None:
        """Forget series tables if there are too many; batches that were opened before are none any more."""
        if self._known.full:
            self._known.clear()

    def open(self, body: bytes) -> Batch:
        """Open one record.

        Raises:
            EventError: `bad_schema`, `malformed`, `too_large`: the record as a whole is a dead letter.
        """
        try:
            schema, messages = open_messages(body)
            text = _checked(schema)
            batches = read_batches(schema, messages)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise EventError("malformed", f"Arrow stream: {error}"[:300]) from error
        if len(batches) == 1:
            found = [batches[0].column(name) for name in _COLUMNS]
        else:
            table = pa.Table.from_batches(batches, ARROW_SCHEMA)
            found = [table.column(name).combine_chunks() for name in _COLUMNS]
        if any(column.null_count for column in found):
            raise EventError("bad_schema", "Arrow batch: series, time_us and value must not hold nulls")
        series, times, values = (np.asarray(column) for column in found)
        names = self._known.table(text)
        if len(series) and not (series.min() >= 0 and series.max() < names.size):
            expected = f"expected 0 to {names.size - 1}, got {series.min()} to {series.max()}"
            raise EventError("bad_schema", f"Arrow batch: series: {expected}")
        return Batch(series.astype(np.int64) + names.base, times, values, names.levels, names.feeds)

    def rows(self, batches: Sequence[Batch]) -> ArrowRows:
        """Understand the rows of some batches, one behind the other."""
        series = _join([batch.series for batch in batches])
        times, values = _join([batch.times_us for batch in batches]), _join([batch.values for batch in batches])
        rows = ArrowRows(times, *_nothing(), {}, 0, np.zeros(len(series), bool))
        if len(times) and not (times.min() >= FIRST_US and times.max() < LAST_US):
            for row in np.flatnonzero((times < FIRST_US) | (times >= LAST_US)).tolist():
                rows.errors[row] = EventError("year_out_of_range", f"time_us: expected 2000 to 2099, got {times[row]}")
        self._apply_fates(series, rows)
        parts: list[tuple[Any, Any, Any]] = []
        for level in self._known.levels[: max(batch.levels for batch in batches)]:
            numbers = level.numbers[series]
            wanted = numbers >= 0
            everything = bool(wanted.all())
            event = np.arange(len(series)) if everything else np.flatnonzero(wanted)
            rows.wanted |= wanted
            mine = (numbers, series, values) if everything else (numbers[event], series[event], values[event])
            parts.append((event, *self._measure(level, event, *mine, rows)))
        if parts:
            rows.reading_event, rows.reading_series, rows.reading_value = (
                parts[0] if len(parts) == 1 else tuple(np.concatenate(column) for column in zip(*parts, strict=True))
            )
        return rows

    def decode(self, body: bytes) -> ArrowRows:
        """Decode one record.

        Raises:
            EventError: See `open`.
        """
        return self.rows([self.open(body)])

    def series_of(self, body: bytes) -> tuple[Series, ...]:
        """Return the series table of a batch that `open` has taken, for people who look at its dead letters."""
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            return _decode_series(stream.schema.metadata[ARROW_SERIES_KEY.encode()])

    def _apply_fates(self, series: Ints, rows: ArrowRows) -> None:
        fates = self._known.fates[series]
        if not fates.any():
            return
        for row in np.flatnonzero(fates).tolist():
            if row in rows.errors:
                continue
            if fates[row] == _IGNORED:
                rows.ignored += 1
            else:
                rows.errors[row] = self._known.errors[int(series[row])]

    def _measure(
        self, level: _Level, event: Ints, numbers: npt.NDArray[np.int32], series: Ints, values: Ints, rows: ArrowRows
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """Return the series and the scaled amount of each row that a meter of this level wants."""
        flags, shifts, raw = level.flags[series], level.shifts[series], values
        if flags.any():
            ones = (flags & (_COUNTS | _ROW_BY_ROW)) != 0
            values, shifts = np.where(ones, 1, values), np.where(ones, np.int8(0), shifts)
        amounts = self._scale(values, shifts, event, numbers, rows) if shifts.any() else values
        if flags.any():
            negative = ((flags & _NO_NEGATIVE) != 0) & (values < 0)
            for i in np.flatnonzero(negative).tolist():
                error = EventError("negative", f"value: {self._name(numbers[i])} takes no negative values")
                rows.errors.setdefault(int(event[i]), error)  # the first reason stays, as for JSON
            alone = np.flatnonzero(flags & _ROW_BY_ROW)
            if len(alone):
                numbers, amounts = self._items(level, alone, (event, numbers, series, raw), amounts, rows)
        return numbers, amounts

    def _scale(
        self,
        values: Ints,
        shifts: npt.NDArray[np.int8],
        event: Ints,
        numbers: npt.NDArray[np.int32],
        rows: ArrowRows,
    ) -> npt.NDArray[Any]:
        """Return values times 10**shift, exactly; what is no quantity of the meter is noted as an error and is 0."""
        large = shifts < 0
        power = np.where(large, 0, shifts)
        limit = _LIMITS[power]
        large |= (values > limit) | (values < -limit)
        scaled: npt.NDArray[Any] = values * _POWERS[power]
        if not large.any():
            return scaled
        scaled = scaled.astype(object)
        for i in np.flatnonzero(large).tolist():
            amount = _rescale(int(values[i]), int(shifts[i]))
            if amount is None or abs(amount) >= QUANTITY_BOUND:
                name = self._name(numbers[i])
                error = (
                    EventError("too_precise", f"value: more digits than {name} keeps")
                    if amount is None
                    else EventError("out_of_range", f"value: larger than {name} holds")
                )
                rows.errors.setdefault(int(event[i]), error)
            scaled[i] = amount or 0
        return narrow(scaled.tolist())

    def _items(
        self,
        level: _Level,
        chosen: Ints,
        columns: tuple[Ints, npt.NDArray[np.int32], Ints, Ints],
        amounts: npt.NDArray[Any],
        rows: ArrowRows,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """Return what rows are counted under, and as how much, as the JSON events that they stand for would be."""
        event, numbers, series, values = columns
        numbers, exact = numbers.copy(), amounts.tolist()
        for i in chosen.tolist():
            row, place = int(event[i]), int(series[i])
            meter = self.catalog.meters[self.catalog.series.meters[numbers[i]]]
            scale = meter.scale - int(level.shifts[place])
            data = {**self._known.data[place], "value": scaled_text(int(values[i]), scale)}
            exact[i] = 0
            try:
                exact[i] = value_in(meter, data)
                numbers[i] = self.catalog.with_item(int(numbers[i]), data, int(rows.times_us[row]), exact[i])
            except EventError as error:
                rows.errors.setdefault(row, error)
        return numbers, narrow(exact)

    def _name(self, number: Any) -> str:
        return self.catalog.meters[self.catalog.series.meters[int(number)]].meter


def _checked(schema: Any) -> bytes:
    """Return the series table of a batch with the schema of this version."""
    if not schema.equals(ARROW_SCHEMA):
        got = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise EventError(
            "bad_schema", f"Arrow batch: expected {', '.join(f'{n} {k}' for n, k, _ in ARROW_FIELDS)}, got {got}"[:500]
        )
    metadata: dict[bytes, bytes] = schema.metadata or {}
    version = metadata.get(ARROW_VERSION_KEY.encode(), b"").decode("utf-8", "replace")
    text = metadata.get(ARROW_SERIES_KEY.encode())
    if version != ARROW_VERSION or text is None:
        raise EventError(
            "bad_schema", f'Arrow batch: expected version "{ARROW_VERSION}" with a series table, got "{version}"'
        )
    return text


def _check_series(series: Series) -> None:
    """Refuse what no collector of ours writes: such a batch comes from somewhere else."""
    if not 0 <= series.scale <= MAX_SCALE:
        raise EventError("bad_schema", f"Arrow batch: series: scale: expected 0 to {MAX_SCALE}, got {series.scale}")
    for name, text in (("type", series.type), ("subject", series.subject)):
        if not 0 < len(text.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES:
            expected = f"expected 1 to {MAX_NAME_BYTES} bytes, got {len(text)} characters"
            raise EventError("bad_schema", f"Arrow batch: series: {name}: {expected}")


def _nothing() -> tuple[Any, Any, Any]:
    return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64)


def _join(columns: Sequence[Ints]) -> Ints:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _rescale(value: int, shift: int) -> int | None:
    if shift >= 0:
        return value * int(10**shift)
    power: int = 10**-shift
    return None if value % power else value // power
