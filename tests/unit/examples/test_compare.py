"""The demo's comparison: it finds a wrong last digit, a missing total, and one that should not be there."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace

from examples.compare import Expected, ExpectedTotal, find_differences, find_invoice_differences
from examples.report.story import UsageLine

TOTAL = ExpectedTotal(
    meter="volume.storage", subject="łódź-robotics", dimensions='{"type":"ssd"}', value=Decimal("727165170.000001"),
    events=23801, month=Decimal("727165000.5"), month_late=Decimal("0.5"),
)  # fmt: skip
EXPECTED = Expected(month="2026-10", seed=7, counts={}, totals=(TOTAL,))
LINE = UsageLine(
    tenant="Łódź Robotics", subject="łódź-robotics", meter="volume.storage", dimensions='{"type":"ssd"}', unit="GiBy.s",
    value=Decimal("727165170.000001000"), expected=Decimal("727165170.000001"), events=23801,
)  # fmt: skip


def test_equal_figures_are_equal_whatever_their_zeros():
    assert find_differences([LINE], EXPECTED) == []


def test_a_wrong_last_digit_is_found():
    (difference,) = find_differences([replace(LINE, value=Decimal("727165170.000002"))], EXPECTED)
    assert (difference.expected, difference.got) == ("727165170.000001", "727165170.000002")
    assert "łódź-robotics" in difference.place


def test_an_event_that_was_counted_twice_is_found_even_where_its_quantity_was_0():
    (difference,) = find_differences([replace(LINE, events=23802)], EXPECTED)
    assert (difference.expected, difference.got) == ("23801", "23802")


def invoice(quantity: str, where: dict[str, tuple[str, ...]]) -> SimpleNamespace:
    line = SimpleNamespace(line=1, charge="ssd", meter="volume.storage", where=where, quantity=Decimal(quantity))
    fee = SimpleNamespace(line=2, charge="support", meter=None)
    return SimpleNamespace(number="NW-2026-000002", account="acct-0002", lines=(line, fee))


def test_an_invoice_bills_the_local_month_without_what_came_after_the_close():
    subjects = {"acct-0002": {"łódź-robotics"}}
    assert find_invoice_differences([invoice("727165000", {"type": ("ssd",)})], EXPECTED, subjects) == []
    (difference,) = find_invoice_differences([invoice("727165000.5", {})], EXPECTED, subjects)
    assert difference.expected == "727165000.0"


def test_a_charge_for_another_part_of_the_meter_must_find_nothing():
    subjects = {"acct-0002": {"łódź-robotics"}}
    assert find_invoice_differences([invoice("0", {"type": ("hdd",)})], EXPECTED, subjects) == []
