"""The whole embedded stack in one folder: up, down, status, and what a kill -9 leaves."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clickhouse_driver import Client

from tallyman.errors import StackError
from tallyman.local.folder import Endpoints, find_data_folder, read_endpoints
from tallyman.local.kafka import Broker
from tallyman.local.ports import answers, choose_port
from tallyman.local.stack import Service, Stack, StackOptions, running_stack
from tallyman.local.supervise import ChildEvent, RestartPolicy
from tallyman.local.updown import down, status, up

pytestmark = pytest.mark.integration

ONLY_CLICKHOUSE = StackOptions(kafka=False, restart=RestartPolicy(first_delay_s=0.05))
NO_PARTS = StackOptions(kafka=False, clickhouse=False, restart=RestartPolicy(first_delay_s=0.05))

SERVICE = """
import http.server, json, os, pathlib
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        still = self.path == "/readyz" and pathlib.Path("STILL").exists()
        self.send_response(503 if still else 200)
        self.end_headers()
        self.wfile.write(b"stands still" if still else b"well")
    def log_message(self, *_): pass
print(json.loads((pathlib.Path(os.environ["TALLYMAN_DATA"]) / "stack.json").read_text())["control"], flush=True)
http.server.HTTPServer(("127.0.0.1", int(os.environ["TALLYMAN_METRICS_PORT"])), Health).serve_forever()
"""


def service(tmp_path: Path, name: str = "pipeline") -> Service:
    """A service that is ready unless there is a file STILL in its folder."""
    return Service(name=name, argv=[sys.executable, "-c", SERVICE.replace("STILL", str(tmp_path / "still"))])


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A folder with a name that not every tool likes; what a failed test leaves running is stopped."""
    folder = tmp_path / "Zoë Åströms Wolke"
    yield folder
    down(folder)


def ask(endpoints: Endpoints, sql: str) -> list[tuple[object, ...]]:
    assert endpoints.clickhouse
    clickhouse = endpoints.clickhouse
    client = Client(host=clickhouse.host, port=clickhouse.port, database=clickhouse.database)
    rows: list[tuple[object, ...]] = client.execute(sql)
    client.disconnect()
    return rows


def test_everything_runs_and_comes_back_with_its_data(data: Path, tmp_path: Path) -> None:
    """Both parts and a service; again on the same ports; nothing is left behind at the end."""
    with running_stack(data, [service(tmp_path)]) as first:
        ask(first, "CREATE TABLE notes (n UInt32) ENGINE = MergeTree ORDER BY n")
        ask(first, "INSERT INTO notes SELECT number FROM numbers(1000)")
        assert {part.name: part.state for part in status(data).parts} == {
            "kafka": "ready",
            "clickhouse": "ready",
            "pipeline": "ready",
        }
        assert read_endpoints(data) == first
    assert not (data / "stack.json").exists()
    with running_stack(data) as second:
        assert (second.kafka, second.clickhouse) == (first.kafka, first.clickhouse)
        assert ask(second, "SELECT count() FROM notes") == [(1000,)]
        pids = [entry.pid for entry in second.services.values()]
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)


def test_a_second_stack_on_the_same_folder_is_refused_with_a_sentence(data: Path) -> None:
    with running_stack(data, options=NO_PARTS), pytest.raises(StackError) as refused:
        Stack(data, options=NO_PARTS).start()
    assert "a stack runs here already, held by process" in str(refused.value)
    assert "tallyman down" in str(refused.value)


@pytest.mark.long
def test_nothing_that_a_killed_stack_left_is_in_the_way(data: Path, tmp_path: Path) -> None:
    """Locks, pid files, stack.json: status calls it dead, and the next up just works, with the data."""
    order = f"""
import sys, threading
from pathlib import Path
from tallyman.local.stack import Stack
Stack(Path({str(data)!r})).start()
print("up", flush=True)
threading.Event().wait()
"""
    killed = subprocess.Popen([sys.executable, "-c", order], stdout=subprocess.PIPE, text=True)
    assert killed.stdout
    assert killed.stdout.readline() == "up\n"
    before = read_endpoints(data)
    ask(before, "CREATE TABLE notes (n UInt32) ENGINE = MergeTree ORDER BY n")
    ask(before, "INSERT INTO notes VALUES (7)")
    killed.kill()
    killed.wait()

    seen = status(data)
    assert not seen.running
    assert {part.state for part in seen.parts} == {"dead"}

    with running_stack(data) as after:
        assert after.kafka == before.kafka
        assert ask(after, "SELECT n FROM notes") == [(7,)]


def test_a_part_that_is_killed_comes_back_and_status_counts_it(data: Path) -> None:
    back = threading.Event()
    events: list[ChildEvent] = []

    def watch(event: ChildEvent) -> None:
        events.append(event)
        if [e.what for e in events].count("ready") == 2:
            back.set()

    stack = Stack(data, options=ONLY_CLICKHOUSE, on_event=watch)
    try:
        before = stack.start()
        stack.kill("clickhouse")
        assert back.wait(30), events
        after = read_endpoints(data)
        assert after.services["clickhouse"].pid != before.services["clickhouse"].pid
        assert [part.restarts for part in status(data).parts] == [1]
        assert ask(after, "SELECT 1") == [(1,)]
    finally:
        stack.stop()


def test_detached_it_stays_until_down(data: Path) -> None:
    told: list[ChildEvent] = []
    ready: list[Endpoints] = []
    up(data, options=ONLY_CLICKHOUSE, detach=True, on_event=told.append, on_ready=ready.append)
    assert ask(ready[0], "SELECT 1") == [(1,)]
    assert ("clickhouse", "ready") in [(event.name, event.what) for event in told]
    assert status(data).running
    assert down(data)
    assert not status(data).running
    assert ready[0].clickhouse
    assert not answers("127.0.0.1", ready[0].clickhouse.port)
    assert down(data) is False


def test_detached_a_fault_comes_back_with_its_last_lines(data: Path) -> None:
    broken = Service(name="rules", argv=[sys.executable, "-c", "raise SystemExit('alarms/disk.yaml: line 3')"])
    with pytest.raises(StackError, match=r"(?s)rules ended with exit code 1.*alarms/disk\.yaml: line 3"):
        up(data, [broken], options=NO_PARTS, detach=True)
    assert not status(data).running


def test_in_the_foreground_it_stops_cleanly_by_a_signal(data: Path) -> None:
    order = f"""
import sys
from pathlib import Path
from tallyman.local.stack import StackOptions
from tallyman.local.updown import up
up(Path({str(data)!r}), options=StackOptions(kafka=False), on_ready=lambda endpoints: print("up", flush=True))
print("stopped")
"""
    process = subprocess.Popen([sys.executable, "-c", order], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert process.communicate(timeout=30)[0] == "stopped\n"
    assert process.returncode == 0
    assert not (data / "stack.json").exists()


def test_a_service_that_stands_still_is_shown_as_not_ready(data: Path, tmp_path: Path) -> None:
    with running_stack(data, [service(tmp_path)], options=NO_PARTS) as endpoints:
        assert endpoints.services["pipeline"].metrics
        assert [part.state for part in status(data).parts] == ["ready"]
        (tmp_path / "still").touch()
        (part,) = status(data).parts
        assert (part.state, part.why) == ("not ready", "stands still")


def test_a_configured_port_that_is_taken_stops_the_start(data: Path) -> None:
    with socket.create_server(("127.0.0.1", choose_port())) as server:
        port = server.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} for clickhouse: something listens there already"):
            Stack(data, options=StackOptions(kafka=False, clickhouse_port=port)).start()
    with running_stack(data, options=NO_PARTS):
        assert status(data).running


def test_without_a_stack_the_message_says_how_to_start_one(data: Path) -> None:
    with pytest.raises(StackError, match="no stack runs here; start one with: tallyman up"):
        read_endpoints(data)


def test_the_data_folder_is_the_option_then_the_environment_then_a_default() -> None:
    assert find_data_folder("/srv/a", {"TALLYMAN_DATA": "/srv/b"}) == Path("/srv/a")
    assert find_data_folder(None, {"TALLYMAN_DATA": "/srv/b"}) == Path("/srv/b")
    assert find_data_folder(None, {}) == Path.cwd() / ".tallyman"


@pytest.mark.long
def test_a_broker_comes_back_on_another_port_when_its_own_is_taken(tmp_path: Path) -> None:
    """The listeners are not part of what was formatted, neither the broker's nor the controller's."""
    broker = Broker(tmp_path / "kafka")
    broker.start()
    topic = broker.create_topic("usage.events")
    broker.kill()
    with socket.create_server(("127.0.0.1", broker.plan.port)):
        moved = Broker(tmp_path / "kafka", port=broker.plan.port)
        moved.start()
        try:
            assert moved.bootstrap != broker.bootstrap
            assert topic in moved.topics()
        finally:
            moved.stop()


def test_the_file_of_the_stack_is_plain_json_for_other_programs(data: Path) -> None:
    with running_stack(data, options=ONLY_CLICKHOUSE):
        raw = json.loads((data / "stack.json").read_text(encoding="utf-8"))
    assert raw["control"] == f"sqlite:///{data}/control.db"
    assert set(raw["clickhouse"]) == {"host", "port", "user", "password", "database"}
    assert set(raw["services"]["clickhouse"]) >= {"pid", "metrics"}
