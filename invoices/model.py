"""What an invoice is: a frozen value that holds its own copy of everything it says, and its canonical JSON.

Invoice
├── seller, buyer: Party          as they were on the day
├── lines: InvoiceLine            quantity, price and net as shown; nets are rounded, once
│   ├── tiers: LineTier           where a graduated net comes from; the shown parts add up to it
│   └── usage: SubjectUsage       which tenants, from when to when, how many events
├── taxes: TaxLine                one for each (category, rate), on the sum of the shown nets
└── cut_off: CutOff               up to which booking, and where in the log that is
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

import msgspec

from tallyman.errors import InvoiceError

InvoiceState = Literal["draft", "final", "void"]
LineKind = Literal["usage", "fee", "minimum"]
FORMAT = "tallyman.invoice/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """The seller or the buyer, as printed."""

    party: str
    name: str
    address: tuple[str, ...]
    country: str
    vat_id: str = ""
    registration: str = ""
    email: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectUsage:
    """What one tenant used of a line, `[start, end)`, exact, in the meter's own unit."""

    subject: str
    start: datetime
    end: datetime
    quantity: Decimal
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTier:
    """One tier of a graduated line.

    Attributes:
        above: Lower bound, exclusive, in priced units.
        up_to: Upper bound, inclusive, in priced units; None when open.
        quantity: What lies inside it, in the meter's own unit.
        net: Its part of the line's net; the parts of a line add up to it.
    """

    above: Decimal
    up_to: Decimal | None
    quantity: Decimal
    price: Decimal
    flat: Decimal
    net: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """One line.

    Attributes:
        meter: None for fees and the minimum.
        meter_unit: What `quantity` is counted in.
        per: How many of those make one priced unit.
        unit: What the priced unit is called.
        quantity: Exact, in the meter's own unit; 1 for fees and the minimum.
        price: Of one priced unit; None where tiers say it.
        where: The part of the meter that the charge prices.
        net: Rounded, as printed.
    """

    line: int
    kind: LineKind
    charge: str
    name: str
    net: Decimal
    tax_category: str
    tax_rate: Decimal
    quantity: Decimal = Decimal(1)
    price: Decimal | None = None
    per: Decimal = Decimal(1)
    unit: str = ""
    meter: str | None = None
    meter_unit: str = ""
    where: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    tiers: tuple[LineTier, ...] = ()
    usage: tuple[SubjectUsage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxLine:
    """The tax of all lines of one category and rate; `note` is what the law wants said where none is charged."""

    category: str
    rate: Decimal
    taxable: Decimal
    tax: Decimal
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in the log: everything before `offset` is counted."""

    topic_id: str
    partition: int
    offset: int
    clock_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOff:
    """Up to where usage was counted: a booking, and where each partition's log stood when it was sealed.

    A preview counts beyond its booking (`sealed` is False) and may show less or more tomorrow.
    """

    booking: int
    sealed: bool
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """An invoice of one account, one period and one currency.

    Attributes:
        month: The month that its period begins in, "2026-10"; with account and kind it is its identity.
        start: First instant of the period.
        end: First instant that is no longer in it.
        plan_digest: SHA-256 of the plan that priced it.
        number: None until it is final.
    """

    format: str = FORMAT
    kind: Literal["usage"] = "usage"
    state: InvoiceState = "draft"
    number: str | None = None
    issued_on: date | None = None
    due_on: date | None = None
    entity: str
    account: str
    seller: Party
    buyer: Party
    reference: str
    payment: tuple[str, ...]
    payment_days: int
    tax_name: str
    locale: str
    plan: str
    plan_name: str
    plan_digest: str
    currency: str
    month: str
    zone: str
    start: datetime
    end: datetime
    first_day: date
    last_day: date
    lines: tuple[InvoiceLine, ...]
    taxes: tuple[TaxLine, ...]
    net: Decimal
    tax: Decimal
    gross: Decimal
    cut_off: CutOff


def finalise_invoice(draft: Invoice, number: str, issued_on: date) -> Invoice:
    """Return a draft as the final invoice of this number and day.

    Raises:
        InvoiceError: It is no draft, or counts usage that is not sealed.
    """
    if draft.state != "draft":
        raise InvoiceError(f"invoice {draft.number}: expected a draft, got a {draft.state} one: it never changes")
    if not draft.cut_off.sealed:
        raise InvoiceError(
            f"account {draft.account}, {draft.month}: a preview cannot become final; run the month again"
        )
    due_on = issued_on + timedelta(days=draft.payment_days)
    return replace(draft, state="final", number=number, issued_on=issued_on, due_on=due_on)


def encode_invoice(invoice: Invoice) -> bytes:
    """Write an invoice as canonical JSON: sorted keys, no spaces, decimals as plain texts, UTF-8, one line.

    Equal invoices have equal bytes.
    """
    text = json.dumps(_plainly(invoice), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def decode_invoice(body: bytes) -> Invoice:
    """Read what `encode_invoice` wrote.

    Raises:
        InvoiceError: It is no invoice of this format.
    """
    try:
        invoice = msgspec.json.decode(body, type=Invoice)
    except msgspec.MsgspecError as error:
        raise InvoiceError(f"stored invoice: expected {FORMAT}, got what does not read: {error}") from error
    if invoice.format != FORMAT:
        raise InvoiceError(f'stored invoice {invoice.number}: expected {FORMAT}, got "{invoice.format}"')
    return invoice


def _plainly(value: Any) -> Any:
    """Return the JSON of a value; what is not listed here, a float above all, is refused."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plainly(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [_plainly(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plainly(item) for key, item in value.items()}
    raise TypeError(f"an invoice holds no {type(value).__name__}: {value!r}")
