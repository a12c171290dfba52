"""A topic that cannot be read any more, and one that was begun under a new name instead: how complete usage is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from clickhouse_driver import Client

from tallyman.aggregates import read_completeness, read_usage
from tallyman.books import Topic
from tallyman.completeness import tell_delay
from tallyman.repairs import note_quarantine
from tallyman.topics import ENDED, note_line
from tallyman.usage import UsageQuery
from tests.usage_rows import DAY, TOPIC, Booked, book, progress

pytestmark = pytest.mark.integration
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_topic_that_was_replaced_under_a_new_name_holds_nothing_back_and_what_it_holds_counts(
    client: Client, *, sealed: bool
) -> None:
    """Its log is gone: it never ends. One that is gone back to is waited for again."""
    fresh = "PqL1mTn0Rk6wYx8cVb2aZg"
    old, new = Topic(TOPIC, "usage", 2, 16, founded=True), Topic(fresh, "usage.again", 2, 16, founded=True)
    note_line(client, [old])
    book(client, Booked(minute=NOON, scale=0, booking=DAY + 1))
    for partition in (0, 1):
        progress(client, partition, 0, 5, NOON)
    note_quarantine(client, TOPIC, 1, 5, "retention", "retention removed 40 offsets")
    place = {"topic_id": TOPIC, "partition": 0, "chunk": 0, "offset": 5, "booking": DAY, "clock_ms": 1}
    if sealed:
        client.execute(
            "INSERT INTO seals (booking, generation, rows, events, first_minute, last_minute, places) VALUES",
            [(DAY, 0, 0, 0, NOON, NOON, json.dumps([place]))],
        )
    note_line(client, [new])
    progress(client, 0, 0, 9, NOON + HOUR, topic=fresh, booking=DAY + 1)
    assert read_completeness(client).complete_to is None, "a partition of the new one was not booked yet"
    progress(client, 1, 0, 9, NOON + HOUR, topic=fresh, booking=DAY + 1)
    found = read_completeness(client, expected_delay=timedelta(0))
    assert (found.complete_to, {part.topic_id for part in found.partitions}) == (NOON + HOUR, {fresh})
    assert found.quarantines == ()
    query = UsageQuery(meter="compute.vcpu_seconds", start=NOON, end=NOON + HOUR, group_by=())
    assert [row.value for row in read_usage(client, query).rows] == [1]
    tell_delay(client, timedelta(0))
    newest_minute = "SELECT max(minute) FROM completeness_minute WHERE complete"
    assert client.execute(newest_minute) == [(NOON + HOUR - MINUTE,)]
    note_line(client, [new])
    note_line(client, [old])
    assert read_completeness(client, expected_delay=timedelta(0)).complete_to == NOON
    assert client.execute(newest_minute) == [(NOON - MINUTE,)]


def test_lines_that_an_older_version_noted_are_told_apart_from_the_next_start_on(client: Client) -> None:
    """It knew which topic follows which, and not which line is booked."""
    ids = [f"{name}{TOPIC[1:]}" for name in "abc"]
    rows = [(ids[0], "usage", 1, 16, ""), (ids[1], "usage.again", 1, 16, ""), (ids[2], "usage.again.v2", 2, 16, ids[1])]
    client.execute("INSERT INTO topics (topic_id, name, partitions, chunk_size, follows) VALUES", rows)
    progress(client, 0, 0, 5, NOON - HOUR, topic=ids[0])
    progress(client, 0, 0, 5, NOON - HOUR, topic=ids[1], booking=ENDED)
    for partition in (0, 1):
        progress(client, partition, 0, 9, NOON, topic=ids[2])
    note_line(client, [Topic(*row[:4], founded=True) for row in rows[1:]])
    found = read_completeness(client, expected_delay=timedelta(0))
    assert (found.complete_to, len(found.partitions)) == (NOON, 2)


def test_a_partition_that_has_ended_is_not_set_aside_though_another_one_goes_on(client: Client) -> None:
    """What retention takes behind its end is nobody's: nothing of it can be repaired."""
    note_line(client, [Topic(TOPIC, "usage", 2, 16, founded=True)])
    progress(client, 0, 0, 5, NOON, booking=ENDED)
    progress(client, 1, 0, 5, NOON + HOUR)
    for partition in (0, 1):
        note_quarantine(client, TOPIC, partition, 5, "retention", "retention removed 40 offsets")
    assert [each.partition for each in read_completeness(client).quarantines] == [1]
