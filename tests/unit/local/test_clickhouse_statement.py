"""What a statement asks for is read from its words, whatever stands around them."""

from __future__ import annotations

import pytest

from tallyman.local.clickhouse.errors import ServerError
from tallyman.local.clickhouse.query_ids import with_client_ids
from tallyman.local.clickhouse.statement import read_statement


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELECT 1", "stream"),
        ("  -- who asks\n select 1", "stream"),
        ("/* a */ WITH x AS (SELECT 1) SELECT * FROM x", "stream"),
        ("(SELECT 1) UNION ALL (SELECT 2)", "stream"),
        ("FROM t SELECT a", "stream"),
        ("SHOW TABLES", "other"),
        ("CREATE TABLE t (a Int8) ENGINE = Memory AS SELECT 1", "other"),
        ("SET max_threads = 1", "set"),
        ("USE billing", "set"),
        ("INSERT INTO t VALUES", "insert"),
        ("INSERT INTO t (a, b) VALUES ;", "insert"),
        ("INSERT INTO t (a, b)", "insert"),
        ("insert into t format Native", "insert"),
        ("INSERT INTO t SETTINGS async_insert = 0 VALUES", "insert"),
        ("INSERT INTO t VALUES -- rows follow", "insert"),
        ("INSERT INTO t VALUES (1, 'a')", "other"),
        ('INSERT INTO t FORMAT JSONEachRow {"a": 1}', "other"),
        ("INSERT INTO t SELECT 1", "other"),
        ("INSERT INTO t (a) SELECT 1", "other"),
        ("INSERT INTO t (SELECT 1)", "other"),
        ("INSERT INTO t WITH 1 AS x SELECT x", "other"),
        ("WITH 1 AS x INSERT INTO t SELECT x", "other"),
        ("INSERT INTO t FROM INFILE 'x' FORMAT CSV", "other"),
    ],
)
def test_a_statement_is_run_by_its_kind(sql: str, kind: str) -> None:
    assert read_statement(sql).kind == kind


@pytest.mark.parametrize(
    ("sql", "target", "columns", "settings"),
    [
        ("INSERT INTO billing.usage VALUES", "billing.usage", None, ""),
        ("INSERT INTO TABLE `odd (name)` (a, `b )`) VALUES", "`odd (name)`", "a, `b )`", ""),
        ("INSERT INTO t (* EXCEPT(x)) VALUES", "t", "* EXCEPT(x)", ""),
        ("INSERT INTO t (a) SETTINGS x = 1, y = 'VALUES' FORMAT Native", "t", "a", "x = 1, y = 'VALUES'"),
        ("INSERT INTO FUNCTION null('a Int8, b String') VALUES", "null('a Int8, b String')", None, ""),
        ("INSERT INTO FUNCTION null('a Int8') (a) VALUES", "null('a Int8')", "a", ""),
    ],
)
def test_an_insert_names_its_target(sql: str, target: str, columns: str | None, settings: str) -> None:
    insert = read_statement(sql).insert
    assert insert is not None
    assert (insert.target, insert.columns, insert.settings) == (target, columns, settings)


def test_the_head_of_an_insert_ends_where_the_file_is_named() -> None:
    insert = read_statement("INSERT INTO t (a) SETTINGS x = 1 VALUES").insert
    assert insert is not None
    assert insert.head == "INSERT INTO t (a)"


@pytest.mark.parametrize(
    ("sql", "rest"),
    [
        ("SELECT 1 FORMAT JSON", "SELECT 1"),
        ("SELECT 1 FORMAT JSON SETTINGS max_threads = 1", "SELECT 1 SETTINGS max_threads = 1"),
        ("SELECT 'x FORMAT CSV'", "SELECT 'x FORMAT CSV'"),
        ("SELECT format AS a FROM t", "SELECT format AS a FROM t"),
        ("SELECT * FROM (SELECT 1 FORMAT TSV)", "SELECT * FROM (SELECT 1 FORMAT TSV)"),
        ("SHOW TABLES FORMAT Vertical;", "SHOW TABLES"),
        ("SELECT 1;  ", "SELECT 1"),
    ],
)
def test_format_and_semicolon_are_taken_out(sql: str, rest: str) -> None:
    assert " ".join(read_statement(sql).sql.split()) == rest


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("", 62),
        (" -- nothing", 62),
        ("SELECT 1; SELECT 2", 62),
        ("SELECT 1 INTO OUTFILE 'x.csv'", 48),
        ("CREATE TABLE t (a Int8) ENGINE=Kafka SETTINGS kafka_topic_list = 'x'", 56),
        ("CREATE TABLE t (a Int8) ENGINE  =  `NATS`", 56),
        ("ATTACH TABLE t (a Int8) ENGINE RabbitMQ", 56),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_code(sql: str, code: int) -> None:
    with pytest.raises(ServerError) as refused:
        read_statement(sql)
    assert refused.value.code == code


def test_only_a_limit_of_its_own_limits_a_query() -> None:
    assert read_statement("SELECT 1 LIMIT 1").limited
    assert not read_statement("SELECT * FROM (SELECT 1 LIMIT 1)").limited


def test_rows_inside_a_statement_are_not_read_as_sql() -> None:
    rows = "('it''s; -- \\' /* ', 1)," * 50_000
    assert read_statement(f"INSERT INTO t VALUES {rows}").kind == "other"


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT queryID()", "SELECT 'mine'"),
        ("SELECT 'queryID()'", "SELECT 'queryID()'"),
        ("SELECT 1", "SELECT 1"),
    ],
)
def test_a_query_knows_its_own_id(sql: str, expected: str) -> None:
    assert with_client_ids(sql, "mine", {"mine": "tag-1"}) == expected


def test_a_kill_names_the_id_that_the_client_gave() -> None:
    killed = with_client_ids("KILL QUERY WHERE query_id = 'it''s' ASYNC", "k", {"it's": "tag-7"})
    assert "transform(Settings['log_comment'], ['tag-7'], ['it\\'s'], query_id) = 'it''s' ASYNC" in killed
