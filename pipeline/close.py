"""Close the books now, and put definitions in force: one record into each partition, named by numbers that
only grow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from clickhouse_driver import Client

from pipeline.book import booking_after
from pipeline.booked import refuse_short_memory
from pipeline.catalog import Catalog
from pipeline.json_events import JsonDecoder
from pipeline.outlet import write_close, write_end
from pipeline.seal import read_sealed_to
from tallyman import books
from tallyman.clickhouse import connect, store_errors
from tallyman.control import open_control
from tallyman.errors import BrokerError, ConfigError, LogError, StoreError
from tallyman.in_force import definitions_of
from tallyman.kafka import TopicInfo, check_topic, ensure_topics, read_topic
from tallyman.meter import Definitions
from tallyman.project import Project
from tallyman.topics import name_of_following, refuse_other_line

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CloseReport:
    """A close that stands in every partition.

    Attributes:
        booking: The booking that it opened: what was received before lies in a smaller one.
        definitions: The definitions in force from there.
    """

    booking: int
    definitions: int


def found_books(project: Project) -> books.Topic:
    """Make topics and control tables if they are missing; the topic's first close puts definitions in force.

    Safe to call at every start, by several processes at once.

    Returns:
        The topic of the settings, or the last one that follows it.

    Raises:
        ConfigError: The topic was made with other partitions or chunks, or has settings that lose usage.
        LogError: The topic was made anew since it was booked, or is gone.
    """
    engine = open_books(project)
    topic = _founded(project, engine)
    unwritten = books.unwritten_closes(engine, topic.topic_id)
    late = [close for close in unwritten if not _opens(close, _write(project, engine, topic, close))]
    if books.lacks_definitions(engine, topic.topic_id):
        _write_next(project, engine, topic)
    for close in late:
        books.mark_void(engine, close.booking)
    return topic


def _founded(project: Project, engine: sa.Engine) -> books.Topic:
    """Return the newest topic of the line, with its first close in it."""
    line = books.read_line(engine, project.config.kafka.topic)
    _refuse_deleted(project, line)
    info = _topic(project)
    if len(line) > 1 and info.topic_id in {each.topic_id for each in line}:
        topic = line[-1]
    else:
        topic = books.register_topic(engine, books.Topic(
            info.topic_id, info.name, info.partitions, project.config.kafka.chunk_size, founded=False
        ), now=datetime.now(UTC))  # fmt: skip
    if not topic.founded:
        _found(project, engine, topic, line[-2] if topic in line[1:] else None)
    return topic


def _found(project: Project, engine: sa.Engine, topic: books.Topic, before: books.Topic | None) -> None:
    """Write the first close of a topic, and the end of the one that it follows."""
    if before is None:
        books.add_definitions(engine, _decodable(project))
    _write_next(project, engine, topic, again=True)
    if before is not None:
        info = check_topic(
            project.kafka_brokers, before.name, topic_id=before.topic_id, replication=project.kafka_replication
        )
        write_end(project.kafka_brokers, before.name, info.partitions, topic.name)
    books.mark_founded(engine, topic.topic_id)


def close_books(project: Project) -> CloseReport:
    """End the booking that is open and begin the next, in every partition.

    Raises:
        BrokerError: Not every partition acknowledged; call again.
        ConfigError: Another line of topics is booked now.
    """
    engine = open_books(project)
    refuse_unbooked(project, engine)
    return _close_newest(project, engine, _founded(project, engine))


def pending_definitions(project: Project) -> tuple[Definitions | None, Definitions]:
    """Return the definitions in force, and those of the project's files.

    Raises:
        ConfigError: Another line of topics is booked now.
    """
    engine = open_books(project)
    refuse_unbooked(project, engine)
    return books.closed_definitions(engine, project.config.kafka.topic), definitions_of(project)


def apply_definitions(project: Project) -> CloseReport | None:
    """Put the project's definitions in force by a close; None when they are in force already.

    Who was killed behind numbering them, and before their close stood in every partition, does it by running it again.

    Raises:
        BrokerError: Not every partition acknowledged; call again.
        ConfigError: Another line of topics is booked now, or a TTL on ids is too short for how late events may come.
    """
    engine = open_books(project)
    refuse_unbooked(project, engine)
    definitions = _decodable(project)
    _refuse_forgetting(project, definitions)
    topic = _founded(project, engine)
    after = books.add_definitions(engine, definitions)
    before = books.closed_definitions(engine, topic.name)
    if before is not None and before.number == after.number:
        return None
    return _close_newest(project, engine, topic)


def refuse_unbooked(project: Project, engine: sa.Engine) -> None:
    """Refuse to write closes where nobody books; which line is booked, only who books decides.

    Raises:
        ConfigError: Another line of topics is booked now, or more of this one than the control store knows.
        StoreError, StoreRefusedError: ClickHouse did not tell.
    """
    name = project.config.kafka.topic
    line = books.read_line(engine, name)
    client = connect(project.clickhouse)
    try:
        with store_errors(client, "reading which topics are booked"):
            refuse_other_line(client, line[0].topic_id if line else "", name)
        refuse_older_store(client, engine, name, line)
    finally:
        client.disconnect()


def refuse_older_store(client: Client, engine: sa.Engine, name: str, line: Sequence[books.Topic]) -> None:
    """Refuse a control store from before a topic grew: the old topic has ended, and nothing counts there any more.

    Args:
        name, line: The topic of the settings, and what the control store had of its line.

    Raises:
        ConfigError: ClickHouse knows of a topic that follows, and the control store still does not.
    """
    with store_errors(client, "reading which topics are booked"):
        unknown = name_of_following(client, line[-1].topic_id) if line else ""
    # Who books registers a topic in the store first; so one that was made just now is there when it is noted.
    if unknown and books.read_line(engine, name) == line:
        raise ConfigError(unknown_topic(unknown))


def unknown_topic(name: str) -> str:
    """Say that a topic is booked that the control store does not know."""
    return (
        f'control.url: topic "{name}" is booked in this ClickHouse, and this control store does not know it; '
        "point it at the one where its books were opened, or restore that one from its newest backup"
    )


def _close_newest(project: Project, engine: sa.Engine, topic: books.Topic) -> CloseReport:
    """Write the next close; once more if another topic was made to follow meanwhile, behind whose end it may stand."""
    while True:
        report = _write_next(project, engine, topic)
        if books.read_line(engine, topic.name)[-1].topic_id == topic.topic_id:
            return report  # a topic that follows from here on begins by what this close put in force
        topic = _founded(project, engine)


def _decodable(project: Project) -> Definitions:
    """Return the definitions of a project's files, once a decoder was made of them.

    Where none can be, nothing is numbered: behind a close that named them no worker could go on, and no later
    definitions would help, since what stands between the two closes needs a decoder too.
    """
    definitions = definitions_of(project)
    JsonDecoder(Catalog(definitions), 1, kernel=None)
    return definitions


def _refuse_forgetting(project: Project, definitions: Definitions) -> None:
    """Refuse definitions that accept copies of events for longer than the TTL on `ids` lets their identities stay."""
    client = connect(project.clickhouse)
    try:
        with store_errors(client, "reading the TTL on ids"):
            refuse_short_memory(client, definitions.remember, time.time_ns() // 1_000_000)
    finally:
        client.disconnect()


def wait_until_sealed(
    project: Project, booking: int, *, timeout_s: float = 600, on_wait: Callable[[int], None] = lambda sealed: None
) -> int:
    """Wait until every booking up to `booking` is sealed; the pipeline seals when all partitions have left it.

    Raises:
        StoreError: It was not within `timeout_s`, or ClickHouse did not tell.
    """
    client = connect(project.clickhouse)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            with store_errors(client, "reading seals"):
                sealed_to = read_sealed_to(client)
            if sealed_to >= booking:
                return sealed_to
            if time.monotonic() > deadline:
                raise StoreError(
                    f"booking {booking} was not sealed within {timeout_s:.0f} s (sealed up to {sealed_to}); "
                    'is the pipeline running? See "tallyman status"; the close itself is done, and to close again '
                    "would end one booking more: wait on with tallyman seal --watch"
                )
            on_wait(sealed_to)
            time.sleep(0.2)  # seals are rare and read by people: nobody pushes them
    finally:
        client.disconnect()


def open_books(project: Project) -> sa.Engine:
    """Open the control store, with the tables of the books."""
    engine = open_control(project.control_url)
    books.prepare(engine)
    return engine


def _refuse_deleted(project: Project, line: Sequence[books.Topic]) -> None:
    """Refuse to make a topic once more that was booked: nobody would book it, and what senders still have, since there
    is no topic, they would give to it and forget.

    Raises:
        LogError: It is not there.
    """
    name = project.config.kafka.topic
    if not line or read_topic(project.kafka_brokers, name) is not None:
        return
    goes_on = (
        f"what follows it is {line[-1].name}: name that one in kafka.topic" if line[-1].name != name else
        "to go on, name a new one in kafka.topic, for every host; it is made when the pipeline is started"
    )
    raise LogError(
        f'topic "{name}" was booked, and Kafka has none of this name any more: it was deleted. What is booked stays as '
        f"it is, and what senders still hold they keep until there is a topic; {goes_on}"
    )


def _topic(project: Project) -> TopicInfo:
    events, _ = ensure_topics(project.kafka_brokers, project.config.kafka, project.kafka_replication)
    return events


def _write_next(project: Project, engine: sa.Engine, topic: books.Topic, *, again: bool = False) -> CloseReport:
    """Give out the next close, and write it until every partition's log takes it for one.

    Args:
        again: Take up one that was begun and not written, as `books.next_close` does.

    Raises:
        BrokerError: Not every partition acknowledged, or their leaders' clocks are days apart.
    """
    close = books.next_close(engine, datetime.now(UTC), topic.topic_id, again=again)
    clocks_ms = _write(project, engine, topic, close)
    if not _opens(close, clocks_ms):
        # This machine's clock is on another day than the broker's, and the log goes by that.
        log.warning("clock_differs", extra={"booking": close.booking, "broker": _moment(max(clocks_ms)).isoformat()})
        late, close = close, books.next_close(engine, _moment(max(clocks_ms)), topic.topic_id)
        books.mark_void(engine, late.booking)
        clocks_ms = _write(project, engine, topic, close)
    if not _opens(close, clocks_ms):
        books.mark_void(engine, close.booking)
        said = ", ".join(f"{partition}: {_moment(clock):%Y-%m-%d %H:%M}" for partition, clock in enumerate(clocks_ms))
        raise BrokerError(
            f'topic "{topic.name}": no close can open a booking in all partitions, since the clocks of their leaders '
            f"are days apart ({said}); set those that are wrong, then run it again"
        )
    return CloseReport(close.booking, close.definitions)


def _opens(close: books.Close, clocks_ms: Sequence[int]) -> bool:
    """Whether a close opens the booking that it names, where it was appended at these times."""
    return all(booking_after(0, clock_ms, close.booking) == close.booking for clock_ms in clocks_ms)


def _write(project: Project, engine: sa.Engine, topic: books.Topic, close: books.Close) -> Sequence[int]:
    """Write a close into every partition, and note it if it opens its booking there; return when each was appended.

    One that was cut off and is written on a later day opens none: what it puts in force comes in the middle of another.
    """
    clocks = write_close(project.kafka_brokers, topic.name, topic.partitions, close.booking, close.definitions)
    if _opens(close, clocks):
        books.mark_written(engine, close.booking)
    return clocks


def _moment(clock_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=clock_ms)
