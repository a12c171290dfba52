"""The document says what the law wants, in the buyer's digits, and no name can do harm in it."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from invoices import render
from invoices.model import CutOff, Place, decode_invoice, encode_invoice
from invoices.render import find_locale, render_html, write_number
from rules.plan import Tax
from tallyman.errors import InvoiceError
from tests.unit.invoices.sample import NIMBUS, PLAN, USAGE, ZOE, build, final, used

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "</style></title><h1>Paid</h1>",
    "\u202egnp.exe 🧾 שלום עולם",
    "O'Brien & Søn <b>",
]


class Page(HTMLParser):
    """Collects the elements and the texts of a document, and refuses what is not closed."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(body.decode())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def page(**changes) -> Page:
    return Page(render_html(final(**changes)))


@pytest.mark.parametrize(
    "stated",
    [
        "NIM-2026-000001",  # the sequential number
        "Invoice date 2 November 2026",
        "Supplied from 1 October 2026",
        "Supplied until 31 October 2026",
        "VAT ID DE136695976",
        "Nimbus Compute GmbH Torstraße 1 10119 Berlin Germany",
        "Zoë Åström Studio Kastanienallee 77 10435 Berlin Germany",
        "Virtual CPUs 1.490 vCPU-hours 0,0125 19 % 18,63",
        "first 10.000, with a fee of 1,00 10.000 0,00004 1,40",
        "above 10.000 5.000 0,00003 0,15",
        "Total net 37,53 EUR",
        "VAT 19 % on 37,53 EUR 7,13 EUR",
        "Total due 44,66 EUR",
        "Due date 16 November 2026",
        "Your reference PO 4711",
        "where kind is public",
        "5.364.000 s ÷ 3.600 = 1.490 vCPU-hours",
        "From 2026-09-30 22:00:00 UTC up to, but not including, 2026-10-31 23:00:00 UTC",
        "745 hours",
        "Cut-off: booking 20758001",
        "offset 182044",
    ],
)
def test_the_document_states_what_was_supplied_by_whom_to_whom_and_how_it_was_counted(stated):
    assert stated in page().text


def test_reverse_charge_is_said_and_both_vat_ids_are_shown():
    lyon = replace(ZOE, country="FR", vat_id="FR40303265045", tax=Tax("AE"))
    text = page(account=lyon).text
    assert "Reverse charge" in text
    assert "VAT ID FR40303265045" in text
    assert "VAT 0 % on 37,53 EUR (AE) 0,00 EUR" in text


def test_a_draft_says_that_it_is_none():
    text = Page(render_html(build(cut_off=CutOff(booking=20_757_000, sealed=False)))).text
    assert "This is not an invoice" in text
    assert "no number yet" in text
    assert "Please pay" not in text
    assert "Preview: counts what has arrived so far, sealed up to booking 20757000" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_text(name):
    account = replace(ZOE, name=name, address=(name,), reference=name, account=name)
    entity = replace(NIMBUS, name=name, registration=name, email=name, payment=(name,))
    charges = tuple(
        replace(charge, name=name, unit=name, where={"kind": (name, None)} if charge.where else {})
        for charge in PLAN.charges
    )
    plan = replace(PLAN, name=name, charges=charges)
    usage = {charge: (used("7", subject=name),) for charge in USAGE}
    hostile = page(account=account, entity=entity, plan=plan, usage=usage)
    assert hostile.tags == page().tags
    assert {key for key, _ in hostile.attributes} == {key for key, _ in page().attributes}
    assert name in hostile.texts


def test_every_name_is_isolated_so_that_its_direction_ends_with_it():
    name = "\u202egnp.exe שלום"
    body = render_html(final(account=replace(ZOE, name=name))).decode()
    assert f"<bdi>{name}</bdi>" in body


def test_the_document_loads_nothing():
    body = render_html(final()).decode()
    assert "default-src 'none'" in body
    assert not re.search(r"https?:|url\(|@import|<link|<img|<script|src=", body)


def test_the_same_invoice_gives_the_same_bytes_also_after_it_was_stored():
    invoice = final()
    assert render_html(invoice) == render_html(decode_invoice(encode_invoice(invoice)))


def test_a_quantity_that_is_shown_shorter_says_so():
    text = page(usage={"vcpu": (used("1"),)}).text
    assert "Virtual CPUs ≈ 0,000278 vCPU-hours" in text
    assert "1 s ÷ 3.600 ≈ 0,000278 vCPU-hours" in text


@pytest.mark.parametrize(
    ("value", "locale", "digits", "shown"),
    [
        ("1234567890123456.79", "de_DE", 2, "1.234.567.890.123.456,79"),
        ("2.68", "en", 2, "2.68"),
        ("1234.57", "fr_FR", 2, "1\u202f234,57"),
        ("1234567.5", "en_IN", 2, "12,34,567.50"),
        ("1234.5", "ar_EG", 2, "1,234.50"),
        ("-14.09", "sv_SE", 2, "\u221214,09"),
        ("1000", "ja_JP", 0, "1,000"),
        ("0.000000000001", "en", None, "0.000000000001"),
        ("123456789012345678901234567890.5", "en", None, "123,456,789,012,345,678,901,234,567,890.5"),
        ("745.000", "en", None, "745"),
    ],
)
def test_numbers_are_written_as_the_buyer_reads_them(value, locale, digits, shown):
    assert write_number(Decimal(value), find_locale(locale), digits) == shown


def test_formatting_never_rounds():
    with pytest.raises(InvoiceError, match=r"at most 2 digits behind the point, got 1234\.565"):
        write_number(Decimal("1234.565"), find_locale("en"), 2)


def test_a_float_never_reaches_the_paper():
    with pytest.raises(TypeError, match="a float reached the template"):
        write_number(2.675, find_locale("en"), 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a float reached the template"):
        render._environment().from_string("{{ cents / 100 }}").render(cents=268)


def test_a_name_that_is_missing_in_the_template_is_an_error_and_not_a_blank():
    with pytest.raises(UndefinedError):
        render._environment().from_string("{{ invoice.grand_total }}").render(invoice=final())


def test_an_unknown_locale_is_refused():
    with pytest.raises(InvoiceError, match='got "xx_YY"'):
        render_html(final(account=replace(ZOE, locale="xx_YY")))


def test_a_booking_before_the_first_reading_names_no_moment() -> None:
    """The log clock is 0 then, which is not 1970 for a customer; and a table without rows is not shown."""
    place = Place(topic_id="pX2uQk8LQ0m3b1Zc7v6s9A", partition=0, offset=0, clock_ms=0)
    cut_off = CutOff(booking=20_757_000, sealed=True, places=(place,))
    plan = replace(PLAN, charges=(), minimum=Decimal("25.00"))
    text = Page(render_html(build(usage={}, plan=plan, cut_off=cut_off))).text
    assert "offset 0, nothing received yet" in text
    assert "1970-01-01" not in text
    assert "Measured, exact" not in text
