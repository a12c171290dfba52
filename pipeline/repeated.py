"""Columns that are written to ClickHouse at once: a text that all rows of a block share, and numbers as they lie.

The driver would compare the texts of all rows (0.2 µs a row, a tenth of all that an event costs), and look for nulls in
numbers, and copy them four times. It has no door for this, so two of its methods are taken over, for columns of these
kinds only.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt


class Repeated(np.ndarray):
    """A column that holds one text again and again; parts of it are such columns, too."""


class Plain(np.ndarray):
    """A column of numbers of the very type that the table has; parts of it are such columns, too."""


def repeat(text: str, rows: int) -> npt.NDArray[Any]:
    """Return a column of a text; in memory it stands once."""
    _teach_driver()
    return np.broadcast_to(np.array([text], object), rows).view(Repeated)


def plain(numbers: npt.NDArray[Any], kind: type[np.integer[Any]]) -> npt.NDArray[Any]:
    """Return numbers as a column of a type: of the table's, or they are written as any others are."""
    _teach_driver()
    return np.ascontiguousarray(numbers, np.dtype(kind).newbyteorder("<")).view(Plain)


@functools.cache
def _teach_driver() -> None:
    from clickhouse_driver.columns.numpy import lowcardinalitycolumn as texts
    from clickhouse_driver.columns.numpy.base import NumpyColumn
    from clickhouse_driver.writer import write_binary_int64

    write_texts, write_numbers = texts.NumpyLowCardinalityColumn._write_data, NumpyColumn._write_data

    def write_repeated(self: Any, items: Any, buffer: Any) -> None:
        if not isinstance(items, Repeated) or not len(items) or self.nested_column.nullable:
            write_texts(self, np.asarray(items) if isinstance(items, Repeated) else items, buffer)
            return
        # A dictionary of one entry, and for each row its number, in one byte.
        write_binary_int64(self.serialization_type, buffer)
        write_binary_int64(1, buffer)
        self.nested_column.write_data(np.array(items[:1]), buffer)
        write_binary_int64(len(items), buffer)
        buffer.write(bytes(len(items)))

    def write_plain(self: Any, items: Any, buffer: Any) -> None:
        if isinstance(items, Plain) and items.dtype == self.dtype:
            buffer.write(items.tobytes())
        else:
            write_numbers(self, np.asarray(items) if isinstance(items, Plain) else items, buffer)

    texts.NumpyLowCardinalityColumn._write_data = write_repeated
    NumpyColumn._write_data = write_plain
