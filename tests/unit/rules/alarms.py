"""What the alarm tests share: a rule, a clock, and windows that end now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from rules.alarm import AlarmState, Evaluation, Reading, Snapshot, Transition, evaluate
from rules.model import AlarmRule, Condition, UsageExpression

START = datetime(2026, 10, 31, 23, 0, tzinfo=UTC)
ZOE, BJORN = "Zoë Åström", "Björn Þórsson"


def make_rule(bound: str = "above 100", **changes: Any) -> AlarmRule:
    """Return a rule on compute seconds; `bound` is "above 100"."""
    comparison, threshold = bound.split()
    usage = {"meter": "compute.seconds", "window": timedelta(minutes=1)} | changes.pop("usage", {})
    values: dict[str, Any] = {
        "key": "tenants/busy", "group": "tenants", "alert": "busy", "usage": UsageExpression(**usage),
        "condition": Condition(comparison, Decimal(threshold)),  # type: ignore[arg-type]
    }  # fmt: skip
    if "for_" in changes:
        changes["for_"] = timedelta(seconds=changes["for_"])
    return AlarmRule(**values | changes)


def at(second: int) -> datetime:
    """Return an instant of the test's clock."""
    return START + timedelta(seconds=second)


def window(
    second: int, values: Mapping[str, int | str], *, complete: bool = True, length: timedelta = timedelta(minutes=1)
) -> Snapshot:
    """Return a window that ends then, with a figure for each subject."""
    readings = tuple(Reading({"subject": name}, Decimal(value)) for name, value in values.items())
    return Snapshot(at(second) - length, at(second), complete, readings)


class Alarms:
    """A rule that is evaluated again and again."""

    def __init__(self, rule: AlarmRule) -> None:
        self.rule = rule
        self.states: tuple[AlarmState, ...] = ()
        self.transitions: list[Transition] = []

    def see(self, second: int, *snapshots: Snapshot) -> list[str]:
        """Evaluate at an instant; return what changed, as "to" words."""
        result: Evaluation = evaluate(self.rule, snapshots, self.states, at(second))
        self.states = result.states
        self.transitions += result.transitions
        return [transition.to for transition in result.transitions]

    def usage(self, second: int, values: Mapping[str, int | str]) -> list[str]:
        """Evaluate the complete window that ends at an instant."""
        return self.see(second, window(second, values))

    @property
    def phases(self) -> dict[str, str]:
        """The phase of each subject's alarm."""
        return {str(state.series.get("subject")): state.phase for state in self.states if state.phase != "seen"}
