"""A text that all rows share, and numbers in the table's own type, are written as the driver would write them."""

from __future__ import annotations

import io
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from clickhouse_driver.bufferedwriter import BufferedSocketWriter
from clickhouse_driver.columns.numpy.base import NumpyColumn
from clickhouse_driver.columns.numpy.intcolumn import NumpyInt64Column, NumpyUInt32Column, NumpyUInt64Column
from clickhouse_driver.columns.numpy.lowcardinalitycolumn import NumpyLowCardinalityColumn
from clickhouse_driver.columns.numpy.stringcolumn import NumpyStringColumn

from pipeline.repeated import Repeated, plain, repeat


def written(items: object) -> bytes:
    sent = io.BytesIO()
    buffer = BufferedSocketWriter(SimpleNamespace(sendall=sent.write), 1 << 16)
    options = {"context": SimpleNamespace(client_settings={}), "has_custom_serialization": False}
    column = NumpyLowCardinalityColumn(NumpyStringColumn(**options), **options)
    column.write_data(items, buffer)
    buffer.flush()
    return sent.getvalue()


@pytest.mark.parametrize("rows", [0, 1, 2, 100])
def test_a_repeated_text_is_written_as_the_driver_writes_it(rows: int) -> None:
    column = repeat("topic-Å", rows)
    assert written(column) == written(np.array(["topic-Å"] * rows, object))


def test_a_part_of_a_repeated_text_is_one_too() -> None:
    assert isinstance(np.array_split(repeat("a", 10), 3)[1], Repeated)
    assert written(repeat("a", 10)[:3]) == written(np.array(["a"] * 3, object))


def numbers_written(items: object, column: type[NumpyColumn]) -> bytes:
    sent = io.BytesIO()
    buffer = BufferedSocketWriter(SimpleNamespace(sendall=sent.write), 1 << 16)
    column(context=SimpleNamespace(client_settings={}), has_custom_serialization=False).write_data(items, buffer)
    buffer.flush()
    return sent.getvalue()


@pytest.mark.parametrize(("kind", "column"), [(np.uint32, NumpyUInt32Column), (np.uint64, NumpyUInt64Column),
                                              (np.int64, NumpyInt64Column)])  # fmt: skip
@pytest.mark.parametrize("values", [[], [0], [1, 2, (1 << 31) - 1]], ids=["none", "one", "some"])
def test_plain_numbers_are_written_as_the_driver_writes_them(
    kind: type[np.integer], column: type[NumpyColumn], values: list[int]
) -> None:
    """Whatever type they come in, whatever type the table has, and from a column of a table of numbers."""
    rows = np.array(values, np.int64)
    strided = np.stack([rows, rows], axis=1)[:, 0]
    expected = numbers_written(rows.astype(kind), column)
    assert expected == struct.pack(f"<{len(values)}{'I' if kind is np.uint32 else 'Q'}", *values)
    assert numbers_written(plain(rows, kind), column) == expected == numbers_written(plain(strided, kind), column)
    assert numbers_written(plain(rows, np.uint16 if max(values, default=0) < 9 else np.uint32), column) == expected
    half = numbers_written(np.array_split(plain(rows, kind), 2)[0], column)
    assert half == numbers_written(np.array_split(rows.astype(kind), 2)[0], column)
