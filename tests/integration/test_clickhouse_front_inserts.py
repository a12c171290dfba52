"""What goes into the embedded ClickHouse: whole or not at all, one part for one insert."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("chdb")
from clickhouse_driver import Client
from clickhouse_driver.errors import NetworkError, ServerException

from tests.integration.clickhouse_front import Front

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    server = Front(tmp_path_factory.mktemp("inserts"))
    yield server
    server.kill()


@pytest.fixture
def client(front: Front) -> Iterator[Client]:
    client = front.client()
    yield client
    client.disconnect()


@pytest.fixture
def usage(client: Client) -> str:
    """An empty table, partitioned by booking as the real ones."""
    client.execute("DROP TABLE IF EXISTS usage_test")
    client.execute(
        "CREATE TABLE usage_test (booking UInt32, tenant String, amount Int128, CONSTRAINT positive CHECK amount >= 0) "
        "ENGINE = ReplacingMergeTree PARTITION BY booking ORDER BY (booking, tenant)"
    )
    return "usage_test"


def test_rows_columns_and_selects_are_inserted(client: Client, usage: str) -> None:
    assert client.execute(f"INSERT INTO {usage} VALUES", [(1, "Zoë", 5)]) == 1
    assert client.execute(f"INSERT INTO {usage} (amount, tenant, booking) VALUES", [(7, "Åsa", 1)]) == 1
    client.execute(f"INSERT INTO {usage} SELECT 2, toString(number), number FROM numbers(3)")
    client.execute(f"INSERT INTO {usage} (* EXCEPT(amount)) VALUES", [(3, "Ödön")])
    assert client.execute(f"SELECT * FROM {usage} ORDER BY booking, tenant") == [
        *[(1, "Zoë", 5), (1, "Åsa", 7)],
        *[(2, "0", 0), (2, "1", 1), (2, "2", 2), (3, "Ödön", 0)],
    ]


@pytest.mark.parametrize(
    "rows",
    [
        "VALUES (1, 'Zoë', 5), (1, 'a;b', 6);",
        "(booking, tenant, amount) VALUES (1, 'Zoë', 5), (1, 'a;b', 6)",
        'FORMAT JSONEachRow {"booking":1,"tenant":"Zoë","amount":5} {"booking":1,"tenant":"a;b","amount":6}',
        'SETTINGS async_insert = 1 FORMAT CSV 1,"Zoë",5\n1,"a;b",6\n',
        "FORMAT Values (1, 'Zoë', 5), (1, 'a;b', 6)",
    ],
)
def test_rows_inside_the_statement_are_inserted(client: Client, usage: str, rows: str) -> None:
    client.execute(f"INSERT INTO {usage} {rows}")
    assert client.execute(f"SELECT tenant, amount FROM {usage} ORDER BY amount") == [("Zoë", 5), ("a;b", 6)]


def test_an_insert_of_nothing_inserts_nothing(client: Client, usage: str) -> None:
    assert client.execute(f"INSERT INTO {usage} VALUES", []) == 0
    assert client.execute(f"SELECT count() FROM {usage}") == [(0,)]


def test_many_blocks_of_one_insert_become_one_part(client: Client, usage: str) -> None:
    rows = ((1, f"tenant {n}", n) for n in range(50000))
    client.execute(f"INSERT INTO {usage} VALUES", rows, settings={"insert_block_size": 1000})
    parts = client.execute(f"SELECT rows FROM system.parts WHERE table = '{usage}'")
    assert parts == [(50000,)]


def test_more_than_the_engines_block_of_rows_is_one_part_too(client: Client) -> None:
    numpy = pytest.importorskip("numpy")
    client.execute("CREATE OR REPLACE TABLE wide (n UInt64) ENGINE = MergeTree ORDER BY n")
    fast = Client("127.0.0.1", client.connection.port, settings={"use_numpy": True})
    fast.execute("INSERT INTO wide VALUES", [numpy.arange(2_500_000, dtype="uint64")], columnar=True)
    assert client.execute("SELECT rows FROM system.parts WHERE table = 'wide'") == [(2_500_000,)]


def test_rows_go_into_a_table_function(client: Client) -> None:
    assert client.execute("INSERT INTO FUNCTION null('n UInt8, s String') VALUES", [(1, "ö")]) == 1


def test_computed_columns_are_not_asked_for(client: Client) -> None:
    client.execute(
        "CREATE OR REPLACE TABLE kinds (a Int8, b Int8 MATERIALIZED a + 1, c Int8 ALIAS a + 2, d Int8 DEFAULT 7, "
        "e Int8 EPHEMERAL 3, f Int8 DEFAULT e * 2) ENGINE = Memory"
    )
    client.execute("INSERT INTO kinds VALUES", [(1, 2, 3)])
    client.execute("INSERT INTO kinds (a, e) VALUES", [(1, 10)])
    assert client.execute("SELECT a, b, c, d, f FROM kinds") == [(1, 2, 3, 2, 3), (1, 2, 3, 7, 20)]


def test_a_violated_constraint_is_an_error_and_leaves_nothing(client: Client, usage: str) -> None:
    with pytest.raises(ServerException) as refused:
        client.execute(f"INSERT INTO {usage} VALUES", [(1, "a", 1), (1, "b", -1)])
    assert refused.value.code == 469
    assert client.execute(f"SELECT count() FROM {usage}") == [(0,)]
    assert client.execute(f"INSERT INTO {usage} VALUES", [(1, "a", 1)]) == 1


@pytest.mark.parametrize(
    ("sql", "code"),
    [("INSERT INTO nowhere VALUES", 60), ("INSERT INTO {usage} (nope) VALUES", 16)],
)
def test_an_insert_into_what_is_not_there_is_refused_at_once(client: Client, usage: str, sql: str, code: int) -> None:
    with pytest.raises(ServerException) as refused:
        client.execute(sql.format(usage=usage), [(1,)])
    assert refused.value.code == code
    assert client.execute("SELECT 1") == [(1,)]


def test_a_client_that_goes_away_in_mid_insert_leaves_nothing(front: Front, client: Client, usage: str) -> None:
    def half() -> Iterator[tuple[int, str, int]]:
        yield from ((1, f"tenant {n}", n) for n in range(5000))
        leaving.connection.socket.shutdown(socket.SHUT_RDWR)
        yield (1, "never", 1)

    leaving = front.client()
    with pytest.raises((OSError, EOFError, NetworkError)):
        leaving.execute(f"INSERT INTO {usage} VALUES", half(), settings={"insert_block_size": 100})
    assert client.execute(f"SELECT count() FROM {usage}") == [(0,)]


def test_a_generator_that_fails_in_mid_insert_leaves_nothing(front: Front, client: Client, usage: str) -> None:
    def half() -> Iterator[tuple[int, str, int]]:
        yield from ((1, f"tenant {n}", n) for n in range(5000))
        raise ZeroDivisionError

    failing = front.client()
    with pytest.raises(ZeroDivisionError):
        failing.execute(f"INSERT INTO {usage} VALUES", half(), settings={"insert_block_size": 100})
    assert client.execute(f"SELECT count() FROM {usage}") == [(0,)]
    assert failing.execute("SELECT 1") == [(1,)]


def test_an_insert_bigger_than_memory_allows_goes_through_a_file(client: Client) -> None:
    client.execute("CREATE OR REPLACE TABLE bulky (n UInt64, body String) ENGINE = Null")
    client.execute("CREATE OR REPLACE TABLE counted (n UInt64, size UInt64) ENGINE = SummingMergeTree ORDER BY tuple()")
    client.execute("DROP VIEW IF EXISTS bulky_sizes")
    client.execute("CREATE MATERIALIZED VIEW bulky_sizes TO counted AS SELECT 1 AS n, length(body) AS size FROM bulky")
    rows = ((n, "x" * 100_000) for n in range(1000))  # 100 MB
    client.execute("INSERT INTO bulky VALUES", rows, settings={"insert_block_size": 50})
    assert client.execute("SELECT sum(n), sum(size) FROM counted") == [(1000, 100_000_000)]
