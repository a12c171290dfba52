"""Lanes: what one thread works on at a time, so that two threads of a process never share a chunk or a connection.

A local pipeline has one thread, and all its partitions are in lane 0. Flink gives the partitions of a process their
turns in several threads at once, and may read one again while the thread that read it before still waits for an answer:
there each partition has a lane of its own, and a turn that finds it taken begins a fresh one, as another process would.
What a lane holds (open chunks, clients, a consumer) is kept under its number by those who made it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Key = tuple[str, int]  # (topic id, partition)

_thread = threading.local()


def this_lane() -> int:
    """Return the number of the lane that this thread works in."""
    number: int = getattr(_thread, "lane", 0)
    return number


@contextmanager
def inside(number: int) -> Iterator[None]:
    """Let this thread work in a lane."""
    _thread.lane = number
    try:
        yield
    finally:
        if this_lane() == number:  # a generator may be closed late, and by another thread
            _thread.lane = 0


@dataclass(slots=True)
class Lane:
    """One lane; it is taken while a turn lasts."""

    number: int
    taken: bool = False


class Lanes:
    """Which lane each partition has.

    Args:
        leave: Called with the number of a lane that nobody will work in again, to let go of what it holds.
    """

    def __init__(self, leave: Callable[[int], None]) -> None:
        self._leave = leave
        self._lanes: dict[Key, Lane] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # a turn may be ended by the garbage collector, in any thread

    @contextmanager
    def turn(self, key: Key) -> Iterator[int]:
        """Work on a partition in its lane, or in a fresh one if the last turn has not ended.

        That one hangs, or failed behind our back: nobody waits for it. What it still writes is a prefix of the same
        log and does no harm; what it holds is let go when it ends.
        """
        lane = self._take(key)
        ended = False
        try:
            with inside(lane.number):
                yield lane.number
            ended = True
        finally:
            if not self._goes_on(key, lane, ended):
                self._leave(lane.number)

    def _take(self, key: Key) -> Lane:
        with self._lock:
            lane = self._lanes.get(key)
            if lane is None or lane.taken:
                lane = self._lanes[key] = Lane(next(self._numbers))
            lane.taken = True
            return lane

    def _goes_on(self, key: Key, lane: Lane, ended: bool) -> bool:
        """Give a lane back; say whether the next turn goes on with what it holds. After a failure none does."""
        with self._lock:
            lane.taken = False
            current = self._lanes.get(key) is lane
            if current and not ended:
                del self._lanes[key]
            return current and ended
