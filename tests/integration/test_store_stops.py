"""The pipeline as a service: a refusal ends it with exit code 1 and its sentence, and no total is wrong afterwards."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline import worker
from tallyman.clickhouse import connect
from tallyman.errors import StoreRefusedError
from tallyman.local.folder import ClickHouseEndpoint
from tests.flink.usage import METERS, Usage, differences, ends_of, send
from tests.integration.booking import OwnProject, wait_for

pytestmark = pytest.mark.integration
CHUNK = 16


@pytest.mark.parametrize("table", ["ids", "usage_hot", "progress"])
def test_a_table_that_is_away_ends_the_service_and_all_is_exact_when_it_is_back(
    tmp_path: Path, kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, table: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    own = OwnProject(tmp_path / "project", kafka_broker, clickhouse_endpoint, METERS, partitions=2, chunk_size=CHUNK)
    usage, topic, brokers = Usage(2, seed=5), str(own.settings["topic"]), (kafka_broker,)
    codes = list[int]()
    project, stop = own.project, threading.Event()
    thread = threading.Thread(target=lambda: codes.append(worker.main(project, stop, None)), daemon=True)
    thread.start()
    try:
        wait_for(lambda: own.reached() is not None and ends_of(brokers, topic, 2), "schema and topic")
        send(brokers, topic, usage.records(30))
        own.wait_until_booked()
        own.ask(f"DETACH TABLE {table}")
        send(brokers, topic, usage.records(30))
        thread.join(120)
    finally:
        stop.set()
        thread.join(120)
    assert codes == [1]
    told = [record.__dict__["error"] for record in caplog.records if record.message == "store_refused"]
    assert told and all("(code 60, UNKNOWN_TABLE); the table is not there" in each for each in told)
    own.ask(f"ATTACH TABLE {table}")
    with own.running():
        own.wait_until_booked()
    ends, reached = ends_of(brokers, topic, 2), own.reached()
    client = connect(own.endpoint)
    assert differences(client, usage, {n: min(end, reached[n]) for n, end in ends.items()}, CHUNK) == []
    client.disconnect()


def test_a_start_with_a_wrong_database_schema_is_refused(
    tmp_path: Path, kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint
) -> None:
    own = OwnProject(tmp_path / "project", kafka_broker, clickhouse_endpoint, METERS, chunk_size=CHUNK)
    with own.running():
        wait_for(lambda: own.ask("SELECT count() FROM events") is not None, "the schema")
    own.ask("DROP TABLE events")
    with pytest.raises(StoreRefusedError, match=r"^events: .*\(code 60, UNKNOWN_TABLE\); the table is not there"):
        worker.main(own.project, threading.Event(), None)
