"""The whole path under kill -9, at a size for CI; `python -m tests.chaos.whole_path` runs the large one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.whole_path import Run


@pytest.mark.chaos
def test_kill_9_of_everything_at_random_loses_and_doubles_nothing(tmp_path: Path) -> None:
    outcome = Run(tmp_path / "project", events=200_000, kills=8, seed=3).go()
    assert outcome.differences == []
    assert sum(outcome.kills.values()) >= 8
    assert outcome.counts["aggregated"] == outcome.events
