"""What holds for alarms whatever the usage does."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from rules.alarm import AlarmState, Snapshot, Transition, evaluate
from rules.model import AlarmRule
from tests.unit.rules.alarms import BJORN, ZOE, at, make_rule, window

RULES = st.builds(
    make_rule,
    st.sampled_from(["above 10", "at_least 10", "below 10", "at_most 10"]),
    for_=st.sampled_from([0, 20, 60, 90]),
    keep_firing_for=st.sampled_from([timedelta(0), timedelta(seconds=45)]),
    no_data=st.sampled_from(["ok", "alert", "keep"]),
    monotone=st.booleans(),
    usage=st.sampled_from([{}, {"window": "month"}]),
    labels=st.sampled_from([{}, {"level": "{{ value }}"}]),
)
FIGURES = st.dictionaries(st.sampled_from([ZOE, BJORN]), st.integers(8, 12))
STEPS = st.lists(st.tuples(st.integers(0, 50), FIGURES, st.integers(0, 2), FIGURES), max_size=25)
Run = list[tuple[int, list[Snapshot], tuple[AlarmState, ...], tuple[Transition, ...]]]


def run(rule: AlarmRule, steps: list[tuple[int, dict[str, int], int, dict[str, int]]]) -> Run:
    """Evaluate step by step; a step is (seconds later, complete figures, minutes behind, figures so far)."""
    second = 0
    states: tuple[AlarmState, ...] = ()
    seen: Run = []
    for wait, complete, behind, filling in steps:
        second += wait
        minute = second // 60 * 60
        snapshots = [window(minute - 60 * behind, complete), window(minute + 60, filling, complete=False)]
        result = evaluate(rule, snapshots, states, at(second))
        states = result.states
        seen.append((second, snapshots, states, result.transitions))
    return seen


@settings(max_examples=150, deadline=None)
@given(RULES, STEPS)
def test_evaluating_twice_at_the_same_instant_changes_nothing(rule: AlarmRule, steps: list) -> None:  # type: ignore[type-arg]
    for second, snapshots, states, _ in run(rule, steps):
        again = evaluate(rule, snapshots, states, at(second))
        assert again.transitions == ()
        assert set(map(repr, again.states)) == set(map(repr, states))


@settings(max_examples=150, deadline=None)
@given(RULES, STEPS)
def test_every_alarm_goes_through_its_states_in_order(rule: AlarmRule, steps: list) -> None:  # type: ignore[type-arg]
    """Firing comes from pending where there is a `for`, and only what fires is resolved, once."""
    phase: dict[str, str] = {}
    for _, _, states, transitions in run(rule, steps):
        for each in transitions:
            identity = each.state.identity
            assert phase.get(identity, "inactive") == each.previous
            assert each.to != "firing" or each.previous == ("pending" if rule.for_ else "inactive")
            assert each.to != "resolved" or each.previous == "firing"
            phase[identity] = "inactive" if each.to == "resolved" else each.to
        left = {identity: known for identity, known in phase.items() if known != "inactive"}
        assert left == {state.identity: state.phase for state in states if state.phase != "seen"}


@settings(max_examples=150, deadline=None)
@given(RULES, STEPS)
def test_an_alarm_fires_only_after_the_condition_held_for_its_time(rule: AlarmRule, steps: list) -> None:  # type: ignore[type-arg]
    for second, _, _, transitions in run(rule, steps):
        for each in transitions:
            assert each.to != "firing" or at(second) - each.state.active_at >= rule.for_


@settings(max_examples=150, deadline=None)
@given(RULES, STEPS)
def test_no_two_transitions_of_a_kind_share_an_episode(rule: AlarmRule, steps: list) -> None:  # type: ignore[type-arg]
    """Message ids are made of identity, episode and kind: two webhooks never share one. Each round has an instant of
    its own (`Rounds`).
    """
    moved = [(wait + 1, *rest) for wait, *rest in steps]
    made = [(each.state.identity, each.state.episode, each.to) for step in run(rule, moved) for each in step[3]]
    assert len(set(made)) == len(made)


@settings(max_examples=100, deadline=None)
@given(RULES, STEPS)
def test_the_order_of_series_does_not_matter(rule: AlarmRule, steps: list) -> None:  # type: ignore[type-arg]
    turned = [(wait, dict(reversed(a.items())), behind, dict(reversed(b.items()))) for wait, a, behind, b in steps]
    one, other = run(rule, steps), run(rule, turned)
    for (_, _, _, a), (_, _, _, b) in zip(one, other, strict=True):
        assert sorted(map(repr, a)) == sorted(map(repr, b))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["above 10", "at_most 10"]), st.booleans(), STEPS, FIGURES)
def test_in_the_end_complete_windows_alone_decide(
    bound: str, monotone: bool, steps: list, last: dict[str, int]  # type: ignore[type-arg]
) -> None:
    """Whatever was seen while windows were filling: once a later one is complete, who fires is who should."""
    rule = make_rule(bound, monotone=monotone)
    seen = run(rule, steps)
    states = seen[-1][2] if seen else ()
    end = (seen[-1][0] // 60 + 2) * 60 if seen else 60
    result = evaluate(rule, [window(end, last)], states, at(end + 10))
    firing = {state.series["subject"] for state in result.states if state.phase == "firing"}
    assert firing == {name for name, value in last.items() if rule.condition.holds(Decimal(value))}


def test_a_figure_of_thirty_digits_is_compared_to_the_last_one() -> None:
    rule = make_rule("above 123456789012345678901234567890.123456789")
    figure = "123456789012345678901234567890.12345679"
    result = evaluate(rule, [window(0, {ZOE: figure})], (), at(0))
    assert [each.value for each in result.transitions] == [Decimal(figure)]
