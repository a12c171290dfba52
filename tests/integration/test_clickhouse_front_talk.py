"""What a client may ask of the embedded ClickHouse, and what it hears: results, errors, settings, progress, cancel."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("chdb")
from clickhouse_driver import Client
from clickhouse_driver.errors import Error, ServerException
from clickhouse_driver.varint import write_varint

from tests.integration.clickhouse_front import Front

pytestmark = pytest.mark.integration

FOREVER = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"
SLOW_ROWS = "SELECT number, sleepEachRow(0.01) FROM numbers(100000)"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    server = Front(tmp_path_factory.mktemp("talk"))
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


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def running(client: Client, mark: str) -> list[Any]:
    """What else runs and holds `mark` in its text."""
    listed = client.execute("SELECT query FROM system.processes")
    return [query for (query,) in listed if mark in query and "system.processes" not in query]


# Hello


def test_a_ping_is_answered(client: Client) -> None:
    client.execute("SELECT 1")
    assert client.connection.ping()


def test_a_client_without_a_database_gets_the_configured_one(front: Front) -> None:
    assert front.client().execute("SELECT currentDatabase()") == [("tallyman",)]


def test_a_client_gets_the_database_it_names(front: Front) -> None:
    assert front.client(database="default").execute("SELECT currentDatabase()") == [("default",)]


@pytest.mark.parametrize(
    ("options", "code"),
    [({"database": "nope"}, 81), ({"user": "eve"}, 516), ({"password": "guess"}, 516)],
    ids=["database", "user", "password"],
)
def test_a_wrong_hello_is_refused_with_its_code(front: Front, options: dict[str, str], code: int) -> None:
    with pytest.raises(ServerException) as refused:
        front.client(**options).execute("SELECT 1")
    assert refused.value.code == code


def test_a_configured_user_is_the_only_one(tmp_path: Path) -> None:
    server = Front(tmp_path, "--user", "grafana", "--password", "Åpril", "--database", "billing")
    try:
        admitted = server.client(user="grafana", password="Åpril")
        assert admitted.execute("SELECT currentDatabase()") == [("billing",)]
        for options in ({}, {"user": "grafana"}, {"user": "default", "password": "Åpril"}):
            with pytest.raises(ServerException, match="Authentication failed"):
                server.client(**options).execute("SELECT 1")
    finally:
        server.kill()


def test_what_is_no_hello_is_answered_with_an_error_and_closed(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=5) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = b"".join(iter(lambda: browser.recv(1000), b""))
    assert answer[0] == 2
    assert b"native protocol" in answer


# Results


def test_names_and_types_come_with_the_rows(client: Client) -> None:
    rows, columns = client.execute("SELECT 1 AS a, 'å' AS `ö`", with_column_types=True)
    assert (rows, columns) == ([(1, "å")], [("a", "UInt8"), ("ö", "String")])


def test_a_result_of_many_blocks_is_whole(client: Client) -> None:
    rows = client.execute("SELECT number, toString(number) FROM numbers(300000)")
    assert rows == [(n, str(n)) for n in range(300000)]


def test_blocks_that_are_streamed_are_taken_one_by_one(client: Client) -> None:
    stream = client.execute_iter("SELECT number FROM numbers(200000)", settings={"max_block_size": 1000})
    assert [row[0] for row in stream] == list(range(200000))


def test_a_big_result_does_not_grow_the_server(front: Front, client: Client) -> None:
    process = psutil.Process(front.process.pid)
    stream = client.execute_iter(
        "SELECT number, repeat('x', 200) FROM numbers(4000000)", settings={"max_block_size": 65409}
    )
    next(stream)
    before, most = process.memory_info().rss, 0
    for number, _ in enumerate(stream):
        if number % 200_000 == 0:
            most = max(most, process.memory_info().rss)
    assert most - before < 150 << 20  # the result is 800 MB


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("SHOW TABLES LIKE 'nothing'", ["name"]),
        ("SHOW DATABASES LIKE 'nothing'", ["name"]),
        ("SELECT * FROM system.one WHERE dummy = 5 -- a comment", ["dummy"]),
        ("WITH 1 AS x SELECT x AS y, 'a' AS z WHERE 0", ["y", "z"]),
        ("(SELECT 1 AS a WHERE 0) UNION ALL (SELECT 2 AS a WHERE 0)", ["a"]),
        ("SELECT 1 AS a, 2 AS b WHERE 0 FORMAT JSON", ["a", "b"]),
        ("SELECT 1 AS a WHERE 0 LIMIT 5 SETTINGS max_threads = 1;", ["a"]),
        ("KILL QUERY WHERE query_id = 'nobody'", ["kill_status", "query_id", "user", "query"]),
    ],
)
def test_an_empty_answer_has_its_columns(client: Client, sql: str, names: list[str]) -> None:
    rows, columns = client.execute(sql, with_column_types=True)
    assert (rows, [name for name, _ in columns]) == ([], names)


@pytest.mark.parametrize("sql", ["SELECT 1 WHERE 0", "SELECT now() AS t WHERE 0"])
def test_an_empty_answer_has_its_columns_even_if_the_query_is_readonly(client: Client, sql: str) -> None:
    _, columns = client.execute(sql, with_column_types=True, settings={"readonly": 1})
    assert len(columns) == 1


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1 FORMAT JSONEachRow", [(1,)]),
        ("SELECT 1;", [(1,)]),
        ("SELECT ';' -- FORMAT CSV", [(";",)]),
        ("/* FORMAT */ SELECT 'FORMAT TSV'", [("FORMAT TSV",)]),
        ("FROM numbers(2) SELECT number", [(0,), (1,)]),
        ("SELECT format('{}-{}', 1, 'a')", [("1-a",)]),
        ("EXISTS TABLE system.one", [(1,)]),
        ("EXPLAIN SYNTAX SELECT 1", [("SELECT 1\nFROM system.one",)]),
    ],
)
def test_a_statement_is_answered_whatever_its_dress(client: Client, sql: str, expected: list[Any]) -> None:
    assert client.execute(sql) == expected


def test_times_keep_the_zone_of_their_column(client: Client) -> None:
    sql = "SELECT toDateTime(0, 'Asia/Kolkata') AS a, 'x' AS b, now('UTC') AS c, now() AS d FROM numbers(3)"
    _, columns = client.execute(sql, with_column_types=True)
    assert [kind for _, kind in columns] == ["DateTime('Asia/Kolkata')", "String", "DateTime('UTC')", "DateTime"]
    (midnight, *_), *_ = client.execute(sql)
    assert midnight.isoformat() == "1970-01-01T05:30:00+05:30"


def test_a_question_about_a_view_is_answered_in_the_clients_database(front: Front, client: Client) -> None:
    client.execute("CREATE DATABASE IF NOT EXISTS other")
    client.execute("USE other")
    client.execute("CREATE OR REPLACE VIEW v AS SELECT toDateTime(0, 'UTC') AS t")
    _, columns = client.execute("SELECT t FROM v", with_column_types=True)
    assert columns == [("t", "DateTime('UTC')")]


def test_a_statement_may_hold_bytes_that_are_no_utf8(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(value: str, buffer: Any) -> None:
        data = value.encode("utf-8", "surrogateescape")
        write_varint(len(data), buffer)
        buffer.write(data)

    client.execute("SELECT 1")
    monkeypatch.setattr("clickhouse_driver.connection.write_binary_str", write)
    assert client.execute("SELECT hex('\udcff\udcfe') AS a") == [("FFFE",)]


# Errors


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELEC 1", 62),
        ("", 62),
        ("SELECT 1; SELECT 2", 62),
        ("SELECT nope", 47),
        ("SELECT * FROM nowhere", 60),
        ("SELECT 1 FROM system.one WHERE", 62),
        ("SELECT toInt8('x')", 6),
        ("SELECT throwIf(number = 250000) FROM numbers(300000)", 395),
        ("SELECT f(1)", 46),
        ("DROP TABLE nowhere", 60),
        ("CREATE TABLE bad (a Whatever) ENGINE = Memory", 50),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", 48),
        ("SELECT {x:UInt8}", 456),
        ("INSERT INTO nowhere VALUES (1)", 60),
        ("USE nowhere", 81),
    ],
)
def test_an_error_has_clickhouses_code(client: Client, sql: str, code: int) -> None:
    with pytest.raises(ServerException) as refused:
        client.execute(sql)
    assert refused.value.code == code
    assert client.execute("SELECT 1") == [(1,)]


def test_an_error_in_mid_stream_reaches_the_client(client: Client) -> None:
    stream = client.execute_iter(
        "SELECT number, throwIf(number = 90000) FROM numbers(100000)", settings={"max_block_size": 1000}
    )
    with pytest.raises(ServerException) as refused:
        list(stream)
    assert refused.value.code == 395
    assert client.execute("SELECT 1") == [(1,)]


# Settings


def test_a_querys_settings_hold_for_that_query_only(client: Client) -> None:
    sql = "SELECT getSetting('max_block_size'), getSetting('max_threads')"
    usual = client.execute(sql)
    assert client.execute(sql, settings={"max_block_size": 777, "max_threads": 1}) == [(777, 1)]
    assert client.execute(sql, settings={"max_block_size": 778}) == [(778, usual[0][1])]
    assert client.execute(sql) == usual


def test_what_a_client_set_for_its_session_comes_back_after_a_query_with_other_settings(client: Client) -> None:
    client.execute("SET max_block_size = 555")
    assert client.execute("SELECT getSetting('max_block_size')", settings={"max_block_size": 777}) == [(777,)]
    assert client.execute("SELECT getSetting('max_block_size')") == [(555,)]


def test_sessions_do_not_see_each_others_settings(front: Front, client: Client) -> None:
    client.execute("SET max_block_size = 555")
    assert front.client().execute("SELECT getSetting('max_block_size')") != [(555,)]


def test_readonly_holds_for_one_query_and_is_undone(client: Client) -> None:
    with pytest.raises(ServerException) as refused:
        client.execute("CREATE TABLE no (a Int8) ENGINE = Memory", settings={"readonly": 1})
    assert refused.value.code == 164
    assert client.execute("SELECT getSetting('readonly')") == [(0,)]


def test_an_unknown_setting_is_ignored_unless_it_is_important(front: Front, client: Client) -> None:
    assert client.execute("SELECT 1", settings={"no_such_setting": 1}) == [(1,)]
    strict = front.client(settings_is_important=True)
    with pytest.raises(ServerException) as refused:
        strict.execute("SELECT 1", settings={"no_such_setting": 1})
    assert refused.value.code == 115


def test_a_bad_value_of_a_setting_is_an_error(client: Client) -> None:
    with pytest.raises(ServerException):
        client.execute("SELECT 1", settings={"max_threads": "many"})
    assert client.execute("SELECT 1") == [(1,)]


def test_a_time_limit_holds(client: Client) -> None:
    with pytest.raises(ServerException) as refused:
        client.execute(FOREVER, settings={"max_execution_time": 0.3})
    assert refused.value.code == 159


# External tables, temporary tables


def test_external_tables_live_as_long_as_their_query(client: Client) -> None:
    table = {
        "name": "wanted",
        "structure": [("tenant", "String"), ("limits", "Array(Int32)")],
        "data": [{"tenant": "Zoë", "limits": [2, 4]}, {"tenant": "Åsa", "limits": []}],
    }
    rows = client.execute("SELECT * FROM wanted ORDER BY tenant", external_tables=[table])
    assert rows == [("Zoë", [2, 4]), ("Åsa", [])]
    with pytest.raises(ServerException) as refused:
        client.execute("SELECT * FROM wanted")
    assert refused.value.code == 60


def test_an_external_table_may_come_in_several_blocks(client: Client) -> None:
    table = {"name": "part", "structure": [("a", "Int8")]}
    parts = [{**table, "data": [{"a": 1}]}, {**table, "data": [{"a": 2}]}]
    assert client.execute("SELECT a FROM part ORDER BY a", external_tables=parts) == [(1,), (2,)]


def test_an_empty_external_table_is_a_table(client: Client) -> None:
    table = {"name": "nobody", "structure": [("a", "Int8")], "data": []}
    assert client.execute("SELECT count() FROM nobody", external_tables=[table]) == [(0,)]


def test_temporary_tables_belong_to_their_session(front: Front, client: Client) -> None:
    client.execute("CREATE TEMPORARY TABLE mine (a Int32)")
    client.execute("INSERT INTO mine VALUES", [(1,)])
    assert client.execute("SELECT * FROM mine") == [(1,)]
    with pytest.raises(ServerException):
        front.client().execute("SELECT * FROM mine")


# Progress, profile, cancel


def test_progress_is_told_while_a_query_runs(client: Client) -> None:
    progress = client.execute_with_progress(
        "SELECT count() FROM numbers(150000000) WHERE NOT ignore(sipHash64(number))"
    )
    told = list(progress)
    assert len(told) > 2
    assert told[-1] == (150000000, 150000000)
    assert progress.get_result() == [(150000000,)]


def test_the_last_query_knows_what_it_read_and_what_it_left_out(client: Client) -> None:
    client.execute("CREATE OR REPLACE TABLE ten (n UInt8) ENGINE = MergeTree ORDER BY n")
    client.execute("INSERT INTO ten VALUES", [(n,) for n in range(10)])
    client.execute("SELECT n FROM ten GROUP BY n ORDER BY n DESC LIMIT 5")
    last = client.last_query
    assert (last.progress.rows, last.progress.bytes) == (10, 10)
    assert (last.profile_info.rows, last.profile_info.applied_limit, last.profile_info.rows_before_limit) == (
        5,
        True,
        10,
    )


def test_a_cancelled_query_ends_and_the_connection_lives_on(client: Client) -> None:
    progress = client.execute_with_progress(FOREVER)
    next(progress)
    began = time.monotonic()
    client.cancel()
    assert time.monotonic() - began < 5
    assert client.execute("SELECT 1") == [(1,)]
    wait_for(lambda: not running(client, "1000000000000"))


def test_a_cancelled_stream_ends_and_the_connection_lives_on(client: Client) -> None:
    stream = client.execute_iter(SLOW_ROWS, settings={"max_block_size": 5})
    next(stream)
    client.cancel()
    assert client.execute("SELECT 1") == [(1,)]


def test_an_abandoned_stream_stops_in_the_engine(front: Front, client: Client) -> None:
    leaving = front.client()
    next(leaving.execute_iter("SELECT number, 'abandoned' FROM numbers(100000000000)"))
    leaving.disconnect()
    wait_for(lambda: not running(client, "abandoned"))


def test_a_client_that_goes_away_stops_its_query(front: Front, client: Client) -> None:
    leaving = front.client()
    next(leaving.execute_with_progress(FOREVER + " AND 'gone' = 'gone'"))
    assert running(client, "gone")
    leaving.disconnect()
    wait_for(lambda: not running(client, "gone"))


def test_a_query_is_killed_by_the_id_its_client_gave(front: Front, client: Client) -> None:
    heard: list[int] = []

    def run() -> None:
        try:
            front.client().execute(FOREVER, query_id="monthly-report")
        except ServerException as error:
            heard.append(error.code)

    thread = threading.Thread(target=run)
    thread.start()
    listed = "SELECT count() FROM system.processes WHERE query_id = 'monthly-report'"
    wait_for(lambda: client.execute(listed) == [(1,)])
    client.execute("KILL QUERY WHERE query_id = 'monthly-report'")
    thread.join(10)
    assert heard == [394]


def test_an_id_that_is_running_is_not_given_again(front: Front) -> None:
    first, second = front.client(), front.client()
    next(first.execute_with_progress(FOREVER, query_id="once"))
    with pytest.raises(ServerException) as refused:
        second.execute("SELECT 1", query_id="once")
    assert refused.value.code == 216
    first.cancel()
    assert second.execute("SELECT queryID()", query_id="once") == [("once",)]


# Tables


def test_partitions_are_replaced_and_tables_exchanged(client: Client, usage: str) -> None:
    client.execute("DROP TABLE IF EXISTS staging")
    client.execute(f"CREATE TABLE staging AS {usage}")
    client.execute(f"INSERT INTO {usage} VALUES", [(1, "a", 1), (2, "b", 2)])
    client.execute("INSERT INTO staging VALUES", [(1, "a", 10)])
    client.execute(f"ALTER TABLE {usage} REPLACE PARTITION 1 FROM staging")
    assert client.execute(f"SELECT booking, amount FROM {usage} ORDER BY booking") == [(1, 10), (2, 2)]
    client.execute(f"EXCHANGE TABLES {usage} AND staging")
    assert client.execute(f"SELECT booking, amount FROM {usage}") == [(1, 10)]


def test_rows_replace_each_other_with_final_and_with_optimize(client: Client, usage: str) -> None:
    for amount in (1, 2, 3):
        client.execute(f"INSERT INTO {usage} VALUES", [(1, "Zoë", amount)])
    assert client.execute(f"SELECT amount FROM {usage} FINAL") == [(3,)]
    client.execute(f"OPTIMIZE TABLE {usage} FINAL")
    assert client.execute(f"SELECT amount FROM {usage}") == [(3,)]


def test_eight_clients_work_at_once(front: Front) -> None:
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            client = front.client()
            client.execute(f"CREATE OR REPLACE TABLE own{number} (n UInt32, s String) ENGINE = MergeTree ORDER BY n")
            for turn in range(10):
                client.execute(f"INSERT INTO own{number} VALUES", [(turn, f"å{n}") for n in range(500)])
                assert client.execute("SELECT number FROM numbers(3)") == [(0,), (1,), (2,)]
            assert client.execute(f"SELECT count() FROM own{number}") == [(5000,)]
        except (AssertionError, Error, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures


def test_a_long_query_does_not_hold_up_short_ones(front: Front, client: Client) -> None:
    heavy = front.client()
    next(heavy.execute_with_progress(FOREVER))
    began = time.monotonic()
    for _ in range(20):
        client.execute("SELECT 1")
    assert time.monotonic() - began < 5
    heavy.cancel()
