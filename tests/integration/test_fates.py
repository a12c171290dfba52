"""What became of a cluster's events is told from the books: once each, whatever was killed and read again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from clickhouse_driver import Client

from pipeline.fates import Fates
from pipeline.metrics import OUTCOMES
from tallyman.metrics import REGISTRY
from tests.usage_rows import DAY, TOPIC, progress

pytestmark = pytest.mark.integration

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIZE = 16


def letters(client: Client, *places: tuple[int, int, str], booking: int = DAY) -> None:
    client.execute(
        "INSERT INTO dead_letters (topic_id, partition, offset, event_index, generation, appended_at, booking, reason)"
        " VALUES",
        [(TOPIC, partition, offset, 0, 0, NOON, booking, reason) for partition, offset, reason in places],
    )


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"tallyman_pipeline_{name}_total", labels) or 0.0


class Growth:
    """By how much the metrics grew since this was made."""

    def __init__(self) -> None:
        self._outcomes = self._now("events", "outcome", *OUTCOMES)
        self._reasons = self._now("dead_letters", "reason", "not_a_number", "too_old", "unknown_type")

    def _now(self, name: str, label: str, *values: str) -> dict[str, float]:
        return {value: counted(name, **{label: value}) for value in values}

    def outcomes(self) -> dict[str, float]:
        return _grown(self._outcomes, self._now("events", "outcome", *self._outcomes))

    def reasons(self) -> dict[str, float]:
        return _grown(self._reasons, self._now("dead_letters", "reason", *self._reasons))


def _grown(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    return {name: now[name] - before[name] for name in now if now[name] != before[name]}


@pytest.fixture
def fates(client: Client) -> Fates:
    """A service that is started on books which stand in chunk 3 of one partition and hold nothing of the other."""
    for chunk, covered in ((2, SIZE), (3, 4)):
        progress(client, 0, chunk, covered, NOON, size=SIZE, counts=(covered, covered - 1, 0, 1, 0, 0, 0))
    letters(client, (0, 47, "too_old"), (0, 51, "too_old"))
    fates = Fates(client, TOPIC, partitions=2)
    fates.look()
    return fates


def test_what_a_service_finds_at_its_start_was_told_by_another(fates: Fates) -> None:
    growth = Growth()
    fates.look()
    assert (growth.outcomes(), growth.reasons()) == ({}, {})


def test_a_chunk_that_grows_and_those_behind_it_are_told_once(client: Client, fates: Fates) -> None:
    growth = Growth()
    progress(client, 0, 3, SIZE, NOON, size=SIZE, counts=(16, 10, 2, 3, 1, 0, 1))
    progress(client, 0, 4, SIZE, NOON, size=SIZE, counts=(16, 15, 0, 1, 0, 0, 0))
    progress(client, 0, 5, 2, NOON, size=SIZE, counts=(2, 2, 0, 0, 0, 0, 0))
    progress(client, 1, 0, 3, NOON, size=SIZE, counts=(3, 1, 0, 1, 0, 1, 0))
    letters(client, (0, 52, "not_a_number"), (0, 55, "too_old"), (0, 70, "not_a_number"), (1, 2, "unknown_type"))
    letters(client, (0, 90, "too_old"))  # ahead of progress: its flush goes on
    for _ in range(2):
        fates.look()
        assert growth.outcomes() == {
            "aggregated": 10 - 3 + 15 + 2 + 1, "duplicate": 2, "dead": 3 - 1 + 1 + 1, "ignored": 1, "forwarded": 1,
            "conflict": 1,
        }  # fmt: skip
        assert growth.reasons() == {"not_a_number": 2, "too_old": 1, "unknown_type": 1}
    progress(client, 0, 5, 11, NOON, size=SIZE, counts=(11, 10, 0, 1, 0, 0, 0))
    fates.look()
    assert growth.reasons()["too_old"] == 2


def test_a_killed_worker_that_reads_again_is_told_nothing_twice(client: Client, fates: Fates) -> None:
    growth = Growth()
    for covered, counts in ((9, (9, 6, 0, 3, 0, 0, 0)), (6, (6, 4, 0, 2, 0, 0, 0)), (9, (9, 6, 0, 3, 0, 0, 0))):
        progress(client, 0, 3, covered, NOON, size=SIZE, counts=counts)
        letters(client, (0, 52, "too_old"), (0, 53, "not_a_number"))
        fates.look()
        assert growth.outcomes() == {"aggregated": 3, "dead": 2}
        assert growth.reasons() == {"too_old": 1, "not_a_number": 1}


def test_a_repair_that_goes_on_with_less_takes_nothing_back(client: Client, fates: Fates) -> None:
    """A counter only grows: what lies behind the repair is told as it grows from there on."""
    progress(client, 0, 3, 9, NOON, size=SIZE, counts=(9, 8, 0, 1, 0, 0, 0))
    fates.look()
    growth = Growth()
    for covered, counts in ((12, (5, 4, 0, 1, 0, 0, 0)), (14, (7, 5, 0, 2, 0, 0, 0))):
        progress(client, 0, 3, covered, NOON, size=SIZE, counts=counts)
        fates.look()
    assert growth.outcomes() == {"aggregated": 1, "dead": 1}


def test_what_a_rebuild_counts_again_is_not_told(client: Client, fates: Fates) -> None:
    growth = Growth()
    client.execute(
        "INSERT INTO progress (topic_id, partition, chunk, generation, covered, reached_offset, reached_counts) VALUES",
        [(TOPIC, 0, 3, 7, 16, 64, [16, 12, 0, 4, 0, 0, 0])],
    )
    fates.look()
    assert growth.outcomes() == {}


def test_a_clickhouse_that_goes_away_in_the_middle_has_it_told_later(
    client: Client, fates: Fates, monkeypatch: pytest.MonkeyPatch
) -> None:
    growth, execute = Growth(), client.execute

    def refuse(sql: str, *values: Any) -> Any:
        if "dead_letters" in sql:
            raise OSError("gone")
        return execute(sql, *values)

    progress(client, 0, 3, 9, NOON, size=SIZE, counts=(9, 7, 0, 2, 0, 0, 0))
    letters(client, (0, 52, "too_old"))
    monkeypatch.setattr(client, "execute", refuse)
    with pytest.raises(OSError, match="gone"):
        fates.look()
    assert (growth.outcomes(), growth.reasons()) == ({}, {})
    monkeypatch.undo()
    fates.look()
    assert growth.outcomes() == {"aggregated": 4, "dead": 1}
    assert growth.reasons() == {"too_old": 1}
