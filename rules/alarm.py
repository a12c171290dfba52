"""Decide about alarms: usage of some windows in, new states and transitions out. No clock, no store, no network.

    inactive --condition--> pending --held for `for`--> firing --condition gone, keep_firing_for over--> resolved
                               |--condition gone--> inactive

A window that is complete decides both ways. One that is still filling can only prove a monotone condition (a sum
that is above its bound stays above it); where it does not, nothing is known and nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Literal, TypeAlias

import msgspec

from rules.model import AlarmRule, Condition
from rules.template import expand
from tallyman.errors import TallymanError

Phase = Literal["seen", "pending", "firing"]
Outcome = Literal["inactive", "pending", "firing", "resolved"]
Reason = Literal["condition", "no_data", "for_raised", "period_over", "rule_removed"]
Series: TypeAlias = Mapping[str, str | None]


class AlarmError(TallymanError):
    """A rule cannot be decided; its alarms stay as they are."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The figure of one series in one window."""

    series: Series
    value: Decimal


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one window shows: a reading of each series that has usage in it.

    Attributes:
        complete: Whether all usage of the window is in. At most one complete snapshot goes into an evaluation, with
            all series of the rule; the others may have some series only.
    """

    start: datetime
    end: datetime
    complete: bool
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmState:
    """What is remembered of one alarm, or, as "seen", of a series that must not fall silent.

    Attributes:
        identity: Hash of the labels.
        series: The values that the rule's usage is told apart by.
        active_at: Since when the condition holds; a restart keeps it.
        quiet_since: Since when it no longer holds, while keep_firing_for keeps it firing.
        window_start: The newest window in which the condition was seen to hold; an older one cannot end it.
        episode: Names this time around, in message ids.
    """

    rule: str
    identity: str
    series: Series
    labels: Mapping[str, str]
    phase: Phase
    active_at: datetime
    fired_at: datetime | None = None
    quiet_since: datetime | None = None
    window_start: datetime
    window_end: datetime
    episode: str
    value: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A change of an alarm, as history keeps it. Those into firing and out of it are delivered."""

    state: AlarmState
    alert: str
    previous: Outcome
    to: Outcome
    at: datetime
    reason: Reason
    value: Decimal | None
    annotations: Mapping[str, str]
    complete: bool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The states after an evaluation, and what changed."""

    states: tuple[AlarmState, ...]
    transitions: tuple[Transition, ...]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What the windows say of one series."""

    kind: Literal["holds", "gone", "silent"]
    window: Snapshot
    value: Decimal | None


def evaluate(
    rule: AlarmRule, snapshots: Sequence[Snapshot], states: Sequence[AlarmState], now: datetime
) -> Evaluation:
    """Decide about all alarms of a rule. The same again at the same instant changes nothing.

    Args:
        snapshots: One complete window at most, and windows that are still filling.
        states: The rule's, as the last evaluation returned them; `seen` ones included.

    Raises:
        AlarmError: Two series have the same labels, or two snapshots are complete. Nothing changes.
    """
    complete = _the_complete(snapshots)
    seen = [state for state in states if state.phase == "seen"]
    alarms = [state for state in states if state.phase != "seen"]
    if rule.no_data == "alert" and complete:
        seen = _remember(rule, complete, seen, now)
    verdicts = _judge(rule, snapshots, complete, [*seen, *alarms])
    holding = _holding(rule, verdicts)
    kept: list[AlarmState] = []
    transitions: list[Transition] = []
    for state in alarms:
        verdict = holding.pop(state.identity, None)
        if verdict is not None:
            after, changes = _go_on(rule, state, verdict[1], now)
        else:
            after, changes = _maybe_end(rule, state, verdicts.get(_key(state.series)), now)
        kept += after
        transitions += changes
    for labels, verdict_here, series in ((v[0], v[1], v[2]) for v in holding.values()):
        after, changes = _open(rule, series, labels, verdict_here, now)
        kept += after
        transitions += changes
    return Evaluation((*seen, *kept), tuple(transitions))


def next_deadline(rule: AlarmRule, states: Iterable[AlarmState]) -> datetime | None:
    """Return when time alone could change one of these states."""
    due = [state.active_at + rule.for_ for state in states if state.phase == "pending"]
    due += [state.quiet_since + rule.keep_firing_for for state in states if state.quiet_since is not None]
    return min(due, default=None)


def retire(states: Iterable[AlarmState], now: datetime) -> tuple[Transition, ...]:
    """Return how the alarms of a rule end that is no longer in the files: firing ones are resolved."""
    return tuple(
        Transition(
            state=state,
            alert=state.labels.get("alertname", ""),
            previous=state.phase,
            to="resolved" if state.phase == "firing" else "inactive",
            at=now,
            reason="rule_removed",
            value=state.value,
            annotations={},
            complete=True,
        )
        for state in states
        if state.phase != "seen"
    )


def labels_of(rule: AlarmRule, series: Series, value: Decimal | None) -> dict[str, str]:
    """Return an alarm's labels: the series', overridden by the rule's, and its name. They are its identity."""
    names = _names(rule, series, value)
    own = {name: expand(text, names) for name, text in rule.labels.items()}
    return {**{name: text for name, text in series.items() if text is not None}, **own, "alertname": rule.alert}


def identity_of(labels: Mapping[str, str]) -> str:
    """Return the hash of labels, whatever their order."""
    return sha256(msgspec.json.encode(dict(sorted(labels.items())))).hexdigest()[:32]


def plain(value: Decimal | None) -> str:
    """Write a value for people: all its digits, no exponent, no zeros at the end.

    >>> plain(Decimal("12.500"))
    '12.5'
    """
    if value is None:
        return "no data"
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _the_complete(snapshots: Sequence[Snapshot]) -> Snapshot | None:
    found = [snapshot for snapshot in snapshots if snapshot.complete]
    if len(found) > 1:
        raise AlarmError(f"expected one complete window, got {len(found)}; evaluate them one after the other")
    return found[0] if found else None


def _remember(rule: AlarmRule, complete: Snapshot, seen: list[AlarmState], now: datetime) -> list[AlarmState]:
    """Add the series of a complete window to those that must not fall silent."""
    known = {_key(state.series) for state in seen}
    everyone: list[Series] = [reading.series for reading in complete.readings]
    if not rule.usage.by:
        everyone.append({})  # the one series of a rule without `by` is expected from the start
    fresh = {_key(series): series for series in everyone if _key(series) not in known}
    return seen + [
        AlarmState(
            rule=rule.key, identity=f"seen/{identity_of(labels_of(rule, series, None))}", series=series, labels={},
            phase="seen", active_at=now, window_start=complete.start, window_end=complete.end, episode="",
        )
        for series in fresh.values()
    ]  # fmt: skip


def _judge(
    rule: AlarmRule, snapshots: Sequence[Snapshot], complete: Snapshot | None, states: Sequence[AlarmState]
) -> dict[str, _Verdict]:
    """Return what is known of each series; nothing is known of one that is not in the result."""
    verdicts: dict[str, _Verdict] = {}
    if complete:
        for state in states:
            verdicts[_key(state.series)] = _Verdict("silent", complete, None)
        for reading in complete.readings:
            kind: Literal["holds", "gone"] = "holds" if rule.condition.holds(reading.value) else "gone"
            verdicts[_key(reading.series)] = _Verdict(kind, complete, reading.value)
    if rule.monotone:
        for snapshot in sorted(snapshots, key=lambda each: each.end):
            for reading in () if snapshot.complete else snapshot.readings:
                if rule.condition.holds(reading.value):
                    verdicts[_key(reading.series)] = _Verdict("holds", snapshot, reading.value)
    return verdicts


def _holding(
    rule: AlarmRule, verdicts: Mapping[str, _Verdict]
) -> dict[str, tuple[dict[str, str], _Verdict, Series]]:
    """Return the alarms whose condition holds, by identity: labels, verdict, series."""
    holding: dict[str, tuple[dict[str, str], _Verdict, Series]] = {}
    for key, verdict in verdicts.items():
        if verdict.kind == "holds" or (verdict.kind == "silent" and rule.no_data == "alert"):
            series: Series = msgspec.json.decode(key, type=dict[str, str | None])
            labels = labels_of(rule, series, verdict.value)
            identity = identity_of(labels)
            if identity in holding:
                other = _key(holding[identity][2])
                raise AlarmError(
                    f"{rule.key}: two series have the same labels {msgspec.json.encode(labels).decode()}: "
                    f"{other} and {key}; take away the rule's label that overrides what tells them apart"
                )
            holding[identity] = labels, verdict, series
    return holding


def _go_on(
    rule: AlarmRule, state: AlarmState, verdict: _Verdict, now: datetime
) -> tuple[list[AlarmState], list[Transition]]:
    """The condition holds, for an alarm that is pending or firing."""
    window = verdict.window
    if rule.latched and window.start != state.window_start:
        if window.start < state.window_start:  # the old month is still being completed
            return [state], []
        if state.phase == "firing":
            opened, changes = _open(rule, state.series, state.labels, verdict, now)
            return opened, [_change(rule, state, "resolved", now, "period_over", verdict), *changes]
    moved = replace(
        state,
        quiet_since=None,
        window_start=max(state.window_start, window.start),
        window_end=max(state.window_end, window.end),
        value=verdict.value,
    )
    if state.phase == "pending" and now - state.active_at >= rule.for_:
        fired = replace(moved, phase="firing", fired_at=now)
        return [fired], [_change(rule, fired, "firing", now, _reason(verdict), verdict, previous="pending")]
    if state.phase == "firing" and state.fired_at is not None and now - state.active_at < rule.for_:
        waited = state.fired_at - state.active_at
        if waited < rule.for_:  # else only the clock went back
            again = replace(moved, phase="pending", fired_at=None, episode=_episode(now, window))
            return [again], [
                _change(rule, state, "resolved", now, "for_raised", verdict),
                _change(rule, again, "pending", now, "for_raised", verdict, previous="inactive"),
            ]
    # A figure alone that moved is not worth a write to the store.
    unmoved = moved.window_end == state.window_end and moved.quiet_since == state.quiet_since
    return [state if unmoved else moved], []


def _maybe_end(
    rule: AlarmRule, state: AlarmState, verdict: _Verdict | None, now: datetime
) -> tuple[list[AlarmState], list[Transition]]:
    """The condition is not known to hold, for an alarm that is pending or firing."""
    if verdict is None:
        return [state], []
    window = verdict.window
    if verdict.kind != "holds":  # a series that holds under other labels has left this alarm behind
        newer_knows = window.end < state.window_end
        kept_on_silence = verdict.kind == "silent" and rule.no_data == "keep"
        used_up = rule.latched and state.phase == "firing" and window.start <= state.window_start
        if newer_knows or kept_on_silence or used_up:
            return [state], []
        if state.phase == "firing" and verdict.value is not None and _not_yet_resolved(rule, verdict.value):
            return [replace(state, quiet_since=None, window_start=window.start, window_end=window.end)], []
    if state.phase == "pending":
        return [], [_change(rule, state, "inactive", now, _reason(verdict), verdict)]
    quiet_since = state.quiet_since or now
    if now - quiet_since >= rule.keep_firing_for:
        return [], [_change(rule, state, "resolved", now, _reason(verdict), verdict)]
    return [state if state.quiet_since else replace(state, quiet_since=now)], []


def _open(
    rule: AlarmRule, series: Series, labels: Mapping[str, str], verdict: _Verdict, now: datetime
) -> tuple[list[AlarmState], list[Transition]]:
    window = verdict.window
    at_once = not rule.for_
    state = AlarmState(
        rule=rule.key, identity=identity_of(labels), series=series, labels=labels,
        phase="firing" if at_once else "pending", active_at=now, fired_at=now if at_once else None,
        window_start=window.start, window_end=window.end, episode=_episode(now, window), value=verdict.value,
    )  # fmt: skip
    return [state], [_change(rule, state, state.phase, now, _reason(verdict), verdict, previous="inactive")]


def _change(
    rule: AlarmRule,
    state: AlarmState,
    to: Outcome | Phase,
    now: datetime,
    reason: Reason,
    verdict: _Verdict,
    previous: Outcome | None = None,
) -> Transition:
    assert to != "seen" and state.phase != "seen"
    names = _names(rule, state.series, verdict.value)
    return Transition(
        state=state,
        alert=rule.alert,
        previous=previous or state.phase,
        to=to,
        at=now,
        reason=reason,
        value=verdict.value,
        annotations={name: expand(text, names) for name, text in rule.annotations.items()},
        complete=verdict.window.complete,
    )


def _names(rule: AlarmRule, series: Series, value: Decimal | None) -> dict[str, str]:
    """Return what templates may use: the labels are the series', not the rule's."""
    names = {
        "value": plain(value), "threshold": plain(rule.condition.threshold),
        "unit": rule.unit, "meter": rule.usage.meter,
    }  # fmt: skip
    return names | {f"labels.{name}": series.get(name) or "" for name in rule.usage.by}


def _reason(verdict: _Verdict) -> Reason:
    return "no_data" if verdict.kind == "silent" else "condition"


def _not_yet_resolved(rule: AlarmRule, value: Decimal) -> bool:
    return rule.resolve is not None and Condition(rule.condition.comparison, rule.resolve).holds(value)


def _episode(now: datetime, window: Snapshot) -> str:
    return f"{now.isoformat()}/{window.end.isoformat()}"


def _key(series: Series) -> str:
    return msgspec.json.encode(dict(sorted(series.items()))).decode()
