"""`make demo`, with the first days of a month instead of all of it: everything happens, and nothing is left running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]


def start_demo(folder: Path) -> subprocess.Popen[str]:
    """Run the demo in a folder; its output goes to `output.txt` beside it."""
    command = [sys.executable, "-m", "examples.demo", "--month", last_month(), "--days", "2", "--out", str(folder)]
    with (folder.parent / "output.txt").open("w") as out:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, text=True)


def last_month() -> str:
    """Return the month that the demo would take; asked once, for a run over midnight at a month's end."""
    year, month = time.gmtime()[:2]
    return f"{year - (month == 1)}-{(month - 2) % 12 + 1:02}"


def still_running(folder: Path) -> list[str]:
    """Return the command lines of processes that work in a folder."""
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and process.pid != os.getpid():
            lines.append(line)
    return lines


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, str]]:
    """One run: its folder, its exit code and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "build"
    process = start_demo(folder)
    try:
        code = process.wait(timeout=420)
    finally:
        process.kill()
    yield folder, code, (folder.parent / "output.txt").read_text("utf-8")


def test_all_of_it_happens(demo):
    """Exit code 0 means: the alarm was told, every total is the generator's, a second invoice run changed nothing."""
    _, code, output = demo
    assert code == 0, output[-4000:]
    assert "All of it happened" in output


def test_the_alarm_was_pending_fired_and_resolved(demo):
    folder, _, output = demo
    assert re.search(r"pending.*?firing.*?resolved", output.split("Alarm history")[1], re.DOTALL)
    page = (folder / "index.html").read_text("utf-8")
    assert page.count("msg_") >= 2


def test_there_is_an_invoice_for_each_tenant_without_a_gap_in_its_numbers(demo):
    folder, _, _ = demo
    invoices = [json.loads(path.read_text("utf-8")) for path in sorted((folder / "data" / "invoices").glob("*.json"))]
    assert [invoice["number"][-6:] for invoice in invoices] == ["000001", "000002", "000003"]
    assert {invoice["buyer"]["name"] for invoice in invoices} == {
        "Zoë Åström Design",
        "Łódź Robotics sp. z o.o.",
        "株式会社さくらデータ",
    }
    for invoice in invoices:
        assert Decimal(invoice["net"]) + Decimal(invoice["tax"]) == Decimal(invoice["gross"])


def test_the_monthly_minimum_binds_for_the_small_tenant(demo):
    folder, _, _ = demo
    first = json.loads(next(iter(sorted((folder / "data" / "invoices").glob("*.json")))).read_text("utf-8"))
    assert Decimal(first["net"]) == Decimal("290.00")
    assert [line["kind"] for line in first["lines"]].count("minimum") == 1


def test_the_page_links_to_documents_that_are_there(demo):
    folder, _, _ = demo
    links = re.findall(r'href="([^"#]+)"', (folder / "index.html").read_text("utf-8"))
    assert len(links) == 6
    assert [link for link in links if not (folder / link).is_file()] == []


def test_nothing_is_left_running(demo):
    folder, _, _ = demo
    assert still_running(folder) == []


def test_ctrl_c_stops_everything_it_started(tmp_path):
    folder = tmp_path / "build"
    process = start_demo(folder)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "data" / "stack.json").exists():  # Kafka and ClickHouse run, the services are coming up
            assert process.poll() is None, (tmp_path / "output.txt").read_text("utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    assert still_running(folder) == []
    assert "stopped by hand" in (tmp_path / "output.txt").read_text("utf-8")
