"""A wall clock that somebody sets while a process runs: Python's own, moved by what the board says.

libfaketime would move the C library's clocks too, and with them the waits of every lock in the JVM, the engine and
Beam; our own code reads the wall clock in Python only, and asks the monotonic clock how long something took.
"""

from __future__ import annotations

import time

from tests.chaos.board import Board


def follow(board: Board, slot: str) -> None:
    """Let `time.time` and `time.time_ns` of this process be wrong by the microseconds in a slot of the board."""
    right, right_ns = time.time, time.time_ns

    def wrong() -> float:
        return right() + board[slot] / 1e6

    def wrong_ns() -> int:
        return right_ns() + board[slot] * 1000

    time.time, time.time_ns = wrong, wrong_ns
