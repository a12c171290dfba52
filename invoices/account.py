"""Who sells and who buys. Pure values that refuse to be wrong; `invoices.load` reads them from files."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import date, datetime

from invoices.number import check_pattern
from rules.plan import Tax
from tallyman.errors import InvoiceError
from tallyman.period import FIRST_YEAR, LAST_YEAR, find_zone, start_of_day

_FIRST_DAY, _LAST_DAY = date(FIRST_YEAR, 1, 1), date(LAST_YEAR + 1, 2, 1)  # no month that can be invoiced lies beyond
_COUNTRY = re.compile(r"[A-Z]{2}")
_VAT_ID = re.compile(r"[A-Z]{2}[0-9A-Z+*]{2,13}")
_LOCALE = re.compile(r"[a-z]{2,3}(_[A-Z][a-z]{3})?(_[A-Z]{2})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSubject:
    """A tenant that an account pays for, `[from, to)` in local dates of the plan's zone."""

    subject: str
    from_: date
    to: date | None = None

    def __post_init__(self) -> None:
        if not self.subject:
            raise InvoiceError("subject: expected a tenant, got an empty text")
        if self.to is not None and self.to <= self.from_:
            raise InvoiceError(
                f"to: expected a date after {self.from_}, got {self.to}; the day of `to` is not paid for"
            )

    def instants(self, zone: str) -> tuple[datetime, datetime]:
        """Return the first instant that is paid for and the first that is not, UTC, as far as months are invoiced."""
        begin, end = (min(max(day, _FIRST_DAY), _LAST_DAY) for day in (self.from_, self.to or _LAST_DAY))
        return start_of_day(begin, zone), start_of_day(end, zone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who pays.

    Attributes:
        name: Any Unicode, printed as it is.
        locale: How numbers are written for this buyer.
        reference: What the buyer wants to read on the document, such as an order number.
        tax: Where the buyer is taxed otherwise than the plan says (reverse charge).
    """

    account: str
    name: str
    address: tuple[str, ...]
    country: str
    plan: str
    subjects: tuple[AccountSubject, ...]
    vat_id: str = ""
    locale: str = "en"
    reference: str = ""
    tax: Tax | None = None

    def __post_init__(self) -> None:
        check_party(self.name, self.address, self.country, self.vat_id)
        check_text("account", self.account)
        check_text("reference", self.reference, needed=False)
        if not _LOCALE.fullmatch(self.locale):
            raise InvoiceError(f'locale: expected one such as de_DE, got "{self.locale}"')
        if not self.subjects:
            raise InvoiceError("subjects: expected one at least, got none")
        if self.tax is not None and self.tax.category in ("AE", "K") and not self.vat_id:
            raise InvoiceError(f"vat_id: missing; tax category {self.tax.category} needs the buyer's")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """Who sells.

    Attributes:
        numbers: Pattern of the invoice numbers, such as "NIM-{year}-{number:06d}".
        zone: IANA zone in which an invoice's date is taken.
        payment_days: Days from the invoice's date until it is due.
        payment: Lines that say where to pay.
        tax_name: What tax is called where the seller is: "VAT", "GST", "Moms".
    """

    entity: str
    name: str
    address: tuple[str, ...]
    country: str
    vat_id: str
    zone: str
    numbers: str
    payment_days: int = 14
    registration: str = ""
    email: str = ""
    payment: tuple[str, ...] = ()
    tax_name: str = "VAT"

    def __post_init__(self) -> None:
        check_party(self.name, self.address, self.country, self.vat_id)
        check_text("entity", self.entity)
        check_text("tax_name", self.tax_name)
        for name, text in (("registration", self.registration), ("email", self.email)):
            check_text(name, text, needed=False)
        for line in self.payment:
            check_text("payment", line)
        check_pattern(self.numbers)
        find_zone(self.zone)
        if not 0 <= self.payment_days <= 365:
            raise InvoiceError(f"payment_days: expected 0 to 365, got {self.payment_days}")
        if not self.vat_id:
            raise InvoiceError("vat_id: missing; an invoice shows the seller's")


def check_party(name: str, address: tuple[str, ...], country: str, vat_id: str) -> None:
    """Refuse a party that an invoice could not name: the law wants the full name and address of both.

    Raises:
        InvoiceError: Names the key.
    """
    check_text("name", name)
    if not address:
        raise InvoiceError("address: expected one line at least, got none")
    for line in address:
        check_text("address", line)
    if not _COUNTRY.fullmatch(country):
        raise InvoiceError(f'country: expected two capital letters (ISO 3166) such as SE, got "{country}"')
    if vat_id and not _VAT_ID.fullmatch(vat_id):
        raise InvoiceError(
            f'vat_id: expected a country and digits without spaces such as SE556677889901, got "{vat_id}"'
        )


def check_text(key: str, text: str, needed: bool = True) -> None:
    """Refuse a text that cannot be printed: control characters, half a surrogate pair, or nothing where needed.

    Raises:
        InvoiceError: Names the key.
    """
    if needed and not text.strip():
        raise InvoiceError(f"{key}: expected a text, got nothing")
    for letter in text:
        if unicodedata.category(letter) in ("Cc", "Cs"):
            raise InvoiceError(f"{key}: expected printable text, got the character U+{ord(letter):04X}")
