"""Meters: which events count, for whom, and as how much. Definitions are numbered and never change once in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import msgspec

from tallyman.errors import EventError, QuantityError
from tallyman.event import Event

Aggregation = Literal["sum", "count", "avg", "min", "max", "latest"]
AGGREGATIONS: tuple[Aggregation, ...] = ("sum", "count", "avg", "min", "max", "latest")
# Scaled: 170 million events of this size in one minute of one series still fit an Int128.
QUANTITY_BOUND = 10**30
MAX_SCALE = 18
MAX_DIMENSION_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """How one kind of event becomes usage.

    Attributes:
        meter: The slug under which usage is stored, asked for and priced.
        value: Dotted path into `data`; not needed for `count`.
        dimensions: Name -> dotted path into `data`. A missing one is null, which is not "".
        where: Dotted path -> the texts of which one must match; other events are not this meter's.
        scale: Decimal digits kept behind the point; a value with more is a dead letter, never rounded.
    """

    meter: str
    event_type: str
    aggregation: Aggregation
    value: str = "value"
    unit: str = "1"
    scale: int = 9
    dimensions: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    description: str = ""
    allow_negative: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= MAX_SCALE:
            raise ValueError(f"scale: expected 0 to {MAX_SCALE}, got {self.scale}")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation: expected one of {', '.join(AGGREGATIONS)}, got {self.aggregation!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Definitions:
    """A numbered, immutable version of everything that decides what an event counts for."""

    number: int
    meters: tuple[Meter, ...]
    oldest_accepted: timedelta = timedelta(days=35)
    furthest_ahead: timedelta = timedelta(hours=1)
    ignore: tuple[str, ...] = ()

    @property
    def remember(self) -> timedelta:
        """How long an accepted id answers for its copies: after that they are too old anyway."""
        return self.oldest_accepted + self.furthest_ahead


@dataclass(frozen=True, slots=True)
class Reading:
    """What one event means to one meter. `value` is scaled by the meter's scale; 1 for `count`."""

    meter: str
    subject: str
    dimensions: str
    minute: int  # minutes since 1970 UTC
    value: int


def encode_definitions(definitions: Definitions) -> str:
    """Write definitions as the JSON text that the control store keeps."""
    return msgspec.json.encode(definitions).decode()


def decode_definitions(text: str) -> Definitions:
    """Read what `encode_definitions` wrote."""
    return msgspec.json.decode(text, type=Definitions)


def find(data: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of `data`, or None."""
    value: Any = data
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def dimension_text(name: str, value: Any) -> str | None:
    """Return a dimension's value as text: numbers as written, booleans as JSON writes them, null as None.

    Raises:
        EventError: `wrong_type` for objects and lists, `out_of_range` for a text that is too long.
    """
    if value is None or type(value) is str:
        text = value
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int | Decimal):
        text = str(value)
    else:
        raise EventError("wrong_type", f"data.{name}: expected text, a number or null, got {type(value).__name__}")
    if (
        text is not None
        and len(text) * 4 > MAX_DIMENSION_BYTES
        and len(text.encode("utf-8", "replace")) > MAX_DIMENSION_BYTES
    ):
        raise EventError(
            "out_of_range", f"data.{name}: expected at most {MAX_DIMENSION_BYTES} bytes, got {len(text)} characters"
        )
    return text


def encode_dimensions(values: Mapping[str, str | None]) -> str:
    """Write dimensions as canonical JSON: sorted names, no spaces; equal dimensions have equal text."""
    return msgspec.json.encode(dict(sorted(values.items()))).decode()


def decode_dimensions(text: str) -> dict[str, str | None]:
    """Read what `encode_dimensions` wrote."""
    return msgspec.json.decode(text, type=dict[str, str | None])


def parse_quantity(value: Any, scale: int) -> int:
    """Return a value as an integer scaled by 10**scale, exactly.

    Args:
        value: An int, a Decimal or a decimal text such as "12.5" or "1e3"; never a float.

    Raises:
        QuantityError: `not_a_number` (also NaN and infinities), `too_precise`, `out_of_range`, `missing_field`.
    """
    if type(value) is int:
        scaled: int = value * 10**scale
        if -QUANTITY_BOUND < scaled < QUANTITY_BOUND:
            return scaled
        raise QuantityError("out_of_range", f"value: expected less than 10^{30 - scale}, got {value.bit_length()} bits")
    if value is None:
        raise QuantityError("missing_field", "value: expected a number, got nothing")
    if not isinstance(value, str | Decimal):
        raise QuantityError("not_a_number", f"value: expected a number, got {type(value).__name__}")
    text = str(value)
    if not text.isascii() or text != text.strip() or "_" in text:
        raise QuantityError("not_a_number", f'value: expected a number, got "{text[:40]}"')
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise QuantityError("not_a_number", f'value: expected a number, got "{text[:40]}"') from error
    if not number.is_finite():
        raise QuantityError("not_a_number", f'value: expected a number, got "{text[:40]}"')
    if number == 0:
        return 0
    if number.adjusted() + scale >= 30:
        raise QuantityError("out_of_range", f"value: expected less than 10^{30 - scale}, got {text[:40]}")
    if len(text) > 60:  # Python refuses to read very long integers; trailing zeros are no digits
        number = Decimal(text.rstrip("0")) if "." in text and "e" not in text.lower() else number
    sign, digits, exponent = number.as_tuple()
    shift = int(exponent) + scale
    if len(digits) > 60:
        raise QuantityError(
            "too_precise", f"value: expected at most {scale} digits behind the point, got {len(digits)} digits"
        )
    whole: int = int("".join(map(str, digits)))
    if shift >= 0:
        whole *= 10**shift
    else:
        whole, rest = divmod(whole, 10**-shift) if -shift <= len(digits) else (0, whole)
        if rest:
            raise QuantityError(
                "too_precise", f"value: expected at most {scale} digits behind the point, got {text[:40]}"
            )
    return -whole if sign else whole


def measure(meter: Meter, event: Event) -> Reading | None:
    """Return what an event means to a meter of its type, or None when the meter's filter leaves it out.

    Raises:
        EventError: The event is a dead letter, as a whole, for all meters.
    """
    for path, wanted in meter.where.items():
        if dimension_text(path, find(event.data, path)) not in wanted:
            return None
    dimensions = {name: dimension_text(path, find(event.data, path)) for name, path in meter.dimensions.items()}
    value = 1 if meter.aggregation == "count" else parse_quantity(find(event.data, meter.value), meter.scale)
    if value < 0 and not meter.allow_negative:
        raise QuantityError("negative", f"value: {meter.meter} takes no negative values")
    minute = event.time_us // 60_000_000
    return Reading(meter.meter, event.subject, encode_dimensions(dimensions), minute, value)


def scaled_text(value: int, scale: int) -> str:
    """Write a scaled integer as a plain decimal text.

    >>> scaled_text(-1500000000, 9)
    '-1.5'
    """
    sign, digits = ("-" if value < 0 else ""), str(abs(value)).rjust(scale + 1, "0")
    whole, fraction = (digits[:-scale], digits[-scale:].rstrip("0")) if scale else (digits, "")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
