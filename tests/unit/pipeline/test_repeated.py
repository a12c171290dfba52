"""A text that all rows share is written as the driver itself would write it."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from clickhouse_driver.bufferedwriter import BufferedSocketWriter
from clickhouse_driver.columns.numpy.lowcardinalitycolumn import NumpyLowCardinalityColumn
from clickhouse_driver.columns.numpy.stringcolumn import NumpyStringColumn

from pipeline.repeated import Repeated, repeat


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
