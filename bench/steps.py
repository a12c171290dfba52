"""Where a worker's CPU goes: fetch, decode, count once, fold, flush; what is left is Beam and the rest.

The stages run fused, one inside the other's loop, in one thread: each is charged with that thread's CPU between its own
steps, so that nothing is counted twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from pipeline.runtime import Runtime
from pipeline.source import UsageReader

STEPS = ("fetch", "decode", "count once", "fold", "flush")


class Shares:
    """CPU nanoseconds of each step since the last `clear`."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()

    def call(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, charged to a step."""

        @wraps(function)
        def charged(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time_ns()
            try:
                return function(*arguments, **named)
            finally:
                self.spent[step] += time.thread_time_ns() - began

        return charged

    def iterate(self, step: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Return the generator function, charged to a step while it runs and not while its caller does."""

        @wraps(function)
        def charged(*arguments: Any, **named: Any) -> Iterator[Any]:
            steps = function(*arguments, **named)
            while True:
                began = time.thread_time_ns()
                found = next(steps, self)
                self.spent[step] += time.thread_time_ns() - began
                if found is self:
                    return
                yield found

        return charged

    def row(self, worker_s: float, events: int) -> Sequence[str]:
        """Return nanoseconds for each event: each step's, what is left, and all of it."""
        left = worker_s * 1e9 - sum(self.spent.values())
        return [f"{ns / events:,.0f}" for ns in (*(self.spent[step] for step in STEPS), left, worker_s * 1e9)]


@contextmanager
def shares() -> Iterator[Shares]:
    """Charge the pipeline's stages while the block runs."""
    found = Shares()
    before = UsageReader.next_fetch, Runtime.decode, Runtime.count, Runtime.sum, Runtime.write
    names = ("next_fetch", "decode", "count", "sum", "write")
    try:
        UsageReader.next_fetch = found.call("fetch", before[0])  # type: ignore[method-assign]
        Runtime.decode = found.iterate("decode", before[1])  # type: ignore[method-assign]
        Runtime.count = found.call("count once", before[2])  # type: ignore[method-assign]
        Runtime.sum = found.iterate("fold", before[3])  # type: ignore[method-assign]
        Runtime.write = found.call("flush", before[4])  # type: ignore[method-assign]
        yield found
    finally:
        for owner, name, function in zip((UsageReader, *[Runtime] * 4), names, before, strict=True):
            setattr(owner, name, function)
