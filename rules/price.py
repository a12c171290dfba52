"""Rating: from a month's quantity to an exact amount. Pure, on `Decimal`; nothing is rounded here.

Everything is multiplied before it is divided, so that an amount that lies exactly between two cents is found
exactly there: one third of 0.015 is 0.005, and rounds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from rules.plan import NOTHING, Charge, Tier, check_tiers
from tallyman.errors import PriceError
from tallyman.money import EXACT, exact

ONE = Decimal(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPart:
    """What one tier adds to a charge.

    Attributes:
        above: Lower bound, exclusive, in priced units (zero belongs to the first tier).
        up_to: Upper bound, inclusive, in priced units; None when open.
        quantity: What lies inside it, in the meter's own unit, exact.
        amount: Exact, unrounded, `flat` included.
    """

    above: Decimal
    up_to: Decimal | None
    quantity: Decimal
    price: Decimal
    flat: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True)
class RatedCharge:
    """An exact, unrounded amount and, for a graduated charge, where it comes from."""

    amount: Decimal
    parts: tuple[TierPart, ...] = ()


def rate_charge(charge: Charge, quantity: Decimal) -> RatedCharge:
    """Return what a period's total costs.

    Args:
        quantity: The period's total in the meter's own unit; ignored by a flat fee.

    Raises:
        PriceError: The quantity is negative, or the charge cannot price.
    """
    if charge.model == "flat" and charge.price is not None:
        return RatedCharge(charge.price)
    try:
        if charge.price is not None:
            return RatedCharge(price_per_unit(quantity, charge.price, charge.per))
        parts = split_tiers(quantity, charge.tiers, charge.per)
        return RatedCharge(price_tiers(quantity, charge.tiers, charge.per), parts)
    except PriceError as error:
        raise PriceError(f'charge "{charge.charge}": {error}') from error


def price_per_unit(quantity: Decimal, price: Decimal, per: Decimal = ONE) -> Decimal:
    """Price a month's quantity at one price.

    Args:
        quantity: In the meter's unit, zero or more.
        price: Of one priced unit.
        per: How many of the meter's units make one priced unit.

    >>> price_per_unit(Decimal(1800), Decimal("0.05"), per=Decimal(3600))
    Decimal('0.025')
    """
    _check_quantity(quantity, per)
    with exact():
        return quantity * price / per


def price_tiers(quantity: Decimal, tiers: Sequence[Tier], per: Decimal = ONE) -> Decimal:
    """Price a month's quantity through graduated tiers.

    Each tier prices only the part of the quantity that falls inside it. A tier's flat fee is due once anything
    lies inside it; the first tier's always, also for no usage at all.

    Args:
        quantity: The month's total in the meter's unit, zero or more.
        tiers: Ordered by `up_to`, in priced units; only the last has `up_to=None`.
        per: How many of the meter's units make one priced unit.

    Returns:
        The exact amount, unrounded: rounding happens once, in `build_invoice`.

    Raises:
        PriceError: If `tiers` is empty, out of order or has no open end.

    >>> price_tiers(Decimal(150), [Tier(Decimal(100), Decimal("0.10")), Tier(None, Decimal("0.05"))])
    Decimal('12.50')
    """
    # Summed before the one division: thirds of a cent in two tiers must not lose their tie.
    parts = split_tiers(quantity, tiers, per)
    with exact():
        return sum((part.quantity * part.price + part.flat * per for part in parts), NOTHING) / per


def split_tiers(quantity: Decimal, tiers: Sequence[Tier], per: Decimal = ONE) -> tuple[TierPart, ...]:
    """Return the part of a quantity that lies inside each tier, for the tiers that it reaches."""
    _check_quantity(quantity, per)
    check_tiers(tiers)
    parts: list[TierPart] = []
    above = NOTHING
    with exact():
        for tier in tiers:
            if parts and quantity <= above * per:
                break
            reached = quantity if tier.up_to is None else min(quantity, tier.up_to * per)
            inside = reached - above * per
            amount = (inside * tier.price + tier.flat * per) / per
            parts.append(
                TierPart(
                    above=above, up_to=tier.up_to, quantity=inside, price=tier.price, flat=tier.flat, amount=amount
                )
            )
            above = tier.up_to if tier.up_to is not None else above
    return tuple(parts)


def apply_minimum(spent: Decimal, minimum: Decimal) -> Decimal:
    """Return what is still owed to reach a minimum, zero or more.

    Args:
        spent: Everything else that the period is billed, as shown on the lines.
    """
    return max(EXACT.subtract(minimum, spent), NOTHING)


def _check_quantity(quantity: Decimal, per: Decimal) -> None:
    if not isinstance(quantity, Decimal):
        raise TypeError(f"quantity: expected a Decimal, got {type(quantity).__name__}")
    if not quantity.is_finite() or quantity < 0:
        raise PriceError(f"quantity: expected zero or more, got {quantity}: look for corrections above the usage")
    if per <= 0:
        raise PriceError(f"per: expected a number above 0, got {per}")
