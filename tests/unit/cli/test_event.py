"""`tallyman event amend` without servers: what would be a dead letter is refused before it is sent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tallyman.cli import run
from tallyman.corrections import History, Version
from tallyman.meter import Definitions, Meter

WAS = {"specversion": "1.0", "id": "e-17", "source": "nova/berlin-1", "type": "server", "subject": "Zoë Åström",
       "time": "2026-10-31T12:00:00Z", "data": {"hours": "1.5"}}  # fmt: skip
METERS = "meters: [{meter: compute.hours, event_type: server, aggregation: sum, value: hours}]"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose store has one event, and no rebuild; nothing can be sent."""
    monkeypatch.setenv("TALLYMAN_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tallyman.yaml").write_text("clickhouse: {host: ch-1}\n", encoding="utf-8")
    (tmp_path / "meters").mkdir()
    (tmp_path / "meters" / "compute.yaml").write_text(METERS, encoding="utf-8")
    monkeypatch.setattr("tallyman.corrections.read_history", lambda *_: read_history())
    monkeypatch.setattr("pipeline.rebuilt.read_switches", lambda _: ())
    monkeypatch.setattr("tallyman.corrections.correct", lambda *_: pytest.fail("something was sent"))
    return tmp_path


def read_history() -> History:
    first = Version(number=0, text=json.dumps(WAS, ensure_ascii=False).encode(), position="0:7:0")
    return History(subject="Zoë Åström", source="nova/berlin-1", id="e-17", versions=(first,))


def amend(*words: str) -> int:
    return run(["event", "amend", "Zoë Åström", "nova/berlin-1", "e-17", "--reason", "typed", *words])


@pytest.mark.parametrize("word", ["time=yesterday", "data=5", "data.hours=nonsense", "type=x.unknown"])
def test_what_would_be_a_dead_letter_is_refused_with_its_reason(
    project: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert amend("--set", word) == amend("--set", word, "--yes") == 3
    assert capsys.readouterr().err.count("it would be a dead letter, ") == 2
    assert amend("--set", word, "--yes", "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert document["refused"] and not document["done"]


def test_what_would_count_is_shown_first(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert amend("--set", "data.hours=2") == 0
    assert "nothing was sent. To do it, add --yes" in capsys.readouterr().err


def test_what_was_counted_by_other_meters_is_refused_with_its_reason(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A meter that has another scale now cannot take back what it counted; the preview says so, not the dead letter."""
    found = replace(read_history(), definitions=1)
    meter = Meter(meter="compute.hours", event_type="server", aggregation="sum", value="hours", scale=3)
    monkeypatch.setattr("tallyman.corrections.read_history", lambda *_: found)
    monkeypatch.setattr("tallyman.books.load_definitions", lambda *_: Definitions(number=1, meters=(meter,)))
    assert amend("--set", "data.hours=2", "--yes") == 3
    assert "not_correctable: its meters changed since definitions 1" in capsys.readouterr().err
