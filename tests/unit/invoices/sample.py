"""A seller, two buyers, a plan and a month of usage, as the tests of invoices use them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from invoices.account import Account, AccountSubject, Entity
from invoices.build import build_invoice
from invoices.model import CutOff, Invoice, Place, SubjectUsage, finalise_invoice
from rules.plan import Charge, Plan, Tax, Tier
from tallyman.period import month_period

OCTOBER = month_period("2026-10", "Europe/Berlin")
UNITS = {"compute.vcpu": "s", "object.bytes": "byte-hours", "lb.hours": "h"}

NIMBUS = Entity(
    entity="nimbus",
    name="Nimbus Compute GmbH",
    address=("Torstraße 1", "10119 Berlin"),
    country="DE",
    vat_id="DE136695976",
    zone="Europe/Berlin",
    numbers="NIM-{year}-{number:06d}",
    registration="Amtsgericht Charlottenburg, HRB 12345 B",
    email="billing@nimbus.example",
    payment=("IBAN DE02 1203 0000 0000 2020 51", "BIC BYLADEM1001"),
)

ZOE = Account(
    account="acct-0001",
    name="Zoë Åström Studio",
    address=("Kastanienallee 77", "10435 Berlin"),
    country="DE",
    locale="de_DE",
    plan="standard",
    reference="PO 4711",
    subjects=(AccountSubject(subject="tenant-zoe", from_=date(2026, 1, 1)),),
)

PLAN = Plan(
    plan="standard",
    name="Standard cloud",
    currency="EUR",
    zone="Europe/Berlin",
    tax=Tax("S", Decimal(19)),
    minimum=Decimal("25.00"),
    charges=(
        Charge(
            charge="vcpu",
            name="Virtual CPUs",
            model="per_unit",
            meter="compute.vcpu",
            per=Decimal(3600),
            unit="vCPU-hours",
            price=Decimal("0.0125"),
        ),
        Charge(
            charge="object",
            name="Object storage",
            model="graduated",
            meter="object.bytes",
            per=Decimal(2**30),
            unit="GiB-hours",
            tiers=(
                Tier(Decimal(10000), Decimal("0.00004"), Decimal("1.00")),
                Tier(None, Decimal("0.00003")),
            ),
        ),
        Charge(
            charge="lb",
            name="Load balancers",
            model="per_unit",
            meter="lb.hours",
            price=Decimal("0.01"),
            where={"kind": ("public",)},
        ),
        Charge(charge="support", name="Business support", model="flat", price=Decimal("9.90")),
    ),
)

SEALED = CutOff(
    booking=20_758_001,
    sealed=True,
    places=(
        Place(topic_id="pX2uQk8LQ0m3b1Zc7v6s9A", partition=0, offset=182_044, clock_ms=1_793_575_212_345),
        Place(topic_id="pX2uQk8LQ0m3b1Zc7v6s9A", partition=1, offset=179_310, clock_ms=1_793_575_212_350),
    ),
)


def used(quantity: str, subject: str = "tenant-zoe", events: int = 744) -> SubjectUsage:
    return SubjectUsage(
        subject=subject, start=OCTOBER.start, end=OCTOBER.end, quantity=Decimal(quantity), events=events
    )


USAGE = {
    "vcpu": (used("5364000"),),
    "object": (used("16106127360000", events=2208),),
    "lb": (used("745"),),
}


def build(usage=USAGE, account=ZOE, plan=PLAN, cut_off=SEALED, entity=NIMBUS) -> Invoice:
    return build_invoice(account, plan, usage, OCTOBER, entity, cut_off, UNITS)


def final(number="NIM-2026-000001", **changes) -> Invoice:
    return finalise_invoice(build(**changes), number, date(2026, 11, 2))
