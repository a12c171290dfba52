"""Behind damaged places booking goes on as operators decide, on the real tables: all else stays as the log has it."""

from __future__ import annotations

import pytest

from tests.model import real
from tests.model.store import Store

SCHEDULES, STEPS = 10, 400  # by command there are more of both

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, SCHEDULES))])
def test_retention_eats_what_is_not_booked_and_two_operators_repair_at_once(seed: int, store: Store) -> None:
    real.run_repaired(seed, store, STEPS)
