"""The small cloud: its files are a project, its generator is exact and says the same every time."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest

from examples.cloud.generate import read_resource, write_month
from examples.cloud.inventory import TENANTS, build_inventory, local_month, previous_month
from invoices.load import read_accounts, read_entity
from rules.plan_load import read_plans
from tallyman.event import decode_event, parse_time
from tallyman.meter import measure
from tallyman.period import month_period
from tallyman.project import load_project

CLOUD = Path(__file__).resolve().parents[3] / "examples" / "cloud"


@pytest.fixture(scope="module")
def two_days(tmp_path_factory):
    folder = tmp_path_factory.mktemp("month")
    write_month(folder, "2026-10", seed=7, days=2)
    return folder


def lines_of(folder: Path) -> list[bytes]:
    names = ("usage", "single", "late")
    return [line for name in names for line in (folder / f"{name}.ndjson").read_bytes().splitlines()]


def test_the_files_are_a_project_with_three_accounts_whose_names_are_not_ascii():
    project = load_project(CLOUD)
    plans = read_plans(CLOUD / "plans", project.meters)
    accounts = read_accounts(CLOUD / "accounts", plans)
    assert read_entity(CLOUD / "entity.yaml").country == "DE"
    assert [account.name for account in accounts.values() if not account.name.isascii()] == [
        "Zoë Åström Design",
        "Łódź Robotics sp. z o.o.",
        "株式会社さくらデータ",
    ]
    assert {subject.subject for account in accounts.values() for subject in account.subjects} == {
        tenant.subject for tenant in TENANTS
    }


def test_each_plan_counts_its_month_in_the_zone_of_its_tenant():
    """Else the sums of the generator and of the invoice would be of different months."""
    plans = read_plans(CLOUD / "plans", load_project(CLOUD).meters)
    accounts = read_accounts(CLOUD / "accounts", plans)
    zones = {span.subject: plans[account.plan].zone for account in accounts.values() for span in account.subjects}
    assert zones == {tenant.subject: tenant.zone for tenant in TENANTS}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Tokyo", "America/Santiago"])
@pytest.mark.parametrize("month", ["2026-10", "2026-12", "2028-02"])
def test_the_generators_month_is_the_invoices_month(month, zone):
    """October has 745 hours in Berlin, 744 in Tokyo."""
    span, period = local_month(month, zone), month_period(month, zone, anchor_day=1)
    assert (span.start_us, span.end_us) == tuple(round(end.timestamp()) * 10**6 for end in (period.start, period.end))


def test_the_month_before_january_is_december():
    assert previous_month(datetime(2027, 1, 31, tzinfo=UTC)) == "2026-12"


def test_the_same_seed_gives_the_same_bytes(two_days, tmp_path):
    write_month(tmp_path, "2026-10", seed=7, days=2)
    for name in ("usage.ndjson", "single.ndjson", "late.ndjson", "expected.json"):
        assert (tmp_path / name).read_bytes() == (two_days / name).read_bytes()


def test_a_repeated_event_is_a_copy_byte_for_byte(two_days):
    copies = Counter(lines_of(two_days))
    ids = Counter((event["subject"], event["source"], event["id"]) for event in map(json.loads, copies))
    counts = json.loads((two_days / "expected.json").read_text("utf-8"))["counts"]
    assert max(ids.values()) == 1
    assert (len(copies), copies.total() - len(copies)) == (counts["distinct"], counts["duplicates"])
    assert counts["duplicates"] > 20


def test_every_quantity_is_an_exact_decimal_text(two_days):
    for line in lines_of(two_days)[::97]:
        for value in json.loads(line)["data"].values():
            assert isinstance(value, str)


def test_the_generators_sums_are_those_of_the_projects_meters(two_days):
    """Two ways to the same figures: plain Decimals there, the meters' scaled integers here."""
    project = load_project(CLOUD)
    sums: dict[tuple[str, str, str], Decimal] = {}
    for line in set(lines_of(two_days)):
        event = decode_event(line)
        for meter in project.meters:
            reading = measure(meter, event) if meter.event_type == event.type else None
            if reading is None:
                continue
            key = (reading.meter, reading.subject, reading.dimensions)
            value = Decimal(reading.value).scaleb(-meter.scale)
            before = sums.get(key, Decimal(0))
            sums[key] = before + value if meter.aggregation == "sum" else max(before, value)
    expected = json.loads((two_days / "expected.json").read_text("utf-8"))["totals"]
    assert sums == {(row["meter"], row["subject"], row["dimensions"]): Decimal(row["value"]) for row in expected}


def test_usage_on_both_sides_of_the_month_is_left_out_of_its_sum(two_days):
    first = min(parse_time(json.loads(line)["time"]) for line in lines_of(two_days))
    assert first < min(local_month("2026-10", tenant.zone).start_us for tenant in TENANTS)
    rows = json.loads((two_days / "expected.json").read_text("utf-8"))["totals"]
    hours = next(row for row in rows if (row["meter"], row["subject"]) == ("lb.hours", "さくらデータ"))
    assert Decimal(hours["month"]) < Decimal(hours["value"])


def test_the_shortest_month_has_two_hundred_thousand_events():
    rng = Random(7)
    resources = build_inventory("2027-02", rng)
    assert sum(1 for resource in resources for _ in read_resource(resource, rng)) >= 200_000
