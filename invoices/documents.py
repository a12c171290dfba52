"""The files of an issued invoice, `<number>.html` and `<number>.json`: written after the commit, and never changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from invoices.render import render_html
from invoices.store import StoredInvoice, keep_document
from tallyman.errors import InvoiceError
from tallyman.money import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedInvoice:
    """An invoice that is final, and where its documents are."""

    account: str
    name: str
    number: str
    gross: Money
    html: Path
    json: Path


def write_documents(engine: sa.Engine, stored: StoredInvoice, folder: Path) -> IssuedInvoice:
    """Write an invoice's HTML and JSON where they are missing; a file that is there already is never changed.

    Raises:
        InvoiceError: A file of this name holds something else.
    """
    invoice = stored.invoice
    html = keep_document(engine, invoice, "html", partial(render_html, invoice))
    number = str(invoice.number)
    issued = IssuedInvoice(
        account=invoice.account,
        name=invoice.buyer.name,
        number=number,
        gross=Money(invoice.gross, invoice.currency),
        html=folder / f"{number}.html",
        json=folder / f"{number}.json",
    )
    write_once(issued.html, html)
    write_once(issued.json, stored.body)
    return issued


def write_once(path: Path, body: bytes) -> None:
    """Write a file as a whole or not at all; leave it alone when it is there.

    Raises:
        InvoiceError: It is there with other bytes: somebody changed it, or it belongs to another control store.
    """
    try:
        if path.read_bytes() == body:
            return
    except FileNotFoundError:
        pass
    else:
        raise InvoiceError(f"{path}: expected the document as issued, got another one; move it away and run again")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
