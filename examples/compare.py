"""Hold what ClickHouse and the invoices say against what the generator worked out on its own: to the last digit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import msgspec
from clickhouse_driver import Client

from examples.report.story import UsageLine
from invoices.model import Invoice
from tallyman.aggregates import read_usage
from tallyman.meter import Meter, decode_dimensions, encode_dimensions
from tallyman.usage import UsageQuery

AROUND = timedelta(days=2)  # the generated usage reaches past the month on both sides


class ExpectedTotal(msgspec.Struct, frozen=True):
    """One total as the generator has it; see `examples/cloud/generate.py`."""

    meter: str
    subject: str
    dimensions: str
    value: Decimal
    events: int
    month: Decimal
    month_late: Decimal


class Expected(msgspec.Struct, frozen=True):
    """What `expected.json` holds."""

    month: str
    seed: int
    counts: dict[str, int]
    totals: tuple[ExpectedTotal, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure that is not what it must be."""

    place: str
    expected: str
    got: str


def read_expected(path: Path) -> Expected:
    """Read the generator's sums."""
    return msgspec.json.decode(path.read_bytes(), type=Expected)


def read_lines(
    client: Client, meters: Sequence[Meter], expected: Expected, tenants: Mapping[str, str]
) -> list[UsageLine]:
    """Read every total of the generated meters from ClickHouse, beside what it must be (0 for one that must not be).

    Args:
        tenants: Subject -> name.
    """
    start, end = month_bounds(expected.month)
    must = {(total.meter, total.subject, total.dimensions): total for total in expected.totals}
    lines = []
    for meter in meters:
        if not any(total.meter == meter.meter for total in expected.totals):
            continue
        query = UsageQuery(
            meter=meter.meter,
            start=start - AROUND,
            end=end + AROUND,
            subjects=tuple(tenants),
            group_by=("subject", *meter.dimensions),
        )
        for row in read_usage(client, query, meters=meters).rows:
            groups = dict(row.groups)
            subject = groups.pop("subject") or ""
            dimensions = encode_dimensions(groups)
            total = must.pop((meter.meter, subject, dimensions), None)
            lines.append(
                UsageLine(
                    tenant=tenants.get(subject, subject),
                    subject=subject,
                    meter=meter.meter,
                    dimensions=dimensions,
                    unit=meter.unit,
                    value=row.value,
                    expected=total.value if total else Decimal(0),
                    events=row.events,
                )
            )
    lines += [_missing(total, tenants) for total in must.values()]
    return sorted(lines, key=lambda line: (line.tenant, line.meter, line.dimensions))


def _missing(total: ExpectedTotal, tenants: Mapping[str, str]) -> UsageLine:
    return UsageLine(
        tenant=tenants.get(total.subject, total.subject),
        subject=total.subject,
        meter=total.meter,
        dimensions=total.dimensions,
        unit="",
        value=Decimal(0),
        expected=total.value,
        events=0,
    )


def find_differences(lines: Iterable[UsageLine], expected: Expected) -> list[Difference]:
    """Return every total, and every count of events, that is not the generator's."""
    events = {(total.meter, total.subject, total.dimensions): total.events for total in expected.totals}
    found = []
    for line in lines:
        place = f"{line.meter} of {line.subject} {line.dimensions}"
        if line.value != line.expected:
            found.append(Difference(place, f"{line.expected:f}", f"{line.value:f}"))
        count = events.get((line.meter, line.subject, line.dimensions), 0)
        if line.events != count:
            found.append(Difference(f"events in {place}", str(count), str(line.events)))
    return found


def find_invoice_differences(
    invoices: Iterable[Invoice], expected: Expected, subjects_of: Mapping[str, Collection[str]]
) -> list[Difference]:
    """Return every line whose quantity is not the generator's sum for the local month.

    What came after the close is not on these invoices: its booking is not theirs.

    Args:
        subjects_of: Account -> the subjects that it pays for.
    """
    found = []
    for invoice in invoices:
        subjects = subjects_of[invoice.account]
        for line in invoice.lines:
            if line.meter is None:
                continue
            must = sum(
                (
                    total.month - total.month_late
                    for total in expected.totals
                    if total.meter == line.meter and total.subject in subjects and _prices(line.where, total.dimensions)
                ),
                Decimal(0),
            )
            if line.quantity != must:
                place = f"invoice {invoice.number}, line {line.line} ({line.charge})"
                found.append(Difference(place, f"{must:f}", f"{line.quantity:f}"))
    return found


def _prices(where: Mapping[str, tuple[str | None, ...]], dimensions: str) -> bool:
    values = decode_dimensions(dimensions)
    return all(values.get(name) in wanted for name, wanted in where.items())


def month_bounds(month: str) -> tuple[datetime, datetime]:
    """Return a month's first and last instant in UTC; tenants' own months lie within a day of it."""
    year, number = (int(part) for part in month.split("-"))
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return datetime(year, number, 1, tzinfo=UTC), following
