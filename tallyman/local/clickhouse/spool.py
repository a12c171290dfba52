"""Holds a client's blocks until all of them came: few in memory, many in an unlinked file."""

from __future__ import annotations

import os
from pathlib import Path

_IN_MEMORY = 64 << 20


class Spool:
    """Native blocks of one insert, which the engine can read as a file.

    Attributes:
        rows: How many rows were noted.
        size: Bytes held.
    """

    def __init__(self, overflow: Path) -> None:
        self.rows = 0
        self.size = 0
        self._overflow = overflow
        self._file: int | None = None  # made by the first write: most queries bring no rows

    @property
    def path(self) -> str:
        """Where the engine, which is in this process, finds the bytes."""
        return f"/proc/self/fd/{self._file}"

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes at the end."""
        if self._file is None:
            self._file = os.memfd_create("tallyman-insert")
        if self.size <= _IN_MEMORY < self.size + len(data):
            self._file = self._move_to_disk(self._file)
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left) :]
        self.size += len(data)

    def _move_to_disk(self, memory: int) -> int:
        file = os.open(self._overflow, os.O_TMPFILE | os.O_RDWR, 0o600)
        done = 0
        while done < self.size:
            done += os.sendfile(file, memory, done, self.size - done)
        os.close(memory)
        return file

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
