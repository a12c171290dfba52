"""`tallyman send --preview` on the real stack: what it says of a file is what becomes of it when it is sent."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.close import definitions_of, found_books, open_books
from pipeline.runtime import forget
from tallyman.books import add_definitions
from tallyman.cli import run
from tallyman.event import MAX_RECORD_BYTES
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject

pytestmark = pytest.mark.integration
METERS = """meters:
- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 3, unit: h}
- {meter: compute.big, event_type: server, aggregation: count, where: {size: [large]}}
- {meter: net.bytes, event_type: net, aggregation: sum, value: bytes, scale: 0, where: {direction: [out]}}
- {meter: disk.bytes, event_type: disk, aggregation: sum, value: bytes, scale: 0, oldest_accepted: 60d}
"""
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
NAMES = ("aggregated", "duplicate", "dead", "ignored")


def event(name: str, days: int = 1, kind: str = "server", **data: Any) -> bytes:
    wire = {"specversion": "1.0", "id": name, "source": f"nova/{name[-1]}", "type": kind, "subject": "Zoë Åström",
            "time": (TODAY - timedelta(days=days)).isoformat(), "data": {"hours": "1.5"} | data}  # fmt: skip
    return msgspec.json.encode(wire)


@pytest.fixture
def own(
    kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> OwnProject:
    own = OwnProject(tmp_path / "own", kafka_broker, clickhouse_endpoint, METERS, partitions=3)
    monkeypatch.chdir(own.folder)
    monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))
    found_books(own.project)
    return own


def test_a_preview_says_what_becomes_of_every_event_of_a_past_period(
    own: OwnProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def send(file: Path, *words: str, code: int) -> dict[str, Any]:
        capsys.readouterr()
        became = run(["send", str(file), *words, "--json"])
        told = capsys.readouterr()
        assert became == code, told.err
        found: dict[str, Any] = json.loads(told.out)
        return found

    before, file = tmp_path / "before.ndjson", tmp_path / "past.ndjson.gz"
    before.write_bytes(b"\n".join([*(event(f"e-{n}") for n in range(5)), event("other", hours="2")]))
    lines = [
        *(event(f"e-{n}") for n in range(8)),  # five of them are known
        event("other", hours="3"),  # known with other content
        event("new-1", 20, size="large"), event("new-1", 20, size="large"), event("new-2", 20, hours="0.25"),
        event("old-1", 300), event("old-2", 40), event("ahead", -3),
        b"{", event("fine", hours="1.0001"), event("nobody", kind="teapot"),
        event("in", kind="net", bytes=5, direction="in"), event("out", kind="net", bytes=10**20, direction="out"),
        event("huge", note="x" * MAX_RECORD_BYTES), event("kept", 40, kind="disk", bytes=7),
    ]  # fmt: skip
    file.write_bytes(gzip.compress(b"\n".join(lines)))
    with own.running():
        own.wait_until_booked()
        send(before, "--wait", code=0)
        told = send(file, "--preview", code=3)
        assert own.ask("SELECT count() FROM ids FINAL") == [(6,)]
        assert {name: told[name] for name in (*NAMES, "conflict")} == {
            "aggregated": 7, "duplicate": 7, "dead": 7, "ignored": 1, "conflict": 1}  # fmt: skip
        assert {each["reason"]: (each["events"], each["first"]) for each in told["letters"]} == {
            "too_old": (2, 13), "too_far_ahead": (1, 15), "malformed": (1, 16), "too_precise": (1, 17),
            "unknown_meter": (1, 18), "too_large": (1, 21)}  # fmt: skip
        days = [(each["meter"], each["day"], each["events"], each["total"]) for each in told["meters"]]
        yesterday, earlier, first = ((TODAY - timedelta(days=n)).date().isoformat() for n in (1, 20, 40))
        assert days == [
            ("compute.big", earlier, 1, "1"), ("compute.hours", earlier, 2, "1.75"),
            ("compute.hours", yesterday, 3, "4.5"),
            ("disk.bytes", first, 1, "7"), ("net.bytes", yesterday, 1, str(10**20)),
        ]  # fmt: skip
        became = send(file, "--wait", code=3)
        assert (became["aggregated"], became["dead"]) == (told["aggregated"], told["dead"])
        assert became["duplicate"] + became["ignored"] == told["duplicate"] + told["ignored"]
        reasons = own.ask("SELECT reason, count() FROM dead_letters FINAL GROUP BY reason")
        assert dict(reasons) == {each["reason"]: each["events"] for each in told["letters"]}
        after = send(file, "--preview", code=3)
        assert (after["aggregated"], after["duplicate"]) == (0, 14)
        assert run(["send", str(file), "--preview"]) == 3
        shown = capsys.readouterr()
        assert "0 aggregated, 14 duplicate, 7 dead, 1 ignored" in shown.out
        assert "tallyman dead retry --reason too_old" in shown.err and "nothing was sent" in shown.err
    assert own.usage() == {
        "compute.hours": 1500 * 8 + 2000 + 1500 + 250, "compute.big": 1, "net.bytes": 10**20, "disk.bytes": 7
    }  # fmt: skip
    forget()


def test_definitions_that_no_close_has_put_in_force_yet_judge_nothing(
    own: OwnProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An `apply` that was killed half way has numbered them, and the pipeline does not know them."""
    finer = METERS.replace("value: hours, scale: 3", "value: hours, scale: 6")
    own.define(finer)
    add_definitions(open_books(own.project), definitions_of(own.project))
    file = tmp_path / "fine.ndjson"
    file.write_bytes(event("fine", hours="1.0001"))
    with own.running():
        own.wait_until_booked()
        assert run(["send", str(file), "--preview", "--json"]) == 3
        (letter,) = json.loads(capsys.readouterr().out)["letters"]
    assert letter["reason"] == "too_precise"
