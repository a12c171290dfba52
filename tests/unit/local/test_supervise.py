"""The supervisor, tried on small children of a few lines each."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tallyman.errors import StackError
from tallyman.local.supervise import Child, ChildEvent, RestartPolicy, Supervisor, backoff_s

QUICK = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.05)
SLEEP = "import time; time.sleep(60)"
IGNORE_TERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)


class Diary:
    """Keeps what a supervisor tells, and lets a test wait for it."""

    def __init__(self) -> None:
        self.events: list[ChildEvent] = []
        self._told = threading.Condition()

    def __call__(self, event: ChildEvent) -> None:
        with self._told:
            self.events.append(event)
            self._told.notify_all()

    def wait_for(self, what: str, *, times: int = 1, within_s: float = 15) -> ChildEvent:
        def seen() -> list[ChildEvent]:
            return [event for event in self.events if event.what == what]

        with self._told:
            assert self._told.wait_for(lambda: len(seen()) >= times, within_s), f"{what} not in {self.events}"
            return seen()[times - 1]

    def words(self, what: str) -> list[str]:
        return [event.name for event in self.events if event.what == what]


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def supervisor(tmp_path: Path, diary: Diary) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "run", diary)
    yield supervisor
    supervisor.stop()


def child(tmp_path: Path, name: str, code: str, **more: object) -> Child:
    fields = {"restart": QUICK, **more}
    return Child(name=name, argv=[sys.executable, "-c", code], log=tmp_path / f"{name}.log", **fields)  # type: ignore[arg-type]


def says(log: Path, word: str) -> Callable[[], bool]:
    return lambda: log.exists() and word in log.read_text(encoding="utf-8")


def with_grandchild(how: str = "") -> str:
    """A child that starts one of its own, prints its pid, and stays."""
    start = f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}]{how})"
    return f"import subprocess, sys; print({start}.pid, 'up', flush=True); {SLEEP}"


def pid_of(supervisor: Supervisor, name: str = "pipeline") -> int:
    pid = {state.name: state.pid for state in supervisor.states()}[name]
    assert pid
    return pid


def wait_until(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_start_returns_when_the_child_says_it_is_ready(tmp_path: Path, supervisor: Supervisor) -> None:
    code = f"import time; time.sleep(0.2); print('ready on port 9', flush=True); {SLEEP}"
    log = tmp_path / "pipeline.log"
    supervisor.start(child(tmp_path, "pipeline", code, is_ready=says(log, "ready on")))
    assert "ready on" in log.read_text(encoding="utf-8")
    assert [state.state for state in supervisor.states()] == ["ready"]


def test_a_child_that_does_not_start_is_explained_by_its_last_lines(tmp_path: Path, supervisor: Supervisor) -> None:
    code = "raise SystemExit('agent: spool of Zoë Åström: no room')"
    never = child(tmp_path, "agent", code, is_ready=lambda: False)
    with pytest.raises(StackError, match=r"(?s)agent ended with exit code 1 .*Zoë Åström: no room"):
        supervisor.start(never)


def test_a_command_that_is_not_there_is_named(tmp_path: Path, supervisor: Supervisor) -> None:
    missing = Child(
        name="agent", argv=["tallyman-agnet"], log=tmp_path / "a.log", is_ready=lambda: False, restart=QUICK
    )
    with pytest.raises(StackError, match="tallyman-agnet: cannot be run: No such file"):
        supervisor.start(missing)


def test_a_child_that_never_becomes_ready_is_given_up_and_killed(tmp_path: Path, supervisor: Supervisor) -> None:
    def check() -> bool:
        raise OSError("connection refused")

    deaf = child(tmp_path, "rules", SLEEP, is_ready=check, ready_within_s=0.2, restart=None)
    with pytest.raises(StackError, match=r"rules was not ready within 0.2 s .*connection refused"):
        supervisor.start(deaf)
    assert supervisor.states()[0].pid is None


def test_a_killed_child_is_started_again(tmp_path: Path, supervisor: Supervisor, diary: Diary) -> None:
    supervisor.start(child(tmp_path, "pipeline", SLEEP))
    first = pid_of(supervisor)
    supervisor.kill("pipeline")
    diary.wait_for("ready", times=2)
    assert pid_of(supervisor) != first
    assert supervisor.states()[0].restarts == 1


def test_a_crash_loop_is_told_with_the_last_lines_and_goes_on(
    tmp_path: Path, supervisor: Supervisor, diary: Diary
) -> None:
    code = "import time; print('rules.yaml: no such meter', flush=True); time.sleep(0.1)"
    supervisor.start(child(tmp_path, "rules", code))
    told = diary.wait_for("crash_loop", times=2)
    assert "rules.yaml: no such meter" in told.detail


def test_delays_grow_to_a_bound_and_spread() -> None:
    policy = RestartPolicy(first_delay_s=1, longest_delay_s=30)
    assert [backoff_s(n, policy, 0.0) for n in (1, 2, 3, 50)] == [0.5, 1.0, 2.0, 15.0]
    assert backoff_s(50, policy, 0.999) < 30


def test_children_stop_in_reverse_order(tmp_path: Path, diary: Diary) -> None:
    supervisor = Supervisor(tmp_path / "run", diary)
    supervisor.start(child(tmp_path, "kafka", SLEEP))
    supervisor.start(child(tmp_path, "pipeline", SLEEP))
    supervisor.stop()
    assert diary.words("stopped") == ["pipeline", "kafka"]


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path, diary: Diary) -> None:
    supervisor = Supervisor(tmp_path / "run", diary)
    up = says(tmp_path / "pipeline.log", "up")
    supervisor.start(child(tmp_path, "pipeline", IGNORE_TERM, is_ready=up, stop_within_s=0.2))
    pid = pid_of(supervisor)
    supervisor.stop()
    assert is_gone(pid)
    assert diary.words("killed") == ["pipeline"]


def test_what_a_child_has_started_ends_with_it(tmp_path: Path, supervisor: Supervisor) -> None:
    code = with_grandchild()
    log = tmp_path / "pipeline.log"
    supervisor.start(child(tmp_path, "pipeline", code, is_ready=says(log, "up")))
    grandchild = int(log.read_text().split()[0])
    supervisor.stop()
    wait_until(lambda: is_gone(grandchild))


SUPERVISOR = """
import sys, threading
from pathlib import Path
from tallyman.local.supervise import Child, Supervisor
run = Path(sys.argv[1])
supervisor = Supervisor(run)
supervisor.start(Child(name="pipeline", argv=[sys.executable, "-c", sys.argv[2]], log=run / "pipeline.log",
    is_ready=lambda: "up" in (run / "pipeline.log").read_text()))
print("started", flush=True)
threading.Event().wait()
"""


def start_supervisor(run: Path, code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, run, code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    return process


def test_a_child_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    process = start_supervisor(tmp_path, IGNORE_TERM)
    pid = json.loads((tmp_path / "pipeline.json").read_text())["pid"]
    process.kill()
    process.wait()
    wait_until(lambda: is_gone(pid))


def test_what_a_killed_supervisor_leaves_behind_is_cleared_by_the_next(tmp_path: Path) -> None:
    """A grandchild is not killed by the kernel; the next supervisor knows it by its token."""
    code = with_grandchild(", start_new_session=True")
    process = start_supervisor(tmp_path, code)
    grandchild = int((tmp_path / "pipeline.log").read_text().split()[0])
    process.kill()
    process.wait()
    assert not is_gone(grandchild)
    assert grandchild in Supervisor(tmp_path).cleared
    assert is_gone(grandchild)
    assert list(tmp_path.glob("*.json")) == []


def test_a_leftover_that_is_slow_to_die_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes a killed process's memory, and its environment with it, before the process is gone."""
    kill = psutil.Process.kill

    def kill_slowly(process: psutil.Process) -> None:
        monkeypatch.setattr(psutil.Process, "environ", lambda _: {})
        threading.Timer(0.3, kill, [process]).start()

    process = start_supervisor(tmp_path, with_grandchild(", start_new_session=True"))
    grandchild = int((tmp_path / "pipeline.log").read_text().split()[0])
    process.kill()
    process.wait()
    monkeypatch.setattr(psutil.Process, "kill", kill_slowly)
    assert grandchild in Supervisor(tmp_path).cleared
    assert is_gone(grandchild)


def test_a_stranger_that_has_the_pid_now_is_left_alone(tmp_path: Path) -> None:
    noted = {"pid": os.getpid(), "began": 1_000.0, "token": "of-a-run-long-ago"}
    (tmp_path / "pipeline.json").write_text(json.dumps(noted))
    assert Supervisor(tmp_path).cleared == []


def test_a_pid_file_that_is_cut_off_is_no_trap(tmp_path: Path) -> None:
    (tmp_path / "kafka.json").write_text('{"pid": 12')
    assert Supervisor(tmp_path).cleared == []
    assert list(tmp_path.glob("*.json")) == []


def test_nothing_is_started_once_the_supervisor_stops(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "run")
    supervisor.stop()
    with pytest.raises(StackError, match="pipeline: not started: the stack stops"):
        supervisor.start(child(tmp_path, "pipeline", SLEEP))


def test_stopping_while_a_child_starts_does_not_wait_for_it(tmp_path: Path, diary: Diary) -> None:
    supervisor = Supervisor(tmp_path / "run", diary)
    slow = child(tmp_path, "kafka", SLEEP, is_ready=lambda: False)
    faults: list[str] = []

    def start() -> None:
        with pytest.raises(StackError) as raised:
            supervisor.start(slow)
        faults.append(str(raised.value))

    starting = threading.Thread(target=start)
    starting.start()
    diary.wait_for("starting")
    began = time.monotonic()
    supervisor.stop()
    starting.join(5)
    assert faults == ["kafka was stopped before it was ready"]
    assert time.monotonic() - began < 5


def test_a_signal_is_named_when_it_ended_the_child(tmp_path: Path, supervisor: Supervisor, diary: Diary) -> None:
    supervisor.start(child(tmp_path, "pipeline", SLEEP))
    os.kill(pid_of(supervisor), signal.SIGSEGV)
    assert "SIGSEGV" in diary.wait_for("ended").detail


def test_a_full_disk_on_which_nothing_can_be_told_does_not_end_the_watch(tmp_path: Path) -> None:
    """Who watches writes files; the child that ended while there was no room is started again all the same."""

    def tell(event: ChildEvent) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    supervisor = Supervisor(tmp_path / "run", tell)
    try:
        supervisor.start(child(tmp_path, "kafka", SLEEP))
        before = pid_of(supervisor, "kafka")
        supervisor.kill("kafka")
        wait_until(lambda: supervisor.states()[0].pid not in (before, None))
        wait_until(lambda: supervisor.states()[0].state == "ready")
    finally:
        supervisor.stop()


def test_a_child_that_cannot_be_started_for_a_while_is_started_when_it_can(
    tmp_path: Path, supervisor: Supervisor, diary: Diary
) -> None:
    supervisor.start(child(tmp_path, "kafka", SLEEP))
    run = tmp_path / "run"
    run.rename(tmp_path / "elsewhere")
    run.write_text("in the way", encoding="utf-8")
    supervisor.kill("kafka")
    diary.wait_for("crash_loop")
    run.unlink()
    (tmp_path / "elsewhere").rename(run)
    diary.wait_for("ready", times=2)
    assert any("could not be started: [Errno 20] Not a directory" in event.detail for event in diary.events)
