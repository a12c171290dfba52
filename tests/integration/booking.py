"""Projects of their own on the session's Kafka and ClickHouse, with the real pipeline running in this process."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clickhouse_driver import Client
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from pipeline import worker
from tallyman.clickhouse import connect
from tallyman.kafka import end_offsets, make_consumer, make_producer
from tallyman.local.folder import ClickHouseEndpoint, Endpoints, write_endpoints
from tallyman.project import Project, load_project

PATIENCE_S = 180
Headers = Sequence[tuple[str, bytes]]
COUNTS = ("received", "aggregated", "duplicate", "dead", "ignored", "forwarded", "conflict")


class OwnProject:
    """A project with a database, topics and a control store that no other test sees."""

    def __init__(self, folder: Path, kafka: str, clickhouse: ClickHouseEndpoint, meters: str, **kafka_settings: Any):
        self.folder, self.kafka = folder, kafka
        name = uuid.uuid4().hex[:10]
        self.settings: dict[str, Any] = {
            "topic": f"usage.{name}",
            "progress_topic": f"progress.{name}",
            "partitions": 1,
            "chunk_size": 8,
        }
        self.settings |= kafka_settings
        self.pipeline: dict[str, Any] = {"tick": "30s", "flush": "50ms"}
        self.sections: dict[str, dict[str, Any]] = {"kafka": self.settings, "pipeline": self.pipeline}
        (folder / "meters").mkdir(parents=True)
        self.define(meters)
        self.use_database(clickhouse, f"books_{name}")

    def define(self, meters: str) -> None:
        (self.folder / "meters" / "all.yaml").write_text(meters, encoding="utf-8")

    def use_database(self, clickhouse: ClickHouseEndpoint, name: str) -> None:
        """Book into a new, empty database."""
        self.endpoint = replace(clickhouse, database=name)
        maker = connect(replace(clickhouse, database="default"))
        maker.execute(f"CREATE DATABASE {name}")
        maker.disconnect()
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        write_endpoints(
            data, Endpoints(kafka=self.kafka, clickhouse=self.endpoint, control="", started=datetime.now(UTC), pid=1)
        )

    @property
    def project(self) -> Project:
        lines = [
            f"{name}: {{{', '.join(f'{k}: {v}' for k, v in values.items())}}}"
            for name, values in self.sections.items()
        ]
        (self.folder / "tallyman.yaml").write_text("\n".join(["operator: Försök AB", *lines, ""]), encoding="utf-8")
        return load_project(self.folder, self.folder / "data")

    def send(self, *records: tuple[bytes, Headers], partition: int = 0, **options: Any) -> list[int]:
        """Append records in order; all are acknowledged when this returns. Return their offsets."""
        producer = make_producer((self.kafka,), **options)
        sent = [
            producer.send(self.settings["topic"], value=value, headers=list(headers), partition=partition)
            for value, headers in records
        ]
        offsets = [int(future.get(timeout=30).offset) for future in sent]
        producer.close(timeout=5)
        return offsets

    def eat(self, partition: int, below: int) -> None:
        """Remove records as retention does."""
        admin = KafkaAdminClient(bootstrap_servers=self.kafka)
        try:
            admin.delete_records({TopicPartition(str(self.settings["topic"]), partition): below})
        finally:
            admin.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the pipeline as its service does, in a thread."""
        stop, codes = threading.Event(), list[int]()
        project = self.project
        thread = threading.Thread(target=lambda: codes.append(worker.main(project, stop, None)), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=120)
        assert codes == [0]

    def wait_until_booked(self) -> None:
        """Wait until progress has reached the end of every partition."""
        consumer = make_consumer((self.kafka,))
        partitions = range(int(self.settings["partitions"]))
        ends = end_offsets(consumer, str(self.settings["topic"]), partitions)
        consumer.close()
        wait_for(lambda: all(self.reached().get(n, 0) >= end for n, end in ends.items()), f"progress up to {ends}")

    def reached(self) -> dict[int, int]:
        return dict(self.ask("SELECT partition, max(reached_offset) FROM progress GROUP BY partition"))

    def ask(self, sql: str, **values: Any) -> list[Any]:
        client: Client = connect(self.endpoint)
        try:
            rows: list[Any] = client.execute(sql, values)
            return rows
        finally:
            client.disconnect()

    def usage(self) -> dict[str, int]:
        """Return the scaled sum of each meter."""
        return dict(self.ask("SELECT meter, sum(sum) FROM usage_booked GROUP BY meter"))

    def counts(self) -> list[dict[str, int]]:
        """Return what became of the events of each chunk."""
        rows = self.ask("SELECT reached_counts FROM progress FINAL ORDER BY partition, chunk")
        return [dict(zip(COUNTS, row[0], strict=True)) for row in rows]


def wait_for(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a condition; errors of parts that are just starting again count as "not yet"."""
    deadline = time.monotonic() + patience_s
    problem, pause = "", 0.1
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except Exception as error:  # noqa: BLE001 - said below, if it never gets better
            problem = f" ({type(error).__name__}: {error})"
        time.sleep(pause)  # each look is a connection and a query; other tests need the core, too
        pause = min(pause * 1.3, 0.4)
    raise AssertionError(f"not within {patience_s:.0f} s: {what}{problem}")
