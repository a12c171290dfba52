"""Accounts, the selling entity and number patterns: what they may say, and each way to be wrong."""

from __future__ import annotations

import doctest
from dataclasses import replace
from datetime import date

import pytest

from invoices import number
from invoices.account import AccountSubject
from invoices.load import read_accounts, read_entity
from invoices.number import check_pattern, format_number, series_of
from tallyman.errors import ConfigError, InvoiceError
from tallyman.period import month_period
from tests import nimbus
from tests.unit.invoices.sample import PLAN

ACCOUNTS = """\
accounts:
  - account: acct-0001
    name: Zoë Åström Studio AB
    address: [Götgatan 11, 116 46 Stockholm]
    country: SE
    vat_id: SE556677889901
    locale: sv_SE
    plan: standard
    tax: {category: AE}
    subjects:
      - {subject: tenant-zoe, from: 2026-01-01, to: 2026-10-16}
      - {subject: tenant-zoe-2, from: 2026-10-16}
  - account: acct-0002
    name: 株式会社さくら
    address: [東京都千代田区丸の内1-1]
    country: JP
    plan: standard
    subjects: [{subject: tenant-zoe, from: 2026-10-16}]
"""

ENTITY = nimbus.ENTITY + "payment_days: 14\n"


def accounts_of(folder, text=ACCOUNTS, **plans):
    (folder / "accounts").mkdir(exist_ok=True)
    (folder / "accounts" / "all.yaml").write_text(text, "utf-8")
    return read_accounts(folder / "accounts", {"standard": PLAN, **plans})


def entity_of(folder, text=ENTITY):
    (folder / "entity.yaml").write_text(text, "utf-8")
    return read_entity(folder / "entity.yaml")


def test_accounts_are_read_with_their_names_as_they_are(tmp_path):
    accounts = accounts_of(tmp_path)
    assert [account.name for account in accounts.values()] == ["Zoë Åström Studio AB", "株式会社さくら"]
    first = accounts["acct-0001"].subjects[0]
    assert (first.from_, first.to) == (date(2026, 1, 1), date(2026, 10, 16))


@pytest.mark.parametrize(
    ("was", "now", "line", "message"),
    [
        ("plan: standard", "plan: standart", 8, 'unknown plan "standart"; did you mean "standard"?'),
        ("from: 2026-10-16}]", "from: 2026-10-15}]", 18, '"tenant-zoe" is paid for already, at accounts/all.yaml:11'),
        ("to: 2026-10-16", "to: 2026-01-01", 11, "to: expected a date after 2026-01-01, got 2026-01-01"),
        ("to: 2026-10-16", "to: 2026-02-30", 11, "2026-02-30"),
        ("country: SE", "country: Sweden", 5, "expected two capital letters (ISO 3166) such as SE"),
        ("vat_id: SE556677889901", "vat_id: SE 5566", 6, "expected a country and digits without spaces"),
        ("    vat_id: SE556677889901\n", "", 2, "vat_id: missing; tax category AE needs the buyer's"),
        ("name: Zoë Åström Studio AB", 'name: "Zo\\0"', 3, "expected printable text, got the character U+0000"),
        ("name: Zoë Åström Studio AB", 'name: ""', 3, "name: expected a text, got nothing"),
        ("locale: sv_SE", "locale: Swedish", 7, 'locale: expected one such as de_DE, got "Swedish"'),
        ("subjects: [{", "subject: [{", 18, 'unknown key; did you mean "subjects"?'),
        ("account: acct-0002", "account: acct-0001", 13, 'account "acct-0001" is defined twice'),
    ],
)
def test_a_wrong_account_is_named_with_file_and_line(tmp_path, monkeypatch, was, now, line, message):
    monkeypatch.chdir(tmp_path)
    assert was in ACCOUNTS
    with pytest.raises(ConfigError) as caught:
        accounts_of(tmp_path, ACCOUNTS.replace(was, now, 1))
    assert f"accounts/all.yaml:{line}: " in str(caught.value)
    assert message in str(caught.value)


def test_no_instant_is_paid_for_twice_where_days_of_two_plans_begin_apart(tmp_path, monkeypatch):
    """16 October begins in Tokyo while it is 15 October in Berlin, which the other account pays for, too."""
    monkeypatch.chdir(tmp_path)
    tokyo = replace(PLAN, plan="tokyo", zone="Asia/Tokyo")
    moved = "plan: tokyo".join(ACCOUNTS.rsplit("plan: standard", 1))
    with pytest.raises(ConfigError) as caught:
        accounts_of(tmp_path, moved, tokyo=tokyo)
    assert str(caught.value) == (
        'accounts/all.yaml:18: accounts[1].subjects[0]: "tenant-zoe" is paid for already, at accounts/all.yaml:11: '
        "accounts[0].subjects[0]; end that one with `to` a day sooner: the days of Europe/Berlin and Asia/Tokyo do not "
        "begin together"
    )
    assert len(accounts_of(tmp_path, moved.replace("to: 2026-10-16", "to: 2026-10-15"), tokyo=tokyo)) == 2
    assert len(accounts_of(tmp_path, moved, tokyo=replace(tokyo, zone="Europe/Paris"))) == 2


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_an_account_may_pay_since_ever_and_for_ever(zone):
    since_ever = AccountSubject(subject="t", from_=date.min, to=date.max).instants(zone)
    assert since_ever[0] <= month_period("1971-01", zone).start
    assert since_ever[1] >= month_period("2105-12", zone, anchor_day=31).end


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("zone: Europe/Berlin", "zone: Berlin", 'entity.yaml:6: zone: expected an IANA name such as Eur'),
        ("vat_id: DE136695976", 'vat_id: ""', "vat_id: missing; an invoice shows the seller's"),
        ("payment_days: 14", "payment_days: -1", "payment_days: expected 0 to 365, got -1"),
        ("{year}-{number:06d}", "{year}", "{number} must be there once"),
    ],
)  # fmt: skip
def test_a_wrong_entity_is_named_with_file_and_line(tmp_path, monkeypatch, was, now, message):
    monkeypatch.chdir(tmp_path)
    assert was in ENTITY
    with pytest.raises(ConfigError) as caught:
        entity_of(tmp_path, ENTITY.replace(was, now, 1))
    assert "entity.yaml:" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    [
        "NIM-{year}",
        "{number}{number}",
        "../{number}",
        "2026/{number}",
        "{number.__class__}",
        "{number!r}",
        "{number:>9}",
        "{month}-{number}",
        "{day}-{number}",
        "-{number}",
        "{number",
        "ÅR-{number}",
        "",
    ],
)
def test_a_pattern_that_could_collide_or_is_no_file_name_is_refused(pattern):
    with pytest.raises(InvoiceError, match="numbers: expected a pattern such as"):
        check_pattern(pattern)


@pytest.mark.parametrize("pattern", ["{number}", "NIM-{year}-{number:06d}", "{year}{month}-{number:04d}"])
def test_usual_patterns_are_taken(pattern):
    check_pattern(pattern)


def test_a_new_year_is_a_new_series():
    pattern = "NIM-{year}-{number:06d}"
    december, january = series_of(pattern, date(2026, 12, 31)), series_of(pattern, date(2027, 1, 1))
    assert december != january
    assert format_number(january, 1) == "NIM-2027-000001"
    assert format_number(january, 1_234_567) == "NIM-2027-1234567"
    assert doctest.testmod(number).failed == 0
