"""`tallyman close` and `tallyman apply` with rooms of our own making: what is asked, shown and waited for."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tallyman.cli import run
from tallyman.cli.books import difference
from tallyman.meter import Definitions, Meter

CPU = Meter(meter="host.cpu", event_type="tallyman.host.cpu", aggregation="sum", unit="s")
BEFORE = Definitions(number=1, meters=(CPU,))
AFTER = Definitions(number=0, meters=(replace(CPU, scale=6),))


@dataclass
class Room:
    """Stands for pipeline.close; notes what is called."""

    before: Definitions | None = BEFORE
    after: Definitions = AFTER
    calls: list[str] = field(default_factory=list)

    def close_books(self, project: Any) -> Any:
        self.calls.append("close")
        return SimpleNamespace(booking=20780002, definitions=1)

    def wait_until_sealed(self, project: Any, booking: int, *, timeout_s: float, on_wait: Callable[[int], None]) -> int:
        self.calls.append(f"wait {booking}")
        on_wait(booking - 1)
        return booking

    def pending_definitions(self, project: Any) -> tuple[Definitions | None, Definitions]:
        return self.before, self.after

    def apply_definitions(self, project: Any) -> Any:
        self.calls.append("apply")
        return SimpleNamespace(booking=20780002, definitions=2)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    room = Room()
    (tmp_path / "tallyman.yaml").write_text("operator: Nimbus\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tallyman.cli.books.load_room", lambda target: getattr(room, target.partition(":")[2]))
    return room


@pytest.mark.parametrize("waiting", [(), (SimpleNamespace(booking=20780001, rows=7, events=1200),)])
def test_a_preview_of_a_close_says_what_would_be_sealed_and_closes_nothing(
    room: Room, waiting: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = SimpleNamespace(unsealed=waiting, sealed_to=20780000)
    desk = SimpleNamespace(look=lambda: report, close=lambda: room.calls.append("let go"))
    room.SealDesk = lambda project: desk  # type: ignore[attr-defined]
    monkeypatch.setattr("tallyman.cli.books.clickhouse", nullcontext)
    assert run(["close", "--preview"]) == 0
    said = capsys.readouterr()
    assert ("20780001     7    1200" in said.out) is bool(waiting) and "nothing was closed" in said.err
    assert run(["close", "--preview", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "would_seal": [{"booking": 20780001, "rows": 7, "events": 1200}] if waiting else [], "sealed_to": 20780000
    }  # fmt: skip
    assert room.calls == ["let go", "let go"]


def test_close_waits_until_what_it_closed_is_sealed(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["close"]) == 0
    assert room.calls == ["close", "wait 20780001"]
    captured = capsys.readouterr()
    assert captured.out == "sealed up to booking 20780001\n"
    assert "booking 20780002 is open now" in captured.err


def test_close_need_not_wait(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["close", "--no-wait", "--json"]) == 0
    assert room.calls == ["close"]
    assert json.loads(capsys.readouterr().out) == {"booking": 20780002, "definitions": 1, "sealed_to": None}


def test_apply_shows_what_changes_and_asks(
    room: Room, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.confirm", lambda *args, **options: False)
    assert run(["apply"]) == 130
    assert room.calls == []
    shown = capsys.readouterr().err.splitlines()
    assert "-  scale: 9" in shown and "+  scale: 6" in shown


def test_apply_puts_definitions_in_force(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["apply", "--yes"]) == 0
    assert room.calls == ["apply"]
    assert capsys.readouterr().out == "definitions 2 are in force from booking 20780002\n"


def test_apply_twice_changes_nothing(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    room.after = replace(BEFORE, number=0)
    assert run(["apply", "--yes"]) == 0
    assert room.calls == []
    assert "nothing to apply" in capsys.readouterr().err


def test_the_order_of_meters_is_no_difference() -> None:
    memory = replace(CPU, meter="host.memory")
    assert difference(replace(BEFORE, meters=(memory, CPU)), replace(BEFORE, meters=(CPU, memory))) == []


def test_apply_where_nobody_can_answer_names_the_option(
    room: Room, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["apply"]) == 2
    assert room.calls == []
    assert "nobody answered; to apply without being asked: tallyman apply --yes" in capsys.readouterr().err


def test_apply_says_of_which_meters_the_past_is_left_out(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    """Sums of a month are no maxima: who changes an aggregation hears so before, and not from a figure."""
    room.after = replace(AFTER, meters=(replace(CPU, aggregation="max"),))
    assert run(["apply", "--yes"]) == 0
    told = "host.cpu: what was booked as sum is not known as max"
    assert told in capsys.readouterr().err
    room.before, room.after = room.after, room.before or AFTER
    assert run(["apply", "--yes"]) == 0
    assert "is not known as" not in capsys.readouterr().err
