"""Events that were counted are voided and amended at the command line, on the real stack; sealed books stay closed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.close import apply_definitions, close_books, found_books
from tallyman import corrections
from tallyman.cli import run
from tallyman.event import CORRECTS, LINES
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject, wait_for
from tests.integration.test_dead_retry import HOUR, METERS, body

pytestmark = pytest.mark.integration
WHO = ("Zoë Åström", "nova/berlin-1")


@dataclass
class Desk:
    """Somebody at the command line of a project whose pipeline runs."""

    own: OwnProject
    capsys: pytest.CaptureFixture[str]

    def ask(self, *words: str) -> Any:
        code = run(["event", *words, "--json"])
        printed = self.capsys.readouterr()
        assert code in (0, 3), printed.err
        return json.loads(printed.out)


@pytest.fixture
def desk(
    kafka_broker: str,
    clickhouse_endpoint: ClickHouseEndpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Desk]:
    own = OwnProject(tmp_path / "p", kafka_broker, clickhouse_endpoint, METERS)
    monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))
    monkeypatch.chdir(own.folder)
    with own.running():
        found_books(own.project)
        own.wait_until_booked()  # the tables are there
        yield Desk(own, capsys)


def test_three_events_one_voided_one_amended_and_all_of_it_can_be_seen(desk: Desk) -> None:
    lines = b"\n".join(body(name, data={"hours": hours}) for name, hours in (("1", "10"), ("2", "20"), ("3", "30")))
    desk.own.send((lines, (("content-type", LINES.encode()),)))
    desk.own.wait_until_booked()
    assert desk.own.usage() == {"compute.hours": 60 * HOUR}

    looked = desk.ask("void", *WHO, "2", "--reason", "test machine")
    assert not looked["done"] and json.loads(looked["was"])["data"] == {"hours": "20"}
    assert desk.own.usage() == {"compute.hours": 60 * HOUR}

    told = desk.ask("void", *WHO, "2", "--reason", "test machine", "--yes", "--wait")
    assert (told["aggregated"], told["now"]) == (1, "")
    assert desk.own.usage() == {"compute.hours": 40 * HOUR}

    desk.ask("amend", *WHO, "3", "--set", "data.hours=25", "--reason", "wrong flavor", "--yes", "--wait")
    assert desk.own.usage() == {"compute.hours": 35 * HOUR}
    desk.ask("amend", *WHO, "3", "--set", "data.hours=26", "--reason", "still wrong", "--yes", "--wait")
    assert desk.own.usage() == {"compute.hours": 36 * HOUR}

    history = desk.ask("history", *WHO, "3")["versions"]
    assert [(each["version"], each["reason"], json.loads(each["counts_as"])["data"]["hours"]) for each in history] == [
        (0, None, "30"), (1, "wrong flavor", 25), (2, "still wrong", 26),
    ]  # fmt: skip


def test_a_sealed_booking_keeps_its_bytes_when_one_of_its_events_is_voided(desk: Desk) -> None:
    desk.own.send((body("1"), ()), (body("2"), ()))
    desk.own.wait_until_booked()
    booking = close_books(desk.own.project).booking - 1
    wait_for(lambda: desk.own.ask("SELECT max(booking) FROM seals") >= [(booking,)], "the booking is sealed")
    sealed = desk.own.ask("SELECT * FROM usage WHERE booking <= %(booking)s ORDER BY ALL", booking=booking)
    assert sealed
    desk.ask("void", *WHO, "1", "--reason", "test machine", "--yes", "--wait")
    assert desk.own.ask("SELECT * FROM usage WHERE booking <= %(booking)s ORDER BY ALL", booking=booking) == sealed
    assert desk.own.usage() == {"compute.hours": HOUR}
    assert desk.own.ask("SELECT count FROM usage_hot FINAL WHERE booking > %(booking)s", booking=booking) == [(-1,)]


def test_a_booking_with_more_voids_than_events_is_sealed_like_any_other(desk: Desk) -> None:
    desk.own.send((body("1"), ()), (body("2"), ()))
    desk.own.wait_until_booked()
    close_books(desk.own.project)
    desk.ask("void", *WHO, "1", "--reason", "test machine", "--yes", "--wait")
    booking = close_books(desk.own.project).booking - 1
    sealed = "SELECT rows, events FROM seals FINAL WHERE booking = %(booking)s"
    wait_for(lambda: desk.own.ask(sealed, booking=booking) == [(1, -1)], "the booking is sealed")
    assert desk.own.usage() == {"compute.hours": HOUR}


def test_an_amendment_that_another_was_faster_than_is_not_told_as_done(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two look at one event at once, and both amend it: the later one is a copy of a version that is there."""
    desk.own.send((body("1"), ()))
    desk.own.wait_until_booked()
    both, looking = threading.Barrier(2), corrections.read_history
    looked: set[int] = set()

    def look(*args: Any) -> Any:
        found = looking(*args)
        if threading.get_ident() not in looked:
            looked.add(threading.get_ident())
            both.wait(timeout=30)
        return found

    monkeypatch.setattr(corrections, "read_history", look)
    codes: dict[int, int] = {}

    def amend(hours: int) -> None:
        changes = "--set", f"data.hours={hours}", "--reason", "wrong flavor", "--yes", "--wait"
        codes[hours] = run(["event", "amend", *WHO, "1", *changes])

    threads = [threading.Thread(target=amend, args=(hours,)) for hours in (100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(codes.values()) == [0, 3]
    (won,) = (hours for hours, code in codes.items() if code == 0)
    assert desk.own.usage() == {"compute.hours": won * HOUR}
    told = desk.capsys.readouterr().err
    assert "it does not count: the event was corrected by somebody else meanwhile" in told
    assert "tallyman event history 'Zoë Åström' nova/berlin-1 1" in told


def test_an_id_that_is_used_again_when_it_has_expired_is_corrected_as_the_later_event(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record has a header without a value besides, as Java's clients may send it and Python's refuses."""
    own = desk.own
    own.sections["usage"] = {"oldest_accepted": "2s", "furthest_ahead": "1s"}
    assert apply_definitions(own.project)
    own.send((body("1", time=datetime.now(UTC).isoformat(), data={"hours": "10"}), ()))
    own.wait_until_booked()
    desk.ask("void", *WHO, "1", "--reason", "test machine", "--yes", "--wait")
    assert own.usage() == {"compute.hours": 0}
    time.sleep(3.5)  # remembered for 3 s
    with monkeypatch.context() as patch:
        patch.setattr("kafka.producer.kafka.isinstance", lambda a, b: b is bytes or isinstance(a, b), raising=False)
        patch.setattr("kafka.producer.producer_batch.len", lambda a: 0 if a is None else len(a), raising=False)
        own.send((body("1", time=datetime.now(UTC).isoformat(), data={"hours": "7"}), (("traceparent", None),)))  # type: ignore[arg-type]
    own.wait_until_booked()
    assert own.usage() == {"compute.hours": 7 * HOUR}
    told = desk.ask("amend", *WHO, "1", "--set", "data.hours=5", "--reason", "wrong flavor", "--yes", "--wait")
    assert (json.loads(told["was"])["data"], told["aggregated"]) == ({"hours": "7"}, 1)
    assert own.usage() == {"compute.hours": 5 * HOUR}
    assert [each["version"] for each in desk.ask("history", *WHO, "1")["versions"]] == [0, 1]


def test_a_correction_of_an_event_that_nobody_counted_is_refused_with_the_next_step(desk: Desk) -> None:
    assert run(["event", "void", *WHO, "nobody", "--reason", "x"]) == 2
    told = desk.capsys.readouterr().err
    assert 'got id "nobody" of nova/berlin-1 for Zoë Åström; a dead letter is mended with: tallyman dead retry' in told


def test_a_correction_that_nobody_asked_for_is_a_dead_letter_that_says_why(desk: Desk) -> None:
    desk.own.send((body("1", type="tallyman.usage.corrected.v1", data={"was": "{", "now": ""}), ((CORRECTS, b"1"),)))
    desk.own.wait_until_booked()
    assert desk.own.ask("SELECT reason FROM dead_letters FINAL") == [("malformed",)]
