"""Whoever migrates, however many at once and wherever one of them is paused or killed: the newest views stand."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("clickhouse_driver")
from tallyman.clickhouse import _VIEW, keep_views, migrate, newest_views, schema_files

NEWER = "9999_of_the_next_version.sql"


class Killed(BaseException):
    """What becomes of a process meanwhile."""


class Store:
    """What a ClickHouse keeps of a migration: the journal, and its views with their texts and comments."""

    def __init__(self) -> None:
        self.journal, self.views, self.changes = set[str](), dict[str, str](), 0

    def execute(self, statement: str, rows: Any = ()) -> list[tuple[Any, ...]]:
        if statement.startswith("SELECT name FROM schema_migrations"):
            return [(name,) for name in self.journal]
        if "system.tables" in statement:
            return [(name, "View", text.partition("COMMENT '")[2][:-1]) for name, text in self.views.items()]
        if statement.startswith("SELECT"):
            return []
        self.changes += 1
        if statement.startswith("INSERT INTO schema_migrations"):
            self.journal |= {name for (name,) in rows}
        if (found := _VIEW.match(statement)) and not ("IF NOT EXISTS" in found[0] and found[1] in self.views):
            self.views[found[1]] = statement
        return []

    def disconnect(self) -> None: ...


class Paused:
    """A migrator's connection: somebody else migrates when it has read the journal; killed after some changes."""

    def __init__(self, store: Store, lives_for: int) -> None:
        self.store, self.left, self.met = store, lives_for, False

    def execute(self, statement: str, rows: Any = ()) -> list[tuple[Any, ...]]:
        if not statement.startswith(("SELECT", "CREATE TABLE IF NOT EXISTS schema_migrations")):
            if not self.met:
                self.met = True
                migrate(self.store)  # type: ignore[arg-type]
            if not self.left:
                raise Killed
            self.left -= 1
        return self.store.execute(statement, rows)

    def disconnect(self) -> None: ...


def all_newest(store: Store) -> bool:
    return all(text in store.views[name] for name, text in newest_views().items())


def test_a_migrator_that_was_paused_and_is_killed_anywhere_leaves_the_newest_views() -> None:
    statements = sum(len(statements) + 1 for _, statements in schema_files())
    for lives_for in range(statements):
        store = Store()
        with suppress(Killed):
            migrate(Paused(store, lives_for))  # type: ignore[arg-type]
        assert all_newest(store), lives_for


def test_views_that_an_older_version_wrote_back_are_made_anew_once() -> None:
    store = Store()
    migrate(store)  # type: ignore[arg-type]
    for _, statements in schema_files():
        for statement in statements:
            if _VIEW.match(statement):
                store.execute(statement)
    assert keep_views(store)  # type: ignore[arg-type]
    assert all_newest(store)
    changes = store.changes
    migrate(store)  # type: ignore[arg-type]
    assert store.changes == changes + 1  # the journal, which is made if it does not exist


def test_a_view_that_the_version_before_made_is_made_anew_at_the_upgrade() -> None:
    store = Store()
    migrate(store)  # type: ignore[arg-type]
    made = "CREATE OR REPLACE VIEW usage_minute AS SELECT 1"
    store.views["usage_minute"] = f"{made}\nCOMMENT 'tallyman/schema 0123456789abcdef'"
    assert keep_views(store) == ["usage_minute"]  # type: ignore[arg-type]
    assert all_newest(store)


def test_an_older_version_leaves_the_views_of_a_newer_one_alone() -> None:
    store = Store()
    migrate(store)  # type: ignore[arg-type]
    store.journal.add(NEWER)
    store.views["usage_minute"] = "CREATE OR REPLACE VIEW usage_minute AS SELECT 2"
    migrate(store)  # type: ignore[arg-type]
    assert store.views["usage_minute"].endswith("SELECT 2")


def test_views_come_after_those_that_they_read() -> None:
    order = list(newest_views())
    assert order.index("usage_booked") < order.index("usage_points")
    assert order.index("clocks") < order.index("collectors") < order.index("completeness_minute")


def test_a_look_at_minutes_plans_one_reading_of_what_is_booked() -> None:
    assert newest_views()["usage_minute"].count("usage_booked") == 1
