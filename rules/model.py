"""Alarm rules: the file in the Prometheus shape, and the rule that is made of it once its meter is known.

AlarmFile -> groups: AlarmGroup -> rules: AlarmEntry -> expr: Expression -> usage: UsageExpression
AlarmRule is one entry with the group's settings and its meter folded in; the evaluator sees nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

import msgspec

from tallyman.period import find_zone, month_period

Comparison = Literal["above", "at_least", "below", "at_most"]
NoData = Literal["ok", "alert", "keep"]
Aggregate = Literal["value", "events"]
COMPARISONS: tuple[Comparison, ...] = ("above", "at_least", "below", "at_most")
MINUTE = timedelta(minutes=1)
LONGEST_WINDOW = timedelta(days=35)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageExpression:
    """Which usage an alarm looks at.

    Attributes:
        window: How far back from its end, in whole minutes; "month" is the calendar month so far, in `zone`.
        by: `subject` and dimensions; each value of them is a series with a state of its own. Empty: one series.
        where: Dimension -> values of which one must match.
        subjects: Tenants; empty for all.
        aggregate: The meter's own figure, or the number of events behind it.
    """

    meter: str
    window: timedelta | Literal["month"]
    by: tuple[str, ...] = ("subject",)
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subjects: tuple[str, ...] = ()
    aggregate: Aggregate = "value"
    zone: str = "UTC"

    def __post_init__(self) -> None:
        find_zone(self.zone)
        if self.window == "month":
            return
        if not MINUTE <= self.window <= LONGEST_WINDOW or self.window % MINUTE:
            raise ValueError(f'window: expected whole minutes from 1m to 35d, or "month", got {self.window}')

    def span(self, end: datetime) -> tuple[datetime, datetime]:
        """Return the window that ends at `end`, half-open, UTC."""
        if self.window == "month":
            last = (end - timedelta(microseconds=1)).astimezone(find_zone(self.zone))
            return month_period(f"{last.year:04}-{last.month:02}", self.zone).start, end.astimezone(UTC)
        return end.astimezone(UTC) - self.window, end.astimezone(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A figure of usage and the bound that it must not cross; exactly one bound is given."""

    usage: UsageExpression
    above: Decimal | None = None
    at_least: Decimal | None = None
    below: Decimal | None = None
    at_most: Decimal | None = None

    def __post_init__(self) -> None:
        given = [name for name in COMPARISONS if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"expected one of {', '.join(COMPARISONS)}, got {got}")

    @property
    def condition(self) -> Condition:
        """The bound, with its direction."""
        return next(Condition(name, bound) for name in COMPARISONS if (bound := getattr(self, name)) is not None)


@dataclass(frozen=True, slots=True)
class Condition:
    """A bound and on which side of it the alarm is."""

    comparison: Comparison
    threshold: Decimal

    @property
    def rising(self) -> bool:
        """Whether more usage can bring the alarm about."""
        return self.comparison in ("above", "at_least")

    def holds(self, value: Decimal) -> bool:
        """Whether a value is on the alarm's side."""
        match self.comparison:
            case "above":
                return value > self.threshold
            case "at_least":
                return value >= self.threshold
            case "below":
                return value < self.threshold
            case "at_most":
                return value <= self.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmEntry:
    """One rule as the file has it.

    Attributes:
        for_: How long the condition must hold before the alarm fires.
        keep_firing_for: How long it goes on firing once the condition no longer holds.
        resolve: A firing alarm stays until the value has left this bound too, so that it does not flap.
        no_data: What a series means whose window has no usage: no alarm, an alarm, or what it was before. A level or
            state that holds over the window is usage, from 0 events; one that is 0 is gone.
        monotone: Whether more data can only confirm the condition, so that it need not wait for the window to be
            complete. Left out: yes for sums, counts and maxima above a bound, and for minima below one.
        notify: Names of endpoints; empty for the group's, and if that has none for all.
    """

    alert: str
    expr: Expression
    for_: timedelta = timedelta(0)
    keep_firing_for: timedelta = timedelta(0)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    resolve: Decimal | None = None
    no_data: NoData = "ok"
    monotone: bool | None = None
    notify: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.alert or self.alert != self.alert.strip():
            raise ValueError(f'alert: expected a name, got "{self.alert}"')
        condition, resolve = self.expr.condition, self.resolve
        if resolve is not None and (
            resolve > condition.threshold if condition.rising else resolve < condition.threshold
        ):
            side = "at most" if condition.rising else "at least"
            raise ValueError(f"resolve: expected {side} {condition.threshold}, got {resolve}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmGroup:
    """Rules that share settings. `interval` is how often they are looked at when no usage came that touches them."""

    name: str
    rules: tuple[AlarmEntry, ...] = ()
    interval: timedelta = timedelta(minutes=1)
    labels: Mapping[str, str] = field(default_factory=dict)
    notify: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.interval < timedelta(seconds=1):
            raise ValueError(f"interval: expected 1s or more, got {self.interval}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmFile:
    """One file of `alarms/`."""

    groups: tuple[AlarmGroup, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRule:
    """A rule that is ready to be evaluated.

    Attributes:
        key: Names the rule in the control store: group, alert and fixed labels. Another key is another rule.
        unit: The meter's.
        monotone: Whether usage that may not be complete can already prove the condition.
    """

    key: str
    group: str
    alert: str
    usage: UsageExpression
    condition: Condition
    for_: timedelta = timedelta(0)
    keep_firing_for: timedelta = timedelta(0)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    resolve: Decimal | None = None
    no_data: NoData = "ok"
    monotone: bool = False
    unit: str = "1"
    interval: timedelta = timedelta(minutes=1)
    notify: tuple[str, ...] = ()

    @property
    def latched(self) -> bool:
        """Whether it fires at most once in its period: a budget that was used up stays used up."""
        return self.usage.window == "month" and self.monotone


def rule_key(group: str, alert: str, labels: Mapping[str, str]) -> str:
    """Return a rule's name in the control store.

    >>> rule_key("budgets", "MonthlyBudget", {"severity": "page"})
    'budgets/MonthlyBudget{"severity":"page"}'
    """
    fixed = msgspec.json.encode(dict(sorted(labels.items()))).decode() if labels else ""
    return f"{group}/{alert}{fixed}"
