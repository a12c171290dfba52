"""ClickHouse's type names, read into shapes; with the two types that tell their shape only in the data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tallyman.local.clickhouse.errors import NOT_IMPLEMENTED, ServerError
from tallyman.local.clickhouse.reader import Reader
from tallyman.local.clickhouse.shapes import (
    Array,
    Fixed,
    LowCardinality,
    Nullable,
    Shape,
    Strings,
    Tuple,
    Variant,
)

_WIDTHS = {
    **dict.fromkeys(("Int8", "UInt8", "Bool", "Enum8", "Nothing"), 1),
    **dict.fromkeys(("Int16", "UInt16", "Enum16", "Date", "BFloat16"), 2),
    **dict.fromkeys(("Int32", "UInt32", "Float32", "Date32", "DateTime", "IPv4", "Decimal32", "Time"), 4),
    **dict.fromkeys(("Int64", "UInt64", "Float64", "DateTime64", "Decimal64", "Time64"), 8),
    **dict.fromkeys(("Int128", "UInt128", "UUID", "IPv6", "Decimal128"), 16),
    **dict.fromkeys(("Int256", "UInt256", "Decimal256"), 32),
}
_GEO = {
    "Point": "Tuple(Float64, Float64)",
    "Ring": "Array(Point)",
    "LineString": "Array(Point)",
    "Polygon": "Array(Ring)",
    "MultiLineString": "Array(LineString)",
    "MultiPolygon": "Array(Polygon)",
}
_SHARED = "SharedVariant"  # where a Dynamic column puts the values of rare types, as bytes
_ELEMENT_NAME = re.compile(r"^(?:[A-Za-z_]\w*|`(?:[^`\\]|\\.)*`)\s+(?=[A-Z])")
_TYPED_PATH = re.compile(r"^(?!SKIP\b)((?:[\w.]|`(?:[^`\\]|\\.)*`)+)\s+([A-Z].*)$", re.DOTALL)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`")
_JSON_V1, _JSON_TEXT, _, _JSON_FLAT = range(4)
_DYNAMIC_V1 = 1


def split_arguments(inside: str) -> list[str]:
    """Split a type's arguments at the commas that belong to it.

    >>> split_arguments("String, Array(Tuple(a Int8, b String)), Enum8('a,(' = 1)")
    ['String', 'Array(Tuple(a Int8, b String))', "Enum8('a,(' = 1)"]
    """
    # Quoted names may hold brackets and commas: look at the text with those blanked out.
    plain = _QUOTED.sub(lambda quoted: "_" * len(quoted.group()), inside)
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(plain):
        if letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(inside[start:place].strip())
            start = place + 1
    last = inside[start:].strip()
    return [*parts, last] if last or parts else []


def _decimal_width(precision: int) -> int:
    return 4 if precision <= 9 else 8 if precision <= 18 else 16 if precision <= 38 else 32


@lru_cache(maxsize=4096)
def shape_of(type_name: str) -> Shape:
    """Find how a ClickHouse type lies in a column.

    Raises:
        ServerError: If the type has no length of its own (aggregate states) or is not known here.
    """
    name, _, rest = type_name.strip().partition("(")
    arguments = split_arguments(rest[:-1]) if rest else []
    if name in _WIDTHS:
        return Fixed(_WIDTHS[name])
    if name.startswith("Interval"):
        return Fixed(8)
    if name in _GEO:
        return shape_of(_GEO[name])
    match name:
        case "String":
            return Strings()
        case "FixedString":
            return Fixed(int(arguments[0]))
        case "Decimal":
            return Fixed(_decimal_width(int(arguments[0])))
        case "Nullable":
            return Nullable(shape_of(arguments[0]))
        case "Array":
            return Array(shape_of(arguments[0]))
        case "Map":
            return Array(Tuple(tuple(map(shape_of, arguments))))
        case "Tuple":
            return _tuple_of(arguments)
        case "Nested":
            return Array(_tuple_of(arguments))
        case "LowCardinality":
            keys = shape_of(arguments[0])
            return LowCardinality(keys.inner if isinstance(keys, Nullable) else keys)
        case "SimpleAggregateFunction":
            return shape_of(arguments[-1])
        case "Variant":
            return _variant_of(arguments)
        case "Dynamic":
            return Dynamic()
        case "JSON":
            return Json(_typed_paths(arguments))
        case _:
            raise ServerError(
                NOT_IMPLEMENTED,
                f"type {type_name} cannot be measured here; cast it to String or finalise it in SQL",
            )


def _tuple_of(arguments: list[str]) -> Tuple:
    return Tuple(tuple(shape_of(_ELEMENT_NAME.sub("", part)) for part in arguments))


def _variant_of(names: list[str]) -> Variant:
    return Variant(tuple(Strings() if name == _SHARED else shape_of(name) for name in sorted(names)))


def _typed_paths(arguments: list[str]) -> tuple[Shape, ...]:
    """The shapes of the paths whose type a JSON type names, in the order of the paths."""
    found = filter(None, map(_TYPED_PATH.match, arguments))
    return tuple(shape_of(type_name) for _, type_name in sorted(path.groups() for path in found))


def _names(reader: Reader) -> list[str]:
    return [reader.text() for _ in range(reader.varint())]


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A column that says in its prefix which types it holds (`SerializationDynamic.cpp`)."""

    def prefix(self, reader: Reader) -> Shape:
        match reader.u64():
            case 1 | 2 as version:
                if version == _DYNAMIC_V1:
                    reader.varint()  # how many types it may have
                return _variant_of([*_names(reader), _SHARED]).prefix(reader)
            case 3:  # flat: numbered in the order of the names; NULL is the number after the last
                types = tuple(shape_of(name).prefix(reader) for name in _names(reader))
                return Variant(types, width=1 if len(types) < 256 else 2)
            case version:
                raise ServerError(NOT_IMPLEMENTED, f"Dynamic: version {version} cannot be read here")

    def body(self, reader: Reader, rows: int) -> None:
        raise AssertionError("the prefix tells the shape of a Dynamic column's rows")


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON column: as text, or a column for each path (`SerializationObject.cpp`)."""

    typed: tuple[Shape, ...]

    def prefix(self, reader: Reader) -> Shape:
        version = reader.u64()
        if version == _JSON_TEXT:
            return Strings()
        if version > _JSON_FLAT:
            raise ServerError(NOT_IMPLEMENTED, f"JSON: version {version} cannot be read here")
        if version == _JSON_V1:
            reader.varint()  # how many paths it may have
        paths = _names(reader)
        columns = [shape.prefix(reader) for shape in self.typed]
        columns += [Dynamic().prefix(reader) for _ in paths]
        if version != _JSON_FLAT:
            columns.append(Array(Tuple((Strings(), Strings()))))  # what found no column of its own
        return Tuple(tuple(columns)) if columns else Fixed(0)

    def body(self, reader: Reader, rows: int) -> None:
        raise AssertionError("the prefix tells the shape of a JSON column's rows")
