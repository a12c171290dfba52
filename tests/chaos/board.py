"""What the processes of a chaos run tell each other: a few numbers in shared memory, which outlive every kill -9."""

from __future__ import annotations

import mmap
from pathlib import Path

WORKERS = tuple(f"worker-{number}" for number in range(1, 4))  # as many as there are partitions to share
TWIN = "twin"  # a worker that reads all partitions, whatever the others read
SLOTS = (
    "finish",  # asks the senders to finish what they are allowed
    "agent.allowed", "agent.done", "agent.refused", "agent.finished",  # in batches
    "client.allowed", "client.done", "client.finished",  # in lots
    "host.counter", "host.accepted", "host.finished",
    "sealer.looks", "sealer.dies_at",
    "host.clock_us", *(f"{name}.clock_us" for name in (*WORKERS, TWIN)),  # by how much the wall clock is wrong
)  # fmt: skip
_PLACES = {name: place for place, name in enumerate(SLOTS)}


class Board:
    """Numbers by name. 64 aligned bits are never read half; nobody counts up what another process counts up, too."""

    def __init__(self, path: Path) -> None:
        size = 8 * len(SLOTS)
        with path.open("a+b") as file:
            file.truncate(size)
            self._numbers = memoryview(mmap.mmap(file.fileno(), size)).cast("q")

    def __getitem__(self, name: str) -> int:
        return self._numbers[_PLACES[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._numbers[_PLACES[name]] = value
