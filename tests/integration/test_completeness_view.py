"""Which minutes the view `completeness_minute` calls complete: those of which `read_completeness` says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_driver import Client

from tallyman.aggregates import read_completeness
from tallyman.books import Topic
from tallyman.completeness import tell_delay
from tallyman.repairs import read_repairs
from tallyman.topics import note_line
from tests.usage_rows import TOPIC, progress

pytestmark = pytest.mark.integration
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)


def complete_to(client: Client) -> datetime | None:
    """Return the end of the newest complete minute, None if there is none."""
    ((minute, count),) = client.execute("SELECT max(minute), count() FROM completeness_minute WHERE complete")
    return minute + MINUTE if count else None


@pytest.mark.parametrize("delay", [0 * SECOND, 10 * SECOND, 30 * SECOND, 10 * MINUTE], ids=str)
@pytest.mark.parametrize("past", [0 * SECOND, 10 * SECOND, 59 * SECOND], ids=str)
def test_a_minute_is_complete_when_events_had_as_long_to_arrive_as_they_take(
    client: Client, delay: timedelta, past: timedelta
) -> None:
    progress(client, 0, 0, 5, NOON + past)
    assert tell_delay(client, delay)
    assert not tell_delay(client, delay)
    found = read_completeness(client, expected_delay=delay).complete_to
    assert found is not None
    assert complete_to(client) == found.replace(second=0)


def test_a_delay_that_was_changed_counts_from_the_next_start_on(client: Client) -> None:
    progress(client, 0, 0, 5, NOON)
    assert complete_to(client) == NOON - MINUTE  # nobody has told: ten seconds
    for delay, minute in ((5 * MINUTE, NOON - 5 * MINUTE), (0 * SECOND, NOON)):
        tell_delay(client, delay)
        assert complete_to(client) == minute


def test_nothing_is_complete_while_a_partition_has_booked_nothing(client: Client) -> None:
    note_line(client, [Topic(TOPIC, "usage.events.v1", 2, 16, founded=True)])
    progress(client, 0, 0, 5, NOON)
    assert complete_to(client) is None is read_completeness(client).complete_to
    progress(client, 1, 0, 5, NOON)
    assert complete_to(client) == NOON - MINUTE


def test_minutes_of_which_a_repair_skipped_records_are_never_complete(client: Client) -> None:
    tell_delay(client, 0 * SECOND)
    progress(client, 0, 0, 5, NOON)
    edges = [round((NOON + each).timestamp() * 1000) for each in (-30 * MINUTE - SECOND, -28 * MINUTE)]
    client.execute(
        "INSERT INTO repairs (topic_id, partition, number, chunk_size, from_offset, to_offset, from_clock_ms,"
        " to_clock_ms) VALUES",
        [("another", 3, 1, 16, 100, 140, *edges), ("another", 4, 1, 16, 100, 100, 0, edges[1])],
    )
    rows = client.execute("SELECT minute FROM completeness_minute WHERE repaired ORDER BY minute")
    by_python = [
        NOON - n * MINUTE
        for n in range(40, 0, -1)
        if any(each.touches(NOON - n * MINUTE, NOON - (n - 1) * MINUTE) for each in read_repairs(client))
    ]
    assert [minute for (minute,) in rows] == by_python == [NOON - n * MINUTE for n in (31, 30, 29, 28)]
    incomplete: Any = client.execute("SELECT count() FROM completeness_minute WHERE NOT complete AND minute < now()")
    assert incomplete == [(1 + 4,)]  # the one that noon is in, too


def test_it_reaches_back_as_far_as_late_usage_is_accepted(client: Client) -> None:
    tell_delay(client, 0 * SECOND)
    progress(client, 0, 0, 5, NOON)
    ((first, count),) = client.execute("SELECT min(minute), count() FROM completeness_minute WHERE complete")
    assert NOON - first == 35 * DAY - MINUTE and count == 35 * 1440 - 1
