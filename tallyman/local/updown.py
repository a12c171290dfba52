"""What `tallyman up`, `down` and `status` do.

`python -m tallyman.local.updown` is the supervisor that `up(detach=True)` leaves behind; it tells the one who waits
for it, line by line through a pipe, what happens until it is ready.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil

from tallyman.errors import StackError
from tallyman.local.files import read_last_lines
from tallyman.local.folder import Endpoints, ServiceEntry, read_endpoints, read_holder
from tallyman.local.leftovers import clear_leftovers
from tallyman.local.ports import answers
from tallyman.local.stack import Service, Stack, StackOptions, probe
from tallyman.local.supervise import ChildEvent, RestartPolicy, Watcher, importable

STOP_WITHIN_S = 90.0  # Kafka 30, ClickHouse 20, each of ours 10
_LOOK_UP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStatus:
    """One row of `tallyman status`.

    `state` is one of ready, not ready, starting, restarting, failing, stopped, dead (its stack was killed). `why`
    is what a service that is not ready says of itself.
    """

    name: str
    state: str
    pid: int | None
    endpoint: str
    uptime_s: float | None
    restarts: int
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackStatus:
    """What `tallyman status` shows: is there a supervisor, and how is each part."""

    running: bool
    pid: int | None
    since: str
    parts: Sequence[PartStatus]


def up(
    data: Path,
    services: Sequence[Service] = (),
    *,
    options: StackOptions | None = None,
    detach: bool = False,
    on_event: Watcher | None = None,
    on_ready: Callable[[Endpoints], None] | None = None,
) -> None:
    """Start the stack; in the foreground, run it until SIGINT or SIGTERM, then stop it.

    Args:
        detach: Leave the supervisor behind and return as soon as everything is ready.
        on_event: Told of each step, from several threads.
        on_ready: Called once, with the endpoints, when everything runs.

    Raises:
        StackError: If the folder is held already, or a part does not start. Nothing is left running then.
    """
    data = data.absolute()
    tell: Watcher = on_event or (lambda event: None)
    if detach:
        _start_detached(data, services, options or StackOptions(), tell)
        if on_ready:
            on_ready(read_endpoints(data))
        return
    with _interrupted_by(signal.SIGTERM, signal.SIGHUP):
        stack = Stack(data, services, options=options, on_event=tell)
        try:
            endpoints = stack.start()
            if on_ready:
                on_ready(endpoints)
            _wait_for_a_signal()
        except KeyboardInterrupt:
            pass
        finally:
            stack.stop()


def down(data: Path, *, on_event: Watcher | None = None) -> bool:
    """Stop the stack of this folder and wait until it is gone; False if none ran.

    What a killed supervisor has left behind is cleared too.

    Raises:
        StackError: If it does not stop, even when killed.
    """
    data = data.absolute()
    tell: Watcher = on_event or (lambda event: None)
    holder = read_holder(data)
    if holder is None:
        (data / "stack.json").unlink(missing_ok=True)
        return bool(clear_leftovers(data / "run"))
    for number, patience_s in ((signal.SIGTERM, STOP_WITHIN_S), (signal.SIGKILL, 10.0)):
        pid = (read_holder(data) or holder)[0]
        if pid:
            tell(ChildEvent("stack", "stopping", f"{number.name} to process {pid}"))
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if _wait_until_free(data, pid, patience_s):
            clear_leftovers(data / "run")
            (data / "stack.json").unlink(missing_ok=True)
            tell(ChildEvent("stack", "stopped"))
            return True
    raise StackError(f"{data}: process {holder[0]} holds the folder and does not end; look at it with: ps {holder[0]}")


def status(data: Path) -> StackStatus:
    """Say how the stack of this folder is: by its lock, its pids and its endpoints, not by what a file claims."""
    data = data.absolute()
    holder = read_holder(data)
    try:
        endpoints = read_endpoints(data)
    except StackError:
        return StackStatus(
            running=holder is not None, pid=holder[0] if holder else None, since=_since(holder), parts=()
        )
    parts = [_look_at(name, entry, alive=holder is not None) for name, entry in endpoints.services.items()]
    return StackStatus(
        running=holder is not None, pid=endpoints.pid if holder else None, since=_since(holder), parts=parts
    )


def _since(holder: tuple[int, str] | None) -> str:
    return holder[1] if holder else ""


def _look_at(name: str, entry: ServiceEntry, *, alive: bool) -> PartStatus:
    runs = alive and entry.pid is not None and psutil.pid_exists(entry.pid)
    state, why = entry.state if alive else "dead", ""
    if runs and state == "ready":
        host, _, port = entry.endpoint.rpartition(":")
        ready, why = probe(int(port), "readyz") if entry.metrics else (not port or answers(host, int(port)), "")
        state = "ready" if ready else "not ready"
    return PartStatus(
        name=name,
        state=state,
        pid=entry.pid if runs else None,
        endpoint=entry.endpoint,
        uptime_s=time.time() - entry.since if runs else None,
        restarts=entry.restarts,
        why="" if state == "ready" else why,
    )


def _wait_until_free(data: Path, pid: int, patience_s: float) -> bool:
    """Wait for the end of the process, then see that nobody holds the folder."""
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        if pid:
            psutil.Process(pid).wait(patience_s)
    deadline = time.monotonic() + 2
    while read_holder(data) and time.monotonic() < deadline:
        time.sleep(0.02)  # a zombie, or a supervisor that has not written its pid yet
    return read_holder(data) is None


def _wait_for_a_signal() -> None:
    """Wait until a handler raises. Now and then it looks up: a signal that comes just before a wait does not end it."""
    never = threading.Event()
    while not never.wait(_LOOK_UP_S):
        pass


@contextmanager
def _interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Let these signals end the block as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_detached(data: Path, services: Sequence[Service], options: StackOptions, tell: Watcher) -> None:
    """Start the supervisor in a session of its own and pass on what it tells until it is ready or has failed."""
    log = data / "logs" / "stack.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    order = {
        "data": str(data),
        "services": [asdict(service) for service in services],
        "options": asdict(options),
    }
    reading, writing = os.pipe()
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tallyman.local.updown", str(writing)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            pass_fds=(writing,),
            start_new_session=True,
            env={**os.environ, **importable()},
        )
    os.close(writing)
    assert process.stdin
    with process.stdin as stdin:
        stdin.write(json.dumps(order).encode())
    with os.fdopen(reading, encoding="utf-8") as told:
        for line in told:
            event = ChildEvent(**json.loads(line))
            if event.name == "stack" and event.what == "ready":
                return
            if event.name == "stack" and event.what == "ended":
                process.wait()
                raise StackError(event.detail)
            tell(event)
    raise StackError(
        f"the supervisor ended with exit code {process.wait()} before the stack was ready; "
        f"its last log lines ({log}):\n{read_last_lines(log)}"
    )


def _supervise(pipe: int) -> int:
    """Be the supervisor that `_start_detached` waits for: the order comes by stdin, events go to the pipe."""
    order = json.load(sys.stdin)
    options = order["options"]
    telling = threading.Lock()
    with os.fdopen(pipe, "w", encoding="utf-8") as told:

        def tell(event: ChildEvent) -> None:
            print(time.strftime("%Y-%m-%dT%H:%M:%S"), event.name, event.what, event.detail, flush=True)
            with telling, suppress(OSError, ValueError):  # nobody listens any more
                if not told.closed:
                    print(json.dumps(asdict(event)), file=told, flush=True)

        def ready(endpoints: Endpoints) -> None:
            tell(ChildEvent("stack", "ready"))
            with telling:
                told.close()

        try:
            up(
                Path(order["data"]),
                [Service(**service) for service in order["services"]],
                options=StackOptions(**{**options, "restart": RestartPolicy(**options["restart"])}),
                on_event=tell,
                on_ready=ready,
            )
        except StackError as error:
            tell(ChildEvent("stack", "ended", str(error)))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(_supervise(int(sys.argv[1])))
