"""The data folder of a stack: where it lies, who holds it, and `stack.json`, which says what runs there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tallyman.errors import StackError
from tallyman.local.files import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickHouseEndpoint:
    """How to reach ClickHouse by its native protocol."""

    host: str
    port: int
    user: str = "default"
    password: str = ""
    database: str = "tallyman"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEntry:
    """A part of the stack or a service of ours, as `stack.json` has it.

    `endpoint` is "host:port" (empty: none), `metrics` the URL of its Prometheus metrics, `since` seconds since 1970.
    """

    pid: int | None
    state: str
    since: float
    restarts: int = 0
    endpoint: str = ""
    metrics: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """What `stack.json` says."""

    kafka: str  # "127.0.0.1:PORT"
    clickhouse: ClickHouseEndpoint | None
    control: str  # an SQLAlchemy URL
    started: datetime
    pid: int  # the supervisor's
    services: Mapping[str, ServiceEntry] = field(default_factory=dict)


def find_data_folder(data: Path | str | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the data folder: the one named, else `$TALLYMAN_DATA`, else `.tallyman/` here."""
    return Path(data or environ.get("TALLYMAN_DATA") or ".tallyman").absolute()


def read_endpoints(data: Path) -> Endpoints:
    """Read what runs in this folder.

    Raises:
        StackError: If nothing does, or `stack.json` is not ours to read.
    """
    path = data / "stack.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StackError(f"{data}: no stack runs here; start one with: tallyman up --data {data}") from None
    except ValueError as error:
        raise StackError(f"{path}: expected JSON, got {error}; stop with `tallyman down` and start again") from error
    try:
        return Endpoints(
            kafka=raw["kafka"],
            clickhouse=ClickHouseEndpoint(**raw["clickhouse"]) if raw["clickhouse"] else None,
            control=raw["control"],
            started=datetime.fromisoformat(raw["started"]),
            pid=raw["pid"],
            services={name: ServiceEntry(**entry) for name, entry in raw["services"].items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StackError(
            f"{path}: written by another version of Tallyman ({error}); stop that stack and start again"
        ) from error


def write_endpoints(data: Path, endpoints: Endpoints) -> None:
    """Write `stack.json`, whole or not at all."""
    clickhouse = endpoints.clickhouse
    raw = {
        "kafka": endpoints.kafka,
        "clickhouse": _plain(clickhouse) if clickhouse else None,
        "control": endpoints.control,
        "started": endpoints.started.isoformat(timespec="seconds"),
        "pid": endpoints.pid,
        "services": {name: _plain(entry) for name, entry in endpoints.services.items()},
    }
    write_atomically(data / "stack.json", json.dumps(raw, indent=2, ensure_ascii=False) + "\n")


def _plain(value: ClickHouseEndpoint | ServiceEntry) -> dict[str, object]:
    return {name: getattr(value, name) for name in value.__slots__}


class FolderLock:
    """Holds a data folder for one supervisor. The kernel lets go of it with the process, even after kill -9."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._file: IO[str] | None = None

    def hold(self) -> None:
        """Take the folder.

        Raises:
            StackError: If another process has it; says which, and since when.
        """
        self._data.mkdir(parents=True, exist_ok=True)
        file = (self._data / "stack.lock").open("a+", encoding="utf-8")
        while not _try_lock(file, fcntl.LOCK_EX):
            if holder := read_holder(self._data):  # else: it was a reader, who is gone by now
                file.close()
                pid, since = holder
                raise StackError(
                    f"{self._data}: a stack runs here already, held by process {pid} since {since}; "
                    "look at it with `tallyman status`, stop it with `tallyman down`, or use another --data"
                )
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let go; nothing happens if it is not held."""
        if self._file:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def read_holder(data: Path) -> tuple[int, str] | None:
    """Return the process that holds the folder now and since when; None if nobody does."""
    try:
        with (data / "stack.lock").open("r", encoding="utf-8") as file:
            if _try_lock(file, fcntl.LOCK_SH):
                return None
            noted = json.loads(file.read() or "{}")  # empty for the moment between the lock and its words
            return int(noted.get("pid", 0)), str(noted.get("since", "a moment ago"))
    except FileNotFoundError:
        return None


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
