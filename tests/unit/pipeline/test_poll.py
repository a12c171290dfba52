"""What one poll decompresses, with kafka-python's own fetcher and answers made by hand."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.consumer.subscription_state import SubscriptionState
from kafka.record.memory_records import MemoryRecords
from kafka.structs import OffsetAndMetadata

from pipeline.batches import Fetch
from pipeline.poll import Poller, check_client
from tallyman.errors import ConfigError
from tests.fetches import TOPIC_ID, batch_of

MIB = 1 << 20
TOPIC = "usage.events.v1"


class Consumer:
    """kafka-python's fetcher between answers that are there already and a poll that fetches nothing."""

    def __init__(self, answers: dict[int, bytes]) -> None:
        places = {partition: TopicPartition(TOPIC, partition) for partition in answers}
        self._fetcher: Any = Fetcher.__new__(Fetcher)
        self._state = SubscriptionState("none")
        self._state.assign_from_user(list(places.values()))
        for place in places.values():
            self._state.assignment[place].seek(OffsetAndMetadata(0, "", -1))
        found = [SimpleNamespace(topic_partition=places[partition], fetched_offset=0, answer=MemoryRecords(answer))
                 for partition, answer in answers.items()]  # fmt: skip
        self._fetcher.__dict__.update(
            _subscriptions=self._state, _completed_fetches=deque(found), _next_partition_records=None,
            _paused_completed_fetches={}, _paused_partition_records={}, _next_in_line_exception_metadata=None,
            _sensors=None, config={"max_poll_records": 10_000}, _parse_fetched_data=self._parse,
        )  # fmt: skip

    def _parse(self, found: Any) -> Any:
        return self._fetcher.PartitionRecords(found.fetched_offset, found.topic_partition, found.answer)

    def poll(self, timeout_ms: int, max_records: int | None = None) -> dict[TopicPartition, list[Any]]:
        records, _ = self._fetcher.fetched_records(max_records)
        return cast("dict[TopicPartition, list[Any]]", records)

    def close(self) -> None: ...

    def paused(self) -> set[TopicPartition]:
        return set(self._state.paused_partitions())

    def pause(self, *places: TopicPartition) -> None:
        for place in places:
            self._state.pause(place)

    def resume(self, *places: TopicPartition) -> None:
        for place in places:
            self._state.resume(place)


def answer(batches: int, size: int) -> bytes:
    """Return an answer of batches that are small on the wire."""
    return b"".join(batch_of([(None, bytes(size), ())], base=base, codec="zstd") for base in range(batches))


def poller_of(answers: dict[int, bytes]) -> Poller:
    return Poller(Consumer(answers), TOPIC, TOPIC_ID)


def spans(fetches: list[Fetch]) -> list[tuple[int, int, int]]:
    return [(fetch.partition, fetch.first, fetch.next) for fetch in fetches]


def test_a_poll_decompresses_about_as_much_as_it_may_and_the_rest_waits() -> None:
    """A few kilobytes may stand for gigabytes: all of an answer at once ended the worker."""
    poller = poller_of({0: answer(12, 16 * MIB)})
    sizes = []
    for _ in range(4):
        fetches = poller.poll(0, 48 * MIB)
        sizes.append([len(value or b"") // MIB for fetch in fetches for value in fetch.values])
    assert sizes == [[16, 16, 16]] * 4
    assert poller.poll(0, 48 * MIB) == []


def test_a_poll_brings_one_fetch_at_least() -> None:
    poller = poller_of({0: answer(2, 16 * MIB)})
    assert [spans(poller.poll(0, 1)) for _ in range(3)] == [[(0, 0, 1)], [(0, 1, 2)], []]


def test_small_answers_of_many_partitions_come_together() -> None:
    poller = poller_of({partition: answer(3, 1000) for partition in range(200)})
    assert spans(poller.poll(0)) == [(partition, 0, 3) for partition in range(200)]


def test_a_partition_that_was_paused_in_the_middle_of_an_answer_goes_on_later() -> None:
    """kafka-python put the rest aside and took it up only if no other partition had had an answer meanwhile."""
    poller = poller_of({0: answer(3, 4 * MIB), 1: answer(1, 1000)})
    assert spans(poller.poll(0, MIB)) == [(0, 0, 1)]
    poller.pause([0])
    assert spans(poller.poll(0)) == [(1, 0, 1)]
    poller.pause([])
    assert spans(poller.poll(0)) == [(0, 1, 2), (0, 2, 3)]


def test_a_kafka_python_without_the_place_for_our_walk_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without digests, each partition that was booked with them would be taken for damaged."""
    check_client()
    monkeypatch.delattr(Fetcher, "PartitionRecords")
    for start in (check_client, lambda: poller_of({0: b""})):
        with pytest.raises(ConfigError, match=r"pip install 'kafka-python==3\.0\.12'") as refused:
            start()
        assert not refused.value.retriable
