"""One command's worth of Tallyman: Kafka, ClickHouse and our services under one data folder, supervised.

For tests and the demo: `with running_stack(data) as endpoints`. The command line uses `updown`.
"""

from __future__ import annotations

import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tallyman.errors import StackError
from tallyman.local.clickhouse_child import clickhouse_child
from tallyman.local.folder import ClickHouseEndpoint, Endpoints, FolderLock, ServiceEntry, write_endpoints
from tallyman.local.kafka import kafka_child, plan_kafka
from tallyman.local.ports import KeptPorts
from tallyman.local.supervise import (
    Child,
    ChildEvent,
    ChildState,
    RestartPolicy,
    Supervisor,
    Watcher,
    importable,
)

OUR_SERVICES = ("agent", "pipeline", "rules")
METRICS_PORT = "TALLYMAN_METRICS_PORT"
_LONGEST_SENTENCE = 2000  # bytes of what a service says of itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service of ours to run beside Kafka and ClickHouse.

    It finds these in `stack.json` of the folder in `$TALLYMAN_DATA`, and serves /metrics, /healthz and /readyz on
    the loopback port in `$TALLYMAN_METRICS_PORT`; it counts as started when /healthz answers.

    Attributes:
        metrics_port: None: the stack chooses one and keeps it; 0: the service has none, and is started when it runs.
    """

    name: str
    argv: Sequence[str]
    metrics_port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """What an operator can set. A port of None is a free one, the same over restarts where it can be."""

    kafka: bool = True
    clickhouse: bool = True
    kafka_port: int | None = None
    clickhouse_port: int | None = None
    clickhouse_password: str = ""
    restart: RestartPolicy = field(default_factory=RestartPolicy)


def default_services(project: Path, data: Path, names: Sequence[str] = OUR_SERVICES) -> list[Service]:
    """Return our services as `tallyman up` runs them."""
    where = ("--project", str(project), "--data", str(data))
    return [Service(name=name, argv=(sys.executable, "-m", "tallyman", name, *where)) for name in names]


class Stack:
    """Kafka and ClickHouse side by side, then the services in their order, in this process's supervisor."""

    def __init__(
        self,
        data: Path,
        services: Sequence[Service] = (),
        *,
        options: StackOptions | None = None,
        on_event: Watcher | None = None,
    ) -> None:
        self._data = data.absolute()
        self._services = services
        self._options = options or StackOptions()
        self._tell: Watcher = on_event or (lambda event: None)
        self._lock = FolderLock(self._data)
        self._supervisor: Supervisor | None = None
        self._endpoints: Endpoints | None = None
        self._metrics: dict[str, str] = {}
        self._writing = threading.Lock()  # keepers report from their own threads

    def start(self) -> Endpoints:
        """Start everything and wait until all of it is ready; what was started is stopped again if one part fails.

        Raises:
            StackError: If the folder is held by another stack, a configured port is taken, or a part does not start.
        """
        self._lock.hold()
        try:
            return self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> Endpoints:
        ports = KeptPorts(self._data / "ports.json")
        self._supervisor = Supervisor(self._data / "run", self._watch)
        for pid in self._supervisor.cleared:
            self._tell(ChildEvent("stack", "killed", f"process {pid} was left over from an earlier run"))
        clickhouse = ClickHouseEndpoint(
            host="127.0.0.1",
            port=ports.take("clickhouse", self._options.clickhouse_port),
            password=self._options.clickhouse_password,
        )
        kafka_port = ports.take("kafka", self._options.kafka_port)
        services = [(service, self._metrics_port(service, ports)) for service in self._services]
        ports.keep()
        self._start_parts(kafka_port, clickhouse)
        self._endpoints = Endpoints(
            kafka=f"127.0.0.1:{kafka_port}" if self._options.kafka else "",
            clickhouse=clickhouse if self._options.clickhouse else None,
            control=f"sqlite:///{self._data / 'control.db'}",
            started=datetime.now(UTC).replace(microsecond=0),  # as the file has it
            pid=os.getpid(),
        )
        self._write()  # the services read it when they start
        for service, port in services:
            self._supervisor.start(self._service_child(service, port))
        return self.endpoints()

    def stop(self) -> None:
        """Stop in reverse order and let go of the folder; nothing happens if it does not run."""
        if self._supervisor:
            self._supervisor.stop()
            with self._writing:
                self._endpoints = None
                (self._data / "stack.json").unlink(missing_ok=True)
            self._supervisor = None
        self._lock.release()

    def endpoints(self) -> Endpoints:
        """Return what runs now, as `stack.json` has it.

        Raises:
            StackError: If the stack does not run.
        """
        with self._writing:
            if not self._endpoints or not self._supervisor:
                raise StackError(f"{self._data}: the stack does not run; call start() first")
            return self._fill(self._endpoints, self._supervisor.states())

    def kill(self, name: str) -> None:
        """Kill a part with -9, as a chaos test does; the supervisor starts it again."""
        if self._supervisor:
            self._supervisor.kill(name)

    def _start_parts(self, kafka_port: int, clickhouse: ClickHouseEndpoint) -> None:
        """Start Kafka and ClickHouse side by side; neither waits for the other."""
        pool = ThreadPoolExecutor(2, thread_name_prefix="start")
        try:
            parts = [pool.submit(self._start_kafka, kafka_port)] if self._options.kafka else []
            parts += [pool.submit(self._start_clickhouse, clickhouse)] if self._options.clickhouse else []
            for part in wait(parts, return_when=FIRST_EXCEPTION).done:
                part.result()
        finally:  # an interrupt does not wait for a download
            pool.shutdown(wait=False, cancel_futures=True)

    def _start_kafka(self, port: int) -> None:
        def progress(done: int, total: int) -> None:
            self._tell(ChildEvent("kafka", "starting", f"fetched {done} of {total} jars"))

        assert self._supervisor
        plan = plan_kafka(self._data / "kafka", port=port, on_progress=progress)
        self._supervisor.start(kafka_child(plan, restart=self._options.restart))

    def _start_clickhouse(self, endpoint: ClickHouseEndpoint) -> None:
        assert self._supervisor
        child = clickhouse_child(self._data / "clickhouse", endpoint, restart=self._options.restart)
        self._supervisor.start(child)

    def _service_child(self, service: Service, port: int) -> Child:
        return Child(
            name=service.name,
            argv=service.argv,
            env={"TALLYMAN_DATA": str(self._data), METRICS_PORT: str(port), **importable()},
            log=self._data / "logs" / f"{service.name}.log",
            is_ready=(lambda: probe(port, "healthz")[0]) if port else None,
            restart=self._options.restart,
            endpoint=f"127.0.0.1:{port}" if port else "",
        )

    def _metrics_port(self, service: Service, ports: KeptPorts) -> int:
        if service.metrics_port == 0:
            return 0
        port = ports.take(service.name, service.metrics_port)
        self._metrics[service.name] = f"http://127.0.0.1:{port}/metrics"
        return port

    def _watch(self, event: ChildEvent) -> None:
        self._write()
        self._tell(event)

    def _write(self) -> None:
        with self._writing:
            if self._endpoints and self._supervisor:
                write_endpoints(self._data, self._fill(self._endpoints, self._supervisor.states()))

    def _fill(self, endpoints: Endpoints, states: Sequence[ChildState]) -> Endpoints:
        services = {
            state.name: ServiceEntry(
                pid=state.pid,
                state=state.state,
                since=state.since,
                restarts=state.restarts,
                endpoint=state.endpoint,
                metrics=self._metrics.get(state.name),
            )
            for state in states
        }
        return replace(endpoints, services=services)


def probe(port: int, path: str) -> tuple[bool, str]:
    """Ask a service of ours for /healthz or /readyz; return whether it says yes, and its sentence."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2) as answer:
            return answer.status == 200, _sentence(answer.read(_LONGEST_SENTENCE))
    except urllib.error.HTTPError as error:
        with error:
            return False, _sentence(error.read(_LONGEST_SENTENCE))
    except OSError as error:
        return False, f"/{path} does not answer: {error}"


def _sentence(body: bytes) -> str:
    return body.decode("utf-8", "replace").strip()


@contextmanager
def running_stack(
    data: Path,
    services: Sequence[Service] = (),
    *,
    options: StackOptions | None = None,
    on_event: Watcher | None = None,
) -> Iterator[Endpoints]:
    """Run a stack in this process for as long as the block lasts.

    >>> with running_stack(Path("build/demo")) as endpoints:  # doctest: +SKIP
    ...     print(endpoints.kafka)
    127.0.0.1:21092
    """
    stack = Stack(data, services, options=options, on_event=on_event)
    try:
        yield stack.start()
    finally:
        stack.stop()
