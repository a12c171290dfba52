"""Resident memory of a pipeline worker while events go by, and with a million live series.

    python -m bench.worker_memory                     # 10 million events in each format, then a million series
    python -m bench.worker_memory ndjson-500          # one of them
    python -m bench.worker_memory --events 2000000    # fewer; marks stand at a tenth, a half and all

The worker is the service itself in a process of its own, beside a real broker and ClickHouse. Memory is the kernel's
figure (VmRSS, and VmHWM for the peak), read when progress says that so many events are booked. It is flat if the
figures after a tenth, a half and all of the events lie within a tenth of each other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pyarrow as pa

from bench.agent_memory import memory_mib
from bench.events import Record, arrow_records, line_records
from bench.stand import fill, stand, total_events
from bench.tables import table
from pipeline.worker import prepare
from tallyman.clickhouse import connect
from tallyman.event import (
    ARROW,
    ARROW_FIELDS,
    ARROW_SERIES_KEY,
    ARROW_VERSION,
    ARROW_VERSION_KEY,
    COLLECTOR,
    CONTENT_TYPE,
    EPOCH,
    SEQUENCE,
    Series,
)
from tallyman.log import setup
from tallyman.project import Project

FLAT, LIMIT_MIB = 0.10, 700
LIVE_SERIES = 1_000_000
PORTION = 500_000  # events that are made and sent at a time, so that the broker's disk and not our memory holds them
_LOOK_S, _PATIENCE_S = 0.1, 900
LEVELS = """meters:
- {meter: compute.seconds, event_type: compute.usage, aggregation: time_weighted, value: value, scale: 9,
   resource: server, dimensions: {flavor: flavor}}
"""


@dataclass(frozen=True)
class Mark:
    """Memory when so many events were booked."""

    events: int
    now_mib: float
    peak_mib: float


def live_series(count: int) -> Iterator[Record]:
    """Yield Arrow batches of 10,000 readings, each reading of another series and each batch of another host."""
    minute = int(time.time()) // 60 * 60_000_000
    for first in range(0, count, 10_000):
        names = [
            Series(type="compute.usage", subject=f"tenant-{n // 10:07d}", scale=6,
                   data={"flavor": f"f{n % 10}", "region": "eu-north"})
            for n in range(first, first + 10_000)
        ]  # fmt: skip
        metadata = {ARROW_VERSION_KEY: ARROW_VERSION, ARROW_SERIES_KEY: msgspec.json.encode(names)}
        schema = pa.schema([pa.field(n, getattr(pa, k)(), null) for n, k, null in ARROW_FIELDS], metadata)
        times = np.full(10_000, minute, np.int64)
        nothing = pa.nulls(10_000, pa.int64())
        columns = [pa.array(np.arange(10_000), pa.int32()), pa.array(times), pa.array(times + 10_000_000),
                   pa.array(np.arange(1, 10_001)), nothing, nothing]  # fmt: skip
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        headers = [(CONTENT_TYPE, ARROW.encode()), (COLLECTOR, b"host-%d" % (first // 10_000)), (EPOCH, b"e1")]
        yield sink.getvalue().to_pybytes(), [*headers, (SEQUENCE, b"0")]


def records_of(name: str, count: int) -> Iterator[Iterable[Record]]:
    """Yield portions of records of a format."""
    if name == "live-series":
        yield live_series(count)
        return
    size = portion_of(count)
    for number in range(count // size):
        if name.startswith("arrow"):
            yield arrow_records(size, int(name.split("-")[1]), seed=number + 1)
        else:
            yield line_records(size, int(name.split("-")[1]), seed=number + 1)


def portion_of(count: int) -> int:
    """Return how many events are sent at a time: a mark's worth at most."""
    return min(PORTION, count // 10)


@contextmanager
def worker(project: Project) -> Iterator[psutil.Process]:
    """Run the pipeline as a service."""
    where = ["--project", str(project.folder), "--data", str(project.data), "--log-level", "error"]
    process = subprocess.Popen([sys.executable, "-m", "tallyman", "pipeline", *where])
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def run(name: str, count: int, marks: Sequence[int]) -> list[Mark]:
    """Book `count` events of a format and return what the worker's memory was at each mark."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ends:
        project = ends.enter_context(stand(Path(folder)))
        if name.startswith("levels"):
            (project.folder / "meters" / "compute.yaml").write_text(LEVELS)
        prepare(project)
        process = ends.enter_context(worker(project))
        seen: list[Mark] = []
        sent = 0
        for portion in records_of(name.replace("levels", "ndjson"), count):
            end = fill(project, portion)
            sent += count if name == "live-series" else portion_of(count)
            reach(project, end)
            if sent in marks:
                seen.append(Mark(sent, *memory_mib(process.pid)))
                print(f"{name}: {sent:,} events, {seen[-1].now_mib:,.0f} MiB", flush=True)
        if (stored := total_events(project)) != count and not name.startswith("levels"):
            raise SystemExit(f"{name}: {count} events sent, {stored} stored: a benchmark that loses is none")
    return seen


def reach(project: Project, end: int) -> None:
    """Wait until everything below an offset is booked."""
    client, deadline = connect(project.clickhouse), time.monotonic() + _PATIENCE_S
    while True:
        reached = client.execute("SELECT max(reached_offset) FROM progress")[0][0]
        if reached >= end:
            client.disconnect()
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"offset {reached} of {end} booked after {_PATIENCE_S} s")
        time.sleep(_LOOK_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("arrow-10000", "ndjson-500", "live-series")
    parser.add_argument("kinds", nargs="*", default=list(kinds), help=f"of {', '.join(kinds)}, levels-500")
    parser.add_argument("--events", type=int, default=10_000_000, help="of each format; a multiple of 5,000")
    arguments = parser.parse_args()
    setup("error")
    rows, met = [], True
    for kind in arguments.kinds:
        count = LIVE_SERIES if kind == "live-series" else arguments.events
        marks = [count] if kind == "live-series" else [count // 10, count // 2, count]
        seen = run(kind, count, marks)
        figures = [mark.now_mib for mark in seen]
        if kind == "live-series":
            good, limit = seen[-1].peak_mib < LIMIT_MIB, f"peak < {LIMIT_MIB} MiB"
        else:
            good, limit = max(figures) <= (1 + FLAT) * min(figures), f"within {FLAT:.0%}"
        met &= good
        rows.append((kind, *[f"{each:,.0f}" for each in figures], *[""] * (3 - len(figures)),
                     f"{seen[-1].peak_mib:,.0f}", limit, "met" if good else "MISSED"))  # fmt: skip
    table(("MiB resident after", "1 of 10", "5 of 10", "all", "peak", "limit", ""), rows, left=(0, 5))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
