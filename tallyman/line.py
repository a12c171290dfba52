"""Which topic to send to now: the last one of the line that the configured topic stands in, and those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallyman import books
from tallyman.control import open_control
from tallyman.kafka import TopicInfo, check_topic
from tallyman.topics import refuse_other_line

if TYPE_CHECKING:
    from clickhouse_driver import Client

    from tallyman.project import Project


@dataclass(frozen=True, slots=True)
class TopicNow:
    """The topic to send to, as Kafka has it.

    Attributes:
        before: The topics that it follows, the first one first.
    """

    info: TopicInfo
    before: tuple[books.Topic, ...] = ()

    @property
    def before_ids(self) -> tuple[str, ...]:
        return tuple(topic.topic_id for topic in self.before)

    def name_of(self, topic_id: str) -> str | None:
        """Return the name of a topic of the line; None when it is of another one."""
        names = {topic.topic_id: topic.name for topic in self.before} | {self.info.topic_id: self.info.name}
        return names.get(topic_id)


def read_topic_now(project: Project) -> TopicNow:
    """Return the newest topic of the line in which books were opened, whichever of the line is configured.

    Raises:
        LogError: It is missing, or has settings that lose usage.
        BrokerError, StoreError: Kafka or the control store does not answer.
    """
    engine = open_control(project.control_url)
    try:
        books.prepare(engine)
        line = books.read_line(engine, project.config.kafka.topic)
    finally:
        engine.dispose()
    while line and not line[-1].founded:  # its growth was begun and is not finished
        line = line[:-1]
    brokers, copies = project.kafka_brokers, project.kafka_replication
    if not line:
        return TopicNow(check_topic(brokers, project.config.kafka.topic, replication=copies))
    now = line[-1]
    return TopicNow(check_topic(brokers, now.name, topic_id=now.topic_id, replication=copies), line[:-1])


def topic_to_mend(project: Project, client: Client) -> TopicNow:
    """Return what `read_topic_now` does, for who sends again or corrects what was booked.

    Raises:
        ConfigError: Another line of topics is booked now: nobody would read what is sent.
        LogError, BrokerError, StoreError: As `read_topic_now`.
    """
    from tallyman.clickhouse import store_errors  # who only sends has no ClickHouse

    now = read_topic_now(project)
    with store_errors(client, "reading which topics are booked"):
        refuse_other_line(client, (*now.before_ids, now.info.topic_id)[0], project.config.kafka.topic)
    return now
