"""A TTL on `ids` under which copies would count again: refused before anything is booked or put in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import worker
from pipeline.close import found_books
from tallyman.cli import run
from tallyman.errors import ConfigError
from tallyman.in_force import definitions_in_force
from tallyman.local.folder import ClickHouseEndpoint
from tests.integration.booking import OwnProject, wait_for
from tests.integration.test_books import HOURS, body

pytestmark = pytest.mark.integration
PATIENT = HOURS.replace("aggregation: sum", "aggregation: sum, oldest_accepted: 60d")


@pytest.fixture
def books(
    kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> OwnProject:
    """A topic with an event, booked, in which ids are kept for fifty days."""
    own = OwnProject(tmp_path / "b", kafka_broker, clickhouse_endpoint, HOURS)
    monkeypatch.setenv("TALLYMAN_DATA", str(own.folder / "data"))
    monkeypatch.chdir(own.folder)
    with own.running():
        wait_for(lambda: found_books(own.project).founded, "the topic")
        own.send(body(0))
        own.wait_until_booked()
    keep(own, 50)
    return own


def keep(own: OwnProject, days: int) -> None:
    own.ask(f"ALTER TABLE ids MODIFY TTL toDateTime(intDiv(remembered_us, 1000000)) + INTERVAL {days} DAY")


def test_definitions_that_accept_copies_for_longer_are_not_put_in_force(
    books: OwnProject, capsys: pytest.CaptureFixture[str]
) -> None:
    books.define(PATIENT)
    assert run(["apply", "--yes"]) == 2
    assert "takes identities before their copies are too old to count" in capsys.readouterr().err
    books.define(HOURS.replace("scale: 3", "scale: 4"))
    assert run(["apply", "--yes"]) == 0
    assert definitions_in_force(books.project).number == 2, "a number was given to those that were refused"


def test_a_worker_does_not_begin_where_ids_are_gone_too_early(books: OwnProject) -> None:
    worker.prepare(books.project)
    keep(books, 20)
    with pytest.raises(ConfigError, match="takes identities before their copies are too old to count"):
        worker.prepare(books.project)
    keep(books, 50)
    books.define(PATIENT)  # what a close may put in force while it runs
    with pytest.raises(ConfigError, match="takes identities before their copies are too old to count"):
        worker.prepare(books.project)
