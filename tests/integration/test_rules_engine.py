"""From a push on usage.progress.v1 to a signed webhook: real Kafka, real ClickHouse, real HTTP."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from rules import engine as rules_engine
from rules.receiver import Received, Receiver
from rules.state import AlarmEvent, load_states, read_history
from rules.tables import prepare
from tallyman.clickhouse import connect, migrate
from tallyman.config import (
    ClickHouseConfig,
    ControlConfig,
    EndpointConfig,
    KafkaConfig,
    RulesConfig,
    TallymanConfig,
    UsageConfig,
)
from tallyman.control import open_control
from tallyman.files import Secret
from tallyman.kafka import make_producer
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import Meter
from tallyman.project import Project
from tests.stack import FreshTopic

pytestmark = pytest.mark.integration

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ZOE = "Zoë Åström"
METER = Meter(meter="compute.seconds", event_type="compute.usage", aggregation="sum", scale=0)
ALARMS = """\
groups:
  - name: tenants
    rules:
      - alert: busy
        expr: {usage: {meter: compute.seconds, window: 1m}, above: 100}
        %s
        annotations: {summary: "{{ labels.subject }} used {{ value }}"}
"""
COLUMNS = (
    "meter, subject, dimensions, minute, booking, definitions, topic_id, partition, chunk, generation, covered,"
    " aggregation, scale, count, sum"
)


class Pipeline:
    """Writes what the pipeline writes: usage, progress, and the push."""

    def __init__(self, project: Project) -> None:
        self._client = connect(project.clickhouse)
        self._producer = make_producer(project.kafka_brokers)
        self._topic = project.config.kafka.progress_topic
        self._covered = 0

    def book(self, minute: datetime, total: int, clock: datetime | None = None) -> None:
        """Say that Zoë used `total` in a minute, by this log clock."""
        self._covered += 1
        clock_ms = int((clock or datetime.now(UTC)).timestamp() * 1000)
        booking = clock_ms // 86_400_000 * 1000
        row = ("compute.seconds", ZOE, "{}", minute, booking, 1, "t", 0, 0, 0, self._covered, "sum", 0, 1, total)
        self._client.execute(f"INSERT INTO usage_hot ({COLUMNS}) VALUES", [row])
        self._client.execute(
            "INSERT INTO progress (topic_id, partition, chunk, generation, covered, reached_offset, reached_clock_ms,"
            " reached_booking) VALUES",
            [("t", 0, 0, 0, self._covered, self._covered, clock_ms, booking)],
        )
        number = int(minute.timestamp()) // 60
        push = {"topic": "t", "touched": [["compute.seconds", ZOE, number, number]], "written_ms": clock_ms}
        self._producer.send(self._topic, value=msgspec.json.encode(push)).get(10)

    def close(self) -> None:
        self._producer.close()
        self._client.disconnect()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver([SECRET])
    yield receiver
    receiver.close()


@pytest.fixture
def project(
    kafka_broker: str,
    clickhouse_endpoint: ClickHouseEndpoint,
    fresh_topic: FreshTopic,
    receiver: Receiver,
    tmp_path: Path,
) -> Project:
    where: dict[str, Any] = {"host": clickhouse_endpoint.host, "port": clickhouse_endpoint.port}
    database = f"rules_{uuid4().hex[:8]}"
    anywhere = connect(ClickHouseConfig(**where, database="default"))
    anywhere.execute(f"CREATE DATABASE {database}")
    anywhere.disconnect()
    config = TallymanConfig(
        kafka=KafkaConfig(brokers=(kafka_broker,), progress_topic=fresh_topic("progress", partitions=1), partitions=1),
        clickhouse=ClickHouseConfig(**where, database=database),
        control=ControlConfig(url=Secret(f"sqlite:///{tmp_path / 'control.db'}")),
        usage=UsageConfig(expected_delay=timedelta(seconds=1)),
        rules=RulesConfig(
            endpoints={"ops": EndpointConfig(url=receiver.url, secrets=(Secret(SECRET),), allow_private=True)}
        ),
    )
    project = Project(folder=tmp_path, data=tmp_path, config=config, meters=(METER,))
    client = connect(project.clickhouse)
    migrate(client)
    client.disconnect()
    write_alarms(project)
    return project


@pytest.fixture
def pipeline(project: Project) -> Iterator[Pipeline]:
    pipeline = Pipeline(project)
    yield pipeline
    pipeline.close()


def write_alarms(project: Project, settings: str = "for: 0s") -> None:
    (project.folder / "alarms").mkdir(exist_ok=True)
    (project.folder / "alarms" / "tenants.yaml").write_text(ALARMS % settings, "utf-8")


@contextmanager
def running(project: Project, metrics_port: int | None = None) -> Iterator[None]:
    stop = threading.Event()
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(rules_engine.main(project, stop, metrics_port)))
    thread.start()
    yield
    stop.set()
    thread.join(10)
    assert codes == [0], "the engine did not stop cleanly"


def history(project: Project) -> list[AlarmEvent]:
    return read_history(open_control(project.control_url))


def this_minute() -> datetime:
    now = datetime.now(UTC)
    if now.second > 50:  # enough of it must be left for the test
        time.sleep(60 - now.second)
        now = datetime.now(UTC)
    return now.replace(second=0, microsecond=0)


def states(messages: list[Received]) -> list[str]:
    return [message.body["data"]["state"] for message in messages]


def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.02)
    return False


def test_usage_above_its_bound_becomes_a_signed_webhook_and_its_end_another(
    project: Project, pipeline: Pipeline, receiver: Receiver
) -> None:
    """The minute is still filling when it fires; it resolves when a complete minute is below."""
    minute = this_minute()
    pipeline.book(minute, 5)
    with running(project):
        assert eventually(lambda: _decided(project))
        pipeline.book(minute, 101)
        assert receiver.wait_for(lambda messages: len(messages) == 1)
        pipeline.book(minute + timedelta(minutes=1), 5, clock=minute + timedelta(minutes=2, seconds=2))
        assert receiver.wait_for(lambda messages: len(messages) == 2)
    assert states(receiver.messages) == ["firing", "resolved"]
    assert receiver.refused == []
    assert receiver.messages[0].body["data"]["annotations"] == {"summary": "Zoë Åström used 101"}
    assert receiver.messages[0].body["data"]["window"]["complete"] is False
    assert [event.to for event in history(project)] == ["firing", "resolved"]


def test_an_alarm_is_pending_before_it_fires(project: Project, pipeline: Pipeline, receiver: Receiver) -> None:
    write_alarms(project, "for: 1s")
    minute = this_minute()
    with running(project):
        pipeline.book(minute, 101)
        assert receiver.wait_for(lambda messages: len(messages) == 1)
    first, second = history(project)
    assert (first.to, second.to) == ("pending", "firing")
    assert second.at - first.at >= timedelta(seconds=1)


def test_what_happened_while_the_engine_was_down_is_decided_at_its_start(
    project: Project, pipeline: Pipeline, receiver: Receiver
) -> None:
    pipeline.book(this_minute(), 101)
    with running(project):
        assert receiver.wait_for(lambda messages: len(messages) == 1)
    with running(project):
        assert not receiver.wait_for(lambda messages: len(messages) > 1, 1.0)


def test_it_is_ready_when_it_decides_and_not_while_it_cannot(
    project: Project, pipeline: Pipeline, fresh_topic: FreshTopic
) -> None:
    port = _free_port()
    with running(project, port):
        assert eventually(lambda: _ready(port)[0] == 200)
    lost = KafkaConfig(brokers=project.config.kafka.brokers, progress_topic="nobody.made.this", partitions=1)
    with running(replace(project, config=replace(project.config, kafka=lost)), port):
        assert eventually(lambda: "nobody.made.this" in _ready(port)[1])
        assert _ready(port)[0] == 503


def _ready(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _decided(project: Project) -> bool:
    """Whether the engine has looked at all rules once: from then on it follows the pushes."""
    control = open_control(project.control_url)
    prepare(control)
    return any(state.decided_to for state in load_states(control).values())
