"""Read plans from a project's `plans/*.yaml` and check them against its meters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rules.plan import Charge, Plan
from tallyman.errors import ConfigError
from tallyman.files import load_marked_folder, nearest, refuse_repeats
from tallyman.meter import Meter

_ADDS_UP = (
    "expected a meter that adds up over a month (sum, count, lifecycle, time_weighted with answer: integral, "
    "counter with of: sum)"
)


@dataclass(frozen=True, slots=True)
class PlanFile:
    """What one file of `plans/` holds."""

    plans: tuple[Plan, ...]


def read_plans(folder: Path, meters: Sequence[Meter]) -> dict[str, Plan]:
    """Read all plans of a folder, by their ids.

    Raises:
        ConfigError: Every problem with file and line: unknown keys, meters and dimensions, prices that are no
            numbers, tiers that leave a gap, charges that would bill the same usage twice.
    """
    files = load_marked_folder(folder, PlanFile)
    by_meter = {meter.meter: meter for meter in meters}
    problems = [
        f"{file.place(f'plans[{i}].charges[{j}].{problem[0]}')}: {problem[1]}"
        for file in files
        for i, plan in enumerate(file.value.plans)
        for j, charge in enumerate(plan.charges)
        if (problem := find_meter_problem(charge, by_meter))
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    refuse_repeats(
        "plan",
        [(plan.plan, file.place(f"plans[{i}].plan")) for file in files for i, plan in enumerate(file.value.plans)],
    )
    return {plan.plan: plan for file in files for plan in file.value.plans}


def find_meter_problem(charge: Charge, by_meter: dict[str, Meter]) -> tuple[str, str] | None:
    """Return the key of a charge that does not fit its meter and what is wrong with it, or None."""
    if charge.meter is None:
        return None
    meter = by_meter.get(charge.meter)
    if meter is None:
        return "meter", f'unknown meter "{charge.meter}"{nearest(charge.meter, by_meter)}'
    if not meter.adds_up:
        # A tenant has many series and an account many tenants: peaks and averages of them do not add up to one.
        makes = {"time_weighted": f", answer: {meter.answer}", "counter": f", of: {meter.of}"}
        return "meter", f"{_ADDS_UP}, {charge.meter} is {meter.aggregation}{makes.get(meter.aggregation, '')}"
    for name in charge.where:
        if name not in meter.dimensions:
            return f"where.{name}", f"unknown dimension of {charge.meter}{nearest(name, meter.dimensions)}"
    return None
