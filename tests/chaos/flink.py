"""Book usage on a Flink cluster while its processes are killed, and compare every total with what was sent.

    python -m tests.chaos.flink --records 20000 --kills 6 --seed 1

One JobManager, two TaskManagers, an external pool of Python workers, the job server, and the service that submits the
job. Killed with -9 in turn: a TaskManager, a Python worker, the service; each time when every partition has gone on and
a checkpoint was completed since the last one. A TaskManager comes back when the other one has taken over.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tallyman.clickhouse import connect
from tallyman.local.ports import choose_port
from tallyman.local.stack import Stack
from tallyman.log import setup
from tallyman.project import Project, load_project
from tests.flink.cluster import JobManager, TaskManager, WorkerPool
from tests.flink.parts import JobServer, python_env, tallyman_argv
from tests.flink.usage import EVENTS_IN_RECORD, METERS, Usage, differences, ends_of, send

PARTITIONS, CHUNK, RECORDS_AT_ONCE = 4, 256, 50
VICTIMS = ("task manager", "worker", "service")
PATIENCE_S = 300
_LOOK_S = 0.1  # processes that may die at any time cannot be waited for, only looked at


@dataclass
class Outcome:
    """What a run found; `recovered_s`: from each kill until every partition went on, by victim."""

    events: int = 0
    took_s: float = 0.0
    recovered_s: list[tuple[str, float]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


class Run:
    """One chaos run in a folder of its own."""

    def __init__(self, folder: Path, *, records: int, kills: int, seed: int) -> None:
        self._folder, self._data, self._kills = folder, folder / "data", kills
        self._rng = random.Random(seed)
        self._usage = Usage(PARTITIONS, seed=seed)
        self._left = records
        self._killing = threading.Event()
        (folder / "meters").mkdir(parents=True)
        (folder / "meters" / "chaos.yaml").write_text(METERS, encoding="utf-8")
        (folder / "tallyman.yaml").write_text(
            f"operator: Chaos\nkafka: {{partitions: {PARTITIONS}, chunk_size: {CHUNK}}}\npipeline: {{tick: 2s}}\n",
            encoding="utf-8",
        )
        self._stack = Stack(self._data)
        self._manager = JobManager(folder / "job-manager")
        self._task_managers = [
            TaskManager(folder / f"task-manager-{number}", self._manager, f"tm-{number}") for number in (1, 2)
        ]
        self._pool = WorkerPool(folder / "pool")
        self._job_server = JobServer(folder / "job-server", self._manager.address)
        self._service: subprocess.Popen[bytes] | None = None
        self._metrics_port = choose_port()

    def go(self) -> Outcome:
        began = time.monotonic()
        outcome = Outcome()
        parts = [self._stack, self._manager, *self._task_managers, self._pool, self._job_server]
        try:
            for part in parts:
                part.start()
            project = load_project(self._folder, self._data)
            self._start_service()
            _wait_for("the job", lambda: self._manager.running_jobs())
            sender = threading.Thread(target=self._send, args=(project,), daemon=True)
            sender.start()
            for number in range(self._kills):
                self._wait_until_all_went_on(project)
                self._wait_for_checkpoint()
                victim = VICTIMS[number % len(VICTIMS)]
                killed, start_again = time.monotonic(), self._kill(victim)
                self._wait_until_all_went_on(project)
                outcome.recovered_s.append((victim, time.monotonic() - killed))
                print(f"  {victim} killed; all partitions go on after {outcome.recovered_s[-1][1]:.1f} s", flush=True)
                start_again()
            _wait_for("the service to tell what became of events", self._told)
            self._killing.set()
            sender.join(PATIENCE_S)
            ends = ends_of(project.kafka_brokers, project.config.kafka.topic, PARTITIONS)
            client = connect(project.clickhouse)
            _wait_for(f"booked up to {ends}", lambda: _booked(client, ends))
            outcome.events = self._usage.events
            outcome.differences = differences(client, self._usage, ends, CHUNK)
            if (workers := len(self._pool.workers())) > len(self._task_managers):
                outcome.differences.append(f"{workers} Python workers run: those of killed processes did not end")
            outcome.took_s = time.monotonic() - began
            return outcome
        finally:
            self._killing.set()
            self._stop_service()
            with ExitStack() as stops:  # each is stopped, whatever goes wrong with another
                for part in parts:
                    stops.callback(part.stop)

    def _stop_service(self) -> None:
        if self._service is None:
            return
        self._service.terminate()
        try:
            self._service.wait(60)
        except subprocess.TimeoutExpired:
            self._service.kill()
            self._service.wait()

    def _start_service(self) -> None:
        argv = tallyman_argv(
            "pipeline", "--runner", "PortableRunner", "--job-endpoint", self._job_server.endpoint,
            "--environment", "EXTERNAL", "--environment-config", self._pool.address,
            "--flink-rest", f"http://{self._manager.address}",
            "--project", self._folder, "--data", self._data, "--metrics-port", str(self._metrics_port),
            "--", "--parallelism=2", "--checkpointing_interval=1000",
        )  # fmt: skip
        with (self._folder / "service.log").open("ab") as out:
            self._service = subprocess.Popen(argv, stdout=out, stderr=out, env=python_env())

    def _told(self) -> bool:
        """Whether the service that was started last shows events: its own workers show no metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10) as page:
            return b'tallyman_pipeline_events_total{outcome="aggregated"}' in page.read()

    def _send(self, project: Project) -> None:
        """Send all records, and go on beyond as long as processes are killed: a partition without news cannot go on."""
        while self._left > 0 or not self._killing.is_set():
            send(project.kafka_brokers, project.config.kafka.topic, self._usage.records(RECORDS_AT_ONCE))
            self._left -= RECORDS_AT_ONCE

    def _wait_until_all_went_on(self, project: Project) -> None:
        """Wait until every partition has booked more."""
        client = connect(project.clickhouse)
        before = _reached(client)
        _wait_for(
            "every partition to go on",
            lambda: (now := _reached(client)).keys() == set(range(PARTITIONS))
            and all(now[partition] > before.get(partition, 0) for partition in now),
        )
        client.disconnect()

    def _wait_for_checkpoint(self) -> None:
        """Wait until a checkpoint that has begun since now was completed: the next but one."""
        enough = {job: self._manager.checkpoints(job) + 2 for job in self._manager.running_jobs()}
        _wait_for(
            "a checkpoint",
            lambda: any(self._manager.checkpoints(job) >= enough.get(job, 2) for job in self._manager.running_jobs()),
        )

    def _kill(self, victim: str) -> Callable[[], None]:
        """Kill one, and return how to start it again where Flink can do without it until then."""
        if victim == "task manager":
            chosen = self._rng.choice(self._task_managers)
            chosen.kill()
            return chosen.start
        if victim == "worker":
            _wait_for("a worker", lambda: self._pool.workers())
            self._rng.choice(self._pool.workers()).kill()
        elif self._service is not None:
            left = set(self._manager.running_jobs())
            self._service.kill()
            self._service.wait()
            self._start_service()
            # What it left goes on without it; until that is cancelled it would be taken for the new one.
            _wait_for("another job", lambda: (now := set(self._manager.running_jobs())) and not now & left)
        return lambda: None


def _reached(client: Any) -> dict[int, int]:
    return dict(client.execute("SELECT partition, max(reached_offset) FROM progress GROUP BY partition"))


def _booked(client: Any, ends: dict[int, int]) -> bool:
    reached = _reached(client)
    return all(reached.get(partition, 0) >= end for partition, end in ends.items())


def _wait_for(what: str, condition: Callable[[], Any]) -> None:
    """Wait for a condition; a server that is just starting again counts as "not yet"."""
    deadline = time.monotonic() + PATIENCE_S
    problem = ""
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except Exception as error:  # noqa: BLE001 - said below, if it never gets better
            problem = f" ({type(error).__name__}: {error})"
        time.sleep(_LOOK_S)
    raise TimeoutError(f"not within {PATIENCE_S} s: {what}{problem}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000, help=f"of {EVENTS_IN_RECORD} events each, at least")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    setup("error")
    folder = Path(tempfile.mkdtemp(prefix="chaos-flink-"))
    print(f"logs in {folder}", flush=True)
    try:
        outcome = Run(
            folder / "project", records=arguments.records, kills=arguments.kills, seed=arguments.seed
        ).go()
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        print("stopped", file=sys.stderr)
        return 130
    print(report(outcome))
    if not outcome.differences:
        shutil.rmtree(folder, ignore_errors=True)
    return int(bool(outcome.differences))


def report(outcome: Outcome) -> str:
    """Return what is printed at the end of a run."""
    lines = [f"{outcome.events:,} events, {len(outcome.recovered_s)} kills, {outcome.took_s:.0f} s"]
    for victim in VICTIMS:
        if took := [seconds for name, seconds in outcome.recovered_s if name == victim]:
            lines.append(f"  {victim}: killed {len(took)}, all partitions went on after at most {max(took):.1f} s")
    if outcome.differences:
        return "\n".join([*lines, f"{len(outcome.differences)} differences, the first: {outcome.differences[:5]}"])
    return "\n".join([*lines, "booked = sent, to the last digit; every chunk reconciles"])


if __name__ == "__main__":
    sys.exit(main())
