"""The rows of an Arrow batch, one at a time, as the JSON events that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from pipeline.arrow_events import ARROW_SCHEMA
from pipeline.arrow_stream import open_messages, read_batches
from tallyman.errors import EventError
from tallyman.event import (
    ARROW_SERIES_KEY,
    ARROW_VERSION,
    ARROW_VERSION_KEY,
    MAX_NAME_BYTES,
    Event,
    Series,
    decode_event,
    encode_event,
)
from tallyman.meter import MAX_SCALE, scaled_text
from tallyman.nesting import is_too_deep


@dataclass(frozen=True, slots=True)
class Row:
    """One row and the series that it belongs to."""

    series: Series
    time_us: int
    value: int

    def event(self) -> Event:
        """Return the event as it comes out of JSON.

        Raises:
            EventError: It is none.
        """
        data = {**self.series.data, "value": scaled_text(self.value, self.series.scale)}
        wire = Event("row", "collector", self.series.type, self.series.subject, self.time_us, data)
        try:
            return decode_event(encode_event(wire))
        except OverflowError as error:
            raise EventError("year_out_of_range", "no calendar has this time") from error


def rows_of(body: bytes) -> list[Row]:
    """Return the rows of a batch.

    Raises:
        EventError: The record as a whole is a dead letter. How a stream is opened is shared with the pipeline: with
            pyarrow alone, a stream that lies about its length ends the process.
    """
    try:
        schema, messages = open_messages(body)
        metadata: Mapping[bytes, bytes] = schema.metadata or {}
        table = metadata.get(ARROW_SERIES_KEY.encode())
        version = metadata.get(ARROW_VERSION_KEY.encode())
        if not schema.equals(ARROW_SCHEMA):
            raise EventError("bad_schema", f"other columns: {[field.name for field in schema]}")
        if table is None or version != ARROW_VERSION.encode():
            raise EventError("bad_schema", "another schema")
        columns = pa.Table.from_batches(read_batches(schema, messages), schema).to_pydict()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise EventError("malformed", str(error)) from error
    wanted = [columns[name] for name in ("series", "time_us", "value")]
    if any(None in column for column in wanted):
        raise EventError("bad_schema", "nulls")
    names = _series(table)
    if any(not 0 <= number < len(names) for number in columns["series"]):
        raise EventError("bad_schema", "a series that is not in the table")
    return [Row(names[number], time_us, value) for number, time_us, value in zip(*wanted, strict=True)]


def _series(text: bytes) -> tuple[Series, ...]:
    try:
        table: Any = None if is_too_deep(text) else msgspec.json.decode(text, type=tuple[Series, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventError("bad_schema", str(error)) from error
    for series in table or ():
        sizes = (len(each.encode()) for each in (series.type, series.subject))
        if not 0 <= series.scale <= MAX_SCALE or not all(0 < size <= MAX_NAME_BYTES for size in sizes):
            raise EventError("bad_schema", "a series that no collector writes")
    if table is None:
        raise EventError("bad_schema", "nested too deeply")
    found: tuple[Series, ...] = table
    return found
