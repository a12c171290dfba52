"""Alarm states and history in the control store. States, history and deliveries change together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import msgspec
import sqlalchemy as sa

from rules.alarm import AlarmState, Transition, plain
from rules.outbox import Message, put
from rules.tables import (
    alarm_history,
    alarm_rules,
    alarm_states,
    from_us,
    from_us_or_none,
    to_us,
    to_us_or_none,
)
from tallyman.control import compare_and_set, read, write


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleState:
    """Everything that is remembered of one rule.

    Attributes:
        version: Grows with each commit; 0 was never committed.
        decided_to: End of the newest complete window that was evaluated.
    """

    rule: str
    version: int = 0
    decided_to: datetime | None = None
    states: tuple[AlarmState, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A rule before and after an evaluation, with the transitions between and the messages that they make."""

    before: RuleState
    after: RuleState
    transitions: Sequence[tuple[Transition, Message | None]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmEvent:
    """A line of the alarm history."""

    at: datetime
    rule: str
    alert: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    previous: str
    to: str
    reason: str
    value: Decimal | None
    window_start: datetime
    window_end: datetime
    complete: bool
    message_id: str | None


def load_states(engine: sa.Engine) -> dict[str, RuleState]:
    """Return what is remembered of every rule, by its key."""
    with read(engine) as connection:
        states: dict[str, list[AlarmState]] = {}
        for row in connection.execute(sa.select(alarm_states).order_by(alarm_states.c.rule, alarm_states.c.identity)):
            states.setdefault(row.rule, []).append(_state(row))
        return {
            row.rule: RuleState(
                rule=row.rule,
                version=row.version,
                decided_to=from_us_or_none(row.decided_to_us),
                states=tuple(states.get(row.rule, ())),
            )
            for row in connection.execute(sa.select(alarm_rules))
        }


def commit(
    engine: sa.Engine,
    changes: Sequence[Change],
    now: datetime,
    after_step: Callable[[str], None] = lambda step: None,
) -> dict[str, RuleState]:
    """Write changes of rules with their history and messages in one transaction.

    Args:
        after_step: Called with the name of each step that was done; tests crash there.

    Returns:
        The rules as they are stored now. One that somebody else has changed meanwhile is not in it, nothing of it
        was written: load the states again.
    """
    written: dict[str, RuleState] = {}
    with write(engine) as connection:
        after_step("begin")
        for change in changes:
            stored = _advance(connection, change)
            if stored is None:
                continue
            written[change.after.rule] = stored
            after_step("version")
            _write_states(connection, change.before.states, change.after.states)
            after_step("states")
            _write_history(connection, change.transitions)
            after_step("history")
            put(connection, [message for _, message in change.transitions if message], now)
            after_step("outbox")
    after_step("commit")
    return written


def read_history(engine: sa.Engine, limit: int = 100) -> list[AlarmEvent]:
    """Return the newest events of the alarm history, oldest of them first."""
    newest = sa.select(alarm_history).order_by(alarm_history.c.number.desc()).limit(limit)
    with read(engine) as connection:
        return [_event(row) for row in reversed(connection.execute(newest).all())]


def _advance(connection: sa.Connection, change: Change) -> RuleState | None:
    before, after = change.before, change.after
    moved = {"version": before.version + 1, "decided_to_us": to_us_or_none(after.decided_to)}
    if before.version == 0:
        known = connection.execute(sa.select(alarm_rules.c.rule).where(alarm_rules.c.rule == before.rule)).first()
        if known:
            return None
        connection.execute(sa.insert(alarm_rules).values(rule=before.rule, **moved))
    elif not compare_and_set(connection, alarm_rules, {"rule": before.rule, "version": before.version}, moved):
        return None
    return RuleState(
        rule=after.rule, version=before.version + 1, decided_to=after.decided_to, states=tuple(after.states)
    )


def _write_states(connection: sa.Connection, before: Sequence[AlarmState], after: Sequence[AlarmState]) -> None:
    old = {state.identity: state for state in before}
    new = {state.identity: state for state in after}
    for identity, state in old.items():
        if new.get(identity) != state:
            key = (alarm_states.c.rule == state.rule) & (alarm_states.c.identity == identity)
            connection.execute(sa.delete(alarm_states).where(key))
    fresh = [_row(state) for identity, state in new.items() if old.get(identity) != state]
    if fresh:
        connection.execute(sa.insert(alarm_states), fresh)


def _write_history(connection: sa.Connection, transitions: Sequence[tuple[Transition, Message | None]]) -> None:
    rows = [
        {
            "at_us": to_us(transition.at),
            "rule": transition.state.rule,
            "alert": transition.alert,
            "identity": transition.state.identity,
            "labels": _json(transition.state.labels),
            "annotations": _json(transition.annotations),
            "previous": transition.previous,
            "to": transition.to,
            "reason": transition.reason,
            "value": None if transition.value is None else plain(transition.value),
            "window_start_us": to_us(transition.state.window_start),
            "window_end_us": to_us(transition.state.window_end),
            "complete": transition.complete,
            "message_id": message.message_id if message else None,
        }
        for transition, message in transitions
    ]
    if rows:
        connection.execute(sa.insert(alarm_history), rows)


def _row(state: AlarmState) -> dict[str, object]:
    return {
        "rule": state.rule,
        "identity": state.identity,
        "phase": state.phase,
        "series": _json(state.series),
        "labels": _json(state.labels),
        "active_at_us": to_us(state.active_at),
        "fired_at_us": to_us_or_none(state.fired_at),
        "quiet_since_us": to_us_or_none(state.quiet_since),
        "window_start_us": to_us(state.window_start),
        "window_end_us": to_us(state.window_end),
        "episode": state.episode,
        "value": None if state.value is None else plain(state.value),
    }


def _state(row: sa.Row[tuple[object, ...]]) -> AlarmState:
    return AlarmState(
        rule=row.rule,
        identity=row.identity,
        phase=row.phase,
        series=msgspec.json.decode(row.series),
        labels=msgspec.json.decode(row.labels),
        active_at=from_us(row.active_at_us),
        fired_at=from_us_or_none(row.fired_at_us),
        quiet_since=from_us_or_none(row.quiet_since_us),
        window_start=from_us(row.window_start_us),
        window_end=from_us(row.window_end_us),
        episode=row.episode,
        value=None if row.value is None else Decimal(row.value),
    )


def _event(row: sa.Row[tuple[object, ...]]) -> AlarmEvent:
    return AlarmEvent(
        at=from_us(row.at_us),
        rule=row.rule,
        alert=row.alert,
        labels=msgspec.json.decode(row.labels),
        annotations=msgspec.json.decode(row.annotations),
        previous=row.previous,
        to=row.to,
        reason=row.reason,
        value=None if row.value is None else Decimal(row.value),
        window_start=from_us(row.window_start_us),
        window_end=from_us(row.window_end_us),
        complete=row.complete,
        message_id=row.message_id,
    )


def _json(values: Mapping[str, str | None] | Mapping[str, str]) -> str:
    return msgspec.json.encode(dict(sorted(values.items()))).decode()
