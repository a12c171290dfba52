"""Send usage through the whole path while everything is killed, and compare what is stored with what was sent.

    python -m tests.chaos.whole_path --events 2000000 --kills 20 --seed 1

Killed with -9, at random: the agent's sender, a client, two pipelines that read the same partitions (one is a zombie
now and then: stopped, overtaken, and let go again), the broker. Totals per (meter, subject, dimensions, minute) must
equal the generator's to the last digit, and the counts of every chunk must add up.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tallyman.clickhouse import connect
from tallyman.errors import BrokerError
from tallyman.local.stack import Stack
from tallyman.log import setup
from tallyman.project import Project, load_project
from tests.chaos.usage_made import EVENTS_IN_LOT, METERS, READINGS_IN_BATCH, expected

PARTITIONS = 3
VICTIMS = ("agent", "foreign", "pipeline", "pipeline", "zombie", "kafka")


@dataclass
class Process:
    """A process that is started again whenever it was killed, until it ends by itself."""

    name: str
    argv: list[str]
    log: Path
    running: subprocess.Popen[bytes] | None = None
    finished: bool = False
    kills: int = 0
    failures: int = 0

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.running = subprocess.Popen(self.argv, stdout=out, stderr=out, start_new_session=True)

    def kill(self) -> bool:
        """Kill it with -9; say whether there was anything to kill."""
        if self.running is None or self.running.poll() is not None:
            return False
        self.running.kill()
        self.running.wait()
        self.kills += 1
        return True

    def tend(self) -> None:
        """Start it again if it was killed; note when it ended well."""
        if self.running is None or self.finished:
            return
        code = self.running.poll()
        if code == 0:
            self.finished = True
        elif code is not None:
            self.failures += code > 0
            if self.failures > 60:
                raise RuntimeError(f"{self.name} fails again and again; see {self.log}")
            self.start()

    def signal(self, number: int) -> None:
        if self.running is not None and self.running.poll() is None:
            os.kill(self.running.pid, number)


@dataclass
class Outcome:
    """What a run found."""

    events: int
    kills: Counter[str]
    took_s: float
    differences: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class Run:
    """One chaos run in a folder of its own."""

    def __init__(self, folder: Path, *, events: int, kills: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder, self.data, self.kills_wanted = folder, folder / "data", kills
        self.batches = max(1, events * 3 // 4 // READINGS_IN_BATCH)
        self.lots = max(1, events // 4 // EVENTS_IN_LOT)
        self.base_us = (int(time.time()) // 60 - 15) * 60_000_000
        (folder / "meters").mkdir(parents=True)
        (folder / "meters" / "chaos.yaml").write_text(METERS)
        (folder / "tallyman.yaml").write_text(
            f"operator: Chaos\nkafka: {{partitions: {PARTITIONS}, chunk_size: 256}}\n"
            "pipeline: {tick: 2s, rebuild_after: 20s}\n"
        )
        self.patience_s = 120 + events / 2000
        self.stack = Stack(self.data)
        self.kills: Counter[str] = Counter()
        self.processes: dict[str, Process] = {}

    def go(self) -> Outcome:
        began = time.monotonic()
        self.stack.start()
        try:
            project = load_project(self.folder, self.data)
            self._start_processes()
            self._make_chaos()
            self._calm_down(project)
            outcome = Outcome(self.batches * READINGS_IN_BATCH + self.lots * EVENTS_IN_LOT, self.kills, 0)
            self._compare(project, outcome)
            outcome.took_s = time.monotonic() - began
            return outcome
        finally:
            for process in self.processes.values():
                process.signal(signal.SIGCONT)
                process.kill()
            self.stack.stop()

    def _start_processes(self) -> None:
        where = ["--project", str(self.folder), "--data", str(self.data)]
        senders = [sys.executable, "-m", "tests.chaos.senders"]
        arguments = [str(self.folder), str(self.data), str(self.base_us)]
        pipeline = [sys.executable, "-m", "tallyman", "pipeline", *where]
        commands = {
            "pipeline": pipeline,
            "zombie": pipeline,
            "agent": [*senders, "agent", *arguments, str(self.batches)],
            "foreign": [*senders, "foreign", *arguments, str(self.lots)],
        }
        for name, argv in commands.items():
            self.processes[name] = Process(name, argv, self.folder / f"{name}.log")
        from pipeline.worker import prepare

        prepare(load_project(self.folder, self.data))  # topics exist before anybody sends
        for process in self.processes.values():
            process.start()

    def _make_chaos(self) -> None:
        """Kill until the number is reached, and go on watching until both senders are done."""
        senders = [self.processes["agent"], self.processes["foreign"]]
        stopped_until = 0.0
        deadline = time.monotonic() + self.patience_s
        while sum(self.kills.values()) < self.kills_wanted or not all(sender.finished for sender in senders):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the senders did not finish; see the logs in {self.folder}")
            time.sleep(self.rng.uniform(0.3, 1.2))  # chaos has no condition to wait for
            for process in self.processes.values():
                process.tend()
            zombie = self.processes["zombie"]
            if stopped_until and time.monotonic() > stopped_until:
                zombie.signal(signal.SIGCONT)
                stopped_until = 0.0
            elif not stopped_until and self.rng.random() < 0.15:
                zombie.signal(signal.SIGSTOP)  # it holds what it knew, and goes on with it later
                stopped_until = time.monotonic() + self.rng.uniform(1, 6)
            if sum(self.kills.values()) < self.kills_wanted and self.rng.random() < 0.35:
                self._kill(self.rng.choice(VICTIMS))
        zombie.signal(signal.SIGCONT)

    def _kill(self, name: str) -> None:
        if name == "kafka":
            self.stack.kill("kafka")
            self.kills[name] += 1
        elif self.processes[name].kill():
            self.kills[name] += 1

    def _calm_down(self, project: Project) -> None:
        """Wait until everything sent is booked."""
        from kafka import TopicPartition

        from tallyman.kafka import make_consumer

        consumer = _patiently(lambda: make_consumer(project.kafka_brokers))
        where = [TopicPartition(project.config.kafka.topic, number) for number in range(PARTITIONS)]
        client = connect(project.clickhouse)
        deadline = time.monotonic() + 300
        while True:
            for process in self.processes.values():
                process.tend()
            ends = consumer.end_offsets(where)
            reached = dict(client.execute("SELECT partition, max(reached_offset) FROM progress GROUP BY partition"))
            # Forwards and ticks move the end while we look: caught up means nothing but a tick or two is missing.
            client_lag = {place.partition: ends[place] - reached.get(place.partition, 0) for place in where}
            if all(lag <= 0 for lag in client_lag.values()):
                consumer.close()
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"not booked to the end: {client_lag}; see the logs in {self.folder}")
            time.sleep(0.1)

    def _compare(self, project: Project, outcome: Outcome) -> None:
        client = connect(project.clickhouse)
        sums, largest = expected(self.batches, self.lots, self.base_us)
        stored = client.execute(
            "SELECT meter, subject, dimensions, intDiv(toUnixTimestamp(minute), 60), sum(sum), max(max)"
            " FROM usage_booked GROUP BY ALL"
        )
        found_sums = {tuple(row[:4]): row[4] for row in stored if row[0] != "server.largest"}
        found_largest = {tuple(row[:4]): row[5] for row in stored if row[0] == "server.largest"}
        for wanted, found in ((sums, found_sums), (largest, found_largest)):
            for key in wanted.keys() | found.keys():
                if wanted.get(key, 0) != found.get(key, 0):
                    outcome.differences.append(f"{key}: sent {wanted.get(key)}, stored {found.get(key)}")
        names = ("received", "aggregated", "duplicate", "dead", "ignored", "forwarded", "conflict")
        counts = client.execute("SELECT sumForEach(reached_counts) FROM progress FINAL")[0][0]
        outcome.counts = dict(zip(names, counts, strict=True))
        received, *fates, conflicts = counts
        if received != sum(fates) or conflicts or outcome.counts["dead"]:
            outcome.differences.append(f"counts do not reconcile: {outcome.counts}")
        if outcome.counts["aggregated"] != outcome.events:
            outcome.differences.append(f"{outcome.events} sent, {outcome.counts['aggregated']} aggregated")


def _patiently(make: Callable[[], Any]) -> Any:
    """Ask until the broker, which was just killed, answers again."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return make()
        except BrokerError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    setup("error")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    outcome = Run(folder / "project", events=arguments.events, kills=arguments.kills, seed=arguments.seed).go()
    print(
        f"{outcome.events:,} events, {sum(outcome.kills.values())} kills {dict(outcome.kills)}, {outcome.took_s:.0f} s"
    )
    print(f"counts: {outcome.counts}")
    if outcome.differences:
        print(f"{len(outcome.differences)} differences, the first: {outcome.differences[:5]}; logs in {folder}")
        return 1
    print("stored = sent, to the last digit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
