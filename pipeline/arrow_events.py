"""Arrow batches of our own collectors to columns: integers all the way, each series' names met once.

The schema and its version are `tallyman.event.ARROW_FIELDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.catalog import Catalog
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
from tallyman.meter import MAX_SCALE, QUANTITY_BOUND, Meter, scaled_text, value_in

ARROW_SCHEMA = pa.schema([pa.field(name, getattr(pa, kind)(), nullable) for name, kind, nullable in ARROW_FIELDS])
_decode_series = msgspec.json.Decoder(tuple[Series, ...]).decode


@dataclass(slots=True)
class ArrowRows:
    """The rows of one batch, and what each means: `errors` are rows that are dead letters."""

    times_us: npt.NDArray[np.int64]
    reading_event: npt.NDArray[np.int64]
    reading_series: npt.NDArray[np.int32]
    reading_value: npt.NDArray[Any]
    errors: dict[int, EventError]
    ignored: int
    wanted: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """For one meter of each series: the series' number here (-1: not wanted), and the power of ten between the
    scales.

    Attributes:
        data: Where what is counted depends on the row (`tallyman.meter.BY_ITEM`), the data of each series.
    """

    series: npt.NDArray[np.int32]
    shift: npt.NDArray[np.int64]
    meter: Meter
    data: tuple[Mapping[str, Any], ...] = ()


class ArrowDecoder:
    """Turn Arrow batches into columns under one catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._compile = lru_cache(maxsize=4096)(self._compile_series)

    def decode(self, body: bytes) -> ArrowRows:
        """Decode one record.

        Raises:
            EventError: `bad_schema`, `malformed`: the record as a whole is a dead letter.
        """
        try:
            with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
                _check(stream.schema)
                metadata = stream.schema.metadata
                batches = list(stream)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise EventError("malformed", f"Arrow stream: {error}"[:300]) from error
        wanted, fates = self._compile(metadata[ARROW_SERIES_KEY.encode()])
        names = ("series", "time_us", "value")
        if len(batches) == 1:
            columns: tuple[Any, ...] = tuple(np.asarray(batches[0].column(name)) for name in names)
            holes = any(batches[0].column(name).null_count for name in names)
        else:
            table = pa.Table.from_batches(batches, ARROW_SCHEMA)
            columns = tuple(table.column(name).to_numpy() for name in names)
            holes = any(table.column(name).null_count for name in names)
        if holes:
            raise EventError("bad_schema", "Arrow batch: series, time_us and value must not hold nulls")
        series, times, values = columns
        return self._rows(series, times, values, wanted, fates)

    def series_of(self, body: bytes) -> tuple[Series, ...]:
        """Return the series table of a batch that `decode` has taken, for people who look at its dead letters."""
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            return _decode_series(stream.schema.metadata[ARROW_SERIES_KEY.encode()])

    def _rows(
        self,
        series: npt.NDArray[np.int32],
        times: npt.NDArray[np.int64],
        values: npt.NDArray[np.int64],
        wanted: tuple[_Wanted, ...],
        fates: dict[int, EventError | None],
    ) -> ArrowRows:
        known = len(wanted[0].series) if wanted else 0
        if len(series) and not (series.min() >= 0 and series.max() < known):
            raise EventError(
                "bad_schema", f"Arrow batch: series: expected 0 to {known - 1}, got {series.min()} to {series.max()}"
            )
        rows = ArrowRows(times, *_nothing(), {}, 0, np.zeros(len(series), bool))
        if len(times) and not (times.min() >= FIRST_US and times.max() < LAST_US):
            for row in np.flatnonzero((times < FIRST_US) | (times >= LAST_US)).tolist():
                rows.errors[row] = EventError("year_out_of_range", f"time_us: expected 2000 to 2099, got {times[row]}")
        for number, fate in fates.items():
            mine = np.flatnonzero(series == number).tolist()
            mine = [row for row in mine if row not in rows.errors]
            if fate is None:
                rows.ignored += len(mine)
            else:
                rows.errors.update(dict.fromkeys(mine, fate))
        parts: list[tuple[Any, Any, Any]] = []
        for meter in wanted:
            numbers = meter.series[series]
            event = np.arange(len(series)) if (numbers >= 0).all() else np.flatnonzero(numbers >= 0)
            amounts = self._amounts(meter, series, values, event, rows)
            rows.wanted[event] = True
            chosen = numbers[event]
            if meter.data:
                chosen, amounts = self._items(meter, series, values, event, rows)
            parts.append((event, chosen, amounts))
        if parts:
            rows.reading_event, rows.reading_series, rows.reading_value = (
                parts[0] if len(parts) == 1 else tuple(np.concatenate(column) for column in zip(*parts, strict=True))
            )
        return rows

    def _amounts(
        self,
        meter: _Wanted,
        series: npt.NDArray[np.int32],
        values: npt.NDArray[np.int64],
        event: npt.NDArray[np.int64],
        rows: ArrowRows,
    ) -> npt.NDArray[Any]:
        if meter.meter.aggregation == "count" or meter.data:
            return np.ones(len(event), np.int64)
        amounts = values if len(event) == len(values) else values[event]
        shift = meter.shift[series if len(event) == len(series) else series[event]]
        scaled = _scale(amounts, shift, event, rows, meter.meter.meter) if shift.any() else amounts
        if not meter.meter.allow_negative and len(amounts) and amounts.min() < 0:
            error = EventError("negative", f"value: {meter.meter.meter} takes no negative values")
            for row in event[amounts < 0].tolist():
                rows.errors.setdefault(row, error)  # the first reason stays, as for JSON
        return scaled

    def _items(
        self,
        meter: _Wanted,
        series: npt.NDArray[np.int32],
        values: npt.NDArray[np.int64],
        event: npt.NDArray[np.int64],
        rows: ArrowRows,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """Return what each row is counted under, and as how much, as the JSON event that it stands for would be."""
        numbers, amounts = meter.series[series[event]].copy(), []
        for i, row in enumerate(event.tolist()):
            place, amount = int(series[row]), 0
            shift = meter.meter.scale - int(meter.shift[place])
            data = {**meter.data[place], "value": scaled_text(int(values[row]), shift)}
            try:
                amount = value_in(meter.meter, data)
                numbers[i] = self.catalog.with_item(int(numbers[i]), data, int(rows.times_us[row]), amount)
            except EventError as error:
                rows.errors.setdefault(row, error)
            amounts.append(amount)
        return numbers, narrow(amounts)

    def _compile_series(self, text: bytes) -> tuple[tuple[_Wanted, ...], dict[int, EventError | None]]:
        """Look up all series of a batch once; batches of one collector mostly carry the same table."""
        try:
            table = _decode_series(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EventError("bad_schema", f"Arrow batch: {ARROW_SERIES_KEY}: {error}") from error
        catalog = self.catalog
        columns: list[dict[int, tuple[int, int]]] = []  # the nth meter that wants a series, by series
        fates: dict[int, EventError | None] = {}
        for place, series in enumerate(table):
            _check_series(series)
            numbers = catalog.by_type.get(series.type, ())
            found: list[tuple[int, int]] = []
            try:
                found = [(meter, catalog.series_of(meter, series.subject, series.data)) for meter in numbers]
            except EventError as error:
                fates[place] = error
                continue
            kept = [(meter, number) for meter, number in found if number >= 0]
            if not numbers and series.type not in catalog.ignored:
                fates[place] = EventError("unknown_meter", f'type: no meter wants "{series.type}"')
            elif not kept:
                fates[place] = None
            for meter, number in kept:
                level = next((c for c in columns if c.get(-1) == (meter, 0)), None)
                if level is None:
                    level = {-1: (meter, 0)}
                    columns.append(level)
                level[place] = (number, catalog.meters[meter].scale - series.scale)
        wanted = tuple(self._column(level, table) for level in columns)
        if not wanted:
            nobody = Meter(meter="nobody", event_type="none", aggregation="count")
            wanted = (_Wanted(np.full(len(table), -1, np.int32), np.zeros(len(table), np.int64), nobody),)
        return wanted, fates

    def _column(self, level: dict[int, tuple[int, int]], table: Sequence[Series]) -> _Wanted:
        number, size = level[-1][0], len(table)
        meter = self.catalog.meters[number]
        series, shift = np.full(size, -1, np.int32), np.zeros(size, np.int64)
        for place, (number, power) in level.items():
            if place >= 0:
                series[place], shift[place] = number, power
        data = tuple(each.data for each in table) if number in self.catalog.by_item else ()
        return _Wanted(series, shift, meter, data)


def _scale(
    amounts: npt.NDArray[np.int64],
    shift: npt.NDArray[np.int64],
    event: npt.NDArray[np.int64],
    rows: ArrowRows,
    meter: str,
) -> npt.NDArray[Any]:
    """Return amounts times 10**shift, exactly; what is no quantity of the meter is noted as an error and is 0."""
    largest = max(abs(int(amounts.max())), abs(int(amounts.min())))
    if (shift >= 0).all() and largest * 10 ** int(shift.max()) < 1 << 63:
        return amounts * 10**shift
    exact = [_rescale(int(v), int(s)) for v, s in zip(amounts, shift, strict=True)]
    for i, amount in enumerate(exact):
        if amount is None:
            error = EventError("too_precise", f"value: more digits than {meter} keeps")
        elif abs(amount) >= QUANTITY_BOUND:
            error = EventError("out_of_range", f"value: larger than {meter} holds")
        else:
            continue
        rows.errors.setdefault(int(event[i]), error)
    return np.array([amount or 0 for amount in exact], object)


def _check(schema: Any) -> None:
    if not schema.equals(ARROW_SCHEMA):
        got = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise EventError(
            "bad_schema", f"Arrow batch: expected {', '.join(f'{n} {k}' for n, k, _ in ARROW_FIELDS)}, got {got}"[:500]
        )
    metadata = schema.metadata or {}
    version = metadata.get(ARROW_VERSION_KEY.encode(), b"").decode("utf-8", "replace")
    if version != ARROW_VERSION or ARROW_SERIES_KEY.encode() not in metadata:
        raise EventError(
            "bad_schema", f'Arrow batch: expected version "{ARROW_VERSION}" with a series table, got "{version}"'
        )


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


def _rescale(value: int, shift: int) -> int | None:
    if shift >= 0:
        return value * int(10**shift)
    power: int = 10**-shift
    return None if value % power else value // power
