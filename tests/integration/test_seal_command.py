"""`tallyman seal` on the real stack: it seals what every partition has left, and says what the rest waits for."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.close import found_books
from pipeline.outlet import write_close
from pipeline.runtime import forget
from pipeline.worker import prepare, run_once
from tallyman.cli import run
from tallyman.event import home_key
from tallyman.kafka import end_offsets, make_consumer, partition_of
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject, wait_for

pytestmark = pytest.mark.integration
HOURS = "meters:\n- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 3}\n"
NOW = datetime.now(UTC).isoformat()


def body(number: int) -> tuple[bytes, tuple[()]]:
    wire = {"id": f"e-{number}", "source": "nova/berlin-1", "type": "server", "subject": "Zoë Åström", "time": NOW,
            "data": {"hours": "1.5"}}  # fmt: skip
    return msgspec.json.encode(wire), ()


def book(own: OwnProject, partitions: tuple[int, ...]) -> None:
    """Book some partitions to their ends, with nothing beside that would seal."""
    config, stop = replace(prepare(own.project), assigned=partitions), threading.Event()
    thread = threading.Thread(target=run_once, args=(config, stop, 3600, 1 << 30), daemon=True)
    thread.start()
    consumer = make_consumer((own.kafka,))
    ends = end_offsets(consumer, str(own.settings["topic"]), partitions)
    consumer.close()
    wait_for(lambda: all(own.reached().get(number, 0) >= end for number, end in ends.items()), f"progress to {ends}")
    stop.set()
    thread.join(timeout=120)
    forget()


def test_a_booking_is_sealed_when_the_last_partition_has_left_it(
    kafka_broker: str,
    clickhouse_endpoint: ClickHouseEndpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """First it is the open one, then one partition is behind, then it is sealed; twice is as good as once."""
    own = OwnProject(tmp_path / "own", kafka_broker, clickhouse_endpoint, HOURS, partitions=2)
    monkeypatch.chdir(own.folder)
    monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))

    def seal(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert run(["seal", *words, "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    found_books(own.project)
    own.send(*map(body, range(5)), partition=partition_of(home_key("Zoë Åström", "nova/berlin-1"), 2))
    book(own, (0, 1))
    (waiting,) = seal()["unsealed"]
    assert (waiting["rows"], waiting["events"]) == (1, 5)
    assert [(each["partition"], each["behind"]) for each in waiting["waits_for"]] == [(0, 0), (1, 0)]
    assert run(["seal", "--preview"]) == 0
    assert "or now: tallyman close" in capsys.readouterr().out

    write_close((kafka_broker,), str(own.settings["topic"]), 2, waiting["booking"] + 1, 1)
    book(own, (1,))
    (still,) = seal()["unsealed"]
    assert [(each["partition"], each["offset"], each["behind"]) for each in still["waits_for"]] == [(0, 6, 1)]
    assert run(["seal"]) == 0
    assert "partition 0 is booked up to offset 6, 1 record behind; does the pipeline run?" in capsys.readouterr().out

    book(own, (0,))
    (ready,) = seal("--preview")["unsealed"]
    assert ready["waits_for"] == [] and own.ask("SELECT count() FROM seals WHERE rows > 0") == [(0,)]
    assert seal() == {"sealed": [{"booking": waiting["booking"], "rows": 1, "events": 5}],
                      "sealed_to": waiting["booking"], "unsealed": []}  # fmt: skip
    assert seal()["sealed"] == []
