"""The door to the control store: SQLite by default, PostgreSQL by URL, one writer at a time in both.

It holds what must change together and never twice: accounts, alarm states and their outbox, invoices and numbers.
Each room makes its own tables with `migrate` and writes inside `write(engine)`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import ConnectionPoolEntry

from tallyman.errors import ConfigError, StoreError, StoreRefusedError

Step = Callable[[sa.Connection], object] | str

BUSY_TIMEOUT_S = 30.0
_WRITER_LOCK = 0x7461_6C6C_796D_616E  # "tallyman", the advisory lock of PostgreSQL that makes writers take turns
_CONNECT_TIMEOUT_S = 10
_SILENT_S = 30

_metadata = sa.MetaData()
_migrations = sa.Table(
    "migrations",
    _metadata,
    sa.Column("room", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("applied_at", sa.String(40), nullable=False),
)


def open_control(url: str) -> sa.Engine:
    """Return an engine for the control store; a SQLite file and its folder are made when missing.

    Args:
        url: "sqlite:////absolute/path/control.db" or "postgresql+psycopg://user@host/name".

    Raises:
        ConfigError: No such kind of store, its driver is not installed, or its settings could lose a commit.
        StoreError: The store does not open.
    """
    try:
        parsed = make_url(url)
        engine = _MAKERS[parsed.drivername](parsed)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'control.url: PostgreSQL needs {error.name}, which is not installed: pip install "tallyman[postgresql]"'
        ) from error
    except ValueError as error:
        raise ConfigError("control.url: expected a number as the port behind the host; correct the URL") from error
    except (exc.ArgumentError, KeyError) as error:
        shown = url.split(":", 1)[0]  # the rest may hold a password
        raise ConfigError(
            f'control.url: expected sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME, got "{shown}:..."; '
            "correct the URL: other stores and drivers are not known to keep what is promised"
        ) from error
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                _check_postgresql(connection)
            return engine
    except (exc.DatabaseError, sqlite3.DatabaseError) as error:
        raise _refused(engine, error) from error


@contextmanager
def write(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open the one write transaction: what is read inside stays true until it commits at the end of the block.

    Raises:
        StoreError: The store is busy for too long, full or away; the same block may be run again.
    """
    try:
        with engine.connect().execution_options(tallyman_begin="IMMEDIATE") as connection, connection.begin():
            if engine.dialect.name == "postgresql":
                patience = sa.func.set_config("lock_timeout", f"{BUSY_TIMEOUT_S:.0f}s", True)  # of this transaction
                connection.execute(sa.select(patience))
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER_LOCK)))
            yield connection
    except exc.DatabaseError as error:
        if not _is_of_the_store(error):
            raise
        raise _refused(engine, error) from error


@contextmanager
def read(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a read transaction: one snapshot for the whole block, in nobody's way.

    Raises:
        StoreError: The store is away.
    """
    isolation = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    try:
        with engine.connect().execution_options(**isolation) as connection, connection.begin():
            yield connection
    except exc.DatabaseError as error:
        if not _is_of_the_store(error):
            raise
        raise _refused(engine, error) from error


def migrate(engine: sa.Engine, room: str, steps: Sequence[Step]) -> list[int]:
    """Apply a room's steps that were not applied yet, in order, each with its number in one transaction.

    Steps are numbered from 1 by their place; a step that is released never changes, a change is a new one.
    Several processes may call this at once: one applies a step, the others find it applied.

    Args:
        steps: SQL statements (one each) or callables that get the connection, such as `metadata.create_all`.

    Returns:
        The numbers that this call has applied.

    Raises:
        StoreError: The store is busy for too long, full or away.
        StoreRefusedError: It was migrated by a newer version than this one.
    """
    with write(engine) as connection:
        _metadata.create_all(connection)
    mine = sa.select(sa.func.max(_migrations.c.number)).where(_migrations.c.room == room)
    applied: list[int] = []
    while True:
        with write(engine) as connection:
            reached = connection.execute(mine).scalar() or 0
            if reached > len(steps):
                raise StoreRefusedError(
                    f"control store: room {room} is at step {reached}, this version knows {len(steps)}; "
                    "run the version that migrated it, or a newer one"
                )
            if reached == len(steps):
                return applied
            step = steps[reached]
            if isinstance(step, str):
                connection.exec_driver_sql(step)
            else:
                step(connection)
            now = datetime.now(UTC).isoformat()
            connection.execute(sa.insert(_migrations).values(room=room, number=reached + 1, applied_at=now))
        applied.append(reached + 1)


def compare_and_set(
    connection: sa.Connection,
    table: sa.Table,
    expected: Mapping[str, object],
    values: Mapping[str, object],
) -> bool:
    """Change the one row that still looks as expected; False means that somebody was faster and nothing changed.

    Args:
        expected: Column -> value, the row's key and what must not have moved (its version).
    """
    same = [table.c[name].is_not_distinct_from(value) for name, value in expected.items()]
    return connection.execute(sa.update(table).where(*same).values(**values)).rowcount == 1


def _postgresql(url: URL) -> sa.Engine:
    known = {
        "application_name": "tallyman",
        "client_encoding": "utf8",
        "connect_timeout": str(_CONNECT_TIMEOUT_S),
        # A host that is lost says nothing: the kernel alone would wait for minutes. A lock is waited for all the same,
        # since a host that is there answers the kernel.
        "tcp_user_timeout": str(_SILENT_S * 1000),
        "keepalives": "1",
        "keepalives_idle": str(_SILENT_S // 3),
        "keepalives_interval": str(_SILENT_S // 6),
        "keepalives_count": "4",
    }
    # Statements prepared on the server belong to one of its sessions, and a pooler between us hands those around.
    by_driver = {"prepare_threshold": None}
    # A connection is tried before it is used, so that a server that was restarted is not noticed.
    return sa.create_engine(url.update_query_dict({**known, **url.query}), pool_pre_ping=True, connect_args=by_driver)


def _check_postgresql(connection: sa.Connection) -> None:
    """Refuse a database that would lose a commit with the power, or letters of a name."""
    for setting, bad, why in (
        ("synchronous_commit", "off", "a number that was given out could be given again after a crash"),
        ("fsync", "off", "a number that was given out could be given again after a crash"),
        ("server_encoding", "SQL_ASCII", "names are any Unicode; make the database with ENCODING 'UTF8'"),
    ):
        if connection.exec_driver_sql(f"SHOW {setting}").scalar_one() == bad:
            raise ConfigError(f"control.url: PostgreSQL's {setting}: expected anything but {bad}: {why}")


def _sqlite(url: URL) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigError('control.url: expected a file, as in sqlite:////var/lib/tallyman/control.db, got ":memory:"')
    folder = Path(url.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"control store {url.database}: its folder cannot be made, {error.filename}: {error.strerror}; make it, or "
            "name another one with --data or control.url, and run it again"
        ) from error
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(raw: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver would open transactions on its own, late and deferred: two writers would then meet half way.
    raw.isolation_level = None
    raw.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    _use_wal(raw)
    raw.execute("PRAGMA synchronous = FULL")  # NORMAL may lose the last commits with the power, though never tear
    raw.execute("PRAGMA foreign_keys = ON")


def _use_wal(raw: sqlite3.Connection) -> None:
    # SQLite does not wait for its busy handler when several processes turn WAL on at once.
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            raw.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    kind = connection.get_execution_options().get("tallyman_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {kind}")


def _is_of_the_store(error: exc.DatabaseError) -> bool:
    """Whether the store could not do it: what a statement got wrong (IntegrityError and others) is ours."""
    return isinstance(error, exc.OperationalError) or type(error) is exc.DatabaseError


def _refused(engine: sa.Engine, error: Exception) -> StoreError:
    cause = error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
    shown = engine.url.set(query={}).render_as_string(hide_password=True)  # a query may hold secrets, too
    said = " ".join(str(cause).split())
    step = next((step for words, step in _NEXT_STEPS if words in said), "try again")
    return StoreError(f"control store {shown}: {said}; {step}")


# What SQLite says, and what helps where trying again alone does not.
_NEXT_STEPS = (
    ("file is not a database", "put the right file there, or set control.url or --data to it, and run it again"),
    ("disk image is malformed", "restore it from a backup, and run it again"),
    ("readonly database", "let this user write the file and its folder, and run it again"),
    ("unable to open database file", "expected file and folder to be this user's to write; mend it and run it again"),
    ("disk is full", "make room on its disk, and run it again"),
)
_MAKERS: Mapping[str, Callable[[URL], sa.Engine]] = {
    "sqlite": _sqlite,
    "sqlite+pysqlite": _sqlite,
    "postgresql": _postgresql,
    "postgresql+psycopg": _postgresql,
}
