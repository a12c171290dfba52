"""Everything that runs in a chaos run, as processes that are killed and come back, and the signs that they work."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clickhouse_driver import errors as driver_errors

from tallyman.clickhouse import NETWORK_ERRORS, connect
from tallyman.errors import BrokerError, StackError, StoreError
from tallyman.kafka import end_offsets, make_consumer
from tallyman.local import exec_child
from tallyman.local.stack import Service, Stack, StackOptions
from tallyman.local.supervise import ChildEvent, RestartPolicy, importable
from tallyman.project import Project, load_project
from tests.chaos.board import TWIN, WORKERS, Board
from tests.chaos.disks import Disk, FileLimit, Kind, SmallDisk
from tests.chaos.senders import SPOOLS
from tests.chaos.usage_made import IGNORED, METERS, Made

PARTITIONS, CHUNK_SIZE = 3, 256
SENDERS = ("agent", "host", "client")
ON_SPOOL_DISK = ("agent", "host")
_SPOOL_DISK, _DATABASE_DISK = 64 << 20, 6 << 30
# Whoever ended is started again at once, however often it is killed.
_RESTART = RestartPolicy(first_delay_s=0.1, longest_delay_s=0.5, well_after_s=0, start_attempts=5, loop_after=1000)
_PYTHON = (sys.executable, "-m")
_AWAY = (*NETWORK_ERRORS, driver_errors.Error, StoreError)


class Parts:
    """The stack of one run, in a folder of its own; killed with this process whatever happens."""

    def __init__(self, folder: Path, made: Made, *, workers: int, disks: Kind) -> None:
        self.folder, self.data = folder, folder / "data"
        self.workers = (*WORKERS[:workers], TWIN)
        self.ended: Counter[str] = Counter()  # how often each part ended, for whatever reason
        self.data.mkdir(parents=True)
        self.make_project(folder)
        self.make_project(folder / TWIN, f"partitions: {list(range(PARTITIONS))}")
        self.board = Board(folder / "board")
        self.spool_disk = self._disk(disks, SPOOLS, _SPOOL_DISK, ON_SPOOL_DISK)
        self.database_disk = self._disk(disks, "clickhouse", _DATABASE_DISK, ("clickhouse",))
        self.stack = Stack(
            self.data, list(self._services(made)), options=StackOptions(restart=_RESTART), on_event=self._note
        )
        self._client: Any = None
        self._consumer: Any = None
        self._topic_id, self._partitions = "", PARTITIONS  # of the topic that is looked at; "": there is only one

    def _disk(self, kind: Kind, name: str, size: int, users: Sequence[str]) -> Disk:
        if kind == "mount":
            return SmallDisk(self.data / name, size)
        return FileLimit(lambda: [pid for user in users if (pid := self.pid(user))])

    def make_project(self, folder: Path, pipeline: str = "", more: str = "") -> None:
        """Make a project that books the run's topic; `pipeline`, `more`: settings of its own."""
        (folder / "meters").mkdir(parents=True)
        (folder / "meters" / "chaos.yaml").write_text(METERS)
        self.configure(folder, pipeline, more)

    def configure(
        self, folder: Path, pipeline: str = "", more: str = "", *, kafka: str = f"partitions: {PARTITIONS}"
    ) -> None:
        """Write a project's settings, for whoever is started from now on."""
        settings = ", ".join(filter(None, ("tick: 5s", "rebuild_after: 20s", pipeline)))
        (folder / "tallyman.yaml").write_text(
            f"operator: Chaos\nkafka: {{{kafka}, chunk_size: {CHUNK_SIZE}}}\n"
            f"usage: {{ignore: [{IGNORED}]}}\npipeline: {{{settings}}}\n{more}"
        )

    def _services(self, made: Made) -> Iterator[Service]:
        first, *others = [self._worker(name) for name in self.workers]
        yield first  # it makes the topics
        where = (str(self.folder), str(self.data), str(self.folder / "board"))
        yield Service(name="sealer", argv=(*_PYTHON, "tests.chaos.sealer", *where), metrics_port=0)
        for name in SENDERS:
            argv = (*_PYTHON, "tests.chaos.senders", name, *where, str(made.seed), str(made.base_us))
            yield Service(name=name, argv=argv, metrics_port=0)
        yield from others

    def _worker(self, name: str) -> Service:
        project = self.folder / TWIN if name == TWIN else self.folder
        where = ("--project", str(project), "--data", str(self.data))
        argv = (*_PYTHON, "tests.chaos.worker", str(self.folder / "board"), f"{name}.clock_us", *where)
        return Service(name=name, argv=argv)

    def start(self) -> None:
        self.stack.start()

    def stop(self) -> None:
        """Stop everything, whatever state it is in."""
        for name in (*self.workers, *SENDERS, "sealer", "kafka", "clickhouse"):
            self.signal(name, signal.SIGCONT)
        self.database_disk.free()
        self.spool_disk.free()
        self.stack.stop()

    def _note(self, event: ChildEvent) -> None:
        self.ended[event.name] += event.what == "ended"

    @property
    def project(self) -> Project:
        return load_project(self.folder, self.data)

    # What is done to a part

    def pid(self, name: str) -> int | None:
        return self.stack.endpoints().services[name].pid

    def kill(self, name: str) -> None:
        self.stack.kill(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, KeyError, StackError):
            if pid := self.pid(name):
                os.killpg(pid, number)

    # Signs that a part works

    def flushes(self, worker: str) -> int | None:
        """Return how many flushes a worker wrote since it was started; None while it does not say."""
        url = self.stack.endpoints().services[worker].metrics
        try:
            with urllib.request.urlopen(str(url), timeout=2) as answer:
                text: str = answer.read().decode()
        except OSError:
            return None
        found = re.search(r"^tallyman_pipeline_flush_seconds_count (\S+)", text, re.MULTILINE)
        return int(float(found[1])) if found else 0

    def booked(self) -> dict[int, int] | None:
        """Return the offset up to which each partition is booked; None while ClickHouse is away."""
        of_topic = f"WHERE topic_id = '{self._topic_id}'" if self._topic_id else ""
        rows = self.ask(f"SELECT partition, max(reached_offset) FROM progress {of_topic} GROUP BY partition")
        return None if rows is None else dict(rows)

    def follow(self, topic_id: str, partitions: int) -> None:
        """Look at another topic from now on: the one that follows, and is configured."""
        self._topic_id, self._partitions = topic_id, partitions

    def sealed_to(self) -> int | None:
        rows = self.ask("SELECT max(booking) FROM seals")
        return None if rows is None else int(rows[0][0])

    def ends(self) -> dict[int, int] | None:
        """Return where the log of each partition ends; None while the broker is away."""
        try:
            if self._consumer is None:
                self._consumer = make_consumer(self.project.kafka_brokers)
            return end_offsets(self._consumer, self.project.config.kafka.topic, range(self._partitions))
        except BrokerError:
            return None

    def ask(self, sql: str, rows: Sequence[Any] | None = None) -> list[Any] | None:
        """Run a statement; None when ClickHouse does not answer, or says no."""
        if self._client is None:
            self._client = connect(self.project.clickhouse, timeout_s=10)
        try:
            answer: list[Any] = self._client.execute(sql, rows)
        except _AWAY:
            self._client.disconnect()
            return None
        return answer

    def log_of(self, name: str) -> str:
        path = self.data / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""


class Helper:
    """A command that runs beside the parts for a while; it cannot outlive this process.

    Args:
        log: Where it writes what it prints, and what it says of itself, unless that goes to `talk`.
    """

    def __init__(self, argv: Sequence[str], log: Path, *, talk: Path | None = None) -> None:
        wrapper = [sys.executable, "-I", "-S", exec_child.__file__, str(os.getpid())]
        with log.open("ab") as out, (talk or log).open("ab") as err:
            self._process = subprocess.Popen(
                [*wrapper, *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0,
                env={**os.environ, **importable()},
            )

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def kill(self) -> bool:
        """Kill it and its group; say whether it still ran."""
        ran = self._process.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        return ran


