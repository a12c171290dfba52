"""A stand for benchmarks: a stack, a project, a topic filled before the clock starts, and a worker whose CPU
is measured.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.events import METERS, Record
from tallyman.clickhouse import connect
from tallyman.kafka import make_producer
from tallyman.local.stack import running_stack
from tallyman.project import Project, load_project


@dataclass(frozen=True)
class Spent:
    """CPU and wall seconds between two moments: of this process, and of the ClickHouse server."""

    worker_s: float
    server_s: float
    wall_s: float


@contextmanager
def stand(folder: Path, *, partitions: int = 1, settings: str = "", chunk_size: int | None = None) -> Iterator[Project]:
    """Bring up a project with one meter on a stack of its own."""
    kafka = f"partitions: {partitions}" + (f", chunk_size: {chunk_size}" if chunk_size else "")
    (folder / "meters").mkdir(parents=True, exist_ok=True)
    (folder / "meters" / "compute.yaml").write_text(METERS)
    (folder / "tallyman.yaml").write_text(f"operator: Bench\nkafka: {{{kafka}}}\n{settings}")
    with running_stack(folder / "data"):
        yield load_project(folder, folder / "data")


def fill(project: Project, records: Iterable[Record], *, partition: int = 0) -> int:
    """Send records and return the offset behind them, all acknowledged."""
    producer = make_producer(project.kafka_brokers)
    futures, last = [], 0
    for value, headers in records:
        futures.append(producer.send(project.config.kafka.topic, value=value, headers=headers, partition=partition))
        if len(futures) >= 2000:
            last = max(future.get(60).offset for future in futures)
            futures = []
    last = max([last, *(future.get(60).offset for future in futures)])
    producer.close()
    return last + 1


def server_pid(project: Project) -> int:
    """Return the process that serves ClickHouse on the stack's port."""
    return process_on(project.clickhouse.port)


def process_on(port: int) -> int:
    """Return the process that serves ClickHouse on a port."""
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = process.info["cmdline"] or []
        if "tallyman.local.clickhouse" in line and str(port) in line:
            return int(process.info["pid"])
    raise LookupError("no ClickHouse process")


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


class Worker:
    """The pipeline in a thread of this process; nothing else of weight runs here."""

    def __init__(self, project: Project) -> None:
        from pipeline import worker

        self._stop = threading.Event()
        self._thread = threading.Thread(target=worker.main, args=(project, self._stop, None), daemon=True)
        self._project = project
        self._thread.start()

    def measure(
        self, first: int, last: int, partition: int = 0, *, begin: Callable[[], object] = lambda: None
    ) -> Spent:
        """Return what it took to book the offsets from `first` to `last`, from memory of the open chunk.

        Args:
            begin: Called when the first is reached.
        """
        server = server_pid(self._project)
        while self._reached(partition) < first:
            time.sleep(0.005)
        begin()
        began = time.perf_counter(), cpu_s(os.getpid()), cpu_s(server)
        while self._reached(partition) < last:
            time.sleep(0.005)
        ended = time.perf_counter(), cpu_s(os.getpid()), cpu_s(server)
        wall, worker, theirs = (after - before for before, after in zip(began, ended, strict=True))
        return Spent(worker, theirs, wall)

    def _reached(self, partition: int) -> int:
        from pipeline.book import OPEN

        for (_, number), chunk in list(OPEN.items()):
            if number == partition and chunk.acknowledged is not None:
                return chunk.acknowledged.offset
        return -1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


def total_events(project: Project) -> int:
    client = connect(project.clickhouse)
    return int(client.execute("SELECT sum(events) FROM usage_minute")[0][0])
