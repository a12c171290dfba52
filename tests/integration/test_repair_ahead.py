"""What a flush wrote by position and no usage, of records that a repair skips or judges anew, never counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline import metrics as counted
from pipeline import worker
from pipeline import write as room
from pipeline.close import close_books, open_books, wait_until_sealed
from pipeline.growth import grow, plan_growth, read_states
from pipeline.outlet import write_close
from pipeline.repair import repair
from tallyman.books import next_close
from tallyman.cli import run
from tallyman.clickhouse import UNKNOWN_TABLE, refusal
from tallyman.event import ADMITTED
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import wait_for
from tests.integration.test_repair import METERS, SOURCES, ZOË, Damaged, event, five_booked_of_each

pytestmark = pytest.mark.integration
WHO = (ZOË, SOURCES[0], "early-0")


@pytest.fixture
def own(
    kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Damaged]:
    """Five events are booked of each partition, with the raw archive, and the pipeline is stopped."""
    own = Damaged(tmp_path / "p", kafka_broker, clickhouse_endpoint, METERS, partitions=2, chunk_size=64)
    own.pipeline |= {"partitions": "[0, 1]", "archive": "true"}
    monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))
    monkeypatch.chdir(own.folder)
    yield from five_booked_of_each(own)


def die_before(own: Damaged, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pipeline write one flush up to a table, and stop there."""

    def refuse(*_: Any) -> None:
        raise refusal(UNKNOWN_TABLE, table, "Table does not exist")

    own.pipeline["flush"] = "3s"  # so that one flush holds all
    with monkeypatch.context() as patch:
        patch.setattr(room.Tables, f"insert_{table}", refuse)
        assert worker.main(own.project, threading.Event(), None) == 1
    own.pipeline["flush"] = "50ms"


def die_before_progress_of(own: Damaged, booking: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pipeline write all of partition 0's flush in a booking but its progress, and stop there."""
    real = room.Tables.insert_progress

    def refuse(self: Any, chunks: Any) -> None:
        if any(chunk.here.booking == booking and chunk.partition == 0 for chunk in chunks):
            raise refusal(UNKNOWN_TABLE, "progress", "Table does not exist")
        real(self, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(room.Tables, "insert_progress", refuse)
        assert worker.main(own.project, threading.Event(), None) == 1


def versions(capsys: pytest.CaptureFixture[str]) -> list[int]:
    capsys.readouterr()
    assert run(["event", "history", *WHO, "--json"]) == 0
    return [each["version"] for each in json.loads(capsys.readouterr().out)["versions"]]


def positions(capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert run(["dead", "list", "--json"]) == 0
    return [each["position"] for each in json.loads(capsys.readouterr().out)["dead_letters"]]


@pytest.mark.parametrize(("again", "usage"), [
    (["void"], 9),
    pytest.param(["amend", "--set", "data.value=3"], 12, marks=pytest.mark.long),
])  # fmt: skip
def test_a_void_whose_record_a_repair_skipped_can_be_done_again(
    own: Damaged, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], again: list[str], usage: int
) -> None:
    """It was accepted and written down, its usage was not, and then retention ate it."""
    assert run(["event", "void", *WHO, "--reason", "test machine", "--yes"]) == 0
    own.send((event(0, "worse").replace(b'"value":1', b'"value":"lots"'), ()), partition=0)  # skipped with it
    letter = f"0:{own.end(0) - 1}:0"
    die_before(own, "usage", monkeypatch)
    assert own.ask("SELECT count() FROM corrections") == [(1,)]
    own.eat(0, own.end(0))
    repair(own.project, own.client, own.plan(), who="zoë", note="")
    with own.running():
        own.wait_for_end(0)
        assert own.usage() == {"host.cpu": 10}, "the void was skipped"
        assert versions(capsys) == [0]
        assert run(["audit", "counts"]) == 0, capsys.readouterr()
        assert run(["event", again[0], *WHO, *again[1:], "--reason", "again", "--yes", "--wait"]) == 0
        assert own.usage() == {"host.cpu": usage}
        assert versions(capsys) == [0, 1]
        assert positions(capsys) == [letter], "its bytes are all that is left of it"
        assert run(["dead", "retry", letter, "--set", "data.value=5", "--yes", "--wait"]) == 0
        assert own.usage() == {"host.cpu": usage + 5}
        assert run(["audit", "counts"]) == 0, capsys.readouterr()


def test_what_rows_hold_ahead_of_progress_is_counted_behind_a_repair(
    own: Damaged, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of a flush is there but its progress; a repair takes it as booked, its dead letters and copies, too."""
    assert run(["event", "void", *WHO, "--reason", "test machine", "--yes"]) == 0
    own.send((b"{", ()), (event(0, "early-1").replace(b'"value":1', b'"value":2'), ()), partition=0)
    die_before(own, "progress", monkeypatch)
    own.eat(0, own.end(0))
    assert repair(own.project, own.client, own.plan(), who="zoë", note="").skipped == 0
    with own.running():
        own.send_to(0, "new-0")
        own.wait_for_end(0)
    assert own.usage() == {"host.cpu": 10} and versions(capsys) == [0, 1]
    assert len(positions(capsys)) == 1
    assert run(["audit", "counts"]) == 0, capsys.readouterr()


def test_what_is_judged_anew_behind_a_repair_is_there_once(
    own: Damaged, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flush wrote dead letters and raw records, and not its usage; then a repair goes on there, in a new booking."""
    own.send_to(0, "new-0")
    own.send((b"{", ()), partition=0)
    letter = f"0:{own.end(0) - 1}:0"
    die_before(own, "usage", monkeypatch)
    own.spoil_progress(0, "reached_digest + 1 AS reached_digest")
    with own.running():
        own.wait_until_aside()
        assert repair(own.project, own.client, own.plan(), who="zoë", note="").skipped == 0
        own.wait_for_end(0)
        assert own.usage() == {"host.cpu": 11}
        own.send_to(0, "new-1")
        own.wait_for_end(0)
    capsys.readouterr()
    codes = [run(["audit", "counts"]), *(run(["audit", "usage", "--source", source]) for source in ("log", "archive"))]
    # 3: bookings before the repair are not proven
    assert codes == [0, 3, 3], capsys.readouterr()
    assert positions(capsys) == [letter]
    assert run(["dead", "retry", letter]) in (0, 3), "only the preview"
    assert "expected one dead letter" not in capsys.readouterr().err


def test_a_day_that_began_ahead_of_progress_is_known_to_hold_what_was_booked_before_a_repair(
    own: Damaged, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flush behind midnight died before its progress, and a repair took its rows as booked. An audit cannot prove
    that day, and a rebuild of it would lose them.
    """
    day = (datetime.now(UTC) + timedelta(days=1)).replace(hour=2, minute=0, second=0, microsecond=0)
    close = next_close(open_books(own.project), day, "")  # stands for midnight
    write_close((own.kafka,), str(own.settings["topic"]), 2, close.booking, close.definitions)

    def at_two(name: str) -> tuple[bytes, Any]:
        return msgspec.json.encode(msgspec.json.decode(event(0, name)) | {"time": day.isoformat()}), ((ADMITTED, b"1"),)

    own.send(at_two("new-0"), partition=0)
    die_before_progress_of(own, close.booking, monkeypatch)
    own.eat(0, own.end(0))
    assert repair(own.project, own.client, own.plan(), who="zoë", note="").from_booking == close.booking
    with own.running():
        own.send(at_two("new-1"), partition=0)
        own.wait_for_end(0)
        wait_until_sealed(own.project, close_books(own.project).booking - 1, timeout_s=180)
        own.wait_for_end(0)
        own.wait_for_end(1)
        assert own.usage() == {"host.cpu": 12}
        capsys.readouterr()
        for source in ("log", "archive"):
            assert run(["audit", "usage", "--source", source]) == 3, capsys.readouterr()
        assert run(["rebuild", "--meter", "host.cpu", "--from", f"{day:%Y-%m-%dT%H:%M}",
                    "--to", f"{day + timedelta(hours=2):%Y-%m-%dT%H:%M}", "--yes"]) == 1  # fmt: skip
        assert f"bookings up to {close.booking} hold what was booked before repair 1" in capsys.readouterr().err
        assert own.usage() == {"host.cpu": 12}


def test_a_partition_that_has_ended_has_nothing_to_repair(
    own: Damaged, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Retention ate what a partition held behind its end marker, while another one held the growth up."""
    own.pipeline["partitions"] = "[0]"
    with own.running():
        grow(own.project, plan_growth(own.project, 4))
        wait_for(lambda: [each.ended for each in read_states(own.project, own.client)] == [1, 0], "one to end")
    own.send_to(0, "late-0")
    own.eat(0, own.end(0))
    with own.running():
        wait_for(lambda: "partition_has_ended" in caplog.text, "partition 0 not to be read any more")
        assert counted.ready()[0] and own.completeness().quarantines == ()
    capsys.readouterr()
    assert run(["repair", "0", "--yes"]) == 0
    assert "nothing is wrong with it" in capsys.readouterr().err
    assert own.fences() == 0 and own.completeness().repairs == ()
