"""A topic that was booked and is gone from Kafka is not made once more: senders keep what they have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import close
from tallyman import books
from tallyman.errors import LogError

V1, V2 = (books.Topic(f"t{n}", f"usage.events.v{n}", n, 8, founded=False) for n in (1, 2))


class MadeError(Exception):
    """A topic was about to be made."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def ensure(*_: object) -> None:
        raise MadeError

    monkeypatch.setattr(close, "ensure_topics", ensure)
    monkeypatch.setattr(close, "read_topic", lambda brokers, name: None)
    kafka = SimpleNamespace(topic=V1.name)
    return SimpleNamespace(
        config=SimpleNamespace(kafka=kafka), kafka_brokers=("nowhere:9092",), kafka_replication=1,
        control_url=f"sqlite:///{tmp_path / 'control.db'}",
    )  # fmt: skip


def test_a_topic_that_was_never_booked_is_made(project: Any) -> None:
    with pytest.raises(MadeError):
        close.found_books(project)


def test_one_that_was_booked_is_not_made_once_more(project: Any) -> None:
    """Agents had given their spools to it, and the pipeline then refused it for its id."""
    books.register_topic(close.open_books(project), V1)
    with pytest.raises(LogError, match=r"v1\" was booked, and Kafka has none .*name a new one in kafka\.topic"):
        close.found_books(project)


def test_who_names_a_topic_that_has_ended_is_told_what_follows(project: Any) -> None:
    engine = close.open_books(project)
    books.register_topic(engine, V1)
    books.succeed(engine, V1.topic_id, V2)
    with pytest.raises(LogError, match=r"what follows it is usage\.events\.v2: name that one in kafka\.topic"):
        close.found_books(project)


def test_one_that_is_there_is_looked_at_as_ever(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    books.register_topic(close.open_books(project), V1)
    monkeypatch.setattr(close, "read_topic", lambda brokers, name: V1)
    with pytest.raises(MadeError):
        close.found_books(project)
