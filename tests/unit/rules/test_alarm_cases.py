"""Rules of Prometheus and vmalert reach the states that their own test suites expect."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rules.alarm import AlarmState, Reading, Snapshot, evaluate
from rules.model import AlarmRule
from tests.unit.rules.alarms import at, make_rule

FILE = Path(__file__).parents[2] / "data" / "alarm_cases.json"
CASES: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8"))["cases"]
BOUNDS = {"<": "below", ">": "above", "==": "at_most"}  # the one "==" asks whether `up` is 0


def rule_of(case: dict[str, Any]) -> AlarmRule:
    rule = case["rule"]
    labels = dict(rule.get("labels", {}))
    if "label_template" in rule:  # any label that follows the value makes the point: ours cannot branch
        labels |= dict.fromkeys(rule["label_template"], "{{ value }}")
    names = sorted({name for series in case["input_series"] for name in series["labels"]})
    return make_rule(
        f"{BOUNDS[rule['op']]} {rule['threshold']}" if "op" in rule else "at_least 0",
        for_=int(rule["for_s"]),
        keep_firing_for=timedelta(seconds=rule.get("keep_firing_for_s", 0)),
        labels=labels,
        annotations={name: text.replace("$labels", "labels") for name, text in rule.get("annotations", {}).items()},
        usage={"by": tuple(names)},
    )


def values_of(series: dict[str, Any]) -> list[Any]:
    if "expand" not in series:
        return list(series["values"])
    first, step, times = map(int, re.fullmatch(r"(-?\d+)\+(-?\d+)x(\d+)", series["expand"]).groups())  # type: ignore[union-attr]
    return [first + step * i for i in range(times + 1)]


def readings_at(case: dict[str, Any], second: int) -> tuple[Reading, ...]:
    found = []
    for series in case["input_series"] or [{"labels": {}, "start_s": 0, "step_s": 86_400, "values": [1, 1]}]:
        values = values_of(series)
        place = (second - series["start_s"]) // series["step_s"]
        value = values[place] if 0 <= place < len(values) else None
        if value not in (None, "stale"):
            found.append(Reading(series["labels"], Decimal(str(value))))
    return tuple(found)


def times_of(case: dict[str, Any]) -> list[int]:
    """Return the instants of evaluation: as the case has them, else each interval until the last one asked about."""
    if "eval_times_s" in case["rule"]:
        return list(case["rule"]["eval_times_s"])
    last = max(each["t_s"] for each in case["expected_transitions"])
    wanted = {each["t_s"] for each in case["expected_transitions"]}
    step = case["rule"]["interval_s"] if last < 10_000 else 3600
    return sorted({*range(0, last + 1, step), *wanted})


def matching(states: tuple[AlarmState, ...], wanted: dict[str, str], case: dict[str, Any]) -> list[AlarmState]:
    templated = case["rule"].get("label_template", {})
    plain = {name: text for name, text in wanted.items() if name not in templated}
    return [state for state in states if plain.items() <= state.labels.items()]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_a_rule_reaches_the_states_that_its_authors_expect(case: dict[str, Any]) -> None:
    rule = rule_of(case)
    states: tuple[AlarmState, ...] = ()
    texts: dict[str, str] = {}
    for second in times_of(case):
        snapshot = Snapshot(at(second) - timedelta(minutes=1), at(second), True, readings_at(case, second))
        result = evaluate(rule, [snapshot], states, at(second))
        states = result.states
        texts |= {name: text for each in result.transitions for name, text in each.annotations.items()}
        for expected in (each for each in case["expected_transitions"] if each["t_s"] == second):
            found = matching(states, expected.get("labels", {}), case)
            wanted = [] if expected["state"] == "inactive" else [expected["state"]]
            assert [state.phase for state in found] == wanted, f"{case['id']} at {second} s"
            if wanted and "active_at_s" in expected:
                assert found[0].active_at == at(expected["active_at_s"])
            assert expected.get("annotations", {}).items() <= texts.items()
