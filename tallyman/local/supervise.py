"""A small supervisor: starts children in order, restarts those that end, stops them in reverse order.

A child runs in its own process group, cannot outlive its supervisor (`exec_child.py`), and is found again by
the next one if it does (`leftovers.py`). Each has a keeper thread, which lives as long as the child.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tallyman
from tallyman.errors import StackError
from tallyman.local.files import read_last_lines
from tallyman.local.leftovers import TOKEN, clear_leftovers, forget, remember

ASK_EVERY_S = 0.05  # how often a child that starts is asked if it is ready
LOG_BYTES_KEPT = 20_000_000  # a longer log becomes NAME.1 when its child is started

State = Literal["starting", "ready", "restarting", "failing", "stopped"]
What = Literal["starting", "ready", "ended", "crash_loop", "stopping", "stopped", "killed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a child that ended is started again: soon, then ever later, at random so that several spread."""

    first_delay_s: float = 0.2
    longest_delay_s: float = 15.0
    well_after_s: float = 20.0  # a child that ran this long begins again with the first delay
    start_attempts: int = 3  # so often `start` tries before it gives up
    loop_after: int = 4  # so many ends in a row are told as a crash loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process that is kept running.

    Attributes:
        is_ready: Asked again and again while the child starts; None: it is ready as soon as it runs.
        restart: None leaves a child that ended alone (tests that kill it use this).
        endpoint: What `status` shows.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    is_ready: Callable[[], bool] | None = None
    ready_within_s: float = 90.0
    stop_within_s: float = 10.0
    restart: RestartPolicy | None = field(default_factory=RestartPolicy)
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class ChildEvent:
    """Something that happened to a child, for the one who watches."""

    name: str
    what: What
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildState:
    """How a child is now. `pid` is None while it does not run; `since` is in seconds since 1970."""

    name: str
    state: State
    pid: int | None
    since: float
    restarts: int
    endpoint: str


Watcher = Callable[[ChildEvent], None]


def backoff_s(failures: int, policy: RestartPolicy, draw: float) -> float:
    """Return how long to wait after so many failures in a row; `draw` is a random number in [0, 1).

    >>> [round(backoff_s(failures, RestartPolicy(), draw=0.5), 3) for failures in (1, 2, 3, 20)]
    [0.15, 0.3, 0.6, 11.25]
    """
    longest = min(policy.longest_delay_s, policy.first_delay_s * 2.0 ** min(failures - 1, 30))
    return longest * (0.5 + draw / 2)


def importable() -> dict[str, str]:
    """Return the environment in which a Python child imports what this process can, wherever it was started."""
    here = str(Path(tallyman.__file__).resolve().parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


class Supervisor:
    """Runs children. `run` is a folder for pid files; the caller sees to it that one supervisor has it."""

    def __init__(self, run: Path, on_event: Watcher | None = None) -> None:
        self._run = run
        self._on_event: Watcher = on_event or (lambda event: None)
        self._keepers: dict[str, _Keeper] = {}
        self._stopping = False
        self._changing = threading.Lock()
        run.mkdir(parents=True, exist_ok=True)
        self.cleared = clear_leftovers(run)

    def start(self, *children: Child) -> None:
        """Start these side by side and wait until all are ready.

        Raises:
            StackError: If one does not become ready; its last log lines are in the message, the others go on.
        """
        keepers = [_Keeper(child, self._run, self._on_event) for child in children]
        with self._changing:
            if self._stopping:
                raise StackError(f"{', '.join(child.name for child in children)}: not started: the stack stops")
            for keeper in keepers:
                self._keepers[keeper.child.name] = keeper
                keeper.begin()
        for keeper in keepers:
            keeper.started.wait()
        if faults := [keeper.fault for keeper in keepers if keeper.fault]:
            raise StackError("\n".join(faults))

    def states(self) -> list[ChildState]:
        """How each child is, in the order of their start."""
        return [keeper.state() for keeper in list(self._keepers.values())]

    def kill(self, name: str) -> None:
        """Kill a child and its group with -9, as a chaos test does, and wait until it is gone."""
        self._keepers[name].kill()

    def stop(self) -> None:
        """Stop all in reverse order: SIGTERM, and SIGKILL for what is still there after its grace."""
        with self._changing:
            self._stopping = True
        while self._keepers:
            _, keeper = self._keepers.popitem()
            keeper.end()


class OneChild:
    """A supervisor of one child that never restarts it: for tests, which start, stop and kill it at will."""

    def __init__(self, child: Child, run: Path, on_event: Watcher | None = None) -> None:
        self._child = replace(child, restart=None)
        self._run = run
        self._on_event = on_event
        self._supervisor: Supervisor | None = None

    @property
    def pid(self) -> int | None:
        """The process, None while it does not run."""
        states = self._supervisor.states() if self._supervisor else []
        return states[0].pid if states else None

    def start(self) -> None:
        """Start it, also after `kill`, and wait until it is ready."""
        self.stop()
        self._supervisor = Supervisor(self._run, self._on_event)
        self._supervisor.start(self._child)

    def stop(self) -> None:
        """Stop it cleanly; nothing happens if it does not run."""
        if self._supervisor:
            self._supervisor.stop()
            self._supervisor = None

    def kill(self) -> None:
        """Kill it with -9, and wait until it is gone."""
        if self._supervisor:
            self._supervisor.kill(self._child.name)


class _Keeper:
    """Keeps one child running until told to end."""

    def __init__(self, child: Child, run: Path, on_event: Watcher) -> None:
        self.child = child
        self.started = threading.Event()  # ready for the first time, or given up
        self.fault = ""
        self._run = run
        self._on_event = on_event
        self._ending = threading.Event()
        self._gone = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._state: State = "starting"
        self._since = time.time()
        self._restarts = 0
        # Linux kills the child when the *thread* that started it ends: this one outlives it.
        self._thread = threading.Thread(target=self._keep, name=f"keep-{child.name}", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def state(self) -> ChildState:
        process = self._process
        return ChildState(
            name=self.child.name,
            state=self._state,
            pid=process.pid if process else None,
            since=self._since,
            restarts=self._restarts,
            endpoint=self.child.endpoint,
        )

    def end(self) -> None:
        self._ending.set()
        if self._process:
            self._tell("stopping")
        self._signal(signal.SIGTERM)
        self._thread.join(self.child.stop_within_s)
        if self._thread.is_alive():
            self._tell("killed", f"still there {self.child.stop_within_s:g} s after SIGTERM")
            self._signal(signal.SIGKILL)
            self._thread.join()
        self._enter("stopped", "stopped")

    def kill(self) -> None:
        if process := self._process:
            self._gone.clear()
            self._signal(signal.SIGKILL)
            process.wait()
            self._gone.wait(5)

    def _keep(self) -> None:
        try:
            self._keep_running()
        finally:
            if not self.started.is_set() and not self.fault:
                self.fault = f"{self.child.name} was stopped before it was ready"
            self.started.set()

    def _keep_running(self) -> None:
        failures = 0
        policy = self.child.restart
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                fault = self._run_once(began)
            except OSError as error:  # no more processes, a full disk: that may pass
                fault = f"could not be started: {error}"
            self._clear()
            if self._ending.is_set():
                break
            failures = 1 if policy and time.monotonic() - began > policy.well_after_s else failures + 1
            if not self._may_try_again(failures, fault):
                break
            assert policy is not None
            self._restarts += 1
            self._ending.wait(backoff_s(failures, policy, random.random()))

    def _run_once(self, began: float) -> str:
        """Run the child until it ends; return how it did."""
        process = self._spawn()
        if fault := self._await_ready(process):
            return fault
        self._enter("ready", "ready", f"after {time.monotonic() - began:.1f} s")
        self.started.set()
        process.wait()
        return f"ended with {_say_code(process.returncode)} after {time.monotonic() - began:.1f} s"

    def _may_try_again(self, failures: int, fault: str) -> bool:
        policy = self.child.restart
        looping = policy is not None and failures >= policy.loop_after
        told = self._explain(fault) if looping or not self.started.is_set() else fault
        if policy is None or (not self.started.is_set() and failures >= policy.start_attempts):
            self.fault = "" if self.started.is_set() else told
            self._enter("stopped", "ended", fault)
            return False
        self._enter("failing" if looping else "restarting", "crash_loop" if looping else "ended", told)
        return True

    def _explain(self, fault: str) -> str:
        lines = read_last_lines(self.child.log).replace("\n", "\n    ")
        return f"{self.child.name} {fault}; its last log lines ({self.child.log}):\n    {lines}"

    def _spawn(self) -> subprocess.Popen[bytes]:
        child = self.child
        child.log.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if child.log.stat().st_size > LOG_BYTES_KEPT:
                child.log.replace(child.log.with_name(f"{child.log.name}.1"))
        token = secrets.token_hex(8)
        wrapper = str(Path(__file__).with_name("exec_child.py"))
        with child.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", wrapper, str(os.getpid()), *child.argv],
                env={**os.environ, **child.env, TOKEN: token},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self._process = process
        self._since = time.time()
        remember(self._run, child.name, process.pid, token)
        self._enter("starting", "starting", f"pid {process.pid}")
        if self._ending.is_set():  # `end` came before there was a process to signal
            self._signal(signal.SIGTERM)
        return process

    def _await_ready(self, process: subprocess.Popen[bytes]) -> str:
        """Wait until the child is ready; return what is wrong if it is not, else an empty text."""
        deadline = time.monotonic() + self.child.ready_within_s
        is_ready = self.child.is_ready or (lambda: True)
        doubt = ""
        began = time.monotonic()
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(ASK_EVERY_S)
                took = time.monotonic() - began
                return f"ended with {_say_code(process.returncode)} after {took:.1f} s, before it was ready"
            try:
                if is_ready():
                    return ""
            except Exception as error:  # noqa: BLE001  (a check that cannot answer yet; told if it never can)
                doubt = f" (the check said: {error!r})"
            if time.monotonic() > deadline:
                return f"was not ready within {self.child.ready_within_s:g} s{doubt}"

    def _clear(self) -> None:
        """Leave nothing of the child behind: not itself if it never became ready, not its own children."""
        if process := self._process:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._process = None
        with suppress(OSError):
            forget(self._run, self.child.name)
        self._gone.set()

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process and process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

    def _enter(self, state: State, what: What, detail: str = "") -> None:
        self._state = state
        self._tell(what, detail)

    def _tell(self, what: What, detail: str = "") -> None:
        with suppress(OSError):  # on a full disk nothing can be told, but everything is still kept running
            self._on_event(ChildEvent(self.child.name, what, detail))


def _say_code(code: int) -> str:
    """Name an exit code: 0 to 255, or the signal that ended the process."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
