"""Faults inside the database, provoked on the real engine: a flush is written again exactly, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from pipeline.archive import keep_archive_for
from pipeline.frontier import read_frontier
from pipeline.seal import Sealer
from pipeline.write import Flush, Tables, write
from tallyman.clickhouse import REFUSALS, connect, store_error
from tallyman.errors import StoreError, StoreRefusedError
from tallyman.local.clickhouse import DISK_RESERVE_BYTES
from tallyman.local.clickhouse_child import ClickHouse
from tallyman.local.folder import ClickHouseEndpoint
from tests.cutting import CuttingRelay
from tests.fetches import TOPIC_ID
from tests.unit.pipeline.events import SIZE
from tests.unit.pipeline.test_write import Wire, full_flush
from tests.usage_rows import fresh_database

pytestmark = pytest.mark.integration
BOOKED = ("ids", "dead_letters", "conflicts", "events", "usage_hot", "progress")
_ALL = "* EXCEPT (written_at)"


@dataclass
class Books:
    """An empty database of our schema, and a flush that has something for every table."""

    endpoint: ClickHouseEndpoint
    client: Client

    def tables(self, endpoint: ClickHouseEndpoint | None = None, **settings: Any) -> Tables:
        where = endpoint or self.endpoint
        return Tables(self._connected(where, False, settings), self._connected(where, True, settings))

    def _connected(self, where: ClickHouseEndpoint, numpy: bool, settings: dict[str, Any]) -> Client:
        client = connect(where, numpy=numpy, timeout_s=3)
        client.settings.update(settings)
        return client

    def contents(self) -> dict[str, list[Any]]:
        """Return every row, as readers see it, without when it was written."""
        return {name: self.client.execute(f"SELECT {_ALL} FROM {name} FINAL ORDER BY ALL") for name in BOOKED}

    def ask(self, *statements: str) -> None:
        for statement in statements:
            self.client.execute(statement)


@contextmanager
def fresh_books(endpoint: ClickHouseEndpoint) -> Iterator[Books]:
    with fresh_database(endpoint) as client:
        yield Books(replace(endpoint, database=client.connection.database), client)


@pytest.fixture
def books(clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[Books]:
    with fresh_books(clickhouse_endpoint) as books:
        yield books


@pytest.fixture(scope="module")
def undisturbed(clickhouse_endpoint: ClickHouseEndpoint) -> dict[str, list[Any]]:
    """What the flush leaves when nothing goes wrong."""
    with fresh_books(clickhouse_endpoint) as books:
        once(full_flush(), books.tables())
        found = books.contents()
    assert all(found.values())
    return found


def once(flush: Flush, tables: Tables) -> None:
    """Write a flush without another try."""
    for _ in flush.steps(tables, Wire()):
        pass


def refused(code: int, into: str) -> str:
    """Return the pattern of a sentence."""
    name, step = REFUSALS[code]
    return rf"^INSERT INTO {into}: ClickHouse refuses: [^\n]+ \(code {code}, {name}\); {re.escape(step)}$"


BROKEN_SCHEMAS = {
    "an ids table that was dropped": (60, "ids", "DROP TABLE ids"),
    "a table that was dropped": (60, "usage_hot", "DROP TABLE usage_hot"),
    "a progress table that was dropped": (60, "progress", "DROP TABLE progress"),
    "a table that was renamed": (60, "dead_letters", "RENAME TABLE dead_letters TO dead_letters_2"),
    "a column that was dropped": (16, "usage_hot", "ALTER TABLE usage_hot DROP COLUMN sum"),
    "a column that was renamed": (16, "dead_letters", "ALTER TABLE dead_letters RENAME COLUMN detail TO details"),
    "a number that became too small": (53, "usage_hot", "ALTER TABLE usage_hot MODIFY COLUMN sum Int8"),
    "a text that became a number": (53, "dead_letters", "ALTER TABLE dead_letters MODIFY COLUMN detail UInt64"),
    "a number that became a text": (53, "usage_hot", "ALTER TABLE usage_hot MODIFY COLUMN scale String"),
    "an array that became a text": (53, "progress", "ALTER TABLE progress MODIFY COLUMN reached_counts String"),
    "a numpy column that became a text": (53, "ids", "ALTER TABLE ids MODIFY COLUMN digest String"),
    "a constraint of somebody's": (469, "usage_hot", "ALTER TABLE usage_hot ADD CONSTRAINT c CHECK count > 1000"),
    "a view in the table's place": (
        48, "usage_hot", "RENAME TABLE usage_hot TO away", "CREATE VIEW usage_hot AS SELECT * FROM away",
    ),
    "a view behind the table without its target": (
        60, "usage_hot", "CREATE TABLE sums (n Int64) ENGINE = MergeTree ORDER BY n",
        "CREATE MATERIALIZED VIEW seen TO sums AS SELECT toInt64(count) AS n FROM usage_hot", "DROP TABLE sums",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_SCHEMAS.values(), ids=BROKEN_SCHEMAS.keys())
def test_a_schema_that_somebody_changed_is_refused_with_a_sentence(books: Books, case: tuple[Any, ...]) -> None:
    code, table, *statements = case
    books.ask(*statements)
    with pytest.raises(StoreRefusedError, match=refused(code, table)):
        write(full_flush(), books.tables(), Wire(), pause=never)


def never(seconds: float) -> None:
    raise AssertionError(f"a refusal was waited for ({seconds} s) and tried again")


def test_a_database_that_was_dropped_is_refused_with_a_sentence(books: Books) -> None:
    books.ask(f"DROP DATABASE {books.endpoint.database}")
    with pytest.raises(StoreRefusedError, match=refused(81, "ids")):
        write(full_flush(), books.tables(), Wire(), pause=never)


def test_a_wrong_password_is_refused_with_a_sentence_that_does_not_hold_it(books: Books) -> None:
    tables = books.tables(replace(books.endpoint, password="hemligt"))
    with pytest.raises(StoreRefusedError, match=refused(516, "ids")) as found:
        write(full_flush(), tables, Wire(), pause=never)
    assert "hemligt" not in str(found.value)


@pytest.mark.parametrize("level", [1, 2])
def test_a_user_who_may_only_read_is_refused_with_a_sentence(books: Books, level: int) -> None:
    with pytest.raises(StoreRefusedError, match=refused(164, "ids")):
        write(full_flush(), books.tables(readonly=level), Wire(), pause=never)


def test_a_setting_that_the_server_does_not_know_is_refused_with_a_sentence(books: Books) -> None:
    endpoint = books.endpoint
    client = Client(endpoint.host, endpoint.port, database=endpoint.database, settings_is_important=True)
    with pytest.raises(ServerException) as found:
        client.execute("SELECT 1", settings={"no_such_setting": 1})
    told = store_error(found.value, "reading ids")
    assert isinstance(told, StoreRefusedError) and "(code 115, UNKNOWN_SETTING)" in str(told)
    client.disconnect()


@dataclass(frozen=True)
class Trouble:
    """Something that passes: how it begins, how it ends, and what the database says meanwhile."""

    says: str
    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()


def on_usage(setting: str, value: int) -> Trouble:
    change = f"ALTER TABLE usage_hot MODIFY SETTING {setting} = {value}"
    return Trouble("", (change,), (f"ALTER TABLE usage_hot RESET SETTING {setting}",))


ONE_PART = "INSERT INTO usage_hot (meter, booking, generation) VALUES ('other', 1, 9)"
PASSING = {
    "too many parts": replace(on_usage("max_parts_in_total", 1), says="Too many parts", begin=(
        ONE_PART, *on_usage("max_parts_in_total", 1).begin,
    )),
    "a full disk": replace(on_usage("min_free_disk_bytes_to_perform_insert", 10**18), says="enough free space"),
    "no memory": Trouble("MEMORY_LIMIT_EXCEEDED", settings=(("max_memory_usage", 1_000_000),)),
    "a query that took too long": Trouble("TIMEOUT_EXCEEDED", settings=(("max_execution_time", 0.000001),)),
    "a limit that somebody set": Trouble("TOO_MANY_ROWS_OR_BYTES", settings=(("max_result_rows", 1),)),
}  # fmt: skip


@pytest.mark.parametrize("trouble", PASSING.values(), ids=PASSING.keys())
def test_what_passes_is_tried_again_until_every_row_is_there_once(
    books: Books, undisturbed: dict[str, list[Any]], trouble: Trouble, caplog: pytest.LogCaptureFixture
) -> None:
    tables = books.tables(**dict(trouble.settings))
    books.ask(*trouble.begin)
    write(full_flush(), tables, Wire(), pause=thrice(lambda: mend(books, tables, trouble)))
    retried = [record.__dict__["error"] for record in caplog.records if record.message == "flush_retried"]
    assert len(retried) == 3 and all(trouble.says in error for error in retried)
    books.ask("ALTER TABLE usage_hot DELETE WHERE generation = 9 SETTINGS mutations_sync = 1")
    assert books.contents() == undisturbed


def mend(books: Books, tables: Tables, trouble: Trouble) -> None:
    books.ask(*trouble.end)
    for client in (tables._client, tables._numbers):
        for name, _ in trouble.settings:
            del client.settings[name]


def thrice(action: Callable[[], None]) -> Callable[[float], None]:
    """Return a pause that does something when it is asked for the third time."""
    times = []

    def pause(seconds: float) -> None:
        times.append(seconds)
        if len(times) == 3:
            action()

    return pause


def test_a_disk_with_less_room_than_the_reserve_is_full_before_a_write_meets_its_end(
    clickhouse_endpoint: ClickHouseEndpoint,
) -> None:
    """A write that has begun when the last byte is taken would be lost without an error."""
    with fresh_books(clickhouse_endpoint) as books:
        kept = books.client.execute("SELECT keep_free_space FROM system.disks WHERE name = 'default'")
        assert kept == [(DISK_RESERVE_BYTES,)] and DISK_RESERVE_BYTES >= 256 << 20


def test_a_damaged_part_is_tried_again_and_the_sentence_says_what_to_look_at(books: Books) -> None:
    once(full_flush(), books.tables())
    where = "active AND table = 'progress' AND database = currentDatabase()"
    [(folder,)] = books.client.execute(f"SELECT path FROM system.parts WHERE {where}")
    Path(folder, "data.bin").write_bytes(b"")  # what a full disk leaves of a merge (docs/operations.md)
    books.ask("SYSTEM DROP MARK CACHE", "SYSTEM DROP UNCOMPRESSED CACHE")
    with pytest.raises(StoreError, match=r"\(code \d+, [A-Z_]+\); .*a part of a table is damaged"):
        read_frontier(books.client, TOPIC_ID, 0, SIZE)
    damaged = books.client.execute("CHECK TABLE progress SETTINGS check_query_single_value_result = 0")
    assert [(Path(folder).name, 0)] == [(part, passed) for part, passed, _ in damaged]


@pytest.mark.parametrize("silent", [False, True], ids=["cut", "timeout"])
@pytest.mark.parametrize("nth", range(1, len(BOOKED) + 1))
def test_a_write_that_was_done_but_not_acknowledged_counts_once(
    books: Books, undisturbed: dict[str, list[Any]], nth: int, silent: bool
) -> None:
    """The rows are there when the connection breaks, or says nothing for the client's timeout; they are sent again."""
    relay = CuttingRelay(books.endpoint.port, lambda number: number == nth, silent=silent)
    try:
        write(full_flush(), books.tables(replace(books.endpoint, port=relay.port)), Wire(), pause=lambda seconds: None)
        assert relay.lost == 1 and relay.acknowledged == nth + len(BOOKED)
        assert books.contents() == undisturbed
    finally:
        relay.close()


def test_a_clickhouse_that_is_away_for_a_while_has_every_row_once(
    clickhouse: ClickHouse, books: Books, undisturbed: dict[str, list[Any]]
) -> None:
    tables = books.tables()
    flush = full_flush()
    steps = flush.steps(tables, Wire())
    while next(steps) != "dead_letters":
        pass
    clickhouse.kill()
    write(flush, tables, Wire(), pause=thrice(clickhouse.start))
    books.client.disconnect()
    assert books.contents() == undisturbed


def test_readers_and_the_sealer_refuse_with_a_sentence_too(books: Books) -> None:
    books.ask("ALTER TABLE progress DROP COLUMN turned_digest", "DROP TABLE usage", "DROP TABLE events")
    with pytest.raises(StoreRefusedError, match=r"^reading progress and seals for partition 0: .*\(code 47, UNKNO"):
        read_frontier(books.client, TOPIC_ID, 0, SIZE)
    with pytest.raises(StoreRefusedError, match=r"^events: .*\(code 60, UNKNOWN_TABLE\)"):
        keep_archive_for(books.client, timedelta(days=1))
    books.ask("DROP TABLE seals")
    with pytest.raises(StoreRefusedError, match=r"\(code 60, UNKNOWN_TABLE\)"):
        Sealer(books.client, [(TOPIC_ID, 0, SIZE)]).seal_all()


def test_a_flush_that_finds_no_patience_left_says_so(books: Books) -> None:
    tables = books.tables(max_memory_usage=1_000_000)
    with pytest.raises(StoreError, match=r"INSERT INTO \w+: ClickHouse did not acknowledge: .*MEMORY_LIMIT_EXCEEDED"):
        write(full_flush(), tables, Wire(), patience_s=0, pause=lambda seconds: None)
