"""What runs in production keeps every invariant of the model through random schedules, on the real tables."""

from __future__ import annotations

import pytest

from tests.model import chunk_check, real
from tests.model.chunk_model import Rules
from tests.model.store import Store

SCHEDULES, STEPS = 30, 120  # by command there are more of both


def test_the_model_itself_holds_through_80_schedules() -> None:
    for seed in range(80):
        chunk_check.run_schedule(seed, Rules())


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_kills_zombies_failed_inserts_and_clock_steps_change_no_figure(seed: int, store: Store) -> None:
    real.run_schedule(seed, store, STEPS)
