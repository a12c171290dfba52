"""The leaves of a YAML file: what a scalar means to a type, and the words for one that means nothing to it."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec
import yaml

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION = re.compile(r"([0-9]+)(ms|s|m|h|d|w)")
# YAML 1.2's core schema: nothing else that is written without quotes is anything but text.
_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z")
_OTHER_NUMBER = re.compile(r"(?:0o[0-7]+|0x[0-9a-fA-F]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_SHOWN, _LONGEST_NUMBER = 60, 100
_LONGEST = timedelta(days=36_500)  # what is added to a moment must stay a moment, and fit 64 bits as microseconds


class Mistake(NamedTuple):
    """One problem of a file."""

    line: int
    text: str


class Problem(Exception):
    """Something at this place is wrong."""

    def __init__(self, line: int, path: str, text: str) -> None:
        super().__init__(text)
        self.found = Mistake(line, f"{path}: {text}" if path else text)


def parse_duration(text: str) -> timedelta:
    """Return a duration from its text.

    Raises:
        ValueError: It is none, or longer than anything that is metered: what is added to it must stay a moment.

    >>> parse_duration("35d")
    datetime.timedelta(days=35)
    """
    parts = _DURATION.fullmatch(text)
    if parts is None:
        raise ValueError(f'expected a duration such as 200ms, 30s, 5m, 1h or 35d, got "{text[:_SHOWN]}"')
    # Python refuses to read more than 4,300 digits.
    milliseconds = int(parts[1]) * _UNITS[parts[2]] if len(parts[1]) <= _SHOWN else math.inf
    if milliseconds > _LONGEST // timedelta(milliseconds=1):
        raise ValueError(f'expected a duration of at most {write_duration(_LONGEST)}, got "{text[:_SHOWN]}"')
    return timedelta(milliseconds=milliseconds)


def write_duration(duration: timedelta) -> str:
    """Write a duration as a file would have it; `parse_duration` reads it back.

    >>> write_duration(timedelta(minutes=90))
    '90m'
    """
    milliseconds = duration // timedelta(milliseconds=1)
    unit = next((unit for unit in ("d", "h", "m", "s") if milliseconds % _UNITS[unit] == 0 and milliseconds), "ms")
    return f"{milliseconds // _UNITS[unit]}{unit}"


def natural_scalar(node: yaml.Node, path: str) -> Any:
    """Return what a scalar is by itself, where no type says it; a number with a point is a Decimal.

    Raises:
        Problem: It is a number that is too long.
    """
    text = node.value
    if not is_plain(node):
        return text
    if _NULL.match(text):
        return None
    if _BOOLEAN.match(text):
        return text.lower() == "true"
    if not _NUMBER.match(text):
        return text
    try:
        number = _number(text)
    except ValueError as error:
        raise problem_at(node, path, f"{error}, got {got(node)}") from error
    return int(number) if _INTEGER.match(text) else number


def _number(text: str) -> Decimal:
    """Return a number of a length that can be written, compared and added: 1e999999999 can not.

    Raises:
        ValueError: It is longer.
    """
    try:
        number = Decimal(text)
    except ArithmeticError:  # an exponent beyond all
        number = None
    if number is None or len(text) > _LONGEST_NUMBER or abs(number.adjusted()) > _LONGEST_NUMBER:
        raise ValueError(f"expected a number of at most {_LONGEST_NUMBER} digits")
    return number


def read_scalar(node: yaml.Node, into: Any, path: str) -> Any:
    """Return the value of a scalar for a type.

    Raises:
        Problem: With what was expected and what came.
    """
    if not isinstance(node, yaml.ScalarNode):
        raise problem_at(node, path, f"expected {name_of(into)}, got {got(node)}")
    if get_origin(into) is Literal:
        return _literal(node, get_args(into), path)
    reader = _SCALARS.get(into)
    try:
        if reader is not None:
            return reader(node)
        if isinstance(into, type) and issubclass(into, enum.Enum):
            return {str(member.value): member for member in into}[node.value]
    except (ValueError, ArithmeticError, KeyError, msgspec.ValidationError) as error:
        own = str(error) if isinstance(error, ValueError) and str(error).startswith("expected") else ""
        said = own or f"expected {name_of(into)}, got {got(node)}{_quotes(node, into)}"
        raise problem_at(node, path, said) from error
    raise TypeError(f"{path}: no reader for {into!r}")


def _literal(node: yaml.ScalarNode, values: tuple[Any, ...], path: str) -> Any:
    by_text = {_literal_text(value): value for value in values}
    if node.value in by_text and not (not is_plain(node) and not isinstance(by_text[node.value], str)):
        return by_text[node.value]
    expected = f"expected one of {', '.join(by_text)}, got {got(node)}"
    raise problem_at(node, path, expected + hint(node.value, by_text, listed=False))


def _literal_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(node: yaml.ScalarNode) -> str:
    if is_plain(node) and any(f.match(node.value) for f in (_NULL, _BOOLEAN, _NUMBER, _OTHER_NUMBER)):
        raise ValueError(node.value)
    return str(node.value)


def _integer(node: yaml.ScalarNode) -> int:
    if not is_plain(node) or not _INTEGER.match(node.value):
        raise ValueError(node.value)
    return int(_number(node.value))


def _boolean(node: yaml.ScalarNode) -> bool:
    if not is_plain(node) or not _BOOLEAN.match(node.value):
        raise ValueError(node.value)
    return bool(node.value.lower() == "true")


def _decimal(node: yaml.ScalarNode) -> Decimal:
    if not _NUMBER.match(node.value):  # in quotes or not: a price is often written in quotes
        raise ValueError(node.value)
    return _number(node.value)


def _float(node: yaml.ScalarNode) -> float:
    return float(_decimal(node))


def _null(node: yaml.ScalarNode) -> None:
    if not is_null(node):
        raise ValueError(node.value)


def _duration(node: yaml.ScalarNode) -> timedelta:
    return parse_duration(node.value)


def _by_msgspec(into: Any) -> Callable[[yaml.ScalarNode], Any]:
    return lambda node: msgspec.convert(node.value, into)


_SCALARS: Mapping[Any, Callable[[yaml.ScalarNode], Any]] = {
    str: _text,
    int: _integer,
    bool: _boolean,
    Decimal: _decimal,
    float: _float,
    type(None): _null,
    timedelta: _duration,
    Path: lambda node: Path(_text(node)),
    date: _by_msgspec(date),
    datetime: _by_msgspec(datetime),
    time: _by_msgspec(time),
}
_NAMES: Mapping[Any, str] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    Decimal: "a number",
    float: "a number",
    type(None): "nothing",
    timedelta: "a duration such as 30s",
    Path: "a path",
    date: "a date such as 2026-10-01",
    datetime: "a time with a zone such as 2026-10-01T00:00:00Z",
    time: "a time of day such as 06:30:00",
}


def name_of(into: Any) -> str:
    """Say what a type wants, for a person."""
    origin = get_origin(into) or into
    if into in _NAMES:
        return _NAMES[into]
    if origin is Literal:
        return "one of " + ", ".join(map(_literal_text, get_args(into)))
    if isinstance(into, type) and issubclass(into, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in into)
    return "a list" if is_kind(origin, Sequence, Set) else "keys and values"


def got(node: yaml.Node) -> str:
    """Say what came instead, cut short."""
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if is_null(node):
        return "nothing"
    shown = node.value if len(node.value) <= _SHOWN else node.value[:_SHOWN] + "..."
    plain_number = is_plain(node) and (_NUMBER.match(node.value) or _BOOLEAN.match(node.value))
    return shown if plain_number else f'"{shown}"'


def _quotes(node: yaml.ScalarNode, into: Any) -> str:
    """A text that looks like a number, and the other way round: say which way the quotes go."""
    if into is str and is_plain(node) and node.value:
        return f'; write it in quotes: "{node.value[:_SHOWN]}"'
    if into in (int, bool) and not is_plain(node) and (_INTEGER.match(node.value) or _BOOLEAN.match(node.value)):
        return "; write it without quotes"
    return ""


def hint(name: str, known: Mapping[Any, object], *, listed: bool = True) -> str:
    """Say which known name is near, or, if `listed`, which ones there are."""
    near = get_close_matches(name, [str(key) for key in known], n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known here: {', '.join(map(str, known))}" if listed else ""


def problem_at(node: yaml.Node, path: str, text: str) -> Problem:
    """Return the problem of a node, with its line."""
    return Problem(node.start_mark.line + 1, path, text)


def is_plain(node: yaml.Node) -> bool:
    """Whether a scalar stands without quotes: only then it may be anything but text."""
    return isinstance(node, yaml.ScalarNode) and not node.style


def is_null(node: yaml.Node) -> bool:
    """Whether nothing stands there."""
    return is_plain(node) and bool(_NULL.match(node.value))


def is_kind(kind: Any, *families: type) -> bool:
    """Whether a type belongs to one of these families of types."""
    return isinstance(kind, type) and issubclass(kind, families)
