"""Events per second and core, from Kafka to queryable, for each format; beside ClickHouse's own inserts of the
same events
and beside the bare kafka-python record loop, in the same run.

    python -m bench.ingest                # all formats
    python -m bench.ingest --scale 0.2    # a fifth of the events

Ours is counted twice: by the worker's CPU alone, and with the CPU of the ClickHouse server that takes its
rows. The peer
is the same engine in a process of its own at its best: one thread, 65,000 rows per insert, from a local file
into a Null
table with a materialised view; for JSON a second view writes the same id rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from bench.events import Record, arrow_records, line_records, single_records
from bench.stand import Spent, Worker, fill, stand, total_events
from bench.steps import STEPS, Shares, shares
from bench.tables import table
from tallyman.kafka import make_consumer
from tallyman.log import setup

COUNTS = {"arrow-10000": 20_000_000, "arrow-1000": 8_000_000, "ndjson-500": 800_000, "single": 400_000}


def records_of(name: str, count: int) -> Iterable[Record]:
    if name.startswith("arrow"):
        return arrow_records(count, int(name.split("-")[1]))
    return line_records(count) if name.startswith("ndjson") else single_records(count)


def ours(name: str, count: int) -> tuple[Spent, int, Shares]:
    """Fill a topic, then book it; the first tenth warms up and is not counted."""
    with tempfile.TemporaryDirectory() as folder, stand(Path(folder)) as project, shares() as charged:
        from pipeline.worker import prepare

        prepare(project)
        end = fill(project, records_of(name, count))
        first = end // 10
        worker = Worker(project)
        spent = worker.measure(first, end, begin=charged.spent.clear)
        stored = total_events(project)
        worker.stop()
        if stored != count:
            raise SystemExit(f"{name}: {count} events sent, {stored} stored: a benchmark that loses is none")
    return spent, round(count * (end - first) / end), charged


def bare_loop(count: int) -> float:
    """Return the CPU seconds of `for record in poll()` over the single records, nothing else done with them."""
    with tempfile.TemporaryDirectory() as folder, stand(Path(folder)) as project:
        from kafka import TopicPartition

        from pipeline.worker import prepare

        prepare(project)
        end = fill(project, single_records(count))
        consumer = make_consumer(project.kafka_brokers)
        where = TopicPartition(project.config.kafka.topic, 0)
        consumer.assign([where])
        consumer.seek(where, end // 10)
        began, seen = time.process_time(), 0
        while consumer.position(where) < end:
            for records in consumer.poll(timeout_ms=200, max_records=10_000).values():
                for record in records:
                    seen += len(record.value) > 0
        return (time.process_time() - began) / (seen or 1)


def peer(name: str, count: int) -> dict[str, float]:
    """Run ClickHouse's own insert in a process of its own; returns its CPU and wall seconds per event."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.peer", name, str(count)], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=[], help=f"of {', '.join(COUNTS)}")
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    setup("error")
    rows: list[tuple[str, ...]] = []
    steps: list[tuple[str, ...]] = []
    for name in arguments.formats or COUNTS:
        count = int(COUNTS[name] * arguments.scale) // 10_000 * 10_000
        spent, counted, charged = ours(name, count)
        steps.append((name, *charged.row(spent.worker_s, counted)))
        worker, everything = counted / spent.worker_s, counted / (spent.worker_s + spent.server_s)
        kind = "native" if name.startswith("arrow") else "json"
        beside = peer(kind, min(count, 4_000_000 if kind == "native" else 400_000))
        theirs = beside["events"] / beside["cpu_s"]
        rows.append((name, f"{worker:,.0f}", f"{everything:,.0f}", f"{counted / spent.wall_s:,.0f}",
                     f"ClickHouse {beside['label']}", f"{theirs:,.0f}", f"{worker / theirs:.2f}",
                     f"{everything / theirs:.2f}"))  # fmt: skip
        if name == "single":
            loop = 1 / bare_loop(count)
            rows.append((name, f"{worker:,.0f}", f"{everything:,.0f}", "", "bare kafka-python loop", f"{loop:,.0f}",
                         f"{worker / loop:.2f}", f"{everything / loop:.2f}"))  # fmt: skip
    table(
        ("format", "ev/s by worker CPU", "with server CPU", "by wall", "peer", "peer ev/s", "ratio", "with server"),
        rows,
    )
    print("\nnanoseconds of the worker's CPU for each event")
    table(("format", *STEPS, "Beam and rest", "all"), steps, left=(0,))


if __name__ == "__main__":
    main()
