"""What an operator and the other rooms do with usage holds across a topic's growth: dead letters, corrections, the
archive, sending, alarms and invoices, each with usage on both sides of it.

`tallyman.yaml` names the old topic all the time: nobody has to be quick.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient

from collectors.arrow import Reading, encode_readings
from invoices import batch
from pipeline.close import apply_definitions, close_books, found_books, wait_until_sealed
from rules import engine as rules_engine
from rules.receiver import Receiver
from tallyman.cli import run
from tallyman.event import ARROW, Series
from tallyman.kafka import partition_of, read_topic
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject, wait_for
from tests.integration.test_dead_retry import HOUR, METERS, MORE, NOW, body, numbered
from tests.integration.test_growth import growth_states, line, next_topic, send_values, wait_until_all_is_booked
from tests.nimbus import ENTITY

pytestmark = pytest.mark.integration
OLD = "2020-02-29T12:00:00Z"
WHO = ("Zoë Åström", "nova/berlin-1")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Desk:
    """Somebody at the command line of a project whose pipeline runs."""

    own: OwnProject
    capsys: pytest.CaptureFixture[str]

    def ask(self, *words: str, code: int = 0) -> Any:
        self.capsys.readouterr()
        assert run([*words, "--json"]) == code, self.capsys.readouterr().err
        return json.loads(self.capsys.readouterr().out)

    def grow(self, partitions: int = 3) -> str:
        """Grow, and wait until the pipeline books the new topic; return its name."""
        told = self.ask("topic", "grow", "--partitions", str(partitions), "--yes")
        assert told["done"]
        wait_for(lambda: growth_states(self.own)[-1] == "booked", "the old topic to be booked to its end")
        return str(told["new"])

    def send(self, topic: str, *values: bytes) -> None:
        """Send events of one tenant to the partition that its key has in this topic."""
        send_values(self.own, topic, *values)

    def hours(self) -> int:
        return self.own.usage().get("compute.hours", 0) // HOUR

    def wait_for_hours(self, hours: int) -> None:
        wait_for(lambda: self.hours() == hours, f"{hours} hours")

    def wait_until_booked(self) -> None:
        now = line(self.own)[-1]
        wait_until_all_is_booked(self.own, now.name, now.partitions)

    def assert_books_hold(self, *sources: str) -> None:
        """Every chunk reconciles, and a recount of both topics finds the same books."""
        self.wait_until_booked()
        assert self.ask("audit", "counts")["reconciles"]
        for source in sources or ("log",):
            report = self.ask("audit", "usage", "--source", source)
            assert (report["equal"], report["complete"]) == (True, True)
            assert report["checked"]["events"] > 0


@pytest.fixture
def desk(
    kafka_broker: str,
    clickhouse_endpoint: ClickHouseEndpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Desk]:
    own = OwnProject(tmp_path / "p", kafka_broker, clickhouse_endpoint, METERS, partitions=2, chunk_size=16)
    own.pipeline["archive"] = "true"
    monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))
    monkeypatch.chdir(own.folder)
    with own.running():
        found_books(own.project)
        yield Desk(own, capsys)


def test_dead_letters_of_both_topics_are_let_in_through_the_new_one_once(desk: Desk) -> None:
    """Too old, wanted by no meter, a row of a numbered batch; some came into the old topic, some into the new one."""
    time_us = int(datetime.now(UTC).timestamp() * 1e6)
    rows = encode_readings([Reading(Series(type="cpu", subject=WHO[0], scale=0), time_us, time_us + 1, 5)])
    old = str(desk.own.settings["topic"])
    desk.own.send((rows, numbered(1, ARROW)), partition=partition_of(b"host-01", 2))
    desk.send(old, body("old-1", time=OLD), body("t-1", type="traffic", data={"bytes": 10}), body("e-1"))
    desk.own.wait_until_booked()
    new = desk.grow()
    desk.send(new, body("old-2", time=OLD), body("t-2", type="traffic", data={"bytes": 10}), body("e-1"), body("e-2"))
    desk.wait_for_hours(2)
    desk.wait_until_booked()
    assert desk.ask("dead", "list")["counts"] == {"too_old": 2, "unknown_meter": 3}
    desk.own.define(MORE)
    apply_definitions(desk.own.project)
    done = desk.ask("dead", "retry", "--yes", "--wait")
    assert (done["sent"], done["aggregated"], done["refused"]) == (5, 5, 0)
    again = desk.ask("dead", "retry", "--all", "--yes", "--wait")
    assert (again["sent"], again["duplicate"]) == (5, 5)
    assert desk.own.usage() == {"compute.hours": 4 * HOUR, "net.bytes": 20, "host.cpu": 5}
    counted = dict(desk.own.ask("SELECT topic_id, count() FROM ids GROUP BY topic_id"))
    assert [counted[topic.topic_id] for topic in line(desk.own)] == [2, 6]
    desk.assert_books_hold("log", "archive")


def test_a_position_that_both_topics_have_is_refused_until_the_topic_is_named(desk: Desk) -> None:
    """Nobody mends or discards a letter that he has not meant."""
    desk.own.send((b"{", ()), partition=0)
    desk.own.wait_until_booked()
    desk.own.settings |= {"topic": desk.grow(), "partitions": 3}
    desk.own.send((b"[", ()), partition=0)
    desk.wait_until_booked()
    first, second = [each.topic_id for each in line(desk.own)]
    (position,) = {letter["position"] for letter in desk.ask("dead", "list")["dead_letters"]}
    assert len(desk.ask("dead", "show", position)) == 2
    for action in (("retry", position, "--set", "type=server"), ("discard", position)):
        assert run(["dead", *action, "--yes"]) == 2
        said = desk.capsys.readouterr().err
        assert all(f"{position}@{topic}" in said for topic in (first, second))
    assert desk.ask("dead", "discard", f"{position}@{second}", "--yes")["discarded"] == 1
    assert [letter["topic_id"] for letter in desk.ask("dead", "list")["dead_letters"]] == [first]


def test_an_event_of_the_old_topic_is_amended_and_voided_after_the_growth(desk: Desk) -> None:
    """Its offset is larger than the correction's: they are of different topics, and the old one came first."""
    old = str(desk.own.settings["topic"])
    desk.send(old, *(body(f"e-{n}") for n in range(40)))
    desk.own.wait_until_booked()
    desk.grow()
    told = desk.ask("event", "amend", *WHO, "e-39", "--set", "data.hours=10", "--reason", "typed", "--yes", "--wait")
    assert (told["aggregated"], desk.hours()) == (1, 49)
    desk.ask("event", "void", *WHO, "e-38", "--reason", "test machine", "--yes", "--wait")
    desk.ask("event", "amend", *WHO, "e-39", "--set", "data.hours=11", "--reason", "again", "--yes", "--wait")
    assert desk.hours() == 49
    assert [each["version"] for each in desk.ask("event", "history", *WHO, "e-39")["versions"]] == [0, 1, 2]
    desk.own.ask("TRUNCATE TABLE events")
    assert json.loads(desk.ask("event", "history", *WHO, "e-3")["versions"][0]["counts_as"])["id"] == "e-3"
    desk.assert_books_hold()


@pytest.mark.long
def test_the_archive_alone_proves_usage_of_both_topics_when_the_old_one_is_deleted(desk: Desk) -> None:
    old, new = str(desk.own.settings["topic"]), next_topic(desk.own)
    desk.send(old, *(body(f"e-{n}") for n in range(30)))
    desk.own.wait_until_booked()
    assert desk.grow() == new
    desk.send(new, *(body(f"e-{n}") for n in range(20, 50)))
    desk.send(old, *(body(f"e-{n}") for n in range(40, 60)))
    desk.wait_for_hours(60)
    desk.assert_books_hold("log", "archive")
    delete(desk.own, old)
    desk.send(new, *(body(f"e-{n}") for n in range(55, 70)))
    desk.own.settings |= {"topic": new, "partitions": 3}
    assert desk.own.project.config.kafka.topic == new  # written down
    desk.wait_for_hours(70)
    desk.assert_books_hold("archive")
    report = desk.ask("audit", "usage", "--source", "log", code=3)
    assert (report["equal"], {each["span"]["topic"] for each in report["unchecked"]}) == (True, {old})


def delete(own: OwnProject, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=own.kafka)
    try:
        admin.delete_topics([topic])
    finally:
        admin.close()
    wait_for(lambda: read_topic((own.kafka,), topic) is None, f"{topic} to be gone")


def test_a_file_is_sent_to_the_new_topic_whichever_one_is_configured(desk: Desk) -> None:
    file = desk.own.folder / "events.ndjson"
    file.write_bytes(b"\n".join(body(f"e-{n}") for n in range(10)))
    assert desk.ask("send", str(file), "--wait")["aggregated"] == 10
    new = desk.grow()
    file.write_bytes(b"\n".join(body(f"e-{n}") for n in range(5, 15)))
    told = desk.ask("send", str(file), "--wait")
    assert (told["aggregated"], told["duplicate"], desk.hours()) == (5, 5, 15)
    topic_id = next(each.topic_id for each in line(desk.own) if each.name == new)
    assert desk.own.ask("SELECT count() FROM ids WHERE topic_id = %(new)s", new=topic_id) == [(5,)]


@pytest.mark.long
def test_an_alarm_counts_usage_of_both_topics_and_hears_of_the_new_one(desk: Desk) -> None:
    """Neither topic's usage alone is above the bound; the push that makes it fire comes from the new topic."""
    receiver = Receiver([SECRET])
    alarms = desk.own.folder / "alarms"
    alarms.mkdir()
    (alarms / "all.yaml").write_text(
        "groups:\n- name: tenants\n  rules:\n"
        "  - {alert: busy, expr: {usage: {meter: compute.hours, window: 1d}, above: 30}, for: 0s}\n", "utf-8"
    )  # fmt: skip
    endpoint = f"{{ops: {{url: '{receiver.url}', secrets: ['{SECRET}'], allow_private: true}}}}"
    desk.own.sections["rules"] = {"endpoints": endpoint}
    try:
        with rules_running(desk.own):
            desk.send(str(desk.own.settings["topic"]), *(body(f"e-{n}") for n in range(20)))
            desk.wait_for_hours(20)
            new = desk.grow()
            assert not receiver.messages
            desk.send(new, *(body(f"e-{n}") for n in range(10, 35)))
            assert receiver.wait_for(lambda messages: len(messages) == 1, 30)
        assert receiver.messages[0].body["data"]["value"] == "35"
    finally:
        receiver.close()


@contextmanager
def rules_running(own: OwnProject) -> Iterator[None]:
    stop, codes, project = threading.Event(), list[int](), own.project
    thread = threading.Thread(target=lambda: codes.append(rules_engine.main(project, stop, None)))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
    assert codes == [0]


SELLER = {
    "plans/all.yaml": """plans:
- plan: standard
  name: Standard cloud
  currency: EUR
  zone: UTC
  tax: {category: S, rate: "19"}
  charges:
  - {charge: hours, name: Machines, meter: compute.hours, model: per_unit, per: "1", unit: hours, price: "2.00"}
""",
    "accounts/all.yaml": """accounts:
- account: acct-0001
  name: Zoë Åström Studio
  address: [Kastanienallee 77, 10435 Berlin]
  country: DE
  plan: standard
  subjects: [{subject: Zoë Åström, from: 2020-01-01}]
""",
    "entity.yaml": ENTITY.replace("Europe/Berlin", "UTC"),
}


@pytest.mark.long
def test_an_invoice_bills_usage_of_both_topics_once(desk: Desk) -> None:
    """Last month's usage: some booked in the old topic, copies and the rest in the new one, then closed and sealed."""
    for name, text in SELLER.items():
        (desk.own.folder / name).parent.mkdir(exist_ok=True)
        (desk.own.folder / name).write_text(text, "utf-8")
    end = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    when = (end - timedelta(minutes=1)).isoformat()
    desk.send(str(desk.own.settings["topic"]), *(body(f"e-{n}", time=when) for n in range(20)))
    desk.wait_for_hours(20)
    new = desk.grow()
    desk.send(new, *(body(f"e-{n}", time=when) for n in range(10, 50)))
    desk.wait_for_hours(50)
    wait_until_sealed(desk.own.project, close_books(desk.own.project).booking - 1, timeout_s=180)
    report = batch.run(desk.own.project, f"{end - timedelta(days=1):%Y-%m}")
    assert [invoice.account for invoice in report.issued] == ["acct-0001"] and not report.failed
    (issued,) = report.issued
    document = json.loads(issued.json.read_bytes())
    assert [document_line["net"] for document_line in document["lines"]] == ["100.00"]
    places = {place["topic_id"] for place in document["cut_off"]["places"]}
    assert line(desk.own)[-1].topic_id in places
    desk.assert_books_hold("log", "archive")


@pytest.mark.long
def test_usage_of_both_topics_is_rebuilt_under_new_definitions(desk: Desk) -> None:
    """From now on only Nürnberg counts; half of the events, each once, whichever topic it came in."""
    def events(first: int, behind: int) -> list[bytes]:
        regions = ("Nürnberg", "Malmö")
        return [body(f"e-{n}", data={"hours": "1", "region": regions[n % 2]}) for n in range(first, behind)]

    desk.send(str(desk.own.settings["topic"]), *events(0, 20))
    desk.wait_for_hours(20)
    desk.send(desk.grow(), *events(10, 50))
    desk.wait_for_hours(50)
    desk.own.define(METERS.replace("scale: 9,", "scale: 9, where: {region: [Nürnberg]},"))
    applied = apply_definitions(desk.own.project)
    assert applied is not None
    wait_until_sealed(desk.own.project, close_books(desk.own.project).booking - 1, timeout_s=180)
    day = datetime.fromisoformat(NOW).replace(hour=0, minute=0, second=0, microsecond=0)
    range_ = ("--from", day.isoformat(), "--to", (day + timedelta(days=1)).isoformat())
    told = desk.ask("rebuild", "--meter", "compute.hours", *range_, "--yes")
    assert [(each["before"]["events"], each["after"]["events"]) for each in told["changes"]] == [(50, 25)]
    assert desk.hours() == 25
    desk.assert_books_hold("log", "archive")
