"""Which usage invoices say already: what is final is not changed behind their backs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from invoices import store
from tallyman.control import read


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoiced:
    """Usage of a meter that a final invoice has a line for."""

    number: str
    account: str
    meter: str
    start: datetime
    end: datetime


def find_invoiced(engine: sa.Engine, meters: Collection[str], start: datetime, end: datetime) -> Invoiced | None:
    """Return a final invoice that says something of one of these meters in `[start, end)`, the earliest."""
    store.prepare(engine)
    with read(engine) as connection:
        return find_invoiced_in(connection, meters, start, end)


def find_invoiced_in(
    connection: sa.Connection, meters: Collection[str], start: datetime, end: datetime
) -> Invoiced | None:
    """Do the same inside a transaction."""
    for invoice in store.read_overlapping(connection, start, end):
        for line in invoice.lines:
            if line.meter in meters:
                return Invoiced(number=invoice.number or "", account=invoice.account, meter=line.meter or "",
                                start=invoice.start, end=invoice.end)  # fmt: skip
    return None


def count_final(connection: sa.Connection) -> int:
    """Return how many invoices are final: while it is the same number, they are the same ones."""
    return store.count_final(connection)
