"""What `tallyman dead retry` and `discard` are told to do something about is there, or it is wrong usage."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tallyman.cli import run
from tallyman.dead_actions import ActionReport
from tallyman.dead_letters import DeadLetter, LetterChoice, read_certain_keys
from tallyman.errors import UsageQueryError

OPEN, HANDLED = ("topic-a", 3, 18211, 0, 99), ("topic-b", 0, 7, 0, 99)


class Store:
    """A store with one open letter and one that was handled."""

    def execute(self, sql: str, values: dict[str, Any]) -> list[Any]:
        rows = [OPEN] if "dead_letters_handled" in sql else [OPEN, HANDLED]
        if "places" not in values:
            return rows
        return [row for row in rows if row[:4] in values["places"] or row[1:4] in values["anywhere"]]


def keys(*positions: str) -> list[Any]:
    return [tuple(key) for key in read_certain_keys(Store(), LetterChoice(positions=positions))]  # type: ignore[arg-type]


def test_letters_are_found_by_their_positions() -> None:
    assert keys() == keys("3:18211:0") == keys("3:18211:0@topic-a") == [OPEN]


def test_what_was_handled_already_may_be_named_again() -> None:
    assert keys("0:7:0") == []
    assert keys("3:18211:0", "0:7:0@topic-b") == [OPEN]


@pytest.mark.parametrize("position", ["9:9:9", "3:18211:0@topic-b", "3:18211:1"])
def test_a_position_at_which_nothing_lies_is_named(position: str) -> None:
    with pytest.raises(UsageQueryError, match=f"position: no dead letter at {position}; see them with"):
        keys("3:18211:0", position)


def test_a_letter_shows_what_it_says_and_writes_no_lines_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant chooses its type, source and subject, and the detail quotes them."""
    odd = "\x1b]0;owned\x07\nhandled       discarded"
    letter = DeadLetter(topic_id="t", partition=0, offset=0, event_index=0, appended_at=datetime.now(UTC), booking=1,
                        reason="unknown_meter", detail=odd, content_type=odd, type=odd, source=odd, subject=odd,
                        size_bytes=2, body=b"{}", headers={odd: odd.encode()})  # fmt: skip
    monkeypatch.setattr("tallyman.cli.dead.clickhouse", lambda project: contextlib.nullcontext())
    monkeypatch.setattr("tallyman.dead_letters.read_dead_letter", lambda client, position: (letter,))
    (tmp_path / "tallyman.yaml").write_text("")
    assert run(["dead", "show", "0:0:0", "--project", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\nhandled" not in shown and shown.count("owned") == 7


def test_types_without_end_do_not_bury_what_would_be_discarded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {("unknown_meter", "serverr", "nova"): 7} | {("unknown_meter", f"x{n}", "evil"): 1 for n in range(1000)}
    monkeypatch.setattr("tallyman.cli.dead.clickhouse", lambda project: contextlib.nullcontext())
    report = ActionReport(chosen=1007, groups=groups)
    monkeypatch.setattr("tallyman.dead_actions.discard", lambda client, choice, preview: report)
    (tmp_path / "tallyman.yaml").write_text("")
    assert run(["dead", "discard", "--project", str(tmp_path)]) == 0
    shown, said = capsys.readouterr()
    assert "serverr" in shown
    assert len(shown.splitlines()) < 100
    assert "and 951 dead letters in 951 smaller groups" in said
