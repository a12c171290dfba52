"""Rows of booked usage for tests: what a pipeline would have written, by hand."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from pipeline.catalog import EXTREMES_COUNT, LATEST_COUNTS
from tallyman.clickhouse import connect, migrate
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import encode_dimensions
from tallyman.rebuilds import Switch

TOPIC = "Ecl5Q0nRQo2TbJGAGKdzDA"
DAY = 20_000_000  # a booking


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """One aggregate row; `value` is the sum, or the extreme, or the latest reading.

    `item` and `parameters` are as `tallyman.meter.item_of` and `parameters_of` write them.
    """

    minute: datetime
    value: Decimal | int = 1
    count: int = 1
    meter: str = "compute.vcpu_seconds"
    subject: str = "tenant-zoë"
    dimensions: dict[str, str | None] = field(default_factory=dict)
    aggregation: str = "sum"
    scale: int = 9
    booking: int = DAY
    definitions: int = 1
    partition: int = 0
    chunk: int = 0
    covered: int = 10
    latest_us: int = 0
    latest_by: bytes = b""
    sum: Decimal | int | None = None
    item: str = ""
    parameters: str = ""

    def columns(self, *, hot: bool) -> tuple[Any, ...]:
        scaled = _scaled(self.value, self.scale)
        total = scaled if self.sum is None else _scaled(self.sum, self.scale)
        place = (TOPIC, self.partition, self.chunk, 0, self.covered) if hot else (0,)
        return (
            self.meter,
            self.subject,
            encode_dimensions(self.dimensions),
            self.minute.astimezone(UTC),
            self.booking,
            self.definitions,
            *place,
            self.item,
            self.aggregation,
            self.scale,
            self.parameters,
            self.count,
            total,
            scaled if self.aggregation in EXTREMES_COUNT else 0,
            scaled if self.aggregation in EXTREMES_COUNT else 0,
            scaled if self.aggregation in LATEST_COUNTS else 0,
            self.latest_us,
            self.latest_by.ljust(16, b"\0"),
        )


def _scaled(value: Decimal | int, scale: int) -> int:
    with localcontext(prec=80):
        return int(Decimal(value).scaleb(scale))


_KEYS = "meter, subject, dimensions, minute, booking, definitions"
_FIGURES = "item, aggregation, scale, parameters, count, sum, min, max, latest, latest_us, latest_by"


# Databases with the schema that no test uses at the moment: to apply all migrations takes most of a second, to empty
# the tables that a test wrote to a hundredth of it.
_idle: dict[tuple[str, int], list[str]] = {}
_TABLES = "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() ORDER BY name"
_WRITTEN = (
    "SELECT DISTINCT table FROM system.parts WHERE active AND database = currentDatabase() AND rows > 0"
    " AND table != 'schema_migrations'"
)
_made: list[str] = []  # what the schema looks like when it was just applied


@contextmanager
def fresh_database(endpoint: ClickHouseEndpoint) -> Iterator[Client]:
    """Lend an empty database with the schema, to one test. One whose tables a test changed is not lent again."""
    idle = _idle.setdefault((endpoint.host, endpoint.port), [])
    client = _emptied(endpoint, idle.pop()) if idle else None
    if client is None:
        name = f"test_{uuid.uuid4().hex}"
        admin = connect(endpoint)
        admin.execute(f"CREATE DATABASE {name}")
        admin.disconnect()
        client = connect(replace(endpoint, database=name))
        migrate(client)
        _made[:] = [_shape(client)]
    try:
        yield client
    finally:
        idle.append(str(client.connection.database))
        client.disconnect()


def _emptied(endpoint: ClickHouseEndpoint, name: str) -> Client | None:
    """Return a connection to a database that was lent before, emptied; None if its tables are not the schema's."""
    client = connect(replace(endpoint, database=name))
    try:
        if [_shape(client)] == _made:
            for (table,) in client.execute(_WRITTEN):
                client.execute(f"TRUNCATE TABLE {table}")
            return client
    except driver_errors.Error:  # another server stands at this port now, or a test dropped the database
        pass
    client.disconnect()
    return None


def _shape(client: Client) -> str:
    """Return what makes every table and view of a connection's database, in one text."""
    (name,) = client.execute("SELECT currentDatabase()")[0]
    return "\n".join(made for (made,) in client.execute(_TABLES)).replace(name, "test")


def book(client: Client, *rows: Booked) -> None:
    """Write rows as hot usage."""
    sql = f"INSERT INTO usage_hot ({_KEYS}, topic_id, partition, chunk, generation, covered, {_FIGURES}) VALUES"
    client.execute(sql, [row.columns(hot=True) for row in rows])


def seal(client: Client, booking: int, *rows: Booked) -> None:
    """Write rows as sealed usage, and the seal."""
    if rows:
        sealed = [replace(row, booking=booking).columns(hot=False) for row in rows]
        client.execute(f"INSERT INTO usage ({_KEYS}, generation, {_FIGURES}) VALUES", sealed)
    minutes = [row.minute for row in rows] or [datetime.fromtimestamp(0, UTC)]
    client.execute(
        "INSERT INTO seals (booking, generation, rows, events, first_minute, last_minute, places) VALUES",
        [(booking, 0, len(rows), sum(row.count for row in rows), min(minutes), max(minutes), "[]")],
    )


def note_rebuild(client: Client, switch: Switch, *rows: Booked) -> None:
    """Write a rebuild that is complete; it is not in force yet."""
    figures = [list(replace(row, definitions=switch.definitions).columns(hot=False)) for row in rows]
    for row in figures:
        row[6] = switch.generation
    if figures:
        client.execute(f"INSERT INTO usage_rebuilt ({_KEYS}, generation, {_FIGURES}) VALUES", figures)
    client.execute(
        "INSERT INTO rebuilds (generation, definitions, meters, first_minute, end_minute, last_booking, rows) VALUES",
        [
            (
                switch.generation,
                switch.definitions,
                list(switch.meters),
                switch.start,
                switch.end,
                switch.last,
                len(rows),
            )
        ],
    )


def list_rebuilds(client: Client, switched: int, *generations: int) -> None:
    """Say which rebuilds are in force."""
    columns = "generation, definitions, meters, first_minute, end_minute, last_booking"
    rows = client.execute(f"SELECT {columns} FROM rebuilds FINAL")
    entries = [next(row for row in rows if row[0] == number) for number in generations]
    client.execute(
        "INSERT INTO switches (switched, generations, entries) VALUES", [(switched, list(generations), entries)]
    )


def progress(
    client: Client,
    partition: int,
    chunk: int,
    covered: int,
    clock: datetime,
    *,
    size: int = 16,
    topic: str = TOPIC,
    booking: int = DAY,
    counts: Sequence[int] = (0,) * 7,
) -> None:
    """Say how far a chunk is booked, and what became of its events."""
    clock_ms = round(clock.timestamp() * 1000)
    place: Sequence[Any] = (chunk * size + covered, clock_ms, booking, 1, 0)
    client.execute(
        "INSERT INTO progress (topic_id, partition, chunk, generation, covered, reached_offset, reached_clock_ms,"
        " reached_booking, reached_definitions, reached_digest, turned_offset, turned_clock_ms, turned_booking,"
        " turned_definitions, turned_digest, reached_counts, turned_counts) VALUES",
        [(topic, partition, chunk, 0, covered, *place, *place, list(counts), [0] * 7)],
    )
