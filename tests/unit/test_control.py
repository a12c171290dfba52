"""The control store keeps its promises whoever writes, and however many at once."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from tallyman import control
from tallyman.control import compare_and_set, migrate, open_control, read, write
from tallyman.errors import ConfigError, StoreError, StoreRefusedError
from tests.postgres import Postgres

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


@pytest.fixture
def engine(control_url: str) -> Iterator[sa.Engine]:
    engine = open_control(control_url)
    migrate(engine, "purses", STEPS)
    yield engine
    engine.dispose()


def coins(engine: sa.Engine) -> int:
    with read(engine) as connection:
        return int(connection.execute(sa.select(PURSES.c.coins)).scalar_one())


def test_a_commit_survives_the_loss_of_power(tmp_path: Path) -> None:
    """WAL with synchronous=FULL (2), and foreign keys are enforced."""
    with open_control(f"sqlite:///{tmp_path / 'new' / 'control.db'}").connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys")
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    assert settings == ["wal", 2, 1]


def test_each_step_is_applied_once(control_url: str) -> None:
    engine = open_control(control_url)
    assert migrate(engine, "purses", STEPS[:1]) == [1]
    assert migrate(engine, "purses", STEPS) == [2]
    assert migrate(engine, "purses", STEPS) == []


def _start_up(url: str) -> None:
    migrate(open_control(url), "purses", STEPS)


def test_processes_that_start_at_once_migrate_once(control_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    starters = [spawn.Process(target=_start_up, args=(control_url,)) for _ in range(4)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(60)
    assert [starter.exitcode for starter in starters] == [0, 0, 0, 0]
    with read(open_control(control_url)) as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(PURSES)).scalar_one() == 1


def test_a_step_that_fails_leaves_nothing_behind(control_url: str) -> None:
    def half(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (a INTEGER)")
        raise RuntimeError("power cut")

    engine = open_control(control_url)
    with pytest.raises(RuntimeError):
        migrate(engine, "halves", [half])
    assert migrate(engine, "halves", ["CREATE TABLE half (a INTEGER)"]) == [1]


def test_a_store_of_a_newer_version_is_refused(engine: sa.Engine) -> None:
    with pytest.raises(StoreRefusedError, match="room purses is at step 2, this version knows 1"):
        migrate(engine, "purses", STEPS[:1])


def test_writers_take_turns_and_lose_nothing(engine: sa.Engine) -> None:
    """What is read inside a write stays true: 4 x 25 read-then-write increments make exactly 100."""

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


def test_a_block_that_raises_changes_nothing(engine: sa.Engine) -> None:
    with pytest.raises(RuntimeError), write(engine) as connection:
        connection.execute(sa.update(PURSES).values(coins=7))
        raise RuntimeError("crash")
    assert coins(engine) == 0


def test_the_second_of_two_who_saw_the_same_version_changes_nothing(engine: sa.Engine) -> None:
    seen = {"owner": "Zoë Åström", "version": 0}
    with write(engine) as connection:
        assert compare_and_set(connection, PURSES, seen, {"coins": 5, "version": 1})
    with write(engine) as connection:
        assert not compare_and_set(connection, PURSES, seen, {"coins": 9, "version": 1})
    assert coins(engine) == 5


def _win(url: str, barrier: Barrier, wins: int) -> None:
    """Move the version on from what was seen outside of any lock, until that was ours so many times."""
    engine = open_control(url)
    barrier.wait(60)
    while wins:
        with read(engine) as connection:
            row = connection.execute(sa.select(PURSES)).one()
        with write(engine) as connection:
            seen = {"owner": row.owner, "version": row.version}
            wins -= compare_and_set(connection, PURSES, seen, {"coins": row.coins + 1, "version": row.version + 1})


def test_two_processes_that_compare_and_set_at_once_lose_no_change(engine: sa.Engine, control_url: str) -> None:
    """Each of them wins forty times; no win is built on what the other one has changed."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    players = [spawn.Process(target=_win, args=(control_url, barrier, 40)) for _ in range(2)]
    for player in players:
        player.start()
    for player in players:
        player.join(60)
    assert [player.exitcode for player in players] == [0, 0]
    assert coins(engine) == 80


def test_a_writer_that_waits_too_long_is_told_to_try_again(control_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "BUSY_TIMEOUT_S", 1)
    engine = open_control(control_url)
    migrate(engine, "purses", STEPS)
    with write(engine), pytest.raises(StoreError, match=r"try again$"), write(engine):
        pass
    with write(engine) as connection:
        connection.execute(sa.update(PURSES).values(coins=1))
    assert coins(engine) == 1


@pytest.mark.parametrize(
    "url",
    [
        "oracle9i://scott:tiger@db/x",
        "mysql://scott:tiger@db/x",
        "postgresql+asyncpg://scott:tiger@db/x",
        "not a url",
        "sqlite://",
        "postgresql+psycopg://scott:tiger@db:sql/x",
    ],
)
def test_an_unusable_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^control\.url: expected") as caught:
        open_control(url)
    assert "tiger" not in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "control.db").mkdir()
    with pytest.raises(StoreError, match="unable to open database file; expected file and folder"):
        open_control(f"sqlite:///{tmp_path / 'control.db'}")


def test_a_file_that_is_no_database_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    path.write_text("mine: not a database\n" * 100, encoding="utf-8")
    with pytest.raises(StoreError, match=r"control\.db: file is not a database; put the right file there"):
        open_control(f"sqlite:///{path}")


def test_a_file_in_the_place_of_the_folder_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(StoreError, match=r"its folder cannot be made, .*data.*: .*; make it, or name another one"):
        open_control(f"sqlite:///{tmp_path / 'data' / 'deeper' / 'control.db'}")


def test_a_store_that_is_read_only_says_what_helps_instead_of_trying_again(tmp_path: Path) -> None:
    engine = open_control(f"sqlite:///{tmp_path / 'control.db'}")
    migrate(engine, "purses", STEPS)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = 1")
    told = pytest.raises(StoreError, match=r"readonly database; let this user write the file")
    with told as caught, write(engine) as connection:
        connection.execute(sa.update(PURSES).values(coins=1))
    assert "try again" not in str(caught.value)


def test_a_row_that_is_there_already_is_no_error_of_the_store(engine: sa.Engine) -> None:
    with pytest.raises(sa.exc.IntegrityError), write(engine) as connection:
        connection.execute(sa.insert(PURSES).values(owner="Zoë Åström", coins=1, version=0))


def test_a_postgresql_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    sentence = r"^control store postgresql\+psycopg://tallyman:\*\*\*@.*; try again$"
    with pytest.raises(StoreError, match=sentence) as caught:
        open_control(f"postgresql+psycopg://tallyman:geheim@/control?host={tmp_path}")
    assert "geheim" not in str(caught.value)


def test_a_postgresql_that_dies_keeps_what_was_committed_and_is_found_again(postgres: Postgres) -> None:
    engine = open_control(postgres.make_database())
    migrate(engine, "purses", STEPS)
    with write(engine) as connection:
        connection.execute(sa.update(PURSES).values(coins=7))
    with pytest.raises(StoreError, match=r"try again$"), write(engine) as connection:
        connection.execute(sa.update(PURSES).values(coins=9))
        postgres.kill()
    postgres.start()
    assert coins(engine) == 7


@pytest.mark.parametrize(
    ("made", "setting"),
    [
        ("ENCODING 'SQL_ASCII' TEMPLATE template0", "server_encoding"),
        ("", "synchronous_commit"),
    ],
)
def test_a_postgresql_that_could_lose_something_is_refused(postgres: Postgres, made: str, setting: str) -> None:
    url = postgres.make_database(made)
    if setting == "synchronous_commit":
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {engine.url.database} SET synchronous_commit = off")
        engine.dispose()
    with pytest.raises(ConfigError, match=rf"^control\.url: PostgreSQL's {setting}: expected anything but"):
        open_control(url)


def test_a_store_that_is_read_only_says_so_at_once(tmp_path: Path) -> None:
    """Only one that is busy is waited for."""
    sqlite3.connect(tmp_path / "control.db").execute("CREATE TABLE t (a)").connection.close()
    raw, began = sqlite3.connect(f"file:{tmp_path}/control.db?mode=ro", uri=True), time.monotonic()
    with pytest.raises(sqlite3.OperationalError, match="readonly database"):
        control._use_wal(raw)
    raw.close()
    assert time.monotonic() - began < 5


def test_a_postgresql_whose_host_is_lost_is_noticed_within_half_a_minute() -> None:
    options = control._postgresql(make_url("postgresql+psycopg://tallyman@db/tallyman?keepalives_idle=7")).url.query
    assert options["tcp_user_timeout"] == "30000"
    assert options["keepalives_idle"] == "7", "what the operator says in control.url stands"
