"""What a session knows of columns: read from the query tree where that says them, and asked once for each table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("chdb")
from tallyman.local.clickhouse.changes import Changes
from tallyman.local.clickhouse.query_tree import columns_of_tree
from tallyman.local.clickhouse.session import Session
from tallyman.local.clickhouse.wire import Column


def tree(*columns: str, number: int | None = None) -> list[str]:
    count = len(columns) if number is None else number
    told = [f"    {column}" for column in columns]
    behind = ["  PROJECTION", f"    LIST id: 1, nodes: {count}"]
    return ["QUERY id: 0, is_distinct: 1", "  PROJECTION COLUMNS", *told, *behind]


class Recording:
    """A connection of chDB's that answers EXPLAIN with a tree and DESCRIBE with one column."""

    def __init__(self, lines: list[str]) -> None:
        self.asked: list[str] = []
        self._lines = lines
        self._said = b""

    def query(self, sql: Any, output: str = "") -> Recording:
        text = sql.decode() if isinstance(sql, bytes) else sql
        self.asked.append(text.split()[0])
        described = "d\tInt8" if "describe_compact_output = 1" in text else "d\tInt8\t"
        said = {"EXPLAIN": "\n".join(self._lines), "DESCRIBE": described, "SELECT": "d"}
        self._said = said.get(self.asked[-1], "").encode()
        return self

    def bytes(self) -> bytes:
        return self._said

    def close(self) -> None:
        return


def asking(lines: list[str]) -> tuple[Session, Recording]:
    connection: Any = Recording(lines)
    session = Session(lambda: connection, database="d", tag="t", threads=1, known_settings=frozenset(),
                      changes=Changes())  # fmt: skip
    connection.asked.clear()
    return session, connection


def test_a_select_without_rows_is_not_planned_again_with_all_its_views() -> None:
    session, connection = asking(tree("minute DateTime('UTC')", "sum(x) Decimal(76, 18)"))
    assert session.describe_select("SELECT minute, sum(x) FROM usage_minute GROUP BY minute") == [
        Column("minute", "DateTime('UTC')"), Column("sum(x)", "Decimal(76, 18)"),
    ]  # fmt: skip
    assert connection.asked == ["EXPLAIN"]
    told = session.describe_aside("SELECT minute FROM usage_minute")
    assert told is not None and told[0].type == "DateTime('UTC')"
    assert "DESCRIBE" not in connection.asked


@pytest.mark.parametrize(
    "lines",
    [
        ["UNION id: 0, union_mode: UNION_ALL", "  QUERIES", "    LIST id: 1, nodes: 2"],
        tree("of", "two lines Int8", number=1),
        tree("x Int8", "    two Int8", number=1),
        tree("name without a type)"),
        tree("a Int8")[:3],
        [],
    ],
    ids=["union", "a line of a name", "a line of a name like a column", "no type", "cut off", "nothing"],
)
def test_where_the_tree_does_not_tell_the_columns_describe_is_asked(lines: list[str]) -> None:
    session, connection = asking(lines)
    assert session.describe_select("SELECT 1") == [Column("d", "Int8")]
    assert connection.asked == ["EXPLAIN", "DESCRIBE"]


@pytest.mark.parametrize(
    ("line", "name", "type_name"),
    [
        ("a Tuple(a Array(UInt8), b String)", "a", "Tuple(a Array(UInt8), b String)"),
        ("x Int8 String", "x Int8", "String"),
        ("f(a, 'b c') Enum8('it\\'s (' = 1, 'b)' = 2)", "f(a, 'b c')", "Enum8('it\\'s (' = 1, 'b)' = 2)"),
        (" Nullable(Nothing)", "", "Nullable(Nothing)"),
        ("DateTime('UTC') DateTime64(3, 'Europe/London')", "DateTime('UTC')", "DateTime64(3, 'Europe/London')"),
    ],
)
def test_a_name_may_be_any_text_and_a_type_have_brackets_and_quotes(line: str, name: str, type_name: str) -> None:
    assert columns_of_tree(tree(line)) == [Column(name, type_name)]


def test_a_table_is_described_once_for_many_inserts_and_anew_when_one_was_altered() -> None:
    session, connection = asking([])
    insert = "TABLE progress"
    for _ in range(3):
        assert session.describe_insertable(insert) == [(Column("d", "Int8"), "")]
    for first in ("INSERT", "OPTIMIZE", "SHOW"):
        with session.changes.during(first):
            session.describe_insertable(insert)
    assert connection.asked == ["DESCRIBE"]
    session.describe_insertable("TABLE usage_hot")
    assert connection.asked == ["DESCRIBE"] * 2
    with pytest.raises(RuntimeError), session.changes.during("ALTER"):
        session.describe_insertable(insert)  # the old columns, or the new ones
        raise RuntimeError("a disk is full")
    session.describe_insertable(insert)
    assert connection.asked == ["DESCRIBE"] * 4


def test_what_only_a_session_sees_under_a_name_is_forgotten_with_it() -> None:
    session, connection = asking([])
    forgetting: list[Callable[[], None]] = [lambda: None, lambda: session.drop_temporary("t"), session.note_client_set]
    for forget in forgetting:
        connection.asked.clear()
        forget()
        session.describe_insertable("TABLE t")
        assert connection.asked[-1] == "DESCRIBE"
    for _ in range(2):
        session.describe_insertable("TABLE FUNCTION file('a.csv')")
    assert connection.asked[-2:] == ["DESCRIBE"] * 2, "another program may write another file there"
