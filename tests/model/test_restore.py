"""Stores that are put back to backups of different moments make no wrong invoice, and there is a way out."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tests.model.restore_model import RestoreRules, run_schedule
from tests.model.survey import first_broken


def test_nothing_final_is_made_of_half_a_rebuild_through_500_schedules() -> None:
    for seed in range(500):
        run_schedule(seed, RestoreRules())


@pytest.mark.parametrize("rule", [rule.name for rule in fields(RestoreRules)])
def test_a_restore_goes_wrong_without(rule: str) -> None:
    assert first_broken(run_schedule, replace(RestoreRules(), **{rule: False}), 2000) is not None
