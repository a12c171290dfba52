"""Fixtures that run the real parts: Kafka and ClickHouse, once per session, each in a folder of its own.

Where they cannot run (no Java, no network for the jars) a test is skipped on a laptop and fails where CI is
set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from tallyman.errors import StackError
from tallyman.local.clickhouse_child import ClickHouse
from tallyman.local.folder import ClickHouseEndpoint, Endpoints, write_endpoints
from tallyman.local.kafka import Broker
from tallyman.local.supervise import OneChild

Part = TypeVar("Part", bound=OneChild)
FreshTopic = Callable[..., str]


def not_here(reason: str) -> NoReturn:
    """Skip on a laptop, fail in CI: there the real parts are never optional."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def _or_not_here(name: str, make: Callable[[], Part]) -> Iterator[Part]:
    try:
        part = make()
        part.start()
    except StackError as error:
        not_here(f"{name} cannot run here: {error}")
    try:
        yield part
    finally:
        part.stop()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The session's broker; a test that kills it starts it again (`broker.kill()`, `broker.start()`)."""
    with _or_not_here("Kafka", lambda: Broker(tmp_path_factory.mktemp("kafka"))) as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka_broker(broker: Broker) -> str:
    """The bootstrap address, "127.0.0.1:PORT"."""
    return broker.bootstrap


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """The session's ClickHouse; a test that kills it starts it again."""
    with _or_not_here("ClickHouse", lambda: ClickHouse(tmp_path_factory.mktemp("clickhouse"))) as clickhouse:
        yield clickhouse


@pytest.fixture(scope="session")
def clickhouse_endpoint(clickhouse: ClickHouse) -> ClickHouseEndpoint:
    """Where the session's ClickHouse answers. Tests that write make a database of their own."""
    return clickhouse.endpoint


@pytest.fixture(scope="session")
def stack(
    kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path_factory: pytest.TempPathFactory
) -> Endpoints:
    """Both, as services see them: `$TALLYMAN_DATA` is the folder of the control store, with its `stack.json`."""
    data = tmp_path_factory.mktemp("stack")
    endpoints = Endpoints(
        kafka=kafka_broker,
        clickhouse=clickhouse_endpoint,
        control=f"sqlite:///{data / 'control.db'}",
        started=datetime.now(UTC),
        pid=os.getpid(),
    )
    write_endpoints(data, endpoints)
    return endpoints


@pytest.fixture
def stack_data(stack: Endpoints) -> Path:
    """The data folder of `stack`, for what takes `--data`."""
    return Path(stack.control.removeprefix("sqlite:///")).parent


@pytest.fixture
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker for one test alone, e.g. one that is killed."""
    with _or_not_here("Kafka", lambda: Broker(tmp_path_factory.mktemp("own-kafka"))) as broker:
        yield broker


@pytest.fixture
def fresh_topic(broker: Broker) -> FreshTopic:
    """Make topics on the session's broker: `fresh_topic("usage", partitions=4)` returns the new name."""

    def make(stem: str = "usage.events", *, partitions: int = 2, **configs: str) -> str:
        return broker.create_topic(stem, partitions=partitions, **configs)

    return make
