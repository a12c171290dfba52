"""When tables may have changed their columns: what was described before that is asked again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# What leaves the columns of every table as they are; whatever else there is, or will be, may not.
_HARMLESS = frozenset({"INSERT", "SET", "USE", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK", "KILL",
                       "OPTIMIZE", "TRUNCATE", "DELETE", "UPDATE"})  # fmt: skip


class Changes:
    """Counts them, for all sessions of an engine: nothing else changes tables of its folder."""

    def __init__(self) -> None:
        self.number = 0
        self._lock = threading.Lock()

    @contextmanager
    def during(self, first: str) -> Iterator[None]:
        """Run a statement, known by its first word, that may change columns until its end, also if it fails."""
        if first in _HARMLESS:
            yield
            return
        self._count()
        try:
            yield
        finally:
            self._count()

    def _count(self) -> None:
        with self._lock:
            self.number += 1
