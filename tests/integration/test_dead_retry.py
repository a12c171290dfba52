"""Dead letters are mended, let in again and set aside, on the real stack; whatever is repeated counts once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collectors.arrow import Reading, encode_readings
from pipeline.close import apply_definitions, found_books
from tallyman.cli import run
from tallyman.event import ARROW, BATCH, LINES, Series, home_key
from tallyman.kafka import partition_of
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject

pytestmark = pytest.mark.integration
METERS = """meters:
- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 9, dimensions: {region: region}}
"""
MORE = (
    METERS
    + """- {meter: net.bytes, event_type: traffic, aggregation: sum, value: bytes, scale: 0}
- {meter: host.cpu, event_type: cpu, aggregation: sum, value: value, scale: 0}
"""
)
NOW = datetime.now(UTC).isoformat()
HOUR = 1_000_000_000
OLD = "2020-02-29T12:00:00Z"
ACME = "application/vnd.acme+json"


def body(name: str, **changed: Any) -> bytes:
    wire = {"specversion": "1.0", "id": name, "source": "nova/berlin-1", "type": "server", "subject": "Zoë Åström",
            "time": NOW, "data": {"hours": "1", "region": "Nürnberg"}}  # fmt: skip
    return msgspec.json.encode({key: value for key, value in (wire | changed).items() if value is not None})


def binary(name: str, **changed: str) -> tuple[tuple[str, bytes], ...]:
    attributes = {"specversion": "1.0", "id": name, "source": "nova/berlin-1", "type": "server",
                  "subject": "Zoë Åström", "time": NOW} | changed  # fmt: skip
    return tuple((f"ce_{key}", value.encode()) for key, value in attributes.items() if value)


def numbered(sequence: int, content: str) -> tuple[tuple[str, bytes], ...]:
    return (("content-type", content.encode()), ("tallyman-collector", b"host-01"), ("tallyman-epoch", b"spool-7"),
            ("tallyman-sequence", str(sequence).encode()))  # fmt: skip


@dataclass
class Desk:
    """Somebody at the command line of a project whose pipeline runs."""

    own: OwnProject
    capsys: pytest.CaptureFixture[str]

    def dead(self, *words: str, code: int = 0) -> dict[str, Any]:
        assert run(["dead", *words, "--json"]) == code
        answer: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return answer

    def reasons(self, *words: str) -> dict[str, int]:
        counts: dict[str, int] = self.dead("list", *words)["counts"]
        return counts

    def hours(self) -> int:
        self.own.wait_until_booked()
        return self.own.usage().get("compute.hours", 0) // HOUR


@pytest.fixture
def desk(
    kafka_broker: str,
    clickhouse_endpoint: ClickHouseEndpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Desk]:
    own = OwnProject(tmp_path / "p", kafka_broker, clickhouse_endpoint, METERS, partitions=2)
    monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))
    monkeypatch.chdir(own.folder)
    with own.running():
        found_books(own.project)
        yield Desk(own, capsys)


def test_a_preview_does_nothing_and_a_retry_counts_once_however_often_it_is_run(desk: Desk) -> None:
    desk.own.send((body("old-1", time=OLD), ()), (body("old-2", time=OLD), ()))
    desk.own.send((b'{"hours": 4}', binary("old-3", time=OLD)))
    assert desk.hours() == 0 and desk.reasons() == {"too_old": 3}
    preview = desk.dead("retry", "--reason", "too_old")
    assert (preview["done"], preview["chosen"], preview["sent"]) == (False, 3, 0)
    assert preview["groups"] == [{"reason": "too_old", "type": "server", "source": "nova/berlin-1", "letters": 3}]
    assert desk.hours() == 0
    done = desk.dead("retry", "--reason", "too_old", "--yes", "--wait")
    assert (done["sent"], done["aggregated"], done["dead"]) == (3, 3, 0)
    assert desk.hours() == 6 and desk.reasons() == {} and desk.reasons("--all") == {"too_old": 3}
    assert desk.dead("retry", "--yes")["chosen"] == 0
    again = desk.dead("retry", "--all", "--yes", "--wait")
    assert (again["sent"], again["duplicate"]) == (3, 3) and desk.hours() == 6


def test_an_event_that_arrived_elsewhere_meanwhile_is_not_counted_again(desk: Desk) -> None:
    """The sender mended it himself; the operator's retry is a copy, with other content."""
    desk.own.send((body("e-1", data={"hours": "lots"}), ()))
    assert desk.hours() == 0
    desk.own.send((body("e-1", data={"hours": 2}), ()))
    assert desk.hours() == 2
    done = desk.dead("retry", "--set", "data.hours=12.5", "--yes", "--wait")
    assert (done["duplicate"], desk.hours()) == (1, 2)


def test_mended_events_count_and_keep_what_was_mended_on_record(desk: Desk) -> None:
    desk.own.send((body("e-1", type="serverr", data={"hours": "lots", "region": "Malmö"}), ()), (body("e-2")[:-9], ()))
    desk.hours()
    position = {letter["reason"]: letter["position"] for letter in desk.dead("list")["dead_letters"]}
    refused = desk.dead("retry", position["malformed"], "--yes", code=3)
    assert (refused["sent"], refused["refused"]) == (0, 1)
    done = desk.dead(
        "retry", position["unknown_meter"], "--set", "type=server", "--set", "data.hours=12", "--yes", "--wait"
    )
    assert done["aggregated"] == 1 and desk.hours() == 12
    assert desk.own.ask("SELECT action, mended FROM dead_letters_handled FINAL") == [
        ("retried", '{"type":"server","data.hours":12}')
    ]
    assert desk.own.ask("SELECT dimensions FROM usage_booked") == [('{"region":"Malmö"}',)]


def test_what_no_meter_wanted_comes_in_once_a_meter_wants_it(desk: Desk) -> None:
    """Foreign lines, and rows of a numbered batch that was sent again meanwhile: each row counts once."""
    time_us = time.time_ns() // 1000
    rows = encode_readings([Reading(Series(type="cpu", subject="Zoë Åström", scale=0), time_us, time_us + 1, value)
                            for value in (5, 7)])  # fmt: skip
    lines = b"\n".join(body(f"t-{n}", type="traffic", data={"bytes": 10}) for n in range(3))
    desk.own.send((rows, numbered(1, ARROW)), (lines, (("content-type", LINES.encode()),)))
    desk.hours()
    assert desk.reasons() == {"unknown_meter": 5}
    desk.own.define(MORE)
    apply_definitions(desk.own.project)
    desk.own.send((rows, numbered(1, ARROW)))
    desk.hours()
    for _ in range(2):
        done = desk.dead("retry", "--reason", "unknown_meter", "--all", "--yes", "--wait")
        assert (done["sent"], done["dead"]) == (5, 0)
        desk.hours()
        assert desk.own.usage() == {"host.cpu": 12, "net.bytes": 30}


def test_what_became_of_every_event_of_a_whole_record_is_told(desk: Desk) -> None:
    """Of foreign ones that were sent to another partition than their home, and of numbered ones, some of them wrong."""
    own, batch = desk.own, b"[" + b",".join(body(f"e-{n}") for n in range(3)) + b"]"
    rows = b"[" + b",".join([body("r-0"), body("r-1"), body("r-2", data={}), body("r-3", type="ping")]) + b"]"
    own.sections["usage"] = {"ignore": "[ping]"}
    assert apply_definitions(own.project)
    strayed = 1 - partition_of(home_key("Zoë Åström", "nova/berlin-1"), 2)
    own.send((batch, (("content-type", ACME.encode()),)), partition=strayed)
    own.send((rows, numbered(1, ACME)), partition=partition_of(b"host-01", 2))
    assert (desk.hours(), desk.reasons()) == (0, {"unknown_format": 2})
    retry = ("retry", "--all", "--reason", "unknown_format", "--set", f"content-type={BATCH}", "--yes", "--wait")
    told = desk.dead(*retry, code=3)
    assert (told["aggregated"], told["duplicate"], told["dead"], told["ignored"], desk.hours()) == (5, 0, 1, 1, 5)
    told = desk.dead(*retry)
    assert (told["aggregated"], told["duplicate"], told["dead"], told["ignored"], desk.hours()) == (0, 7, 0, 0, 5)


def test_what_is_still_wrong_is_a_dead_letter_again_and_the_old_one_is_done_with(desk: Desk) -> None:
    desk.own.send((body("e-1", data={"hours": "lots"}), ()))
    desk.hours()
    done = desk.dead("retry", "--yes", "--wait", code=3)
    assert (done["sent"], done["dead"]) == (1, 1)
    assert desk.reasons() == {"not_a_number": 1} and desk.reasons("--all") == {"not_a_number": 2}


def test_discarded_letters_are_out_of_the_way_and_not_gone(desk: Desk) -> None:
    desk.own.send((body("e-1", source="nova/test", time=OLD), ()), (body("e-2", time=OLD), ()), (b"{", ()))
    desk.hours()
    assert desk.dead("discard", "--source", "nova/test")["chosen"] == 1 and len(desk.reasons()) == 2
    assert desk.dead("discard", "--source", "nova/test", "--yes")["discarded"] == 1
    assert desk.dead("discard", "--source", "nova/test", "--yes")["discarded"] == 0
    assert desk.reasons() == {"too_old": 1, "malformed": 1}
    assert desk.reasons("--all") == {"too_old": 2, "malformed": 1}
    assert desk.dead("retry", "--source", "nova/test", "--all", "--yes", "--wait")["aggregated"] == 1


def test_a_discard_of_more_than_are_taken_at_once_tells_only_of_those(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is for the next one."""
    desk.own.send(*((body(f"old-{number}", time=OLD), ()) for number in range(5)))
    assert desk.hours() == 0 and desk.reasons() == {"too_old": 5}
    monkeypatch.setattr("tallyman.dead_letters.MOST_AT_ONCE", 2)
    for left in (3, 1):
        told = desk.dead("discard", "--reason", "too_old", "--yes")
        assert (told["chosen"], told["discarded"], told["groups"][0]["letters"]) == (2, 2, 2)
        assert desk.reasons() == {"too_old": left}


def test_every_chunk_reconciles_after_all_that(desk: Desk) -> None:
    desk.own.send((body("e-1", time=OLD), ()), (body("e-2"), ()), (b'{"hours": "lots"}', binary("e-3")))
    desk.hours()
    desk.dead("retry", "--yes", "--wait", code=3)
    desk.dead("retry", "--all", "--yes", "--wait", code=3)
    desk.hours()
    assert all(row["received"] == sum(row[name] for name in ("aggregated", "duplicate", "dead", "ignored", "forwarded"))
               for row in desk.own.counts())  # fmt: skip
