"""A real PostgreSQL for the control store: Debian's, started on a folder of its own, never as root.

Where it is not installed a test is skipped on a laptop and fails where CI is set.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.stack import not_here

_DEBIAN = Path("/usr/lib/postgresql")
_PATIENCE_S = 60


class Postgres:
    """A server that listens in a folder, not on a port, so that nobody can be faster.

    Args:
        folder: Short, because the path of a socket has at most 107 bytes.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self._account:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        self._run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username=tallyman", "--no-sync")

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c shared_buffers=16MB"
        self._run("pg_ctl", "start", "--wait", f"--timeout={_PATIENCE_S}", "-o", options, "-l", f"{self.folder}/log")

    def kill(self) -> None:
        """End all of its processes as a power cut does."""
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def make_database(self, options: str = "") -> str:
        """Return the URL of a new, empty database."""
        name = f"control_{uuid.uuid4().hex[:10]}"
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} {options}")
        engine.dispose()
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://tallyman@/{database}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._programs / program, "--pgdata", f"{self.folder}/data", *arguments]
        person = {"user": self._account.pw_uid, "group": self._account.pw_gid} if self._account else {}
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=_PATIENCE_S + 30, check=False, extra_groups=[] if person else None, **person,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stdout[-1000:]}"


def find_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; Debian keeps them off the PATH."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(_DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's PostgreSQL; a test that kills it starts it again."""
    programs = find_programs()
    if programs is None:
        not_here("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="tallyman-pg-", dir="/tmp"))
    try:
        server = Postgres(folder, programs)
        server.start()
        yield server
        server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


FreshControl = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_control(request: pytest.FixtureRequest, tmp_path: Path) -> FreshControl:
    """Make empty control stores, of each kind in turn: `fresh_control()` returns the URL of a new one."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        return server.make_database
    return lambda: f"sqlite:///{tmp_path / uuid.uuid4().hex[:6] / 'control.db'}"


@pytest.fixture
def control_url(fresh_control: FreshControl) -> str:
    """The URL of an empty control store, of each kind in turn."""
    return fresh_control()
