"""Write readings as an Arrow batch, with nanoarrow alone: pyarrow would double the agent's memory.

The columns and the series table are those of `tallyman.event` (`ARROW_FIELDS`, `Series`).
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import msgspec
import nanoarrow as na
from nanoarrow.ipc import StreamWriter

from tallyman.errors import QuantityError
from tallyman.event import ARROW_FIELDS, ARROW_SERIES_KEY, ARROW_VERSION, ARROW_VERSION_KEY, Series

_TYPES = {"int32": (na.Type.INT32, "i"), "int64": (na.Type.INT64, "q")}
_encode_series = msgspec.json.Encoder(order="sorted").encode


class Reading(NamedTuple):
    """One row: what a series used in an interval. Integers are scaled by the series' scale."""

    series: Series
    time_us: int
    until_us: int
    value: int
    first: int | None = None
    last: int | None = None


def encode_readings(readings: Sequence[Reading]) -> bytes:
    """Write an Arrow IPC stream of one batch; no readings give an empty batch, which is the heartbeat.

    Equal readings give equal bytes.

    Raises:
        QuantityError: A value needs more than 64 bits.
    """
    numbers: dict[bytes, int] = {}
    rows = [(numbers.setdefault(_encode_series(reading.series), len(numbers)), *reading[1:]) for reading in readings]
    metadata = {ARROW_VERSION_KEY: ARROW_VERSION, ARROW_SERIES_KEY: b"[" + b",".join(numbers) + b"]"}
    columns = zip(*rows, strict=True) if rows else ((),) * len(ARROW_FIELDS)
    children = [
        _column(name, kind, tuple(values)) for (name, kind, _), values in zip(ARROW_FIELDS, columns, strict=True)
    ]
    schema = _columns_schema().modify(metadata=metadata)
    batch = na.c_array_from_buffers(schema, len(rows), [None], children=children)
    out = io.BytesIO()
    with StreamWriter.from_writable(out) as writer:
        writer.write_stream(batch)
    return out.getvalue()


@cache
def _columns_schema() -> na.c_schema.CSchema:
    fields = [na.Schema(_TYPES[kind][0], name=name, nullable=nullable) for name, kind, nullable in ARROW_FIELDS]
    return na.c_schema(na.struct(fields, nullable=False))


def _column(name: str, kind: str, values: Sequence[int | None]) -> na.c_array.CArray:
    arrow_type, code = _TYPES[kind]
    try:
        buffer = array(code, [0 if value is None else value for value in values])
    except OverflowError as error:
        largest = max((abs(value) for value in values if value is not None), default=0)
        raise QuantityError("out_of_range", f"{name}: expected {kind}, got {largest}") from error
    missing = sum(value is None for value in values)
    present = _bitmap(value is not None for value in values) if missing else None
    return na.c_array_from_buffers(arrow_type, len(values), [present, buffer], null_count=missing)


def _bitmap(flags: Iterable[bool]) -> bytes:
    """Pack flags as Arrow wants them: least significant bit first."""
    bits = list(flags)
    number = sum(1 << index for index, flag in enumerate(bits) if flag)
    return number.to_bytes((len(bits) + 7) // 8, "little")
