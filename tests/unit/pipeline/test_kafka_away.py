"""Kafka goes away while a stretch of log is read that has an end: audit, rebuild and repair say so, and end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kafka import TopicPartition

from pipeline import poll, read, replay
from tallyman.errors import BrokerError
from tests.fetches import TOPIC_ID
from tests.unit.pipeline.test_poll import TOPIC, Consumer, answer


class Leaving(Consumer):
    """Has ten records; gives the first three, and nothing more, as kafka-python does without a word."""

    def __init__(self) -> None:
        super().__init__({0: answer(3, 10)})

    def assign(self, places: list[TopicPartition]) -> None:
        return

    def seek(self, place: TopicPartition, position: int) -> None:
        return

    def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 10)

    def close(self) -> None:
        return


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll, "PATIENCE_S", 0.05)
    for module in (read, replay):
        monkeypatch.setattr(module, "make_consumer", lambda brokers: Leaving())


def by_range() -> Iterator[Any]:
    return read.read_range(("nowhere:9092",), TOPIC, TOPIC_ID, 0, 0, 10)


def by_source() -> Iterator[Any]:
    return replay.LogSource(("nowhere:9092",), TOPIC, TOPIC_ID).read(0, 0, 10)


@pytest.mark.usefixtures("kafka")
@pytest.mark.parametrize("fetches", [by_range, by_source])
def test_a_stretch_of_log_that_stops_coming_ends_with_a_sentence(fetches: Any) -> None:
    found = fetches()
    assert next(found).next == 3
    with pytest.raises(BrokerError, match=r"partition 0: expected the records from offset 3 on, .* Run this"):
        next(found)
