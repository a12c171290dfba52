"""Memory and CPU of a running agent: `python bench/agent_memory.py [--seconds 30] [--interval 1]`.

A real broker, the agent in a process of its own with everything loaded: with the broker there, just after it was
killed (until the producer is given up), and then. Resident memory and CPU time are the kernel's own figures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collectors.send import PATIENCE_S
from tallyman.local.kafka import Broker

LIMIT_MIB = 60
AGENT = """
import signal, sys, threading
from datetime import timedelta
from pathlib import Path
from collectors import agent
from tallyman import log
from tallyman.config import AgentConfig, KafkaConfig, TallymanConfig
from tallyman.project import Project
folder, bootstrap, topic, interval = sys.argv[1:]
log.setup("info")
config = TallymanConfig(
    kafka=KafkaConfig(brokers=(bootstrap,), topic=topic),
    agent=AgentConfig(collector="bench", interval=timedelta(seconds=int(interval))),
)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
sys.exit(agent.main(Project(folder=Path(folder), data=Path(folder), config=config, meters=()), stop, 0))
"""


@contextmanager
def running_agent(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", AGENT, *arguments])
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def memory_mib(pid: int) -> tuple[float, float]:
    """Return (resident now, resident at its peak)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.strip()}
    return int(status["VmRSS"]) / 1024, int(status["VmHWM"]) / 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(pid: int, seconds: float) -> tuple[float, float, float]:
    """Return (MiB now, MiB at the peak, percent of a core) over so many seconds."""
    cpu, started = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    percent = 100 * (cpu_seconds(pid) - cpu) / (time.monotonic() - started)
    return (*memory_mib(pid), percent)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=30.0)
    arguments.add_argument("--interval", type=int, default=1, help="seconds; 1 is ten times the default load")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder) / "kafka")
        broker.start()
        topic = broker.create_topic("usage.events", partitions=2)
        try:
            with running_agent(folder, broker.bootstrap, topic, str(options.interval)) as process:
                time.sleep(5)
                rows = [("broker there", *measure(process.pid, options.seconds))]
                broker.kill()
                rows.append(("just away", *measure(process.pid, PATIENCE_S)))
                rows.append(("broker away", *measure(process.pid, options.seconds)))
        finally:
            broker.stop()
    print(f"one batch each {options.interval} s, {options.seconds:g} s each")
    print(f"{'':14}{'RSS MiB':>10}{'peak MiB':>10}{'% of a core':>13}")
    for name, now, peak, percent in rows:
        print(f"{name:14}{now:>10.1f}{peak:>10.1f}{percent:>13.2f}")
    worst = max(peak for _, _, peak, _ in rows)
    print(f"limit {LIMIT_MIB} MiB: {'kept' if worst <= LIMIT_MIB else 'BROKEN'}")
    return 0 if worst <= LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
