"""Workers share a topic's partitions: who comes takes some over, who goes or dies leaves them, and every event counts
once.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
from kafka import KafkaAdminClient

from pipeline.close import found_books
from pipeline.members import group_of
from pipeline.runtime import forget, release, runtime
from pipeline.worker import prepare
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject, wait_for

pytestmark = pytest.mark.integration
HOURS = "meters:\n- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 3}\n"
PARTITIONS, CHUNK = 4, 65_536
NOW = datetime.now(UTC).isoformat()


@pytest.fixture
def own(kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path) -> Iterator[OwnProject]:
    # Large chunks: who takes over has to read everything again, with its ids.
    own = OwnProject(
        tmp_path / "own", kafka_broker, clickhouse_endpoint, HOURS, partitions=PARTITIONS, chunk_size=CHUNK
    )
    found_books(own.project)
    yield own
    forget()


def send(own: OwnProject, numbers: range, copies: int = 1) -> None:
    """Send events to partitions in turn; most are not at home there, and some come more than once."""
    for partition in range(PARTITIONS):
        bodies = [body(number) for number in numbers if number % PARTITIONS == partition]
        own.send(*[(each, ()) for each in bodies * copies], partition=partition)


def body(number: int) -> bytes:
    wire = {"id": f"e-{number}", "source": f"nova/{number % 23}", "type": "server", "subject": "Zoë Åström",
            "time": NOW, "data": {"hours": "1.5"}}  # fmt: skip
    return msgspec.json.encode(wire)


@contextmanager
def worker(own: OwnProject) -> Iterator[subprocess.Popen[bytes]]:
    """Run a pipeline of its own, as production does."""
    folder = own.project.folder
    command = [sys.executable, "-m", "tallyman", "pipeline", "--project", str(folder), "--data", str(folder / "data")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def shares(own: OwnProject) -> list[int]:
    """Return how many partitions each member of the group has."""
    name = group_of(str(own.settings["topic"]))
    admin = KafkaAdminClient(bootstrap_servers=own.kafka)
    try:
        members = admin.describe_groups([name])[name]["members"]
    finally:
        admin.close()
    given = [each["member_assignment"]["assigned_partitions"] for each in members]
    return sorted(sum(len(topic["partitions"]) for topic in topics) for topics in given)


def test_who_comes_takes_half_and_who_dies_or_leaves_is_replaced(own: OwnProject) -> None:
    with ExitStack() as first:
        first.enter_context(own.running())
        send(own, range(40))
        own.wait_until_booked()
        with worker(own) as second:
            wait_for(lambda: shares(own) == [2, 2], "two workers with two partitions each")
            send(own, range(20, 80), copies=2)
            own.wait_until_booked()
            second.kill()
            send(own, range(60, 120))
            own.wait_until_booked()  # by the first one, which has them all again
        wait_for(lambda: shares(own) == [4], "one worker with four partitions")
        with worker(own) as heir:
            wait_for(lambda: shares(own) == [2, 2], "two workers with two partitions each")
            first.close()
            wait_for(lambda: shares(own) == [4], "the heir with four partitions")
            send(own, range(100, 140))
            wait_for(lambda: own.usage() == {"compute.hours": 140 * 1500}, "all events, also those sent on")
            own.wait_until_booked()
            assert heir.poll() is None
    assert own.usage() == {"compute.hours": 140 * 1500}
    counts = own.counts()
    assert sum(each["aggregated"] for each in counts) == 140
    received = sum(each["received"] for each in counts)
    assert received == sum(each[name] for each in counts for name in ("aggregated", "duplicate", "forwarded"))


def test_what_another_worker_accepted_meanwhile_is_known_when_a_partition_comes_back(own: OwnProject) -> None:
    """The filter was loaded before, and would call it new."""
    config = prepare(own.project)
    known, key = runtime(config).judge.filter, (config.topic_id, 1)
    high, low = np.array([17], np.uint64), np.array([4], np.uint64)
    runtime(config).open_chunk(1)
    wait_for(lambda: not known.perhaps(*key, high, low).any(), "the filter is loaded")
    release(config, {0, 2, 3})
    own.ask(
        "INSERT INTO ids (identity_high, identity_low, topic_id, partition, offset)"
        f" SELECT 17, 4, '{config.topic_id}', 1, 0"
    )
    own.ask(  # and has closed the chunk: what is in one that is open is read again, and accepted again
        "INSERT INTO progress (topic_id, partition, chunk, covered, reached_offset, turned_offset,"
        " reached_counts, turned_counts)"
        f" SELECT '{config.topic_id}', 1, 0, {CHUNK}, {CHUNK}, {CHUNK}, c, c"
        " FROM (SELECT [1, 1, 0, 0, 0, 0, 0]::Array(UInt64) AS c)"
    )
    runtime(config).open_chunk(1)
    assert known.perhaps(*key, high, low).all()
    wait_for(lambda: not known.perhaps(*key, high + np.uint64(1), low).any(), "the filter is loaded again")
    assert known.perhaps(*key, high, low).all()
