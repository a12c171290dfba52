"""A ClickHouse of its own for the model's schedules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Endpoint:
    """Where it answers."""

    host: str
    port: int
    user: str
    password: str
    database: str


@contextmanager
def running_clickhouse(folder: Path) -> Iterator[Endpoint]:
    """Run the embedded ClickHouse in a folder; one thread for each query, they are all small."""
    options = ["--data", str(folder), "--port", "0", "--threads", "1"]
    command = [sys.executable, "-m", "tallyman.local.clickhouse", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            yield Endpoint("127.0.0.1", int(line.rsplit(":", 1)[1]), "default", "", "default")
        finally:
            process.terminate()
            process.wait(20)
