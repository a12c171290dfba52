"""A ClickHouse of its own for the model's schedules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.model.real import Endpoint


@contextmanager
def running_clickhouse(folder: Path) -> Iterator[Endpoint]:
    """Run the embedded ClickHouse in a folder."""
    command = [sys.executable, "-m", "tallyman.local.clickhouse", "--data", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            yield Endpoint("127.0.0.1", int(line.rsplit(":", 1)[1]), "default", "", "default")
        finally:
            process.terminate()
            process.wait(20)
