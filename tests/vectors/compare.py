"""Hold our answers against the expected ones: exact decimals, instants, rows in any order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation, getcontext
from fractions import Fraction
from typing import Any

from tallyman.meter import MAX_SCALE, dimension_text
from tallyman.money import EXACT, plain
from tests.vectors.model import Mismatch, Unknown

_NUMBER_FIRST = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?(?=$|[\s,;(])")
_FRACTION = re.compile(r"(-?[0-9]+)/0*([1-9][0-9]*)")
_ROW_FIELDS = ("value", "windowStart", "windowEnd", "groupBy", "subject")  # any other name is a group's
_ROW_NAMES = {"window_start": "windowStart", "window_end": "windowEnd", "group_by": "groupBy", "groups": "groupBy"}
_ROW_ASIDES = ("note", "peer", "peer_digits")
_ROUNDED = -2
_FLOAT_DIGITS = 15  # of which a double keeps each
_UNIX_SECONDS = re.compile(r"[0-9]{9,}(\.[0-9]+)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of ours: its groups and value, its window as we give it, and how many events came in it."""

    groups: Mapping[str, str | None]
    value: Decimal
    start: datetime
    end: datetime
    events: int

    def __str__(self) -> str:
        named = ", ".join(f"{name}={value!r}" for name, value in self.groups.items())
        return f"{plain(self.value)}" + (f" ({named})" if named else "") + f" from {self.start:%Y-%m-%dT%H:%M:%SZ}"


def as_decimal(fraction: Fraction) -> Decimal:
    """Return a fraction as a decimal: exactly, or with as many digits as our answers have."""
    return Decimal(fraction.numerator) / Decimal(fraction.denominator)


def number(value: Any) -> Decimal:
    """Return an expected number; of a text such as "15 (first wins)" the number that it begins with.

    Raises:
        Unknown: It is none.
    """
    if isinstance(value, bool) or value is None:
        raise Unknown(f"expected a number, the case has {value!r}")
    if fraction := _FRACTION.fullmatch(str(value)):
        return as_decimal(Fraction(f"{fraction[1]}/{fraction[2]}"))
    found = _NUMBER_FIRST.match(str(value))
    try:
        return Decimal(found[0] if found else str(value))
    except InvalidOperation as error:
        raise Unknown(f"expected a number, the case has {value!r}") from error


def check_number(what: str, ours: Decimal | int | None, expected: Any, tolerance: Decimal | None = None) -> None:
    """Compare exactly, or within the case's tolerance."""
    wanted = number(expected)
    if ours is None:
        raise Mismatch(f"{what}: expected {wanted}, got nothing")
    if not close(Decimal(ours), wanted, tolerance):
        raise Mismatch(f"{what}: expected {plain(wanted)}, got {plain(Decimal(ours))}")


def check_total(
    what: str, ours: Decimal | None, expected: Any, *, is_sum: bool, tolerance: Decimal | None = None
) -> None:
    """Compare one figure where there may be none; the sum over nothing, which has no row, is told as 0 by others."""
    if ours is None and (expected is None or (is_sum and number(expected) == 0)):
        return
    if expected is None:
        raise Mismatch(f"{what}: expected nothing, got {ours}")
    check_number(what, ours, expected, tolerance)


def check_rounded(what: str, ours: Decimal | None, expected: Any) -> None:
    """Compare after rounding ours, once and half away from zero, to the digits that are expected.

    Fewer than two behind the point are no sign that anything was rounded: 2.4 is no 2.
    """
    exponent = int(number(expected).as_tuple().exponent)
    if ours is not None and exponent <= _ROUNDED:
        ours = ours.quantize(Decimal(1).scaleb(exponent), ROUND_HALF_UP, EXACT)
    check_number(what, ours, expected)


def close(ours: Decimal, wanted: Decimal, tolerance: Decimal | None) -> bool:
    """Tell whether two numbers are equal, or as near as the case allows.

    Of a quotient without an end of digits, which neither side can write, those must agree that are expected.
    """
    if tolerance is None:
        return ours == wanted or (_is_cut(ours) and _as_written(ours, wanted) == _as_cut(wanted, ours))
    return abs(EXACT.subtract(ours, wanted)) <= tolerance


def _is_cut(ours: Decimal) -> bool:
    return len(ours.as_tuple().digits) >= getcontext().prec - 1 and ours != ours.to_integral_value()


def _as_cut(wanted: Decimal, ours: Decimal) -> Decimal:
    """Return a quotient that is expected with more digits than ours has as we write it; no sum is one, or that fine."""
    exponent = wanted.as_tuple().exponent
    fine = isinstance(exponent, int) and -exponent > MAX_SCALE
    return +wanted if fine and len(ours.as_tuple().digits) <= getcontext().prec else wanted


def _as_written(ours: Decimal, wanted: Decimal) -> Decimal:
    """Return ours with as many digits as are expected, if these are enough to tell numbers apart."""
    digits = len(wanted.as_tuple().digits)
    return Context(prec=digits, rounding=ROUND_HALF_UP).plus(ours) if digits >= _FLOAT_DIGITS else ours


def instant(text: Any) -> datetime:
    """Return the instant of a time as peers write one: RFC 3339, without a zone in UTC, a date at midnight UTC, or
    seconds since 1970.

    Raises:
        Unknown: It is none of these.
    """
    try:
        if _UNIX_SECONDS.fullmatch(str(text)):
            return _EPOCH + timedelta(microseconds=int(Decimal(str(text)) * 1_000_000))
        moment = datetime.fromisoformat(str(text).upper())
    except (ValueError, OverflowError) as error:
        raise Unknown(f"expected a time, the case has {text!r}: {error}") from error
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def check_rows(ours: Sequence[Row], expected: Sequence[Mapping[str, Any]], options: RowOptions) -> None:
    """Compare rows in any order; of an expected row all that it names must agree.

    Raises:
        Mismatch: A row is missing, or one is there that nobody expected.
    """
    left = list(ours)
    for wanted in map(by_our_names, expected):
        found = next((row for row in left if _agrees(row, wanted, options)), None)
        if found is None:
            shown = "; ".join(map(str, left)) or "no row"
            raise Mismatch(f"expected a row {_shown(wanted)}, got {shown}")
        left.remove(found)
    if left:
        raise Mismatch(f"expected {len(expected)} rows, got also {'; '.join(map(str, left))}")


def by_our_names(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return an expected row in our words, without what is told for whoever reads the file."""
    return {_ROW_NAMES.get(name, name): told for name, told in wanted.items() if name not in _ROW_ASIDES}


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How rows are compared.

    Attributes:
        span: The range that was asked for: an expected window that reaches beyond it counts as cut there.
        blank: Groups in which "" stands for a missing key, because no event of the case has "" there.
    """

    tolerance: Decimal | None
    span: tuple[datetime, datetime]
    blank: frozenset[str] = frozenset()


def groups_of(wanted: Mapping[str, Any], blank: frozenset[str]) -> dict[str, str | None]:
    """Return the groups of an expected row, as texts; a missing key is None."""
    named = dict(wanted.get("groupBy") or {})
    if "subject" in wanted:
        named["subject"] = wanted["subject"]
    texts = {name: dimension_text(name, value) for name, value in named.items()}
    return {name: None if text == "" and name in blank else text for name, text in texts.items()}


def _agrees(row: Row, wanted: Mapping[str, Any], options: RowOptions) -> bool:
    flat = {name: told for name, told in wanted.items() if name not in _ROW_FIELDS}
    if dict(row.groups) != groups_of({**wanted, "groupBy": flat | (wanted.get("groupBy") or {})}, options.blank):
        return False
    first, last = options.span
    if "windowStart" in wanted and row.start != max(instant(wanted["windowStart"]).replace(microsecond=0), first):
        return False
    if "windowEnd" in wanted and row.end != end_of(wanted, last):
        return False
    return close(row.value, number(wanted.get("value")), options.tolerance)


def end_of(wanted: Mapping[str, Any], last: datetime) -> datetime:
    """Return where an expected window ends, or where the range cuts it."""
    return min(_second_after(instant(wanted["windowEnd"])), last)


def _second_after(moment: datetime) -> datetime:
    """Return the whole second at or after a moment: a window that ends at 59.999 ends with its minute."""
    whole = moment.replace(microsecond=0)
    return whole if whole == moment else whole + timedelta(seconds=1)


def _shown(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in wanted.items())
