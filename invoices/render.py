"""Write an invoice as HTML for people: on the screen and on A4, in one file that loads nothing from anywhere.

Numbers come in as decimals that are rounded already; a float that reaches the template raises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Any

from babel import Locale, UnknownLocaleError
from babel.numbers import get_decimal_symbol, get_group_symbol, get_minus_sign_symbol, parse_pattern
from jinja2 import Environment, PackageLoader, StrictUndefined

from invoices.model import Invoice, LineTier, encode_invoice
from tallyman.errors import InvoiceError
from tallyman.money import EXACT, exact, exponent, plain

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
QUANTITY_DIGITS = 6


def render_html(invoice: Invoice) -> bytes:
    """Return the document of a draft or final invoice, UTF-8; the same invoice gives the same bytes.

    Raises:
        InvoiceError: The buyer's locale is not known.
    """
    digits = exponent(invoice.currency)
    locale = find_locale(invoice.locale)
    shown = {
        "money": lambda value: write_number(value, locale, digits),
        "fee": lambda value: write_number(value, locale, max(digits, count_digits(value))),
        "number": lambda value: write_number(value, locale),
        "count": lambda value: write_number(Decimal(value), locale),
    }
    text = (
        _environment()
        .get_template("invoice.html.j2")
        .render(
            invoice=invoice,
            digest=hashlib.sha256(encode_invoice(invoice)).hexdigest(),
            booked_on=date(1970, 1, 1) + timedelta(days=invoice.cut_off.booking // 1000),
            hours=int((invoice.end - invoice.start) / timedelta(hours=1)),
            **shown,
        )
    )
    return text.encode()


@lru_cache(maxsize=64)
def find_locale(name: str) -> Locale:
    """Return a locale by its name, such as "de_DE".

    Raises:
        InvoiceError: There is none.
    """
    try:
        return Locale.parse(name)
    except (UnknownLocaleError, ValueError) as error:
        raise InvoiceError(f'locale: expected one such as de_DE, got "{name}"') from error


@dataclass(frozen=True, slots=True)
class Digits:
    """How people of a locale write numbers, in Western digits."""

    point: str
    group: str
    minus: str
    first: int  # digits of the group before the point
    others: int  # digits of the groups before that one (India: 2)


@lru_cache(maxsize=64)
def find_digits(locale: Locale) -> Digits:
    """Return how people of a locale write numbers."""
    return Digits(
        get_decimal_symbol(locale, numbering_system="latn"),
        get_group_symbol(locale, numbering_system="latn"),
        get_minus_sign_symbol(locale, numbering_system="latn"),
        *parse_pattern(locale.decimal_formats[None]).grouping,
    )


def write_number(value: Decimal, locale: Locale, digits: int | None = None) -> str:
    """Write a decimal the way people of a locale do, with all the digits it has: nothing is rounded here.

    Babel knows the signs but does not write the number: it would round half to even.

    Args:
        digits: How many are shown behind the point; the value has no more than that. None: as many as there are.
    """
    _refuse_floats(value)
    shown = plain(value) if digits is None else f"{value:.{digits}f}"
    if digits is not None and count_digits(value) > digits:
        raise InvoiceError(f"amount: expected at most {digits} digits behind the point, got {value}")
    style = find_digits(locale)
    whole, _, fraction = shown.lstrip("-").partition(".")
    groups = [whole[-style.first :]]
    rest = whole[: -style.first]
    while rest:
        groups.append(rest[-style.others :])
        rest = rest[: -style.others]
    minus = style.minus if shown.startswith("-") else ""
    return minus + style.group.join(reversed(groups)) + (style.point + fraction if fraction else "")


def count_digits(value: Decimal) -> int:
    """Return how many digits a decimal needs behind the point."""
    return len(plain(value).partition(".")[2])


def country_name(code: str) -> str:
    """Return a country's English name, or its code where there is none."""
    return str(Locale("en").territories.get(code, code))


def priced_units(quantity: Decimal, per: Decimal) -> Decimal:
    """Return a quantity in priced units, for showing: rounded to six digits behind the point."""
    with exact():
        units = quantity / per
        return Decimal(plain(units.quantize(Decimal(1).scaleb(-QUANTITY_DIGITS), ROUND_HALF_UP)))


def is_rounded(quantity: Decimal, per: Decimal) -> bool:
    """Return whether `priced_units` shows less than the exact quantity."""
    with exact():
        return priced_units(quantity, per) * per != quantity


def tier_span(tier: LineTier) -> tuple[str, Decimal, Decimal | None]:
    """Return how a tier is called: "first" N units, "next" N units, or all "above" a bound."""
    if tier.up_to is None:
        return ("all" if not tier.above else "above"), tier.above, None
    return ("next" if tier.above else "first"), EXACT.subtract(tier.up_to, tier.above), tier.up_to


def write_day(day: date) -> str:
    """Write a date so that nobody can read it otherwise: "1 October 2026"."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def write_instant(instant: datetime) -> str:
    """Write an instant to the second, in UTC."""
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def write_clock(clock_ms: int) -> str:
    """Write a log clock to the second, in UTC."""
    return write_instant(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=clock_ms))


def write_filter(where: Mapping[str, tuple[str | None, ...]]) -> str:
    """Write which part of a meter a line prices."""
    return " and ".join(
        f"{name} is {' or '.join('missing' if value is None else value for value in values)}"
        for name, values in sorted(where.items())
    )


def _refuse_floats(value: Any) -> Any:
    """Let nothing inexact through; the last gate before the paper."""
    if isinstance(value, float | complex):
        raise TypeError(f"a float reached the template: {value!r}")
    return value


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("invoices"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_refuse_floats,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters = {
        **{name: environment.filters[name] for name in ("join", "length", "replace")},
        "day": write_day,
        "instant": write_instant,
        "clock": write_clock,
        "filter": write_filter,
    }
    environment.globals = {
        "country_name": country_name,
        "priced_units": priced_units,
        "is_rounded": is_rounded,
        "tier_span": tier_span,
    }
    return environment
