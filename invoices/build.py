"""From an account, its plan and its usage to a draft invoice. Pure; the one place where amounts are rounded.

Each line's net is rounded once, half away from zero, to the currency's digits; tax is taken once for each
(category, rate) on the sum of the rounded nets; every total is a sum of numbers that the document shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from decimal import Decimal

from invoices.account import Account, Entity
from invoices.model import CutOff, Invoice, InvoiceLine, LineTier, Party, SubjectUsage, TaxLine
from rules.plan import Charge, Plan, Tax
from rules.price import TierPart, apply_minimum, rate_charge
from tallyman.errors import InvoiceError, PriceError
from tallyman.money import Money, allocate, exact, plain, round_decimal, round_money
from tallyman.period import Period

# Charge -> what each tenant used of it. A charge without an entry was not used.
Usage = Mapping[str, Sequence[SubjectUsage]]
NOTHING = Decimal(0)


def build_invoice(
    account: Account,
    plan: Plan,
    usage: Usage,
    period: Period,
    entity: Entity,
    cut_off: CutOff,
    units: Mapping[str, str],
) -> Invoice:
    """Return the draft of one account's period; without lines when nothing is owed or used.

    Args:
        units: Meter -> its unit, for charges that do not name one.

    Raises:
        InvoiceError: Something cannot be priced; the message names account, month, plan and charge.
    """
    try:
        lines = [_charge_line(charge, usage.get(charge.charge, ()), plan, account, units) for charge in plan.charges]
    except PriceError as error:
        raise InvoiceError(f"account {account.account}, {period.month}, plan {plan.plan}: {error}") from error
    lines = [line for line in lines if line.net or line.quantity]
    lines += _minimum_lines(plan, account, lines)
    taxes = _tax_lines(lines, plan, account)
    net, tax = _sum_shown(line.net for line in lines), _sum_shown(line.tax for line in taxes)
    return Invoice(
        entity=entity.entity,
        account=account.account,
        seller=_seller(entity),
        buyer=_buyer(account),
        reference=account.reference,
        payment=entity.payment,
        payment_days=entity.payment_days,
        tax_name=entity.tax_name,
        locale=account.locale,
        plan=plan.plan,
        plan_name=plan.name,
        plan_digest=digest_plan(plan),
        currency=plan.currency,
        month=period.month,
        zone=period.zone,
        start=period.start,
        end=period.end,
        first_day=period.first_day,
        last_day=period.last_day,
        lines=tuple(replace(line, line=number) for number, line in enumerate(lines, 1)),
        taxes=taxes,
        net=round_decimal(net, plan.currency),
        tax=round_decimal(tax, plan.currency),
        gross=round_decimal(_sum_shown([net, tax]), plan.currency),
        cut_off=cut_off,
    )


def digest_plan(plan: Plan) -> str:
    """Return the SHA-256 of everything a plan says, so that an invoice names exactly what priced it."""
    text = json.dumps(asdict(plan), default=str, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _charge_line(
    charge: Charge, usage: Sequence[SubjectUsage], plan: Plan, account: Account, units: Mapping[str, str]
) -> InvoiceLine:
    with exact():
        quantity = sum((used.quantity for used in usage), NOTHING) if charge.meter else Decimal(1)
        quantity = Decimal(plain(quantity))  # equal quantities have equal bytes
    rated = rate_charge(charge, quantity)
    net = round_money(rated.amount, plan.currency)
    tax = _tax_of(plan, account, charge)
    meter_unit = units.get(charge.meter, "") if charge.meter else ""
    return InvoiceLine(
        line=0,
        kind="usage" if charge.meter else "fee",
        charge=charge.charge,
        name=charge.name,
        net=net.amount,
        tax_category=tax.category,
        tax_rate=tax.rate,
        quantity=quantity,
        price=charge.price,
        per=charge.per,
        unit=charge.unit or meter_unit,
        meter=charge.meter,
        meter_unit=meter_unit,
        where=charge.where,
        tiers=_line_tiers(rated.parts, net),
        usage=tuple(usage),
    )


def _line_tiers(parts: Sequence[TierPart], net: Money) -> tuple[LineTier, ...]:
    """Show each tier's part of a line; rounded one by one they would not add up to it."""
    weights = [part.amount for part in parts]
    shares = allocate(net, weights) if any(weights) else (net,) * len(parts)
    return tuple(
        LineTier(
            above=part.above,
            up_to=part.up_to,
            quantity=part.quantity,
            price=part.price,
            flat=part.flat,
            net=share.amount,
        )
        for part, share in zip(parts, shares, strict=True)
    )


def _minimum_lines(plan: Plan, account: Account, lines: Sequence[InvoiceLine]) -> list[InvoiceLine]:
    if plan.minimum is None:
        return []
    owed = apply_minimum(_sum_shown(line.net for line in lines), plan.minimum)
    if not owed:
        return []
    tax = _tax_of(plan, account)
    net = round_decimal(owed, plan.currency)
    return [
        InvoiceLine(
            line=0,
            kind="minimum",
            charge="minimum",
            name="Up to the monthly minimum",
            net=net,
            price=net,
            tax_category=tax.category,
            tax_rate=tax.rate,
        )
    ]


def _tax_of(plan: Plan, account: Account, charge: Charge | None = None) -> Tax:
    """Return the tax of a line: the buyer's own when there is one, else the charge's, else the plan's."""
    return account.tax or (charge.tax if charge else None) or plan.tax


def _tax_lines(lines: Sequence[InvoiceLine], plan: Plan, account: Account) -> tuple[TaxLine, ...]:
    taxes = [_tax_of(plan, account, charge) for charge in plan.charges] + [_tax_of(plan, account)]
    notes: dict[tuple[str, Decimal], list[str]] = {}
    for tax in taxes:
        known = notes.setdefault((tax.category, tax.rate), [])
        if tax.note and tax.note not in known:
            known.append(tax.note)
    found = []
    for category, rate in dict.fromkeys((line.tax_category, line.tax_rate) for line in lines):
        taxable = _sum_shown(line.net for line in lines if (line.tax_category, line.tax_rate) == (category, rate))
        with exact():
            amount = taxable * rate / 100
        found.append(
            TaxLine(
                category=category,
                rate=rate,
                taxable=round_decimal(taxable, plan.currency),
                tax=round_decimal(amount, plan.currency),
                note="; ".join(notes[category, rate]),
            )
        )
    return tuple(found)


def _sum_shown(amounts: Iterable[Decimal]) -> Decimal:
    with exact():
        return sum(amounts, NOTHING)


def _seller(entity: Entity) -> Party:
    return Party(
        party=entity.entity,
        name=entity.name,
        address=entity.address,
        country=entity.country,
        vat_id=entity.vat_id,
        registration=entity.registration,
        email=entity.email,
    )


def _buyer(account: Account) -> Party:
    return Party(
        party=account.account,
        name=account.name,
        address=account.address,
        country=account.country,
        vat_id=account.vat_id,
    )
