"""What every model's command does: run seeded schedules with all rules, without some, or without each in turn."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from tests.model.chunk_model import Broken

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyRules = TypeVar("AnyRules", bound="DataclassInstance")
RunSchedule = Callable[[int, AnyRules], None]


def survey(run_schedule: RunSchedule[AnyRules], rules: AnyRules, schedules: int) -> dict[str, Any]:
    """Run schedules; return how many held, how many broke which invariant, and the first seed that broke."""
    found: Counter[str] = Counter()
    first = None
    for seed in range(schedules):
        try:
            run_schedule(seed, rules)
            found["held"] += 1
        except Broken as broken:
            found[str(broken).partition(" ")[0]] += 1
            first = seed if first is None else first
    return {**dict(sorted(found.items())), "first_seed": first}


def first_broken(run_schedule: RunSchedule[AnyRules], rules: AnyRules, schedules: int) -> int | None:
    """Return the seed of the first schedule that breaks; None if so many hold."""
    for seed in range(schedules):
        try:
            run_schedule(seed, rules)
        except Broken:
            return seed
    return None


def command(run_schedule: RunSchedule[AnyRules], rules: AnyRules, names: Sequence[str]) -> None:
    """Serve a model's command line: how many schedules, then nothing, `each`, or the rules to do without.

    Args:
        names: The rules that `each` goes through.
    """
    schedules, without = int(sys.argv[1]), sys.argv[2:]
    if without == ["each"]:
        for name in names:
            print(f"without {name:28}", survey(run_schedule, replace(rules, **{name: False}), schedules), flush=True)
    else:
        print(survey(run_schedule, replace(rules, **dict.fromkeys(without, False)), schedules))
