"""Invoice numbers: one gapless series for each entity and pattern, such as "NIM-{year}-{number:06d}".

A number is taken in the transaction that makes its invoice final (`invoices.store`), never before.
"""

from __future__ import annotations

import re
from datetime import date
from string import Formatter

from tallyman.errors import InvoiceError

_TEXT = re.compile(r"[A-Za-z0-9._-]*")
_WIDTH = re.compile(r"(0[1-9]d|d|)")


def check_pattern(pattern: str) -> None:
    """Refuse a pattern whose numbers would collide, or could not be a file's name.

    Raises:
        InvoiceError: Says what was expected.
    """
    try:
        pieces = list(Formatter().parse(pattern))
    except ValueError as error:
        raise _wrong(pattern, str(error)) from error
    names = [name for _, name, _, _ in pieces if name is not None]
    for text, name, form, conversion in pieces:
        if not _TEXT.fullmatch(text):
            raise _wrong(pattern, "letters, digits, dots and dashes only; the number is also a file's name")
        if name not in (None, "year", "month", "number") or conversion:
            raise _wrong(pattern, "only {year}, {month} and {number:06d} are filled in")
        if not _WIDTH.fullmatch(form or "") or (form and name != "number"):
            raise _wrong(pattern, "a width is written {number:06d}")
    if names.count("number") != 1:
        raise _wrong(pattern, "{number} must be there once")
    if "month" in names and "year" not in names:
        raise _wrong(pattern, "with {month} comes {year}, or next year's numbers are this year's")
    if pattern.startswith((".", "-")):
        raise _wrong(pattern, "it begins with a letter or a digit")


def series_of(pattern: str, issued_on: date) -> str:
    """Return the series that a date's invoices are counted in: the pattern with its dates filled in.

    >>> series_of("NIM-{year}-{number:06d}", date(2026, 11, 1))
    'NIM-2026-{number:06d}'
    """
    return pattern.replace("{year}", f"{issued_on.year:04d}").replace("{month}", f"{issued_on.month:02d}")


def format_number(series: str, number: int) -> str:
    """Return the number as it is printed.

    >>> format_number("NIM-2026-{number:06d}", 41)
    'NIM-2026-000041'
    """
    return series.format(number=number)


def _wrong(pattern: str, why: str) -> InvoiceError:
    return InvoiceError(f'numbers: expected a pattern such as "NIM-{{year}}-{{number:06d}}", got "{pattern}": {why}')
