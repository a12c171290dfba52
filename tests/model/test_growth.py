"""A topic grows without a wrong figure, as long as the rules of growth are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.chunk_model import Broken
from tests.model.growth_model import ADDED, GrowthRules, run_schedule


def test_growth_changes_no_figure_through_16_schedules() -> None:
    for seed in range(16):
        run_schedule(seed, GrowthRules())


@pytest.mark.parametrize("rule", ADDED)
def test_figures_go_wrong_without(rule: str) -> None:
    with pytest.raises(Broken):
        run_schedule(0, replace(GrowthRules(), **{rule: False}))
