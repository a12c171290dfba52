"""Meters: which events count, for whom, and as how much. Definitions are numbered and never change once in force."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Literal, get_args

import msgspec

from tallyman.errors import EventError, QuantityError
from tallyman.event import Event, identity

Aggregation = Literal[
    "sum", "count", "avg", "min", "max", "latest", "first", "unique_count", "percentile", "stddev",
    "sum_of_maxima", "time_weighted", "lifecycle", "counter",
]  # fmt: skip
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
# What a value is counted under besides its series and minute: the value itself, or its moment and resource.
BY_VALUE: frozenset[Aggregation] = frozenset(("unique_count", "percentile", "stddev"))
BY_MOMENT: frozenset[Aggregation] = frozenset(("first", "time_weighted", "lifecycle", "counter"))
BY_ITEM = BY_VALUE | BY_MOMENT
# Of these, what one event counted for can be taken back; the others have forgotten their single values.
_ADDS_UP: frozenset[Aggregation] = frozenset(("sum", "count", "avg"))
CORRECTABLE = _ADDS_UP | BY_ITEM
Bucket = Literal["minute", "hour", "day", "week", "month"]
Of = Literal["sum", "avg", "min", "max", "latest", "first", "count", "percentile", "stddev"]
Rounding = Literal["exact", "nearest", "up", "down"]
# Scaled: 170 million events of this size in one minute of one series still fit an Int128.
QUANTITY_BOUND = 10**30
MAX_SCALE = 18
MAX_DIGITS = 18
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
        multiply_by: From the value's unit to `unit`, as an exact fraction ("1/3600", "1.5"); applied to answers.
        add: What each value is more by after that, as an exact fraction ("-32", "20"): overhead, another zero point.
        rounding: What becomes of an answer's digits beyond `digits`: kept, or rounded to the nearest (half away from
            zero), up or down. Each answer is rounded by itself, after conversion: those of hours need not add up.
        digits: Behind the point; -2 rounds to hundreds.
        percentile: 0 to 100, for `percentile` and a counter's `of: percentile`; between the two closest ranks it is
            interpolated linearly.
        bucket: Whose maxima `sum_of_maxima` sums, in the zone that is asked for.
        resource: Path of what has a level, a state or a counter of its own; without it, the series has one.
        level: `time_weighted`: whether a value is the level, or what the level changes by.
        answer: `time_weighted`: the level summed over seconds (its integral), or its average.
        believed_for: How long a level or state holds when nothing more is heard; a counter's neighbours that are
            further apart are told as a hole. None: for ever.
        ends_on: `time_weighted`: path -> texts of the event that ends a level; it needs no value.
        state, states: `lifecycle`: path of the state, and the states whose seconds count.
        incarnation: `counter`: path of what changes when a counter starts again from 0 (boot id, container id).
        of: `counter`: what is made of the increments.
        oldest_accepted: How late its events may come, by the clock of the log; None: as the deployment says. An event
            is accepted for all meters that count it or for none: what is too old for one of them is a dead letter.
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
    multiply_by: str = "1"
    add: str = "0"
    rounding: Rounding = "exact"
    digits: int = 0
    percentile: str = ""
    bucket: Bucket = "hour"
    resource: str = ""
    level: Literal["absolute", "delta"] = "absolute"
    answer: Literal["integral", "average"] = "integral"
    believed_for: timedelta | None = None
    ends_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    state: str = ""
    states: tuple[str, ...] = ()
    incarnation: str = ""
    of: Of = "sum"
    oldest_accepted: timedelta | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= MAX_SCALE:
            raise ValueError(f"scale: expected 0 to {MAX_SCALE}, got {self.scale}")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation: expected one of {', '.join(AGGREGATIONS)}, got {self.aggregation!r}")
        for name, wanted_by in _OWN_SETTINGS.items():
            if self.aggregation not in wanted_by and getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(f"{name}: expected only with {' or '.join(wanted_by)}, got it with {self.aggregation}")
        if self.aggregation == "counter" and self.of != "percentile" and self.percentile:
            raise ValueError(f"percentile: expected only with of: percentile, got it with of: {self.of}")
        if self._has_percentile and not _is_percentile(self.percentile):
            raise ValueError(f'percentile: expected a number from 0 to 100, got "{self.percentile}"')
        if self.aggregation == "lifecycle" and not (self.state and self.states):
            raise ValueError("state, states: expected the path of the state and the states that count, got none")
        if self.believed_for is not None and self.believed_for <= timedelta(0):
            raise ValueError(f"believed_for: expected more than 0 s, got {self.believed_for.total_seconds():.0f} s")
        if self.believed_for is not None and self.level == "delta":
            raise ValueError("believed_for: expected only with level: absolute, got delta; a level of changes holds on")
        if self.oldest_accepted is not None and self.oldest_accepted <= timedelta(0):
            got = f"{self.oldest_accepted.total_seconds():.0f} s"
            raise ValueError(f"oldest_accepted: expected more than 0 s, got {got}")
        if not -MAX_DIGITS <= self.digits <= MAX_DIGITS:
            raise ValueError(f"digits: expected {-MAX_DIGITS} to {MAX_DIGITS}, got {self.digits}")
        if self.digits and self.rounding == "exact":
            raise ValueError("digits: expected only with rounding: nearest, up or down")
        factor_of(self)
        offset_of(self)

    @property
    def _has_percentile(self) -> bool:
        return self.aggregation == "percentile" or (self.aggregation == "counter" and self.of == "percentile")

    @property
    def adds_up(self) -> bool:
        """Whether what parts of a month, tenants and dimensions answer adds up to the whole's: what can be charged."""
        if self.aggregation == "time_weighted":
            return self.answer == "integral"
        return self.aggregation in ("sum", "count", "lifecycle") or (self.aggregation == "counter" and self.of == "sum")

    @property
    def felt_for(self) -> timedelta | None:
        """How long behind its time a reading may still decide answers: a level goes on, a counter is counted from it.

        None: for ever.
        """
        if self.aggregation in ("time_weighted", "lifecycle"):
            return self.believed_for
        return None if self.aggregation == "counter" else timedelta(0)

    @property
    def takes_number(self) -> bool:
        """Whether an event needs a number at `value`."""
        return self.aggregation not in ("count", "unique_count", "lifecycle")

    @property
    def text_paths(self) -> tuple[str, ...]:
        """The paths at which it reads texts."""
        named = (self.resource, self.state, self.incarnation)
        return (*self.dimensions.values(), *self.where, *self.ends_on, *(path for path in named if path))

    @property
    def value_paths(self) -> tuple[str, ...]:
        """The path of the value, if it reads one."""
        return () if self.aggregation in ("count", "lifecycle") else (self.value,)


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
        return self.longest_accepted + self.furthest_ahead

    @property
    def longest_accepted(self) -> timedelta:
        """How late an event may come for the most patient meter."""
        return max(self.oldest_accepted, *map(self.oldest_of, self.meters), timedelta(0))

    def oldest_of(self, meter: Meter) -> timedelta:
        """How late a meter's events may come."""
        return self.oldest_accepted if meter.oldest_accepted is None else meter.oldest_accepted


@dataclass(frozen=True, slots=True)
class Reading:
    """What one event means to one meter.

    Attributes:
        value: Scaled by the meter's scale; 1 for `count` and `unique_count`; 1 or 0 for `lifecycle`.
        item: What the value is counted under (`item_of`).
    """

    meter: str
    subject: str
    dimensions: str
    minute: int  # minutes since 1970 UTC
    value: int
    item: str = ""


def encode_definitions(definitions: Definitions) -> str:
    """Write definitions as the JSON text that the control store keeps."""
    return msgspec.json.encode(definitions).decode()


def decode_definitions(text: str) -> Definitions:
    """Read what `encode_definitions` wrote."""
    return msgspec.json.decode(text, type=Definitions)


def is_path(text: str) -> bool:
    """Tell whether a path reads as one: without quotes, backslashes and control characters, which msgspec takes for no
    part of a field's name. Others are found line by line.

    >>> is_path("labels.app"), is_path('labels["app"]')
    (True, False)
    """
    return '"' not in text and "\\" not in text and min(text, default=" ") >= " "


def find(data: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of `data`, or None; a name with dots of its own ("k8s.pod.name") comes first.

    >>> find({"k8s": {"pod": {"name": "a"}, "pod.uid": "b"}, "k8s.node": "c"}, "k8s.pod.uid")
    'b'
    """
    value = data.get(path)
    if value is None and "." in path:
        name, rest = path.split(".", 1)
        inner = data.get(name)
        return find(inner, rest) if isinstance(inner, Mapping) else None
    return value


def dimension_text(name: str, value: Any) -> str | None:
    """Return a dimension's value as text: numbers without an exponent, booleans as JSON writes them, null as None.

    Raises:
        EventError: `wrong_type` for objects and lists, `out_of_range` for a text that is too long.
    """
    if value is None or type(value) is str:
        text = value
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int):
        text = str(value)
    elif isinstance(value, Decimal):
        # Never with an exponent, which JSON's writer chose or Python would: a number and its text are one value.
        text = format(value, "f") if abs(value.adjusted()) < MAX_DIMENSION_BYTES else "0" * (MAX_DIMENSION_BYTES + 1)
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
    value = value_in(meter, event.data)
    minute = event.time_us // 60_000_000
    item = item_of(meter, event.data, event.time_us, value, identity(event.subject, event.source, event.id))
    return Reading(meter.meter, event.subject, encode_dimensions(dimensions), minute, value, item)


def value_in(meter: Meter, data: Mapping[str, Any]) -> int:
    """Return what an event's data count for, scaled.

    Raises:
        EventError: There is no such quantity in them.
    """
    if meter.aggregation == "lifecycle":
        state = dimension_text(meter.state, find(data, meter.state))
        if state is None:
            raise EventError("missing_field", f"data.{meter.state}: expected a state, got nothing")
        return int(state in meter.states)
    if not meter.takes_number:
        return 1
    if any(dimension_text(path, find(data, path)) in texts for path, texts in meter.ends_on.items()):
        return 0
    value = parse_quantity(find(data, meter.value), meter.scale)
    if value < 0 and not meter.allow_negative:
        raise QuantityError("negative", f"value: {meter.meter} takes no negative values")
    return value


def item_of(meter: Meter, data: Mapping[str, Any], time_us: int, value: int, by: bytes = b"") -> str:
    """Return what a value is counted under besides its series and minute.

    Nothing for what adds up; the value itself (`BY_VALUE`); for what needs order (`BY_MOMENT`) the JSON array
    [time in microseconds, resource, incarnation, whose], texts or null. The last is the begin of the event's identity,
    so that it can be taken back though another event stands at the same moment; rows of numbered batches, which nobody
    takes back, have none.

    Raises:
        EventError: `missing_field`, `wrong_type`, `out_of_range`.
    """
    if meter.aggregation in BY_MOMENT:
        paths = (meter.resource, meter.incarnation)
        named = [dimension_text(path, find(data, path)) if path else None for path in paths]
        whose = [urlsafe_b64encode(by[:8]).decode().rstrip("=")] if by else []
        return msgspec.json.encode([str(time_us), *named, *whose]).decode()
    if meter.aggregation == "unique_count":
        text = dimension_text(meter.value, find(data, meter.value))
        if text is None:
            raise EventError("missing_field", f"data.{meter.value}: expected a value to tell apart, got nothing")
        return "=" + text
    return str(value) if meter.aggregation in BY_VALUE else ""


def parameters_of(meter: Meter) -> str:
    """Write what a reader of usage must know besides aggregation and scale: canonical JSON, or "" for nothing."""
    named: dict[str, Any] = {
        name: getattr(meter, name)
        for name, wanted_by in _OWN_SETTINGS.items()
        if name in _READ and meter.aggregation in wanted_by and (name != "percentile" or meter.percentile)
    }
    if meter.believed_for is not None:
        named["believed_for_s"] = _seconds(meter.believed_for)
    factor = factor_of(meter)
    if factor != 1:
        named["factor"] = f"{factor.numerator}/{factor.denominator}"
    offset = offset_of(meter)
    if offset:
        named["offset"] = f"{offset.numerator}/{offset.denominator}"
    if meter.rounding != "exact":
        named |= {"rounding": meter.rounding, "digits": str(meter.digits)}
    return msgspec.json.encode(dict(sorted(named.items()))).decode() if named else ""


def factor_of(meter: Meter) -> Fraction:
    """Return by what a meter's answers are multiplied, exactly.

    Raises:
        ValueError: It is no positive fraction, or one of more than 18 digits.
    """
    factor = _fraction(meter.multiply_by)
    if factor is None or factor <= 0:
        raise ValueError(
            f'multiply_by: expected a positive fraction such as "1/3600" or "1.5", got "{meter.multiply_by[:40]}"'
        )
    return factor


def offset_of(meter: Meter) -> Fraction:
    """Return what each of a meter's values is more by after conversion, exactly.

    Raises:
        ValueError: It is no fraction, or one of more than 18 digits.
    """
    offset = _fraction(meter.add)
    if offset is None:
        raise ValueError(f'add: expected a fraction such as "-32" or "1/2", got "{meter.add[:40]}"')
    return offset


def _fraction(text: str) -> Fraction | None:
    """Return an exact fraction of at most 18 digits on each side, None if a text is none."""
    try:
        fraction = Fraction(text) if len(text) <= 40 else None
    except (ValueError, ZeroDivisionError):
        return None
    if fraction is None or max(abs(fraction.numerator), fraction.denominator) >= 10**18:
        return None
    return fraction


def _seconds(span: timedelta) -> str:
    return f"{span // timedelta(microseconds=1)}e-6" if span.microseconds else str(span // timedelta(seconds=1))


def _is_percentile(text: str) -> bool:
    try:
        return 0 <= Decimal(text) <= 100 and len(text) <= 20
    except InvalidOperation:
        return False


_OWN_SETTINGS: Mapping[str, tuple[Aggregation, ...]] = {
    "add": ("sum", "avg", "min", "max", "latest", "first", "percentile", "sum_of_maxima"),
    "percentile": ("percentile", "counter"),
    "bucket": ("sum_of_maxima",),
    "resource": ("time_weighted", "lifecycle", "counter"),
    "level": ("time_weighted",),
    "answer": ("time_weighted",),
    "believed_for": ("time_weighted", "lifecycle", "counter"),
    "ends_on": ("time_weighted",),
    "state": ("lifecycle",),
    "states": ("lifecycle",),
    "incarnation": ("counter",),
    "of": ("counter",),
}
_READ = frozenset(("percentile", "bucket", "level", "answer", "of"))
_DEFAULTS: Mapping[str, Any] = {
    each.name: each.default if each.default is not MISSING else {} for each in fields(Meter)
}


def scaled_text(value: int, scale: int) -> str:
    """Write a scaled integer as a plain decimal text.

    >>> scaled_text(-1500000000, 9)
    '-1.5'
    """
    sign, digits = ("-" if value < 0 else ""), str(abs(value)).rjust(scale + 1, "0")
    whole, fraction = (digits[:-scale], digits[-scale:].rstrip("0")) if scale else (digits, "")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
