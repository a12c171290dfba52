"""The real agent before the real pipeline: what happens to a host is seen, and what did not happen is not claimed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tallyman.clickhouse import connect
from tallyman.completeness import Completeness, clocks_of, read_completeness
from tallyman.event import ARROW, COLLECTOR, CONTENT_TYPE, EPOCH, SEQUENCE, WATERMARK
from tallyman.heard import read_collectors, read_gaps
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.usage import CollectorSeen, Gap
from tests.integration.booking import OwnProject, wait_for

pytestmark = pytest.mark.integration
METERS = (
    "meters:\n  - {meter: cpu, event_type: tallyman.host.cpu, aggregation: sum, unit: s, dimensions: {mode: mode}}\n"
)
NAME = "värd-1"


@pytest.fixture
def own(tmp_path: Path, kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint) -> OwnProject:
    own = OwnProject(tmp_path / "project", kafka_broker, clickhouse_endpoint, METERS, chunk_size=16)
    own.pipeline["tick"] = "500ms"
    own.sections["agent"] = {"collector": NAME, "subject": "tenant-zoë", "interval": "1s"}
    return own


@contextmanager
def agent(own: OwnProject) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent as its service does; whoever leaves kills it with -9."""
    folder = own.project.folder
    command = [sys.executable, "-m", "tallyman", "agent", "--project", str(folder), "--data", str(folder / "data")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def look(own: OwnProject) -> tuple[Completeness, tuple[Gap, ...], tuple[CollectorSeen, ...]]:
    client = connect(own.endpoint)
    try:
        found = read_completeness(client, expected_delay=timedelta(0))
        return found, read_gaps(client), read_collectors(client, clocks_of(found))
    finally:
        client.disconnect()


def heard(own: OwnProject, name: str = NAME) -> CollectorSeen | None:
    return next((each for each in look(own)[2] if each.name == name), None)


def wait_beyond(own: OwnProject, sequence: int, epochs: int = 1) -> CollectorSeen:
    def is_there() -> CollectorSeen | None:
        found = heard(own)
        return found if found and found.epochs == epochs and found.sequence > sequence else None

    found: CollectorSeen = wait_for(is_there, f"batch {sequence + 1} of epoch {epochs}")
    return found


def test_a_killed_agent_leaves_no_gap_and_a_spool_that_was_thrown_away_a_possible_one(own: OwnProject) -> None:
    with own.running():
        with agent(own):
            first = wait_beyond(own, 3)
        assert (first.state, first.subjects) == ("live", {"tenant-zoë"})
        assert "tallyman.host.cpu" in first.types
        with agent(own):
            again = wait_beyond(own, first.sequence + 20)  # more than a chunk
        assert (again.epoch, look(own)[1]) == (first.epoch, ())
        shutil.rmtree(own.project.spool_folder)
        with agent(own):
            anew = wait_beyond(own, 2, epochs=2)
        own.wait_until_booked()
        [gap] = look(own)[1]
    assert anew.epoch != first.epoch
    assert (gap.epoch, gap.last) == (first.epoch, None)
    assert gap.start is not None and gap.end is not None and gap.start <= gap.end


def test_a_host_that_goes_silent_holds_usage_back_where_it_stopped(
    own: OwnProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallyman.heard.SILENT_AFTER", timedelta(seconds=3))
    with own.running():
        with agent(own):
            wait_beyond(own, 3)
        own.wait_until_booked()
        held = wait_for(lambda: look(own)[0].held_by, "silence")
        found = look(own)[0]
        with agent(own):
            wait_for(lambda: not look(own)[0].held_by, "its voice again")
            later = wait_for(lambda: (now := look(own)[0].complete_to) and now > held[0].watermark and now, "more")
    assert [each.name for each in held] == [NAME]
    assert found.complete_to == held[0].watermark
    assert later > held[0].watermark
    assert look(own)[1] == ()


def send_by_hand(own: OwnProject, *numbers: int) -> None:
    from collectors.arrow import encode_readings

    own.send(
        *(
            (
                encode_readings([]),
                (
                    (COLLECTOR, b"by-hand"),
                    (EPOCH, b"e1"),
                    (SEQUENCE, str(number).encode()),
                    (CONTENT_TYPE, ARROW.encode()),
                    (WATERMARK, str(1_790_000_000_000_000 + number).encode()),
                ),
            )
            for number in numbers
        )
    )


def test_a_lost_batch_is_missing_until_it_comes_also_over_a_restart_of_the_pipeline(own: OwnProject) -> None:
    with own.running():
        send_by_hand(own, *range(1, 20), *range(23, 40))
        own.wait_until_booked()
        assert [(gap.first, gap.last) for gap in look(own)[1]] == [(20, 22)]
    with own.running():
        send_by_hand(own, 21)
        own.wait_until_booked()
        assert [(gap.first, gap.last) for gap in look(own)[1]] == [(20, 20), (22, 22)]
        send_by_hand(own, 22, 20, 21)
        own.wait_until_booked()
        assert look(own)[1] == ()
