"""Kafka goes away while a command sends: its sentence is told, not the error of closing what could not be sent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError

from tallyman import corrections, dead_actions
from tallyman.admission import Admission
from tallyman.config import KafkaConfig, TallymanConfig
from tallyman.corrections import History, Version, correct
from tallyman.dead_actions import retry
from tallyman.errors import BrokerError
from tallyman.kafka import TopicInfo, let_go
from tallyman.line import TopicNow
from tallyman.project import Project
from tests.unit.test_send import AwayBroker
from tests.unit.test_send import event as event_of

NOW = TopicNow(TopicInfo("usage.events.v1", "t", 4), ())
NOBODY: Any = SimpleNamespace()


class FlushedInVain(AwayBroker):
    def flush(self) -> None:
        raise KafkaTimeoutError("Failed to flush")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for room in (corrections, dead_actions):
        monkeypatch.setattr(room, "topic_to_mend", lambda *_: NOW)
        monkeypatch.setattr(room, "make_producer", lambda brokers: FlushedInVain(KafkaTimeoutError("batch expired")))
    config = TallymanConfig(kafka=KafkaConfig(brokers=("k:9092",)))
    return Project(folder=tmp_path, data=tmp_path, meters=(), config=config)


def test_a_correction_that_kafka_did_not_take_says_to_run_it_again(project: Project) -> None:
    event = Version(number=0, text=event_of(1), position="0:0:0")
    history = History(subject="zoë", source="nova", id="1", versions=(event,))
    with pytest.raises(BrokerError, match="run the same command again when Kafka is back: it corrects once"):
        correct(project, NOBODY, history, b"", "")


def test_dead_letters_that_kafka_did_not_take_say_to_run_it_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = SimpleNamespace(reason="malformed", type="", source="")
    monkeypatch.setattr(dead_actions, "read_certain_keys", lambda *_: [letter])
    monkeypatch.setattr(dead_actions, "read_slices", lambda *_: [[letter]])
    monkeypatch.setattr(dead_actions, "admit", lambda *_: (Admission(0, None, b"{}", ()),))
    with pytest.raises(BrokerError, match="run the same command again when Kafka is back: an event counts once"):
        retry(project, NOBODY, NOBODY, {}, preview=False)


def test_a_producer_that_is_let_go_stops_sending_before_it_is_closed() -> None:
    """kafka-python's `close` raises over what is left, and its thread went on with that for ever."""
    done: list[str] = []

    class Network:
        def force_close(self) -> None:
            done.append("stopped")

        def join(self, timeout: float) -> None:
            done.append("joined")

    class Producer:
        _sender = Network()

        def close(self, timeout: float) -> None:
            done.append("closed")
            raise KafkaTimeoutError("Failed to flush")

    let_go(Producer())
    assert done == ["stopped", "joined", "closed"]
