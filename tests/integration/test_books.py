"""The books on the real stack: founded once, closed, given new definitions, and taken up again after every stop."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaAdminClient

from pipeline import growth
from pipeline.close import (
    apply_definitions,
    close_books,
    found_books,
    open_books,
    pending_definitions,
    wait_until_sealed,
)
from pipeline.frontier import StoredIds
from pipeline.identities import EVERYTHING
from pipeline.outlet import write_close
from pipeline.runtime import forget
from tallyman.books import BOOKINGS_PER_DAY, add_definitions, lacks_definitions, read_line
from tallyman.clickhouse import connect
from tallyman.errors import BrokerError, ConfigError, LogError
from tallyman.in_force import definitions_in_force
from tallyman.kafka import ensure_topics
from tallyman.local.clickhouse_child import ClickHouse
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject, wait_for

pytestmark = pytest.mark.integration
HOURS = "meters:\n- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 3}\n"
BOTH = HOURS + "- {meter: compute.servers, event_type: server, aggregation: count}\n"
NOW = datetime.now(UTC).isoformat()
Make = Callable[..., OwnProject]


@pytest.fixture
def make(kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path) -> Iterator[Make]:
    def of(endpoint: ClickHouseEndpoint = clickhouse_endpoint, **settings: object) -> OwnProject:
        return OwnProject(tmp_path / uuid.uuid4().hex[:6], kafka_broker, endpoint, HOURS, **settings)

    yield of
    forget()


def body(number: int) -> tuple[bytes, tuple[()]]:
    wire = {"id": f"e-{number}", "source": "nova/berlin-1", "type": "server", "subject": "Zoë Åström", "time": NOW,
            "data": {"hours": "1.5"}}  # fmt: skip
    return msgspec.json.encode(wire), ()


def today() -> int:
    return int(datetime.now(UTC).timestamp()) // 86_400 * BOOKINGS_PER_DAY


def test_founding_twice_is_harmless(make: Make) -> None:
    own = make()
    first, again = found_books(own.project), found_books(own.project)
    assert (first.topic_id, first.partitions) == (again.topic_id, 1) and again.founded
    own.send(body(1))
    with own.running():
        own.wait_until_booked()
    assert own.usage() == {"compute.hours": 1500}
    assert own.ask("SELECT max(reached_definitions), max(reached_offset) FROM progress") == [(1, 2)]


def test_two_founders_at_once_leave_one_topic(make: Make, control_url: str) -> None:
    own, topics = make(), []
    own.sections["control"] = {"url": f"'{control_url}'"}
    project = own.project
    threads = [threading.Thread(target=lambda: topics.append(found_books(project).topic_id)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(topics) == 2 and len(set(topics)) == 1


def test_a_topic_made_anew_is_refused_with_a_sentence(make: Make, kafka_broker: str) -> None:
    own = make()
    project = own.project
    found_books(project)
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker)
    admin.delete_topics([project.config.kafka.topic])

    def made_anew() -> bool:
        with contextlib.suppress(LogError):
            ensure_topics(project.kafka_brokers, project.config.kafka, 1)
            return True
        return False

    wait_for(made_anew, "the topic is there again")
    admin.close()
    with pytest.raises(LogError, match=r"was booked: it was made anew\. .* give it another name in kafka\.topic"):
        found_books(project)


def test_another_chunk_size_is_refused(make: Make) -> None:
    own = make(chunk_size=8)
    found_books(own.project)
    own.settings["chunk_size"] = 16
    with pytest.raises(ConfigError, match="made with 1 partitions and chunks of 8, got 1 and 16; these never change"):
        found_books(own.project)


def test_a_close_opens_a_booking_and_the_one_before_is_sealed(make: Make) -> None:
    """On two partitions, one of them silent."""
    own = make(partitions=2)
    found_books(own.project)
    own.send(*map(body, range(5)), partition=1)
    with own.running():
        own.wait_until_booked()
        report = close_books(own.project)
        own.send(*map(body, range(5, 7)), partition=1)
        wait_until_sealed(own.project, report.booking - 1, timeout_s=180)
        own.wait_until_booked()
    assert report.booking > today()
    rows = own.ask("SELECT booking, sum(sum), sum(count) FROM usage_booked GROUP BY booking ORDER BY booking")
    assert [(booking < report.booking, total, count) for booking, total, count in rows] == [
        (True, 7500, 5),
        (False, 3000, 2),
    ]
    assert own.ask("SELECT sum(sum) FROM usage") == [(7500,)]


@pytest.mark.parametrize("days", [400, -2], ids=["ahead", "behind"])
def test_a_close_by_a_machine_whose_clock_is_wrong_goes_by_the_brokers(
    make: Make, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    own = make()
    found_books(own.project)
    own.send(body(0))

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days=days)

    with own.running():
        own.wait_until_booked()
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.close.datetime", Wrong)
            report = close_books(own.project)
        wait_until_sealed(own.project, report.booking - 1, timeout_s=180)
        later = close_books(own.project)
    assert today() < report.booking < later.booking < today() + 1000
    assert own.ask("SELECT sum(sum) FROM usage") == [(1500,)]


def killed(*_: object, **_more: object) -> list[int]:
    raise KeyboardInterrupt


def half_taken(brokers: Sequence[str], topic: str, partitions: int, booking: int, definitions: int) -> list[int]:
    write_close(brokers, topic, 1, booking, definitions)
    raise BrokerError("the leader of partition 1 moves")


def cut_off(own: OwnProject, monkeypatch: pytest.MonkeyPatch, target: str, instead: object) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(target, instead)
        with pytest.raises((KeyboardInterrupt, BrokerError)):
            apply_definitions(own.project)


@pytest.mark.parametrize(
    ("target", "instead"),
    [("pipeline.close.books.next_close", killed), ("pipeline.close.write_close", killed),
     ("pipeline.close.write_close", half_taken)],
    ids=["before its close is numbered", "before it is written", "behind one of two partitions"],
)  # fmt: skip
def test_an_apply_that_was_cut_off_is_not_taken_for_done_until_it_is_done_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, target: str, instead: object
) -> None:
    own = make(partitions=2)
    found_books(own.project)
    own.define(BOTH)
    cut_off(own, monkeypatch, target, instead)
    in_force, wanted = pending_definitions(own.project)
    assert in_force is not None and (in_force.number, len(in_force.meters), len(wanted.meters)) == (1, 1, 2)
    assert definitions_in_force(own.project) == in_force
    report = apply_definitions(own.project)
    assert report is not None and report.definitions == 2
    assert apply_definitions(own.project) is None


def test_an_apply_that_was_cut_off_is_done_by_the_next_start_of_a_pipeline(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make(partitions=2)
    found_books(own.project)
    own.define(BOTH)
    cut_off(own, monkeypatch, "pipeline.close.write_close", half_taken)
    found_books(own.project)
    assert definitions_in_force(own.project).number == 2
    assert apply_definitions(own.project) is None


def test_an_apply_that_a_growth_overtakes_is_done_in_the_new_topic(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its close stands behind the end of the old one, where nothing counts."""
    own = make()
    project = own.project
    old = found_books(project)
    own.define(BOTH)
    monkeypatch.setattr("pipeline.close.books.add_definitions", lambda *words: grow() and add_definitions(*words))

    def grow() -> object:
        monkeypatch.undo()
        return growth.grow(project, growth.plan_growth(project, 2))

    report = apply_definitions(own.project)
    assert report is not None and report.definitions == 2
    new = read_line(open_books(project), old.name)[-1]
    assert new != old and not lacks_definitions(open_books(project), new.topic_id)


def test_new_definitions_come_into_force_at_the_close_and_earlier_usage_stays_as_it_was_booked(
    make: Make, control_url: str
) -> None:
    own = make()
    own.sections["control"] = {"url": f"'{control_url}'"}
    found_books(own.project)
    own.send(*map(body, range(3)))
    own.define(BOTH)
    report = apply_definitions(own.project)
    assert report is not None and report.definitions == 2
    assert apply_definitions(own.project) is None  # in force already
    own.send(*map(body, range(3, 5)))
    with own.running():
        own.wait_until_booked()
    rows = own.ask("SELECT definitions, meter, sum(count) FROM usage_booked GROUP BY ALL ORDER BY ALL")
    assert rows == [(1, "compute.hours", 3), (2, "compute.hours", 2), (2, "compute.servers", 2)]


def test_a_pipeline_goes_on_where_the_last_one_stopped(make: Make) -> None:
    """Also with less than a chunk since the start, and with copies of what was booked before."""
    own = make()
    found_books(own.project)
    expected = 0
    for part in range(3):
        own.send(*map(body, range(part * 5, part * 5 + 5)), body(0))
        expected += 5
        with own.running():
            own.wait_until_booked()
        assert own.usage() == {"compute.hours": expected * 1500}
    assert sum(row["duplicate"] for row in own.counts()) == 3


def test_a_clickhouse_that_is_killed_while_booking_loses_and_doubles_nothing(
    make: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clickhouse = ClickHouse(tmp_path_factory.mktemp("killed"))
    clickhouse.start()
    try:
        own = make(clickhouse.endpoint, chunk_size=32)
        found_books(own.project)
        with own.running():
            for part in range(6):
                own.send(*map(body, range(part * 50, part * 50 + 50)))
                if part in (1, 3):
                    wait_for(lambda: own.reached().get(0, 0) > 0, "some progress")
                    clickhouse.kill()
                    clickhouse.start()
            own.wait_until_booked()
        assert own.usage() == {"compute.hours": 300 * 1500}
        assert sum(row["aggregated"] for row in own.counts()) == 300
    finally:
        clickhouse.stop()


def test_a_tick_moves_a_silent_partition(make: Make) -> None:
    """Its clock, and so its bookings, go on although nobody sends."""
    own = make(partitions=2)
    own.pipeline["tick"] = "1s"
    found_books(own.project)
    with own.running():
        own.wait_until_booked()
        before = own.reached()
        wait_for(lambda: all(own.reached()[n] > before[n] for n in (0, 1)), "ticks in both partitions")
    assert own.ask("SELECT sum(reached_counts[1]) FROM progress FINAL") == [(0,)]


def test_the_filter_of_a_restart_holds_the_ids_below_it_and_no_others(make: Make) -> None:
    own = make()
    topic = found_books(own.project)  # its first close is offset 0
    own.send(*map(body, range(6)))
    with own.running():
        own.wait_until_booked()
    client = connect(own.endpoint, numpy=True)
    try:
        stored = StoredIds(client)
        read = [stored.stream(topic.topic_id, {0: below}) for below in (0, 4, EVERYTHING)]
        found = [sum(len(portion.high) for portion in portions) for portions in read]
    finally:
        client.disconnect()
    assert found == [0, 3, 6]
