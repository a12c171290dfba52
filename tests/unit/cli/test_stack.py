"""`tallyman up` and `status` where Kafka or ClickHouse are one's own: none is started here, and none is missed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tallyman.cli import run
from tallyman.completeness import Completeness, PartitionProgress

KAFKA, CLICKHOUSE = "kafka: {brokers: ['kafka-1:9092']}\n", "clickhouse: {host: ch-1}\n"
NOON = datetime(2026, 10, 31, 12, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TALLYMAN_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(project: Path, text: str) -> None:
    (project / "tallyman.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "started"),
    [("", (True, True)), (KAFKA, (False, True)), (CLICKHOUSE, (True, False)), (KAFKA + CLICKHOUSE, (False, False))],
)
def test_only_what_is_not_named_elsewhere_is_started(
    project: Path, monkeypatch: pytest.MonkeyPatch, text: str, started: tuple[bool, bool]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("tallyman.local.updown.up", lambda *_, options, **__: asked.append(options))
    settings(project, text)
    assert run(["up"]) == 0
    assert [(each.kafka, each.clickhouse) for each in asked] == [started]


def test_a_port_of_what_is_not_started_is_wrong_usage(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings(project, KAFKA + CLICKHOUSE)
    for option, setting in (("--kafka-port", "kafka.brokers"), ("--clickhouse-port", "clickhouse.host")):
        assert run(["up", option, "9092"]) == 2
        assert f"{option}: {setting} is set in tallyman.yaml" in capsys.readouterr().err


def test_with_a_clickhouse_of_ones_own_status_says_how_complete_usage_is(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Completeness(complete_to=NOON, sealed_to=20_757_000, partitions=())
    monkeypatch.setattr("tallyman.completeness.read_completeness", lambda *_, **__: found)
    settings(project, KAFKA + CLICKHOUSE)
    assert run(["status"]) == 0
    printed = capsys.readouterr()
    assert "usage is complete up to 2026-10-31 12:00 +00:00, sealed up to booking 20757000" in printed.out
    assert "usage is that of ClickHouse at ch-1:9000" in printed.err


def test_as_json_status_says_how_far_each_partition_is_and_its_watermark(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = "Ecl5Q0nRQo2TbJGAGKdzDA"
    places = tuple(
        PartitionProgress(topic_id=topic, partition=number, offset=7 * number, clock=clock, booking=20_757_001)
        for number, clock in ((0, None), (1, NOON))
    )
    found = Completeness(complete_to=None, sealed_to=20_757_000, partitions=places)
    monkeypatch.setattr("tallyman.completeness.read_completeness", lambda *_, **__: found)
    settings(project, KAFKA + CLICKHOUSE + "usage: {expected_delay: 30s}\n")
    assert run(["status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["partitions"]
    assert [(each["partition"], each["offset"], each["watermark"]) for each in told] == [
        (0, 0, None), (1, 7, "2026-10-31T11:59:30+00:00")
    ]  # fmt: skip


def test_a_clickhouse_of_ones_own_that_does_not_answer_is_said(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(project, KAFKA + "clickhouse: {host: 127.0.0.1, port: 1}\n")
    assert run(["status"]) == 1
    assert "ClickHouse at 127.0.0.1:1: " in capsys.readouterr().err


def test_without_either_nothing_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings(project, "")
    assert run(["status"]) == 1
    assert "nothing runs in " in capsys.readouterr().err
