"""Levels, states and counters on an invoice: what was carried into the month, and what a tenant's move splits."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from clickhouse_driver import Client

from invoices import batch
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import Meter, parameters_of
from tests.nimbus import invoicing_project
from tests.usage_rows import Booked, seal

pytestmark = pytest.mark.integration

SEPTEMBER_20, OCTOBER_30, NOVEMBER_1 = 20_716_000, 20_756_000, 20_758_000
FILES = {
    "tallyman.yaml": "operator: Nimbus Compute GmbH\n",
    "meters/levels.yaml": """\
meters:
  - {meter: volume.gib_hours, event_type: volume, aggregation: time_weighted, value: gib, resource: volume,
     multiply_by: 1/3600, unit: GiB-hours, scale: 0}
  - {meter: server.uptime, event_type: server, aggregation: lifecycle, resource: server, state: state, states: [ACTIVE],
     dimensions: {flavor: flavor}, unit: s, scale: 0}
  - {meter: port.bytes, event_type: port, aggregation: counter, value: bytes, resource: port, incarnation: boot,
     unit: B, scale: 0}
""",
    "plans/levels.yaml": """\
plans:
  - plan: levels
    name: What goes on by itself
    currency: EUR
    zone: Europe/Berlin
    tax: {category: O}
    charges:
      - {charge: volumes, name: Volumes, meter: volume.gib_hours, model: per_unit, price: "0.001"}
      - {charge: small, name: Small servers, meter: server.uptime, model: per_unit, per: "3600", unit: hours,
         price: "0.02", where: {flavor: [small]}}
      - {charge: large, name: Large servers, meter: server.uptime, model: per_unit, per: "3600", unit: hours,
         price: "0.05", where: {flavor: [large, null]}}
      - {charge: traffic, name: Traffic, meter: port.bytes, model: per_unit, per: "1000", unit: kB, price: "1"}
""",
    "accounts/all.yaml": """\
accounts:
  - account: acct-0001
    name: Zoë Åström Studio
    address: [Kastanienallee 77, 10435 Berlin]
    country: DE
    plan: levels
    subjects: [{subject: tenant-zoë, from: 2026-01-01, to: 2026-10-16}]
  - account: acct-0002
    name: 株式会社さくら
    address: [東京都千代田区丸の内1-1]
    country: JP
    plan: levels
    subjects: [{subject: tenant-zoë, from: 2026-10-16}]
""",
}


def read_at(meter: Meter, when: str, value: int, resource: str, incarnation: str | None = None, **named: str) -> Booked:
    at = datetime.fromisoformat(when).replace(tzinfo=UTC)
    time_us = round(at.timestamp() * 1_000_000)
    return Booked(
        meter=meter.meter, aggregation=meter.aggregation, scale=0, parameters=parameters_of(meter), minute=at,
        value=value, latest_us=time_us, item=msgspec.json.encode([str(time_us), resource, incarnation]).decode(),
        dimensions=dict(named),
    )  # fmt: skip


def test_what_goes_on_by_itself_is_invoiced_to_the_cent(
    tmp_path: Path, clickhouse_endpoint: ClickHouseEndpoint, client: Client
) -> None:
    """October of Berlin has 745 hours; the tenant moves to another account after 360 of them."""
    project = invoicing_project(tmp_path, FILES, clickhouse_endpoint, client)
    traffic, uptime, volume = project.meters
    seal(
        client, SEPTEMBER_20,
        read_at(volume, "2026-09-20T12:00", 100, "v1"),
        read_at(traffic, "2026-09-30T21:00", 1000, "eth0", "boot-1"),
    )  # fmt: skip
    seal(
        client, OCTOBER_30,
        read_at(volume, "2026-10-10T22:00", 200, "v1"),  # the 240th hour; nobody says how it ends
        read_at(uptime, "2026-10-01T00:00", 1, "s1", flavor="small"),  # the 2nd
        read_at(uptime, "2026-10-06T00:00", 1, "s1", flavor="large"),  # the 122nd: resized
        read_at(uptime, "2026-10-20T22:00", 0, "s1"),  # the 480th: deleted
        read_at(traffic, "2026-10-01T00:00", 5000, "eth0", "boot-1"),
        read_at(traffic, "2026-10-10T00:00", 300, "eth0", "boot-2"),
        read_at(traffic, "2026-10-15T22:00", 1300, "eth0", "boot-2"),  # the first minute of the other account
        read_at(traffic, "2026-10-31T22:59", 2300, "eth0", "boot-2"),
        read_at(traffic, "2026-10-31T23:00", 9900, "eth0", "boot-2"),  # of November
    )  # fmt: skip
    seal(client, NOVEMBER_1, read_at(volume, "2026-11-01T03:00", 0, "v1"))
    now = datetime(2026, 11, 1, 9, 30, tzinfo=UTC)
    report = batch.run(project, "2026-10", now=now, client=client)
    assert (report.failed, report.empty) == ((), ())
    assert [lines(one.json) for one in report.issued] == [
        [
            ("volumes", 100 * 240 + 200 * 120, "48.00"),
            ("small", 120 * 3600, "2.40"),
            ("large", (360 - 122) * 3600, "11.90"),
            ("traffic", 4000 + 300, "4.30"),
        ],
        [("volumes", 200 * 385, "77.00"), ("large", 120 * 3600, "6.00"), ("traffic", 1000 + 1000, "2.00")],
    ]
    assert [str(one.gross) for one in report.issued] == ["66.60 EUR", "85.00 EUR"]
    assert "48,000" in report.issued[0].html.read_text("utf-8")
    seal(client, NOVEMBER_1 + 1, read_at(volume, "2026-10-12T00:00", 1, "v1"))  # late
    again = batch.run(project, "2026-10", now=now, client=client)
    assert (again.issued, again.unchanged) == ((), report.issued)


def lines(document: Path) -> list[tuple[str, Decimal, str]]:
    return [
        (line["charge"], Decimal(line["quantity"]), line["net"]) for line in json.loads(document.read_bytes())["lines"]
    ]
