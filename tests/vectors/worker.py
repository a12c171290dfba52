"""The pipeline of a run: in this process, until a case needs one that it can kill."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

from tallyman.local.supervise import Child, OneChild, importable
from tests.integration.booking import OwnProject


class Worker:
    """Runs a project's pipeline in a thread, or from `move_out` on as a process of its own."""

    def __init__(self, own: OwnProject) -> None:
        self._own = own
        self._inside: AbstractContextManager[None] | None = None
        self._child: OneChild | None = None

    def start(self) -> None:
        """Start it, also after `kill`."""
        if self._child is not None:
            return self._child.start()
        inside = self._own.running()
        inside.__enter__()
        self._inside = inside
        return None

    def move_out(self) -> None:
        """Go on as a process; nothing happens if it is one."""
        if self._child is not None:
            return
        self.stop()
        run = self._own.folder / "run"
        run.mkdir()
        where = ("--project", str(self._own.folder), "--data", str(self._own.folder / "data"))
        argv = (sys.executable, "-m", "tallyman", "pipeline", *where)
        self._child = OneChild(Child(name="pipeline", argv=argv, log=run / "pipeline.log", env=importable()), run)
        self._child.start()

    def kill(self) -> None:
        """Kill the process with -9."""
        self.move_out()
        if self._child is not None:
            self._child.kill()

    def stop(self) -> None:
        """Stop it cleanly, wherever it runs."""
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.__exit__(None, None, None)
        if self._child is not None:
            self._child.stop()
