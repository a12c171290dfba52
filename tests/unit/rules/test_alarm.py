"""The alarm's states: pending before firing, complete windows decide, hot ones only prove what cannot be undone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from rules.alarm import AlarmError, evaluate, next_deadline, retire
from tests.unit.rules.alarms import BJORN, START, ZOE, Alarms, at, make_rule, window


def test_an_alarm_without_for_fires_at_once() -> None:
    assert Alarms(make_rule()).usage(0, {ZOE: 101}) == ["firing"]


def test_a_value_on_the_bound_is_not_above_it() -> None:
    assert Alarms(make_rule("above 100")).usage(0, {ZOE: 100}) == []
    assert Alarms(make_rule("at_least 100")).usage(0, {ZOE: 100}) == ["firing"]


def test_an_alarm_fires_when_the_condition_has_held_for_its_time() -> None:
    alarms = Alarms(make_rule(for_=120))
    assert [alarms.usage(second, {ZOE: 101}) for second in (0, 60, 119, 120)] == [["pending"], [], [], ["firing"]]


def test_a_pending_alarm_is_forgotten_when_the_condition_is_gone_once() -> None:
    alarms = Alarms(make_rule(for_=120))
    seen = [alarms.usage(s, {ZOE: v}) for s, v in ((0, 101), (60, 99), (120, 101))]
    assert seen == [["pending"], ["inactive"], ["pending"]]


def test_each_tenant_has_its_own_clock() -> None:
    alarms = Alarms(make_rule(for_=60))
    alarms.usage(0, {ZOE: 101, BJORN: 5})
    alarms.usage(60, {ZOE: 101, BJORN: 500})
    assert alarms.phases == {ZOE: "firing", BJORN: "pending"}


def test_a_restart_keeps_the_clock_and_the_time_away_counts() -> None:
    alarms = Alarms(make_rule(for_=3600))
    alarms.usage(0, {ZOE: 101})
    later = Alarms(alarms.rule)
    later.states = alarms.states  # as the control store gives them back
    assert later.usage(3600, {ZOE: 101}) == ["firing"]


def test_an_alarm_that_fell_silent_resolves() -> None:
    alarms = Alarms(make_rule())
    alarms.usage(0, {ZOE: 101})
    assert alarms.usage(60, {}) == ["resolved"]


def test_keep_firing_for_bridges_a_gap() -> None:
    alarms = Alarms(make_rule(keep_firing_for=timedelta(seconds=120)))
    seen = [alarms.usage(s, {ZOE: v}) for s, v in ((0, 101), (60, 1), (120, 101), (180, 1), (240, 1), (300, 1))]
    assert seen == [["firing"], [], [], [], [], ["resolved"]]


def test_a_firing_alarm_stays_until_the_resolve_bound_is_left_too() -> None:
    alarms = Alarms(make_rule(resolve=Decimal(80)))
    assert [alarms.usage(s, {ZOE: v}) for s, v in ((0, 101), (60, 81), (120, 80))] == [["firing"], [], ["resolved"]]


def test_the_resolve_bound_keeps_nothing_pending() -> None:
    alarms = Alarms(make_rule(for_=120, resolve=Decimal(80)))
    assert [alarms.usage(s, {ZOE: v}) for s, v in ((0, 101), (60, 90))] == [["pending"], ["inactive"]]


def test_a_window_that_fills_can_prove_a_monotone_condition() -> None:
    alarms = Alarms(make_rule(monotone=True))
    assert alarms.see(10, window(60, {ZOE: 101}, complete=False)) == ["firing"]


def test_a_window_that_fills_proves_nothing_else() -> None:
    """A minute that has just begun has little usage: that is no reason to fire, nor to resolve."""
    assert Alarms(make_rule("below 100")).see(1, window(60, {ZOE: 1}, complete=False)) == []
    alarms = Alarms(make_rule(monotone=True))
    alarms.see(59, window(60, {ZOE: 101}, complete=False))
    assert alarms.see(61, window(120, {ZOE: 1}, complete=False)) == []


def test_an_older_window_does_not_end_what_a_newer_one_has_shown() -> None:
    """The minute before the burst is completed after the burst was seen."""
    alarms = Alarms(make_rule(monotone=True))
    alarms.see(10, window(60, {ZOE: 101}, complete=False))
    assert alarms.see(20, window(0, {ZOE: 1})) == []
    assert alarms.see(70, window(60, {ZOE: 101})) == []
    assert alarms.see(130, window(120, {ZOE: 1})) == ["resolved"]


def test_a_pending_alarm_does_not_fire_while_nothing_is_known() -> None:
    alarms = Alarms(make_rule(monotone=True, for_=30))
    alarms.see(10, window(60, {ZOE: 101}, complete=False))
    assert alarms.see(90, window(120, {ZOE: 1}, complete=False)) == []
    assert alarms.see(91, window(60, {ZOE: 101})) == ["firing"]


def test_a_budget_fires_once_in_its_month() -> None:
    """A correction takes it below the bound, more usage above again: the operator was told already."""
    alarms = Alarms(make_rule(monotone=True, usage={"window": "month"}))
    first = datetime(2026, 10, 1, tzinfo=UTC)
    seen = [
        alarms.see(second, replace(window(second, {ZOE: value}), start=first))
        for second, value in ((0, 101), (60, 90), (120, 110))
    ]
    assert seen == [["firing"], [], []]


def test_a_new_month_is_a_new_budget() -> None:
    """November overshoots before October is complete: one episode ends, the next begins, each with its own name."""
    alarms = Alarms(make_rule(monotone=True, usage={"window": "month"}))
    october, november = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
    old = replace(window(3590, {ZOE: 101}), start=october)
    new = replace(window(3660, {ZOE: 102}, complete=False), start=november)
    alarms.see(3590, old)
    assert alarms.see(3610, old, new) == ["resolved", "firing"]
    assert alarms.see(3620, old) == []
    assert len({transition.state.episode for transition in alarms.transitions}) == 2


def test_a_budget_resolves_when_the_new_month_has_begun() -> None:
    alarms = Alarms(make_rule(monotone=True, usage={"window": "month"}))
    alarms.see(0, replace(window(0, {ZOE: 101}), start=datetime(2026, 10, 1, tzinfo=UTC)))
    assert alarms.see(3661, replace(window(3660, {}), start=datetime(2026, 11, 1, tzinfo=UTC))) == ["resolved"]


def test_silence_is_an_alarm_where_it_is_asked_for() -> None:
    """Björn sends on, only Zoë has fallen silent: the alarm is hers alone."""
    alarms = Alarms(make_rule("below 1", no_data="alert"))
    alarms.usage(0, {ZOE: 5, BJORN: 5})
    assert alarms.usage(60, {BJORN: 5}) == ["firing"]
    assert alarms.phases == {ZOE: "firing"}
    assert alarms.transitions[0].reason == "no_data"
    assert alarms.usage(120, {ZOE: 5, BJORN: 5}) == ["resolved"]


def test_a_rule_of_one_series_expects_it_from_the_start() -> None:
    assert Alarms(make_rule("below 1", no_data="alert", usage={"by": ()})).usage(0, {}) == ["firing"]


def test_silence_can_leave_an_alarm_as_it_is() -> None:
    alarms = Alarms(make_rule(no_data="keep"))
    alarms.usage(0, {ZOE: 101})
    assert alarms.usage(60, {}) == []
    assert alarms.usage(120, {ZOE: 1}) == ["resolved"]


def test_two_series_with_the_same_labels_change_nothing() -> None:
    rule = make_rule(labels={"subject": "everyone"})
    with pytest.raises(AlarmError, match="two series have the same labels"):
        evaluate(rule, [window(0, {ZOE: 101, BJORN: 101})], [], at(0))


def test_the_rules_label_overrides_the_series_label() -> None:
    alarms = Alarms(make_rule(labels={"subject": "somebody", "severity": "page"}))
    alarms.usage(0, {ZOE: 101})
    assert dict(alarms.states[0].labels) == {"subject": "somebody", "severity": "page", "alertname": "busy"}


def test_a_text_that_cannot_be_filled_does_not_stop_the_alarm() -> None:
    alarms = Alarms(make_rule(annotations={"summary": "{{ labels.subject }}: {{ valeu }} of {{ $threshold }}"}))
    alarms.usage(0, {ZOE: "101.50"})
    summary = alarms.transitions[0].annotations["summary"]
    assert summary == 'Zoë Åström: <error expanding template: "valeu" is not known; did you mean "value"?> of 100'


def test_raising_for_sends_a_firing_alarm_back_to_waiting() -> None:
    """Whoever was told that it fires is told that this is over; the next firing has another id."""
    alarms = Alarms(make_rule())
    alarms.usage(0, {ZOE: 101})
    alarms.rule = replace(alarms.rule, for_=timedelta(seconds=120))
    assert alarms.usage(60, {ZOE: 101}) == ["resolved", "pending"]
    assert alarms.usage(120, {ZOE: 101}) == ["firing"]
    fired = [each.state.episode for each in alarms.transitions if each.to == "firing"]
    assert len(set(fired)) == 2


def test_a_clock_that_goes_back_takes_no_alarm_back() -> None:
    alarms = Alarms(make_rule(for_=120))
    alarms.usage(0, {ZOE: 101})
    alarms.usage(120, {ZOE: 101})
    assert alarms.usage(100, {ZOE: 101}) == []


def test_the_next_deadline_is_the_first_end_of_a_wait() -> None:
    alarms = Alarms(make_rule(for_=120, keep_firing_for=timedelta(seconds=30)))
    alarms.usage(0, {ZOE: 101})
    alarms.usage(60, {ZOE: 101, BJORN: 101})
    assert next_deadline(alarms.rule, alarms.states) == at(120)
    alarms.usage(120, {ZOE: 101, BJORN: 101})
    alarms.usage(121, {})
    assert next_deadline(alarms.rule, alarms.states) == at(151)


def test_the_alarms_of_a_rule_that_is_gone_are_resolved() -> None:
    alarms = Alarms(make_rule(for_=60))
    alarms.usage(0, {ZOE: 101})
    alarms.usage(60, {ZOE: 101, BJORN: 101})
    ended = retire(alarms.states, START)
    assert {(each.to, each.reason) for each in ended} == {("resolved", "rule_removed"), ("inactive", "rule_removed")}
