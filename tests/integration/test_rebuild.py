"""`tallyman rebuild` on the real stack: past usage under new definitions, looked at, switched to, and taken back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from kafka import KafkaAdminClient, TopicPartition

from collectors.arrow import Reading, encode_readings
from pipeline import rebuild as room
from pipeline.close import apply_definitions, close_books, found_books, open_books, wait_until_sealed
from pipeline.runtime import forget
from pipeline.seal import Sealer
from tallyman.books import add_definitions, next_close, read_line, unwritten_closes
from tallyman.cli import run
from tallyman.clickhouse import connect, migrate
from tallyman.event import ARROW, LINES, Series, home_key
from tallyman.in_force import definitions_of
from tallyman.kafka import partition_of
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject, wait_for

pytestmark = pytest.mark.integration
HOURS = (
    "- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 3,"
    " dimensions: {region: region}}\n"
)
SERVERS = "- {meter: compute.servers, event_type: server, aggregation: unique_count, value: host}\n"
CPU = "- {meter: host.cpu, event_type: cpu, aggregation: max, value: value, scale: 9}\n"
BEFORE = f"meters:\n{HOURS}{SERVERS}{CPU}"
# Hours of one region only, without the region as a dimension; and a new meter over events that came long ago.
AFTER = (
    "meters:\n- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 6,"
    " where: {region: [Nürnberg]}}\n"
    f"{SERVERS}{CPU}"
    "- {meter: compute.peak, event_type: server, aggregation: max, value: hours, scale: 3}\n"
)
NOW = datetime.now(UTC).replace(microsecond=0)
START = (NOW - timedelta(hours=2)).replace(minute=0, second=0)
RANGE = ("--from", START.isoformat(), "--to", (START + timedelta(hours=4)).isoformat())
HOME = partition_of(home_key("Zoë Åström", "nova/berlin-1"), 2)


def body(name: str, hours: str = "0.25", region: str = "Nürnberg", **changed: Any) -> bytes:
    wire = {"specversion": "1.0", "id": name, "source": "nova/berlin-1", "type": "server", "subject": "Zoë Åström",
            "time": (NOW - timedelta(minutes=30)).isoformat(),
            "data": {"hours": hours, "region": region, "host": name[-1]}}  # fmt: skip
    return msgspec.json.encode(wire | changed)


def numbered(sequence: int) -> tuple[tuple[str, bytes], ...]:
    return (("content-type", ARROW.encode()), ("tallyman-collector", b"host-01"), ("tallyman-epoch", b"spool-7"),
            ("tallyman-sequence", str(sequence).encode()))  # fmt: skip


def readings(count: int) -> bytes:
    time_us = int((NOW - timedelta(minutes=30)).timestamp()) * 1_000_000
    cpu = Series(type="cpu", subject="Łukasz", scale=9)
    return encode_readings([Reading(cpu, time_us, time_us + 1, 10**9 + n) for n in range(count)])


@dataclass
class Operator:
    """Somebody who rebuilds at the command line."""

    own: OwnProject
    capsys: pytest.CaptureFixture[str]

    def type(self, *words: str, code: int = 0) -> str:
        """Run a command; return what it says to people, or prints if all went well."""
        self.capsys.readouterr()
        found = run(list(words))
        told = self.capsys.readouterr()
        assert found == code, told.err
        return told.out if code == 0 else told.err

    def rebuild(self, *words: str, meters: Sequence[str] = ("compute.hours",), code: int = 0) -> Any:
        """Rebuild; return the document of what it changes, or what it says when it is refused."""
        chosen = [word for meter in meters for word in ("--meter", meter)]
        told = self.type("rebuild", *chosen, *RANGE, *words, "--json", code=code)
        return json.loads(told) if code == 0 else told

    def usage(self, *words: str, meter: str = "compute.hours") -> Decimal | None:
        """Return the total of a meter; what the view says agrees where nothing else is asked."""
        found = json.loads(self.type("usage", "Zoë Åström", "--meter", meter, *RANGE, *words, "--json"))["rows"]
        value = Decimal(found[0]["value"]) if found else None
        if not words:
            rows = self.own.ask("SELECT sum(value), count() FROM usage_minute WHERE meter = %(m)s", m=meter)
            assert (rows[0][0] if rows[0][1] else None) == value
        return value

    def states(self) -> dict[int, str]:
        return {each["generation"]: each["state"] for each in json.loads(self.type("rebuild", "list", "--json"))}


Make = Callable[..., Operator]


@pytest.fixture
def make(
    kafka_broker: str,
    clickhouse_endpoint: ClickHouseEndpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Make]:
    def of(**settings: Any) -> Operator:
        own = OwnProject(tmp_path / "own", kafka_broker, clickhouse_endpoint, BEFORE, partitions=2, chunk_size=16)
        own.pipeline |= settings
        monkeypatch.chdir(own.folder)
        monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))
        found_books(own.project)
        return Operator(own, capsys)

    yield of
    forget()


def fill(own: OwnProject) -> None:
    """Every outcome that an event can have, in two bookings of which the first is sealed under the old definitions.

    Accepted: 30 events of 0.25 h in Nürnberg, 10 of 1 h in Malmö, 20 lines of 0.5 h: 27.5 h, 17.5 of them in Nürnberg.
    """
    own.send(*((body(f"e-{n}"), ()) for n in range(30)), partition=HOME)
    own.send(*((body(f"m-{n}", "1", "Malmö"), ()) for n in range(7)), partition=HOME)
    own.send(*((body(f"m-{n}", "1", "Malmö"), ()) for n in range(7, 10)), partition=1 - HOME)  # forwarded
    own.send((b"\n".join(body(f"line-{n}", "0.5") for n in range(20)), (("content-type", LINES.encode()),)),
             partition=HOME)  # fmt: skip
    own.send((body("e-3"), ()), (body("e-4", "99"), ()), (b"{", ()), (body("old", time="2020-02-29T12:00:00Z"), ()),
             (body("fine", "0.2500001"), ()), partition=HOME)  # fmt: skip
    host = partition_of(b"host-01", 2)
    own.send((readings(5), numbered(1)), (readings(6), numbered(2)), (readings(5), numbered(1)),
             (readings(4), numbered(2)), partition=host)  # fmt: skip


def put_in_force(own: OwnProject, meters: str = AFTER) -> None:
    own.define(meters)
    report = apply_definitions(own.project)
    assert report is not None
    wait_until_sealed(own.project, report.booking - 1, timeout_s=180)
    own.wait_until_booked()


def redefined(operator: Operator) -> Operator:
    """Let everything be booked, and then other definitions come into force; the pipeline stops behind it."""
    fill(operator.own)
    with operator.own.running():
        operator.own.wait_until_booked()
        put_in_force(operator.own)
    return operator


def test_a_rebuild_is_looked_at_put_in_force_and_taken_back(make: Make) -> None:
    """The filter and the scale of a meter change, and late usage comes under the new definitions; all to the digit."""
    operator = make()
    own = operator.own
    fill(own)
    with own.running():
        own.wait_until_booked()
        put_in_force(own)
        own.send((body("late", "0.125"), ()), (body("late-m", "8", "Malmö"), ()), (body("e-5"), ()), partition=HOME)
        own.wait_until_booked()
        assert operator.usage() == Decimal("27.625")
        found = operator.rebuild(meters=("compute.hours", "compute.servers"))
        assert (found["generation"], found["state"], found["definitions"]) == (1, "ready", 2)
        hours, servers = found["changes"]
        assert hours["before"] == {"series": 3, "minutes": 3, "events": 61, "total": "27.625"}
        assert hours["after"] == {"series": 1, "minutes": 1, "events": 51, "total": "17.625"}
        assert (hours["difference"], servers["difference"]) == ("-10", "0")
        assert (operator.usage(), operator.states()) == (Decimal("27.625"), {1: "ready"})
        assert operator.usage("--generation", "1") == Decimal("17.625")
        operator.type("rebuild", "use", "1")
        assert (operator.usage(), operator.states()) == (Decimal("17.625"), {1: "in force"})
        assert operator.usage("--generation", "0") == Decimal("27.625")
        own.send((body("later", "0.5"), ()), (body("e-6"), ()), partition=HOME)
        own.wait_until_booked()
        close_books(own.project)
        own.wait_until_booked()
        assert operator.usage() == Decimal("18.125")
        operator.type("rebuild", "undo", "1")
        assert (operator.usage(), operator.states()) == (Decimal("28.125"), {1: "ready"})
    assert own.ask("SHOW TABLES LIKE 'recount%%'") == []


def test_a_new_meter_counts_what_came_before_it_was_thought_of(make: Make) -> None:
    operator = redefined(make(archive="true"))
    for source in ("archive", "log"):
        found = operator.rebuild("--source", source, "--yes", meters=("compute.peak", "host.cpu"))
        peak, cpu = found["changes"]
        assert (peak["after"]["total"], peak["after"]["events"]) == ("1", 60)
        assert (cpu["before"]["total"], cpu["difference"]) == ("1.000000005", "0")
    assert operator.usage(meter="compute.peak") == 1
    assert operator.states() == {1: "in force", 2: "in force"}


@pytest.mark.long
def test_of_two_operators_at_once_one_is_refused(make: Make) -> None:
    operator = redefined(make())
    operator.rebuild()
    operator.rebuild(meters=("compute.servers",))
    operator.type("rebuild", "use", "2")
    told = operator.type("rebuild", "use", "1", code=1)
    assert "begun (nothing but what was booked), but now that is generation 2: somebody switched meanwhile" in told
    assert (operator.usage(), operator.states()) == (Decimal("27.5"), {1: "ready", 2: "in force"})
    assert "is in force already" in operator.type("rebuild", "use", "2", code=1)
    operator.rebuild("--yes")
    assert "that is 3; it was compared" in operator.type("rebuild", "undo", "2", code=1)
    assert operator.usage() == Decimal("17.5")


@pytest.mark.long
def test_a_rebuild_that_is_killed_leaves_nothing_visible_and_the_next_one_is_right(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = redefined(make())
    own = operator.own

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "as_listed", killed)  # its rows are written, and nothing says so yet
        operator.rebuild("--yes", code=130)
    assert own.ask("SELECT count() > 0 FROM usage_rebuilt") == [(1,)]
    assert (operator.usage(), operator.states()) == (Decimal("27.5"), {1: "unfinished"})
    assert "generation 1 is not complete" in operator.type("rebuild", "use", "1", code=1)
    assert "expected one that is complete, got 1" in operator.type(
        "usage", "--meter", "compute.hours", "--generation", "1", code=2)  # fmt: skip
    assert operator.rebuild("--yes")["generation"] == 2
    assert (operator.usage(), operator.states()) == (Decimal("17.5"), {1: "unfinished", 2: "in force"})


def rebuild_killed_behind(own: OwnProject, module: str, function: str) -> None:
    """Rebuild in a process of its own that is killed with -9 as soon as a function has done its work."""
    name = f"{module}.{function}"
    die = f"import os, {module}; f = {name}; {name} = lambda *words: (f(*words), os.kill(os.getpid(), 9))"
    words = ["rebuild", "--meter", "compute.hours", *RANGE, "--yes"]
    script = f"{die}; from tallyman.cli import main; import sys; sys.argv[1:] = {words!r}; main()"
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, capture_output=True, cwd=own.folder, timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()[-2000:]


def test_a_rebuild_killed_with_9_counts_not_at_all_or_when_the_list_is_told_again(make: Make) -> None:
    operator = redefined(make())
    own = operator.own
    rebuild_killed_behind(own, "pipeline.rebuild", "as_listed")  # its rows are there, and nothing says so
    rebuild_killed_behind(own, "tallyman.generations", "mark_ready")  # and now both stores do
    assert (operator.usage(), operator.states()) == (Decimal("27.5"), {1: "unfinished", 2: "ready"})
    rebuild_killed_behind(own, "tallyman.generations", "put_in_force")  # it is in force, and readers were not told
    assert operator.usage() == Decimal("27.5")
    assert "is in force already" in operator.type("rebuild", "use", "3", code=1)  # run again, it tells them
    assert operator.usage() == Decimal("17.5")
    assert operator.states() == {1: "unfinished", 2: "ready", 3: "in force"}
    assert operator.rebuild("--yes")["generation"] == 4
    assert operator.usage() == Decimal("17.5")


def test_readers_see_the_old_or_the_new_and_never_a_mix(make: Make) -> None:
    operator = redefined(make())
    own = operator.own
    operator.rebuild()
    seen, over = set[Decimal](), threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.update(row[0] for row in own.ask("SELECT sum(value) FROM usage_minute WHERE meter = 'compute.hours'"))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(10):
        operator.type("rebuild", "use", "1")
        operator.type("rebuild", "undo", "1")
    over.set()
    for reader in readers:
        reader.join(120)
    assert seen == {Decimal("27.5"), Decimal("17.5")}


def test_a_rebuild_is_refused_with_what_to_do_first(make: Make) -> None:
    operator = make()
    own = operator.own
    own.send((body("e-1"), ()), partition=HOME)
    client = connect(own.endpoint)
    migrate(client)
    client.disconnect()
    assert "nothing is sealed yet" in operator.rebuild(code=1)  # the sealer is not running yet
    with own.running():
        own.wait_until_booked()
        own.define(AFTER)
        told = operator.rebuild(code=1)
        assert "compute.hours: the project says something else of it than definitions 1" in told
        put_in_force(own)
        assert 'got "compute.huors"; did you mean "compute.hours"?' in operator.rebuild(
            meters=("compute.huors",), code=1)  # fmt: skip
        told = operator.type("rebuild", "--meter", "compute.hours", "--from", "2026-10-01T00:10", "--to", "now", code=1)
        assert "--from: expected a quarter of an hour" in told
        assert "expected --meter, --from and --to" in operator.type("rebuild", "--meter", "compute.hours", code=2)
    own.define(BEFORE)
    apply_definitions(own.project)
    assert "not yet behind the close that puts definitions 3 in force" in operator.rebuild(code=1)
    admin = KafkaAdminClient(bootstrap_servers=own.kafka)
    admin.delete_records({TopicPartition(str(own.settings["topic"]), HOME): 1})
    admin.close()
    own.define(AFTER)
    with own.running():
        put_in_force(own)
    told = operator.rebuild(code=1)
    assert "but the log begins at offset 1. If all is in the archive still: --source archive" in told
    assert operator.states() == {}


def test_usage_that_older_definitions_booked_behind_the_seal_is_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new meter has none of it yet, and what was ignored has no row at all: both would never count."""
    operator = make()
    own = operator.own
    own.send((body("e-1"), ()), partition=HOME)
    with own.running():
        own.wait_until_booked()
        report = close_books(own.project)
        wait_until_sealed(own.project, report.booking - 1, timeout_s=180)
        with monkeypatch.context() as patch:
            patch.setattr(Sealer, "seal_all", lambda self: [])  # as beside a replica that is away
            own.send((body("e-2"), ()), partition=HOME)
            own.define(AFTER)
            assert apply_definitions(own.project) is not None
            own.wait_until_booked()
            told = operator.rebuild(meters=("compute.peak",), code=1)
            assert f"booking {report.booking} is not sealed yet" in told and "Wait for the seal" in told
        wait_until_sealed(own.project, report.booking, timeout_s=180)
        assert operator.rebuild(meters=("compute.peak",))["changes"][0]["after"]["events"] == 2
    own.ask("INSERT INTO usage_hot SELECT * REPLACE (booking + 5 AS booking, chunk + 9 AS chunk) FROM usage_hot")
    told = operator.rebuild(meters=("compute.peak",), code=1)
    assert "is still hot and holds usage by definitions 1" in told and "First: tallyman close" in told


def test_a_close_that_is_written_a_day_late_opens_no_booking_and_another_one_does(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It puts its definitions in force in the middle of a booking: what older ones ignored there would never count."""
    operator = make()
    own = operator.own
    own.sections["usage"] = {"ignore": "[cpu]"}
    own.define(f"meters:\n{HOURS}{SERVERS}")
    host = partition_of(b"host-01", 2)
    with own.running():
        apply_definitions(own.project)
        own.send((readings(5), numbered(1)), partition=host)
        own.wait_until_booked()
        report = close_books(own.project)
        wait_until_sealed(own.project, report.booking - 1, timeout_s=180)
        own.send((readings(7), numbered(2)), partition=host)
        own.wait_until_booked()
    engine = open_books(own.project)
    del own.sections["usage"]
    own.define(f"meters:\n{HOURS}{SERVERS}{CPU}")
    add_definitions(engine, definitions_of(own.project))
    here = read_line(engine, str(own.settings["topic"]))[-1].topic_id
    late = next_close(engine, datetime.now(UTC), here).booking  # by an apply that was killed behind it
    with engine.begin() as connection:  # and the day has turned since
        for table in ("closes", "close_topics"):
            connection.execute(sa.text(f"UPDATE {table} SET booking = booking - 1000 WHERE booking = {late}"))
    with monkeypatch.context() as patch, own.running():
        patch.setattr(Sealer, "seal_all", lambda self: [])
        wait_for(lambda: unwritten_closes(engine, here) == [], "the close to be written")
        own.wait_until_booked()
        told = operator.rebuild(meters=("host.cpu",), code=1)
        assert "is not sealed yet, and what came before booking" in told
    with own.running():
        reached = own.ask("SELECT max(reached_booking) FROM progress")[0][0]
        wait_until_sealed(own.project, reached - 1, timeout_s=180)
        assert operator.rebuild(meters=("host.cpu",))["changes"][0]["after"]["events"] == 12


def test_what_was_accepted_and_can_no_longer_be_counted_stops_the_rebuild(make: Make) -> None:
    operator = make()
    own = operator.own
    own.send((body("e-1", "0.125"), ()), partition=HOME)
    with own.running():
        own.wait_until_booked()
        put_in_force(own, BEFORE.replace("scale: 3", "scale: 1"))
    told = operator.rebuild(code=1)
    assert "it was accepted, but definitions 2 cannot count it: too_precise" in told
    assert operator.states() == {1: "unfinished"}
