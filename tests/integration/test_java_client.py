"""Records of a Java producer, whose client is Kafka's own: its partitioner, batches, codecs and transactions."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.close import found_books
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.local.jars import fetch_jars
from tallyman.local.java import find_java
from tests.integration.booking import OwnProject
from tests.integration.test_dead_retry import HOUR, METERS, body
from tests.stack import not_here

pytestmark = pytest.mark.integration
SOURCE = Path(__file__).parents[1] / "data" / "JavaProducer.java"
KEY = "Zoë Åström/nova/berlin-1"


class JavaClient:
    """A Java application in front of a project whose pipeline runs."""

    def __init__(self, own: OwnProject) -> None:
        self.own = own

    def send(
        self, values: Sequence[bytes], codecs: str = "none", content: str = "none", transaction: str = "none"
    ) -> None:
        """Produce records, compiled from source by the Java that is there."""
        jars = ":".join(map(str, fetch_jars()))
        order = [find_java().path, "-cp", jars, SOURCE, self.own.kafka, self.own.settings["topic"], codecs, content,
                 transaction]  # fmt: skip
        lines = b"".join(KEY.encode() + b"\t" + value + b"\n" for value in values)
        done = subprocess.run(list(map(str, order)), input=lines, capture_output=True, check=False, timeout=300)
        if b"jdk.compiler" in done.stderr or b"compilation failed" in done.stderr:
            not_here(f"this Java cannot compile; on Debian: apt-get install default-jdk-headless; {done.stderr[:99]!r}")
        assert done.stdout == b"sent\n", done.stderr.decode()

    def hours(self) -> int:
        self.own.wait_until_booked()
        return self.own.usage().get("compute.hours", 0) // HOUR


@pytest.fixture
def java(kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path) -> Iterator[JavaClient]:
    own = OwnProject(tmp_path / "p", kafka_broker, clickhouse_endpoint, METERS, partitions=4)
    with own.running():
        found_books(own.project)
        yield JavaClient(own)


def test_each_codec_of_the_java_client_is_read_and_its_partitioner_finds_the_home(java: JavaClient) -> None:
    java.send([body(f"e-{i}") for i in range(250)], "none,gzip,snappy,lz4,zstd")
    assert java.hours() == 250
    counts = java.own.counts()
    assert sum(each["forwarded"] for each in counts) == 0 and sum(each["dead"] for each in counts) == 0


def test_what_a_transaction_took_back_never_counts(java: JavaClient) -> None:
    java.send([body(f"a-{i}") for i in range(30)], transaction="abort")
    java.send([body(f"c-{i}") for i in range(20)], "lz4", "Application/CloudEvents+JSON; charset=utf-8", "commit")
    assert java.hours() == 20
    assert sum(each["received"] for each in java.own.counts()) == 20
