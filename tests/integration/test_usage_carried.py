"""What an answer takes from before its range and from the newest definitions, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from clickhouse_driver import Client

from pipeline.rollup import roll_up
from tallyman import figures
from tallyman.aggregates import read_usage
from tallyman.errors import UsageQueryError
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import Meter, parameters_of
from tallyman.usage import UsageAnswer, UsageQuery
from tests.usage_rows import DAY, TOPIC, Booked, book, fresh_database, progress, seal

pytestmark = pytest.mark.integration
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
MINUTE, HOUR, DAYS = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
TODAY, MIDNIGHT = 20_731_000, datetime(2026, 10, 6, tzinfo=UTC)  # the booking of NOON's day, and that day's end
BYTES = Meter(meter="bytes", event_type="port", aggregation="counter", resource="port", incarnation="boot", scale=0)
DISK = Meter(meter="disk", event_type="volume", aggregation="time_weighted", resource="volume", scale=0)
UPTIME = Meter(
    meter="uptime", event_type="vm", aggregation="lifecycle", resource="id", state="s", states=("on",), scale=0
)
P99 = '{"percentile":"99"}'
PEOPLE = Meter(meter="people", event_type="visit", aggregation="unique_count", value="user")


@pytest.fixture(scope="module")
def database(clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[Client]:
    with fresh_database(clickhouse_endpoint) as client:
        yield client


@pytest.fixture
def client(database: Client) -> Client:
    for table in ("usage", "usage_hot", "usage_rolled_up", "rolling_up", "rolled_up", "seals", "progress", "repairs",
                  "heard", "heard_newest"):
        database.execute(f"TRUNCATE TABLE {table}")
    return database


def reading(
    meter: Meter, at: datetime, value: int, resource: str | None = "r", incarnation: str | None = None, **named: Any
) -> Booked:
    time_us = round(at.timestamp() * 1_000_000)
    return Booked(
        meter=meter.meter, aggregation=meter.aggregation, scale=meter.scale, parameters=parameters_of(meter),
        minute=at.replace(second=0, microsecond=0), value=value, latest_us=time_us,
        item=msgspec.json.encode([str(time_us), resource, incarnation]).decode(), **named,
    )  # fmt: skip


def ask(
    client: Client, meter: Meter, start: datetime = NOON, end: datetime = NOON + HOUR, **options: Any
) -> UsageAnswer:
    query = UsageQuery(**{"meter": meter.meter, "start": start, "end": end, "group_by": (), **options})
    return read_usage(client, query, meters=[meter])


def values(answer: UsageAnswer) -> list[Decimal]:
    return [row.value for row in answer.rows]


def test_ten_thousand_counters_go_on_where_they_stood(client: Client) -> None:
    """What is asked for them is a statement of a megabyte."""
    ports = [f"{number}-{'port' * 20}" for number in range(10_000)]
    book(client, *[reading(BYTES, NOON - 30 * DAYS, 1000, "r", "b", subject=port) for port in ports])
    book(client, *[reading(BYTES, NOON + MINUTE, 1003, "r", "b", subject=port) for port in ports])
    (row,) = ask(client, BYTES).rows
    assert (row.value, row.events) == (30_000, 10_000)
    (row,) = ask(client, BYTES, subjects=tuple(ports[1:])).rows
    assert (row.value, row.events) == (29_997, 9_999)


def test_a_counter_that_was_silent_for_a_month_goes_on_where_it_stood(client: Client) -> None:
    """Three ports: the same boot goes on, a new boot begins at 0, and a port that nobody knew adds nothing yet."""
    book(
        client,
        reading(BYTES, NOON - 30 * DAYS, 1000, "eth0", "boot-1"),
        reading(BYTES, NOON - 31 * DAYS, 900, "eth1", "boot-1"),
        reading(BYTES, NOON + MINUTE, 1010, "eth0", "boot-1"),
        reading(BYTES, NOON + MINUTE, 5, "eth1", "boot-2"),
        reading(BYTES, NOON + MINUTE, 10**9, "eth2", "boot-1"),
    )
    (row,) = ask(client, BYTES).rows
    assert (row.value, row.events, row.resets, row.holes, row.decreases) == (15, 3, 1, 0, 0)


def test_a_boot_that_was_passed_long_ago_is_known_again(client: Client) -> None:
    """Its highest reading counts, not its last, and not another boot's."""
    book(
        client,
        reading(BYTES, NOON - 20 * DAYS, 500, "eth0", "boot-1"),
        reading(BYTES, NOON - 19 * DAYS, 480, "eth0", "boot-1"),
        reading(BYTES, NOON - 2 * HOUR, 7, "eth0", "boot-2"),
        reading(BYTES, NOON, 510, "eth0", "boot-1"),
    )
    (row,) = ask(client, BYTES).rows
    assert (row.value, row.resets, row.decreases) == (10, 0, 0)


def fallen_back(incarnation: str = "boot-1", **named: Any) -> list[Booked]:
    """Return readings of a counter that stood at 500 long ago, then lower, and is above that again."""
    stood = {NOON - 20 * DAYS: 0, NOON - 19 * DAYS: 500, NOON - 2 * HOUR: 480, NOON: 510}
    return [reading(BYTES, at, value, "eth0", incarnation, **named) for at, value in stood.items()]


@pytest.mark.parametrize("kept", ["hot", "in minutes", "in blocks", "in blocks of before"])
def test_a_day_of_a_counter_is_the_same_in_a_month_and_by_itself(client: Client, kept: str) -> None:
    """It had fallen back more than a day before: the same hour must not be 10 in a month and 30 by itself."""
    rows = [*fallen_back(), reading(BYTES, NOON - 18 * DAYS, 9_000, "eth0", "boot-0"),
            *fallen_back(subject="of two"), *fallen_back("boot-2", subject="of two")]  # fmt: skip
    if kept == "hot":
        book(client, *rows)
    else:
        seal(client, DAY, *rows)
    if kept.startswith("in blocks"):
        assert roll_up(client, DAY)
        if kept == "in blocks of before":  # which did not tell incarnations apart
            client.execute("ALTER TABLE usage_rolled_up UPDATE item = '' WHERE 1 SETTINGS mutations_sync = 1")
    month = ask(client, BYTES, NOON - 21 * DAYS, NOON + HOUR, window="hour", group_by=("subject",))
    assert [row.value for row in month.rows if row.start == NOON] == [20, 10]
    assert sum(values(month)) == 510 + 9_000 + 2 * 510
    assert values(ask(client, BYTES, group_by=("subject",))) == [20, 10]


def test_only_counters_that_stood_higher_are_looked_for_in_all_of_their_past(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that counted much more before it was rebooted."""
    seal(
        client, DAY,
        *(reading(BYTES, NOON - n * DAYS, 9_000 - n, "eth0", "boot-1", subject="rebooted") for n in (9, 7)),
        *(reading(BYTES, NOON - n * HOUR, 9 - n, "eth0", "boot-2", subject="rebooted") for n in (2, 1, 0)),
        *fallen_back(),
    )  # fmt: skip
    assert roll_up(client, DAY)
    asked: list[object] = []
    monkeypatch.setattr(figures, "_read_counters_before", lambda *named: asked.append(named[2]) or [])
    ask(client, BYTES)
    assert asked == [{("tenant-zoë", "{}")}]


def test_a_voided_reading_of_long_ago_is_no_reading(client: Client) -> None:
    was = reading(BYTES, NOON - 20 * DAYS, 500, "eth0", "boot-1")
    void = reading(BYTES, NOON - 20 * DAYS, -500, "eth0", "boot-1", count=-1, booking=DAY + 1)
    book(
        client,
        was,
        void,
        reading(BYTES, NOON, 510, "eth0", "boot-1"),
        reading(BYTES, NOON + MINUTE, 512, "eth0", "boot-1"),
    )
    assert values(ask(client, BYTES)) == [2]


def test_a_voided_reading_of_an_hour_ago_does_not_hide_one_of_long_ago(client: Client) -> None:
    book(
        client,
        reading(BYTES, NOON - 20 * DAYS, 500, "eth0", "boot-1"),
        reading(BYTES, NOON - HOUR, 900, "eth0", "boot-1"),
        reading(BYTES, NOON - HOUR, -900, "eth0", "boot-1", count=-1, booking=DAY + 1),
        reading(BYTES, NOON, 510, "eth0", "boot-1"),
    )
    assert values(ask(client, BYTES)) == [10]


def test_a_level_is_believed_to_the_second_though_rows_are_kept_by_minutes(client: Client) -> None:
    meter = replace(DISK, believed_for=HOUR + timedelta(seconds=30))
    book(client, reading(meter, NOON - HOUR - timedelta(seconds=20), 40))
    assert values(ask(client, meter)) == [40 * 10]


def test_a_volume_that_was_made_years_ago_still_has_its_size(client: Client) -> None:
    old = reading(DISK, NOON - 900 * DAYS, 40, "vol-1")
    seal(client, DAY, old, reading(DISK, NOON - 901 * DAYS, 7, "vol-1"), reading(DISK, NOON - 800 * DAYS, 0, "vol-2"))
    (row,) = ask(client, DISK).rows
    assert (row.value, row.events) == (40 * 3600, 0)
    assert (row.start, row.end) == (NOON, NOON + HOUR)


def test_a_voided_size_leaves_the_one_before_it_and_an_amended_one_stands(client: Client) -> None:
    seal(
        client, TODAY + 999,
        reading(DISK, NOON - 3 * DAYS, 40, "vol-1"),
        reading(DISK, NOON - 2 * DAYS, 99, "vol-1"),
        reading(DISK, NOON - 2 * DAYS, 70, "vol-2"),
    )  # fmt: skip
    amended = reading(DISK, NOON - 2 * DAYS, 7, "vol-2", booking=TODAY + 1000)
    book(
        client,
        reading(DISK, NOON - 2 * DAYS, -99, "vol-1", count=-1, booking=TODAY + 1000),
        reading(DISK, NOON - 2 * DAYS, -70, "vol-2", count=-1, booking=TODAY + 1000),
        replace(amended, item=amended.item[:-1] + ',"1"]'),
    )
    assert values(ask(client, DISK)) == [47 * 3600]
    assert values(ask(client, DISK, up_to_booking=TODAY + 999)) == [169 * 3600]


def test_a_server_that_was_resized_before_the_month_runs_once(client: Client) -> None:
    book(
        client,
        reading(UPTIME, NOON - 20 * DAYS, 1, "vm-1", dimensions={"flavor": "small"}),
        reading(UPTIME, NOON - 10 * DAYS, 1, "vm-1", dimensions={"flavor": "large"}),
        reading(UPTIME, NOON - 10 * DAYS, 1, "vm-2", dimensions={"flavor": "small"}),
        reading(UPTIME, NOON - 9 * DAYS, 0, "vm-2", dimensions={"flavor": "small"}),
    )
    rows = ask(client, UPTIME, group_by=("flavor",)).rows
    assert [(row.groups["flavor"], row.value) for row in rows] == [("large", 3600)]
    assert ask(client, UPTIME, where={"flavor": ("small",)}).rows == ()


def test_a_level_is_carried_only_as_far_as_usage_is_complete(client: Client) -> None:
    """The month is not over: what holds now is not yet usage of its end."""
    book(client, reading(DISK, NOON - 2 * DAYS, 40, "vol-1"))
    assert values(ask(client, DISK)) == [40 * 3600]
    progress(client, 0, 0, 16, NOON + 10 * MINUTE + timedelta(seconds=10))
    assert values(ask(client, DISK)) == [40 * 600]
    assert ask(client, DISK, NOON + HOUR, NOON + 2 * HOUR).rows == ()


def silent(client: Client, mark: datetime) -> None:
    """A collector says that it has sent all up to an instant, and is not heard again."""
    mark_us = round(mark.timestamp() * 1_000_000)
    client.execute(
        "INSERT INTO heard (collector, epoch, topic_id, partition, chunk, booking, definitions, first, last,"
        " first_watermark_us, last_watermark_us, first_clock_ms, clock_ms, subjects, types, covered) VALUES",
        [("laptop", "e", TOPIC, 0, 0, TODAY, 1, 0, 9, mark_us, mark_us, mark_us // 1000, mark_us // 1000, [], [], 5)],
    )


def lose_batch(client: Client, after: datetime, before: datetime) -> None:
    """A collector's batch 4, whose readings lie between two instants, never came."""
    marks = [round((at).timestamp() * 1_000_000) for at in (after - HOUR, after, before, NOON + HOUR)]
    runs = [(0, 3, *marks[:2]), (5, 9, *marks[2:])]
    client.execute(
        "INSERT INTO heard (collector, epoch, topic_id, partition, chunk, booking, definitions, first, last,"
        " first_watermark_us, last_watermark_us, first_clock_ms, clock_ms, subjects, types, covered) VALUES",
        [("a", "e", TOPIC, 0, chunk, TODAY, 1, first, last, low, high, low // 1000, high // 1000, [], [], 5)
         for chunk, (first, last, low, high) in enumerate(runs)],
    )  # fmt: skip


def test_what_is_missing_before_the_range_is_told_as_long_as_levels_are_believed(client: Client) -> None:
    """It may have ended the level that is carried; of what is counted in the range it says nothing."""
    books = replace(BYTES, incarnation="")
    for meter in (DISK, UPTIME, books):
        book(client, reading(meter, NOON - 2 * DAYS, 40, booking=TODAY), reading(meter, NOON, 40, booking=TODAY))
    lose_batch(client, NOON - 20 * HOUR, NOON - 18 * HOUR)
    lost_ms = round((NOON - 20 * HOUR).timestamp() * 1000)
    client.execute(
        "INSERT INTO repairs (topic_id, partition, number, chunk_size, from_offset, to_offset, from_clock_ms,"
        " to_clock_ms, from_booking, booking, definitions, counts, reason, note, who, decided_at) VALUES",
        [(TOPIC, 0, 1, 16, 0, 2, lost_ms, lost_ms + 60_000, TODAY, TODAY, 1, [0] * 7, "retention", "", "zoë", NOON)],
    )
    progress(client, 0, 0, 3, NOON + 2 * HOUR, booking=TODAY)
    shorter, longer = (replace(DISK, believed_for=hours * HOUR, meter=f"disk{hours}") for hours in (17, 30))
    for meter in (shorter, longer):
        book(client, reading(meter, NOON, 40, booking=TODAY))
    for meter, told in ((DISK, 1), (UPTIME, 1), (longer, 1), (shorter, 0), (books, 0)):
        answer = ask(client, meter)
        assert answer.rows
        assert [(gap.first, gap.last) for gap in answer.gaps] == [(4, 4)] * told, meter.meter
        assert len(answer.repaired) == told
        assert len(ask(client, meter, NOON - 3 * DAYS).gaps) == 1, "in the longer question each is told"


def test_what_is_sealed_gives_the_same_levels_whoever_fell_silent_and_whenever_one_asks(client: Client) -> None:
    """A laptop was switched off at noon; the books are closed a second after midnight, and asked again a week later."""
    volume = reading(DISK, NOON - 2 * DAYS, 40, "vol-1")
    server = reading(UPTIME, NOON - 2 * DAYS, 1, "vm-1")
    seal(client, TODAY, volume, server)
    seal(client, TODAY + 1000)
    silent(client, NOON)
    for passed in (timedelta(seconds=1), 8 * DAYS):
        progress(client, 0, 0, 16 if passed > HOUR else 15, MIDNIGHT + passed, booking=TODAY + 1001)
        for options in ({"sealed_only": True}, {"sealed_only": True, "up_to_booking": TODAY + 1000},
                        {"up_to_booking": TODAY + 1000}):  # fmt: skip
            day = {"start": NOON, "end": MIDNIGHT, **options}
            assert values(ask(client, DISK, **day)) == [40 * 12 * 3600], (passed, options)
            assert values(ask(client, UPTIME, **day)) == [12 * 3600], (passed, options)
    longer = ask(client, DISK, NOON, MIDNIGHT + DAYS, sealed_only=True)
    assert values(longer) == [40 * 12 * 3600], "what is sealed does not say how the next day went on"


def test_as_of_a_booking_that_is_still_open_levels_are_carried_as_far_as_the_log_says(client: Client) -> None:
    book(client, reading(DISK, NOON - 2 * DAYS, 40, "vol-1", booking=TODAY))
    silent(client, NOON + MINUTE)
    progress(client, 0, 0, 15, NOON + 10 * MINUTE + timedelta(seconds=10), booking=TODAY)
    assert values(ask(client, DISK, up_to_booking=TODAY + 999)) == [40 * 600]
    progress(client, 0, 0, 16, NOON + 90 * MINUTE, booking=TODAY + 1)
    assert values(ask(client, DISK, up_to_booking=TODAY + 999)) == [40 * 3600]
    assert values(ask(client, DISK)) == [40 * 60]


@pytest.mark.parametrize("up_to_booking", [None, TODAY + 29_999])
def test_a_level_is_no_forecast_while_some_partition_has_not_begun(client: Client, up_to_booking: int | None) -> None:
    """At a first start, and when a topic has grown: nobody knows how complete usage is, and how far it has come."""
    book(client, reading(DISK, NOON - 2 * DAYS, 40, booking=TODAY))
    progress(client, 0, 0, 15, NOON + 10 * MINUTE + timedelta(seconds=10), booking=TODAY)
    month = UsageQuery(
        meter="disk", start=NOON, end=NOON + 30 * DAYS, group_by=(), up_to_booking=up_to_booking
    )
    for partitions in (1, 2):
        answer = read_usage(client, month, meters=[DISK], partitions=partitions)
        assert (answer.complete_to is None) == (partitions == 2)
        assert values(answer) == [40 * 600]


def test_a_silent_collector_ends_a_level_also_while_some_partition_has_not_begun(client: Client) -> None:
    """As it does else: what it says is known to be so far is not more because less is known."""
    book(client, reading(DISK, NOON - 2 * DAYS, 40, booking=TODAY))
    silent(client, NOON + 5 * MINUTE)
    progress(client, 0, 0, 15, NOON + 10 * MINUTE + timedelta(seconds=10), booking=TODAY)
    month = UsageQuery(meter="disk", start=NOON, end=NOON + 30 * DAYS, group_by=())
    for partitions in (1, 2):
        assert values(read_usage(client, month, meters=[DISK], partitions=partitions)) == [40 * 300]


def test_an_empty_range_has_a_zero_for_distinct_values_as_for_a_count(client: Client) -> None:
    assert [(row.value, row.events) for row in ask(client, PEOPLE).rows] == [(0, 0)]
    for meter in (BYTES, DISK, UPTIME):
        assert ask(client, meter).rows == ()


def test_distinct_values_are_counted_over_tenants_and_days_once(client: Client) -> None:
    same = {"meter": "people", "aggregation": "unique_count", "item": "=Zoë"}
    book(
        client,
        Booked(**same, minute=NOON, subject="a", dimensions={"site": "x"}),
        Booked(**same, minute=NOON + MINUTE, subject="b", dimensions={"site": "y"}),
        Booked(**{**same, "item": "=7"}, minute=NOON + MINUTE, subject="b", count=3),
    )
    assert [(row.value, row.events) for row in ask(client, PEOPLE).rows] == [(2, 5)]
    assert values(ask(client, PEOPLE, group_by=("subject",))) == [1, 2]
    assert values(ask(client, PEOPLE, exclude=({"site": ("y",)},))) == [2]
    assert values(ask(client, PEOPLE, window="minute")) == [1, 2]


def test_the_newest_definitions_decide_over_all_of_the_range(client: Client) -> None:
    """A percentile that became another one, and a unit that is converted since; the project has no say in it."""
    p50, p99 = ('{"percentile":"50"}', '{"factor":"1/1000","percentile":"99"}')
    latency = {"meter": "latency", "aggregation": "percentile", "scale": 0}
    book(
        client,
        *(Booked(**latency, minute=NOON, item=str(n), parameters=p50) for n in range(0, 101, 2)),
        *(Booked(**latency, minute=NOON, item=str(n), parameters=p99, definitions=2) for n in range(1, 101, 2)),
    )
    stale = Meter(meter="latency", event_type="call", aggregation="percentile", percentile="10")
    assert values(ask(client, stale)) == [Decimal("0.099")]


def test_a_meter_that_became_another_aggregation_is_read_as_what_it_is_now(client: Client) -> None:
    people = {"meter": "people", "minute": NOON}
    book(client, Booked(**people, value=5), Booked(**people, aggregation="unique_count", item="=Zoë", definitions=2))
    summed = Meter(meter="people", event_type="visit", aggregation="sum", dimensions={"site": "site"})
    assert values(ask(client, summed)) == values(ask(client, PEOPLE)) == [1]
    assert values(ask(client, summed, group_by=("site",))) == [1]


def test_a_project_that_says_otherwise_than_what_was_booked_is_read_as_booked(client: Client) -> None:
    """The definitions are edited, but not in force yet."""
    book(client, reading(DISK, NOON - 2 * DAYS, 40), reading(DISK, NOON + 30 * MINUTE, 0))
    edited = Meter(meter="disk", event_type="volume", aggregation="time_weighted", believed_for=HOUR, scale=0)
    assert values(ask(client, edited)) == [40 * 1800]


def test_what_is_excluded_meets_all_of_a_condition(client: Client) -> None:
    places = [("Malmö", "se"), ("London", "uk"), ("London", "ca"), (None, "uk")]
    book(client, *(
        Booked(minute=NOON, value=10**n, dimensions={"city": city, "country": country})
        for n, (city, country) in enumerate(places)
    ))  # fmt: skip
    meter = Meter(
        meter="compute.vcpu_seconds", event_type="vm", aggregation="sum", dimensions={"city": "c", "country": "d"}
    )
    assert values(ask(client, meter, exclude=({"city": ("London",), "country": ("uk",)},))) == [1101]
    assert values(ask(client, meter, exclude=({"city": ("London",)}, {"city": (None,)}))) == [1]
    assert values(ask(client, meter, where={"country": ("uk",)}, exclude=({"city": (None, "x")},))) == [10]
    with pytest.raises(UsageQueryError, match=r'exclude: expected a dimension of compute\.vcpu_seconds, got "town"'):
        ask(client, meter, exclude=({"town": ("London",)},))
    with pytest.raises(UsageQueryError, match="exclude: expected a dimension in each condition"):
        ask(client, meter, exclude=({"city": ("London",)}, {}))


def test_as_of_a_booking_is_what_was_booked_up_to_it_sealed_or_not(client: Client) -> None:
    meter = Meter(meter="compute.vcpu_seconds", event_type="vm", aggregation="sum")
    seal(client, DAY, Booked(minute=NOON, value=1))
    seal(client, DAY + 1, Booked(minute=NOON, value=10))
    book(client, *(Booked(minute=NOON, value=100 * 10**n, booking=DAY + 2 + n) for n in range(2)))
    found = [values(ask(client, meter, up_to_booking=DAY + n)) for n in range(-1, 5)]
    assert found == [[], [1], [11], [111], [1111], [1111]]
    assert ask(client, meter, up_to_booking=DAY + 2).sealed_to == DAY + 1


def test_the_view_of_minutes_shows_no_value_whose_events_were_voided(client: Client) -> None:
    for meter, aggregation, first, second in (("people", "unique_count", "=a", "=b"), ("p", "percentile", "5", "7")):
        same = {"meter": meter, "aggregation": aggregation, "minute": NOON, "scale": 0, "parameters": P99}
        book(
            client,
            *(Booked(**same, item=item) for item in (first, second)),
            Booked(**same, item=first, count=-1, booking=DAY + 1),
        )
    found = client.execute("SELECT meter, value, events FROM usage_minute ORDER BY meter")
    assert found == [("p", 7, 1), ("people", 1, 1)]


def test_the_view_of_minutes_finds_the_first_of_many_readings_in_little_memory(client: Client) -> None:
    """To look for each among all the others would take gigabytes. One that was voided came with the first."""
    first = Meter(meter="boot", event_type="host", aggregation="first", scale=0)
    many = [reading(first, NOON + timedelta(milliseconds=5 * n), n) for n in range(10_000)]
    beside = reading(first, NOON + timedelta(milliseconds=10), 99, "z", latest_by=b"z" * 16)
    gone = (*(many[n] for n in (0, 1, 5_000)), beside)
    book(client, *many, beside, *(replace(each, count=-1, value=0, booking=DAY + 1) for each in gone))
    with_little = {"max_memory_usage": 400_000_000}
    found = client.execute("SELECT value, events FROM usage_minute", settings=with_little)
    assert found == [(2, 9_997)]
