"""Plan files: what they may say, and each way to be wrong with its file and line."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from rules.plan import Tax, Tier
from rules.plan_load import read_plans
from tallyman.errors import ConfigError
from tallyman.meter import Meter

METERS = [
    Meter(meter="compute.vcpu", event_type="vm.cpu", aggregation="sum", unit="s", dimensions={"flavor": "flavor"}),
    Meter(meter="object.bytes", event_type="object.stored", aggregation="sum", unit="byte-hours"),
    Meter(meter="api.latency", event_type="api.call", aggregation="max", unit="ms"),
]
COUNTED = {"event_type": "t", "dimensions": {"flavor": "flavor"}, "unit": "s"}
UPTIME = {"state": "state", "states": ("ACTIVE",), **COUNTED}

GOOD = """\
plans:
  - plan: standard-2026
    name: Standard cloud
    currency: EUR
    zone: Europe/Berlin
    minimum: "25.00"
    tax: {category: S, rate: 19}
    charges:
      - charge: vcpu
        name: Virtual CPUs
        meter: compute.vcpu
        model: per_unit
        per: "3600"
        unit: vCPU-hours
        price: "0.0125"
        where: {flavor: [m1.small, null]}
      - charge: object
        name: Object storage
        meter: object.bytes
        model: graduated
        per: 1073741824
        tiers:
          - {up_to: "10000", price: "0.000040000000000001", flat: "1.00"}
          - {price: "0.00003"}
      - {charge: support, name: Business support, model: flat, price: 49.10}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "plans").mkdir(exist_ok=True)
    (folder / "plans" / "standard.yaml").write_text(text, "utf-8")
    return folder / "plans"


def test_a_plan_is_read_with_every_digit(tmp_path):
    plan = read_plans(write(tmp_path, GOOD), METERS)["standard-2026"]
    vcpu, storage, support = plan.charges
    assert plan.minimum == Decimal("25.00")
    assert plan.tax == Tax("S", Decimal(19))
    assert vcpu.where == {"flavor": ("m1.small", None)}
    assert (vcpu.per, vcpu.price, vcpu.unit) == (Decimal(3600), Decimal("0.0125"), "vCPU-hours")
    assert storage.tiers == (
        Tier(Decimal(10000), Decimal("0.000040000000000001"), Decimal("1.00")),
        Tier(None, Decimal("0.00003")),
    )
    assert str(support.price) == "49.10"


def test_no_folder_is_no_plan(tmp_path):
    assert read_plans(tmp_path / "plans", METERS) == {}


@pytest.mark.parametrize(
    ("was", "now", "line", "message"),
    [
        ("meter: compute.vcpu", "meter: compute.vcpus", 11, '"compute.vcpus"; did you mean "compute.vcpu"?'),
        ("meter: compute.vcpu", "meter: api.latency", 11, "of: sum), api.latency is max"),
        ("where: {flavor:", "where: {flavour:", 16, 'unknown dimension of compute.vcpu; did you mean "flavor"?'),
        ("[m1.small, null]", "[]", 16, "where: expected one value of flavor at least, got none"),
        ("unit: vCPU", "units: vCPU", 14, 'unknown key; did you mean "unit"?'),
        ('price: "0.0125"', 'price: "lots"', 15, 'plans[0].charges[0].price: expected a number, got "lots"'),
        ('price: "0.0125"', 'price: "-1"', 15, "price: expected a number of 0 or more, got -1"),
        ('price: "0.0125"', 'price: "1e99"', 15, "price: expected less than 10^24"),
        ('        price: "0.0125"\n', "", 9, "price: per_unit expects one price"),
        ('per: "3600"', 'per: "0"', 13, "per: expected a number above 0, got 0"),
        ("model: per_unit", "model: per_units", 12, 'did you mean "per_unit"?'),
        ('{price: "0.00003"}', "{flat: 1}", 24, 'missing key "price"; a free tier says price: "0"'),
        ('{price: "0.00003"}', "{up_to: 10000, price: 1}", 17, "expected an open last tier, got 10000"),
        ("model: flat, price: 49.10", "model: flat, meter: object.bytes, price: 1", 25, "a flat fee has none"),
        ("currency: EUR", "currency: EURO", 4, 'got "EURO"; did you mean "EUR"?'),
        ("zone: Europe/Berlin", "zone: Europe/Berln", 5, 'did you mean "Europe/Berlin"?'),
        ('minimum: "25.00"', 'minimum: "25.005"', 6, "minimum: expected at most 2 digits, got 25.005"),
        ("rate: 19", "rate: 0", 7, "rate: category S expects a rate above 0, got 0"),
        ("category: S", "category: AE", 7, "rate: category AE expects no rate, got 19"),
        ("charge: object\n", "charge: vcpu\n", 8, 'charges: "vcpu" is there twice'),
        ("meter: object.bytes", "meter: compute.vcpu", 8, '"vcpu" and "object" may bill the same usage'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, monkeypatch, was, now, line, message):
    monkeypatch.chdir(tmp_path)
    assert was in GOOD
    with pytest.raises(ConfigError) as caught:
        read_plans(write(tmp_path, GOOD.replace(was, now, 1)), METERS)
    assert str(caught.value).startswith(f"plans/standard.yaml:{line}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("meter", "said"),
    [
        (Meter(meter="compute.vcpu", aggregation="time_weighted", **COUNTED), ""),
        (Meter(meter="compute.vcpu", aggregation="lifecycle", **UPTIME), ""),
        (Meter(meter="compute.vcpu", aggregation="counter", **COUNTED), ""),
        (Meter(meter="compute.vcpu", aggregation="time_weighted", answer="average", **COUNTED),
         "compute.vcpu is time_weighted, answer: average"),
        (Meter(meter="compute.vcpu", aggregation="counter", of="max", **COUNTED), "compute.vcpu is counter, of: max"),
        (Meter(meter="compute.vcpu", aggregation="avg", **COUNTED), "compute.vcpu is avg"),
    ],
)  # fmt: skip
def test_what_adds_up_over_a_month_can_be_charged_and_nothing_else(tmp_path, meter, said):
    folder = write(tmp_path, GOOD)
    if not said:
        assert read_plans(folder, [meter, *METERS[1:]])
        return
    with pytest.raises(ConfigError, match="expected a meter that adds up over a month") as caught:
        read_plans(folder, [meter, *METERS[1:]])
    assert str(caught.value).endswith(said)


def test_a_plan_that_is_there_twice_is_refused_with_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path, GOOD)
    (folder / "a-copy.yaml").write_text(GOOD, "utf-8")
    with pytest.raises(ConfigError, match=r"plans/standard.yaml:2: .* is defined twice, first at plans/a-copy"):
        read_plans(folder, METERS)


def test_a_reason_is_given_where_no_tax_is_charged():
    assert Tax("AE").note == "Reverse charge"
    assert Tax("E", note="§ 4 Nr. 21 UStG").note == "§ 4 Nr. 21 UStG"
