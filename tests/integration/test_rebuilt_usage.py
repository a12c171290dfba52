"""What readers make of the list of rebuilds: sealed rows, rebuilt ones instead of them, and never a mix."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import resources
from typing import Any

import pytest
from clickhouse_driver import Client

from pipeline.rollup import roll_up
from tallyman.aggregates import read_usage
from tallyman.clickhouse import keep_views, migrate, split_statements
from tallyman.errors import StoreError, UsageQueryError
from tallyman.rebuilds import Switch, read_switches, read_switches_with
from tallyman.usage import UsageQuery, Window
from tests.usage_rows import DAY, Booked, book, list_rebuilds, note_rebuild, seal

pytestmark = pytest.mark.integration
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
METER = "compute.vcpu_seconds"


def rebuild(client: Client, generation: int, *rows: Booked, start: datetime = NOON, end: datetime = NOON + HOUR,
            last: int = DAY, meters: tuple[str, ...] = (METER,)) -> Switch:  # fmt: skip
    span = int(start.timestamp()), int(end.timestamp())
    switch = Switch(generation=generation, definitions=generation + 1, meters=meters, span=span, last=last)
    note_rebuild(client, switch, *rows)
    return switch


def total(client: Client, **asked: Any) -> Decimal | None:
    """Return the sum of an hour and a half as `read_usage` and the view tell it; they agree."""
    end = NOON + HOUR + HOUR / 2
    switches = asked.pop("switches", None)
    query = UsageQuery(meter=METER, start=NOON, end=end, group_by=(), **asked)
    rows = read_usage(client, query, switches=switches).rows
    value = rows[0].value if rows else None
    if not asked and switches is None:
        seen = client.execute("SELECT count(), sum(value) FROM usage_minute WHERE meter = %(m)s AND minute >= %(f)s"
                              " AND minute < %(t)s", {"m": METER, "f": NOON, "t": end})[0]  # fmt: skip
        assert (seen[1] if seen[0] else None) == value
    return value


def test_a_rebuild_counts_from_when_the_list_names_it_until_it_does_not(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=1), Booked(minute=NOON + MINUTE, value=2))
    rebuild(client, 1, Booked(minute=NOON, value=10))
    assert total(client) == 3
    list_rebuilds(client, 1, 1)
    assert total(client) == 10  # the second minute has no row in its place, and goes all the same
    list_rebuilds(client, 2)
    assert total(client) == 3


def test_other_meters_minutes_and_later_bookings_count_as_they_were_booked(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=1), Booked(minute=NOON + HOUR, value=20),
         Booked(minute=NOON, meter="other", value=5))  # fmt: skip
    seal(client, DAY + 1, Booked(minute=NOON, value=300))
    book(client, Booked(minute=NOON, value=4000, booking=DAY + 2))
    rebuild(client, 1, Booked(minute=NOON, value=7))
    list_rebuilds(client, 1, 1)
    assert total(client) == 4327
    assert client.execute("SELECT sum(value) FROM usage_minute WHERE meter = 'other'") == [(5,)]


def test_of_several_rebuilds_the_last_in_the_list_counts_whatever_its_number(client: Client) -> None:
    seal(client, DAY, *(Booked(minute=NOON + n * 15 * MINUTE, value=1) for n in range(4)))
    rebuild(client, 1, *(Booked(minute=NOON + n * 15 * MINUTE, value=10) for n in range(4)))
    rebuild(client, 2, *(Booked(minute=NOON + n * 15 * MINUTE, value=200) for n in range(2)), end=NOON + HOUR / 2)
    for number, (listed, expected) in enumerate((((1, 2), 420), ((2, 1), 40), ((2,), 402), ((1,), 40)), start=1):
        list_rebuilds(client, number, *listed)
        assert (listed, total(client)) == (listed, expected)


def test_blocks_and_minutes_agree_about_what_is_covered(client: Client) -> None:
    seal(client, DAY, *(Booked(minute=NOON + n * MINUTE, value=1) for n in range(80)))
    roll_up(client, DAY)
    rebuild(client, 1, *(Booked(minute=NOON + n * MINUTE, value=2) for n in range(15, 30)), start=NOON + 15 * MINUTE,
            end=NOON + 30 * MINUTE)  # fmt: skip
    list_rebuilds(client, 1, 1)
    assert total(client) == 95
    windows: dict[Window, list[Decimal]] = {}
    for window in ("minute", "hour"):
        query = UsageQuery(meter=METER, start=NOON, end=NOON + 2 * HOUR, group_by=(), window=window)
        windows[window] = [row.value for row in read_usage(client, query).rows]
    assert windows["hour"] == [75, 20]
    assert sum(windows["minute"][:60]) == 75 and windows["minute"][14:31] == [1, *[2] * 15, 1]


def test_sealed_answers_and_those_as_of_a_booking_hold_rebuilt_rows_of_their_bookings(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=1))
    seal(client, DAY + 1, Booked(minute=NOON, value=20))
    book(client, Booked(minute=NOON, value=300, booking=DAY + 2))
    rebuild(client, 1, Booked(minute=NOON, value=5), Booked(minute=NOON, value=60, booking=DAY + 1), last=DAY + 1)
    list_rebuilds(client, 1, 1)
    assert total(client) == 365
    assert total(client, sealed_only=True) == 65
    assert total(client, sealed_only=True, up_to_booking=DAY) == 5
    assert total(client, up_to_booking=DAY) == 5


def test_a_generation_can_be_looked_at_before_and_after_it_is_in_force(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=1))
    rebuild(client, 1, Booked(minute=NOON, value=5))
    assert total(client, switches=read_switches_with(client, 1)) == 5
    rebuild(client, 2, Booked(minute=NOON, value=7))
    list_rebuilds(client, 1, 1, 2)
    assert total(client) == 7
    assert total(client, switches=read_switches_with(client, 1)) == 5
    assert total(client, switches=read_switches_with(client, 0)) == 1
    with pytest.raises(UsageQueryError, match=r"expected one that is complete, got 9; there are: 0, 1, 2$"):
        read_switches_with(client, 9)


def test_an_answer_names_the_generations_that_count_in_it(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=1), Booked(minute=NOON + HOUR, value=1))
    rebuild(client, 1, start=NOON - HOUR, end=NOON)
    rebuild(client, 2)
    rebuild(client, 3, meters=("other",))
    list_rebuilds(client, 1, 1, 2, 3)
    query = UsageQuery(meter=METER, start=NOON, end=NOON + HOUR)
    assert read_usage(client, query).rebuilt == (2,)
    assert read_usage(client, query).rows == ()


def test_a_list_that_is_written_again_or_late_changes_nothing(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=1))
    rebuild(client, 1, Booked(minute=NOON, value=5))
    list_rebuilds(client, 2, 1)
    list_rebuilds(client, 1)
    list_rebuilds(client, 2, 1)
    assert [each.generation for each in read_switches(client)] == [1]
    assert total(client) == 5


def test_a_generation_in_force_of_which_nothing_is_known_is_said_and_not_read_around(client: Client) -> None:
    client.execute("INSERT INTO switches (switched, generations) VALUES", [(1, [4])])
    with pytest.raises(StoreError, match="generation 4 is in force, but the list does not say what it covers"):
        read_switches(client)


def test_a_list_from_before_lists_said_what_they_cover_is_written_again_with_it(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=1))
    first, second = rebuild(client, 1, Booked(minute=NOON, value=5)), rebuild(client, 2, Booked(minute=NOON, value=7))
    rebuild(client, 3, Booked(minute=NOON, value=9))
    client.execute("INSERT INTO switches (switched, generations) VALUES", [(4, [3]), (5, [2, 1])])
    text = (resources.files("tallyman.schema") / "0015_one_list.sql").read_text("utf-8")
    for _ in range(2):
        for statement in split_statements(text):
            client.execute(statement)
        assert read_switches(client) == (second, first)
        assert total(client) == 5


def test_a_view_that_is_gone_or_of_an_older_version_is_made_anew_by_who_starts_next(client: Client) -> None:
    """By a comment at the view: the server keeps its text, but not as it was written."""
    seal(client, DAY, Booked(minute=NOON, value=1))
    rebuild(client, 1, Booked(minute=NOON, value=5))
    list_rebuilds(client, 1, 1)
    shown = "SELECT sum(sum) FROM usage_booked"
    rebuilt = client.execute(shown)
    assert keep_views(client) == []
    client.execute("CREATE OR REPLACE VIEW usage_booked AS SELECT * FROM usage")
    client.execute("DROP VIEW collectors")
    assert client.execute(shown) != rebuilt
    assert migrate(client) == []
    assert client.execute(shown) == rebuilt
    assert client.execute("SELECT count() FROM collectors") == [(0,)]
    assert keep_views(client) == []
