"""A topic grows into one with more partitions while usage flows: every event counts once, whichever topic it is in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewPartitions

from pipeline import close, growth, worker
from pipeline.audit import AuditQuestion, audit_usage
from pipeline.close import apply_definitions, close_books, found_books, wait_until_sealed
from pipeline.runtime import forget
from tallyman import books
from tallyman.aggregates import read_completeness, read_usage
from tallyman.clickhouse import connect
from tallyman.errors import ConfigError
from tallyman.event import home_key
from tallyman.kafka import end_offsets, make_consumer, make_producer, partition_of, read_topic
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.reconcile import read_counts
from tallyman.topics import ENDED
from tallyman.usage import UsageQuery
from tests.integration.booking import Headers, OwnProject, wait_for

pytestmark = pytest.mark.integration
HOURS = "meters:\n- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 3}\n"
COUNTED = HOURS + "- {meter: servers, event_type: server, aggregation: count}\n"
NOW = datetime.now(UTC)
NUMBERED = (
    ("content-type", b"application/x-ndjson"),
    ("tallyman-collector", b"host-7"),
    ("tallyman-epoch", b"spool-1"),
)


@pytest.fixture
def own(kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path) -> Iterator[OwnProject]:
    own = OwnProject(tmp_path / "own", kafka_broker, clickhouse_endpoint, HOURS, partitions=2, chunk_size=16)
    found_books(own.project)
    yield own
    forget()


def event(number: int, hours: str = "1.5") -> tuple[bytes, bytes]:
    """Return the key and the bytes of an event."""
    subject, source = "Zoë Åström", f"nova/{number % 7}"
    wire = {"id": f"e-{number}", "source": source, "type": "server", "subject": subject,
            "time": NOW.isoformat(), "data": {"hours": hours}}  # fmt: skip
    return home_key(subject, source), msgspec.json.encode(wire)


def send(own: OwnProject, topic: str, numbers: Sequence[int], partitions: int | None = None) -> None:
    """Send events by their keys, as any producer does; `partitions`: as one does that knows of so many."""
    producer = make_producer((own.kafka,))
    with closing(producer):
        sent = []
        for key, value in map(event, numbers):
            place = None if partitions is None else partition_of(key, partitions)
            sent.append(producer.send(topic, key=key, value=value, partition=place))
        for future in sent:
            future.get(timeout=30)


def send_values(own: OwnProject, topic: str, *values: bytes) -> None:
    """Send events to their homes in a topic."""
    producer = make_producer((own.kafka,))
    with closing(producer):
        named = [msgspec.json.decode(value) for value in values]
        keys = [home_key(event["subject"], event["source"]) for event in named]
        for future in [producer.send(topic, key=key, value=value) for key, value in zip(keys, values, strict=True)]:
            future.get(timeout=30)


def send_numbered(own: OwnProject, topic: str, sequence: int, numbers: Sequence[int]) -> None:
    """Send a collector's numbered batch."""
    headers: Headers = (*NUMBERED, ("tallyman-sequence", str(sequence).encode()))
    value = b"\n".join(event(number)[1] for number in numbers)
    producer = make_producer((own.kafka,))
    with closing(producer):
        producer.send(topic, key=b"host-7", value=value, headers=list(headers)).get(timeout=30)


def grow(own: OwnProject, partitions: int) -> books.Topic:
    return growth.grow(own.project, growth.plan_growth(own.project, partitions))


def next_topic(own: OwnProject) -> str:
    return growth.next_name(str(own.settings["topic"]))


def milli_hours(own: OwnProject) -> int:
    return own.usage().get("compute.hours", 0)


def wait_for_hours(own: OwnProject, events: int) -> None:
    wait_for(lambda: milli_hours(own) == events * 1500, f"{events} events of 1.5 hours")


def add_partitions(own: OwnProject, count: int) -> None:
    """Do what kafka-topics.sh --alter --partitions does."""
    admin = KafkaAdminClient(bootstrap_servers=own.kafka)
    try:
        admin.create_partitions({str(own.settings["topic"]): NewPartitions(count)})
    finally:
        admin.close()


def assert_books_hold(own: OwnProject) -> None:
    """Every chunk reconciles, and a recount of both topics finds the same books."""
    client = connect(own.endpoint)
    try:
        assert [fault for chunk in read_counts(client) for fault in chunk.faults] == []
    finally:
        client.disconnect()
    report = audit_usage(own.project, AuditQuestion())
    assert (report.different, report.unchecked, report.chunks) == (0, [], [])
    assert report.checked_chunks > 0


def test_events_count_once_before_during_and_after_the_growth(own: OwnProject) -> None:
    """Copies of what the old topic counted come into the new one; who was not told still writes to the old one."""
    old, new = str(own.settings["topic"]), next_topic(own)
    with own.running():
        send(own, old, range(40))
        send_numbered(own, old, 1, range(1000, 1005))
        wait_for_hours(own, 45)
        grow(own, 3)
        wait_for(lambda: growth_states(own) == ["ended", "booked"], "the old topic to be booked to its end")
        send(own, new, range(20, 80))  # twenty copies
        send_numbered(own, new, 1, range(1000, 1005))  # a copy, whole
        send_numbered(own, new, 2, range(1005, 1010))
        send(own, old, range(60, 100))  # twenty copies, and twenty that nobody has yet
        send_numbered(own, old, 2, range(1005, 1010))
        send_numbered(own, old, 3, range(1010, 1015))
        wait_for_hours(own, 115)
        send(own, new, [200])
        wait_for_hours(own, 116)
        wait_until_all_is_booked(own, new, 3)
    assert milli_hours(own) == 116 * 1500
    assert own.ask("SELECT count() FROM dead_letters") == [(0,)]
    assert own.ask("SELECT epochs, sequence FROM collectors") == [(1, 3)]
    assert own.ask("SELECT count() FROM collector_gaps") == [(0,)]
    assert_books_hold(own)


def growth_states(own: OwnProject) -> list[str]:
    client = connect(own.endpoint)
    try:
        return [each.state for each in growth.read_states(own.project, client)]
    finally:
        client.disconnect()


def wait_until_all_is_booked(own: OwnProject, topic: str, partitions: int) -> None:
    """Wait until nothing is left to book in a topic."""
    (topic_id,) = [each.topic_id for each in line(own) if each.name == topic]
    consumer = make_consumer((own.kafka,))
    sql = "SELECT partition, max(reached_offset) FROM progress WHERE topic_id = %(topic)s GROUP BY partition"
    try:
        wait_for(lambda: dict(own.ask(sql, topic=topic_id)) == end_offsets(consumer, topic, range(partitions)),
                 f"all of {topic} to be booked")  # fmt: skip
    finally:
        consumer.close()


def line(own: OwnProject) -> tuple[books.Topic, ...]:
    return books.read_line(close.open_books(own.project), str(own.settings["topic"]))


def test_clock_booking_and_definitions_go_on_where_the_old_topic_ended(own: OwnProject) -> None:
    """Also in a partition of the new topic into which nothing but its first close came."""
    with own.running():
        send(own, str(own.settings["topic"]), range(10))
        own.define(COUNTED)
        apply_definitions(own.project)
        before = close_books(own.project)
        own.wait_until_booked()
        topic = grow(own, 4)
        wait_for(lambda: growth_states(own) == ["ended", "booked"], "the old topic to be booked to its end")
        wait_until_all_is_booked(own, topic.name, 4)
    ends = own.ask(
        "SELECT max(turned_clock_ms), max(turned_booking), max(turned_definitions) FROM progress FINAL"
        " WHERE reached_booking = %(ended)s", ended=ENDED)[0]  # fmt: skip
    reached = own.ask(
        "SELECT reached_clock_ms, reached_booking, reached_definitions FROM progress FINAL"
        " WHERE topic_id = %(topic)s", topic=topic.topic_id)  # fmt: skip
    assert ends[1:] == (before.booking, 2)
    assert len(reached) == 4
    assert all(clock >= ends[0] and booking == before.booking + 1 and number == 2 for clock, booking, number in reached)


def test_seals_pass_over_the_growth_and_answers_are_exact_across_both_topics(own: OwnProject) -> None:
    old, new = str(own.settings["topic"]), next_topic(own)
    with own.running():
        send(own, old, range(30))
        own.wait_until_booked()
        grow(own, 3)
        wait_for(lambda: growth_states(own) == ["ended", "booked"], "the old topic to be booked to its end")
        send(own, new, range(15, 50))
        send(own, old, range(45, 60))
        wait_for_hours(own, 60)
        report = close_books(own.project)
        wait_until_sealed(own.project, report.booking - 1, timeout_s=180)
        send(own, new, [60])
        wait_for_hours(own, 61)
    client = connect(own.endpoint)
    try:
        day = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
        query = UsageQuery(meter="compute.hours", start=day, end=day + timedelta(days=2), window="total")
        answer, sealed = read_usage(client, query), read_usage(client, replace(query, sealed_only=True))
        complete = read_completeness(client)
    finally:
        client.disconnect()
    assert [row.value for row in answer.rows] == [Decimal("91.5")]
    assert [row.value for row in sealed.rows] == [Decimal("90")]
    assert complete.sealed_to == report.booking - 1
    assert {each.topic_id for each in complete.partitions} == {line(own)[-1].topic_id}
    assert complete.complete_to is not None
    assert_books_hold(own)


def test_partitions_that_somebody_added_stop_the_pipeline_and_growing_brings_it_through(own: OwnProject) -> None:
    """What keys brought into the added partitions is sent on, and counts once."""
    old = str(own.settings["topic"])
    with own.running():
        send(own, old, range(20))
        wait_for_hours(own, 20)
    add_partitions(own, 4)
    wait_for(lambda: len(own_partitions(own)) == 4, "Kafka to have four partitions")
    send(own, old, range(10, 40), partitions=4)
    with pytest.raises(ConfigError, match=r"made with 2 partitions .* got 4 .* docs/operations/topic-growth\.md"):
        worker.prepare(own.project)
    grow(own, 4)
    with own.running():
        wait_for_hours(own, 40)
        wait_until_all_is_booked(own, next_topic(own), 4)
    assert milli_hours(own) == 40 * 1500
    assert_books_hold(own)


def own_partitions(own: OwnProject) -> range:
    info = read_topic((own.kafka,), str(own.settings["topic"]))
    assert info is not None
    return range(info.partitions)


class Killed(Exception):
    """Stands for kill -9."""


STEPS = {
    "before the new topic is made": (growth, "ensure_topics"),
    "before the line is written": (books, "succeed"),
    "before the first close of the new topic": (close, "write_close"),
    "before the end of the old topic": (close, "write_end"),
    "before it is noted that both are written": (books, "mark_founded"),
}


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=pytest.mark.long if number % 3 else ()) for number, step in enumerate(STEPS)]
)
def test_a_growth_that_was_killed_is_finished_by_running_it_again(
    own: OwnProject, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = str(own.settings["topic"]), next_topic(own)
    send(own, old, range(10))

    def die(*given: object, **named: object) -> None:
        raise Killed(step)

    with monkeypatch.context() as patched:
        patched.setattr(*STEPS[step], die)
        with pytest.raises(Killed):
            grow(own, 3)
    grow(own, 3)
    with own.running():
        send(own, new, range(5, 20))
        wait_for_hours(own, 20)
        wait_until_all_is_booked(own, new, 3)
    assert [each.partitions for each in line(own)] == [2, 3]
    assert milli_hours(own) == 20 * 1500


def test_a_pipeline_finishes_a_growth_that_nobody_runs_again(own: OwnProject, monkeypatch: pytest.MonkeyPatch) -> None:
    send(own, str(own.settings["topic"]), range(10))
    with monkeypatch.context() as patched:
        patched.setattr(close, "write_end", refuse)
        with pytest.raises(Killed):
            grow(own, 3)
    with own.running():
        wait_for(lambda: growth_states(own) == ["ended", "booked"], "the old topic to be booked to its end")
    assert milli_hours(own) == 10 * 1500


def refuse(*given: object) -> None:
    raise Killed


@pytest.mark.long
def test_a_topic_grows_twice(own: OwnProject) -> None:
    """What the first topic accepted is known in the third, and what comes late in the first counts there."""
    topics = [str(own.settings["topic"])]
    with own.running():
        for partitions in (3, 4):
            send(own, topics[-1], range(10 * len(topics)))
            topics.append(growth.grow(own.project, growth.plan_growth(own.project, partitions)).name)
        wait_for(lambda: growth_states(own) == ["ended", "ended", "booked"], "two topics to be booked to their ends")
        send(own, topics[0], range(15, 30))
        send(own, topics[1], range(25, 40))
        send(own, topics[2], range(50))
        wait_for_hours(own, 50)
        wait_until_all_is_booked(own, topics[-1], 4)
    assert milli_hours(own) == 50 * 1500
    assert_books_hold(own)
