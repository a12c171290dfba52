"""With replicas of ClickHouse the books are the same, as long as the rules of replication are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.replica_model import ADDED, ReplicaRules, run_schedule
from tests.model.survey import first_broken


def test_a_lost_replica_and_a_late_one_change_no_figure_through_16_schedules() -> None:
    for seed in range(16):
        run_schedule(seed, ReplicaRules())


@pytest.mark.parametrize("rule", ADDED)
def test_figures_go_wrong_without(rule: str) -> None:
    assert first_broken(run_schedule, replace(ReplicaRules(), **{rule: False}), 20) is not None
