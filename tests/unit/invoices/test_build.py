"""An invoice adds up: lines are rounded once, tax is taken once, and every total is a sum of what is shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invoices.build import build_invoice
from invoices.model import CutOff, decode_invoice, encode_invoice, finalise_invoice
from rules.plan import Charge, Plan, Tax, Tier
from tallyman.errors import InvoiceError
from tests.unit.invoices.sample import NIMBUS, OCTOBER, PLAN, SEALED, UNITS, USAGE, ZOE, build, final, used
from tests.vectors import billing_cases

QUANTITIES = st.decimals(min_value=0, max_value=10**9, places=9).map(str)


def plan_of(*charges: Charge, currency="EUR", tax=PLAN.tax, minimum=None) -> Plan:
    return replace(PLAN, charges=charges, currency=currency, tax=tax, minimum=minimum)


def fees(*amounts: str) -> tuple[Charge, ...]:
    return tuple(
        Charge(charge=f"fee-{n}", name="Fee", model="flat", price=Decimal(amount)) for n, amount in enumerate(amounts)
    )


def test_a_month_is_rated_line_by_line_and_taxed_once():
    invoice = build()
    assert [(line.charge, str(line.net)) for line in invoice.lines] == [
        ("vcpu", "18.63"),  # 1,490 h x 0.0125 = 18.625, away from zero
        ("object", "1.55"),
        ("lb", "7.45"),
        ("support", "9.90"),
    ]
    assert (str(invoice.net), str(invoice.tax), str(invoice.gross)) == ("37.53", "7.13", "44.66")


@pytest.mark.parametrize("case", billing_cases("tax_exclusive"), ids=lambda case: case["id"])
def test_tax_is_that_of_other_billing_systems(case):
    tax = Tax("S", Decimal(case["price"]["rate_percent"][0]))
    plan = plan_of(*fees(case["usage"]["base"]), tax=tax, currency=case["price"]["currency"])
    assert str(build({}, plan=plan).tax) == case["expected_amount"]


@pytest.mark.parametrize("case", billing_cases("tax_per_category"), ids=lambda case: case["id"])
def test_tax_is_taken_on_the_sum_of_a_rate_and_not_on_each_line(case):
    plan = plan_of(*fees(*case["usage"]["lines"]), tax=Tax("S", Decimal(case["price"]["rate_percent"])))
    assert str(build({}, plan=plan).tax) == case["expected_amount"]


def test_each_rate_has_its_own_tax_line():
    book = Charge(charge="book", name="Handbook", model="flat", price=Decimal(5), tax=Tax("S", Decimal(7)))
    plan = plan_of(*fees("10.01", "0.99"), book)
    invoice = build({}, plan=plan)
    assert [(str(t.rate), str(t.taxable), str(t.tax)) for t in invoice.taxes] == [
        ("19", "11.00", "2.09"),
        ("7", "5.00", "0.35"),
    ]
    assert str(invoice.gross) == "18.44"


def test_a_buyer_under_reverse_charge_pays_no_tax_and_is_told_so():
    lyon = replace(ZOE, country="FR", vat_id="FR40303265045", tax=Tax("AE"))
    invoice = build(account=lyon)
    assert (invoice.tax, invoice.gross) == (0, invoice.net)
    assert [(tax.category, tax.note) for tax in invoice.taxes] == [("AE", "Reverse charge")]


def test_what_is_missing_to_the_minimum_is_a_line_of_its_own():
    invoice = build({"vcpu": (used("3600"),)})
    assert [(line.kind, str(line.net)) for line in invoice.lines] == [
        ("usage", "0.01"),
        ("usage", "1.00"),  # the first tier's fee, without usage
        ("fee", "9.90"),
        ("minimum", "14.09"),
    ]
    assert str(invoice.net) == "25.00"
    assert invoice.lines[-1].name == "Up to the monthly minimum"


def test_a_minimum_that_is_met_exactly_or_passed_adds_nothing():
    for spent in ("25.00", "25.01"):
        plan = plan_of(*fees(spent), minimum=Decimal("25.00"))
        assert [line.kind for line in build({}, plan=plan).lines] == ["fee"]


def test_charges_without_usage_leave_no_line():
    plan = plan_of(PLAN.charges[0], PLAN.charges[2])
    assert build({}, plan=plan).lines == ()
    assert [line.charge for line in build({"lb": (used("1"),)}, plan=plan).lines] == ["lb"]


def test_usage_of_several_tenants_is_one_line_with_each_of_them():
    plan = plan_of(PLAN.charges[0])
    invoice = build({"vcpu": (used("1800", "tenant-a"), used("1800", "tenant-b"))}, plan=plan)
    (line,) = invoice.lines
    assert (line.quantity, str(line.net)) == (3600, "0.01")
    assert [usage.subject for usage in line.usage] == ["tenant-a", "tenant-b"]


def test_the_shown_tiers_add_up_to_their_line():
    """Rounded one by one they would show 0.01 + 0.01 for a line of 0.01."""
    tiers = (Tier(Decimal(1), Decimal("0.005")), Tier(None, Decimal("0.005")))
    charge = Charge(charge="api", name="Calls", model="graduated", meter="lb.hours", tiers=tiers)
    (line,) = build({"api": (used("2"),)}, plan=plan_of(charge)).lines
    assert [str(tier.net) for tier in line.tiers] == ["0.01", "0.00"]
    assert str(line.net) == "0.01"


def test_a_currency_without_cents_has_none():
    plan = plan_of(*fees("999.4", "0.5"), currency="JPY", tax=Tax("S", Decimal("10")))
    invoice = build({}, plan=plan)
    assert [str(line.net) for line in invoice.lines] == ["999", "1"]
    assert (str(invoice.net), str(invoice.tax), str(invoice.gross)) == ("1000", "100", "1100")


def test_a_negative_month_is_refused_with_account_plan_and_charge():
    with pytest.raises(InvoiceError, match=r'account acct-0001, 2026-10, plan standard: charge "vcpu": quantity: exp'):
        build({"vcpu": (used("-1"),)})


def test_equal_invoices_have_equal_bytes_and_come_back_as_they_were():
    invoice = final()
    body = encode_invoice(invoice)
    assert decode_invoice(body) == invoice
    assert encode_invoice(decode_invoice(body)) == body
    again = final(usage={**USAGE, "lb": (used("745.000000000"),), "vcpu": (used("5.364E+6"),)})
    assert [line.quantity for line in decode_invoice(encode_invoice(again)).lines[:3]] == [5364000, 16106127360000, 745]


def test_the_json_holds_decimals_as_texts_and_no_exponents():
    charge = replace(PLAN.charges[2], price=Decimal("0.000000000001"))
    body = encode_invoice(build({"lb": (used("1E+12"),)}, plan=plan_of(charge))).decode()
    assert '"price":"0.000000000001"' in body
    assert '"quantity":"1000000000000"' in body
    assert '"net":"1.00"' in body


def test_json_that_is_no_invoice_is_refused():
    with pytest.raises(InvoiceError, match="stored invoice"):
        decode_invoice(b'{"number":1}')
    with pytest.raises(InvoiceError, match=r'got "tallyman.invoice/9"'):
        decode_invoice(encode_invoice(final()).replace(b"tallyman.invoice/1", b"tallyman.invoice/9"))


def test_a_float_cannot_be_written():
    with pytest.raises(TypeError, match="an invoice holds no float"):
        encode_invoice(replace(final(), net=1.5))  # type: ignore[arg-type]


def test_a_final_invoice_has_its_date_and_when_it_is_due():
    invoice = finalise_invoice(build(), "NIM-2026-000007", date(2026, 12, 20))
    assert (invoice.state, invoice.number) == ("final", "NIM-2026-000007")
    assert (invoice.issued_on, invoice.due_on) == (date(2026, 12, 20), date(2027, 1, 3))


def test_what_is_final_or_a_preview_cannot_become_final():
    with pytest.raises(InvoiceError, match="expected a draft, got a final one"):
        finalise_invoice(final(), "NIM-2026-000002", date(2026, 11, 2))
    with pytest.raises(InvoiceError, match="a preview cannot become final"):
        finalise_invoice(build(cut_off=CutOff(booking=1, sealed=False)), "NIM-2026-000002", date(2026, 11, 2))


def test_the_plan_that_priced_it_is_named_by_its_content():
    dearer = replace(PLAN, minimum=Decimal("26.00"))
    assert build().plan_digest == build().plan_digest != build(plan=dearer).plan_digest


@settings(deadline=None)
@given(QUANTITIES, QUANTITIES, QUANTITIES, st.sampled_from(["EUR", "JPY", "KWD"]), st.booleans())
def test_an_invoice_adds_up_for_any_usage(vcpu, stored, lb, currency, split):
    plan = replace(PLAN, currency=currency, minimum=Decimal(30))
    parts = (used(stored), used(vcpu, "tenant-b")) if split else (used(stored),)
    invoice = build_invoice(
        ZOE, plan, {"vcpu": (used(vcpu),), "object": parts, "lb": (used(lb),)}, OCTOBER, NIMBUS, SEALED, UNITS
    )
    assert sum(line.net for line in invoice.lines) == invoice.net >= 30
    assert sum(tax.taxable for tax in invoice.taxes) == invoice.net
    assert sum(tax.tax for tax in invoice.taxes) == invoice.tax
    assert invoice.net + invoice.tax == invoice.gross
    for line in invoice.lines:
        assert not line.tiers or sum(tier.net for tier in line.tiers) == line.net
        assert not line.usage or sum(usage.quantity for usage in line.usage) == line.quantity
    assert decode_invoice(encode_invoice(invoice)) == invoice
