"""What commands print: results on standard output (tables, JSON), talk and progress on standard error."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import click

from tallyman.terminal import one_line, printable, printable_json

_GAP = "  "
_NARROWEST_TEXT, _WIDEST_TEXT = 12, 1000


def say(text: str) -> None:
    """Talk to the person who typed the command."""
    click.echo(printable(text), err=True)


def result(text: str = "") -> None:
    """Print a line of the result."""
    click.echo(printable(text))


def print_json(value: object) -> None:
    """Print a result for machines: one JSON value; numbers that must stay exact are texts."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=_json)
    click.echo(printable_json(text))


def _json(value: object) -> object:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)


def print_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a result for spreadsheets; a missing value is an empty field."""
    show: Callable[[object], object] = (lambda value: value) if terminal_width() is None else _shown
    for row in (header, *rows):
        sys.stdout.write(_csv_line("" if value is None else show(value) for value in row))


def _csv_line(row: Iterable[object]) -> str:
    """Return a row with its end of line.

    Readers begin a new row at a carriage return, too, which Python's writer quotes only if its own end of line has one:
    no tenant's name may tear its row in two.

    >>> _csv_line(["zo\\rë", 1])
    '"zo\\rë",1\\n'
    """
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(row)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _shown(value: object) -> object:
    return one_line(value) if isinstance(value, str) else value


def plain(value: Decimal) -> str:
    """Write a decimal without an exponent and without zeros that say nothing.

    >>> plain(Decimal("1.500E+3")), plain(Decimal("0.10"))
    ('1500', '0.1')
    """
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("", "-0") else text


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table. Decimals line up at the point and are never cut; texts are folded to fit the terminal.

    Very long ones are folded in a file too, since one of them makes every row as wide.
    """
    for line in table_lines(header, rows, terminal_width()):
        click.echo(line)


def terminal_width() -> int | None:
    """Return the columns of the terminal; None when the output goes elsewhere and may be as wide as it wants."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None


def table_lines(header: Sequence[str], rows: Sequence[Sequence[object]], width: int | None) -> list[str]:
    """Lay out a table; None in a cell is shown as a dash."""
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    columns = [_column([row[i] for row in rows], numeric[i]) for i in range(len(header))]
    widths = [max(map(cells, [name, *column])) for name, column in zip(header, columns, strict=True)]
    _fit(widths, numeric, [cells(name) for name in header], width)
    lines = _row(header, widths, numeric)
    lines.append(_GAP.join("─" * size for size in widths))
    for row in zip(*columns, strict=True):
        lines += _row(row, widths, numeric)
    return [line.rstrip() for line in lines]


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | Decimal) and not isinstance(value, bool))


def _column(values: Sequence[object], numeric: bool) -> list[str]:
    texts = [_text(value) for value in values]
    if not numeric:
        return texts
    fraction = max((len(text.partition(".")[2]) + 1 for text in texts if "." in text), default=0)
    return [text + " " * (fraction - (len(text) - len(text.partition(".")[0]))) for text in texts]


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Decimal):
        return plain(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def _fit(widths: list[int], numeric: Sequence[bool], least: Sequence[int], width: int | None) -> None:
    """Narrow the widest text columns until the table fits; numbers keep their width."""
    for i, size in enumerate(widths):
        if not numeric[i]:
            widths[i] = min(size, max(width or _WIDEST_TEXT, _NARROWEST_TEXT, least[i]))
    while width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        shrinkable = [i for i, size in enumerate(widths) if not numeric[i] and size > max(_NARROWEST_TEXT, least[i])]
        if not shrinkable:
            return
        widths[max(shrinkable, key=lambda i: widths[i])] -= 1


def _row(values: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> list[str]:
    folded = [_fold(value, size) for value, size in zip(values, widths, strict=True)]
    lines = []
    for n in range(max(map(len, folded))):
        parts = []
        for texts, size, right in zip(folded, widths, numeric, strict=True):
            text = texts[n] if n < len(texts) else ""
            padding = " " * (size - cells(text))
            parts.append(padding + text if right else text + padding)
        lines.append(_GAP.join(parts))
    return lines


def _fold(text: str, size: int) -> list[str]:
    lines, start, taken = [], 0, 0
    for end, c in enumerate(text):
        if taken + cells(c) > size:
            cut = text.rfind(" ", start, end) + 1
            lines.append(text[start:cut].rstrip() if cut else text[start:end])
            start = cut or end
            taken = cells(text[start:end])
        taken += cells(c)
    return [*lines, text[start:]]


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for wide letters, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def count(number: int, what: str) -> str:
    """Write a number of things.

    >>> count(1, "event"), count(1200, "event")
    ('1 event', '1,200 events')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def size(octets: int) -> str:
    """Write a number of bytes for people.

    >>> size(11_543), size(250_000_000)
    ('11.5 kB', '250.0 MB')
    """
    if octets < 1000:
        return count(octets, "byte")
    unit, by = ("kB", 1e3) if octets < 1e6 else ("MB", 1e6) if octets < 1e9 else ("GB", 1e9)
    return f"{octets / by:,.1f} {unit}"


def progress_line(what: str, every_s: float = 0.2) -> Callable[..., None]:
    """Return a function that shows how something goes, on one line of the terminal; silent when nobody looks."""
    last = 0.0

    def show(text: str, *, done: bool = False) -> None:
        nonlocal last
        if not sys.stderr.isatty() or (not done and time.monotonic() - last < every_s):
            return
        last = time.monotonic()
        line = f"{what}: {text}"[: shutil.get_terminal_size((100, 24)).columns - 1]
        click.echo(f"\r\x1b[K{line}" + ("\n" if done else ""), err=True, nl=False)

    return show


def show_time(moment: datetime | None, zone: Any) -> str:
    """Write an instant for people, in a zone, with its offset."""
    if moment is None:
        return "unknown"
    local = moment.astimezone(zone)
    seconds = ":%S" if local.second or local.microsecond else ""
    offset = local.strftime("%z")
    return f"{local.strftime(f'%Y-%m-%d %H:%M{seconds}')} {offset[:3]}:{offset[3:5]}"
