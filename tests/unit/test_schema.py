"""The schema is the same on one server and on replicas; what correctness needs is sent with every connection."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest

pytest.importorskip("clickhouse_driver")
from tallyman.clickhouse import SETTINGS, migrate, replicated_tables, split_statements


class Server:
    """A ClickHouse that notes what it is asked."""

    def __init__(self, database_engine: str) -> None:
        self.engine, self.statements = database_engine, list[str]()

    def execute(self, statement: str, *_: Any) -> list[tuple[str]]:
        self.statements.append(statement)
        return [(self.engine,)] if "system.databases" in statement else []

    def tables(self) -> list[str]:
        return [each for each in self.statements if each.startswith("CREATE TABLE")]


@pytest.mark.parametrize(("engine", "replicated"), [("Replicated", True), ("Atomic", False), ("Overlay", False)])
def test_tables_are_replicated_where_their_database_is(engine: str, replicated: bool) -> None:
    server = Server(engine)
    migrate(server)  # type: ignore[arg-type]
    assert len(server.tables()) > 5
    assert {"ENGINE = Replicated" in table for table in server.tables()} == {replicated}


def test_no_table_of_the_schema_would_stay_on_one_replica() -> None:
    for file in resources.files("tallyman.schema").iterdir():
        for statement in split_statements(file.read_text("utf-8")) if file.name.endswith(".sql") else ():
            if statement.startswith("CREATE TABLE"):
                assert "ENGINE = Replicated" in replicated_tables(statement), file.name


def test_what_is_acknowledged_most_replicas_have_and_what_is_read_too() -> None:
    assert SETTINGS["insert_quorum"] == "auto"
    assert SETTINGS["insert_quorum_parallel"] == 0
    assert SETTINGS["select_sequential_consistency"] == 1
    assert SETTINGS["alter_sync"] == 2
