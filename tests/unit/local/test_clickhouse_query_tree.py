"""What columns an answer without rows has is read from the query tree; DESCRIBE is asked where that does not say."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("chdb")
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
        self._said = {"EXPLAIN": "\n".join(self._lines), "DESCRIBE": "d\tInt8"}.get(self.asked[-1], "").encode()
        return self

    def bytes(self) -> bytes:
        return self._said

    def close(self) -> None:
        return


def asking(lines: list[str]) -> tuple[Session, Recording]:
    connection: Any = Recording(lines)
    session = Session(lambda: connection, database="d", tag="t", threads=1, known_settings=frozenset())
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
