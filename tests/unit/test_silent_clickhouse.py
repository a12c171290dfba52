"""A ClickHouse that takes a query and then falls silent: whoever asked says so, waits, and goes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from rules.engine import ClickHouseUsage
from tallyman import send
from tallyman.cli.context import clickhouse
from tallyman.clickhouse import connect
from tallyman.config import ClickHouseConfig
from tallyman.errors import StoreError
from tallyman.project import Project

# A server's hello: name, version 20.1, revision 54429 (settings are texts), time zone, shown name, patch.
HELLO = b"\x00\x0aClickHouse\x14\x01\x9d\xa9\x03\x03UTC\x01x\x00"


class Silent:
    """Greets, takes whatever it is asked, and says nothing more."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.endpoint = ClickHouseConfig(host="127.0.0.1", port=self._listener.getsockname()[1])
        self.clickhouse = self.endpoint  # as a project has it
        threading.Thread(target=self._greet, daemon=True).start()

    @property
    def connections(self) -> int:
        return len(self._open)

    def _greet(self) -> None:
        with suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                self._open.append(one)
                one.sendall(HELLO)

    def close(self) -> None:
        for one in (self._listener, *self._open):
            one.close()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    impatient = partial(connect, timeout_s=0.1)
    monkeypatch.setattr("tallyman.clickhouse.connect", impatient)
    monkeypatch.setattr("rules.engine.connect", lambda endpoint, timeout_s: impatient(endpoint))
    server = Silent()
    yield server
    server.close()


def test_the_rules_engine_waits_for_it(silent: Silent) -> None:
    usage = ClickHouseUsage(silent.endpoint, (), timedelta(seconds=10), 1)
    for _ in range(2):
        with pytest.raises(StoreError, match="ClickHouse: expected usage, got timed out; alarms stay as they are"):
            usage.complete_to()
    assert silent.connections == 2


def test_a_command_names_it(silent: Silent) -> None:
    with (
        pytest.raises(StoreError, match=r"ClickHouse at 127\.0\.0\.1:\d+: timed out; see: tallyman status"),
        clickhouse(cast(Project, silent)) as client,
    ):
        client.execute("SELECT 1")


def test_a_command_does_not_take_a_full_disk_for_clickhouse(silent: Silent) -> None:
    with pytest.raises(FileNotFoundError), clickhouse(cast(Project, silent)):
        Path("/nowhere/invoice.pdf").write_bytes(b"")


def test_who_waits_for_what_was_sent_asks_it_again(silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "_ASK_AGAIN_S", 0.01)
    ask: Any = partial(send._ask, connect(silent.endpoint, timeout_s=0.1), 0.3)
    with pytest.raises(StoreError, match="expected how far usage is booked, got timed out; everything sent is safe"):
        ask("SELECT 1", {})
    assert silent.connections >= 2
