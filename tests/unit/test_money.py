"""Money is rounded in one place, by the law's digits, and its parts add up."""

from __future__ import annotations

from decimal import Decimal, FloatOperation

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallyman.errors import PriceError
from tallyman.money import EXPONENTS, Money, allocate, exact, exponent, plain, round_money, sum_money
from tests.vectors import billing_cases

AMOUNTS = st.decimals(min_value=-(10**15), max_value=10**15, places=6)


@pytest.mark.parametrize("case", billing_cases("round_half_up"), ids=lambda case: case["id"])
def test_amounts_round_as_other_billing_systems_round(case):
    rounded = round_money(Decimal(case["usage"]["amount"]), case["price"]["currency"])
    assert str(rounded.amount) == case["expected_amount"]


@pytest.mark.parametrize("case", billing_cases("allocate_largest_remainder"), ids=lambda case: case["id"])
def test_amounts_are_spread_by_largest_remainder(case):
    total = Money(Decimal(case["usage"]["amount"]), case["price"]["currency"])
    parts = allocate(total, [Decimal(weight) for weight in case["usage"]["weights"]])
    assert [str(part.amount) for part in parts] == case["expected_lines"]


@pytest.mark.parametrize("case", billing_cases("sum_of_rounded_lines", "sum_lines"), ids=lambda case: case["id"])
def test_a_total_is_the_sum_of_the_shown_numbers(case):
    currency = case["price"]["currency"]
    lines = [round_money(Decimal(text), currency) for text in case["usage"].get("amounts") or case["usage"]["lines"]]
    assert str(sum_money(lines, currency).amount) == case["expected_amount"]


def test_a_tie_goes_away_from_zero_on_both_sides():
    assert round_money(Decimal("2.675"), "EUR").amount == Decimal("2.68")
    assert round_money(Decimal("-2.675"), "EUR").amount == Decimal("-2.68")
    assert round_money(Decimal("1234.565"), "EUR").amount == Decimal("1234.57")


def test_nothing_is_never_a_negative_nothing():
    assert str(round_money(Decimal("-0.001"), "EUR")) == "0.00 EUR"
    assert str(round_money(Decimal("-0"), "JPY")) == "0 JPY"


def test_seventeen_digits_keep_their_cents():
    """Binary floats print ...75 here."""
    assert str(round_money(Decimal("1234567890123456.785"), "EUR")) == "1234567890123456.79 EUR"


def test_currencies_have_the_digits_of_iso_4217():
    assert {code: exponent(code) for code in ("JPY", "EUR", "IQD", "RSD", "KWD", "UYW", "ISK", "HUF")} == {
        "JPY": 0, "EUR": 2, "IQD": 3, "RSD": 2, "KWD": 3, "UYW": 4, "ISK": 0, "HUF": 2,
    }  # fmt: skip
    assert all(len(code) == 3 and code.isupper() for code in EXPONENTS)


def test_an_unknown_currency_is_refused_with_the_nearest_one():
    with pytest.raises(PriceError, match=r'expected an ISO 4217 code such as EUR, got "EURO"; did you mean "EUR"\?'):
        exponent("EURO")


def test_a_float_is_no_amount():
    with pytest.raises(TypeError, match="floats lose cents"):
        round_money(2.675, "EUR")  # type: ignore[arg-type]
    with exact(), pytest.raises(FloatOperation):
        assert Decimal("2.675") < 2.7
    with exact(), pytest.raises(FloatOperation):
        Decimal(float("0.1"))


def test_not_a_number_is_no_amount():
    with pytest.raises(PriceError, match="expected a number, got NaN"):
        round_money(Decimal("NaN"), "EUR")


def test_money_with_too_many_digits_is_refused_rather_than_rounded():
    with pytest.raises(PriceError, match=r"at most 2 digits behind the point, got 1\.005"):
        Money(Decimal("1.005"), "EUR")


def test_two_currencies_do_not_add():
    with pytest.raises(PriceError, match="an invoice has one currency"):
        Money(Decimal(1), "EUR") + Money(Decimal(1), "SEK")


def test_there_must_be_something_to_split_by():
    with pytest.raises(PriceError, match="not all zero, got 0, 0"):
        allocate(Money(Decimal(1), "EUR"), [Decimal(0), Decimal(0)])


@settings(deadline=None)  # shared machines stall
@given(AMOUNTS, st.lists(st.decimals(min_value=0, max_value=10**6, places=3), min_size=1, max_size=12))
def test_the_parts_add_up_to_the_whole(amount, weights):
    total = round_money(amount, "EUR")
    if not any(weights):
        weights = [*weights, Decimal(1)]
    parts = allocate(total, weights)
    assert sum_money(parts, "EUR") == total
    assert all(part.amount == 0 for part, weight in zip(parts, weights, strict=True) if weight == 0)


@settings(deadline=None)  # shared machines stall
@given(AMOUNTS, st.sampled_from(sorted(EXPONENTS)))
def test_rounding_moves_an_amount_by_half_a_unit_at_most_and_only_once(amount, currency):
    once = round_money(amount, currency)
    assert round_money(once.amount, currency) == once
    assert abs(once.amount - amount) * 2 <= Decimal(1).scaleb(-exponent(currency))


@pytest.mark.parametrize(
    ("number", "text"),
    [("1E+3", "1000"), ("1E-7", "0.0000001"), ("1.500", "1.5"), ("-0.0", "0"), ("0", "0"), ("100", "100")],
)
def test_plain_numbers_have_no_exponent_and_no_trailing_zeros(number, text):
    assert plain(Decimal(number)) == text
