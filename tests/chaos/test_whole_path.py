"""The whole path under every kind of fault, at a size for CI; `make chaos` runs the large one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.evidence import FATES
from tests.chaos.faults import FAULTS, KILLS

LIMIT_S = 1800  # it takes two to three minutes; a machine that is slow today is no fault


@pytest.mark.chaos
def test_whatever_is_killed_full_stopped_or_set_nothing_is_lost_doubled_or_changed(tmp_path: Path) -> None:
    outcome = tmp_path / "outcome.json"
    size = ("--events", "100000", "--kills", str(len(KILLS)), "--workers", "1", "--seed", "3")
    limits = ("--limit", str(LIMIT_S / 60), "--patience", "300")
    command = (sys.executable, "-m", "tests.chaos.whole_path", *size, *limits)
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "run"), "--json", str(outcome)],
        capture_output=True, text=True, timeout=LIMIT_S + 60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads(outcome.read_text())
    assert found["struck"].keys() == {*FAULTS, "partitions added"}
    assert sum(found["kills"].values()) >= len(KILLS)
    assert found["events"] >= 100_000
    assert all(found["counts"][fate] for fate in (*FATES, "conflict"))
