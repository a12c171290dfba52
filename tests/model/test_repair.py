"""Behind a damaged place booking goes on by a decision, and everything else stays as the log has it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.repair_model import ADDED, RepairRules, run_schedule
from tests.model.survey import first_broken


def test_a_repair_costs_what_was_skipped_and_nothing_else_through_16_schedules() -> None:
    for seed in range(16):
        run_schedule(seed, RepairRules())


@pytest.mark.parametrize("rule", ADDED)
def test_figures_go_wrong_without(rule: str) -> None:
    assert first_broken(run_schedule, replace(RepairRules(), **{rule: False}), 100) is not None
