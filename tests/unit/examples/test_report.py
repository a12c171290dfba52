"""The page of the demo: self-contained, and safe with any name."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from examples.report.page import figure, write_page
from examples.report.story import AlarmStep, DailyChart, InvoiceLine, Step, Story, UsageLine
from examples.report.svg import Mark, draw_bars, draw_line, nice_ceiling, short

NOW = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)
NASTY = 'Zoë <script>alert("1")</script> & Söhne'


def story() -> Story:
    line = UsageLine(tenant=NASTY, subject="zoë", meter="lb.hours", dimensions='{"a":"<b>"}', unit="h",
                     value=Decimal("743.250"), expected=Decimal("743.25"), events=2973)  # fmt: skip
    alarm = AlarmStep(alarm="traffic", state="firing", at=NOW, at_s=12.5, value="1,200,000,000 By",
                      webhook_id="msg_1", took_s=0.4)  # fmt: skip
    invoice = InvoiceLine(number="NW-2026-000001", name=NASTY, currency="EUR", net="100.00", tax="19.00",
                          total="119.00", html="data/invoices/a.html", json="data/invoices/a.json")  # fmt: skip
    chart = DailyChart(tenant=NASTY, title="Virtual CPUs", unit="h", zone="Europe/Berlin", values=[("1", Decimal(3))])
    return Story(
        month="2026-10", operator="Nordwolke Cloud GmbH", started=NOW, host="vm", steps=[Step("live", 3.0, "done")],
        counts={"lines sent": 236864}, live=[(0.0, Decimal(0)), (9.0, Decimal(10))], threshold=Decimal(5),
        threshold_label="above 5", alarms=[alarm], usage=[line], invoices=[invoice], charts=[chart],
    )  # fmt: skip


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    page = write_page(tmp_path, story()).read_text("utf-8")
    assert re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"|@import|url\(', page) == []


def test_a_name_cannot_become_markup(tmp_path):
    page = write_page(tmp_path, story()).read_text("utf-8")
    assert "<script" not in page
    assert "Zoë &lt;script&gt;" in page


def test_the_page_says_when_a_total_differs(tmp_path):
    told = story()
    told.usage[0] = UsageLine(tenant="Zoë", subject="zoë", meter="lb.hours", dimensions="{}", unit="h",
                              value=Decimal(1), expected=Decimal(2), events=1)  # fmt: skip
    page = write_page(tmp_path, told).read_text("utf-8")
    assert "0 of 1" in page
    assert "≠ 2" in page


@pytest.mark.parametrize(("value", "top"), [("0", "1"), ("3.1", "4"), ("74", "80"), ("99", "100"), ("0.021", "0.025")])
def test_an_axis_ends_at_a_round_figure_above_the_largest(value, top):
    assert nice_ceiling(Decimal(value)) == Decimal(top)


@pytest.mark.parametrize(("value", "text"), [("0.025", "0.025"), ("1250", "1.25k"), ("3100000", "3.1M")])
def test_a_figure_on_an_axis_is_short(value, text):
    assert short(Decimal(value)) == text


def test_a_quantity_keeps_its_digits_on_the_page():
    assert figure(Decimal("1234567.500100000")) == "1,234,567.5001"


def test_charts_without_values_are_drawn_empty():
    assert "<rect" not in draw_bars([], title="nothing")
    assert draw_line([], title="nothing", threshold=Decimal(1), threshold_label="", marks=[Mark(1.0, "x", "firing")])
