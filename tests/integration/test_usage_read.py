"""Reading usage from the real engine: exact figures, half-open windows in any zone, one row never counted twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from clickhouse_driver import Client

from pipeline.rollup import roll_up
from rules.engine import ClickHouseUsage
from tallyman.aggregates import read_completeness, read_meters, read_usage
from tallyman.books import Topic
from tallyman.dead_letters import LetterChoice, count_dead_letters, read_dead_letter, read_dead_letters
from tallyman.errors import UsageQueryError
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import Meter
from tallyman.topics import ENDED, note_line
from tallyman.usage import UsageAnswer, UsageQuery
from tests.usage_rows import DAY, TOPIC, Booked, book, progress, seal

pytestmark = pytest.mark.integration
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def ask(client: Client, start: datetime = NOON, end: datetime = NOON + HOUR, **options: Any) -> UsageAnswer:
    query = UsageQuery(**{"meter": "compute.vcpu_seconds", "start": start, "end": end, "group_by": (), **options})
    return read_usage(client, query)


def values(answer: UsageAnswer) -> list[Decimal]:
    return [row.value for row in answer.rows]


def test_a_sum_keeps_every_digit(client: Client) -> None:
    large, small = Decimal("999999999999999999999.999999999"), Decimal("0.000000001")
    book(client, Booked(minute=NOON, value=large), Booked(minute=NOON + MINUTE, value=small))
    assert values(ask(client)) == [Decimal(10) ** 21]


def test_a_sum_over_more_than_128_bits_does_not_wrap(client: Client) -> None:
    huge = Decimal("9e28")  # 9e37 scaled: two of them overflow an Int128
    book(client, *(Booked(minute=NOON + n * MINUTE, value=huge) for n in range(20)))
    assert values(ask(client)) == [20 * huge]


def test_a_window_ends_before_its_end(client: Client) -> None:
    book(client, Booked(minute=NOON, value=1), Booked(minute=NOON + HOUR, value=10))
    assert values(ask(client)) == [Decimal(1)]


def test_sealed_and_hot_rows_add_up_and_none_counts_twice(client: Client) -> None:
    sealed = Booked(minute=NOON, value=5)
    book(client, sealed, Booked(minute=NOON, value=7, booking=DAY + 1))
    assert values(ask(client)) == [Decimal(12)]
    seal(client, DAY, sealed)
    assert values(ask(client)) == [Decimal(12)]


def test_a_zombie_below_the_seal_stays_invisible(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=5))
    book(client, Booked(minute=NOON, value=5), Booked(minute=NOON + MINUTE, value=100, chunk=7))
    assert values(ask(client)) == [Decimal(5)]


def test_the_longest_prefix_of_a_chunk_wins(client: Client) -> None:
    book(client, Booked(minute=NOON, value=30, covered=30))
    book(client, Booked(minute=NOON, value=20, covered=20))
    assert values(ask(client)) == [Decimal(30)]


def test_sealed_only_leaves_hot_rows_out(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=5))
    seal(client, DAY + 1, Booked(minute=NOON, value=50))
    book(client, Booked(minute=NOON, value=7, booking=DAY + 2))
    assert values(ask(client, sealed_only=True)) == [Decimal(55)]
    assert values(ask(client, sealed_only=True, up_to_booking=DAY)) == [Decimal(5)]
    assert ask(client, sealed_only=True, up_to_booking=DAY).sealed_to == DAY


def test_an_invoice_over_a_booking_that_is_not_sealed_is_refused(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON))
    with pytest.raises(UsageQueryError, match=f"booking {DAY + 1}: expected a sealed one, got {DAY} as the newest"):
        ask(client, sealed_only=True, up_to_booking=DAY + 1)


def test_days_of_berlin_have_23_and_25_hours(client: Client) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    for first, hours in ((datetime(2026, 3, 28, tzinfo=berlin), 23), (datetime(2026, 10, 24, tzinfo=berlin), 25)):
        end = first + timedelta(days=3)
        start, stop = first.astimezone(UTC), end.astimezone(UTC)
        book(client, *(Booked(minute=start + n * HOUR) for n in range(int((stop - start) / HOUR))))
        answer = ask(client, first, end, window="day", zone="Europe/Berlin")
        assert values(answer) == [24, hours, 24]
        assert [(row.end - row.start) / HOUR for row in answer.rows] == [24, hours, 24]


def test_hours_of_kolkata_begin_at_half_past(client: Client) -> None:
    book(client, Booked(minute=NOON + 29 * MINUTE, value=1), Booked(minute=NOON + 30 * MINUTE, value=10))
    answer = ask(client, window="hour", zone="Asia/Kolkata")
    assert [(row.start.minute, row.value) for row in answer.rows] == [(0, Decimal(1)), (30, Decimal(10))]


def test_the_repeated_hour_of_los_angeles_gives_two_windows(client: Client) -> None:
    first = datetime(2025, 11, 2, 8, 30, tzinfo=UTC)
    book(client, Booked(minute=first), Booked(minute=first + HOUR))
    start = datetime(2025, 11, 2, tzinfo=ZoneInfo("America/Los_Angeles"))
    answer = ask(client, start, start + timedelta(days=1), window="hour", zone="America/Los_Angeles")
    assert [row.start.hour for row in answer.rows] == [8, 9]


def test_weeks_begin_on_monday_and_months_on_the_first(client: Client) -> None:
    first = datetime(2026, 9, 1, tzinfo=UTC)
    book(client, *(Booked(minute=first + timedelta(days=n)) for n in range(61)))
    end = first + timedelta(days=61)
    weeks = ask(client, first, end, window="week")
    assert [row.start.weekday() for row in weeks.rows] == [1, *[0] * 8]
    assert sum(values(weeks)) == 61
    assert values(ask(client, first, end, window="month")) == [30, 31]


def test_minutes_are_as_stored(client: Client) -> None:
    book(client, Booked(minute=NOON, value=1), Booked(minute=NOON + 5 * MINUTE, value=2))
    answer = ask(client, window="minute")
    assert [(row.start, row.end, row.value) for row in answer.rows] == [
        (NOON, NOON + MINUTE, 1),
        (NOON + 5 * MINUTE, NOON + 6 * MINUTE, 2),
    ]


def test_hours_of_three_years_are_one_query(client: Client) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    book(client, *(Booked(minute=start + timedelta(days=30 * n)) for n in range(36)))
    answer = ask(client, start, start + timedelta(days=3 * 366), window="hour", zone="Australia/Lord_Howe")
    assert len(answer.rows) == 36


def test_a_missing_dimension_is_another_group_than_an_empty_one(client: Client) -> None:
    book(
        client,
        Booked(minute=NOON, value=1, dimensions={"az": None}),
        Booked(minute=NOON, value=10, dimensions={"az": ""}),
        Booked(minute=NOON, value=100, dimensions={"az": "null"}),
        Booked(minute=NOON, value=1000, dimensions={"other": "x"}),
    )
    answer = ask(client, group_by=("az",))
    assert [(row.groups["az"], row.value) for row in answer.rows] == [(None, 1001), ("", 10), ("null", 100)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"az": (None,)}, 1001),
        ({"az": ("",)}, 10),
        ({"az": ("", None)}, 1011),
        ({"az": ("Malmö \"süd\" 'x'\\/\n东京",)}, 100),
        ({"az": ("Malmö",)}, None),
        ({"az": ()}, None),
        ({"az": (None,), "other": ("x",)}, 1000),
        ({"other": ("x",), "az": ("",)}, None),
    ],
)
def test_a_filter_takes_texts_as_they_are(client: Client, where: Any, expected: int | None) -> None:
    odd = "Malmö \"süd\" 'x'\\/\n东京"
    sealed = Booked(minute=NOON, value=1, dimensions={"az": None})
    seal(client, DAY, sealed)
    book(
        client,
        Booked(minute=NOON, value=10, booking=DAY + 1, dimensions={"az": ""}),
        Booked(minute=NOON, value=100, booking=DAY + 1, dimensions={"az": odd}),
        Booked(minute=NOON, value=1000, booking=DAY + 1, dimensions={"other": "x"}),
    )
    assert values(ask(client, where=where)) == ([] if expected is None else [expected])


def test_subjects_are_asked_for_byte_for_byte(client: Client) -> None:
    names = ["tenant-zoë", "tenant-zoe", "O'Brien %(x)s; DROP TABLE usage", "Ωmega"]
    book(client, *(Booked(minute=NOON, value=n + 1, subject=name) for n, name in enumerate(names)))
    for n, name in enumerate(names):
        answer = ask(client, subjects=(name,), group_by=("subject",))
        assert [(row.groups, row.value) for row in answer.rows] == [({"subject": name}, n + 1)]


def test_rows_come_in_order_of_window_and_groups(client: Client) -> None:
    book(
        client,
        *(
            Booked(minute=NOON + n * HOUR, subject=subject, dimensions={"az": az})
            for n in (1, 0)
            for subject in ("b", "a")
            for az in ("y", None, "x")
        ),
    )
    rows = ask(client, end=NOON + 2 * HOUR, window="hour", group_by=("subject", "az")).rows
    keys = [(row.start.hour, row.groups["subject"], row.groups["az"]) for row in rows]
    assert keys[:4] == [(12, "a", None), (12, "a", "x"), (12, "a", "y"), (12, "b", None)]
    assert len(keys) == 12


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("count", 5),
        ("avg", Decimal("2.5")),
        ("min", Decimal("-3.5")),
        ("max", 9),
        ("latest", 9),
        ("sum", Decimal("12.5")),
    ],
)
def test_each_aggregation_shows_its_figure(client: Client, aggregation: str, expected: Decimal) -> None:
    book(
        client,
        Booked(minute=NOON, value=Decimal("-3.5"), sum=Decimal("3.5"), count=2, aggregation=aggregation, latest_us=1),
        Booked(minute=NOON + MINUTE, value=9, count=3, aggregation=aggregation, latest_us=2),
    )
    answer = ask(client)
    assert values(answer) == [expected]
    assert answer.rows[0].events == 5


def test_the_latest_of_two_readings_at_one_time_is_the_same_for_every_grouping(client: Client) -> None:
    same = {"minute": NOON, "aggregation": "latest", "latest_us": 7}
    book(
        client,
        Booked(**same, value=1, latest_by=b"\x00\xff", dimensions={"az": "a"}, subject="a"),
        Booked(**same, value=2, latest_by=b"\x01\x00", dimensions={"az": "b"}, subject="b"),
    )
    assert values(ask(client)) == values(ask(client, group_by=("missing",))) == [2]


def test_a_meter_that_changed_its_scale_still_adds_up(client: Client) -> None:
    book(
        client,
        Booked(minute=NOON, value=Decimal("1.5"), scale=1),
        Booked(minute=NOON, value=Decimal("0.000000001"), scale=9, definitions=2),
    )
    assert values(ask(client)) == [Decimal("1.500000001")]


def test_an_empty_range_is_one_zero_for_a_count_and_nothing_for_a_sum(client: Client) -> None:
    book(client, Booked(minute=NOON, aggregation="count"), Booked(minute=NOON, meter="storage.bytes"))
    later = NOON + timedelta(days=1)
    answer = ask(client, later, later + HOUR, window="hour", subjects=("tenant-zoë",), group_by=("subject",))
    assert [(row.start, row.value, row.events) for row in answer.rows] == [(later, Decimal(0), 0)]
    assert answer.rows[0].groups == {"subject": "tenant-zoë"}
    assert ask(client, later, later + HOUR, meter="storage.bytes").rows == ()
    assert ask(client, later, later + HOUR).rows[0].groups == {}
    for unknown in (("subject",), ("region",), ("subject", "region")):
        assert ask(client, later, later + HOUR, group_by=unknown).rows == (), "no group is there to be named"
    one = ask(client, later, later + HOUR, group_by=("region",), where={"region": ("north",)})
    assert [row.groups for row in one.rows] == [{"region": "north"}]


def test_a_meter_without_usage_is_known_from_the_project(client: Client) -> None:
    meter = Meter(meter="api.calls", event_type="api.call", aggregation="count", unit="{call}")
    query = UsageQuery(meter="api.calls", start=NOON, end=NOON + HOUR, group_by=())
    answer = read_usage(client, query, meters=[meter])
    assert (answer.unit, values(answer)) == ("{call}", [0])


def test_an_unknown_meter_is_refused_with_the_nearest_name(client: Client) -> None:
    book(client, Booked(minute=NOON))
    with pytest.raises(UsageQueryError, match=r'got "compute\.vcpu_second"; did you mean "compute\.vcpu_seconds"\?'):
        ask(client, meter="compute.vcpu_second")


def test_half_a_minute_is_refused(client: Client) -> None:
    with pytest.raises(UsageQueryError, match="to: expected a whole minute"):
        ask(client, end=NOON + timedelta(seconds=30))


def test_meters_that_have_usage_are_listed(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, count=3))
    book(client, Booked(minute=NOON, meter="api.calls", aggregation="count", booking=DAY + 1, count=4))
    seen = [(meter.meter, meter.aggregation, meter.events) for meter in read_meters(client)]
    assert seen == [("api.calls", "count", 4), ("compute.vcpu_seconds", "sum", 3)]


def test_usage_is_complete_up_to_the_least_clock_at_an_unbroken_frontier(client: Client) -> None:
    progress(client, 0, 0, 16, NOON)
    progress(client, 0, 1, 5, NOON + 3 * MINUTE)
    progress(client, 1, 0, 16, NOON + MINUTE)
    progress(client, 1, 2, 4, NOON + 9 * MINUTE)  # chunk 1 is missing: this is no frontier
    found = read_completeness(client, expected_delay=timedelta(seconds=10))
    assert found.complete_to == NOON + MINUTE - timedelta(seconds=10)
    assert [(part.partition, part.offset) for part in found.partitions] == [(0, 21), (1, 16)]


def test_nothing_is_called_complete_while_a_partition_has_no_progress(client: Client) -> None:
    progress(client, 0, 0, 16, NOON)
    assert read_completeness(client, partitions=2).complete_to is None
    assert read_completeness(client, partitions=1).complete_to == NOON - timedelta(seconds=10)


def test_a_frontier_goes_on_from_where_the_last_seal_left_it(client: Client) -> None:
    place = {"topic_id": TOPIC, "partition": 0, "chunk": 3, "offset": 48, "booking": DAY}
    places = json.dumps([{**place, "clock_ms": round(NOON.timestamp() * 1000)}])
    client.execute(
        "INSERT INTO seals (booking, generation, rows, events, first_minute, last_minute, places) VALUES",
        [(DAY, 0, 0, 0, NOON, NOON, places)],
    )
    assert read_completeness(client).partitions[0].offset == 48
    progress(client, 0, 1, 3, NOON - HOUR)  # a zombie's, far behind
    progress(client, 0, 3, 16, NOON + HOUR)
    found = read_completeness(client)
    assert (found.sealed_to, found.partitions[0].offset) == (DAY, 64)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_topic_that_ended_holds_nothing_back_though_it_was_repaired(client: Client, *, sealed: bool) -> None:
    grown = "PqL1mTn0Rk6wYx8cVb2aZg"
    note_line(client, [Topic(name, "usage", 1, 16, founded=True) for name in (TOPIC, grown)])
    repair = (TOPIC, 0, 1, 16, 8, 16, 1000, 2000, DAY, DAY, 1, [0] * 7, "the disk was full", "", "zoë", NOON)
    client.execute(
        "INSERT INTO repairs (topic_id, partition, number, chunk_size, from_offset, to_offset, from_clock_ms,"
        " to_clock_ms, from_booking, booking, definitions, counts, reason, note, who, decided_at) VALUES",
        [repair],
    )
    progress(client, 0, 1, 5, NOON, booking=ENDED)
    progress(client, 0, 0, 9, NOON + HOUR, topic=grown)
    if sealed:
        seal(client, DAY)
    found = read_completeness(client, expected_delay=timedelta(seconds=10))
    assert [(part.topic_id, part.offset) for part in found.partitions] == [(grown, 9)]
    assert found.complete_to == NOON + HOUR - timedelta(seconds=10)


@pytest.mark.parametrize("place", range(2))  # the last one reads progress
def test_a_topic_that_ends_while_somebody_asks_holds_nothing_back(
    client: Client, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    grown = "PqL1mTn0Rk6wYx8cVb2aZg"
    note_line(client, [Topic(name, "usage", 1, 16, founded=True) for name in (TOPIC, grown)])
    progress(client, 0, 0, 5, NOON)
    with before_statement(client, place, monkeypatch) as meanwhile:
        meanwhile += [
            partial(progress, client, 0, 0, 6, NOON, booking=ENDED),
            partial(progress, client, 0, 0, 9, NOON + HOUR, topic=grown),
        ]
        found = read_completeness(client)
    assert [part.topic_id for part in found.partitions] == [grown] and not meanwhile


def test_what_is_sealed_while_somebody_asks_is_in_the_answer_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A booking is sealed before each statement of the answer in turn; its rows are hot as well."""
    query = UsageQuery(meter="compute.vcpu_seconds", start=NOON, end=NOON + HOUR, group_by=())
    for place in range(5):
        row = Booked(minute=NOON, scale=0, booking=DAY + 1 + place)
        book(client, row)
        with before_statement(client, place, monkeypatch) as meanwhile:
            meanwhile += [partial(seal, client, row.booking, row), partial(roll_up, client, row.booking)]
            answer = read_usage(client, query)
        assert values(answer) == [place + 1] and not meanwhile, place


@contextmanager
def before_statement(
    client: Client, place: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Callable[[], object]]]:
    """Give a list of what happens, once, before a statement of those that follow; the first one is number 0."""
    execute, asked, meanwhile = client.execute, count(), list[Callable[[], object]]()

    def ask_later(sql: str, *arguments: Any, **options: Any) -> Any:
        if next(asked) == place:
            patch.setattr(client, "execute", execute)
            while meanwhile:
                meanwhile.pop(0)()
        return execute(sql, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client, "execute", ask_later)
        yield meanwhile


def test_the_view_shows_the_same_exact_decimals(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=Decimal("999999999999999999999.999999999")))
    book(
        client,
        Booked(minute=NOON, value=Decimal("0.000000001"), booking=DAY + 1),
        Booked(minute=NOON, value=2, count=3, sum=2, aggregation="avg", meter="load", booking=DAY + 1),
        Booked(minute=NOON, value=-4, scale=0, aggregation="min", meter="low", booking=DAY + 1),
        Booked(minute=NOON, value=-4, scale=18, aggregation="max", meter="high", booking=DAY + 1),
        Booked(minute=NOON, value=8, aggregation="latest", meter="last", latest_us=3, booking=DAY + 1),
        Booked(minute=NOON, value=1, count=7, scale=0, aggregation="count", meter="calls", booking=DAY + 1),
    )
    rows = client.execute("SELECT meter, value, events FROM usage_minute ORDER BY meter")
    assert rows == [
        ("calls", Decimal(7), 7),
        ("compute.vcpu_seconds", Decimal(10) ** 21, 2),
        ("high", Decimal(-4), 1),
        ("last", Decimal(8), 1),
        ("load", Decimal("0.666666666666666666"), 3),
        ("low", Decimal(-4), 1),
    ]


def test_the_view_takes_predicates(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, value=1), Booked(minute=NOON + MINUTE, value=2, subject="other"))
    book(
        client,
        Booked(minute=NOON + MINUTE, value=4, booking=DAY + 1),
        Booked(minute=NOON + HOUR, value=8, booking=DAY + 1),
    )
    rows = client.execute(
        "SELECT minute, value FROM usage_minute WHERE meter = 'compute.vcpu_seconds' AND subject = 'tenant-zoë'"
        " AND minute >= '2026-10-05 12:00:00' AND minute < '2026-10-05 13:00:00' ORDER BY minute"
    )
    assert [value for _, value in rows] == [1, 4]


def test_dead_letters_are_listed_counted_and_shown_with_their_bytes(client: Client) -> None:
    bodies = [b'{"id": "1"', b"Z\xfcrich"]
    rows = [
        (
            TOPIC,
            3,
            18211 + n,
            0,
            0,
            NOON + n * MINUTE,
            DAY,
            reason,
            "why",
            "application/json",
            "t",
            "s",
            "tenant-zoë",
            body,
            {},
        )
        for n, (reason, body) in enumerate(zip(("malformed", "not_utf8"), bodies, strict=True))
    ]
    client.execute("INSERT INTO dead_letters VALUES", rows)
    client.execute("INSERT INTO dead_letters VALUES", rows)  # writing them again changes nothing
    assert [letter.position for letter in read_dead_letters(client)] == ["3:18212:0", "3:18211:0"]
    assert [letter.position for letter in read_dead_letters(client, LetterChoice(reason="malformed"))] == ["3:18211:0"]
    assert [letter.reason for letter in read_dead_letters(client, LetterChoice(since=NOON + MINUTE))] == ["not_utf8"]
    assert count_dead_letters(client) == (("malformed", 1), ("not_utf8", 1))
    assert [letter.body for letter in read_dead_letter(client, "3:18212:0")] == [bodies[1]]


def test_a_reason_that_does_not_exist_is_refused(client: Client) -> None:
    with pytest.raises(UsageQueryError, match='got "malformd"; did you mean "malformed"'):
        read_dead_letters(client, LetterChoice(reason="malformd"))


def test_alarms_read_windows_from_what_they_knew_and_see_usage_that_came_since(
    clickhouse_endpoint: ClickHouseEndpoint, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How complete usage is takes several questions, a window one: under load they are asked five times a second."""
    (database,) = client.execute("SELECT currentDatabase()")[0]
    reader = ClickHouseUsage(replace(clickhouse_endpoint, database=database), [], timedelta(seconds=10), 1)
    book(client, Booked(minute=NOON, value=7))
    progress(client, 0, 0, 4, NOON)
    query = UsageQuery(meter="compute.vcpu_seconds", start=NOON, end=NOON + timedelta(hours=1))
    asked: list[str] = []
    original = Client.execute

    def execute(self: Client, sql: str, *args: Any, **named: Any) -> Any:
        asked.append(sql)
        return original(self, sql, *args, **named)

    monkeypatch.setattr(Client, "execute", execute)
    assert reader.complete_to() == NOON - timedelta(seconds=10)
    first = len(asked)
    assert [row.value for row in reader.read(query)] == [7]
    book(client, Booked(minute=NOON, value=5, chunk=1))
    assert [row.value for row in reader.read(query)] == [12]
    reader.close()
    assert any("FROM progress" in sql for sql in asked[:first])
    assert not any("progress" in sql or "repairs" in sql for sql in asked[first:])
