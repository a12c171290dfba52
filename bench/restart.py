"""How long a pipeline that was killed with -9 at half load takes until it has caught up.

    python -m bench.restart                  # half of what the machine bears, which is measured first
    python -m bench.restart --rate 40000     # this many events per second instead

The load of `bench.latency` goes on all the time. Ten times the pipeline is killed somewhere in its chunks, started
again at once as a supervisor would, and watched until no more events wait in Kafka than before the kill (or than come
in one second, if that was more). A restart reads its open chunks again. The limit is two chunk durations, so chunks are
made short here; those of the usual 65,536 records would take more than half an hour at this load. At last every event
that was sent must be stored once.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.latency import PARTITIONS, events_behind, load, measure_bearable, measure_capacity, service, settle
from bench.load import EVENTS_IN_RECORD, fill, make_templates
from bench.stand import stand
from bench.tables import table
from tallyman.clickhouse import connect
from tallyman.log import setup
from tallyman.project import Project

CHUNK_SIZE = 512  # records
_CHUNKS = 2  # durations within which it must have caught up
_FILL_RECORDS, _KILLS = 1600, 10
_LOOK_S, _PATIENCE_S = 0.1, 300.0
_DYING_S = 1.0  # by then ClickHouse has booked what the killed one had sent; no pipeline starts so fast


@dataclass(frozen=True)
class Kill:
    """One kill, and what followed.

    Attributes:
        into_chunk: How much of the open chunks was read, on average, from 0 to 1.
        first_s: Until something was booked again; `caught_up_s`: until the backlog was as small as before.
        most: The largest backlog seen, in events.
    """

    into_chunk: float
    before: int
    first_s: float
    caught_up_s: float
    most: int


class Supervised:
    """A pipeline that somebody starts again."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._start()

    def _start(self) -> None:
        self._running = service("pipeline", self._project)
        self._process: psutil.Process = self._running.__enter__()

    def kill(self) -> None:
        """Kill it, and start it again at once."""
        self._process.kill()
        self._running.__exit__(None, None, None)
        self._start()

    def close(self) -> None:
        """Stop it as a supervisor does."""
        self._running.__exit__(None, None, None)


@contextmanager
def supervised(project: Project) -> Iterator[Supervised]:
    pipeline = Supervised(project)
    try:
        yield pipeline
    finally:
        pipeline.close()


def kill_once(project: Project, pipeline: Supervised, rate: float) -> Kill:
    """Kill the pipeline, and wait until it has caught up.

    Raises:
        TimeoutError: It has not, for a long time.
    """
    reached = reached_offsets(project)
    into_chunk = sum(offset % CHUNK_SIZE for offset in reached.values()) / CHUNK_SIZE / max(1, len(reached))
    before, began = events_behind(project), time.monotonic()
    pipeline.kill()
    time.sleep(_DYING_S)
    stood = sum(reached_offsets(project).values())
    most, first_s = before, 0.0
    while (took_s := time.monotonic() - began) < _PATIENCE_S:
        time.sleep(_LOOK_S)
        behind = events_behind(project)
        most = max(most, behind)
        if not first_s and sum(reached_offsets(project).values()) > stood:
            first_s = time.monotonic() - began
        if first_s and behind <= max(before, rate):
            return Kill(into_chunk, before, first_s, time.monotonic() - began, most)
    raise TimeoutError(f"{behind:,} events wait after {took_s:.0f} s; see pipeline.log in {project.folder}")


def reached_offsets(project: Project) -> dict[int, int]:
    """Return how far each partition is booked."""
    client = connect(project.clickhouse)
    try:
        return dict(client.execute("SELECT partition, max(reached_offset) FROM progress GROUP BY partition"))
    finally:
        client.disconnect()


def measure(project: Project, rate: float, kills: int) -> bool:
    """Fill, find the rate, kill, and print."""
    from pipeline.worker import prepare

    prepare(project)
    fill(project, make_templates(project), _FILL_RECORDS)
    dice, more = random.Random(5), 0
    with supervised(project) as pipeline:
        capacity = measure_capacity(project, _FILL_RECORDS)
        if not rate:
            bearable, more = measure_bearable(project, capacity)
            rate = bearable / 2
        chunk_s = CHUNK_SIZE * EVENTS_IN_RECORD * PARTITIONS / rate
        print(f"{rate:,.0f} NDJSON events/s in {PARTITIONS} partitions; "
              f"a chunk of {CHUNK_SIZE} records takes {chunk_s:.1f} s")  # fmt: skip
        done = []
        with load(project, rate, 1) as sent:
            time.sleep(5)
            for _ in range(kills):
                time.sleep(dice.uniform(1, chunk_s / 2))
                done.append(kill_once(project, pipeline, rate))
        wanted = _FILL_RECORDS * EVENTS_IN_RECORD + more + sent[0]
        stored = settle(project, wanted)
    rows: list[tuple[str, ...]] = [
        (f"{n}", f"{each.into_chunk:.2f}", f"{each.before:,}", f"{each.first_s:.1f}", f"{each.caught_up_s:.1f}",
         f"{each.most:,}")
        for n, each in enumerate(done, 1)
    ]  # fmt: skip
    table(("kill", "into chunks", "events waiting", "booked again after s", "caught up after s", "most waiting"), rows)
    worst, limit_s = max(each.caught_up_s for each in done), _CHUNKS * chunk_s
    word = "met" if worst <= limit_s else "MISSED"
    print(f"slowest {worst:.1f} s, limit {limit_s:.1f} s ({_CHUNKS} chunk durations): {word}")
    print(f"{stored:,} events stored of {wanted:,}")
    return worst <= limit_s and stored == wanted


def main() -> int:
    """Measure and print; 0 if the limit is kept and every event is stored once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0, help="events per second; else half of what is borne")
    parser.add_argument("--kills", type=int, default=_KILLS)
    arguments = parser.parse_args()
    setup("error")
    folder = Path(tempfile.mkdtemp(prefix="restart-"))
    try:
        with stand(folder, partitions=PARTITIONS, chunk_size=CHUNK_SIZE) as project:
            return 0 if measure(project, arguments.rate, arguments.kills) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
