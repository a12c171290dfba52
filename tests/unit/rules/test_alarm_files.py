"""Alarm files are read strictly: each way to be wrong has its sentence, with file and line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from rules.check import check_alarms
from rules.load import load_rules
from rules.model import AlarmRule
from tallyman.config import EndpointConfig, RulesConfig, TallymanConfig
from tallyman.errors import ConfigError
from tallyman.meter import Meter
from tallyman.project import Project

FLAVOR = {"flavor": "flavor"}
METERS = (
    Meter(meter="compute.seconds", event_type="compute.usage", aggregation="sum", unit="s", dimensions=FLAVOR),
    Meter(meter="lb.connections", event_type="lb.usage", aggregation="max"),
    Meter(meter="disk.free", event_type="disk.usage", aggregation="min"),
    Meter(meter="cpu.load", event_type="cpu.usage", aggregation="avg"),
)
GOOD = """\
groups:
  - name: tenants
    interval: 30s
    labels: {team: billing, severity: info}
    rules:
      - alert: busy
        expr:
          usage: {meter: compute.seconds, window: 5m, by: [subject, flavor], where: {flavor: [m1.groß]}}
          above: "100.50"
        for: 2m
        keep_firing_for: 10s
        resolve: 80
        labels: {severity: page}
        annotations: {summary: "{{ labels.subject }} on {{ $labels.flavor }}: {{ value }} {{ unit }}"}
"""


def load(folder: Path, text: str, endpoints: tuple[str, ...] = ("ops",)) -> tuple[AlarmRule, ...]:
    (folder / "tenants.yaml").write_text(text, "utf-8")
    return load_rules(folder, METERS, endpoints)


def test_a_groups_label_that_an_alarm_has_itself_is_not_looked_at(tmp_path: Path) -> None:
    (rule,) = load(tmp_path, GOOD.replace("severity: info", 'severity: "{{ nonsense }}"'))
    assert rule.labels["severity"] == "page"


def test_a_rule_is_read_with_its_groups_settings(tmp_path: Path) -> None:
    (rule,) = load(tmp_path, GOOD)
    assert rule.key == 'tenants/busy{"severity":"page","team":"billing"}'
    assert (rule.for_, rule.keep_firing_for, rule.interval) == tuple(timedelta(seconds=s) for s in (120, 10, 30))
    assert (rule.condition.threshold, rule.resolve, rule.unit) == (Decimal("100.50"), Decimal(80), "s")
    assert rule.usage.where == {"flavor": ("m1.groß",)}
    assert rule.monotone


@pytest.mark.parametrize(
    ("change", "by", "problem"),
    [
        ("compute.seconds", "compute.second",
         ':8: groups[0].rules[0].expr.usage.meter: unknown meter "compute.second"; did you mean "compute.seconds"?'),
        ("[subject, flavor]", "[subject, flavour]", 'expr.usage.by[1]: unknown dimension "flavour" of compute.seconds; '
         'did you mean "flavor"?'),
        ("where: {flavor", "where: {region", 'where.region: unknown dimension "region" of compute.seconds'),
        ("keep_firing_for", "keep_fireing_for", 'unknown key; did you mean "keep_firing_for"?'),
        ('above: "100.50"', 'above: "lots"', 'above: expected a number, got "lots"'),
        ('above: "100.50"', 'above: "1"\n          below: "2"',
         "expected one of above, at_least, below, at_most, got above and below"),
        ('          above: "100.50"\n', "", "expected one of above, at_least, below, at_most, got none"),
        ("window: 5m", "window: 90s", 'window: expected whole minutes from 1m to 35d, or "month"'),
        ("window: 5m", "window: fortnight", "window"),
        ("window: 5m", "window: month, zone: Europe/Berlim", 'did you mean "Europe/Berlin"?'),
        ("for: 2m", "for: 2 minutes", ":10: groups[0].rules[0].for: expected a duration such as"),
        ("resolve: 80", "resolve: 180", ":12: groups[0].rules[0].resolve: expected at most 100.50, got 180"),
        ("team: billing", 'team: "{{ labels.subjct }}"',
         ':4: groups[0].labels.team: "labels.subjct" is not known; did you mean "labels.subject"?, in alarm busy'),
        ("[m1.groß]", "[]", "where.flavor: expected one value at least, got none"),
        ("labels.subject", "labels.subjct",
         'annotations.summary: "labels.subjct" is not known; did you mean "labels.subject"?'),
        ("severity: page", '"sever-ity": page', "expected a label name of letters, digits"),
        ("severity: page", "alertname: page", "alertname is the alarm's own name"),
        ("for: 2m", "notify: [opps]",
         ':10: groups[0].rules[0].notify[0]: unknown endpoint "opps"; did you mean "ops"?'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, change: str, by: str, problem: str) -> None:
    assert change in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(change, by, 1))
    assert problem in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "tenants.yaml") + ":")


def test_two_rules_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    rule = GOOD[GOOD.index("      - alert") :]
    with pytest.raises(ConfigError, match=r"is defined twice, first at .*:6"):
        load(tmp_path, GOOD + rule)
    assert len(load(tmp_path, GOOD + rule.replace("severity: page", "severity: call"))) == 2


@pytest.mark.parametrize(
    ("meter", "bound", "monotone"),
    [("compute.seconds", "above", True), ("lb.connections", "at_least", True), ("disk.free", "below", True),
     ("compute.seconds", "below", False), ("cpu.load", "above", False), ("disk.free", "above", False)],
)  # fmt: skip
def test_only_what_more_usage_cannot_undo_is_monotone(tmp_path: Path, meter: str, bound: str, monotone: bool) -> None:
    text = f"groups: [{{name: g, rules: [{{alert: a, expr: {{usage: {{meter: {meter}, window: 1m}}, {bound}: 1}}}}]}}]"
    (rule,) = load(tmp_path, text)
    assert rule.monotone is monotone


def test_the_month_so_far_begins_at_local_midnight(tmp_path: Path) -> None:
    """In Sydney November has begun while October goes on in Greenwich; Berlin's October began in summer time."""
    usage = "{meter: compute.seconds, window: month, zone: %s}"
    text = f"groups: [{{name: g, rules: [{{alert: a, expr: {{usage: {usage}, above: 1}}}}]}}]"
    (sydney,) = load(tmp_path, text % "Australia/Sydney")
    (berlin,) = load(tmp_path, text % "Europe/Berlin")
    end = datetime(2026, 10, 31, 14, 0, tzinfo=UTC)
    assert sydney.usage.span(end)[0] == datetime(2026, 10, 31, 13, 0, tzinfo=UTC)
    assert berlin.usage.span(end)[0] == datetime(2026, 9, 30, 22, 0, tzinfo=UTC)


def project(folder: Path, **endpoint: object) -> Project:
    config = TallymanConfig(rules=RulesConfig(endpoints={"ops": EndpointConfig(**endpoint)}))  # type: ignore[arg-type]
    return Project(folder=folder, data=folder, config=config, meters=METERS)


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ({"url": "http://alarms.example", "secrets": (SECRET,)}, "expected https, got http"),
        ({"url": "https://zoe:pw@alarms.example", "secrets": (SECRET,)}, "expected no user or password"),
        ({"url": "https://alarms.example"}, "expected one or two secrets"),
        ({"url": "https://alarms.example", "secrets": ("whsec_c2hvcnQ=",)}, "expected 24 to 64 bytes, got 5"),
        ({"url": "https://alarms.example", "secrets": ("not base64!",)}, 'expected "whsec_" and base64'),
        ({"url": "https://", "secrets": (SECRET,)}, "got no host"),
    ],
)
def test_an_endpoint_that_is_wrong_is_named_without_its_secrets(
    tmp_path: Path, endpoint: dict[str, object], problem: str
) -> None:
    (found,) = check_alarms(project(tmp_path, **endpoint))
    assert problem in found
    assert "pw" not in found
    assert "not base64!" not in found


def test_a_project_without_problems_has_none(tmp_path: Path) -> None:
    (tmp_path / "alarms").mkdir()
    (tmp_path / "alarms" / "tenants.yaml").write_text(GOOD, "utf-8")
    assert check_alarms(project(tmp_path, url="https://alarms.example/münchen", secrets=(SECRET,))) == []
