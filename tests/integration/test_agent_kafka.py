"""The agent before a real Kafka: what it measures arrives, numbered, in order, whatever happens to the broker."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
from kafka import TopicPartition

from collectors import agent
from collectors.send import Sender
from collectors.spool import Spool
from tallyman.config import AgentConfig, KafkaConfig, TallymanConfig
from tallyman.kafka import end_offsets, make_consumer
from tallyman.local.kafka import Broker
from tallyman.project import Project
from tests.stack import FreshTopic

pytestmark = pytest.mark.integration

PARTITIONS = 2


class Record(NamedTuple):
    partition: int
    epoch: str
    sequence: int
    watermark_us: int
    value: bytes


def read_topic(bootstrap: str, topic: str) -> list[Record]:
    consumer = make_consumer((bootstrap,))
    places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    consumer.assign(places)
    ends = end_offsets(consumer, topic, range(PARTITIONS))
    for place in places:
        consumer.seek(place, 0)
    found: list[Record] = []
    while any(consumer.position(place) < ends[place.partition] for place in places):
        for records in consumer.poll(1000).values():
            for record in records:
                headers = {name: value.decode() for name, value in record.headers}
                found.append(
                    Record(
                        record.partition,
                        headers["tallyman-epoch"],
                        int(headers["tallyman-sequence"]),
                        int(headers["tallyman-watermark-us"]),
                        record.value,
                    )
                )
    consumer.close()
    return found


def project(folder: Path, bootstrap: str, topic: str) -> Project:
    config = TallymanConfig(
        kafka=KafkaConfig(brokers=(bootstrap,), topic=topic),
        agent=AgentConfig(collector="värd-1", subject="Zoë Åström", interval=timedelta(seconds=1)),
    )
    return Project(folder=folder, data=folder / "data", config=config, meters=())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Running:
    """An agent in a thread of this process."""

    def __init__(self, project: Project, port: int | None = None) -> None:
        self._stop = threading.Event()
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, args=(project, port))
        self._thread.start()

    def _run(self, project: Project, port: int | None) -> None:
        self.code = agent.main(project, self._stop, port)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def quick_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses of a test, not of an outage."""
    monkeypatch.setattr("collectors.send.PAUSE_MOST_S", 0.5)
    yield


def wait_until(is_so, seconds: float = 30) -> None:
    for _ in range(int(seconds / 0.05)):
        if is_so():
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"not within {seconds} s")


def rows_of(records: list[Record], kind: str) -> list[dict[str, int]]:
    rows = []
    for record in records:
        table = pa.ipc.open_stream(record.value).read_all()
        series = json.loads(table.schema.metadata[b"tallyman.series"])
        rows += [row for row in table.to_pylist() if series[row["series"]]["type"] == kind]
    return rows


def test_this_machines_usage_arrives_in_order_and_a_restart_leaves_no_hole(
    tmp_path: Path, kafka_broker: str, fresh_topic: FreshTopic
) -> None:
    topic = fresh_topic("usage.events", partitions=PARTITIONS)
    port = free_port()
    for _ in range(2):
        running = Running(project(tmp_path, kafka_broker, topic), port)
        before = len(read_topic(kafka_broker, topic))
        wait_until(lambda before=before: len(read_topic(kafka_broker, topic)) >= before + 3)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            assert answer.read() == b"measuring\n"
        running.stop()
        assert running.code == 0
    records = read_topic(kafka_broker, topic)
    assert len({(record.partition, record.epoch) for record in records}) == 1, "one home, one epoch"
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    for mode in range(5):
        chain = [row for row in rows_of(records, "tallyman.host.cpu") if row["series"] == mode]
        assert all(one["last"] == two["first"] for one, two in itertools.pairwise(chain))
        assert all(row["value"] == row["last"] - row["first"] for row in chain)
    memory = rows_of(records, "tallyman.host.memory")
    assert all(one["until_us"] == two["time_us"] for one, two in itertools.pairwise(memory))


def test_an_agent_starts_without_kafka_and_sends_everything_when_it_comes(
    tmp_path: Path, own_broker: Broker, quick_connections: None
) -> None:
    topic = own_broker.create_topic("usage.events", partitions=PARTITIONS)
    bootstrap = own_broker.bootstrap
    own_broker.kill()
    running = Running(project(tmp_path, bootstrap, topic))
    segment = tmp_path / "data/spool/000000000001.spool"
    wait_until(lambda: segment.exists() and segment.stat().st_size > 3_000)
    own_broker.start()
    wait_until(lambda: len(read_topic(bootstrap, topic)) >= 4)
    running.stop()
    records = read_topic(bootstrap, topic)
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))


def test_a_broker_that_dies_in_mid_flight_gets_each_batch_at_least_once_in_order_with_the_same_bytes(
    tmp_path: Path, own_broker: Broker, quick_connections: None
) -> None:
    topic = own_broker.create_topic("usage.events", partitions=PARTITIONS)
    spool = Spool(tmp_path / "spool", max_bytes=100_000_000)
    sent = {
        spool.append(f"reading {n} of Zoë Åström ".encode() * 40, watermark_us=n, rows=1, state=b""): n
        for n in range(3000)
    }
    sender = Sender(
        spool,
        lambda: agent.connect([own_broker.bootstrap]),
        topic=topic,
        collector="värd-1",
        patience_s=5.0,
        pause_least_s=0.05,
    )
    sender.start()
    wait_until(lambda: 0 < spool.pending_bytes < spool.used_bytes - 200_000)
    own_broker.kill()
    own_broker.start()
    wait_until(lambda: spool.read() is None, 60)
    sender.stop(5.0)
    spool.close()
    records = read_topic(own_broker.bootstrap, topic)
    assert {record.epoch for record in records} == {spool.epoch}
    contents: dict[int, set[bytes]] = {}
    for record in records:
        contents.setdefault(record.sequence, set()).add(record.value)
    assert contents == {number: {f"reading {n} of Zoë Åström ".encode() * 40} for number, n in sent.items()}
    assert list(dict.fromkeys(record.sequence for record in records)) == sorted(sent)


def test_a_producer_that_is_given_up_leaves_no_thread_behind(
    tmp_path: Path, own_broker: Broker, quick_connections: None
) -> None:
    topic = own_broker.create_topic("usage.events", partitions=PARTITIONS)
    bootstrap = own_broker.bootstrap
    before = threading.active_count()
    spool = Spool(tmp_path / "spool", max_bytes=100_000_000)
    sender = Sender(
        spool, lambda: agent.connect([bootstrap]), topic=topic, collector="värd-1", patience_s=0.2, pause_least_s=0.05
    )
    spool.append(b"the first", watermark_us=0, rows=1, state=b"")
    sender.start()
    wait_until(lambda: spool.read() is None)
    own_broker.kill()
    for n in range(5):
        spool.append(f"reading {n}".encode(), watermark_us=0, rows=1, state=b"")
    wait_until(lambda: sender.trouble != "")
    sender.stop(0.0)
    spool.close()
    wait_until(lambda: threading.active_count() <= before)
