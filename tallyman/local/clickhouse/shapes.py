"""How values of a type lie in a column of ClickHouse's Native format, as far as is needed to find the end of it.

For each column come the *prefix* of every type in the tree that has one, then the *body*, which holds the rows
(`DataTypes/Serializations/*.cpp`, `serializeBinaryBulkStatePrefix` and `...WithMultipleStreams`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tallyman.local.clickhouse.errors import INCORRECT_DATA, NOT_IMPLEMENTED, ServerError
from tallyman.local.clickhouse.reader import Reader


class Shape(Protocol):
    """How a type lies in a column."""

    def prefix(self, reader: Reader) -> Shape:
        """Pass over what stands before the rows; return the shape of the rows, which that may have told."""

    def body(self, reader: Reader, rows: int) -> None:
        """Pass over the rows."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Values of one width."""

    width: int

    def prefix(self, reader: Reader) -> Shape:
        return self

    def body(self, reader: Reader, rows: int) -> None:
        reader.skip(self.width * rows)


@dataclass(frozen=True, slots=True)
class Strings:
    """A length and bytes for each row."""

    def prefix(self, reader: Reader) -> Shape:
        return self

    def body(self, reader: Reader, rows: int) -> None:
        reader.skip_strings(rows)


@dataclass(frozen=True, slots=True)
class Nullable:
    """A byte for each row, then the values."""

    inner: Shape

    def prefix(self, reader: Reader) -> Shape:
        return Nullable(self.inner.prefix(reader))

    def body(self, reader: Reader, rows: int) -> None:
        reader.skip(rows)
        self.inner.body(reader, rows)


@dataclass(frozen=True, slots=True)
class Array:
    """Where each row's elements end, then all elements; also Map and Nested."""

    inner: Shape

    def prefix(self, reader: Reader) -> Shape:
        return Array(self.inner.prefix(reader))

    def body(self, reader: Reader, rows: int) -> None:
        self.inner.body(reader, reader.skip_offsets(rows))


@dataclass(frozen=True, slots=True)
class Tuple:
    """One column for each element."""

    parts: tuple[Shape, ...]

    def prefix(self, reader: Reader) -> Shape:
        return Tuple(tuple(part.prefix(reader) for part in self.parts))

    def body(self, reader: Reader, rows: int) -> None:
        if not self.parts:
            reader.skip(rows)  # Tuple() is one byte a row
        for part in self.parts:
            part.body(reader, rows)


@dataclass(frozen=True, slots=True)
class LowCardinality:
    """Distinct values, then an index into them for each row."""

    keys: Shape

    def prefix(self, reader: Reader) -> Shape:
        reader.skip(8)
        return self

    def body(self, reader: Reader, rows: int) -> None:
        while rows > 0:
            flags = reader.u64()
            if flags & 0x200 == 0:
                raise ServerError(NOT_IMPLEMENTED, "LowCardinality: global dictionaries cannot be read here")
            self.keys.body(reader, reader.u64())
            indexes = reader.u64()
            reader.skip(indexes << (flags & 0xFF))
            rows -= indexes
            if rows < 0 or not indexes:
                raise ServerError(INCORRECT_DATA, "LowCardinality: the number of indexes is not that of the rows")


@dataclass(frozen=True, slots=True)
class Variant:
    """For each row the number of its type, then one column for each type.

    Attributes:
        width: Bytes of such a number. Dynamic columns say how many types they have; a Variant has one byte.
    """

    parts: tuple[Shape, ...]
    width: int = 1

    def prefix(self, reader: Reader) -> Shape:
        if reader.u64() != 0:
            raise ServerError(NOT_IMPLEMENTED, "Variant: only the basic form can be read here")
        return Variant(tuple(part.prefix(reader) for part in self.parts))

    def body(self, reader: Reader, rows: int) -> None:
        numbers = reader.take(rows * self.width)
        if self.width > 1:
            raise ServerError(NOT_IMPLEMENTED, "Dynamic: more than 255 types in a column cannot be read here")
        for number, part in enumerate(self.parts):
            part.body(reader, numbers.count(number))
