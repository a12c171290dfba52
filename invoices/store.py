"""Final invoices in the control store: numbered in the transaction that makes them final, and never changed again.

    number_series       entity, series -> the last number given
    invoices            one row for each final invoice: its canonical JSON, byte for byte
    invoice_documents   what was rendered from it first; a later template or library does not change it

One account has one invoice for a month and kind, whoever runs the batch, how often and how many at once.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa

from invoices.model import Invoice, decode_invoice, encode_invoice, finalise_invoice
from invoices.number import format_number, series_of
from tallyman import generations
from tallyman.control import migrate, read, write
from tallyman.errors import InvoiceError
from tallyman.money import Money

_metadata = sa.MetaData()
_series = sa.Table(
    "number_series",
    _metadata,
    sa.Column("entity", sa.String, primary_key=True),
    sa.Column("series", sa.String, primary_key=True),
    sa.Column("last", sa.BigInteger, nullable=False),
)
_invoices = sa.Table(
    "invoices",
    _metadata,
    sa.Column("entity", sa.String, primary_key=True),
    sa.Column("account", sa.String, primary_key=True),
    sa.Column("month", sa.String, primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("series", sa.String, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("number", sa.String, nullable=False),
    sa.Column("issued_on", sa.String, nullable=False),
    sa.Column("currency", sa.String, nullable=False),
    sa.Column("gross", sa.String, nullable=False),
    sa.Column("booking", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("entity", "series", "sequence"),
    sa.UniqueConstraint("entity", "number"),
)
_documents = sa.Table(
    "invoice_documents",
    _metadata,
    sa.Column("entity", sa.String, primary_key=True),
    sa.Column("number", sa.String, primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("packed", sa.LargeBinary, nullable=False),
)


@dataclass(frozen=True, slots=True)
class StoredInvoice:
    """A final invoice and its canonical JSON as stored; `is_new` when this call made it final."""

    invoice: Invoice
    body: bytes
    is_new: bool = False


def prepare(engine: sa.Engine) -> None:
    """Make the tables of this module, once."""
    migrate(engine, "invoices", [_metadata.create_all, _forbid_changes])


def find_invoice(engine: sa.Engine, entity: str, account: str, month: str, kind: str = "usage") -> StoredInvoice | None:
    """Return the final invoice of an account's month, or None."""
    with read(engine) as connection:
        return _find(connection, entity, account, month, kind)


def find_final(engine: sa.Engine, entity: str, month: str, kind: str = "usage") -> dict[str, tuple[str, Money]]:
    """Return account -> (number, gross amount) of what is final of a month; makes nothing, not even the tables."""
    if not sa.inspect(engine).has_table(_invoices.name):
        return {}
    c = _invoices.c
    same = (c.entity == entity, c.month == month, c.kind == kind)
    with read(engine) as connection:
        rows = connection.execute(sa.select(c.account, c.number, c.gross, c.currency).where(*same))
        return {row.account: (row.number, Money(Decimal(row.gross), row.currency)) for row in rows}


def read_overlapping(connection: sa.Connection, start: datetime, end: datetime) -> Iterator[Invoice]:
    """Yield the final invoices whose period overlaps `[start, end)`, by month and number."""
    # A period begins in the month that it is named after, or where its zone is ahead, some hours earlier.
    earliest, latest = (start - timedelta(days=62)).strftime("%Y-%m"), (end + timedelta(days=1)).strftime("%Y-%m")
    wanted = sa.select(_invoices.c.number, _invoices.c.body, _invoices.c.digest).where(
        _invoices.c.month >= earliest, _invoices.c.month <= latest
    )
    for number, body, digest in connection.execute(wanted.order_by(_invoices.c.month, _invoices.c.number)):
        _check_digest(f"invoice {number}", body, digest)
        invoice = decode_invoice(body)
        if invoice.start < end and start < invoice.end:
            yield invoice


def count_final(connection: sa.Connection) -> int:
    """Return how many invoices are final."""
    return int(connection.execute(sa.select(sa.func.count()).select_from(_invoices)).scalar() or 0)


def finalise(
    engine: sa.Engine, draft: Invoice, pattern: str, issued_on: date, switched: int | None = None
) -> StoredInvoice:
    """Make a draft final under the next number of its series, or return the invoice that the month has already.

    Args:
        pattern: The entity's number pattern.
        switched: How often the list of rebuilds had been changed that its usage was read by; None: by none.

    Raises:
        InvoiceError: The draft cannot become final; no number was used up.
        StoreError: The store did not answer; the same call may be made again.
    """
    series = series_of(pattern, issued_on)
    with write(engine) as connection:
        known = _find(connection, draft.entity, draft.account, draft.month, draft.kind)
        if known is not None:
            return known
        if switched is not None and generations.listed_in(connection).switched != switched:
            raise InvoiceError(
                f"account {draft.account}: a rebuild was put in force or taken back while this run read usage; nothing "
                "was made final of it. Run it again"
            )
        sequence = _next_number(connection, draft.entity, series)
        final = finalise_invoice(draft, format_number(series, sequence), issued_on)
        body = encode_invoice(final)
        row = {
            "entity": final.entity,
            "account": final.account,
            "month": final.month,
            "kind": final.kind,
            "series": series,
            "sequence": sequence,
            "number": final.number,
            "issued_on": issued_on.isoformat(),
            "currency": final.currency,
            "gross": f"{final.gross:f}",
            "booking": final.cut_off.booking,
            "digest": hashlib.sha256(body).hexdigest(),
            "body": body,
        }
        connection.execute(sa.insert(_invoices).values(row))
    return StoredInvoice(final, body, is_new=True)


def keep_document(engine: sa.Engine, invoice: Invoice, kind: str, render: Callable[[], bytes]) -> bytes:
    """Return an invoice's document as it was rendered first; render and store it when it never was.

    Args:
        kind: "html".
        render: Called only when nothing is stored, outside of any transaction.
    """
    with read(engine) as connection:
        known = _find_document(connection, invoice, kind)
    if known is not None:
        return known
    rendered = render()
    row = {
        "entity": invoice.entity,
        "number": invoice.number,
        "kind": kind,
        "digest": hashlib.sha256(rendered).hexdigest(),
        "packed": zlib.compress(rendered),
    }
    with write(engine) as connection:
        known = _find_document(connection, invoice, kind)  # another run may have been faster: the first one stays
        if known is not None:
            return known
        connection.execute(sa.insert(_documents).values(row))
    return rendered


def list_numbers(engine: sa.Engine, entity: str) -> list[str]:
    """Return all numbers that an entity has given, in order of series and sequence."""
    query = sa.select(_invoices.c.number).where(_invoices.c.entity == entity)
    with read(engine) as connection:
        return list(connection.execute(query.order_by(_invoices.c.series, _invoices.c.sequence)).scalars())


def _find(connection: sa.Connection, entity: str, account: str, month: str, kind: str) -> StoredInvoice | None:
    c = _invoices.c
    same = (c.entity == entity, c.account == account, c.month == month, c.kind == kind)
    row = connection.execute(sa.select(c.number, c.digest, c.body).where(*same)).one_or_none()
    if row is None:
        return None
    _check_digest(f"invoice {row.number}", row.body, row.digest)
    return StoredInvoice(decode_invoice(row.body), row.body)


def _find_document(connection: sa.Connection, invoice: Invoice, kind: str) -> bytes | None:
    c = _documents.c
    same = (c.entity == invoice.entity, c.number == invoice.number, c.kind == kind)
    row = connection.execute(sa.select(c.digest, c.packed).where(*same)).one_or_none()
    if row is None:
        return None
    document = zlib.decompress(row.packed)
    _check_digest(f"invoice {invoice.number}, {kind}", document, row.digest)
    return document


def _check_digest(what: str, body: bytes, digest: str) -> None:
    if hashlib.sha256(body).hexdigest() != digest:
        raise InvoiceError(
            f"{what}: expected the bytes of SHA-256 {digest}, got others: the control store was changed by hand; "
            "restore it from a backup"
        )


def _next_number(connection: sa.Connection, entity: str, series: str) -> int:
    # Writers take turns (tallyman.control.write), so what is read here stays true until the commit,
    # and a rollback gives the number back: no gap, no duplicate.
    same = (_series.c.entity == entity, _series.c.series == series)
    last = connection.execute(sa.select(_series.c.last).where(*same)).scalar()
    if last is None:
        connection.execute(sa.insert(_series).values(entity=entity, series=series, last=1))
        return 1
    connection.execute(sa.update(_series).where(*same).values(last=last + 1))
    return int(last) + 1


def _forbid_changes(connection: sa.Connection) -> None:
    """Let the store itself refuse to change or delete what is final."""
    for table in ("invoices", "invoice_documents"):
        sentence = f"{table}: a final invoice never changes; write a credit note"
        if connection.dialect.name == "postgresql":
            name = f"{table}_are_final"
            connection.exec_driver_sql(
                f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN RAISE EXCEPTION '{sentence}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
            )
            connection.exec_driver_sql(
                f"CREATE TRIGGER {name} BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
            )
            continue
        for change in ("UPDATE", "DELETE"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{sentence}'); END"
            )
