"""One round of the engine: which rules may have changed, what their windows show, and the commit of what follows.

A rule is looked at when usage of its meter came, when a minute became complete, when time alone may change one of
its alarms, and at least once in its interval, in case a push was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol, TypeAlias

import sqlalchemy as sa

from rules.alarm import AlarmError, Reading, Snapshot, Transition, evaluate, next_deadline, retire
from rules.model import MINUTE, AlarmRule, UsageExpression
from rules.outbox import Message
from rules.state import Change, RuleState, commit, load_states
from rules.webhook import compose, message_id_of
from tallyman.errors import UsageQueryError
from tallyman.metrics import counter, gauge
from tallyman.usage import UsageQuery, UsageRow

log = logging.getLogger(__name__)

_CATCH_UP = 60  # complete minutes that are looked at one after the other, after the engine was away
_COMPLETE_AGAIN = timedelta(seconds=1)  # how often it is asked how complete usage is
_TRY_AGAIN = timedelta(seconds=1)
_MOST_SUBJECTS = 200
_Answers: TypeAlias = dict[Hashable, Sequence[UsageRow]]


class UsageReader(Protocol):
    """Where usage is read from."""

    def complete_to(self) -> datetime | None:
        """Return up to which event time nothing is missing that was sent in time."""
        ...

    def read(self, query: UsageQuery) -> Sequence[UsageRow]:
        """Answer a question about one meter; `complete_to` was asked a second before, at most.

        A row is a series that has usage, also one whose level only goes on from before, with 0 events. Of the 0 of an
        empty range there is a row only where one series is asked for that has no name.

        Raises:
            StoreError: Usage cannot be read now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Touch:
    """Usage of one subject that came in, by the minutes it belongs to: the first one and the one behind the last."""

    meter: str
    subject: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Look:
    """What a round looks at for one rule.

    Attributes:
        complete: Ends of complete windows, in order; each is decided by itself.
        filling: Ends of windows that are still filling.
        subjects: Whose series of the filling windows are read; empty for all.
    """

    complete: tuple[datetime, ...] = ()
    filling: tuple[datetime, ...] = ()
    subjects: tuple[str, ...] = ()


class Rounds:
    """Holds the rules and what is remembered of them between rounds; for one thread.

    Attributes:
        wake_at: When the next round is due even if nothing comes in.
    """

    def __init__(self, engine: sa.Engine, rules: Sequence[AlarmRule], endpoints: Sequence[str], usage: UsageReader):
        self._engine = engine
        self._rules = {rule.key: rule for rule in rules}
        self._endpoints = tuple(endpoints)
        self._usage = usage
        self._remembered: dict[str, RuleState] = {}
        self._looked_at: dict[str, datetime] = {}
        self._told: datetime | None = None
        self._repeated = 0
        self._complete_to: datetime | None = None
        self._complete_at: datetime | None = None
        self._ask_again = False
        self._refused: set[str] = set()
        self.wake_at: datetime | None = None

    def begin(self, now: datetime) -> int:
        """Load what is remembered and end the alarms of rules that are gone; return how many transitions that made."""
        self._remembered = load_states(self._engine)
        self._looked_at = {}
        gone = [state for key, state in self._remembered.items() if key not in self._rules and state.states]
        changes = [
            Change(state, replace(state, states=()), self._with_messages(None, retire(state.states, now)))
            for state in gone
        ]
        return self._commit(changes, now)

    def run(self, now: datetime, touches: Iterable[Touch] = (), *, look_at: str = "touched") -> int:
        """Evaluate what may have changed and commit it; return how many transitions came of it.

        Args:
            look_at: "touched", or "all" when it is not known what was.

        Raises:
            StoreError: Usage or the control store is away. Nothing changed; run it again.
        """
        now = self._apart(now)
        self._ask_completeness(now)
        answers: _Answers = {}
        touched = list(touches)
        changes = []
        for rule in self._rules.values():
            look = self._plan(rule, now, touched, look_at)
            if look.complete or look.filling:
                change = self._evaluate(rule, look, now, answers)
                changes += [change] if change else []
        count = self._commit(changes, now)
        self._show()
        self.wake_at = self._next_wake(now)
        return count

    def _apart(self, now: datetime) -> datetime:
        """Return an instant of its own for each round, also while the clock stands still: it names episodes."""
        self._repeated = self._repeated + 1 if now == self._told else 0
        self._told = now
        return now + self._repeated * timedelta(microseconds=1)

    def _ask_completeness(self, now: datetime) -> None:
        asked = self._complete_at
        if asked is not None and timedelta(0) <= now - asked < _COMPLETE_AGAIN:
            self._ask_again = True
        else:
            self._ask_again = False
            complete_to = self._usage.complete_to()
            self._complete_to = None if complete_to is None else floor_minute(complete_to)
            self._complete_at = now

    def _plan(self, rule: AlarmRule, now: datetime, touches: Sequence[Touch], look_at: str) -> Look:
        """Choose the windows that a rule is judged by in this round."""
        state = self._remembered.get(rule.key, RuleState(rule=rule.key))
        mine = [touch for touch in touches if _touches(rule.usage, touch)]
        everything = look_at == "all" or self._is_due(rule, state, now)
        complete = self._complete_ends(rule, state, mine, everything)
        if not rule.monotone:
            return Look(complete)
        newest = floor_minute(now) + MINUTE
        if everything:
            return Look(complete, _after(self._complete_to, [newest - MINUTE, newest]), rule.usage.subjects)
        ends = {end for touch in mine for end in (touch.start + MINUTE, touch.end)}
        touched = tuple(sorted({touch.subject for touch in mine}))
        apart = "subject" in rule.usage.by and len(touched) <= _MOST_SUBJECTS
        return Look(complete, _after(self._complete_to, ends), touched if apart else rule.usage.subjects)

    def _complete_ends(
        self, rule: AlarmRule, state: RuleState, touches: Sequence[Touch], everything: bool
    ) -> tuple[datetime, ...]:
        complete_to = self._complete_to
        if complete_to is None:
            return ()
        newest = max(complete_to, state.decided_to or complete_to)  # what was called complete stays so
        start, _ = rule.usage.span(newest)
        late = any(touch.start < newest and touch.end > start for touch in touches)
        if state.decided_to is None or newest == state.decided_to:
            return (newest,) if everything or late or state.decided_to is None else ()
        missed = (newest - state.decided_to) // MINUTE
        if rule.usage.window == "month":
            missed = 1
        elif missed > _CATCH_UP:
            extra = {"rule": rule.key, "minutes": missed - _CATCH_UP, "from": state.decided_to.isoformat()}
            log.warning("minutes_not_evaluated", extra=extra)
        return tuple(newest - MINUTE * back for back in reversed(range(min(missed, _CATCH_UP))))

    def _is_due(self, rule: AlarmRule, state: RuleState, now: datetime) -> bool:
        looked_at = self._looked_at.get(rule.key)
        if looked_at is None or not timedelta(0) <= now - looked_at < rule.interval:
            return True
        deadline = next_deadline(rule, state.states)
        return deadline is not None and deadline <= now

    def _evaluate(self, rule: AlarmRule, look: Look, now: datetime, answers: _Answers) -> Change | None:
        before = self._remembered.get(rule.key, RuleState(rule=rule.key))
        states, transitions = before.states, list[Transition]()
        try:
            filling = [self._snapshot(rule, end, look.subjects, False, answers) for end in look.filling]
            complete = [self._snapshot(rule, end, rule.usage.subjects, True, answers) for end in look.complete]
            steps = [*([each] for each in complete[:-1]), [*complete[-1:], *filling]]
            for snapshots in steps:
                result = evaluate(rule, snapshots, states, now)
                states, transitions = result.states, [*transitions, *result.transitions]
        except (AlarmError, UsageQueryError) as error:
            counter("tallyman_rules_evaluations_total").labels("refused").inc()
            if rule.key not in self._refused:
                log.error("rule_not_decided", extra={"rule": rule.key, "error": str(error)})
            self._refused.add(rule.key)
            self._looked_at[rule.key] = now
            return None
        counter("tallyman_rules_evaluations_total").labels("done").inc()
        self._refused.discard(rule.key)
        self._looked_at[rule.key] = now
        decided_to = look.complete[-1] if look.complete else before.decided_to
        if states == before.states and decided_to == before.decided_to and not transitions:
            return None
        after = replace(before, states=states, decided_to=decided_to)
        return Change(before, after, self._with_messages(rule, transitions))

    def _snapshot(
        self,
        rule: AlarmRule,
        end: datetime,
        subjects: tuple[str, ...],
        complete: bool,
        answers: _Answers,
    ) -> Snapshot:
        """Read a window; rules that ask the same share one answer."""
        usage = rule.usage
        start, end = usage.span(end)
        key = (usage.meter, start, end, subjects, usage.by, usage.zone, *sorted(usage.where.items()))
        if key not in answers:
            answers[key] = self._usage.read(
                UsageQuery(
                    meter=usage.meter, start=start, end=end, subjects=subjects,
                    where=usage.where, group_by=usage.by, zone=usage.zone,
                )
            )  # fmt: skip
        readings = tuple(
            Reading(row.groups, row.value if usage.aggregate == "value" else Decimal(row.events))
            for row in answers[key]
        )
        return Snapshot(start, end, complete, readings)

    def _with_messages(
        self, rule: AlarmRule | None, transitions: Iterable[Transition]
    ) -> list[tuple[Transition, Message | None]]:
        names = (rule.notify if rule else ()) or self._endpoints
        return [
            (
                each,
                Message(message_id_of(each), each.state.identity, compose(each, rule), names)
                if each.to in ("firing", "resolved")
                else None,
            )
            for each in transitions
        ]

    def _commit(self, changes: Sequence[Change], now: datetime) -> int:
        if not changes:
            return 0
        written = commit(self._engine, changes, now)
        self._remembered |= written
        lost = [change.before.rule for change in changes if change.before.rule not in written]
        if lost:  # another engine was faster: go on from what it has stored
            stored = load_states(self._engine)
            for key in lost:
                self._remembered[key] = stored.get(key, RuleState(rule=key))
                self._looked_at.pop(key, None)
        made = [each for change in changes if change.after.rule in written for each, _ in change.transitions]
        for each in made:
            counter("tallyman_rules_transitions_total").labels(each.to).inc()
            extra = {"rule": each.state.rule, "labels": dict(each.state.labels), "to": each.to, "reason": each.reason}
            log.info("alarm_changed", extra=extra)
        return len(made)

    def _show(self) -> None:
        alarms = [state.phase for key in self._rules if (known := self._remembered.get(key)) for state in known.states]
        for phase in ("pending", "firing"):
            gauge("tallyman_rules_alarms").labels(phase).set(alarms.count(phase))

    def _next_wake(self, now: datetime) -> datetime | None:
        """Return when something is due: a `for` that ends, an interval, a minute that may be complete by then."""
        due = []
        for rule in self._rules.values():
            looked_at = self._looked_at.get(rule.key)
            due.append(now if looked_at is None else looked_at + rule.interval)
            known = self._remembered.get(rule.key)
            deadline = next_deadline(rule, known.states) if known else None
            if deadline is not None:
                # One that has passed could not be decided yet: the window is still filling.
                due.append(deadline if deadline > now else now + _TRY_AGAIN)
        if self._ask_again and self._complete_at is not None:
            due.append(self._complete_at + _COMPLETE_AGAIN)
        return min(due, default=None)


def floor_minute(instant: datetime) -> datetime:
    """Return the beginning of an instant's minute."""
    return instant.replace(second=0, microsecond=0)


def _touches(usage: UsageExpression, touch: Touch) -> bool:
    return touch.meter == usage.meter and (not usage.subjects or touch.subject in usage.subjects)


def _after(complete_to: datetime | None, ends: Iterable[datetime]) -> tuple[datetime, ...]:
    """Return the ends of windows that are still filling, without those that are complete."""
    return tuple(sorted({end for end in ends if complete_to is None or end > complete_to}))
