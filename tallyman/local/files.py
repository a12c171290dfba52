"""Small files of the embedded stack: written whole or not at all, held by one process, read from the end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, text: str, *, everyone: bool = False) -> None:
    """Write a file so that a reader, or a kill at any point, meets the old text or the new, never half.

    Only the owner may read it unless `everyone`: `stack.json` holds a password.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    mode = 0o644 if everyone else 0o600
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Wait until no other process is inside; the lock ends with its process, even by kill -9."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_last_lines(path: Path, count: int = 15) -> str:
    """Return the last lines of a log, or a remark that there are none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return "\n".join(lines[-count:]) if lines else "(it wrote nothing)"
