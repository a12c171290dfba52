"""Past usage is counted once under new definitions, as long as the rules of a rebuild are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.rebuild_model import ADDED, RebuildRules, run_schedule
from tests.model.survey import first_broken


def test_rebuilds_lose_and_double_nothing_through_16_schedules() -> None:
    for seed in range(16):
        run_schedule(seed, RebuildRules())


@pytest.mark.parametrize("rule", ADDED)
def test_a_rebuild_goes_wrong_without(rule: str) -> None:
    assert first_broken(run_schedule, replace(RebuildRules(), **{rule: False}), 20) is not None
