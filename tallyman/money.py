"""Money: amounts in whole minor units of an ISO 4217 currency, rounded in one place, half away from zero.

Everything before that place is plain `Decimal` under `exact()`, which holds 100 digits and refuses floats.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from difflib import get_close_matches

from tallyman.errors import PriceError

# A quantity has at most 48 digits (Int128 at scale 18), a price 24: their product is exact here.
EXACT = decimal.Context(
    prec=100,
    rounding=ROUND_HALF_UP,
    traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow, decimal.FloatOperation],
)

# ISO 4217, list one (active codes, January 2026). Our own table: CLDR says 0 digits where ISO says 2 or 3
# (IQD, RSD, ALL, LBP and others), and an invoice is written by the law's digits.
_WITHOUT_MINOR_UNIT = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_TWO_DIGITS = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW
CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF
IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK
MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP
SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG
YER ZAR ZMW ZWG
"""
_THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND"
_FOUR_DIGITS = "CLF UYW"

EXPONENTS: dict[str, int] = {
    code: digits
    for digits, codes in ((0, _WITHOUT_MINOR_UNIT), (2, _TWO_DIGITS), (3, _THREE_DIGITS), (4, _FOUR_DIGITS))
    for code in codes.split()
}


@contextmanager
def exact() -> Iterator[None]:
    """Compute inside with 100 digits; a float in an operation or a comparison raises."""
    with decimal.localcontext(EXACT):
        yield


def exponent(currency: str) -> int:
    """Return how many digits the currency has behind the point.

    Raises:
        PriceError: The code is not in ISO 4217.
    """
    try:
        return EXPONENTS[currency]
    except KeyError:
        near = get_close_matches(currency.upper(), EXPONENTS, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise PriceError(f'currency: expected an ISO 4217 code such as EUR, got "{currency}"{hint}') from None


@dataclass(frozen=True, slots=True)
class Money:
    """An amount as it is printed: a whole number of the currency's minor units.

    Raises:
        PriceError: The amount has more digits than the currency; `round_money` is the one place that rounds.
        TypeError: The amount is no Decimal.
    """

    amount: Decimal
    currency: str

    def __post_init__(self) -> None:
        rounded = round_decimal(self.amount, self.currency)
        if rounded != self.amount:
            digits = exponent(self.currency)
            raise PriceError(f"amount: expected at most {digits} digits behind the point, got {self.amount:f}")
        object.__setattr__(self, "amount", rounded)

    def __add__(self, other: Money) -> Money:
        return Money(EXACT.add(self.amount, self._same(other)), self.currency)

    def __sub__(self, other: Money) -> Money:
        return Money(EXACT.subtract(self.amount, self._same(other)), self.currency)

    def __neg__(self) -> Money:
        return Money(EXACT.minus(self.amount), self.currency)

    def __str__(self) -> str:
        """Write as "1234.50 EUR": plain digits, for logs and tables."""
        return f"{self.amount:f} {self.currency}"

    def _same(self, other: Money) -> Decimal:
        if self.currency != other.currency:
            raise PriceError(f"cannot add {other.currency} to {self.currency}: an invoice has one currency")
        return other.amount


def round_decimal(amount: Decimal, currency: str) -> Decimal:
    """Return an amount in the digits of its currency, half away from zero; never a negative zero."""
    if not isinstance(amount, Decimal):
        raise TypeError(f"amount: expected a Decimal, got {type(amount).__name__}: floats lose cents")
    if not amount.is_finite():
        raise PriceError(f"amount: expected a number, got {amount}")
    unit = Decimal(1).scaleb(-exponent(currency))
    rounded = amount.quantize(unit, ROUND_HALF_UP, EXACT)
    return rounded if rounded else unit * 0


def round_money(amount: Decimal, currency: str) -> Money:
    """Return what an exact amount is on paper: half away from zero, to the digits of ISO 4217."""
    return Money(round_decimal(amount, currency), currency)


def sum_money(amounts: Sequence[Money], currency: str) -> Money:
    """Return the sum of shown amounts; nothing sums to zero."""
    total = Money(Decimal(0), currency)
    for amount in amounts:
        total = total + amount
    return total


def allocate(total: Money, weights: Sequence[Decimal]) -> tuple[Money, ...]:
    """Split an amount in proportion to weights, so that the parts add up to it.

    Each part is cut to minor units; what is left goes, one unit each, to the largest remainders, ties
    in order.

    Args:
        weights: Zero or more each, not all zero.

    Raises:
        PriceError: There is nothing to split by.
    """
    if not weights or any(weight < 0 for weight in weights) or not any(weights):
        got = ", ".join(map(str, weights)) or "none"
        raise PriceError(f"weights: expected numbers of zero or more, not all zero, got {got}")
    digits = exponent(total.currency)
    with exact():
        whole = abs(int(total.amount.scaleb(digits)))
        sign = -1 if total.amount < 0 else 1
        all_weights = sum(weights, Decimal(0))
        shares = [whole * weight / all_weights for weight in weights]
        units = [int(share.to_integral_value(ROUND_FLOOR)) for share in shares]
        left = whole - sum(units)
        largest_first = sorted(range(len(shares)), key=lambda i: (units[i] - shares[i], i))
        for i in largest_first[:left]:
            units[i] += 1
        return tuple(Money(Decimal(sign * unit).scaleb(-digits), total.currency) for unit in units)


def plain(number: Decimal) -> str:
    """Write a decimal with all its digits and no exponent or trailing zeros: "0.0000001", "1200"."""
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
