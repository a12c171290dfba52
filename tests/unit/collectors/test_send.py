"""What the sender promises, before a Kafka of our own that fails when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError, KafkaTimeoutError, MessageSizeTooLargeError

from collectors import send
from collectors.send import Sender
from collectors.spool import Spool
from tallyman.errors import BrokerError

Headers = list[tuple[str, bytes]]


class Delivery:
    def __init__(self, outcome: BaseException | None, is_done: Callable[[], bool]) -> None:
        self._outcome, self._is_done = outcome, is_done

    def get(self, timeout: float | None = None) -> None:
        if not self._is_done():
            threading.Event().wait(0.001)
            raise KafkaTimeoutError("not yet")
        if self._outcome:
            raise self._outcome


class Kafka:
    """An in-memory topic. `fails` says, for each record in turn, what becomes of it."""

    def __init__(self) -> None:
        self.log: list[tuple[bytes, bytes, Headers]] = []
        self.fails: Callable[[int], BaseException | None] = lambda nth: None
        self.is_away = False
        self.answers = True
        self.sent = self.connections = self.open = self.most_open = 0
        self.changed = threading.Condition()

    def connect(self) -> Producer:
        self.connections += 1
        if self.is_away:
            raise BrokerError("Kafka on 127.0.0.1:9: expected a connection, got nobody listening")
        return Producer(self)

    def wait_for(self, count: int) -> list[int]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.log) >= count, 10), f"only {len(self.log)} of {count}"
        return self.numbers()

    def numbers(self) -> list[int]:
        return [int(dict(headers)["tallyman-sequence"]) for _, _, headers in self.log]


class Producer:
    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> Delivery:
        kafka = self._kafka
        failure = kafka.fails(kafka.sent)
        kafka.sent += 1
        kafka.open += 1
        kafka.most_open = max(kafka.most_open, kafka.open)
        if isinstance(failure, MessageSizeTooLargeError):
            raise failure
        if failure is None:
            with kafka.changed:
                kafka.log.append((key, value, headers))
                kafka.changed.notify_all()
        return Delivery(failure, lambda: kafka.answers)

    def close(self, timeout: float | None = None) -> None:
        self._kafka.open = 0


@pytest.fixture
def kafka() -> Kafka:
    return Kafka()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", max_bytes=50_000_000)
    yield spool
    spool.close()


@pytest.fixture
def start(spool: Spool, kafka: Kafka) -> Iterator[Callable[..., Sender]]:
    senders: list[Sender] = []

    def make(**options: Any) -> Sender:
        options = {"pause_least_s": 0.001} | options
        senders.append(Sender(spool, kafka.connect, topic="usage.events.v1", collector="värd-1", **options))
        senders[-1].start()
        return senders[-1]

    yield make
    for sender in senders:
        sender.stop(0.0)


def fill(spool: Spool, count: int) -> list[int]:
    return [spool.append(f"batch {n}".encode(), watermark_us=n, rows=1, state=b"") for n in range(count)]


def is_empty(spool: Spool) -> bool:
    return spool.read() is None


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(2000):
        if is_so():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not become so")


def test_batches_carry_their_number_in_headers_and_the_collector_as_key(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender]
) -> None:
    fill(spool, 1)
    start()
    kafka.wait_for(1)
    key, value, headers = kafka.log[0]
    assert (key, value) == ("värd-1".encode(), b"batch 0")
    assert headers == [
        ("tallyman-collector", "värd-1".encode()),
        ("tallyman-epoch", spool.epoch.encode()),
        ("tallyman-sequence", b"1"),
        ("content-type", b"application/vnd.apache.arrow.stream"),
        ("tallyman-watermark-us", b"0"),
    ]


def test_the_spool_moves_on_only_when_kafka_has_the_batch(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender]
) -> None:
    kafka.answers = False
    fill(spool, 3)
    start()
    kafka.wait_for(3)
    assert not is_empty(spool)
    kafka.answers = True
    wait_until(lambda: is_empty(spool))


def test_no_more_than_the_bound_is_ever_unacknowledged(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "IN_FLIGHT_BATCHES", 5)
    kafka.answers = False
    numbers = fill(spool, 40)
    start()
    assert kafka.wait_for(5) == numbers[:5]
    threading.Event().wait(0.05)
    assert kafka.numbers() == numbers[:5]
    kafka.answers = True
    assert kafka.wait_for(40) == numbers


def test_large_batches_are_bounded_by_their_bytes(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "IN_FLIGHT_BYTES", 15)
    kafka.answers = False
    numbers = fill(spool, 10)
    start()
    kafka.wait_for(3)
    threading.Event().wait(0.05)
    assert kafka.numbers() == numbers[:3]
    kafka.answers = True
    kafka.wait_for(10)


def test_after_a_failure_everything_unacknowledged_is_sent_again_in_order_with_the_same_bytes(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender]
) -> None:
    kafka.fails = lambda nth: KafkaConnectionError("connection reset") if nth % 7 == 3 else None
    numbers = fill(spool, 60)
    start()
    wait_until(lambda: is_empty(spool))
    first_seen = list(dict.fromkeys(kafka.numbers()))
    assert sorted(first_seen) == numbers
    contents: dict[int, set[bytes]] = {}
    for number, (_, value, _) in zip(kafka.numbers(), kafka.log, strict=True):
        contents.setdefault(number, set()).add(value)
    assert all(len(values) == 1 for values in contents.values())


def test_a_broker_that_is_away_costs_growing_pauses_that_differ_between_hosts(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender]
) -> None:
    kafka.is_away = True
    bounds: list[tuple[float, float]] = []

    def draw(least: float, most: float) -> float:
        bounds.append((least, most))
        return 0.0005

    fill(spool, 3)
    sender = start(draw=draw, pause_least_s=0.5)
    wait_until(lambda: len(bounds) > 12)
    assert [most for _, most in bounds[:7]] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert bounds[12] == (30.0, 60.0), "spread after the cap, not before it"
    assert "nobody listening" in sender.trouble
    kafka.is_away = False
    kafka.wait_for(3)
    wait_until(lambda: sender.trouble == "")


def test_a_broker_that_is_away_is_said_once(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender], caplog: pytest.LogCaptureFixture
) -> None:
    kafka.is_away = True
    fill(spool, 1)
    with caplog.at_level("INFO", logger="collectors.send"):
        start(draw=lambda least, most: 0.001)
        wait_until(lambda: kafka.connections > 20)
        kafka.is_away = False
        wait_until(lambda: is_empty(spool))
    assert [record.message for record in caplog.records] == ["kafka_is_away", "kafka_is_back"]


def test_a_producer_that_is_stuck_is_given_up_and_made_anew(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender]
) -> None:
    kafka.answers = False
    numbers = fill(spool, 2)
    start(patience_s=0.05)
    wait_until(lambda: kafka.connections >= 3)
    kafka.answers = True
    wait_until(lambda: is_empty(spool))
    assert set(kafka.numbers()) == set(numbers)


class SlowKafka:
    """Acknowledges one batch after the other, each so many seconds after it could begin, by a clock of its own."""

    def __init__(self, each_s: float) -> None:
        self.each_s, self.now_s, self.connections, self.sent = each_s, 0.0, 0, 0

    def connect(self) -> SlowProducer:
        self.connections += 1
        return SlowProducer(self)


class SlowProducer:
    def __init__(self, kafka: SlowKafka) -> None:
        self.kafka, self.free_s = kafka, kafka.now_s

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> SlowDelivery:
        self.kafka.sent += 1
        self.free_s = max(self.free_s, self.kafka.now_s) + self.kafka.each_s
        return SlowDelivery(self.kafka, self.free_s)

    def close(self, timeout: float | None = None) -> None:
        return


class SlowDelivery:
    def __init__(self, kafka: SlowKafka, done_s: float) -> None:
        self._kafka, self._done_s = kafka, done_s

    def get(self, timeout: float | None = None) -> None:
        self._kafka.now_s = min(self._done_s, self._kafka.now_s + (timeout or 0.0))
        if self._kafka.now_s < self._done_s:
            raise KafkaTimeoutError("not yet")


@pytest.mark.parametrize(("each_s", "connections"), [(15.0, 1), (35.0, 2)])
def test_a_broker_that_answers_slowly_is_waited_for_while_it_answers(
    tmp_path: Path, each_s: float, connections: int
) -> None:
    """To give up each time would send the same batches for ever, to a broker that has too much to do already."""
    spool = Spool(tmp_path / "spool", max_bytes=1_000_000)
    numbers = fill(spool, 12)
    kafka = SlowKafka(each_s)
    sender = Sender(
        spool, kafka.connect, topic="t", collector="h", clock=lambda: kafka.now_s, patience_s=20.0, pause_least_s=0.001
    )
    sender.start()
    wait_until(lambda: is_empty(spool) or kafka.connections > connections)
    sender.stop(1.0)
    spool.close()
    assert (kafka.connections, kafka.sent) == (connections, connections * len(numbers))


def test_a_batch_that_kafka_refuses_is_never_skipped(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender], caplog: pytest.LogCaptureFixture
) -> None:
    refuse = [True]
    kafka.fails = lambda nth: MessageSizeTooLargeError("9000000 bytes") if refuse[0] else None
    numbers = fill(spool, 3)
    start()
    wait_until(lambda: kafka.connections > 5)
    assert kafka.log == []
    assert any("batch_too_large" in record.message for record in caplog.records)
    refuse[0] = False
    assert kafka.wait_for(3) == numbers


def test_whatever_a_client_library_raises_the_sender_lives_on(
    spool: Spool, kafka: Kafka, start: Callable[..., Sender]
) -> None:
    kafka.fails = lambda nth: ZeroDivisionError("in a library") if nth < 3 else None
    numbers = fill(spool, 4)
    start()
    wait_until(lambda: is_empty(spool))
    assert set(kafka.numbers()) == set(numbers)


def test_stopping_sends_what_is_left_first(spool: Spool, kafka: Kafka, start: Callable[..., Sender]) -> None:
    sender = start()
    numbers = fill(spool, 200)
    sender.stop(10.0)
    assert kafka.numbers() == numbers
    assert is_empty(spool)


def test_stopping_while_kafka_is_away_does_not_wait(spool: Spool, kafka: Kafka, start: Callable[..., Sender]) -> None:
    kafka.is_away = True
    fill(spool, 3)
    sender = start(pause_least_s=50.0)
    wait_until(lambda: kafka.connections > 0)
    sender.stop(3.0)
    assert not is_empty(spool)


def test_a_restart_begins_where_kafka_acknowledged(tmp_path: Path, kafka: Kafka) -> None:
    spool = Spool(tmp_path / "other", max_bytes=1_000_000)
    fill(spool, 5)
    sender = Sender(spool, kafka.connect, topic="t", collector="h")
    sender.start()
    kafka.wait_for(5)
    sender.stop(5.0)
    spool.close()
    again = Spool(tmp_path / "other", max_bytes=1_000_000)
    assert is_empty(again)
    again.close()
