"""Waiting with an end: tells the person who looks what is waited for, and ends the whole run when its time is over."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tallyman.cli.output import progress_line

_LOOK_S = 0.05
_TELL_EVERY_S = 15.0  # where nobody sees a terminal


class Watch:
    """The clock of a run.

    Args:
        limit_s: When it is over, this process ends with `exit_code` at once, and with it all that it has started.
        stalled_s: How long `until` waits for one thing.
    """

    def __init__(self, *, limit_s: float, exit_code: int, stalled_s: float) -> None:
        self._began, self._limit_s, self._exit_code, self._stalled_s = time.monotonic(), limit_s, exit_code, stalled_s
        self.state: Callable[[], str] = lambda: ""
        self._doing = "starting"
        self._show = progress_line("chaos")
        self._told = 0.0
        threading.Thread(target=self._end_in_time, name="limit", daemon=True).start()

    def doing(self, what: str) -> None:
        """Say what the run does now."""
        self._doing = what
        self._tell("")

    def until(self, what: str, is_so: Callable[[], Any]) -> None:
        """Wait until something is so.

        Raises:
            TimeoutError: It was not for too long.
        """
        deadline = time.monotonic() + self._stalled_s
        while not is_so():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._doing}: waited {self._stalled_s:.0f} s until {what}; {self.state()}")
            self._tell(f"until {what}")
            time.sleep(_LOOK_S)  # what is waited for happens in other processes, which may be dead or stopped

    def _tell(self, waiting: str) -> None:
        elapsed_s = time.monotonic() - self._began
        line = f"{elapsed_s:.0f} of {self._limit_s:.0f} s, {self._doing} {waiting}"
        self._show(f"{line}; {self.state()}" if sys.stderr.isatty() else "")
        if not sys.stderr.isatty() and elapsed_s - self._told > _TELL_EVERY_S:
            self._told = elapsed_s
            print(f"{line}; {self.state()}", file=sys.stderr, flush=True)

    def _end_in_time(self) -> None:
        time.sleep(max(0.0, self._limit_s - (time.monotonic() - self._began)))
        print(f"the time limit of {self._limit_s:.0f} s is reached, {self._doing}; {self.state()}", file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(self._exit_code)  # the kernel ends our children with us
