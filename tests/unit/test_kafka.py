"""The door to Kafka without a broker: homes, settings, and what is said when nobody answers."""

from __future__ import annotations

import socket
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import KafkaTimeoutError, PolicyViolationError
from kafka.partitioner.default import murmur2

from tallyman.errors import BrokerError
from tallyman.event import home_key
from tallyman.kafka import _said, check_topic, faults_of, make_consumer, partition_of, topic_id_text

GOOD = {
    "message.timestamp.type": "LogAppendTime",
    "cleanup.policy": "delete",
    "unclean.leader.election.enable": "false",
    "retention.bytes": "-1",
    "retention.ms": "2592000000",
    "min.insync.replicas": "2",
    "max.message.bytes": "8388608",
}

# From Kafka's own UtilsTest.testMurmur2 (signed there).
KNOWN = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("key", KNOWN, ids=bytes.decode)
def test_homes_are_those_of_kafkas_own_partitioner(key: bytes) -> None:
    positive = KNOWN[key] & 0x7FFFFFFF
    assert [partition_of(key, count) for count in (1, 4, 97)] == [positive % 1, positive % 4, positive % 97]


@given(st.binary(max_size=200), st.integers(1, 1000))
def test_homes_are_those_of_kafka_pythons_partitioner(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


def test_a_tenant_of_any_alphabet_has_a_home() -> None:
    assert 0 <= partition_of(home_key("株式会社東京", "compute"), 12) < 12


def test_a_topic_id_is_written_as_kafkas_tools_write_it() -> None:
    assert topic_id_text(uuid.UUID(int=0)) == "AAAAAAAAAAAAAAAAAAAAAA"
    assert topic_id_text("d9612ac6-3bc6-4437-ad9c-16d1e71d1a41") == topic_id_text(
        uuid.UUID("d9612ac6-3bc6-4437-ad9c-16d1e71d1a41")
    )


def test_good_settings_have_no_faults() -> None:
    assert list(faults_of(GOOD, 3)) == []
    assert list(faults_of(GOOD | {"min.insync.replicas": "1"}, 1)) == []
    assert list(faults_of(GOOD | {"retention.ms": "-1"}, 3)) == []


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("message.timestamp.type", "CreateTime", "expected LogAppendTime, got CreateTime"),
        ("cleanup.policy", "compact", "compaction would remove usage"),
        ("cleanup.policy", "compact,delete", "compaction would remove usage"),
        ("unclean.leader.election.enable", "true", "it would lose acknowledged usage"),
        ("retention.bytes", "1073741824", "a size limit removes usage"),
        ("retention.ms", "3600000", "expected at least 172800000 or -1, got 3600000"),
        ("min.insync.replicas", "1", "expected at least 2, got 1"),
        ("max.message.bytes", "1048588", "expected at least 8388608, got 1048588"),
    ],
)
def test_a_setting_that_would_lose_usage_is_named(setting: str, value: str, said: str) -> None:
    (fault,) = faults_of(GOOD | {setting: value}, 3)
    assert fault.startswith(f"{setting}: ")
    assert said in fault


def test_nobody_listening_says_what_to_do() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        broker = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(BrokerError, match=rf'Kafka on {broker}: .* nobody listening; start it \("tallyman up"\)'):
        make_consumer([broker])


def test_an_empty_list_of_brokers_says_so() -> None:
    with pytest.raises(BrokerError, match=r"no broker \(kafka.brokers is empty\)"):
        make_consumer([])


def test_a_question_is_asked_again_while_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from tallyman import kafka

    answers = [BrokerError("away"), BrokerError("away"), None]
    pauses: list[float] = []

    class Admin:
        def close(self) -> None: ...

    def make(*_: object, **__: object) -> Admin:
        error = answers.pop(0)
        if error:
            raise error
        return Admin()

    monkeypatch.setattr(kafka, "_make", make)
    monkeypatch.setattr(kafka.time, "sleep", pauses.append)
    assert kafka.ask(["b:9092"], "be asked", lambda _: "answer") == "answer"
    assert pauses == [0.1, 0.2]


def test_a_topic_that_does_not_exist_is_an_error_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    from tallyman import kafka
    from tallyman.errors import LogError

    monkeypatch.setattr(kafka, "ask", lambda *_: (None, {}))
    with pytest.raises(LogError, match='"tallyman up" makes it'):
        check_topic(["b:9092"], "usage.events.v1")


def test_what_a_broker_refuses_is_said_without_all_that_was_asked() -> None:
    long = "Request 'CreateTopicsRequest(topics=[])' failed with response 'CreateTopicsResponse(code=44, {}, x=1)'"
    refused = PolicyViolationError(long.format("error_message='Excessively large number of partitions.'"))
    assert _said(refused) == "PolicyViolationError: Excessively large number of partitions."
    assert _said(PolicyViolationError(long.format("error_message=None"))).count("PolicyViolationError") == 1
    assert _said(KafkaTimeoutError("no metadata")) == "KafkaTimeoutError: no metadata"
    assert _said(KafkaTimeoutError()) == "KafkaTimeoutError"
