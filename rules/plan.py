"""Plans: what usage costs. Pure values that refuse to be wrong; `rules.plan_load` reads them from files.

Plan
├── charges: Charge          flat | per_unit | graduated, over one meter, or a part of it (`where`)
│   └── tiers: Tier          inclusive upper bounds on real numbers, the last one open
├── minimum                  what a month costs at least, as a line of its own
└── tax: Tax                 category (EN 16931) and rate; a charge or an account may have its own
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import combinations
from typing import Literal

from tallyman.errors import PriceError
from tallyman.money import exponent, plain, round_decimal
from tallyman.period import find_zone

NOTHING = Decimal(0)

ChargeModel = Literal["flat", "per_unit", "graduated"]
CHARGE_MODELS: tuple[ChargeModel, ...] = ("flat", "per_unit", "graduated")

# UNCL 5305 as EN 16931 allows it, with what the document must say where no tax is charged.
TaxCategory = Literal["S", "Z", "E", "AE", "K", "G", "O"]
TAX_CATEGORIES: dict[TaxCategory, str] = {
    "S": "",
    "Z": "",
    "E": "Exempt from VAT",
    "AE": "Reverse charge",
    "K": "VAT exempt for EEA intra-community supply",
    "G": "Export outside the EU, free of VAT",
    "O": "Outside the scope of VAT",
}


@dataclass(frozen=True, slots=True)
class Tax:
    """How a line is taxed.

    Attributes:
        category: EN 16931 category code; only S has a rate above 0.
        rate: Percent.
        note: Why no tax is charged, as the document must say it; a usual wording when not given.
    """

    category: TaxCategory
    rate: Decimal = NOTHING
    note: str = ""

    def __post_init__(self) -> None:
        check_number("rate", self.rate)
        if (self.category == "S") != (self.rate > 0):
            expected = "a rate above 0" if self.category == "S" else "no rate"
            raise PriceError(f"rate: category {self.category} expects {expected}, got {plain(self.rate)}")
        if self.rate > 100:
            raise PriceError(f"rate: expected percent, got {plain(self.rate)}")
        if not self.note:
            object.__setattr__(self, "note", TAX_CATEGORIES[self.category])


@dataclass(frozen=True, slots=True)
class Tier:
    """One step of a graduated price.

    Attributes:
        up_to: The last quantity that is still in it; None in the last tier.
        price: For each unit inside it; never left out.
        flat: Due once, as soon as anything is inside it.
    """

    up_to: Decimal | None = None
    price: Decimal = Decimal("NaN")
    flat: Decimal = NOTHING

    def __post_init__(self) -> None:
        if self.price.is_nan():
            raise PriceError('missing key "price"; a free tier says price: "0"')
        check_number("up_to", self.up_to if self.up_to is not None else NOTHING)
        check_number("price", self.price)
        check_number("flat", self.flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One price on one meter, or a fee.

    Attributes:
        meter: None for a flat fee.
        per: How many of the meter's units make one priced unit (3600 for hours of a meter in seconds).
        unit: What the priced unit is called on the invoice.
        price: Of one priced unit, or the fee itself; None in a graduated charge.
        where: Dimension -> values of which one must match; None matches a missing one.
    """

    charge: str
    name: str
    model: ChargeModel
    meter: str | None = None
    per: Decimal = Decimal(1)
    unit: str = ""
    price: Decimal | None = None
    tiers: tuple[Tier, ...] = ()
    where: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    tax: Tax | None = None

    def __post_init__(self) -> None:
        if (self.model == "flat") != (self.meter is None):
            raise PriceError("meter: " + ("a flat fee has none" if self.meter else f"missing for {self.model}"))
        if (self.model == "graduated") != (self.price is None):
            expected = "its prices in tiers" if self.model == "graduated" else "one price"
            raise PriceError(f"price: {self.model} expects {expected}")
        if self.model == "flat" and (self.where or self.per != 1):
            raise PriceError("where, per: a flat fee counts no usage")
        for name, values in self.where.items():
            if not values:
                raise PriceError(f"where: expected one value of {name} at least, got none: it would bill nothing")
        check_number("price", self.price if self.price is not None else NOTHING)
        check_number("per", self.per, above_zero=True)
        if self.model == "graduated":
            check_tiers(self.tiers)
        elif self.tiers:
            raise PriceError(f"tiers: {self.model} has none; say model: graduated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an account pays for.

    Attributes:
        zone: IANA zone in which its months begin.
        anchor_day: Day of the month on which its periods begin.
        minimum: Spend of a month that is owed at least, before tax.
    """

    plan: str
    name: str
    currency: str
    zone: str
    tax: Tax
    charges: tuple[Charge, ...]
    anchor_day: int = 1
    minimum: Decimal | None = None

    def __post_init__(self) -> None:
        digits = exponent(self.currency)
        find_zone(self.zone)
        if not 1 <= self.anchor_day <= 31:
            raise PriceError(f"anchor_day: expected 1 to 31, got {self.anchor_day}")
        if self.minimum is not None:
            check_number("minimum", self.minimum)
            if round_decimal(self.minimum, self.currency) != self.minimum:
                raise PriceError(f"minimum: expected at most {digits} digits, got {plain(self.minimum)}")
        if not self.charges and self.minimum is None:
            raise PriceError("charges: expected one at least, got none")
        for one, other in combinations(self.charges, 2):
            if one.charge == other.charge:
                raise PriceError(f'charges: "{one.charge}" is there twice; rename one')
            if may_overlap(one, other):
                both = f'"{one.charge}" and "{other.charge}"'
                names = " and ".join(", ".join(charge.where) or "none" for charge in (one, other))
                raise PriceError(
                    f"charges: {both} may bill the same usage of {one.meter} twice; tell them apart by where, with "
                    f"the same dimension in both, got {names}"
                )


def may_overlap(one: Charge, other: Charge) -> bool:
    """Return whether some usage could be priced by both charges, and so be billed twice."""
    if one.meter is None or one.meter != other.meter:
        return False
    shared = one.where.keys() & other.where.keys()
    return all(set(one.where[name]) & set(other.where[name]) for name in shared)


def check_tiers(tiers: Sequence[Tier]) -> None:
    """Refuse tiers that leave a quantity without a price, or with two.

    Raises:
        PriceError: Names the tier, counted from 0.
    """
    if not tiers:
        raise PriceError("tiers: expected one at least, got none")
    above = NOTHING
    for place, tier in enumerate(tiers[:-1]):
        if tier.up_to is None:
            raise PriceError(f"tiers[{place}].up_to: only the last tier is open; give this one an upper bound")
        if tier.up_to <= above:
            got = f"{plain(tier.up_to)} after {plain(above)}"
            raise PriceError(f"tiers[{place}].up_to: expected bounds that grow from above 0, got {got}")
        above = tier.up_to
    if tiers[-1].up_to is not None:
        last = len(tiers) - 1
        got = plain(tiers[-1].up_to)
        raise PriceError(f"tiers[{last}].up_to: expected an open last tier, got {got}: usage above it has no price")


def check_number(name: str, number: Decimal, above_zero: bool = False) -> None:
    """Refuse what is no price, bound or fee: less than zero, not finite, or with more digits than can be exact.

    Raises:
        PriceError: Names what was expected.
    """
    if not isinstance(number, Decimal):
        raise TypeError(f"{name}: expected a Decimal, got {type(number).__name__}")
    if not number.is_finite() or number < 0 or (above_zero and number == 0):
        expected = "above 0" if above_zero else "of 0 or more"
        raise PriceError(f"{name}: expected a number {expected}, got {number}")
    if number and (number.adjusted() >= 24 or int(number.as_tuple().exponent) < -18):
        raise PriceError(f"{name}: expected less than 10^24 and at most 18 digits behind the point, got {number}")
