"""Run ClickHouse as a child: the `clickhouse` binary when it is on the PATH, else the engine embedded (chDB)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

from tallyman.local.clickhouse import DISK_RESERVE_BYTES
from tallyman.local.files import write_atomically
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.local.ports import answers, choose_port
from tallyman.local.supervise import Child, OneChild, RestartPolicy, Watcher, importable

SERVER_CONFIG = """<clickhouse>
    <!-- One server on loopback for the embedded stack; written at each start. -->
    <logger><level>warning</level><console>1</console></logger>
    <listen_host>{host}</listen_host>
    <tcp_port>{port}</tcp_port>
    <path>{folder}/data/</path>
    <tmp_path>{folder}/tmp/</tmp_path>
    <user_files_path>{folder}/user_files/</user_files_path>
    <format_schema_path>{folder}/format_schemas/</format_schema_path>
    <mark_cache_size>268435456</mark_cache_size>
    <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
    <storage_configuration><disks><default>
        <keep_free_space_bytes>{reserve}</keep_free_space_bytes>
    </default></disks></storage_configuration>
    <users><{user}>
        <password>{password}</password>
        <networks><ip>127.0.0.1</ip><ip>::1</ip></networks>
        <profile>default</profile><quota>default</quota>
        <access_management>1</access_management>
    </{user}></users>
    <profiles><default/></profiles>
    <quotas><default/></quotas>
    <user_directories><users_xml><path>config.xml</path></users_xml></user_directories>
</clickhouse>
"""


def clickhouse_child(
    folder: Path,
    endpoint: ClickHouseEndpoint,
    *,
    restart: RestartPolicy | None = None,
    which: Callable[[str], str | None] = shutil.which,
) -> Child:
    """Return ClickHouse as a child for the supervisor; it is ready when it answers a query in its database."""
    folder.mkdir(parents=True, exist_ok=True)
    binary = which("clickhouse")
    return Child(
        name="clickhouse",
        argv=_server(binary, folder, endpoint) if binary else _embedded(folder, endpoint),
        # In the environment, not on the command line, which every user of the machine can read.
        env={"TALLYMAN_CLICKHOUSE_PASSWORD": endpoint.password, **importable()},
        log=folder / "logs" / "clickhouse.log",
        is_ready=lambda: _answers_query(endpoint),
        stop_within_s=20,
        restart=restart,
        endpoint=f"{endpoint.host}:{endpoint.port}",
    )


def _embedded(folder: Path, endpoint: ClickHouseEndpoint) -> list[str]:
    return [
        *(sys.executable, "-m", "tallyman.local.clickhouse"),
        *("--data", str(folder / "chdb"), "--host", endpoint.host, "--port", str(endpoint.port)),
        *("--user", endpoint.user, "--database", endpoint.database),
    ]


def _server(binary: str, folder: Path, endpoint: ClickHouseEndpoint) -> list[str]:
    """Write the server's configuration and return its command. A folder of its own: chDB's is not a server's."""
    home = folder / "server"
    home.mkdir(exist_ok=True)
    config = SERVER_CONFIG.format(
        host=endpoint.host,
        port=endpoint.port,
        user=endpoint.user,
        password=escape(endpoint.password),
        folder=escape(str(home)),
        reserve=DISK_RESERVE_BYTES,
    )
    write_atomically(home / "config.xml", config)
    return [binary, "server", f"--config-file={home / 'config.xml'}"]


def _answers_query(endpoint: ClickHouseEndpoint) -> bool:
    """Say if it answers; makes the database where the server has none yet."""
    if not answers(endpoint.host, endpoint.port):
        return False
    from clickhouse_driver import Client

    client = Client(
        host=endpoint.host,
        port=endpoint.port,
        user=endpoint.user,
        password=endpoint.password,
        connect_timeout=5,
        send_receive_timeout=10,
    )
    try:
        client.execute(f"CREATE DATABASE IF NOT EXISTS `{endpoint.database}`")
        return bool(client.execute("SELECT 1") == [(1,)])
    finally:
        client.disconnect()


class ClickHouse(OneChild):
    """A ClickHouse for tests: started, stopped and killed at will, on one folder and port."""

    def __init__(self, folder: Path, *, port: int | None = None, on_event: Watcher | None = None) -> None:
        self.endpoint = ClickHouseEndpoint(host="127.0.0.1", port=choose_port(port))
        super().__init__(clickhouse_child(folder, self.endpoint), folder / "run", on_event)
