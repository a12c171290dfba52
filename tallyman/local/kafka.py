"""A real Kafka 4 broker on loopback: one KRaft node, formatted once, its settings in `docker/kafka`."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tallyman.errors import StackError
from tallyman.local.files import write_atomically
from tallyman.local.jars import Progress, fetch_jars, kafka_files
from tallyman.local.java import Java, find_java
from tallyman.local.ports import answers, choose_port
from tallyman.local.supervise import Child, OneChild, RestartPolicy, Watcher

HEAP = "-Xmx384m"
HOST = "127.0.0.1"
# Java reads paths by the locale: in LANG=C, as cron and systemd have it, it fails in a folder called "Ünï".
_UTF_8 = {"LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaPlan:
    """All that is needed to run the broker of one folder."""

    folder: Path
    port: int
    controller_port: int
    java: Java
    class_path: Sequence[Path]

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def properties(self) -> Path:
        return self.folder / "server.properties"


def plan_kafka(folder: Path, *, port: int | None = None, on_progress: Progress | None = None) -> KafkaPlan:
    """Find Java and the jars, choose ports, write `server.properties`, and format the storage if it is new.

    Args:
        port: The port wanted, e.g. the last run's; another is chosen if somebody listens there.

    Raises:
        StackError: If there is no Java, a jar cannot be fetched, or the storage cannot be formatted.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    port = choose_port(port)
    plan = KafkaPlan(
        folder=folder,
        port=port,
        controller_port=choose_port(taken=(port,)),
        java=find_java(),
        class_path=fetch_jars(on_progress=on_progress),
    )
    if not plan.data.exists():
        _format(plan)
    write_atomically(plan.properties, server_properties(plan, plan.data))
    return plan


def kafka_child(plan: KafkaPlan, *, restart: RestartPolicy | None = None) -> Child:
    """Return the broker as a child for the supervisor; it is ready when it answers a real admin request."""
    return Child(
        name="kafka",
        argv=_java(plan, "kafka.Kafka", str(plan.properties)),
        env=_UTF_8,
        log=plan.folder / "logs" / "kafka-start.log",
        is_ready=lambda: _answers_admin(plan),
        stop_within_s=30,
        restart=restart,
        endpoint=plan.bootstrap,
    )


def _java(plan: KafkaPlan, main: str, *arguments: str, flags: Sequence[str] = ()) -> list[str]:
    return [
        str(plan.java.path),
        HEAP,
        "-Xms96m",
        "-XX:+UseSerialGC",  # 45 MB less than G1 at this size, and no slower to start
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={kafka_files() / 'log4j2.properties'}",
        f"-Dkafka.logs.dir={plan.folder / 'logs'}",
        *flags,
        "-cp",
        os.pathsep.join(str(jar) for jar in plan.class_path),
        main,
        *arguments,
    ]


def server_properties(plan: KafkaPlan, data: Path) -> str:
    """Return the folder's own settings behind those of `docker/kafka/server.properties`.

    Raises:
        StackError: If the path has a comma, which Kafka takes for the end of it.
    """
    if "," in str(data):
        raise StackError(f"{data}: a comma in the path is the end of it for Kafka; choose another --data")
    common = (kafka_files() / "server.properties").read_text(encoding="utf-8")
    return f"""{common}
# This folder's own:
listeners=PLAINTEXT://{HOST}:{plan.port},CONTROLLER://{HOST}:{plan.controller_port}
advertised.listeners=PLAINTEXT://{HOST}:{plan.port}
controller.quorum.bootstrap.servers={HOST}:{plan.controller_port}
log.dirs={_escaped(data)}
"""


def _escaped(path: Path) -> str:
    """Write a path as a Java properties file reads it: in ASCII, with a backslash as the escape character."""
    text = str(path).replace("\\", "\\\\")
    return "".join(c if c.isascii() else "".join(f"\\u{unit:04x}" for unit in _utf16(c)) for c in text)


def _utf16(character: str) -> list[int]:
    raw = character.encode("utf-16-be")
    return [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw), 2)]


def _format(plan: KafkaPlan) -> None:
    """Format the storage in a folder beside its place: a format that was cut off is simply done again."""
    fresh = plan.folder / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    (plan.folder / "logs").mkdir(exist_ok=True)
    properties = plan.folder / "format.properties"
    properties.write_text(server_properties(plan, fresh), encoding="utf-8")
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    if cluster.startswith("-"):  # the tool would read it as an option
        cluster = f"T{cluster[1:]}"
    command = _java(
        plan,
        "kafka.tools.StorageTool",
        *("format", "--standalone", "-t", cluster, "-c", str(properties)),
        flags=("-XX:TieredStopAtLevel=1",),
    )
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        check=False,
        env={**os.environ, **_UTF_8},
    )
    if done.returncode != 0:
        raise StackError(
            f"{plan.folder}: Kafka's storage could not be formatted (exit code {done.returncode}), "
            f"with Java {plan.java.version}; what it said:\n{(done.stdout + done.stderr)[-2000:]}"
        )
    properties.unlink()
    fresh.rename(plan.data)


def _answers_admin(plan: KafkaPlan) -> bool:
    """Say if the broker answers an admin request and counts itself among the living."""
    if not answers(HOST, plan.port):
        return False
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        admin = KafkaAdminClient(bootstrap_servers=plan.bootstrap, request_timeout_ms=5_000)
    except (KafkaError, OSError):
        return False
    try:
        return bool(admin.describe_cluster()["brokers"])
    except (KafkaError, OSError):
        return False
    finally:
        admin.close()


class Broker(OneChild):
    """A broker for tests: started, stopped and killed at will, on one folder and port; never restarts itself."""

    def __init__(self, folder: Path, *, port: int | None = None, on_event: Watcher | None = None) -> None:
        self.plan = plan_kafka(folder, port=port)
        super().__init__(kafka_child(self.plan), self.plan.folder / "run", on_event)

    @property
    def bootstrap(self) -> str:
        """The address for clients, the same over restarts."""
        return self.plan.bootstrap

    def create_topic(self, stem: str, *, partitions: int = 2, **configs: str) -> str:
        """Make a topic with a name of its own, stamped on arrival, and return the name.

        `configs` are Kafka's settings with "_" for ".": `retention_ms="60000"`.
        """
        name = f"{stem}-{secrets.token_hex(4)}"
        settings = {"message.timestamp.type": "LogAppendTime"} | {
            key.replace("_", "."): value for key, value in configs.items()
        }
        options = {"num_partitions": partitions, "replication_factor": 1, "configs": settings}
        with self._admin() as admin:
            admin.create_topics({name: options}, wait_for_metadata=True)
        return name

    def topics(self) -> list[str]:
        """Return the names of the topics that there are."""
        with self._admin() as admin:
            return list(admin.list_topics())

    @contextmanager
    def _admin(self) -> Iterator[Any]:
        from kafka import KafkaAdminClient

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            yield admin
        finally:
            admin.close()
