"""chDB, the engine: one per process and folder, with as many sessions on it as there are clients."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from chdb.state.sqlitelike import Connection

from tallyman.errors import StackError
from tallyman.local.clickhouse import DISK_RESERVE_BYTES
from tallyman.local.clickhouse.changes import Changes
from tallyman.local.clickhouse.session import Session, quote


class Engine:
    """The engine of one data folder; close every session before it.

    Raises:
        StackError: If the folder cannot be opened; the message holds what the engine wrote to stderr.
    """

    def __init__(self, folder: Path, *, database: str, threads: int, memory_bytes: int) -> None:
        self.database = database
        self._connect_to = f"{folder}?config-file={_write_config(folder, memory_bytes)}"
        self._threads = threads
        self._tags = count(1)
        self._changes = Changes()
        self._lock = threading.Lock()
        with _stderr_of_engine() as said:
            try:
                self._admin = Connection(self._connect_to)
                self._run_admin("SELECT 1")
            except RuntimeError as error:
                raise StackError(f"{folder}: the ClickHouse engine did not start: {error}\n{said().strip()}") from error
        self._make_database()
        self.version = self._read_version()
        self.timezone = self._run_admin("SELECT timezone()").decode().strip()
        self._known_settings = frozenset(self._run_admin("SELECT name FROM system.settings").decode().split())

    def _run_admin(self, sql: str) -> bytes:
        with self._lock:
            return bytes(self._admin.query(sql, "TSVRaw").bytes() or b"")

    def _read_version(self) -> tuple[int, int, int]:
        major, minor, patch = self._run_admin("SELECT version()").decode().strip().split(".")[:3]
        return int(major), int(minor), int(patch)

    def _make_database(self) -> None:
        # chDB opens `default` with its own engine, Overlay, at every start: never drop it, its tables would go too.
        self._run_admin(f"CREATE DATABASE IF NOT EXISTS {quote(self.database)} ENGINE = Atomic")

    def open_session(self, database: str) -> Session:
        """Open a session in `database`.

        Raises:
            ServerError: If there is no such database.
        """
        tag = f"tallyman-front-{next(self._tags)}"
        return Session(
            lambda: Connection(self._connect_to),
            database=database,
            tag=tag,
            threads=self._threads,
            known_settings=self._known_settings,
            changes=self._changes,
        )

    def kill(self, tag: str) -> None:
        """Stop what the session of this tag runs, if anything, without waiting for it."""
        self._run_admin(f"KILL QUERY WHERE Settings['log_comment'] = '{tag}' ASYNC")

    def kill_all(self) -> None:
        """Stop everything that runs, for a stop of the server."""
        self._run_admin("KILL QUERY WHERE startsWith(Settings['log_comment'], 'tallyman-front-') ASYNC")

    def close(self) -> None:
        """Shut the engine down: tables are flushed, background work is ended."""
        with self._lock:
            self._admin.close()


def _write_config(folder: Path, memory_bytes: int) -> Path:
    """Write the engine's configuration beside its data: bounded memory, small caches, a reserve on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "front.xml"
    path.write_text(
        "<clickhouse>\n"
        f"  <max_server_memory_usage>{memory_bytes}</max_server_memory_usage>\n"
        "  <mark_cache_size>67108864</mark_cache_size>\n"
        "  <uncompressed_cache_size>0</uncompressed_cache_size>\n"
        "  <storage_configuration><disks><default>\n"
        f"    <keep_free_space_bytes>{DISK_RESERVE_BYTES}</keep_free_space_bytes>\n"
        "  </default></disks></storage_configuration>\n"
        "</clickhouse>\n",
        encoding="utf-8",
    )
    return path


@contextmanager
def _stderr_of_engine() -> Iterator[Callable[[], str]]:
    """Keep what is written to file descriptor 2 meanwhile: chDB says there why it failed to start."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)

        def read() -> str:
            said.seek(0)
            return said.read().decode("utf-8", "replace")

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)
