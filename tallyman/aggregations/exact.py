"""Exact numbers out: a decimal that is the number where there is one, else 28 significant digits, rounded half even."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from math import ceil, floor, isqrt
from typing import Literal

from tallyman.usage import scaled

DIGITS = 28
_SHOWN = Context(prec=DIGITS, rounding=ROUND_HALF_EVEN)
_WIDE = Context(prec=2 * DIGITS + 8, rounding=ROUND_HALF_EVEN)


def exact(value: Fraction) -> Decimal:
    """Return a fraction as a decimal.

    >>> exact(Fraction(3) * Fraction(2, 3)), exact(Fraction(1, 8)), exact(Fraction(2, 3))
    (Decimal('2'), Decimal('0.125'), Decimal('0.6666666666666666666666666667'))
    """
    numerator, denominator = value.numerator, value.denominator
    if denominator == 1:
        return scaled(numerator, 0)
    twos, rest = _take_out(denominator, 2)
    fives, rest = _take_out(rest, 5)
    if rest != 1:
        return _SHOWN.divide(Decimal(numerator), Decimal(denominator))
    digits = max(twos, fives)
    return scaled(numerator * 2 ** (digits - twos) * 5 ** (digits - fives), digits)


def rounded(value: Fraction, how: Literal["nearest", "up", "down"], digits: int) -> Fraction:
    """Return a fraction rounded to so many digits behind the point; the nearest is half away from zero.

    >>> rounded(Fraction("-2.5"), "nearest", 0), rounded(Fraction("-2.5"), "up", 0), rounded(Fraction(123), "down", -2)
    (Fraction(-3, 1), Fraction(-2, 1), Fraction(100, 1))
    """
    unit = Fraction(10) ** -digits
    if how == "nearest":
        size = floor(abs(value) / unit + Fraction(1, 2))
        return (size if value >= 0 else -size) * unit
    return (ceil if how == "up" else floor)(value / unit) * unit


def root(value: Fraction) -> Decimal:
    """Return the square root of a fraction that is not negative.

    >>> root(Fraction(9, 4)), root(Fraction(2))
    (Decimal('1.5'), Decimal('1.414213562373095048801688724'))
    """
    above, below = isqrt(value.numerator), isqrt(value.denominator)
    if Fraction(above * above, below * below) == value:
        return exact(Fraction(above, below))
    return _SHOWN.plus(_WIDE.sqrt(_WIDE.divide(Decimal(value.numerator), Decimal(value.denominator))))


def _take_out(number: int, prime: int) -> tuple[int, int]:
    """Return how often a prime divides a number, and what remains."""
    times = 0
    while number % prime == 0:
        number //= prime
        times += 1
    return times, number
