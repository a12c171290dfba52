"""A server is away while the pipeline starts, between two topics, or while a sealer seals: whoever needs it waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import metrics, recount, runtime, sealing, submit, upkeep, worker
from pipeline.portable import Portable
from pipeline.replay import Wanted
from pipeline.runtime import Database, JobConfig
from pipeline.sealing import SealDesk
from pipeline.upkeep import Upkeep
from tallyman.books import Topic
from tallyman.errors import BrokerError, ConfigError, LogError, StoreError, StoreRefusedError

CONFIG = JobConfig(
    brokers=("nowhere:9092",), topic="usage.events.v2", topic_id="t2", partitions=2, assigned=(0, 1), chunk_size=8,
    progress_topic="usage.progress.v1", control_url="sqlite:////nowhere",
    database=Database(host="nowhere", port=9000, user="", password="", database="tallyman"),
    before=(Topic("t1", "usage.events.v1", 1, 8, founded=True),),
)  # fmt: skip
PROJECT: Any = SimpleNamespace(config=SimpleNamespace(kafka=SimpleNamespace(topic="usage.events.v1")))


def steps(*found: Any) -> Callable[..., Any]:
    """Return a function that raises, or returns, one thing after another."""
    left = list(found)

    def step(*_: object) -> Any:
        now = left.pop(0)
        if isinstance(now, Exception):
            raise now
        return now

    return step


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (worker, sealing):
        monkeypatch.setattr(module, "_REST_S", 0.001)
    monkeypatch.setattr(sealing, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(metrics, "_pulse", metrics._Pulse())


def test_a_start_waits_for_clickhouse_as_for_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "prepare", steps(StoreError("ClickHouse"), BrokerError("Kafka"), CONFIG))
    assert worker.prepare_in_time(PROJECT, threading.Event()) is CONFIG


@pytest.mark.parametrize("error", [ConfigError("typo"), LogError("made anew"), StoreRefusedError("rights")])
def test_a_start_does_not_wait_for_what_somebody_must_mend(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "prepare", steps(error))
    with pytest.raises(type(error)):
        worker.prepare_in_time(PROJECT, threading.Event())


@pytest.mark.parametrize("module", [worker, submit], ids=["here", "on Flink"])
def test_who_asks_for_health_is_answered_from_the_start_on_and_between_two_topics(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, said, stop, server = list[Any](), list[str](), threading.Event(), SimpleNamespace(closed=0)

    def serve(port: int, ready: Any) -> Any:
        asked.append(ready)
        return SimpleNamespace(close=lambda: setattr(server, "closed", server.closed + 1))

    prepared = steps(StoreError("ClickHouse is away"), CONFIG, BrokerError("Kafka is away"))

    def prepare(project: object) -> Any:
        said.append(asked[0]()[1])
        if len(said) == 3:
            stop.set()
        return prepared()

    monkeypatch.setattr(module, "serve", serve)
    monkeypatch.setattr(module, "book_topic", lambda *_: None)
    monkeypatch.setattr(worker, "prepare", prepare)
    monkeypatch.setattr(submit, "flags_of", lambda *_: [])
    options = {"portable": Portable(job_endpoint="", environment="LOOPBACK")} if module is submit else {}
    assert module.main(PROJECT, stop, 0, **options) == 0
    away = "no partition was read yet; StoreError: ClickHouse is away"
    assert (said, len(asked), server.closed) == (["no partition was read yet", away, away], 1, 1)


class Connections:
    """Remembers what was opened and not closed."""

    def __init__(self) -> None:
        self.open = 0

    def connect(self, *_: object, **__: object) -> Any:
        self.open += 1
        left = [None]
        close = lambda: left and (left.pop(), setattr(self, "open", self.open - 1))  # noqa: E731
        return SimpleNamespace(disconnect=close, dispose=close)


def test_after_a_failure_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of failures, each some seconds after the last, had used up the connections of ClickHouse or PostgreSQL."""
    found = Connections()
    for module in (runtime, recount):
        for name in ("connect", "open_control"):
            monkeypatch.setattr(module, name, found.connect)
    runtime.runtime(CONFIG)
    assert found.open == 4
    runtime.forget()
    assert found.open == 0
    counting = recount.RecountConfig(
        brokers=CONFIG.brokers, topics=(), database=CONFIG.database, control_url=CONFIG.control_url, source="log",
        name="recount_1", wanted=Wanted(),
    )  # fmt: skip
    process = recount.Process(counting)
    assert found.open == 4
    process.close()
    assert found.open == 0


def test_duties_that_could_not_begin_say_why_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Connections()
    monkeypatch.setattr(upkeep, "connect", found.connect)
    monkeypatch.setattr(upkeep, "LateRecords", steps(BrokerError("Kafka is away")))
    duties = Upkeep(CONFIG, threading.Event(), 1, frozenset)
    with pytest.raises(BrokerError, match="Kafka is away"):
        try:
            duties.start()
        finally:
            duties.close()
    assert found.open == 0


def test_a_sealer_that_watches_waits_for_clickhouse_and_tells_all_that_it_sealed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk, told = SealDesk.__new__(SealDesk), list[Any]()
    report = steps(BrokerError("Kafka"), None, None)
    over = ConfigError("another line is booked")
    monkeypatch.setattr(desk, "_seal", steps(StoreError("ClickHouse"), ("1",), ("2",), (), ("3",), over))
    monkeypatch.setattr(desk, "_report", lambda sealed: report() or list(sealed))
    with pytest.raises(ConfigError, match="another line"):
        told.extend(desk.watch(threading.Event()))
    assert told == [["1", "2"], ["3"]]
