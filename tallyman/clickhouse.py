"""The door to ClickHouse: connections that carry every setting on which correctness depends, and the schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, Protocol

from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from tallyman.errors import StoreError

# ClickHouse's defaults moved in 2025 and 2026 (async inserts, deduplication of every insert): say what we rely on.
SETTINGS: Mapping[str, Any] = {
    "async_insert": 0,
    "deduplicate_insert": "disable",
    "insert_deduplicate": 0,
    "max_insert_block_size": 1_048_449,
    "optimize_on_insert": 1,
    "do_not_merge_across_partitions_select_final": 1,
    "session_timezone": "UTC",
}
NETWORK_ERRORS = (driver_errors.NetworkError, driver_errors.SocketTimeoutError, EOFError, ConnectionError)


class Endpoint(Protocol):
    """Where ClickHouse answers: `tallyman.config.ClickHouseConfig`."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def user(self) -> str: ...
    @property
    def password(self) -> str: ...
    @property
    def database(self) -> str: ...


def connect(endpoint: Endpoint, *, numpy: bool = False, timeout_s: float = 60) -> Client:
    """Return a client with our settings. It connects at its first query; one client serves one thread."""
    return Client(
        host=endpoint.host,
        port=endpoint.port,
        user=endpoint.user,
        password=endpoint.password,
        database=endpoint.database,
        connect_timeout=10,
        send_receive_timeout=timeout_s,
        client_name="tallyman",
        settings={**SETTINGS, "use_numpy": numpy, "insert_block_size": 1_000_000},
    )


def migrate(client: Client) -> list[str]:
    """Apply the numbered files of `tallyman/schema` that were not applied yet, in order; return their names.

    Every statement can be run twice, so that a migration that was cut off is simply run again.
    """
    client.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (name String, applied_at DateTime('UTC') DEFAULT now())"
        " ENGINE = ReplacingMergeTree ORDER BY name"
    )
    applied = {row[0] for row in client.execute("SELECT name FROM schema_migrations")}
    fresh = []
    for file in sorted(resources.files("tallyman.schema").iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql") or file.name in applied:
            continue
        for statement in split_statements(file.read_text("utf-8")):
            try:
                client.execute(statement)
            except driver_errors.ServerException as error:
                raise StoreError(f"schema/{file.name}: {error.message.splitlines()[0][:300]}") from error
        client.execute("INSERT INTO schema_migrations (name) VALUES", [(file.name,)])
        fresh.append(file.name)
    return fresh


def split_statements(text: str) -> list[str]:
    """Cut an SQL file at its semicolons; comments go."""
    lines = [re.sub(r"--.*$", "", line) for line in text.splitlines()]
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]
