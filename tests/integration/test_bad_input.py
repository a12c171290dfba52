"""Bad input through Kafka, the job and ClickHouse: a dead letter each, with its reason; nothing else disturbed (P4)."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from collectors.arrow import Reading, encode_readings
from pipeline.close import found_books
from tallyman.event import ARROW, LINES, Series
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import Headers, OwnProject

pytestmark = pytest.mark.integration
METERS = """meters:
- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 9, dimensions: {region: region}}
- {meter: host.cpu, event_type: cpu, aggregation: sum, value: value, scale: 9}
"""
BIG = 5 * 1024 * 1024
NOW = datetime.now(UTC).isoformat()


def event(name: str, **changed: Any) -> dict[str, Any]:
    wire = {"specversion": "1.0", "id": name, "source": "nova/berlin-1", "type": "server", "subject": "Zoë Åström",
            "time": NOW, "data": {"hours": "0.25", "region": "Nürnberg"}}  # fmt: skip
    return {key: value for key, value in (wire | changed).items() if value is not None}


def body(name: str, **changed: Any) -> bytes:
    return msgspec.json.encode(event(name, **changed))


def with_hours(name: str, literal: str) -> bytes:
    return body(name, data={"hours": "HERE"}).replace(b'"HERE"', literal.encode())


def batch_headers(sequence: int, content: str = ARROW) -> Headers:
    return (("content-type", content.encode()), ("tallyman-collector", b"host-01"), ("tallyman-epoch", b"spool-7"),
            ("tallyman-sequence", str(sequence).encode()))  # fmt: skip


def wrong_schema() -> bytes:
    batch = pa.record_batch({"series": [0], "value": [1.5]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def right_batch() -> bytes:
    time_us = time.time_ns() // 1000
    cpu = Series(type="cpu", subject="Zoë Åström", scale=9)
    return encode_readings([Reading(cpu, time_us, time_us + 1, 10**9)] * 3)


def lines_with_one_bad() -> bytes:
    lines = [body(f"line-{number}") for number in range(500)]
    lines[321] = lines[321][:-9]
    return b"\n".join(lines)


@dataclass(frozen=True)
class Bad:
    """A record, the reason of its dead letter, and which part of it is dead."""

    name: str
    reason: str
    value: bytes
    headers: Headers = ()
    index: int = 0
    dead: bytes | None = None  # the whole value unless said otherwise
    good: int = 0
    options: dict[str, Any] = field(default_factory=dict)


LINE_BATCH = lines_with_one_bad()
CASES = [
    Bad("truncated JSON", "malformed", body("cut")[:-20]),
    Bad("nothing", "malformed", b""),
    Bad("a word", "malformed", b"usage"),
    Bad("invalid UTF-8 in a name", "not_utf8", body("u").replace("Åström".encode(), b"\xc5str\xf6m")),
    Bad("invalid UTF-8 where no meter looks", "not_utf8", body("u2", note="?").replace(b'"?"', b'"\xff"')),
    Bad("missing id", "missing_field", body("", id=None)),
    Bad("empty subject", "missing_field", body("s", subject="")),
    Bad("missing value", "missing_field", body("v", data={"region": "Nürnberg"})),
    Bad("unknown meter", "unknown_meter", body("m", type="serverr")),
    Bad("text where a number belongs", "not_a_number", body("t", data={"hours": "a lot"})),
    Bad("true where a number belongs", "not_a_number", with_hours("true", "true")),
    Bad("an object where a dimension belongs", "wrong_type", body("o", data={"hours": 1, "region": {"name": "N"}})),
    Bad("NaN as JSON never has it", "malformed", with_hours("nan", "NaN")),
    Bad("NaN as text", "not_a_number", body("nan2", data={"hours": "NaN"})),
    Bad("10^40 as a number", "out_of_range", with_hours("e40", "1" + "0" * 40)),
    Bad("10^40 as an exponent", "out_of_range", with_hours("e40b", "1e40")),
    Bad("10^40 as text", "out_of_range", body("e40c", data={"hours": "1" + "0" * 40})),
    Bad("a number of 5000 digits", "out_of_range", with_hours("e5000", "9" * 5000)),
    Bad("65 arrays in each other", "too_deep", with_hours("deep", "[" * 63 + "]" * 63)),
    Bad("100000 arrays in each other", "too_deep", with_hours("deeper", "[" * 100_000)),
    Bad("more digits than the scale", "too_precise", with_hours("fine", "0.1234567891")),
    Bad("year 1970", "year_out_of_range", body("y1", time="1970-01-01T00:00:00Z")),
    Bad("year 9999", "year_out_of_range", body("y2", time="9999-12-31T23:59:59Z")),
    Bad("no zone", "bad_time", body("z", time="2026-10-31T12:00:00")),
    Bad("too old", "too_old", body("old", time="2020-02-29T12:00:00Z")),
    Bad("too far ahead", "too_far_ahead", body("ahead", time="2098-12-31T12:00:00Z")),
    Bad("5 MB", "too_large", body("big", note="x" * BIG), options={"compression_type": None}),
    Bad("5 MB compressed", "too_large", body("big2", note="x" * BIG), options={"compression_type": "lz4"}),
    Bad("5 MB of lines", "too_large", (body("l") + b"\n") * (BIG // 200), (("content-type", LINES.encode()),)),
    Bad("an unknown format", "unknown_format", b"<usage/>", (("content-type", b"application/xml"),)),
    Bad("Arrow without a number", "missing_field", right_batch(), (("content-type", ARROW.encode()),)),
    Bad("Arrow of another schema", "bad_schema", wrong_schema(), batch_headers(1)),
    Bad("Arrow cut off", "malformed", right_batch()[:-40], batch_headers(2)),
    Bad("not Arrow at all", "malformed", b"\xff\xff\xff\xff", batch_headers(3)),
    Bad("one bad line of 500", "malformed", LINE_BATCH, (("content-type", LINES.encode()),), 321,
        LINE_BATCH.split(b"\n")[321], 499),
]  # fmt: skip


@dataclass
class World:
    own: OwnProject
    offsets: dict[str, int]
    good: int


@pytest.fixture(scope="module")
def world(
    kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Every bad record with a good one before and behind it, booked once for all tests here."""
    own = OwnProject(tmp_path_factory.mktemp("bad") / "p", kafka_broker, clickhouse_endpoint, METERS)
    with own.running():
        found_books(own.project)
        offsets, good = {}, 1
        own.send((body("good-0"), ()))
        for number, bad in enumerate(CASES, 1):
            offsets[bad.name], _ = own.send((bad.value, bad.headers), (body(f"good-{number}"), ()), **bad.options)
            good += 1 + bad.good
        own.wait_until_booked()
    yield World(own, offsets, good)


@pytest.mark.parametrize("bad", CASES, ids=[bad.name for bad in CASES])
def test_each_way_to_be_wrong_is_one_dead_letter_with_its_reason_body_and_place(world: World, bad: Bad) -> None:
    rows = world.own.ask(
        "SELECT reason, event_index, lower(hex(MD5(body))), detail != '' FROM dead_letters FINAL"
        " WHERE offset = %(offset)s",
        offset=world.offsets[bad.name],
    )
    dead = bad.value if bad.dead is None else bad.dead
    assert rows == [(bad.reason, bad.index, hashlib.md5(dead, usedforsecurity=False).hexdigest(), 1)]


def test_nothing_else_is_dead_and_every_good_event_counts(world: World) -> None:
    assert world.own.ask("SELECT count() FROM dead_letters FINAL") == [(len(CASES),)]
    assert world.own.usage() == {"compute.hours": world.good * 250_000_000}


def test_the_counts_of_every_chunk_reconcile(world: World) -> None:
    counts = world.own.counts()
    assert len(counts) > 5 and all(
        row["received"] == sum(row[name] for name in ("aggregated", "duplicate", "dead", "ignored", "forwarded"))
        for row in counts
    )
    assert sum(row["dead"] for row in counts) == len(CASES)
    assert sum(row["aggregated"] for row in counts) == world.good


def test_a_replay_changes_nothing(world: World, clickhouse_endpoint: ClickHouseEndpoint) -> None:
    """The same log into an empty database gives the same rows; a restart on the old one adds none."""
    tables = {
        "dead_letters FINAL": "offset, event_index, reason, detail, appended_at, booking, sipHash64(body)",
        "usage_booked": "meter, subject, dimensions, minute, booking, count, sum",
    }

    def look() -> dict[str, list[Any]]:
        return {name: world.own.ask(f"SELECT {columns} FROM {name} ORDER BY ALL") for name, columns in tables.items()}

    before, counts = look(), world.own.counts()
    with world.own.running():
        world.own.wait_until_booked()
    assert look() == before
    first = world.own.endpoint
    try:
        world.own.use_database(clickhouse_endpoint, f"replay_{uuid.uuid4().hex[:8]}")
        with world.own.running():
            world.own.wait_until_booked()
        assert look() == before and world.own.counts() == counts
    finally:
        world.own.endpoint = first


def test_the_bad_are_found_by_a_person_with_the_names_they_still_have(world: World) -> None:
    rows = world.own.ask("SELECT type, source, subject FROM dead_letters FINAL WHERE offset = %(o)s",
                         o=world.offsets["text where a number belongs"])  # fmt: skip
    assert rows == [("server", "nova/berlin-1", "Zoë Åström")]
