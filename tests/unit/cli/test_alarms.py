"""What an endpoint did not take is shown, and one command each sends it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from rules.outbox import Answer, Message, claim, next_due, note, put, register
from rules.state import Change, RuleState, commit, load_states
from rules.tables import deliveries, prepare
from tallyman.cli import run
from tallyman.control import open_control, write

NOW = datetime(2026, 10, 31, 12, tzinfo=UTC)
URL = "https://hooks.example/ops"
SETTINGS = f"rules: {{endpoints: {{operations: {{url: '{URL}'}}, billing: {{url: '{URL}'}}}}}}\n"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """A project of which `operations` is disabled, and gave up msg_1 before, which `billing` took."""
    monkeypatch.delenv("TALLYMAN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tallyman.yaml").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / ".tallyman").mkdir()
    engine = open_control(f"sqlite:///{tmp_path / '.tallyman' / 'control.db'}")
    prepare(engine)
    register(engine, {"operations": URL, "billing": URL})
    with write(engine) as connection:
        put(connection, [Message(f"msg_{n}", f"alarm {n}", b"{}", ("operations", "billing")) for n in (1, 2)], NOW)
        connection.execute(sa.update(deliveries).where(deliveries.c.message_id == "msg_1").values(attempts=9))
    for name, answers in (
        ("operations", (Answer(False, "500"), Answer(False, "410 Gone: the endpoint was disabled", gone=True))),
        ("billing", (Answer(True, "200"), Answer(True, "200"))),
    ):
        note(engine, list(zip(claim(engine, name, NOW, 9, timedelta(0)), answers, strict=True)), NOW, random.Random(1))
    yield engine
    engine.dispose()


def test_what_an_endpoint_did_not_take_is_shown_with_the_next_step(engine: sa.Engine, capsys: Captured) -> None:
    assert run(["alarms"]) == 0
    told = capsys.readouterr()
    assert "operations  2026-10-31 12:00 +00:00  all      410 Gone: the endpoint was disabled" in told.out
    assert "operations  2026-10-31 12:00 +00:00  msg_1    500" in told.out and "billing" not in told.out
    assert "Next: tallyman alarms enable operations" in told.err
    assert run(["alarms", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["endpoint"] for each in document["disabled"]] == ["operations"]
    assert [each["message_id"] for each in document["given_up"]] == ["msg_1"]


def test_that_no_alarm_fires_is_told_with_the_moment_of_which_it_is_known(engine: sa.Engine, capsys: Captured) -> None:
    assert run(["alarms"]) == 0
    assert "no window was decided yet. Does the rules engine run?" in capsys.readouterr().err
    for decided_to, told in (
        (NOW, "2026-10-31 12:00 +00:00: is that old? See tallyman status"),
        (datetime.now(UTC), ""),
    ):
        (before,) = load_states(engine).values() or (RuleState(rule="groups/full"),)
        commit(engine, [Change(before, replace(before, decided_to=decided_to))], NOW)
        assert run(["alarms"]) == 0
        said = capsys.readouterr().err
        assert "no alarm is pending or firing; windows are decided up to " in said and told in said
        assert ("is that old?" in said) == bool(told)
    assert run(["alarms", "--json"]) == 0
    assert datetime.fromisoformat(json.loads(capsys.readouterr().out)["decided_to"]) == decided_to


def test_an_endpoint_that_was_gone_gets_what_waits_for_it(engine: sa.Engine, capsys: Captured) -> None:
    assert next_due(engine, "operations") is None
    assert run(["alarms", "enable", "operations"]) == 0
    assert capsys.readouterr().out == "operations is enabled; for it 1 message waits\n"
    assert next_due(engine, "operations") is not None
    assert run(["alarms", "enable", "operations"]) == 0
    assert "was not disabled, nothing was done" in capsys.readouterr().err


def test_a_message_that_was_given_up_is_sent_again_to_who_did_not_take_it(engine: sa.Engine, capsys: Captured) -> None:
    assert run(["alarms", "deliver-again", "msg_1"]) == 0
    told = capsys.readouterr()
    assert told.out == "msg_1: 1 delivery again\n"
    assert "operations is disabled. Next: tallyman alarms enable operations" in told.err
    later = datetime.now(UTC) + timedelta(days=1)
    assert run(["alarms", "enable", "operations"]) == 0
    assert {each.message_id for each in claim(engine, "operations", later, 9, timedelta(0))} == {"msg_1", "msg_2"}
    assert claim(engine, "billing", later, 9, timedelta(0)) == []
    assert run(["alarms", "deliver-again", "msg_1", "--delivered"]) == 0
    assert [each.message_id for each in claim(engine, "billing", later, 9, timedelta(0))] == ["msg_1"]


@pytest.mark.parametrize(("words", "code", "message"), [
    (["enable", "operation"], 2, 'no endpoint is called "operation"; did you mean "operations"?'),
    (["enable", "pager"], 2, 'no endpoint is called "pager"; known: operations, billing'),
    (["deliver-again", "msg_3"], 2, 'no message is called "msg_3"; see those that were given up with: tallyman alarms'),
    (["enabel", "operations"], 2, 'Did you mean "enable"?'),
    (["enable"], 2, 'expected nothing, or "enable ENDPOINT" or "deliver-again MESSAGE_ID", got "enable"'),
    (["enable", "operations", "--delivered"], 2, "--delivered is for: tallyman alarms deliver-again MESSAGE_ID"),
    (["deliver-again", "msg_2", "--json"], 0, ""),
])  # fmt: skip
def test_what_is_typed_wrongly_is_named(
    engine: sa.Engine, capsys: Captured, words: list[str], code: int, message: str
) -> None:
    assert run(["alarms", *words]) == code
    assert message in capsys.readouterr().err
