"""What a command says is in force is so, whoever is killed or overtaken, as long as the rules of closes are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.chunk_model import Broken
from tests.model.close_model import ADDED, CloseRules, run_schedule

# The first schedules in which each rule is what keeps figures right.
PINNED = {"in_force_is_written": 6, "closes_name_their_topic": 170, "looks_once_more": 170, "a_start_mends": 3302}


def test_what_is_said_to_be_in_force_is_through_2000_schedules() -> None:
    for seed in range(2000):
        run_schedule(seed, CloseRules())


@pytest.mark.parametrize("rule", ADDED)
def test_something_is_counted_by_older_definitions_without(rule: str) -> None:
    run_schedule(PINNED[rule], CloseRules())
    with pytest.raises(Broken):
        run_schedule(PINNED[rule], replace(CloseRules(), **{rule: False}))
