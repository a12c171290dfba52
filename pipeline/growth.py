"""Growth of a topic: a new one with more partitions follows it, and goes on where it ends.

The old topic gets an end marker in each partition; nothing behind it counts there. When every partition is booked to
its end, the new one is booked: its clocks, booking and definitions begin where those of the old one ended, and what the
old one accepted is known in it. The model is `tests/model/growth_model.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clickhouse_driver import Client

from pipeline.close import found_books, open_books, refuse_older_store, refuse_unbooked, unknown_topic
from pipeline.outlet import write_end
from tallyman import books
from tallyman.clickhouse import store_errors
from tallyman.config import TOPIC_NAME_EXPECTED, is_topic_name
from tallyman.errors import ConfigError
from tallyman.kafka import TopicInfo, check_topic, end_offsets, ensure_topics, make_consumer, read_topic
from tallyman.project import Project
from tallyman.topics import ends_of, has_ended, is_noted, note_line

_VERSION = re.compile(r"^(.*[.-]v)(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthPlan:
    """What growing would do.

    Attributes:
        old: The topic that ends.
        found: How many partitions it has in Kafka; more than it was made with when some were added behind our back.
        name, partitions: Of the topic that follows.
    """

    old: books.Topic
    found: int
    name: str
    partitions: int


def next_name(name: str) -> str:
    """Return the name of the topic that follows.

    >>> next_name("usage.events.v1"), next_name("usage")
    ('usage.events.v2', 'usage.v2')
    """
    version = _VERSION.match(name)
    return f"{version[1]}{int(version[2]) + 1}" if version else f"{name}.v2"


def plan_growth(project: Project, partitions: int, name: str | None = None) -> GrowthPlan:
    """Look at what is there, and say what would be done.

    Raises:
        ConfigError: Nothing is booked yet, or these partitions or this name cannot be; or another line of topics is
            booked now, or more of this one than the control store knows.
        LogError: The old topic has settings that lose usage.
        BrokerError, StoreError, StoreRefusedError: Kafka or ClickHouse does not answer.
    """
    if name is not None and not is_topic_name(name):
        raise ConfigError(f'--name: {TOPIC_NAME_EXPECTED}, got "{name}"')
    engine = open_books(project)
    line = books.read_line(engine, project.config.kafka.topic)
    if not line:
        raise ConfigError(
            f'kafka.topic: nothing of "{project.config.kafka.topic}" was booked yet; set kafka.partitions and start '
            "the pipeline, it makes the topic"
        )
    refuse_unbooked(project, engine)  # a second topic would follow the same one, and know nothing of the first
    begun = line[-1] if len(line) > 1 and not line[-1].founded else None
    old = line[-2] if begun else line[-1]
    info = check_topic(project.kafka_brokers, old.name, topic_id=old.topic_id, replication=project.kafka_replication)
    if partitions <= old.partitions:
        raise ConfigError(f"--partitions: expected more than the {old.partitions} of {old.name}, got {partitions}")
    plan = GrowthPlan(old=old, found=info.partitions, name=name or next_name(old.name), partitions=partitions)
    if begun is None:
        _refuse_used(project, plan)
    elif (begun.name, begun.partitions) != (plan.name, plan.partitions):
        raise ConfigError(
            f'topic "{old.name}": its growth was begun and is not finished; finish it first: '
            f"tallyman topic grow --partitions {begun.partitions} --name {begun.name} --yes"
        )
    return plan


def grow(project: Project, plan: GrowthPlan) -> books.Topic:
    """Do what was planned; what a crash leaves undone is done by the next start of a pipeline.

    Raises:
        BrokerError: Kafka did not acknowledge; run it again.
    """
    kafka = replace(project.config.kafka, topic=plan.name, partitions=plan.partitions)
    made, _ = ensure_topics(project.kafka_brokers, kafka, project.kafka_replication)
    following = books.Topic(made.topic_id, made.name, made.partitions, plan.old.chunk_size, founded=False)
    books.succeed(open_books(project), plan.old.topic_id, following)
    return found_books(project)


def line_to_book(project: Project, client: Client) -> tuple[books.Topic, ...]:
    """Return the topics up to the one that is booked now: the first of the line that has not ended in every partition.

    From here on this line is the one that is booked: only who books calls it.

    Raises:
        ConfigError, LogError, BrokerError: As `found_books`; or another control store has the books of the topic.
        StoreError, StoreRefusedError: ClickHouse did not tell.
    """
    _refuse_other_store(project, client)
    newest = found_books(project)
    line = books.read_line(open_books(project), newest.name)
    with store_errors(client, "reading which topics have ended"):
        line = _up_to_now(client, line)
        note_line(client, line)
    return line


def _refuse_other_store(project: Project, client: Client) -> None:
    """Refuse a topic that is noted as booked and that this control store does not know, as on a second host without
    `control.url`: its definitions, and the numbers of its closes, would be others than those of the log. So with a
    store from before a topic grew, which would book the old one for good, that has ended.
    """
    name, engine = project.config.kafka.topic, open_books(project)
    line = books.read_line(engine, name)
    if line:
        refuse_older_store(client, engine, name, line)
        return
    info = read_topic(project.kafka_brokers, name)
    with store_errors(client, "reading which topics are booked"):
        # Who books registers a topic in the store first; so another one that starts just now is there when it is noted.
        if info is not None and is_noted(client, info.topic_id) and not books.read_line(engine, name):
            raise ConfigError(unknown_topic(name))


def look_at_line(project: Project, client: Client) -> tuple[books.Topic, ...]:
    """Return what `line_to_book` does, and change nothing: no topic is made, and the line that is booked stays so.

    Raises:
        ConfigError: Nothing was booked yet.
        LogError: The topic is missing, was made anew, or has settings that lose usage.
        BrokerError, StoreError, StoreRefusedError: Kafka or ClickHouse did not tell.
    """
    line = books.read_line(open_books(project), project.config.kafka.topic)
    if not line:
        raise ConfigError(
            f'kafka.topic: nothing of "{project.config.kafka.topic}" was booked yet; if that is its name, start the '
            "pipeline"
        )
    with store_errors(client, "reading which topics have ended"):
        line = _up_to_now(client, line)
    topic = line[-1]
    check_topic(project.kafka_brokers, topic.name, topic_id=topic.topic_id, replication=project.kafka_replication)
    return line


def _up_to_now(client: Client, line: Sequence[books.Topic]) -> tuple[books.Topic, ...]:
    now = next((number for number, topic in enumerate(line[:-1]) if not has_ended(client, topic)), len(line) - 1)
    return tuple(line[: now + 1])


def is_followed(project: Project, topic: books.Topic) -> bool:
    """Tell whether another topic follows this one."""
    return books.read_line(open_books(project), topic.name)[-1] != topic


def end_again(project: Project, topic: books.Topic) -> None:
    """Write the end markers of a topic that is followed once more: a repair may have skipped one. The first counts.

    Raises:
        BrokerError: Kafka did not acknowledge; run it again.
    """
    line = books.read_line(open_books(project), topic.name)
    if topic in line[:-1]:
        info = check_topic(project.kafka_brokers, topic.name, topic_id=topic.topic_id,
                           replication=project.kafka_replication)  # fmt: skip
        write_end(project.kafka_brokers, topic.name, info.partitions, line[line.index(topic) + 1].name)


def _refuse_used(project: Project, plan: GrowthPlan) -> None:
    """Refuse a name that is somebody else's; one that was made and never written to is what a crash left."""
    info = read_topic(project.kafka_brokers, plan.name)
    if info is None:
        return
    if info.partitions != plan.partitions or _has_records(project, info):
        raise ConfigError(
            f'--name: topic "{plan.name}" exists, with {info.partitions} partitions; choose another name, '
            "or delete it if nobody needs it"
        )


def _has_records(project: Project, info: TopicInfo) -> bool:
    consumer = make_consumer(project.kafka_brokers)
    try:
        return any(end_offsets(consumer, info.name, range(info.partitions)).values())
    finally:
        consumer.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicState:
    """A topic of the line.

    Attributes:
        ended: How many of its partitions are booked to their end.
    """

    name: str
    topic_id: str
    partitions: int
    chunk_size: int
    ended: int
    state: str


def read_states(project: Project, client: Client) -> tuple[TopicState, ...]:
    """Return the line of topics, the first one first, and what each is doing."""
    line = books.read_line(open_books(project), project.config.kafka.topic)
    states: list[TopicState] = []
    may_book = True
    for number, topic in enumerate(line):
        ended = len(ends_of(client, topic.topic_id))
        is_last = number == len(line) - 1
        if ended >= topic.partitions:
            state = "ended"
        elif not may_book:
            state = "waits for the one before"
        else:
            state, may_book = ("booked" if is_last else "is booked to its end"), False
        states.append(TopicState(name=topic.name, topic_id=topic.topic_id, partitions=topic.partitions,
                                 chunk_size=topic.chunk_size, ended=ended, state=state))  # fmt: skip
    return tuple(states)
