"""The control store keeps its promises whoever writes, and however many at once."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from tallyman.control import compare_and_set, migrate, open_control, read, write
from tallyman.errors import ConfigError, StoreError

STEPS = (
    "CREATE TABLE purses (owner VARCHAR PRIMARY KEY, coins INTEGER NOT NULL, version INTEGER NOT NULL)",
    "INSERT INTO purses VALUES ('Zoë Åström', 0, 0)",
)
PURSES = sa.Table(
    "purses",
    sa.MetaData(),
    sa.Column("owner", sa.String, primary_key=True),
    sa.Column("coins", sa.Integer),
    sa.Column("version", sa.Integer),
)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'new' / 'control.db'}"


def opened(folder: Path) -> sa.Engine:
    engine = open_control(url_of(folder))
    migrate(engine, "purses", STEPS)
    return engine


def coins(engine: sa.Engine) -> int:
    with read(engine) as connection:
        return int(connection.execute(sa.select(PURSES.c.coins)).scalar_one())


def test_a_commit_survives_the_loss_of_power(tmp_path: Path) -> None:
    """WAL with synchronous=FULL (2), and foreign keys are enforced."""
    with opened(tmp_path).connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys")
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    assert settings == ["wal", 2, 1]


def test_each_step_is_applied_once(tmp_path: Path) -> None:
    engine = open_control(url_of(tmp_path))
    assert migrate(engine, "purses", STEPS[:1]) == [1]
    assert migrate(engine, "purses", STEPS) == [2]
    assert migrate(engine, "purses", STEPS) == []


def _start_up(url: str) -> None:
    migrate(open_control(url), "purses", STEPS)


def test_processes_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    starters = [spawn.Process(target=_start_up, args=(url_of(tmp_path),)) for _ in range(4)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(60)
    assert [starter.exitcode for starter in starters] == [0, 0, 0, 0]
    with read(open_control(url_of(tmp_path))) as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(PURSES)).scalar_one() == 1


def test_a_step_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def half(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (a INTEGER)")
        raise RuntimeError("power cut")

    engine = open_control(url_of(tmp_path))
    with pytest.raises(RuntimeError):
        migrate(engine, "halves", [half])
    assert migrate(engine, "halves", ["CREATE TABLE half (a INTEGER)"]) == [1]


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    with pytest.raises(StoreError, match="room purses is at step 2, this version knows 1"):
        migrate(engine, "purses", STEPS[:1])


def test_writers_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    """What is read inside a write stays true: 4 x 25 read-then-write increments make exactly 100."""
    engine = opened(tmp_path)

    def earn() -> None:
        for _ in range(25):
            with write(engine) as connection:
                now = connection.execute(sa.select(PURSES.c.coins)).scalar_one()
                connection.execute(sa.update(PURSES).values(coins=now + 1))

    writers = [threading.Thread(target=earn) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert coins(engine) == 100


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    with pytest.raises(RuntimeError), write(engine) as connection:
        connection.execute(sa.update(PURSES).values(coins=7))
        raise RuntimeError("crash")
    assert coins(engine) == 0


def test_the_second_of_two_who_saw_the_same_version_changes_nothing(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    seen = {"owner": "Zoë Åström", "version": 0}
    with write(engine) as connection:
        assert compare_and_set(connection, PURSES, seen, {"coins": 5, "version": 1})
    with write(engine) as connection:
        assert not compare_and_set(connection, PURSES, seen, {"coins": 9, "version": 1})
    assert coins(engine) == 5


@pytest.mark.parametrize("url", ["oracle9i://scott:tiger@db/x", "not a url", "sqlite://"])
def test_an_unusable_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^control\.url: expected") as caught:
        open_control(url)
    assert "tiger" not in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "control.db").mkdir()
    with pytest.raises(StoreError, match="unable to open database file; try again"):
        open_control(f"sqlite:///{tmp_path / 'control.db'}")
