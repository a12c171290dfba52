"""How long an accepted event takes to be visible in ClickHouse, and to become a webhook, idle and at half load.

    python -m bench.latency                  # half of what the machine bears, which is measured first
    python -m bench.latency --rate 20000     # this many events per second instead

Every probe is one event of a subject of its own, so that each fires an alarm (`for: 0s`, a sum above a bound). Agent
probes go through the real spool and sender and are accepted when the spool's fsync has returned; foreign ones are
NDJSON and accepted when Kafka has answered on `acks=all`. Three moments follow:

- written: ClickHouse has acknowledged the flush (`written_ms` of its push; resolution 1 ms);
- visible: a reader has got it from `usage_minute`. It looks at once after each push that names a probe, and four
  times a second anyway; the moment is when its answer is in, so late rather than early, by the time that a look takes,
  which is printed. Looking all the time would take a core from what is measured;
- webhook: the receiver has verified the signature.

The stack, the pipeline, the rules engine and the load run in processes of their own, on the cores of this machine.
What it bears is the highest rate at which booking keeps up for twenty seconds with all of them running. A full log is
drained faster than that for a few seconds: nobody sends meanwhile, and ClickHouse merges what it took only later. Half
load begins when those merges have ended: they belong to the rates that were tried.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.load import EVENTS_IN_RECORD, fill, make_templates
from bench.probes import Probe, Probes, Watch
from bench.stand import stand, total_events
from bench.tables import table
from rules.receiver import Receiver
from tallyman.clickhouse import connect
from tallyman.kafka import end_offsets, make_consumer
from tallyman.log import setup
from tallyman.project import Project

PARTITIONS = 4
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
METERS = "meters:\n- {meter: probe.units, event_type: probe.usage, aggregation: sum, value: value}\n"
ALARMS = """groups:
- name: probes
  rules:
  - {alert: probe, expr: {usage: {meter: probe.units, window: 10m, by: [subject]}, above: "0"}, for: 0s}
"""
TARGETS = {"visible": 1.0, "webhook": 2.0}
_FILL_RECORDS = 1600
_LEAD_S = 4.0  # of load before the first probe
_LEAST_RATE, _STEP, _TRIAL_S, _MOST_BEHIND_S = 40_000.0, 1.25, 20.0, 1.5
_PATIENCE_S, _DRAIN_PATIENCE_S = 30.0, 120.0


@dataclass
class Phase:
    """The probes of a column, and what the machine did meanwhile."""

    name: str
    probes: list[Probe]
    looks_s: list[float]
    load_average: tuple[float, float] = (0.0, 0.0)
    cores: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0


@contextmanager
def service(name: str, project: Project) -> Iterator[psutil.Process]:
    """Run one of our services as a process of its own."""
    where = ["--project", str(project.folder), "--data", str(project.data)]
    log = (project.folder / f"{name}.log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "tallyman", name, *where], stdout=log, stderr=log)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@contextmanager
def load(project: Project, rate: float, seed: int) -> Iterator[list[int]]:
    """Send at a rate for as long as the block lasts; then the list has the number of events and the rate."""
    where = [str(project.folder), str(project.data), str(rate), str(seed)]
    argv = [sys.executable, "-m", "bench.load", *where]
    sent: list[int] = []
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield sent
        said, _ = process.communicate(timeout=90)
        events, seconds = said.split()
        sent += [int(events), round(int(events) / float(seconds))]


def measure_capacity(project: Project, records: int) -> float:
    """Return events per second by wall from a full log, once the first fifth is booked."""
    client = connect(project.clickhouse)
    began, booked, behind, first = 0.0, 0, 0, records // 5
    deadline = time.monotonic() + _DRAIN_PATIENCE_S
    while time.monotonic() < deadline:
        rows = client.execute("SELECT partition, max(reached_offset) FROM progress GROUP BY partition")
        booked, now = sum(int(row[1]) for row in rows), time.monotonic()
        if not began and booked >= first:
            began, behind = now, booked
        if booked >= records:
            client.disconnect()
            return (booked - behind) * EVENTS_IN_RECORD / (now - began)
        time.sleep(0.02)
    raise TimeoutError(f"{booked} of {records} records booked; run with --keep and see pipeline.log")


def measure_bearable(project: Project, most: float) -> tuple[float, int]:
    """Raise the load step by step; return the highest rate at which booking keeps up, and how many events were sent."""
    rate, sent_in_all, seed = _LEAST_RATE, 0, 100
    while rate < most:
        with load(project, rate, seed) as sent:
            time.sleep(_LEAD_S + _TRIAL_S)
            behind = events_behind(project)
        sent_in_all += sent[0]
        if behind > rate * _MOST_BEHIND_S:
            break
        rate, seed = rate * _STEP, seed + 1
    deadline = time.monotonic() + _DRAIN_PATIENCE_S
    while (events_behind(project) or merges(project)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return rate / _STEP, sent_in_all


def events_behind(project: Project) -> int:
    """Return how many events of the load stand in Kafka and are not booked."""
    client, consumer = connect(project.clickhouse), make_consumer(project.kafka_brokers)
    try:
        rows = client.execute("SELECT partition, max(reached_offset) FROM progress GROUP BY partition")
        ends = end_offsets(consumer, project.config.kafka.topic, range(PARTITIONS))
        booked = {int(partition): int(offset) for partition, offset in rows}
        return sum(max(0, end - booked.get(partition, 0)) for partition, end in ends.items()) * EVENTS_IN_RECORD
    finally:
        client.disconnect()
        consumer.close()


def merges(project: Project) -> int:
    """Return how many merges ClickHouse is at."""
    client = connect(project.clickhouse)
    try:
        return int(client.execute("SELECT count() FROM system.merges")[0][0])
    finally:
        client.disconnect()


def run_phase(name: str, project: Project, receiver: Receiver, seconds: float, processes: dict[str, Any]) -> Phase:
    """Send probes for so many seconds and wait for all that follows."""
    before, began = cpu(processes), time.monotonic()
    load_before = os.getloadavg()[0]
    watch = Watch(project, receiver)
    try:
        with Probes(project, watch, prefix=name.replace(" ", "-")) as probes:
            probes.send(seconds)
        looks = list(watch.looks_s)
        took_s = time.monotonic() - began
        after = cpu(processes)
        watch.wait(_PATIENCE_S)
    finally:
        watch.close()
    cores = {each: (after[each] - before[each]) / took_s for each in processes}
    return Phase(name, list(watch.probes.values()), looks, (load_before, os.getloadavg()[0]), cores)


def cpu(processes: dict[str, psutil.Process]) -> dict[str, float]:
    times = {name: process.cpu_times() for name, process in processes.items()}
    return {name: each.user + each.system for name, each in times.items()}


def parts(project: Project) -> dict[str, psutil.Process]:
    """Return the stack's own processes of this run."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        line = " ".join(child.cmdline())
        if "tallyman.local.clickhouse" in line:
            found["clickhouse"] = child
        elif "java" in child.name():
            found["kafka"] = child
    return found


def milliseconds(waits_s: Sequence[float]) -> list[str]:
    """Return p50, p90, p99 and the largest."""
    ordered = sorted(waits_s)
    if not ordered:
        return ["-"] * 4
    places = [min(len(ordered) - 1, int(len(ordered) * share)) for share in (0.5, 0.9, 0.99)]
    return [f"{ordered[place] * 1000:,.0f}" for place in (*places, len(ordered) - 1)]


def show(phases: Sequence[Phase], capacity: float, bearable: float) -> bool:
    """Print the table; say whether the targets are met at half load."""
    borne = f"{bearable:,.0f}" if bearable else "not measured"
    print(f"NDJSON events/s: a full log is drained at {capacity:,.0f}, borne with the load beside it: {borne}; "
          f"{os.cpu_count()} cores")  # fmt: skip
    for phase in phases:
        kinds = Counter(probe.kind for probe in phase.probes)
        looks = milliseconds(phase.looks_s)
        cores = ", ".join(f"{name} {share:.2f}" for name, share in phase.cores.items())
        print(
            f"{phase.name}: {phase.rate:,.0f} events/s beside the probes ({dict(kinds)}); load average"
            f" {phase.load_average[0]:.1f} before, {phase.load_average[1]:.1f} after; cores used: {cores};"
            f" {len(phase.looks_s)} looks of p50 {looks[0]} ms, p99 {looks[2]} ms"
        )
    figures = ("p50", "p90", "p99", "max")
    head = ("accepted to, in ms", *(f"{phase.name} {figure}" for phase in phases for figure in figures))
    rows = [
        (f"{moment}, {kind}", *(cell for phase in phases for cell in milliseconds(waits(phase, moment, kind))))
        for moment in ("written", "visible", "webhook")
        for kind in ("agent", "foreign", "all")
    ]
    table(head, rows)
    met = True
    for moment, limit_s in TARGETS.items():
        ordered = sorted(waits(phases[-1], moment, "all"))
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        met &= p99 < limit_s
        word = "met" if p99 < limit_s else "MISSED"
        print(f"{moment} p99 {p99:.2f} s at {phases[-1].name}, target {limit_s} s: {word}")
    return met


def waits(phase: Phase, moment: str, kind: str) -> list[float]:
    mine = [probe for probe in phase.probes if kind in (probe.kind, "all")]
    return [probe.moments[moment] - probe.accepted_s for probe in mine if moment in probe.moments]


def main() -> int:
    """Measure and print; 0 if the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0, help="events per second; else half the capacity")
    parser.add_argument("--seconds", type=float, default=30, help="of each column; ten probes each second")
    parser.add_argument("--keep", action="store_true", help="leave the folder with the services' logs")
    arguments = parser.parse_args()
    setup("error")
    folder = Path(tempfile.mkdtemp(prefix="latency-"))
    (folder / "meters").mkdir()
    (folder / "meters" / "probe.yaml").write_text(METERS)
    (folder / "alarms").mkdir()
    (folder / "alarms" / "probe.yaml").write_text(ALARMS)
    receiver = Receiver([SECRET])
    endpoint = f"{{url: '{receiver.url}', secrets: [{SECRET}], allow_private: true}}"
    with ExitStack() as stack:
        if not arguments.keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(receiver.close)
        settings = f"rules: {{endpoints: {{bench: {endpoint}}}}}\n"
        project = stack.enter_context(stand(folder, partitions=PARTITIONS, settings=settings))
        return measure(project, receiver, stack, arguments.rate, arguments.seconds)


def measure(project: Project, receiver: Receiver, stack: ExitStack, rate: float, seconds: float) -> int:
    """Fill, drain, probe, probe under load, and print."""
    from pipeline.worker import prepare

    prepare(project)
    fill(project, make_templates(project), _FILL_RECORDS)
    pipeline = stack.enter_context(service("pipeline", project))
    capacity = measure_capacity(project, _FILL_RECORDS)
    processes = {"pipeline": pipeline, "rules": stack.enter_context(service("rules", project)), **parts(project)}
    time.sleep(3)  # the engine has looked at everything once, merges have settled
    phases = [run_phase("idle", project, receiver, seconds, processes)]
    bearable, more = (0.0, 0) if rate else measure_bearable(project, capacity)
    with load(project, rate or bearable / 2, 1) as sent:
        time.sleep(_LEAD_S)
        phases.append(run_phase("half load", project, receiver, seconds, processes))
    phases[-1].rate = sent[1]
    wanted = _FILL_RECORDS * EVENTS_IN_RECORD + more + sent[0] + sum(len(phase.probes) for phase in phases)
    met = show(phases, capacity, bearable)
    stored = settle(project, wanted)
    print(f"{stored:,} events stored of {wanted:,}; {len(receiver.messages):,} webhooks")
    return 0 if met and stored == wanted else 1


def settle(project: Project, wanted: int) -> int:
    """Wait until everything sent is stored; return what is."""
    deadline = time.monotonic() + _PATIENCE_S
    while (stored := total_events(project)) != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    return stored


if __name__ == "__main__":
    sys.exit(main())
