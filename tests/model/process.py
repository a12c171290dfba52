"""Processes to be paused, overtaken or killed before each of their statements: threads of which one runs at a time.

The code inside is what runs in production and knows nothing of it; its doors (`tests.model.store.Door`)
pause. Everything is decided by whoever resumes, so that a seed names a schedule.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pipeline.book import OPEN


class KilledError(BaseException):
    """What a killed process finds at its next statement; no `except Exception` holds it up."""


class Strand:
    """One thread. It runs inside `resume` only, until it pauses or ends."""

    def __init__(self, body: Callable[[], None]) -> None:
        self.alive, self.at = True, "start"
        self._body, self._killed = body, False
        self._failed: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, name="strand", daemon=True).start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                self._body()
        except KilledError:
            pass
        except BaseException as error:  # noqa: BLE001 - whoever resumed it wants to know
            self._failed = error
        self.alive = False
        self._back.release()

    def resume(self) -> None:
        """Run on to the next pause; raise what ended it, if anything did."""
        self._go.release()
        self._back.acquire()
        if self._failed is not None:
            raise self._failed

    def kill(self) -> None:
        """End it where it is: no further statement of it is executed, not even in a `finally`."""
        self._killed = True
        while self.alive:
            self.resume()

    def pause(self, about: str) -> None:
        """Let others run; called from inside, with what comes next."""
        if not self._killed:
            self.at = about
            self._back.release()
            self._go.acquire()
        if self._killed:
            raise KilledError


class Process:
    """What shares one memory: the open chunks of a worker, and its threads. It ends with its first thread."""

    running: Process | None = None  # whose code is running now

    def __init__(self, main: Callable[[Process], None]) -> None:
        self._open: dict[tuple[str, int], Any] = {}
        self._strands = [Strand(lambda: main(self))]
        self._current = self._strands[0]

    @property
    def alive(self) -> bool:
        return self._strands[0].alive

    @property
    def at(self) -> str:
        """What the first thread is about to do."""
        return self._strands[0].at

    @property
    def threads(self) -> int:
        """How many threads can be resumed."""
        self._strands = [strand for strand in self._strands if strand.alive]
        return len(self._strands)

    def resume(self, thread: int = 0) -> None:
        """Let one thread run to its next pause."""
        self._current, Process.running = self._strands[thread], self
        OPEN.clear()
        OPEN.update(self._open)
        try:
            self._current.resume()
        finally:
            self._open = dict(OPEN)
            OPEN.clear()
            Process.running = None

    def kill(self) -> None:
        """End all threads; what they held in memory is gone."""
        for strand in self._strands:
            strand.kill()

    def start(self, body: Callable[[], None]) -> None:
        """Begin another thread; called from inside."""
        self._strands.append(Strand(body))

    def pause(self, about: str) -> None:
        """Let others run; called from inside."""
        self._current.pause(about)


def running() -> Process:
    """Return the process whose code is running."""
    assert Process.running is not None, "called from outside of every process"
    return Process.running
