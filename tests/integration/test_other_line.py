"""Topics that follow no other: one that is begun under a new name, and one that is gone back to."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import worker
from pipeline.close import apply_definitions, close_books, found_books, wait_until_sealed
from pipeline.growth import grow, line_to_book, plan_growth
from pipeline.seal import Sealer
from tallyman.aggregates import read_completeness
from tallyman.cli import run
from tallyman.clickhouse import connect
from tallyman.errors import ConfigError
from tallyman.kafka import ensure_topics
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.topics import note_line
from tests.integration.booking import OwnProject, wait_for
from tests.integration.test_books import BOTH, HOURS, body

pytestmark = pytest.mark.integration


@pytest.fixture
def books(
    kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> OwnProject:
    """A topic with five events of 1.5 hours, booked."""
    own = OwnProject(tmp_path / "b", kafka_broker, clickhouse_endpoint, HOURS)
    monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))
    monkeypatch.chdir(own.folder)
    with own.running():
        wait_for(lambda: found_books(own.project).founded, "the topic")
        own.send(*map(body, range(5)))
        own.wait_until_booked()
    return own


def test_a_topic_under_a_new_name_that_senders_used_first_counts(books: OwnProject) -> None:
    """The old topic is abandoned by the book. What the new one held before the pipeline was started on it counts by the
    definitions in force.
    """
    books.define(BOTH)
    with books.running():
        report = apply_definitions(books.project)  # somebody closed today: what a repair does, too
        assert report is not None
        wait_until_sealed(books.project, report.booking - 1, timeout_s=180)
    books.settings["topic"] = f"{books.settings['topic']}.again"
    project = books.project
    ensure_topics(project.kafka_brokers, project.config.kafka, 1)  # by an administrator
    books.send(*map(body, range(5, 8)))
    with books.running():
        wait_for(lambda: accepted(books) == 8, "all to be accepted")
        wait_for(lambda: books.ask("SELECT uniqExact(topic_id) FROM usage_hot") == [(2,)], "their rows")
        found = books.ask("SELECT definitions, meter, sum(count) FROM usage_booked GROUP BY ALL ORDER BY ALL")
        assert found == [(1, "compute.hours", 5), (2, "compute.hours", 3), (2, "compute.servers", 3)]
    assert run(["audit", "counts"]) == 0 and run(["audit", "usage", "--source", "log"]) == 0


@pytest.mark.parametrize("words", [("repair", "0"), ("seal", "--preview")])
def test_a_preview_with_an_old_configuration_changes_nothing(books: OwnProject, words: tuple[str, ...]) -> None:
    old = books.settings["topic"]
    books.settings["topic"] = new = f"{old}.again"
    project = books.project
    client = connect(books.endpoint)
    with books.running():
        wait_for(lambda: found_books(project).founded, "the topic")
        books.send(*map(body, range(5, 8)))
        wait_for(lambda: books.usage() == {"compute.hours": 8 * 1500}, "all")
        before = read_completeness(client)
        books.settings["topic"] = old
        assert books.project.config.kafka.topic == old  # tallyman.yaml of somebody's laptop
        assert run(list(words)) == 0
        books.settings["topic"] = new
        after = read_completeness(client)
    assert [each.topic_id for each in before.partitions] == [each.topic_id for each in after.partitions]
    client.disconnect()


def test_a_line_that_is_gone_back_to_counts(books: OwnProject) -> None:
    """kafka.topic got a wrong name for a while, a booking was sealed meanwhile; then it was set right."""
    right = books.settings["topic"]
    books.settings["topic"] = f"{right}.typo"
    with books.running():
        report = wait_for(lambda: close_books(books.project), "this line to be booked")
        wait_until_sealed(books.project, report.booking - 1, timeout_s=180)
    books.settings["topic"] = right
    books.send(*map(body, range(5, 8)))
    with books.running():
        wait_for(lambda: aside(books), "the partition to be set aside")
        assert accepted(books) == 5, "what nobody would see is not accepted"
        goes_on(books)
        books.send(*map(body, range(5, 8)))  # sent again
        books.wait_until_booked()
        assert books.usage() == {"compute.hours": 8 * 1500}
        assert sum(each["aggregated"] for each in books.counts()) == 8
    assert run(["audit", "counts"]) == 0
    assert run(["audit", "usage", "--source", "log"]) == 3, "what lies before a repair is not recounted"


def test_a_line_that_is_gone_back_to_goes_on_by_itself_where_nothing_was_sent_meanwhile(books: OwnProject) -> None:
    right, sealed = books.settings["topic"], f"{books.settings['topic']}.typo"
    books.settings["topic"] = sealed
    with books.running():
        report = wait_for(lambda: close_books(books.project), "this line to be booked")
        wait_until_sealed(books.project, report.booking - 1, timeout_s=180)
    books.settings["topic"] = right
    with books.running():
        wait_for(lambda: close_books(books.project), "the right line to be booked")
        books.send(*map(body, range(5, 8)))
        books.wait_until_booked()
        assert books.usage() == {"compute.hours": 8 * 1500} and not aside(books)


def test_a_worker_that_still_has_the_old_name_books_nothing_into_what_the_new_line_seals(books: OwnProject) -> None:
    """It runs on, and knows of nothing: the database refuses it, as it would one that slept for a day."""
    old = books.settings["topic"]
    client = connect(books.endpoint)
    with books.running():
        books.send(body(0))  # a copy: once it is booked, the worker has noted its line
        books.wait_until_booked()
        books.settings["topic"] = f"{old}.again"
        new = found_books(books.project)
        note_line(client, [new])
        partitions = [(new.topic_id, 0, new.chunk_size)]
        (seal,) = Sealer(client, partitions).seal_all()
        assert seal.events == 5 and seal.booking < new.begins
        books.settings["topic"] = old
        books.send(*map(body, range(5, 8)))
        wait_for(lambda: aside(books, known=True), "the partition to be set aside")
        assert books.ask("SELECT sum(count) FROM usage_hot FINAL") == [(5,)]
        fence = "SELECT extract(create_table_query, 'sealed_[0-9]+') FROM system.tables WHERE name = 'usage_hot'"
        found = books.ask(f"{fence} AND database = currentDatabase()")
        assert found == [(f"sealed_{new.begins - 1}",)]
    with books.running():  # so that it is what is booked again
        goes_on(books)
        assert books.usage() == {"compute.hours": 8 * 1500}
        assert Sealer(client, partitions).seal_all() == [], "who has the other name seals nothing any more"
    client.disconnect()


@pytest.fixture
def old_name(books: OwnProject) -> OwnProject:
    """A host that still has the name of a topic that was abandoned since."""
    old = books.settings["topic"]
    books.settings["topic"] = f"{old}.again"
    with books.running():
        wait_for(lambda: found_books(books.project).founded, "the topic")
        wait_for(lambda: books.ask("SELECT uniqExact(line) FROM topics FINAL") == [(2,)], "its line")
    books.settings["topic"] = old
    books.define(BOTH)
    assert books.project.config.kafka.topic == old
    return books


def test_who_writes_to_another_line_than_is_booked_is_told(
    old_name: OwnProject, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody would seal there, the close would be behind for good, and the letters would be lost."""
    event = ("Zoë Åström", "nova/berlin-1", "e-1")
    for words in (["seal"], ["close"], ["apply", "--yes"], ["dead", "retry", "--yes"], ["dead", "retry"],
                  ["event", "void", *event, "--reason", "twice", "--yes"],
                  ["topic", "grow", "--partitions", "2"], ["topic", "grow", "--partitions", "2", "--yes"]):  # fmt: skip
        assert run(words) == 2, words
        name = old_name.settings["topic"]
        assert f'kafka.topic: "{name}" is not what is booked now' in capsys.readouterr().err, words
    old_name.settings["topic"] = f"{name}.typo"  # one that nobody has booked yet
    assert old_name.project.config.kafka.topic == f"{name}.typo"
    assert run(["apply", "--yes"]) == 2


def test_a_second_host_with_a_control_store_of_its_own_is_refused(books: OwnProject, tmp_path: Path) -> None:
    """It would count by its own definitions 1, whatever is in force; nor do views go by its settings."""
    delay_ms = "SELECT value FROM settings_told FINAL WHERE name = 'usage.expected_delay_ms'"
    assert books.ask(delay_ms) == [(10_000,)]
    books.sections |= {"control": {"url": f"'sqlite:///{tmp_path / 'other.db'}'"}, "usage": {"expected_delay": "99s"}}
    with pytest.raises(ConfigError, match=r"control\.url"):
        worker.prepare(books.project)
    assert books.ask(delay_ms) == [(10_000,)]
    client = connect(books.endpoint)
    with pytest.raises(ConfigError, match=r"control\.url: topic .* is booked in this ClickHouse, and this control"):
        line_to_book(books.project, client)
    client.disconnect()
    assert run(["apply", "--yes"]) == 2


def test_a_control_store_of_before_a_topic_grew_is_refused(books: OwnProject, tmp_path: Path) -> None:
    """It would book the old topic, which has ended, for good, and say nothing."""
    backup = tmp_path / "backup.db"
    control = books.folder / "data" / "control.db"
    with closing(sqlite3.connect(control)) as now, closing(sqlite3.connect(backup)) as copy:
        now.backup(copy)
    grow(books.project, plan_growth(books.project, 2))
    with books.running():
        wait_for(lambda: books.ask("SELECT uniqExact(topic_id) FROM topics") == [(2,)], "the new topic to be booked")
    books.sections["control"] = {"url": f"'sqlite:///{backup}'"}
    client = connect(books.endpoint)
    new = f"{books.settings['topic']}.v2"
    for asked in (lambda: line_to_book(books.project, client), lambda: close_books(books.project),
                  lambda: plan_growth(books.project, 2, f"{books.settings['topic']}.v3")):  # fmt: skip
        with pytest.raises(ConfigError, match=rf'"{new}" is booked in this ClickHouse, and this control store does'):
            asked()
    client.disconnect()


def test_a_repair_where_nobody_books_is_refused_before_anything_is_changed(
    old_name: OwnProject, capsys: pytest.CaptureFixture[str]
) -> None:
    old_name.eat(0, 6)
    assert run(["repair", "0"]) == 0
    assert run(["repair", "0", "--yes"]) == 2
    assert "is not what is booked now" in capsys.readouterr().err
    fenced = "SELECT countIf(position(create_table_query, 'repaired_') > 0) FROM system.tables"
    assert old_name.ask(f"{fenced} WHERE database = currentDatabase()") == [(0,)]


def accepted(books: OwnProject) -> int:
    return int(books.ask("SELECT uniqExact(identity_high, identity_low) FROM ids")[0][0])


def aside(books: OwnProject, *, known: bool = False) -> bool:
    """Tell whether a partition is set aside for what is sealed; `known`: also of a line that is not booked now."""
    if known:
        return bool(books.ask("SELECT 1 FROM quarantines WHERE reason = 'sealed'"))
    client = connect(books.endpoint)
    try:
        return [each.reason for each in read_completeness(client).quarantines] == ["sealed"]
    finally:
        client.disconnect()


def goes_on(books: OwnProject) -> None:
    """Let booking go on, as an operator does; nothing is skipped."""
    assert run(["repair", "0"]) == 0
    assert run(["repair", "0", "--yes"]) == 0
    assert books.ask("SELECT to_offset - from_offset FROM repairs FINAL") == [(0,)]
    books.wait_until_booked()
