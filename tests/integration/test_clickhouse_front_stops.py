"""The embedded ClickHouse is killed, stopped, started again: nothing it answered for is lost."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("chdb")
from clickhouse_driver.errors import Error, ServerException

from tests.integration.clickhouse_front import Front, command

pytestmark = pytest.mark.integration

TABLE = "CREATE TABLE IF NOT EXISTS usage (n UInt64, tenant String) ENGINE = MergeTree ORDER BY n"
ROWS_PER_INSERT = 5000
SYS_TGKILL = 234 if os.uname().machine == "x86_64" else 131


def insert_until_killed(front: Front, answered: list[int]) -> None:
    client = front.client()
    for turn in range(100_000):
        rows = [(turn, "Zoë Åström")] * ROWS_PER_INSERT
        try:
            client.execute("INSERT INTO usage VALUES", rows)
        except (Error, OSError, EOFError):
            return
        answered.append(turn)


def test_kill_9_loses_no_answered_insert_and_leaves_no_half_one(tmp_path: Path) -> None:
    front = Front(tmp_path)
    front.client().execute(TABLE)
    answered: list[int] = []
    for _ in range(3):
        thread = threading.Thread(target=insert_until_killed, args=(front, answered))
        thread.start()
        time.sleep(0.4)
        front.kill()
        thread.join(10)
        front.start()
        client = front.client()
        stored = dict(client.execute("SELECT n, count() FROM usage GROUP BY n"))
        assert set(answered) <= set(stored)
        assert all(count % ROWS_PER_INSERT == 0 for count in stored.values())
        client.execute("TRUNCATE TABLE usage")
        assert answered
        answered.clear()
    front.kill()


def test_a_stop_is_clean_and_the_next_start_finds_everything(tmp_path: Path) -> None:
    front = Front(tmp_path)
    client = front.client()
    client.execute(TABLE)
    client.execute("INSERT INTO usage VALUES", [(1, "Zoë")])
    client.execute("CREATE TABLE default.kept (a Int8) ENGINE = MergeTree ORDER BY a")
    client.execute("INSERT INTO default.kept VALUES", [(7,)])
    assert front.stop() == 0
    front.start()
    client = front.client()
    assert client.execute("SELECT tenant FROM usage") == [("Zoë",)]
    assert client.execute("SELECT a FROM default.kept") == [(7,)]
    front.kill()


def test_a_stop_ends_a_running_query_with_an_error_and_not_with_a_short_result(tmp_path: Path) -> None:
    front = Front(tmp_path)
    heard: list[Exception] = []

    def ask() -> None:
        try:
            front.client().execute("SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))")
        except (Error, OSError, EOFError) as error:
            heard.append(error)

    stalled = front.client()  # a client that reads no more must not hold the stop up
    next(stalled.execute_iter("SELECT number FROM numbers(1000000000000)"))
    thread = threading.Thread(target=ask)
    thread.start()
    client = front.client()
    while len(client.execute("SELECT query FROM system.processes")) < 3:
        time.sleep(0.02)
    assert front.stop() == 0
    thread.join(10)
    assert len(heard) == 1


def test_a_stop_is_heard_that_interrupts_no_system_call_of_the_thread_that_waits(tmp_path: Path) -> None:
    """As when it comes just before the wait: here another thread of the process takes the signal."""
    front = Front(tmp_path)
    client = front.client()
    client.execute("SELECT 1")
    pid = front.process.pid
    other = next(thread for thread in threads_of(pid) if thread != pid and may_be_interrupted(pid, thread))
    assert ctypes.CDLL(None, use_errno=True).syscall(SYS_TGKILL, pid, other, signal.SIGTERM) == 0
    front.process.communicate(timeout=20)
    assert front.process.returncode == 0


def threads_of(pid: int) -> list[int]:
    return sorted(int(each.name) for each in Path(f"/proc/{pid}/task").iterdir())


def may_be_interrupted(pid: int, thread: int) -> bool:
    """Tell whether a thread takes SIGTERM: the engine's own ones block signals."""
    status = Path(f"/proc/{pid}/task/{thread}/status").read_text(encoding="utf-8")
    (blocked,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    return not int(blocked, 16) >> (signal.SIGTERM - 1) & 1


def test_a_second_process_on_the_folder_is_refused_with_a_sentence(tmp_path: Path) -> None:
    front = Front(tmp_path)
    second = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert f"(process {front.process.pid}) holds this folder" in second.stderr
    assert front.client().execute("SELECT 1") == [(1,)]
    front.kill()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = [*command(tmp_path)[:-1], port]
        refused = subprocess.run(options, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 1
    assert f"127.0.0.1:{port}: cannot listen there" in refused.stderr


def test_a_folder_the_engine_cannot_open_shows_what_the_engine_said(tmp_path: Path) -> None:
    front = Front(tmp_path)
    front.client().execute(TABLE)
    front.stop()
    (table,) = tmp_path.glob("store/*/*/usage.sql")
    table.write_text("ATTACH TABLE rubbish", encoding="utf-8")
    refused = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 1
    assert "the ClickHouse engine did not start" in refused.stderr
    assert "usage.sql" in refused.stderr


@pytest.mark.parametrize("engine", ["Kafka", "`Kafka`", "RabbitMQ", "NATS", "S3Queue"])
def test_engines_that_would_make_the_folder_unopenable_are_refused(tmp_path: Path, engine: str) -> None:
    front = Front(tmp_path)
    client = front.client()
    for verb in ("CREATE", "ATTACH"):
        with pytest.raises(ServerException, match="refused here") as refused:
            client.execute(f"{verb} TABLE topic (a Int8) ENGINE {'= ' if verb == 'CREATE' else ''}{engine}('a', 'b')")
        assert refused.value.code == 56
    front.kill()
    front.start()
    assert front.client().execute("SELECT 1") == [(1,)]
    front.kill()
