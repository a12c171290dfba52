"""Events per second of two pipeline workers on two cores, against one on one core.

    python -m bench.two_workers                        # NDJSON
    python -m bench.two_workers single arrow-1000      # other formats
    python -m bench.two_workers --scale 0.2            # a fifth of the events

Each run has a stack of its own, and everything in it (broker, ClickHouse, workers) shares the cores of the run: one
core carries one worker with the servers' part that belongs to it. The topic is filled before the clock starts, and only
what is booked while all workers are busy is counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.events import METERS, Record, arrow_records, line_records, single_records
from bench.stand import cpu_s, fill, stand, total_events
from bench.tables import table
from tallyman.clickhouse import connect
from tallyman.event import COLLECTOR
from tallyman.kafka import partition_of
from tallyman.log import setup
from tallyman.project import Project

PARTITIONS = 4
COUNTS = {"ndjson-500": 6_000_000, "single": 2_400_000, "arrow-1000": 8_000_000, "arrow-10000": 20_000_000}
_LOOK_S = 0.1
_PATIENCE_S = 600


@dataclass(frozen=True)
class Speed:
    """What was booked for each second of the clock, and of the workers' CPU."""

    by_wall: float
    by_cpu: float


def records_of(name: str, count: int, partition: int) -> Iterator[Record]:
    """Yield records that are at home in a partition."""
    if name == "single":
        yield from single_records(count, seed=partition, partitions=PARTITIONS, partition=partition)
    elif name.startswith("ndjson"):
        yield from line_records(count, seed=partition, partitions=PARTITIONS, partition=partition)
    else:
        for value, headers in arrow_records(count, int(name.split("-")[1]), seed=partition):
            yield value, [(key, at_home(text, partition) if key == COLLECTOR else text) for key, text in headers]


def at_home(collector: bytes, partition: int) -> bytes:
    """Return a name like this one whose home is the partition."""
    names = (collector + b"-%d" % number for number in range(1000))
    return next(name for name in names if partition_of(name, PARTITIONS) == partition)


def run(name: str, count: int, workers: int) -> Speed:
    """Book `count` events with so many workers on as many cores."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)[:workers]
    if len(cores) < workers:
        raise SystemExit(f"expected {workers} cores, got {len(cores)}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ends:
        ends.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, cores)  # whatever is started from here on inherits it
        project = ends.enter_context(stand(Path(folder), partitions=PARTITIONS))
        from pipeline.worker import prepare

        prepare(project)
        each = count // PARTITIONS
        ends_at = {n: fill(project, records_of(name, each, n), partition=n) for n in range(PARTITIONS)}
        pids = [ends.enter_context(worker(project, n, workers)) for n in range(workers)]
        speed = measure(project, ends_at, each, pids)
        if (stored := total_events(project)) != each * PARTITIONS:
            raise SystemExit(f"{each * PARTITIONS} events sent, {stored} stored: a benchmark that loses is none")
    return speed


@contextmanager
def worker(project: Project, number: int, workers: int) -> Iterator[int]:
    """Run a worker with its share of the partitions, in a process of its own; yield its process id."""
    folder = project.folder / f"worker-{number}"
    (folder / "meters").mkdir(parents=True)
    (folder / "meters" / "compute.yaml").write_text(METERS)
    share = list(range(number, PARTITIONS, workers))
    (folder / "tallyman.yaml").write_text(
        f"operator: Bench\nkafka: {{partitions: {PARTITIONS}}}\npipeline: {{partitions: {share}}}\n"
    )
    command = [sys.executable, "-m", "tallyman", "pipeline", "--project", str(folder), "--data", str(project.data)]
    process = subprocess.Popen([*command, "--log-level", "error"])
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def measure(project: Project, ends: Mapping[int, int], events: int, pids: Sequence[int]) -> Speed:
    """Wait until all is booked; return the speed from when each partition was a tenth done until the first was done.

    Args:
        events: How many each partition has.
    """
    client, deadline = connect(project.clickhouse), time.monotonic() + _PATIENCE_S
    looks: list[tuple[float, float, float]] = []  # when, share of all that is booked, CPU of the workers
    done: list[float] = [0.0]
    while min(done) < 1:
        if time.monotonic() > deadline:
            raise SystemExit(f"not booked within {_PATIENCE_S} s")
        reached = dict(client.execute("SELECT partition, max(reached_offset) FROM progress GROUP BY partition"))
        done = [reached.get(number, 0) / end for number, end in ends.items()]
        if min(done) > 0.1 and max(done) < 1:
            looks.append((time.perf_counter(), sum(done), sum(map(cpu_s, pids))))
        time.sleep(_LOOK_S)
    client.disconnect()
    if len(looks) < 5:
        raise SystemExit("too few events to measure; take more (--scale)")
    (began, first, cpu_before), (ended, last, cpu_after) = looks[0], looks[-1]
    counted = (last - first) * events
    return Speed(counted / (ended - began), counted / (cpu_after - cpu_before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=[], help=f"of {', '.join(COUNTS)}; the first alone unless told")
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    setup("error")
    rows: list[tuple[str, ...]] = []
    for name in arguments.formats or list(COUNTS)[:1]:
        count = int(COUNTS[name] * arguments.scale) // 80_000 * 80_000
        one, two = run(name, count, 1), run(name, count, 2)
        rows.append((name, "1 on 1", f"{one.by_wall:,.0f}", f"{one.by_cpu:,.0f}", ""))
        rows.append((name, "2 on 2", f"{two.by_wall:,.0f}", f"{two.by_cpu:,.0f}", f"{two.by_wall / one.by_wall:.2f}"))
    table(("format", "workers on cores", "ev/s by wall", "ev/s by a worker's CPU second", "ratio"), rows, left=(0,))


if __name__ == "__main__":
    main()
