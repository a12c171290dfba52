"""Starts the embedded ClickHouse as a process of its own, for the tests that are its clients."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from clickhouse_driver import Client


class Front:
    """An embedded ClickHouse over `folder`; `kill` is kill -9, `stop` is SIGTERM."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._options = options
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*command(self.folder), *self._options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said.startswith("ready on "):
            raise AssertionError(f"the server did not start: {self.process.communicate()}")
        self.port = int(said.rsplit(":", 1)[1])

    def client(self, **options: Any) -> Client:
        return Client("127.0.0.1", self.port, **options)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def stop(self) -> int:
        """Stop it in order; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=20)
        return self.process.returncode


def command(folder: Path) -> list[str]:
    """The command line, on a free port."""
    return [sys.executable, "-m", "tallyman.local.clickhouse", "--data", str(folder), "--port", "0"]
