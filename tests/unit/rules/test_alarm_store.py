"""An alarm's transition and its deliveries are committed together: a crash at any step loses none of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from rules import outbox
from rules.alarm import evaluate
from rules.outbox import Answer, Message, claim, count_waiting, note
from rules.state import Change, RuleState, commit, load_states, read_history
from rules.tables import prepare
from rules.webhook import compose, message_id_of
from tallyman.control import open_control
from tests.unit.rules.alarms import BJORN, ZOE, at, make_rule, window

RULE = make_rule()
LEASE = timedelta(seconds=30)
STEPS = ("begin", "version", "states", "history", "outbox", "commit")


class Crash(Exception):
    """The process was killed here."""


@pytest.fixture
def engine(control_url: str) -> Iterator[sa.Engine]:
    engine = open_control(control_url)
    prepare(engine)
    yield engine
    engine.dispose()


def change(before: RuleState, second: int, values: dict[str, int], endpoints: tuple[str, ...] = ("ops",)) -> Change:
    result = evaluate(RULE, [window(second, values)], before.states, at(second))
    messages = [
        (each, Message(message_id_of(each), each.state.identity, compose(each, RULE), endpoints))
        for each in result.transitions
    ]
    return Change(before, replace(before, states=result.states, decided_to=at(second)), messages)


def step(
    engine: sa.Engine, second: int, values: dict[str, int], after_step: Callable[[str], None] | None = None
) -> bool:
    """Load, evaluate, commit, as the engine does after a start; say whether the commit was ours."""
    before = load_states(engine).get(RULE.key, RuleState(rule=RULE.key))
    done = commit(engine, [change(before, second, values)], at(second), after_step or (lambda _: None))
    return RULE.key in done


def crash_at(name: str) -> Callable[[str], None]:
    def after_step(done: str) -> None:
        if done == name:
            raise Crash

    return after_step


def test_what_is_loaded_is_what_was_committed(engine: sa.Engine) -> None:
    before = RuleState(rule=RULE.key)
    stored = commit(engine, [change(before, 0, {ZOE: 101, BJORN: 102})], at(0))
    assert load_states(engine) == stored


@pytest.mark.parametrize("name", STEPS)
def test_a_crash_at_any_step_loses_no_transition_and_doubles_none(engine: sa.Engine, name: str) -> None:
    """The same evaluation after the restart ends with one event and one delivery, as if nothing had happened."""
    with pytest.raises(Crash):
        step(engine, 0, {ZOE: 101}, crash_at(name))
    assert len(read_history(engine)) == sum(count_waiting(engine).values())
    step(engine, 0, {ZOE: 101})
    assert [event.to for event in read_history(engine)] == ["firing"]
    assert count_waiting(engine) == {"ops": 1}


def test_of_two_engines_that_saw_the_same_one_commits(engine: sa.Engine) -> None:
    step(engine, 0, {})
    before = load_states(engine)[RULE.key]
    first, second = change(before, 60, {ZOE: 101}), change(before, 61, {ZOE: 101})
    assert RULE.key in commit(engine, [first], at(60))
    assert commit(engine, [second], at(61)) == {}
    assert len(read_history(engine)) == 1


def test_of_two_engines_that_start_with_nothing_one_commits(engine: sa.Engine) -> None:
    before = RuleState(rule=RULE.key)
    commit(engine, [change(before, 0, {ZOE: 101})], at(0))
    assert commit(engine, [change(before, 0, {ZOE: 101})], at(0)) == {}


def test_a_message_has_the_same_id_for_every_endpoint_and_attempt(engine: sa.Engine) -> None:
    before = RuleState(rule=RULE.key)
    commit(engine, [change(before, 0, {ZOE: 101}, ("ops", "sms"))], at(0))
    ops, sms = claim(engine, "ops", at(0), 9, LEASE), claim(engine, "sms", at(0), 9, LEASE)
    note(engine, [(ops[0], Answer(False, "503"))], at(1), random.Random(1))
    again = claim(engine, "ops", at(60), 9, LEASE)
    assert {ops[0].message_id, sms[0].message_id, again[0].message_id} == {ops[0].message_id}
    assert again[0].body == ops[0].body


def test_firing_and_resolved_of_an_episode_have_ids_of_their_own(engine: sa.Engine) -> None:
    for second, value in ((0, 101), (60, 1), (120, 101), (180, 1)):
        step(engine, second, {ZOE: value})
    ids = [event.message_id for event in read_history(engine)]
    assert len(set(ids)) == 4


def test_what_is_claimed_is_nobody_elses_until_the_lease_ends(engine: sa.Engine) -> None:
    """Whoever claimed it may have crashed: then it is sent again, with the same id."""
    step(engine, 0, {ZOE: 101})
    (mine,) = claim(engine, "ops", at(0), 9, LEASE)
    assert claim(engine, "ops", at(29), 9, LEASE) == []
    assert claim(engine, "ops", at(30), 9, LEASE) == [mine]


def test_resolved_waits_until_firing_was_delivered(engine: sa.Engine) -> None:
    step(engine, 0, {ZOE: 101})
    step(engine, 60, {ZOE: 1})
    (firing,) = claim(engine, "ops", at(60), 9, LEASE)
    note(engine, [(firing, Answer(False, "500"))], at(61), random.Random(1))
    assert claim(engine, "ops", at(62), 9, LEASE) == []
    (firing,) = claim(engine, "ops", at(100), 9, LEASE)
    note(engine, [(firing, Answer(True, "204"))], at(101), random.Random(1))
    (resolved,) = claim(engine, "ops", at(101), 9, LEASE)
    assert b'"alarm.resolved"' in resolved.body


def test_an_alarm_that_cannot_be_delivered_holds_up_no_other(engine: sa.Engine) -> None:
    step(engine, 0, {ZOE: 101})
    (firing,) = claim(engine, "ops", at(0), 9, LEASE)
    note(engine, [(firing, Answer(False, "500"))], at(1), random.Random(1))
    step(engine, 2, {ZOE: 101, BJORN: 101})
    assert [BJORN.encode() in each.body for each in claim(engine, "ops", at(2), 9, LEASE)] == [True]


def test_attempts_follow_the_schedule_with_jitter_until_they_end(engine: sa.Engine) -> None:
    """At once, 5 s, 5 min, 30 min, 2, 5, 10, 14, 20 and 24 hours, each give or take a fifth; then it is dead."""
    step(engine, 0, {ZOE: 101})
    now, waits = at(0), []
    while (due := outbox.next_due(engine, "ops")) is not None:
        waits.append(due - now)
        now = due
        (delivery,) = claim(engine, "ops", now, 9, LEASE)
        note(engine, [(delivery, Answer(False, "500"))], now, random.Random(len(waits)))
    assert len(waits) == len(outbox.RETRY_AFTER)
    for wait, planned in zip(waits, outbox.RETRY_AFTER, strict=True):
        assert planned * 0.8 <= wait <= planned * 1.2
    assert count_waiting(engine) == {}


def test_a_dead_delivery_can_be_sent_again_by_its_id(engine: sa.Engine) -> None:
    step(engine, 0, {ZOE: 101})
    (delivery,) = claim(engine, "ops", at(0), 9, LEASE)
    note(engine, [(delivery, Answer(True, "200"))], at(0), random.Random(1))
    assert outbox.deliver_again(engine, delivery.message_id, at(9)) == 1
    assert [each.message_id for each in claim(engine, "ops", at(9), 9, LEASE)] == [delivery.message_id]


def test_retry_after_is_waited_for(engine: sa.Engine) -> None:
    step(engine, 0, {ZOE: 101})
    (delivery,) = claim(engine, "ops", at(0), 9, LEASE)
    note(engine, [(delivery, Answer(False, "429", retry_after=timedelta(hours=1)))], at(0), random.Random(1))
    assert outbox.next_due(engine, "ops") == at(3600)


def test_an_endpoint_that_is_gone_keeps_its_deliveries_for_the_operator(engine: sa.Engine) -> None:
    outbox.register(engine, {"ops": "https://old.example"})
    step(engine, 0, {ZOE: 101})
    (delivery,) = claim(engine, "ops", at(0), 9, LEASE)
    note(engine, [(delivery, Answer(False, "410 Gone", gone=True))], at(0), random.Random(1))
    assert claim(engine, "ops", at(99_999), 9, LEASE) == []
    outbox.register(engine, {"ops": "https://old.example"})
    assert outbox.next_due(engine, "ops") is None
    outbox.register(engine, {"ops": "https://new.example"})
    assert len(claim(engine, "ops", at(99_999), 9, LEASE)) == 1


def test_a_disabled_endpoint_can_be_enabled(engine: sa.Engine) -> None:
    outbox.register(engine, {"ops": "https://old.example"})
    step(engine, 0, {ZOE: 101})
    (delivery,) = claim(engine, "ops", at(0), 9, LEASE)
    note(engine, [(delivery, Answer(False, "410 Gone", gone=True))], at(0), random.Random(1))
    assert outbox.enable(engine, "ops")
    assert not outbox.enable(engine, "ops")
    assert len(claim(engine, "ops", at(1), 9, LEASE)) == 1


def test_the_history_has_the_newest_events_in_order(engine: sa.Engine) -> None:
    for second, value in ((0, 101), (60, 1), (120, 101)):
        step(engine, second, {ZOE: value})
    events = read_history(engine, limit=2)
    assert [(event.at, event.previous, event.to) for event in events] == [
        (at(60), "firing", "resolved"),
        (at(120), "inactive", "firing"),
    ]
    assert events[1].labels == {"subject": ZOE, "alertname": "busy"}
