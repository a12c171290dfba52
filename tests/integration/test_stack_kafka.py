"""The embedded broker: what it promises to those who write to it, also when it is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from tallyman.local.kafka import Broker, kafka_child, plan_kafka
from tests.stack import FreshTopic

pytestmark = pytest.mark.integration


def read_all(bootstrap: str, topic: str) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="none", enable_auto_commit=False)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    end = consumer.end_offsets([partition])[partition]
    values: list[bytes] = []
    while consumer.position(partition) < end:
        values += [record.value for records in consumer.poll(1000).values() for record in records]
    consumer.close()
    return values


def test_acknowledged_records_outlive_a_kill_of_the_broker(own_broker: Broker) -> None:
    """On the same folder and port, without anybody clearing up."""
    topic = own_broker.create_topic("usage.events", partitions=1)
    sent = [f"Zoë Åström reading {number}".encode() for number in range(500)]
    producer = KafkaProducer(bootstrap_servers=own_broker.bootstrap, acks="all")
    for future in [producer.send(topic, value) for value in sent[:250]]:
        future.get(30)
    port = own_broker.plan.port

    own_broker.kill()
    assert own_broker.pid is None
    own_broker.start()

    for future in [producer.send(topic, value) for value in sent[250:]]:
        future.get(30)
    producer.close()
    assert own_broker.plan.port == port
    assert read_all(own_broker.bootstrap, topic) == sent


def test_a_record_of_eight_mebibytes_fits(kafka_broker: str, fresh_topic: FreshTopic) -> None:
    record = bytes(8 * 1024 * 1024)
    topic = fresh_topic("usage.events", partitions=1)
    producer = KafkaProducer(bootstrap_servers=kafka_broker, acks="all", max_request_size=2 * len(record))
    producer.send(topic, record).get(30)
    producer.close()
    assert read_all(kafka_broker, topic) == [record]


def test_records_are_stamped_by_the_broker(kafka_broker: str, fresh_topic: FreshTopic) -> None:
    topic = fresh_topic("usage.events", partitions=1)
    producer = KafkaProducer(bootstrap_servers=kafka_broker, acks="all")
    told = producer.send(topic, b"{}", timestamp_ms=86_400_000).get(30)
    producer.close()
    assert told.timestamp > 1_700_000_000_000


def test_a_topic_is_never_made_by_asking_for_it(kafka_broker: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker)
    before = admin.list_topics()
    admin.describe_topics(["usage.evnets.v1"])
    assert "usage.evnets.v1" not in before
    assert "usage.evnets.v1" not in admin.list_topics()
    admin.close()


def test_neither_the_folders_nor_the_shells_language_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Formatting runs the same Java in the same environment as the broker."""
    here = tmp_path / "Zoë's Cloud — Ünï"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("LC_ALL", "C")
    plan = plan_kafka(here / "データ")
    assert plan.data.is_dir()
    assert kafka_child(plan).env["LC_ALL"] == "C.UTF-8"
