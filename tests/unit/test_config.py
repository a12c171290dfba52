"""Settings and projects: defaults in one place, every mistake named, endpoints from the file or the running stack."""

from __future__ import annotations

import json
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tallyman import control
from tallyman.config import CONTROL_KINDS, KafkaConfig, TallymanConfig
from tallyman.errors import ConfigError, StackError
from tallyman.project import load_project

METERS = """
meters:
  - {meter: server.seconds, event_type: cloud.server.usage, aggregation: sum, unit: s}
"""


def project(folder: Path, settings: str = "", **files: str) -> Any:
    (folder / "meters").mkdir(exist_ok=True)
    (folder / "tallyman.yaml").write_text(textwrap.dedent(settings), encoding="utf-8")
    (folder / "meters" / "compute.yaml").write_text(METERS, encoding="utf-8")
    for name, text in files.items():
        (folder / "meters" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_project(folder, environment={})


def complaint(folder: Path, settings: str, **files: str) -> str:
    with pytest.raises(ConfigError) as caught:
        project(folder, settings, **files)
    return str(caught.value).replace(f"{folder}/", "")


def running_stack(folder: Path) -> None:
    stack = {
        "kafka": "127.0.0.1:9092",
        "clickhouse": {"host": "127.0.0.1", "port": 9001, "user": "default", "password": "geheim", "database": "t"},
        "control": "sqlite:///x",
        "services": {"agent": {"pid": 1}},
    }
    (folder / ".tallyman").mkdir()
    (folder / ".tallyman" / "stack.json").write_text(json.dumps(stack), encoding="utf-8")


def test_an_empty_file_is_a_working_project(tmp_path: Path) -> None:
    found = project(tmp_path)
    assert found.config.usage.oldest_accepted == timedelta(days=35)
    assert found.config.kafka == KafkaConfig()
    assert [meter.meter for meter in found.meters] == ["server.seconds"]


def test_durations_are_written_as_people_say_them(tmp_path: Path) -> None:
    found = project(tmp_path, "usage: {oldest_accepted: 70d}\npipeline: {flush: 200ms, tick: 2s}\n")
    assert found.config.usage.oldest_accepted == timedelta(days=70)
    assert found.config.pipeline.flush == timedelta(milliseconds=200)


BAD = [
    ("kafka: {brockers: []}", 'tallyman.yaml:1: kafka.brockers: unknown key; did you mean "brokers"?'),
    (
        "kafka:\n  chunk_size: 1000",
        "tallyman.yaml:2: kafka.chunk_size: expected a power of two such as 65536, got 1000",
    ),
    ("kafka: {brokers: [kafka]}", 'kafka.brokers: expected host:port such as kafka-1:9092, got "kafka"'),
    ("kafka: {chunk_size: 4}", "kafka.chunk_size: expected 8 or more, got 4"),
    ('kafka: {topic: ""}', "kafka.topic: expected 1 to 249 of the letters a to z and A to Z, digits and "),
    ("kafka: {topic: usage events}", 'digits and ". _ -", got "usage events"'),
    ("kafka: {progress_topic: ..}", 'kafka.progress_topic: expected 1 to 249 of the letters'),
    ("kafka: {topic: usage, progress_topic: usage}",
     'kafka.progress_topic: expected another topic than that of the events, got "usage" for both'),
    ("kafka: {brokers: ['kafka-1:9²']}", "kafka.brokers: expected host:port"),
    ("control: {url: 'mysql://scott:tiger@db/x'}",
     "control.url: expected sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME, got another kind of store"),
    ("kafka: {partitions: 0}", "kafka.partitions: expected more than 0, got 0"),
    ("agent: {interval: 7s}", "agent.interval: expected a part of a minute such as 10s or 30s, got 7s"),
    ("agent: {interval: 0s}", "agent.interval: expected more than 0"),
    ("rules: {endpoints: {pager: {url: pager.example}}}", 'expected https://... or http://..., got "pager.example"'),
    ("rules: {endpoints: {pager: {}}}", 'tallyman.yaml:1: rules.endpoints.pager: missing key "url"'),
    ("clickhouse: {password: '${NO_SUCH_PASSWORD}'}", "the environment variable NO_SUCH_PASSWORD is not set"),
    ("pipeline: {archive_ttl: 36500d}", "pipeline.archive_ttl: expected at most 18250d, or 0d for ever, got 36500d"),
    ("agent: {collectors: {host: {x: 1e99999999999999999999}}}",
     "agent.collectors.host.x: expected a number of at most 100 digits, got 1e99999999999999999999"),
    ("agent: {collectors: {host: {x: " + "1" * 5000 + "}}}", "host.x: expected a number of at most 100 digits, got 11"),
    ("kafka: {partitions: " + "1" * 5000 + "}", "kafka.partitions: expected a number of at most 100 digits"),
    ("operator: x\nagent:\n  subject: a\0b", "tallyman.yaml:3: no YAML: found the character U+0000; remove it"),
    ("operator: x\nagent:\n  subject: a\x07b", "tallyman.yaml:3: no YAML: found the character U+0007; remove it"),
    ("clickhouse: {password: }", "clickhouse.password: expected a text, got nothing"),
    ("usage: {oldest_accepted: 35}", 'expected a duration such as 200ms, 30s, 5m, 1h or 35d, got "35"'),
    ("usage: {oldest_accepted: 36501d}", "usage.oldest_accepted: expected a duration of at most 36500d, got"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[settings[:60] for settings, _ in BAD])
def test_each_wrong_setting_has_its_sentence(tmp_path: Path, settings: str, message: str) -> None:
    assert message in complaint(tmp_path, settings)


@pytest.mark.parametrize("settings", [
    "clickhouse: {password: 20261130}", "clickhouse: {password: !20261130 x}", "clickhouse: 20261130",
    "control: postgresql://tallyman:20261130@db/x", "rules: {endpoints: {ops: whsec_20261130}}",
    "rules: {endpoints: {ops: {url: 'https://a.example', secrets: whsec_20261130}}}",
    "rules: {endpoints: {ops: {url: 'https://a.example', secrets: [20261130]}}}",
])  # fmt: skip
def test_a_secret_that_is_written_in_the_wrong_way_is_not_shown(tmp_path: Path, settings: str) -> None:
    text = complaint(tmp_path, settings)
    assert "expected " in text and "20261130" not in text


def test_mistakes_in_settings_and_meters_are_named_together(tmp_path: Path) -> None:
    text = complaint(tmp_path, "operatr: x\n", disk="meters:\n  - {meter: disk, event_type: d, agregation: sum}\n")
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "tallyman.yaml",
        "meters/disk.yaml",
        "meters/disk.yaml",
    ]


def test_two_meters_of_one_name_are_refused_with_both_places(tmp_path: Path) -> None:
    text = complaint(tmp_path, "", copy=METERS)
    assert text == (
        'meters/copy.yaml:3: meters[0].meter: meter "server.seconds" is defined twice, '
        "first at meters/compute.yaml:3: meters[0].meter; rename or remove one"
    )


def test_a_meter_that_cannot_be_is_named_with_its_line(tmp_path: Path) -> None:
    text = complaint(
        tmp_path, "", disk="meters:\n  - meter: d\n    event_type: d\n    aggregation: sum\n    scale: 19\n"
    )
    assert text == "meters/disk.yaml:5: meters[0].scale: expected 0 to 18, got 19"


@pytest.mark.parametrize(("written", "key"), [
    ("event_type: ''", "event_type"), ("event_type: d, value: ''", "value"),
    ("event_type: d, where: {region: []}", "where.region"), ("event_type: d, where: {'': [x]}", "where"),
    ("event_type: d, dimensions: {region: ''}", "dimensions.region"),
])  # fmt: skip
def test_a_meter_that_could_never_count_is_named_with_its_line(tmp_path: Path, written: str, key: str) -> None:
    text = complaint(tmp_path, "", disk=f"meters:\n  - {{meter: d, {written}, aggregation: sum}}\n")
    assert text.startswith(f"meters/disk.yaml:2: meters[0].{key}: expected ")
    assert "got " in text


def test_the_stores_that_settings_may_name_are_those_that_can_be_opened() -> None:
    assert set(CONTROL_KINDS) == control._MAKERS.keys()


@pytest.mark.parametrize("name", ["usage.events.v1", "a" * 249, "_"])
def test_a_name_that_kafka_takes_is_taken(name: str) -> None:
    assert KafkaConfig(topic=name).topic == name


def test_a_folder_without_settings_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; make a project with: tallyman init FOLDER"):
        load_project(tmp_path)


def test_the_data_folder_is_named_or_in_the_environment_or_beside_the_files(tmp_path: Path) -> None:
    project(tmp_path)
    assert load_project(tmp_path, tmp_path / "data", {"TALLYMAN_DATA": "/x"}).data == tmp_path / "data"
    assert load_project(tmp_path, None, {"TALLYMAN_DATA": "/x"}).data == Path("/x")
    assert load_project(tmp_path, None, {}).data == tmp_path / ".tallyman"


def test_without_servers_the_running_stack_is_used(tmp_path: Path) -> None:
    running_stack(tmp_path)
    found = project(tmp_path)
    assert found.kafka_brokers == ("127.0.0.1:9092",)
    assert (found.clickhouse.host, found.clickhouse.port, found.clickhouse.database) == ("127.0.0.1", 9001, "t")
    assert found.kafka_replication == 1


def test_configured_servers_win_over_a_running_stack(tmp_path: Path) -> None:
    running_stack(tmp_path)
    found = project(
        tmp_path, "kafka: {brokers: [kafka-1:9092]}\nclickhouse: {host: ch-1}\ncontrol: {url: sqlite:////c}\n"
    )
    assert found.kafka_brokers == ("kafka-1:9092",)
    assert found.clickhouse.host == "ch-1"
    assert found.control_url == "sqlite:////c"
    assert found.kafka_replication == 3


def test_without_any_server_the_next_step_is_named(tmp_path: Path) -> None:
    found = project(tmp_path)
    with pytest.raises(StackError, match=r"start one with: tallyman up, or set kafka\.brokers"):
        found.kafka_brokers
    with pytest.raises(StackError, match=r"start one with: tallyman up, or set clickhouse\.host"):
        found.clickhouse


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    running_stack(tmp_path)
    found = project(tmp_path, "control: {url: 'postgresql://tallyman:geheim@db/t'}\n")
    assert "geheim" not in repr(found)
    assert "geheim" not in repr(found.clickhouse)


def test_the_defaults_need_no_file() -> None:
    assert TallymanConfig().agent.collectors == {"host": {}}
