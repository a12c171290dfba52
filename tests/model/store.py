"""The real tables in one database, and the doors through which processes reach them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from clickhouse_driver import errors as driver_errors

from tallyman.clickhouse import connect, migrate
from tallyman.repairs import unfence
from tests.model.process import Process
from tests.model.server import Endpoint

# What our statements read or write; each view stands for the tables that it shows.
_TABLES = (
    "usage_hot", "usage_rolled_up", "usage", "progress", "ids", "seals", "rolling_up", "rolled_up",
    "dead_letters", "conflicts", "corrections", "events", "repairs", "quarantines", "heard", "heard_newest",
    "collectors_retired", "heard_joined", "heard_joined_to",
    "usage_rebuilt", "rebuilds", "switches", "topics", "late_lost",
)  # fmt: skip
_SHOWN = ("usage", "usage_hot", "usage_rebuilt", "rebuilds", "switches", "seals")
_RUNS = ("heard", "heard_joined", "heard_joined_to")
_VIEWS = {"usage_booked": _SHOWN, "usage_minute": _SHOWN, "collector_gaps": _RUNS, "heard_runs": _RUNS}
_NAMES = re.compile(rf"\b({'|'.join((*_TABLES, *_VIEWS))})\b")
_FENCED = ("usage_hot", "progress", "ids")
_WRITES = re.compile(r"\s*(?:INSERT INTO|ALTER TABLE|TRUNCATE TABLE|(?:CREATE|DROP) TABLE(?: IF EXISTS)?)\s+(\w+)")


class Store:
    """One database with our schema. An answer is kept until something is written to the tables that it came from."""

    def __init__(self, endpoint: Endpoint, database: str = "model") -> None:
        maker = connect(endpoint)
        maker.execute(f"CREATE DATABASE IF NOT EXISTS {database}")
        maker.disconnect()
        mine = replace(endpoint, database=database)
        self._clients = {numpy: connect(mine, numpy=numpy) for numpy in (False, True)}
        migrate(self._clients[False])
        self.versions: Counter[str] = Counter()  # how often each table was written to
        self._answers: dict[tuple[Any, ...], tuple[list[int], Any]] = {}

    def close(self) -> None:
        for client in self._clients.values():
            client.disconnect()

    def empty(self) -> None:
        """Take all rows out, what killed sealers left, and the fences of repairs."""
        client = self._clients[False]
        for table in _TABLES:
            if self.versions[table]:
                client.execute(f"TRUNCATE TABLE {table}")
        for table in _FENCED:
            if self.versions[table]:
                unfence(client, table)
        for (name,) in client.execute("SHOW TABLES LIKE 'usage\\_staging\\_%'"):
            client.execute(f"DROP TABLE {name}")
        self.versions.clear()
        self._answers.clear()

    def execute(self, sql: str, params: Any = None, *, numpy: bool = False, **options: Any) -> Any:
        """Execute a statement as clickhouse-driver's `Client` does."""
        written = _WRITES.match(sql)
        if written:
            try:
                return self._clients[numpy].execute(sql, params, **options)
            finally:
                self.versions[written[1]] += 1
        names = _NAMES.findall(sql)
        tables = sorted({table for name in names for table in _VIEWS.get(name, (name,))})
        versions, question = [self.versions[table] for table in tables], (sql, repr(params), numpy, repr(options))
        kept = self._answers.get(question)
        if kept is None or kept[0] != versions or not tables:
            kept = self._answers[question] = versions, self._clients[numpy].execute(sql, params, **options)
        return kept[1]


class Door:
    """What a process has for clickhouse-driver's `Client`: it pauses before each statement, and some fail."""

    def __init__(self, store: Store, process: Process, faults: Faults, *, numpy: bool = False) -> None:
        self._store, self._process, self._faults, self._numpy = store, process, faults, numpy

    def execute(self, sql: str, params: Any = None, **options: Any) -> Any:
        answer = None
        for piece in self._faults.pieces(sql, params):
            self._process.pause(sql)
            executed, acknowledged = self._faults.fate(sql)
            if executed:
                answer = self._store.execute(sql, piece, numpy=self._numpy, **options)
            if not acknowledged:
                raise driver_errors.NetworkError("the connection was lost")
        return answer

    def disconnect(self) -> None:
        """A lost connection comes back with the next statement."""


class Faults:
    """What goes wrong between a process and the store.

    Attributes:
        share: Of statements that are not acknowledged; half of those are executed all the same.
        block_rows: Rows of usage that the server takes as one block; what is larger it cuts, each piece by itself.
        unread: Tables that nobody reads in this schedule: what is inserted there is acknowledged and forgotten.
        planned: The next statement that begins so is not acknowledged; whether it is executed.
    """

    def __init__(self, rng: Random, share: float) -> None:
        self._rng, self.share = rng, share
        self.block_rows = 1 << 20
        self.unread: tuple[str, ...] = ()
        self.planned: dict[str, bool] = {}

    def pieces(self, sql: str, params: Any) -> Sequence[Any]:
        """Cut what is inserted into usage_hot as the server does."""
        if not sql.startswith("INSERT INTO usage_hot") or len(params[0]) <= self.block_rows:
            return (params,)
        starts = range(0, len(params[0]), self.block_rows)
        return [[column[first : first + self.block_rows] for column in params] for first in starts]

    def fate(self, sql: str) -> tuple[bool, bool]:
        """Return whether a statement is executed, and whether that is acknowledged."""
        for begin, executed in list(self.planned.items()):
            if sql.startswith(begin):
                del self.planned[begin]
                return executed, False
        if self._rng.random() < self.share:
            return self._rng.random() < 0.5, False
        return not any(sql.startswith(f"INSERT INTO {table} ") for table in self.unread), True
