"""Metering cases of other systems, through Kafka, the Beam job and ClickHouse, in one run of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tallyman.local.clickhouse_child import ClickHouse
from tallyman.local.kafka import Broker
from tests.vectors import DATA, METERING
from tests.vectors.__main__ import main, report
from tests.vectors.model import Verdict, read_vectors
from tests.vectors.run import run

pytestmark = pytest.mark.integration
OWN = DATA / "metering_own_cases.json"
OUTCOMES: Mapping[str, str] = {
    case.get("id", f"case {number}"): case["outcome"]
    for number, case in enumerate(json.loads(OWN.read_text("utf-8"))["vectors"], 1)
}
# A sixth of our own cases, and those that are named below; all of them by command, and with --long.
SHORT = frozenset((*list(OUTCOMES)[::6], "own-unread", "own-unread-answer", "own-results-other-reason"))
Verdicts = Mapping[str, Verdict]


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, broker: Broker, clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory
) -> Verdicts:
    """What comes of the cases of both files; one of them kills the broker and starts it again."""
    theirs = read_vectors(METERING)
    own = [replace(vector, number=len(theirs) + vector.number) for vector in read_vectors(OWN)]
    if not request.config.getoption("--long"):
        own = [vector for vector in own if vector.id in SHORT]
    found = run([*theirs, *own], broker, clickhouse, tmp_path_factory.mktemp("vectors"))
    assert [verdict.vector for verdict in found] == [*theirs, *own]
    return {verdict.vector.id: verdict for verdict in found}


def of_file(verdicts: Verdicts) -> list[Verdict]:
    return [verdict for name, verdict in verdicts.items() if name not in OUTCOMES]


def test_every_case_that_others_hold_true_holds_here(verdicts: Verdicts) -> None:
    others = [each for each in of_file(verdicts) if each.outcome not in ("passed", "diverges")]
    told = [f"{each.vector.id}: {each.text}" for each in others]
    assert not told
    assert sum(each.outcome == "passed" for each in of_file(verdicts)) == 96


def test_where_we_differ_on_purpose_our_answer_is_the_documented_one(verdicts: Verdicts) -> None:
    differing = {each.vector.id: each.text for each in of_file(verdicts) if each.outcome == "diverges"}
    assert sorted(differing) == [
        "fx-bad-timezone", "fx-qty-missing", "lago-batch-dup-consecutive", "lago-batch-dup-three",
        "lago-same-id-other-time",
    ]  # fmt: skip
    assert all(verdicts[name].vector.stance == "diverge" for name in differing)
    assert not any("not compared" in text for text in differing.values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.long) for name in OUTCOMES]
)
def test_a_case_of_another_shape_passes_fails_or_is_said_to_be_missing_and_never_stops_the_run(
    verdicts: Verdicts, name: str
) -> None:
    assert (verdicts[name].outcome, verdicts[name].text != "") == (OUTCOMES[name], True)
    assert "cannot be judged" not in verdicts[name].text


def test_the_report_ends_with_how_many_passed_and_names_each_failure_in_a_line(verdicts: Verdicts) -> None:
    lines = report(list(verdicts.values()))
    run = {name: outcome for name, outcome in OUTCOMES.items() if name in verdicts}
    failed = [name for name, outcome in run.items() if outcome == "failed"]
    passed = sum(outcome == "passed" for outcome in run.values()) + 96
    assert lines[-1] == f"{passed} passed, {len(failed)} failed"
    assert [line.split()[1] for line in lines if line.startswith("FAILED ")] == [name.split()[0] for name in failed]


def test_a_rule_of_ours_that_bends_a_case_is_told(verdicts: Verdicts) -> None:
    lines = report(list(verdicts.values()))
    assert any("the first copy wins here" in line and "lago-sum" in line for line in lines)
    assert any('a missing group key is null here, never ""' in line for line in lines)
    assert any("which nothing here reads" in line and "own-unread" in line for line in lines)
    assert any("also says moons, which nothing here compares: own-unread-answer" in line for line in lines)


@pytest.mark.parametrize("text", ["{}", "[", '{"vectors": 1}'])
def test_a_file_that_holds_no_cases_is_wrong_usage(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cases.json"
    file.write_text(text, encoding="utf-8")
    assert main(["metering", str(file)]) == 2
    assert str(file) in capsys.readouterr().err
