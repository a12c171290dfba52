"""How fast the embedded ClickHouse is as its clients see it.

    python -m bench.clickhouse_front

Starts a server of its own in a temporary folder and prints one table. Everything goes through `clickhouse_driver` over
loopback, so client and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy
import psutil
from clickhouse_driver import Client

COLUMNS = 10
ROWS = 100_000
BATCHES = 20
TINY = 500


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, psutil.Process, float]]:
    """A server on a free port: (port, process, seconds until it was ready)."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tallyman.local.clickhouse", "--data", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    try:
        yield int(said.rsplit(":", 1)[1]), psutil.Process(process.pid), time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def milliseconds(work: Callable[[], object]) -> tuple[float, float]:
    """Median and 99th percentile of many runs."""
    taken = []
    for _ in range(TINY):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken), statistics.quantiles(taken, n=100)[98]


@dataclass(frozen=True, slots=True)
class Speed:
    """Rows per second by the clock, and by the CPU time of the server and of both: a busy machine spoils the first."""

    wall: float
    server: float
    both: float

    def __str__(self) -> str:
        return f"{self.wall / 1e6:.2f} ({self.server / 1e6:.2f}, {self.both / 1e6:.2f}) M rows/s"


def speed(work: Callable[[], object], rows: int, process: psutil.Process) -> Speed:
    server, client, began = sum(process.cpu_times()[:2]), time.process_time(), time.perf_counter()
    work()
    wall, own = time.perf_counter() - began, time.process_time() - client
    spent = max(sum(process.cpu_times()[:2]) - server, 0.01)  # the kernel counts hundredths
    return Speed(rows / wall, rows / spent, rows / (spent + own))


def measure(port: int, process: psutil.Process) -> Iterator[tuple[str, str]]:
    """Run one thing after the other: (what, figure)."""
    client = Client("127.0.0.1", port)
    arrays = Client("127.0.0.1", port, settings={"use_numpy": True})
    client.execute("SELECT 1")
    yield "memory, idle", f"{process.memory_info().rss >> 20} MiB"
    yield "tiny select, p50 / p99", "{:.1f} / {:.1f} ms".format(*milliseconds(lambda: client.execute("SELECT 1")))
    client.execute("CREATE TABLE tiny (n UInt64, s String) ENGINE = MergeTree ORDER BY n")
    insert = milliseconds(lambda: client.execute("INSERT INTO tiny VALUES", [(1, "Zoë Åström")]))
    yield "tiny insert, p50 / p99", "{:.1f} / {:.1f} ms".format(*insert)

    listed = ", ".join(f"c{n} Int64" for n in range(COLUMNS))
    client.execute(f"CREATE TABLE wide ({listed}) ENGINE = MergeTree ORDER BY c0")
    data = [numpy.arange(ROWS) + n for n in range(COLUMNS)]

    def insert_wide() -> None:
        for _ in range(BATCHES):
            arrays.execute("INSERT INTO wide VALUES", data, columnar=True)

    yield f"insert, {BATCHES} x {ROWS:,} rows of {COLUMNS} numbers", str(speed(insert_wide, ROWS * BATCHES, process))
    select = speed(lambda: arrays.execute("SELECT * FROM wide", columnar=True), ROWS * BATCHES, process)
    yield f"select, {BATCHES * ROWS:,} rows of {COLUMNS} numbers", str(select)

    client.execute("CREATE TABLE texts (n UInt64, a String, b String) ENGINE = MergeTree ORDER BY n")
    texts = [list(range(ROWS)), [f"tenant-{n % 977}" for n in range(ROWS)], [f"{n:032x}" for n in range(ROWS)]]

    def insert_texts() -> None:
        for _ in range(5):
            client.execute("INSERT INTO texts VALUES", texts, columnar=True)

    yield f"insert, 5 x {ROWS:,} rows of 1 number, 2 strings", str(speed(insert_texts, ROWS * 5, process))
    yield "memory, after all this", f"{process.memory_info().rss >> 20} MiB"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (port, process, started):
        print("Speeds: by the clock (by the server's CPU time, by server's and client's together)")
        print(f"{'load of the machine before':<50}  {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"{'start until ready':<50}  {started:.2f} s")
        for what, figure in measure(port, process):
            print(f"{what:<50}  {figure}", flush=True)


if __name__ == "__main__":
    main()
