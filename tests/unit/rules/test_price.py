"""Rating is exact: tiers, edges, flat fees, unit conversion, minimum."""

from __future__ import annotations

import doctest
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rules import price
from rules.plan import Charge, Tier, may_overlap
from rules.price import apply_minimum, price_per_unit, price_tiers, rate_charge, split_tiers
from tallyman.errors import PriceError
from tallyman.money import exact, round_decimal
from tests.vectors import billing_cases

TIERS = [Tier(Decimal(100), Decimal("0.10")), Tier(None, Decimal("0.05"))]
WITH_FEES = [
    Tier(Decimal(5), Decimal(0), Decimal(100)),
    Tier(Decimal(10), Decimal(0), Decimal(50)),
    Tier(Decimal(15), Decimal(10)),
    Tier(None, Decimal(5)),
]
QUANTITIES = st.decimals(min_value=0, max_value=10**12, places=9)
PRICES = st.decimals(min_value=0, max_value=10**6, places=12)


def tiers_of(case):
    return [
        Tier(None if tier["up_to"] is None else Decimal(tier["up_to"]), Decimal(tier["unit"]), Decimal(tier["flat"]))
        for tier in case["price"]["tiers"]
    ]


def plain_cases(model):
    """Cases of a whole period, without caps, minimums, splits or rounded unit conversions."""
    return [
        case
        for case in billing_cases(model)
        if set(case["usage"]) == {"quantity"}
        and not set(case["price"]) & {"min", "max", "convert"}
        and not any("cap" in tier for tier in case["price"].get("tiers", ()))
    ]


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(price).failed == 0


@pytest.mark.parametrize("case", plain_cases("graduated"), ids=lambda case: case["id"])
def test_graduated_prices_are_those_of_other_billing_systems(case):
    amount = price_tiers(Decimal(case["usage"]["quantity"]), tiers_of(case))
    assert amount == Decimal(case["expected_amount"])


@pytest.mark.parametrize(
    "case", [case for case in plain_cases("graduated") if case["expected_lines"]], ids=lambda case: case["id"]
)
def test_the_breakdown_shows_each_tier_that_was_reached(case):
    parts = split_tiers(Decimal(case["usage"]["quantity"]), tiers_of(case))
    assert [(part.quantity, part.amount) for part in parts] == [
        (Decimal(line["quantity"]), Decimal(line["amount"])) for line in case["expected_lines"]
    ]


@pytest.mark.parametrize("case", plain_cases("per_unit"), ids=lambda case: case["id"])
def test_unit_prices_are_those_of_other_billing_systems(case):
    amount = price_per_unit(Decimal(case["usage"]["quantity"]), Decimal(case["price"]["unit"]))
    if case["price"].get("round", True):
        amount = round_decimal(amount, case["price"].get("currency", "USD"))
    assert amount == Decimal(case["expected_amount"])


@pytest.mark.parametrize("case", billing_cases("delta_per_unit", "delta_graduated"), ids=lambda case: case["id"])
def test_booking_differences_of_the_cumulative_total_gives_the_same_lines(case):
    booked = Decimal(0)
    for total, line in zip(case["usage"]["cumulative"], case["expected_lines"], strict=True):
        quantity = Decimal(total)
        if case["model"] == "delta_per_unit":
            now = price_per_unit(quantity, Decimal(case["price"]["unit"]))
        else:
            now = price_tiers(quantity, tiers_of(case))
        shown = round_decimal(now, "USD")
        assert shown - booked == Decimal(line)
        booked = shown


@pytest.mark.parametrize(
    "case",
    [case for case in billing_cases("min_commit_trueup") if "days" not in case["usage"]],
    ids=lambda case: case["id"],
)
def test_a_minimum_owes_what_the_shown_lines_leave_open(case):
    currency = case["price"].get("currency", "USD")
    owed = apply_minimum(round_decimal(Decimal(case["usage"]["used"]), currency), Decimal(case["price"]["min"]))
    assert owed == Decimal(case["expected_amount"])


def test_a_quantity_on_the_border_stays_in_the_lower_tier():
    """100 units at "up to 100" cost the first price only."""
    assert price_tiers(Decimal(100), TIERS) == Decimal("10.00")
    assert len(split_tiers(Decimal(100), TIERS)) == 1


def test_at_an_edge_the_next_fee_is_not_due_and_just_above_it_is_due_in_full():
    assert price_tiers(Decimal(5), WITH_FEES) == 100
    assert price_tiers(Decimal("5.000000001"), WITH_FEES) == 150


def test_no_usage_owes_the_first_fee():
    assert price_tiers(Decimal(0), WITH_FEES) == 100


def test_a_tie_survives_a_unit_that_does_not_divide():
    """1 of 3 units at 0.015 is exactly half a cent; 0.333... times 0.015 would be a little less."""
    assert round_decimal(price_per_unit(Decimal(1), Decimal("0.015"), per=Decimal(3)), "EUR") == Decimal("0.01")
    thirds = [Tier(Decimal("0.2"), Decimal("0.005")), Tier(None, Decimal("0.030"))]
    assert price_tiers(Decimal(1), thirds, per=Decimal(3)) == Decimal("0.005")


def test_bounds_are_in_priced_units():
    """Two GiB in bytes, the first of them free."""
    tiers = [Tier(Decimal(1), Decimal(0)), Tier(None, Decimal("0.25"))]
    parts = split_tiers(Decimal(2**31), tiers, per=Decimal(2**30))
    assert [part.quantity for part in parts] == [2**30, 2**30]
    assert price_tiers(Decimal(2**31), tiers, per=Decimal(2**30)) == Decimal("0.25")


def test_byte_hours_of_a_large_cloud_lose_no_digit():
    quantity = Decimal("123456789012345678901234567890.123456789012345678")
    assert price_per_unit(quantity, Decimal("0.000000000001")) == Decimal(
        "123456789012345678.901234567890123456789012345678"
    )


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ([], "expected one at least"),
        ([Tier(Decimal(5), Decimal(1))], r"tiers\[0\].up_to: expected an open last tier, got 5"),
        ([Tier(None, Decimal(1)), Tier(None, Decimal(1))], r"tiers\[0\].up_to: only the last tier is open"),
        (
            [Tier(Decimal(5), Decimal(1)), Tier(Decimal(5), Decimal(1)), Tier(None, Decimal(1))],
            r"tiers\[1\].*5 after 5",
        ),
        ([Tier(Decimal(0), Decimal(1)), Tier(None, Decimal(1))], r"tiers\[0\].*bounds that grow from above 0"),
    ],
)
def test_tiers_that_leave_a_gap_are_refused(tiers, message):
    with pytest.raises(PriceError, match=message):
        price_tiers(Decimal(1), tiers)


@pytest.mark.parametrize("quantity", ["-0.000001", "NaN", "Infinity"])
def test_a_total_below_nothing_is_refused(quantity):
    charge = Charge(charge="vcpu", name="Virtual CPUs", model="per_unit", meter="vcpu.seconds", price=Decimal(1))
    with pytest.raises(PriceError, match='charge "vcpu": quantity: expected zero or more'):
        rate_charge(charge, Decimal(quantity))


def test_a_float_is_no_quantity():
    with pytest.raises(TypeError, match="expected a Decimal, got float"):
        price_per_unit(1.5, Decimal(1))  # type: ignore[arg-type]


def test_a_flat_fee_asks_for_no_usage():
    fee = Charge(charge="support", name="Support", model="flat", price=Decimal("49.00"))
    assert rate_charge(fee, Decimal(0)).amount == Decimal("49.00")


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ({}, {}, True),
        ({"tier": ("ssd",)}, {}, True),
        ({"tier": ("ssd",)}, {"tier": ("hdd", None)}, False),
        ({"tier": ("ssd", "hdd")}, {"tier": ("hdd",)}, True),
        ({"tier": ("ssd",), "zone": ("a",)}, {"tier": ("ssd",), "zone": ("b",)}, False),
        ({"tier": ("ssd",)}, {"zone": ("b",)}, True),
    ],
)
def test_charges_that_would_bill_the_same_usage_twice_are_seen(one, other, overlap):
    charges = [
        Charge(charge=str(n), name="", model="per_unit", meter="volume.bytes", price=Decimal(1), where=where)
        for n, where in enumerate((one, other))
    ]
    assert may_overlap(*charges) is overlap


@settings(deadline=None)  # shared machines stall
@given(QUANTITIES, QUANTITIES, st.lists(st.tuples(QUANTITIES, PRICES, PRICES), max_size=5), PRICES)
def test_more_usage_never_costs_less_and_parts_add_up(one, other, steps, last):
    bounds = sorted({bound for bound, _, _ in steps if bound > 0})
    tiers = [Tier(bound, price, flat) for bound, (_, price, flat) in zip(bounds, steps, strict=False)]
    tiers.append(Tier(None, last))
    low, high = sorted((one, other))
    assert price_tiers(low, tiers) <= price_tiers(high, tiers)
    parts = split_tiers(high, tiers)
    with exact():
        assert sum(part.quantity for part in parts) == high
        assert sum(part.amount for part in parts) == price_tiers(high, tiers)
    assert all(part.quantity > 0 for part in parts[1:])


@settings(deadline=None)  # shared machines stall
@given(QUANTITIES, PRICES, st.integers(1, 10**12))
def test_one_open_tier_is_a_unit_price(quantity, unit, per):
    assert price_tiers(quantity, [Tier(None, unit)], Decimal(per)) == price_per_unit(quantity, unit, Decimal(per))
