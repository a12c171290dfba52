"""Remember which processes are ours, and clear those that a killed supervisor has left.

One small file per child holds its pid, when it began, and a token that the child and its descendants carry
in their environment; so a pid that the system has given to a stranger since is never signalled.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tallyman.local.files import write_atomically

TOKEN = "TALLYMAN_CHILD"  # noqa: S105  (a name, no secret)


def remember(run: Path, name: str, pid: int, token: str) -> None:
    """Write the child's pid file."""
    try:
        began = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return
    write_atomically(run / f"{name}.json", json.dumps({"pid": pid, "began": began, "token": token}))


def forget(run: Path, name: str) -> None:
    """Remove the child's pid file; its process and its group are gone."""
    (run / f"{name}.json").unlink(missing_ok=True)


def clear_leftovers(run: Path, *, patience_s: float = 5) -> list[int]:
    """Kill what an earlier run has left behind, wait until it is gone, and return the pids."""
    files = sorted(run.glob("*.json"))
    began, tokens = {}, set()
    for file in files:
        try:
            noted = json.loads(file.read_text(encoding="utf-8"))
            began[int(noted["pid"])] = float(noted["began"])
            tokens.add(str(noted["token"]))
        except (ValueError, KeyError):  # no pid file that we wrote: there is nothing to go by
            continue
    running = psutil.process_iter() if tokens else ()
    ours = [process for process in running if _is_ours(process, began, tokens)]
    for process in ours:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + patience_s
    while any(_is_alive(process) for process in ours) and time.monotonic() < deadline:
        time.sleep(0.01)  # they are no children of this process: there is no event to wait on
    for file in files:
        file.unlink(missing_ok=True)
    return [process.pid for process in ours]


def _is_ours(process: psutil.Process, began: dict[int, float], tokens: set[str]) -> bool:
    """Say if this is a child of the earlier run, or a descendant of one, and still alive."""
    try:
        same_leader = abs(process.create_time() - began.get(process.pid, 0.0)) < 0.01
        return (same_leader or process.environ().get(TOKEN) in tokens) and _is_alive(process)
    except psutil.Error:  # gone, or another user's: not ours
        return False


def _is_alive(process: psutil.Process) -> bool:
    """Say if the process still runs. One that is being killed has lost its environment before it is gone."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
