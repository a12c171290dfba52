"""/readyz tells the truth about the rules engine."""

from __future__ import annotations

import time

import pytest

from rules.engine import Health


def test_it_is_not_ready_before_it_has_decided_once() -> None:
    assert Health().ready() == (False, "starting")


def test_it_is_ready_while_it_decides() -> None:
    health = Health()
    health.note()
    assert health.ready() == (True, "deciding alarms")


def test_it_says_what_it_waits_for() -> None:
    health = Health()
    health.note("ClickHouse: away")
    assert health.ready() == (False, "ClickHouse: away")


def test_a_stuck_evaluation_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health()
    health.note()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 31)
    assert health.ready() == (False, "an evaluation is stuck for 31 s")
