"""`tallyman audit` on the real stack: the books equal the log, and whatever is not so is found and named."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from clickhouse_driver import Client
from kafka import KafkaAdminClient, TopicPartition

from collectors.arrow import Reading, encode_readings
from pipeline import recount
from pipeline.booked import read_chunks
from pipeline.close import apply_definitions, close_books, found_books, wait_until_sealed
from pipeline.hot import HotCopy
from pipeline.rollup import roll_up_missing
from pipeline.runtime import forget
from pipeline.worker import prepare
from tallyman.blocks import BLOCKS_S
from tallyman.books import Topic
from tallyman.cli import run
from tallyman.clickhouse import SETTINGS, connect, migrate
from tallyman.errors import ConfigError
from tallyman.event import ARROW, LINES, Series, home_key
from tallyman.kafka import partition_of
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject
from tests.usage_rows import DAY, TOPIC

pytestmark = pytest.mark.integration
METERS = """meters:
- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 9, dimensions: {region: region}}
- {meter: compute.servers, event_type: server, aggregation: unique_count, value: host}
- {meter: compute.last, event_type: server, aggregation: latest, value: hours, scale: 9}
- {meter: host.cpu, event_type: cpu, aggregation: max, value: value, scale: 9}
"""
MORE = METERS + "- {meter: net.bytes, event_type: traffic, aggregation: sum, value: bytes, scale: 0}\n"
NOW = datetime.now(UTC).replace(microsecond=0)
HOME = partition_of(home_key("Zoë Åström", "nova/berlin-1"), 2)


def body(name: str, hours: str = "0.25", **changed: Any) -> bytes:
    wire = {"specversion": "1.0", "id": name, "source": "nova/berlin-1", "type": "server", "subject": "Zoë Åström",
            "time": NOW.isoformat(), "data": {"hours": hours, "region": "Nürnberg", "host": name[-1]}}  # fmt: skip
    return msgspec.json.encode(wire | changed)


def numbered(sequence: int) -> tuple[tuple[str, bytes], ...]:
    return (("content-type", ARROW.encode()), ("tallyman-collector", b"host-01"), ("tallyman-epoch", b"spool-7"),
            ("tallyman-sequence", str(sequence).encode()))  # fmt: skip


def readings(count: int) -> bytes:
    time_us = int(NOW.timestamp()) * 1_000_000
    cpu = Series(type="cpu", subject="Łukasz", scale=9)
    return encode_readings([Reading(cpu, time_us, time_us + 1, 10**9 + n) for n in range(count)])


@dataclass
class Auditor:
    """Somebody who audits a project at the command line."""

    own: OwnProject
    capsys: pytest.CaptureFixture[str]

    def audit(self, *words: str, code: int) -> dict[str, Any]:
        self.capsys.readouterr()
        assert run(["audit", *words, "--json"]) == code
        document: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return document

    def tables(self) -> list[Any]:
        return self.own.ask("SHOW TABLES LIKE 'recount%%'")


@pytest.fixture(scope="module")
def filled(
    kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path_factory: pytest.TempPathFactory
) -> OwnProject:
    own = OwnProject(tmp_path_factory.mktemp("audit") / "own", kafka_broker, clickhouse_endpoint, METERS,
                     partitions=2, chunk_size=16)  # fmt: skip
    own.pipeline["archive"] = "true"
    found_books(own.project)
    fill(own)
    forget()
    return own


@pytest.fixture
def auditor(
    filled: OwnProject,
    clickhouse_endpoint: ClickHouseEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Auditor]:
    """Each test has a copy of the books, to do with them what it likes."""
    monkeypatch.chdir(filled.folder)
    monkeypatch.setenv("TALLYMAN_DATA", str(filled.folder / "data"))
    original = filled.endpoint
    filled.use_database(clickhouse_endpoint, f"audit_{uuid.uuid4().hex[:10]}")
    client = connect(filled.endpoint)
    migrate(client)
    for table in ("usage_hot", "usage", "progress", "ids", "dead_letters", "conflicts", "events", "seals"):
        client.execute(f"INSERT INTO {table} SELECT * FROM {original.database}.{table}")
    client.disconnect()
    yield Auditor(filled, capsys)
    forget()
    filled.endpoint = original


def fill(own: OwnProject) -> None:
    """Two partitions, two bookings, the first one sealed, two definitions, every outcome that an event can have."""
    own.send(*((body(f"e-{n}"), ()) for n in range(30)), partition=HOME)
    own.send(*((body(f"stray-{n}"), ()) for n in range(3)), partition=1 - HOME)
    own.send((b"\n".join(body(f"line-{n}", "0.5") for n in range(40)), (("content-type", LINES.encode()),)),
             partition=HOME)  # fmt: skip
    own.send((body("e-3"), ()), (body("e-4", "99"), ()), (b"{", ()), (body("old", time="2020-02-29T12:00:00Z"), ()),
             partition=HOME)  # fmt: skip
    host = partition_of(b"host-01", 2)
    own.send((readings(5), numbered(1)), (readings(6), numbered(2)), (readings(5), numbered(1)), partition=host)
    with own.running():
        own.wait_until_booked()
        own.define(MORE)
        report = apply_definitions(own.project)
        assert report is not None
        wait_until_sealed(own.project, report.booking - 1, timeout_s=180)
        own.send(*((body(f"later-{n}"), ()) for n in range(20)), partition=HOME)
        own.send((body("t", type="traffic", data={"bytes": 10**20}), ()), partition=HOME)
        own.wait_until_booked()


def test_the_books_equal_the_log_and_the_archive_and_every_event_has_one_outcome(auditor: Auditor) -> None:
    """Sealed and hot rows, JSON and Arrow, copies, strays, dead letters, an open chunk, and old and new definitions."""
    for source in ("log", "archive"):
        found = auditor.audit("usage", "--source", source, code=0)
        assert found["equal"] and found["complete"] and found["chunks"] == found["differences"] == []
        meters = {each["meter"]: (each["recounted_events"], each["different"]) for each in found["meters"]}
        assert meters == {"compute.hours": (93, 0), "compute.servers": (93, 0), "compute.last": (93, 0),
                          "host.cpu": (11, 0), "net.bytes": (1, 0)}  # fmt: skip
    counts = auditor.audit("counts", code=0)
    expected = {"received": 117, "aggregated": 105, "duplicate": 7, "dead": 2, "forwarded": 3, "conflict": 1}
    assert {name: sum(chunk[name] for chunk in counts["chunks"]) for name in expected} == expected
    assert auditor.tables() == []


def test_a_copy_with_other_content_is_listed_with_the_positions_of_both(auditor: Auditor) -> None:
    told = auditor.audit("conflicts", code=0)
    (conflict,) = told["conflicts"]
    offsets = [int(conflict[name].split(":")[1]) for name in ("first", "position")]
    records = "SELECT body FROM events FINAL WHERE partition = %(home)s AND offset IN %(offsets)s ORDER BY offset"
    first, later = (msgspec.json.decode(row[0]) for row in auditor.own.ask(records, home=HOME, offsets=offsets))
    assert told["count"] == 1 and offsets == sorted(offsets) and conflict["position"].startswith(f"{HOME}:")
    assert [conflict[name] for name in ("subject", "source", "id")] == [first["subject"], first["source"], first["id"]]
    assert first["id"] == later["id"] and first["data"] != later["data"]
    assert msgspec.json.decode(conflict["body"]) == later
    assert auditor.audit("conflicts", "--until", "2026-01-01", code=0) == {"count": 0, "conflicts": []}
    assert run(["audit", "conflicts", "--since", "1h"]) == 0
    shown = auditor.capsys.readouterr()
    assert conflict["first"] in shown.out and "1 conflict: the first copy counts" in shown.err


def test_a_row_that_was_changed_is_found_with_the_offsets_it_comes_from(auditor: Auditor) -> None:
    """In a sealed booking, so that the hot rows are not asked any more."""
    own = auditor.own
    (booking,) = {row[0] for row in own.ask("SELECT DISTINCT booking FROM usage WHERE meter = 'host.cpu'")}
    own.ask("ALTER TABLE usage UPDATE max = max + 1 WHERE meter = 'host.cpu' SETTINGS mutations_sync = 1")
    found = auditor.audit("usage", code=1)
    assert [(each["meter"], each["booking"], each["differs"], each["booked"]["value"], each["recounted"]["value"])
            for each in found["differences"]] == [
                ("host.cpu", booking, ["max"], "1.000000006", "1.000000005")]  # fmt: skip
    (place,) = found["first_difference_from"]
    host = partition_of(b"host-01", 2)
    numbers = own.ask("SELECT offset FROM events FINAL WHERE partition = %(p)s"
                      " AND has(mapKeys(headers), 'tallyman-sequence') ORDER BY offset LIMIT 2", p=host)  # fmt: skip
    assert (place["partition"], place["offsets"]) == (host, [row[0] for row in numbers])
    assert auditor.audit("usage", "--meter", "compute.hours", code=0)["equal"]
    assert run(["audit", "usage"]) == 1
    shown = auditor.capsys.readouterr().out
    assert "max" not in shown and "1.000000006" in shown and f"partition {host}, offset {numbers[0][0]}" in shown
    assert auditor.tables() == []


def test_blocks_that_are_gone_and_seals_that_say_something_else_are_found(auditor: Auditor) -> None:
    """Long ranges are read from the ones, by the others bookings are chosen: no row of usage shows it."""
    own = auditor.own
    client = connect(own.endpoint)
    (booking,) = roll_up_missing(client)
    client.disconnect()
    assert auditor.audit("usage", "--source", "log", code=0)["blocks"] == []
    own.ask("TRUNCATE TABLE usage_rolled_up")  # as a damaged part that was detached
    own.ask("ALTER TABLE seals UPDATE last_minute = '2020-02-29 12:00:00' WHERE rows > 0 SETTINGS mutations_sync = 1")
    found = auditor.audit("usage", "--source", "log", "--meter", "compute.hours", code=1)
    assert not found["equal"] and found["complete"] and found["differences"] == []
    assert [(each["booking"], each["seconds"], each["events"], each["in_blocks"]) for each in found["blocks"]] == [
        (booking, seconds, 73, 0) for seconds in BLOCKS_S
    ]
    (seal,) = found["seals"]
    assert seal["booking"] == booking and seal["sealed"]["last_minute"].startswith("2020-02-29T12:00")
    assert run(["audit", "usage", "--source", "log"]) == 1
    shown = auditor.capsys.readouterr()
    assert "29 12:00Z" in shown.out and "they are made anew" in shown.err and "from a backup" in shown.err


def test_rows_that_are_missing_or_too_many_are_found(auditor: Auditor) -> None:
    own = auditor.own
    own.ask("ALTER TABLE usage_hot DELETE WHERE meter = 'net.bytes' SETTINGS mutations_sync = 1")
    own.ask("INSERT INTO usage SELECT * REPLACE ('invented' AS subject) FROM usage WHERE meter = 'compute.last'")
    found = auditor.audit("usage", code=1)
    sides = {each["meter"]: (each["booked"] is None, each["recounted"] is None) for each in found["differences"]}
    assert sides == {"net.bytes": (True, False), "compute.last": (False, True)}
    assert all(place["offsets"] == [] for place in found["first_difference_from"])


def test_identities_and_counts_that_were_tampered_with_are_found_chunk_by_chunk(auditor: Auditor) -> None:
    """An identity that is lost would let a copy count again one day, though no row of usage shows it yet."""
    own = auditor.own
    own.ask("ALTER TABLE ids DELETE WHERE partition = %(p)s AND offset = 10 SETTINGS mutations_sync = 1", p=HOME)
    own.ask("ALTER TABLE dead_letters DELETE WHERE reason = 'too_old' SETTINGS mutations_sync = 1")
    found = auditor.audit("usage", code=1)
    (identities,) = found["chunks"]
    assert (identities["what"], identities["span"]["partition"], identities["span"]["first"]) == (
        "accepted identities", HOME, 0)  # fmt: skip
    counts = auditor.audit("counts", code=1)
    faults = [fault for chunk in counts["chunks"] for fault in chunk["faults"]]
    assert faults == ["dead 2, but there are 1 dead letters"]


def test_identities_that_a_ttl_has_taken_are_not_checked_and_all_else_is(auditor: Auditor) -> None:
    """The documentation allows it; a young chunk that lacks some is different all the same."""
    own = auditor.own
    for seconds, code in ((10**9, 1), (1, 3)):
        own.ask("ALTER TABLE ids MODIFY TTL toDateTime(intDiv(remembered_us, 1000000))"
                f" + toIntervalSecond({seconds}) SETTINGS materialize_ttl_after_modify = 0")  # fmt: skip
        own.ask("ALTER TABLE ids DELETE WHERE offset >= 16 SETTINGS mutations_sync = 1")
        found = auditor.audit("usage", "--source", "log", code=code)
        assert found["differences"] == [] and found["meters"][0]["recounted_events"] == 93
    assert found["chunks"] == [] and {each["reason"] for each in found["unchecked"]} == {
        "a TTL on ids has taken identities that were accepted in it; its usage was compared"
    }
    for begin in (prepare, apply_definitions):  # a meter that is put in force may be more patient than all before
        with pytest.raises(ConfigError, match="copies would count again"):
            begin(own.project)
    own.ask("ALTER TABLE usage_hot UPDATE sum = sum + 1 WHERE meter = 'net.bytes' SETTINGS mutations_sync = 1")
    assert len(auditor.audit("usage", "--source", "log", code=1)["differences"]) == 1


def test_an_archive_with_a_hole_proves_nothing_about_the_chunk_with_the_hole(auditor: Auditor) -> None:
    own = auditor.own
    own.ask("ALTER TABLE events DELETE WHERE partition = %(p)s AND offset = 3 SETTINGS mutations_sync = 1", p=HOME)
    found = auditor.audit("usage", code=3)
    (unchecked,) = found["unchecked"]
    assert (unchecked["span"]["first"], unchecked["reason"]) == (
        0, "the archive holds 15 of 16 events received in it") or "of" in unchecked["reason"]  # fmt: skip


def test_an_audit_beside_a_busy_pipeline_finds_no_difference(auditor: Auditor) -> None:
    """Rows and progress move while it looks: it compares what stood still."""
    own = auditor.own
    with own.running():
        own.wait_until_booked()
        for part in range(2):
            own.send(*((body(f"{part}-{n}"), ()) for n in range(40)), partition=HOME)
            assert auditor.audit("usage", "--source", "log", code=0)["equal"]
            if part == 0:
                close_books(own.project)
        own.wait_until_booked()
    assert auditor.audit("usage", code=0)["meters"][0]["recounted_events"] == 93 + 80


def test_an_audit_looks_once_however_fast_chunks_begin(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading progress and copying hot rows a chunk begins in some partition, as with many busy ones."""
    own, looks, copy_hot = auditor.own, list[int](), HotCopy.take

    def slow(self: HotCopy, *arguments: Any) -> Any:
        looks.append(1)
        own.send(*((body(f"look-{len(looks)}-{n}"), ()) for n in range(33)), partition=HOME)
        own.wait_until_booked()
        return copy_hot(self, *arguments)

    with own.running():
        own.wait_until_booked()
        monkeypatch.setattr(HotCopy, "take", slow)
        found = auditor.audit("usage", "--source", "log", code=0)
    assert looks == [1] and found["complete"] and found["checked"]["chunks"] > 3


def test_rows_ahead_of_progress_are_counted_again_and_those_that_it_cannot_reach_differ(
    auditor: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker was killed before the first progress of a chunk: its rows are there, and are what the log says."""
    own = auditor.own
    begun = "partition = %(p)s AND chunk = (SELECT max(chunk) FROM progress WHERE partition = %(p)s)"
    events = auditor.audit("usage", "--source", "log", code=0)["checked"]["events"]
    own.ask(f"ALTER TABLE progress DELETE WHERE {begun} SETTINGS mutations_sync = 1", p=HOME)
    found = auditor.audit("usage", "--source", "log", code=0)
    assert found["complete"] and found["checked"]["events"] == events
    assert found["meters"][0]["recounted_events"] == 93
    own.ask("ALTER TABLE usage_hot UPDATE sum = sum + 1 WHERE partition = %(p)s AND meter = 'net.bytes'"
            " SETTINGS mutations_sync = 1", p=HOME)  # fmt: skip
    (difference,) = auditor.audit("usage", "--source", "log", code=1)["differences"]
    assert difference["meter"] == "net.bytes"
    # The second chunk from here on has usage of several meters, however many ends of bookings stand before it.
    own.ask("ALTER TABLE progress DELETE WHERE partition = %(p)s AND chunk > 1 SETTINGS mutations_sync = 1", p=HOME)
    monkeypatch.setattr("pipeline.audit._PATIENCE_S", 0)
    assert len(auditor.audit("usage", "--source", "log", code=1)["differences"]) > 1


def test_a_control_store_that_was_lost_leaves_everything_unchecked(
    auditor: Auditor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What progress says of a chunk is the booking of its end; where the chunk began, nobody knows any more."""
    shutil.copy(auditor.own.folder / "data" / "stack.json", tmp_path)
    monkeypatch.setenv("TALLYMAN_DATA", str(tmp_path))
    auditor.own.ask("ALTER TABLE progress DELETE WHERE chunk < 2 SETTINGS mutations_sync = 1")
    found = auditor.audit("usage", "--source", "log", code=3)
    assert found["differences"] == [] and {each["reason"] for each in found["unchecked"]} == {
        "this control store does not know the topic"
    }


def test_an_audit_copies_more_bookings_that_are_not_sealed_than_an_insert_may_fill_unless_told(
    auditor: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that is set aside keeps every booking from being sealed; here two are too many, not a hundred."""
    auditor.own.ask("TRUNCATE TABLE seals")
    assert len(auditor.own.ask("SELECT DISTINCT booking FROM usage_hot")) == 2
    monkeypatch.setitem(cast("dict[str, Any]", SETTINGS), "max_partitions_per_insert_block", 1)
    assert auditor.audit("usage", "--source", "log", code=0)["differences"] == []


def test_a_range_of_one_meter_reads_no_more_than_it_needs(auditor: Auditor) -> None:
    found = auditor.audit("usage", "--from", "1h", "--to", NOW.strftime("%Y-%m-%dT%H:%M"), code=0)
    assert found["meters"] == []
    own = auditor.own
    (booking,) = {row[0] for row in own.ask("SELECT max(booking) FROM usage")}
    own.ask("INSERT INTO repairs (topic_id, partition, number, chunk_size, to_offset, from_booking, booking)"
            " SELECT topic_id, partition, 1, 16, max(reached_offset), %(booking)s, max(reached_booking) FROM progress"
            " WHERE partition = %(p)s GROUP BY topic_id, partition", p=1 - HOME, booking=booking)  # fmt: skip
    (unchecked,) = auditor.audit("usage", "--from", "1h", code=3)["unchecked"]
    assert unchecked["reason"].startswith("repaired")
    found = auditor.audit("usage", "--from", "2100-01-01", code=0)
    assert found["checked"] == {"events": 0, "chunks": 0} and found["unchecked"] == [], "long after a repair"


def test_what_the_log_no_longer_has_is_named_and_the_archive_still_proves_it(auditor: Auditor) -> None:
    own = auditor.own
    admin = KafkaAdminClient(bootstrap_servers=own.kafka)
    admin.delete_records({TopicPartition(str(own.settings["topic"]), HOME): 20})
    admin.close()
    found = auditor.audit("usage", "--source", "log", code=3)
    assert found["equal"] and not found["complete"]
    (unchecked,) = found["unchecked"]
    assert (unchecked["span"]["partition"], unchecked["span"]["first"], unchecked["span"]["last"]) == (HOME, 0, 31)
    assert unchecked["reason"] == "the log begins at offset 20"
    reach = {each["partition"]: each["offset"] for each in found["checked_from"]}
    assert reach == {HOME: 32, 1 - HOME: 0}
    assert auditor.audit("usage", "--source", "archive", code=0)["complete"]


def test_an_audit_of_a_range_reads_no_chunks_of_years_before(client: Client) -> None:
    """From the chunk on in which the range begins, with the place where it begins; a repair behind that counts."""
    topic = Topic(TOPIC, "usage", partitions=1, chunk_size=16, founded=True)
    client.execute(
        "INSERT INTO progress (topic_id, partition, chunk, covered, reached_offset, reached_clock_ms, reached_booking)"
        f" SELECT '{TOPIC}', 0, number, 16, 16 * number + 16, number, {DAY} + 1000 * intDiv(number, 100)"
        " FROM numbers(5000)"
    )
    every = list(read_chunks(client, topic))
    assert len(every) == 5000
    assert list(read_chunks(client, topic, DAY + 49_000)) == every[4899:]
    assert list(read_chunks(client, topic, DAY + 49_500)) == every[4999:]
    assert list(read_chunks(client, topic, DAY)) == every
    *_, last = begun = list(read_chunks(client, topic, DAY + 49_000, begun=True))
    assert begun[:-1] == every[4899:] and (last.chunk, last.start) == (5000, every[-1].reached)
    client.execute("INSERT INTO repairs (topic_id, partition, number, chunk_size, to_offset, booking) VALUES",
                   [(TOPIC, 0, 1, 16, 16 * 4950 + 8, DAY + 49_000)])  # fmt: skip
    for first in (DAY + 30_000, DAY + 49_000):
        assert list(read_chunks(client, topic, first))[1:] == every[4951:]


def test_rows_of_a_chunk_that_could_not_be_read_to_its_end_are_not_compared(client: Client) -> None:
    name = recount._make_tables(client)
    columns = "meter, booking, definitions, topic_id, partition, chunk, minute, covered, count, sum"
    try:
        client.execute(f"INSERT INTO {name} ({columns}) VALUES",
                       [("m", 1, 1, "t", 0, chunk, DAY, 9, count, 5) for chunk, count in ((0, 2), (1, 3))])  # fmt: skip
        assert recount.stored_totals(client, name) == {("m", 1, 1): (5, 10)}
        assert recount.stored_totals(client, name, [("t", 0, 1), ("t", 1, 0)]) == {("m", 1, 1): (2, 5)}
    finally:
        recount.drop_tables(client, name)


def test_an_audit_drops_what_killed_ones_left_and_not_what_a_long_one_works_with(
    client: Client, clickhouse_endpoint: ClickHouseEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recount, "_TOUCH_EVERY_S", 0.3)
    monkeypatch.setattr(recount, "_LEFT_AFTER_S", 2)
    mine = replace(clickhouse_endpoint, database=str(client.connection.database))
    killed = recount._make_tables(client)
    with recount.tables_of_a_job(mine, client) as long:
        time.sleep(4)
        recount.drop_tables(client, "recount_of_another")
        left = {name for (name,) in client.execute("SHOW TABLES LIKE 'recount%'")}
        assert left == {long, f"{long}_found"}, killed
    assert client.execute("SHOW TABLES LIKE 'recount%'") == []
