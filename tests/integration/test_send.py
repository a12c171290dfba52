"""`tallyman send` against a real Kafka and a real ClickHouse: acknowledged, in place, and counted afterwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.read import read_range
from tallyman.clickhouse import connect
from tallyman.config import ClickHouseConfig, KafkaConfig, TallymanConfig, UsageConfig
from tallyman.errors import BrokerError, LogError, StoreError
from tallyman.kafka import end_offsets, make_consumer
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import Meter
from tallyman.project import Project
from tallyman.send import Outcome, SendReport, send_file, wait_for
from tests.stack import FreshTopic
from tests.usage_rows import fresh_database

pytestmark = pytest.mark.integration

TENANTS = ("Zoë Åström", "Ærø Data ApS", "株式会社東京")


def event(number: int, kind: str = "compute.hours") -> bytes:
    wire = {"specversion": "1.0", "id": f"e-{number}", "source": "compute/malmö", "type": kind}
    rest = {"subject": TENANTS[number % 3], "time": "2026-10-31T23:59:59Z", "data": {"value": "0.25"}}
    return json.dumps(wire | rest, ensure_ascii=False).encode()


def project_on(folder: Path, broker: str, topic: str, clickhouse: ClickHouseConfig | None = None) -> Project:
    config = TallymanConfig(
        kafka=KafkaConfig(brokers=(broker,), topic=topic, replication=1),
        clickhouse=clickhouse or ClickHouseConfig(),
        usage=UsageConfig(ignore=("compute.ping",)),
    )
    return Project(folder=folder, data=folder, config=config, meters=())


@pytest.fixture
def project(kafka_broker: str, fresh_topic: FreshTopic, tmp_path: Path) -> Project:
    return project_on(tmp_path, kafka_broker, fresh_topic("usage.events", partitions=4))


def stored(project: Project, report: SendReport) -> list[bytes]:
    """Return the lines that Kafka has at the offsets that the report names, and nothing else."""
    lines = []
    for partition, runs in report.offsets.items():
        for first, last in runs:
            for fetch in read_range(
                project.kafka_brokers, report.topic.name, report.topic.topic_id, partition, first, last + 1
            ):
                lines += [line for value in fetch.values for line in (value or b"").split(b"\n")]
    return lines


def test_every_line_is_in_kafka_when_send_returns(project: Project, tmp_path: Path) -> None:
    lines = [event(number) for number in range(3000)] + [b"{ no event", b"\xff\xfe"]
    path = tmp_path / "october.ndjson"
    path.write_bytes(b"\n".join(lines))
    told: list[tuple[int, int | None]] = []
    report = send_file(project, path, lambda done, total: told.append((done, total)))
    assert sorted(stored(project, report)) == sorted(lines)
    assert (report.events, report.too_long) == (3002, ())
    assert told[-1] == (path.stat().st_size, path.stat().st_size)


def test_single_records_are_told_apart_by_their_header(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "october.ndjson"
    path.write_bytes(b"\n".join(event(number) for number in range(200)))
    report = send_file(project, path, single=True)
    assert report.records == 200
    partition, runs = next(iter(report.offsets.items()))
    first, last = runs[0]
    (fetch, *_) = read_range(
        project.kafka_brokers, report.topic.name, report.topic.topic_id, partition, first, last + 1
    )
    assert fetch.headers_of(0) == (("content-type", b"application/cloudevents+json"),)


def test_a_file_may_be_sent_twice(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "october.ndjson"
    path.write_bytes(event(1))
    first, second = send_file(project, path), send_file(project, path)
    assert first.offsets != second.offsets
    assert stored(project, first) == stored(project, second)


def test_a_line_that_no_record_holds_is_named(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "october.ndjson"
    path.write_bytes(event(1) + b"\n" + b"x" * (9 << 20) + b"\n" + event(3))
    report = send_file(project, path)
    assert (report.events, report.too_long) == (2, (2,))


def test_a_line_of_seven_mebibytes_is_sent_and_left_to_the_pipeline(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "october.ndjson"
    path.write_bytes(b"x" * (7 << 20))
    report = send_file(project, path)
    assert stored(project, report) == [b"x" * (7 << 20)]


def test_an_empty_file_is_sent_at_once(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "empty.ndjson"
    path.touch()
    report = send_file(project, path)
    assert (report.events, report.records, dict(report.offsets)) == (0, 0, {})


def test_a_topic_that_is_not_there_is_named(kafka_broker: str, tmp_path: Path) -> None:
    path = tmp_path / "one.ndjson"
    path.write_bytes(event(1))
    with pytest.raises(LogError, match=r'topic "usage\.nowhere": expected it on 127\.0\.0\.1'):
        send_file(project_on(tmp_path, kafka_broker, "usage.nowhere"), path)


def test_a_refusal_says_how_much_is_acknowledged(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kafka.errors import NotEnoughReplicasError

    from tallyman import send as module

    real = module.make_producer

    def reluctant(*args: Any) -> Any:
        producer = real(*args)
        sends = producer.send

        def send(*args: Any, **options: Any) -> Any:
            if send.count == 2:  # type: ignore[attr-defined]
                raise NotEnoughReplicasError()
            send.count += 1  # type: ignore[attr-defined]
            return sends(*args, **options)

        send.count = 0  # type: ignore[attr-defined]
        producer.send = send
        return producer

    monkeypatch.setattr(module, "make_producer", reluctant)
    path = tmp_path / "october.ndjson"
    path.write_bytes(b"\n".join(event(number) for number in range(5000)))
    with pytest.raises(BrokerError, match="Send the same file again when Kafka is back: an id counts once"):
        send_file(project, path)


@pytest.fixture
def booked(
    clickhouse_endpoint: ClickHouseEndpoint, kafka_broker: str, fresh_topic: FreshTopic, tmp_path: Path
) -> Iterator[Project]:
    """A project with ClickHouse's tables in a database of its own."""
    with fresh_database(clickhouse_endpoint) as client:
        where = ClickHouseConfig(
            host=clickhouse_endpoint.host, port=clickhouse_endpoint.port, database=client.connection.database
        )
        yield project_on(tmp_path, kafka_broker, fresh_topic("usage.events", partitions=2), where)


def book(project: Project, report: SendReport, accepted: int, dead: int) -> None:
    """Write what a pipeline would: the first events of the report's first record accepted, the next ones dead."""
    client = connect(project.clickhouse)
    topic_id = report.topic.topic_id
    partition, runs = next(iter(report.offsets.items()))
    offset = runs[0][0]
    client.execute(
        "INSERT INTO ids (identity_high, identity_low, topic_id, partition, offset, event_index) VALUES",
        [(number, 1, topic_id, partition, offset, number) for number in range(accepted)],
    )
    elsewhere = [(topic_id, partition, offset + 1000, 0, 0, 20757000, "malformed", "")]  # somebody else's
    client.execute(
        "INSERT INTO dead_letters (topic_id, partition, offset, event_index, generation, booking, reason, body) VALUES",
        [(topic_id, partition, offset, 100 + n, 0, 20757000, "malformed", "{") for n in range(dead)] + elsewhere,
    )
    consumer = make_consumer(project.kafka_brokers)
    for number, end in end_offsets(consumer, report.topic.name, report.offsets).items():
        client.execute(
            "INSERT INTO progress (topic_id, partition, chunk, generation, covered, reached_offset) VALUES",
            [(topic_id, number, 0, 0, end, end)],
        )
    consumer.close()
    client.disconnect()


def test_waiting_says_what_became_of_every_event(booked: Project, tmp_path: Path) -> None:
    path = tmp_path / "october.ndjson"
    path.write_bytes(b"\n".join([*(event(number) for number in range(20)), event(20, "compute.ping"), b"{ no"]))
    report = send_file(booked, path)
    left: list[int] = []
    threading.Timer(0.5, book, (booked, report, 15, 1)).start()
    assert wait_for(booked, report, on_progress=left.append) == Outcome(aggregated=15, duplicate=5, dead=1, ignored=1)
    assert left[0] > 0
    assert left[-1] == 0


def test_waiting_tells_what_a_filter_leaves_out_from_copies(booked: Project, tmp_path: Path) -> None:
    """Four of twenty are from no data centre that the only meter asks for; of the others 13 are accepted, 3 copies."""
    meter = Meter(meter="compute.hours", event_type="compute.hours", aggregation="sum", where={"dc": ("malmö",)})
    project = replace(booked, meters=(meter,))
    path = tmp_path / "october.ndjson"
    lines = [json.loads(event(number)) for number in range(20)]
    for number, line in enumerate(lines):
        line["data"]["dc"] = "malmö" if number % 5 else "lund"
    path.write_bytes(b"\n".join(json.dumps(line).encode() for line in lines))
    report = send_file(project, path)
    book(project, report, 13, 0)
    assert wait_for(project, report) == Outcome(aggregated=13, duplicate=3, dead=0, ignored=4)


def test_waiting_for_a_pipeline_that_stands_still_ends(booked: Project, tmp_path: Path) -> None:
    path = tmp_path / "october.ndjson"
    path.write_bytes(event(1))
    report = send_file(booked, path)
    with pytest.raises(StoreError, match=r"1 offsets have waited 1 s without a step; everything sent is safe in Kafka"):
        wait_for(booked, report, patience_s=0.6)


def test_nothing_sent_is_nothing_to_wait_for(booked: Project, tmp_path: Path) -> None:
    path = tmp_path / "empty.ndjson"
    path.touch()
    assert wait_for(booked, send_file(booked, path)) == Outcome(aggregated=0, duplicate=0, dead=0)
