"""`tallyman usage` and `tallyman dead` on the real engine: what a person, a spreadsheet and a program get to see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from clickhouse_driver import Client

from tallyman.cli import run
from tallyman.local.folder import ClickHouseEndpoint
from tests.usage_rows import DAY, TOPIC, Booked, book, fresh_database, progress, seal

pytestmark = pytest.mark.integration
BERLIN_DAY = datetime(2026, 10, 24, 22, tzinfo=UTC)  # 25 October in Berlin, 25 hours long
METERS = "meters:\n  - {meter: compute.vcpu_seconds, event_type: vm, aggregation: sum, unit: s, dimensions: {az: az}}\n"


@pytest.fixture
def client(
    clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    with fresh_database(clickhouse_endpoint) as client:
        endpoint = clickhouse_endpoint
        settings = (
            f"clickhouse: {{host: {endpoint.host}, port: {endpoint.port}, database: {client.connection.database}}}"
        )
        (tmp_path / "meters").mkdir()
        (tmp_path / "meters" / "compute.yaml").write_text(METERS, encoding="utf-8")
        (tmp_path / "tallyman.yaml").write_text(f"{settings}\nkafka: {{partitions: 1}}\n", encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        progress(client, 0, 0, 8, BERLIN_DAY + timedelta(hours=30))
        seal(client, DAY, Booked(minute=BERLIN_DAY, value=Decimal("0.5"), dimensions={"az": "nord"}))
        last = BERLIN_DAY + timedelta(hours=24, minutes=59)
        book(
            client,
            Booked(minute=last, value=2, booking=DAY + 1, dimensions={"az": None}),
            Booked(minute=last + timedelta(minutes=1), value=40, booking=DAY + 1, dimensions={"az": "nord"}),
        )
        yield client


ASK = ["usage", "tenant-zoë", "--meter", "compute.vcpu_seconds", "--from", "2026-10-25", "--zone", "Europe/Berlin"]


def test_a_person_sees_a_table_and_how_complete_it_is(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ASK, "--to", "2026-10-27", "--window", "day", "--by", "az"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "from        to          az    compute.vcpu_seconds [s]  events",
        "──────────  ──────────  ────  ────────────────────────  ──────",
        "2026-10-25  2026-10-26  –                          2         1",
        "2026-10-25  2026-10-26  nord                       0.5       1",
        "2026-10-26  2026-10-27  nord                      40         1",
        f"complete up to 2026-10-26 04:59:50 +01:00 (Europe/Berlin); sealed up to booking {DAY}",
    ]
    assert captured.err == ""


def test_a_program_gets_json_with_exact_texts(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ASK, "--to", "2026-10-26", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["complete_to"] == "2026-10-26T03:59:50+00:00"
    assert answer["sealed_to"] == DAY
    assert answer["rows"] == [
        {
            "from": "2026-10-24T22:00:00+00:00",
            "to": "2026-10-25T23:00:00+00:00",
            "groups": {},
            "value": "2.5",
            "events": 2,
            "complete": True,
        }
    ]


def test_a_spreadsheet_gets_csv(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ASK, "--to", "2026-10-26", "--by", "az", "--csv"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "from,to,az,value,events,complete",
        "2026-10-24T22:00:00+00:00,2026-10-25T23:00:00+00:00,,2,1,true",
        "2026-10-24T22:00:00+00:00,2026-10-25T23:00:00+00:00,nord,0.5,1,true",
    ]
    assert "complete up to" in captured.err


@pytest.mark.parametrize(
    ("options", "told"),
    [((), ["true", "false"]), (("--as-of", str(DAY + 1)), ["", ""]), (("--sealed",), [""])],
)
def test_beside_each_figure_stands_whether_it_is_complete(
    client: Client, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: list[str]
) -> None:
    """The log stands at five in the morning of the 26th. Who leaves out what came later is told nothing of the sort."""
    ask = [*ASK, "--to", "2026-10-27", "--window", "day", *options]
    assert run([*ask, "--csv"]) == 0
    assert [line.rpartition(",")[2] for line in capsys.readouterr().out.splitlines()] == ["complete", *told]
    assert run([*ask, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["complete"] for row in rows] == [{"true": True, "false": False, "": None}[each] for each in told]


def test_sealed_usage_is_what_an_invoice_would_see(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not called complete: what came since then is complete for hours, and is left out."""
    assert run([*ASK, "--to", "2026-10-27", "--sealed", "--json"]) == 0
    assert [row["value"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["0.5"]
    assert run([*ASK, "--to", "2026-10-27", "--sealed"]) == 0
    told = f"only what is sealed, without what was booked later; sealed up to booking {DAY}"
    assert capsys.readouterr().out.splitlines()[-1] == told


@pytest.mark.parametrize(("condition", "value"), [("az", "2"), ("az=nord", "40.5"), ("az=", None)])
def test_a_filter_names_a_value_or_that_it_is_missing(
    client: Client, capsys: pytest.CaptureFixture[str], condition: str, value: str | None
) -> None:
    assert run([*ASK, "--to", "2026-10-27", "--where", condition, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["value"] for row in rows] == ([value] if value else [])


def test_without_a_name_each_tenant_is_shown(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["usage", "--meter", "compute.vcpu_seconds", "--from", "2026-10-24", "--to", "2026-10-27", "--json"]) == 0
    )
    assert [row["groups"] for row in json.loads(capsys.readouterr().out)["rows"]] == [{"subject": "tenant-zoë"}]


def test_no_usage_is_said(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["usage", "nobody", "--meter", "compute.vcpu_seconds", "--from", "2026-10-24", "--to", "2026-10-27"]) == 0
    )
    assert "no usage of compute.vcpu_seconds in this range" in capsys.readouterr().out


def test_a_dead_letter_is_listed_shown_and_saved_byte_for_byte(
    client: Client, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    body = b'{"id": "Z\xfcrich\x1b[2J"'
    row = (TOPIC, 3, 18211, 0, 0, BERLIN_DAY, DAY, "not_utf8", "byte 0xfc", "application/json", "", "", "", body, {})
    client.execute("INSERT INTO dead_letters VALUES", [row])
    assert run(["dead", "list"]) == 0
    listed = capfdbinary.readouterr()
    assert b"3:18211:0" in listed.out and b"1 dead letter: 1 not_utf8" in listed.err
    assert run(["dead", "show", "3:18211:0"]) == 0
    shown = capfdbinary.readouterr().out
    assert b"not_utf8: the bytes are not UTF-8" in shown and b"\\xfcrich\\x1b[2J" in shown
    assert run(["dead", "show", "3:18211:0", "--raw"]) == 0
    assert capfdbinary.readouterr().out == body


def test_what_no_meter_wants_is_listed_by_type_and_source(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [("vm.gpu", "nova/1"), ("vm.gpu", "nova/2"), ("vm.gpu", "nova/1"), ("vm.disk", "nova/1")]
    rows = [
        (TOPIC, 3, n, 0, 0, BERLIN_DAY, DAY, "unknown_meter", "", "", kind, source, "tenant-zoë", b"{}", {})
        for n, (kind, source) in enumerate(kinds)
    ]
    client.execute("INSERT INTO dead_letters VALUES", rows)
    assert run(["dead", "list", "--reason", "unknown_meter", "--groups"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "      2  unknown_meter  vm.gpu   nova/1",
        "      1  unknown_meter  vm.disk  nova/1",
        "      1  unknown_meter  vm.gpu   nova/2",
    ]
    assert run(["dead", "list", "--type", "vm.disk", "--groups", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"reason": "unknown_meter", "type": "vm.disk", "source": "nova/1", "letters": 1}
    ]


def test_a_position_without_a_dead_letter_is_wrong_usage(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dead", "show", "0:1:0"]) == 2
    assert "no dead letter at 0:1:0; see them with: tallyman dead list" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--by", "az,subject"], ["--by", "az2"], ["--where", "az2=nord"]])
def test_a_dimension_that_the_meter_has_not_is_wrong_usage(
    client: Client, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    """A column of dashes, or no row at all, would look like an answer."""
    assert run([*ASK, "--to", "2026-10-27", *option]) == 2
    said = capsys.readouterr().err
    assert f'expected a dimension of compute.vcpu_seconds, got "{option[1].partition("=")[0]}"' in said


def test_as_of_a_booking_later_usage_is_not_in_it(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ASK, "--to", "2026-10-27", "--as-of", str(DAY)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-2].split()[-2:] == ["0.5", "1"]
    assert out.splitlines()[-1] == f"as of booking {DAY}, without what was booked later; sealed up to booking {DAY}"
    assert run([*ASK, "--to", "2026-10-27", "--as-of", str(DAY + 1), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["as_of"], [row["value"] for row in answer["rows"]]) == (DAY + 1, ["42.5"])


@pytest.mark.parametrize(
    ("conditions", "value"),
    [
        (["az=nord"], "2"),
        (["az"], "40.5"),
        (["az=nord&az=süd"], "2"),
        (["az=nord", "az"], None),
        (["az=a&&b"], "42.5"),
    ],
)
def test_what_is_excluded_is_not_in_it(
    client: Client, capsys: pytest.CaptureFixture[str], conditions: list[str], value: str | None
) -> None:
    options = [word for condition in conditions for word in ("--exclude", condition)]
    assert run([*ASK, "--to", "2026-10-27", "--json", *options]) == 0
    assert [row["value"] for row in json.loads(capsys.readouterr().out)["rows"]] == ([value] if value else [])


def test_an_ampersand_in_a_value_is_written_twice(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    book(client, Booked(minute=BERLIN_DAY, value=5, booking=DAY + 1, dimensions={"az": "R&D"}))
    for option, values in (("--exclude", ["42.5"]), ("--where", [])):
        assert run([*ASK, "--to", "2026-10-27", "--json", option, "az=R&&D"]) == 0
        assert [row["value"] for row in json.loads(capsys.readouterr().out)["rows"]] == values
    assert run([*ASK, "--to", "2026-10-27", "--json", "--where", "az=R&D"]) == 0
    assert [row["value"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["5"]


def test_of_a_counter_it_is_told_what_its_readings_prove(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    for minute, value, boot in ((0, 100, "a"), (1, 130, "a"), (2, 90, "a"), (9, 7, "b")):
        at = BERLIN_DAY + timedelta(minutes=minute)
        item = json.dumps([str(int(at.timestamp()) * 1_000_000), "eth0", boot], separators=(",", ":"))
        parameters = '{"believed_for_s":"300","of":"sum"}'
        book(client, Booked(minute=at, meter="net", aggregation="counter", value=value, item=item, booking=DAY + 1,
                            parameters=parameters))  # fmt: skip
    ask = ["usage", "tenant-zoë", "--meter", "net", "--from", "2026-10-24", "--to", "2026-10-27"]
    assert run([*ask, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert {name: row[name] for name in ("value", "events", "resets", "holes", "decreases")} == {
        "value": "37", "events": 4, "resets": 1, "holes": 1, "decreases": 1,
    }  # fmt: skip
    assert run([*ask, "--csv"]) == 0
    assert [line.split(",")[2:] for line in capsys.readouterr().out.splitlines()] == [
        ["value", "events", "resets", "holes", "decreases", "complete"],
        ["37", "4", "1", "1", "1", "false"],
    ]
    assert run(ask) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == [
        "from", "to", "net", "events", "resets", "holes", "decreases",
    ]  # fmt: skip
