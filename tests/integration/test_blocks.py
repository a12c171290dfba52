"""Blocks, made when a booking is sealed: the same figures as the minutes', on the real engine."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from clickhouse_driver import Client

from pipeline import rollup
from pipeline.derived import compare_blocks, compare_seals
from pipeline.replay import Wanted
from pipeline.rollup import roll_up, roll_up_missing
from tallyman.aggregates import read_usage
from tallyman.blocks import BLOCKS_S, tiles_sql
from tallyman.rebuilds import Switch
from tallyman.usage import UsageAnswer, UsageQuery, Window
from tests.usage_rows import DAY, Booked, list_rebuilds, note_rebuild, seal

pytestmark = pytest.mark.integration
NOON = datetime(2026, 10, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def blocks(client: Client, seconds: int) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = client.execute(
        "SELECT meter, formatDateTime(start, '%%H:%%i'), item, aggregation, count, sum, min, max, latest"
        " FROM usage_rolled_up WHERE seconds = %(seconds)s ORDER BY ALL",
        {"seconds": seconds},
    )
    return rows


def test_a_block_holds_what_its_minutes_hold(client: Client) -> None:
    seal(
        client,
        DAY,
        *(Booked(minute=NOON + n * MINUTE, value=n + 1, scale=0) for n in (0, 14, 15, 60)),
        *(Booked(meter="low", aggregation="min", minute=NOON + n * MINUTE, value=n, scale=0, sum=0) for n in (3, 9)),
        *(Booked(meter="now", aggregation="latest", minute=NOON + n * MINUTE, value=n, scale=0, sum=0, latest_us=n)
          for n in (9, 3)),
        *(Booked(meter="who", aggregation="unique_count", item=f"={n % 2}", minute=NOON + n * MINUTE, scale=0)
          for n in range(4)),
        Booked(meter="level", aggregation="time_weighted", item='["1",null,null]', minute=NOON, scale=0),
    )  # fmt: skip
    roll_up(client, DAY)
    others = [
        ("level", "12:00", "", "time_weighted", 1, 1, 0, 0, 1),
        ("low", "12:00", "", "min", 2, 0, 3, 9, 0),
        ("now", "12:00", "", "latest", 2, 0, 0, 0, 9),
        ("who", "12:00", "=0", "unique_count", 2, 2, 0, 0, 0),
        ("who", "12:00", "=1", "unique_count", 2, 2, 0, 0, 0),
    ]
    name = "compute.vcpu_seconds"
    assert blocks(client, 900) == [
        (name, "12:00", "", "sum", 2, 16, 0, 0, 0),
        (name, "12:15", "", "sum", 1, 16, 0, 0, 0),
        (name, "13:00", "", "sum", 1, 61, 0, 0, 0),
        *others,
    ]
    assert blocks(client, 3_600) == [
        (name, "12:00", "", "sum", 3, 32, 0, 0, 0),
        (name, "13:00", "", "sum", 1, 61, 0, 0, 0),
        *others,
    ]
    assert blocks(client, 21_600) == [(name, "12:00", "", "sum", 4, 93, 0, 0, 0), *others]


def test_the_largest_quantities_of_a_tenant_do_not_overflow_a_block(client: Client) -> None:
    """A minute's sum fits 128 bits, six hours of the same do not."""
    minute = 2**127 - 1
    seal(client, DAY, *(Booked(minute=NOON + n * MINUTE, sum=minute, scale=0) for n in range(3)))
    roll_up(client, DAY)
    assert client.execute("SELECT seconds, sum FROM usage_rolled_up ORDER BY seconds") == [
        (seconds, 3 * minute) for seconds in sorted(BLOCKS_S)
    ]
    (row,) = read_usage(client, UsageQuery(meter="compute.vcpu_seconds", start=NOON, end=NOON + 60 * MINUTE)).rows
    assert row.value == 3 * minute


HOURS = UsageQuery(meter="compute.vcpu_seconds", start=NOON, end=NOON + 120 * MINUTE, window="hour")


def test_blocks_tile_the_hours_of_a_zone_whose_clock_changes_at_a_quarter_to(client: Client) -> None:
    """In Chatham 2:45 became 3:45; at Casey 0:01 became 3:01, where blocks fit nothing and minutes are read."""
    chatham, casey = (datetime.fromisoformat(f"{day}Z") for day in ("2026-09-26 14:00", "2020-10-03 16:01"))
    for number, change in enumerate((chatham, casey)):
        booked = [Booked(minute=change + n * MINUTE, value=value) for n, value in ((-40, 1), (5, 2), (70, 4))]
        peaks = [replace(each, meter="peak", aggregation="sum_of_maxima") for each in booked]
        seal(client, DAY + number, *booked, *peaks)
        roll_up(client, DAY + number)
    for zone, change in (("Pacific/Chatham", chatham), ("Antarctica/Casey", casey)):
        query = replace(HOURS, zone=zone, start=change - 75 * MINUTE, end=change + 120 * MINUTE)
        assert [row.value for row in read_usage(client, query).rows] == [1, 2, 4], zone
        (whole,) = read_usage(client, replace(query, meter="peak", window="total")).rows
        assert whole.value == 7, zone
    client.execute("TRUNCATE TABLE usage")
    query = replace(HOURS, zone="Pacific/Chatham", start=chatham - 75 * MINUTE, end=chatham + 120 * MINUTE)
    assert [row.value for row in read_usage(client, query).rows] == [1, 2, 4], "from blocks alone"


def attempts(client: Client) -> list[tuple[int, int]]:
    """Return the attempts of which there are rows."""
    rows = client.execute("SELECT DISTINCT booking, attempt FROM usage_rolled_up ORDER BY booking, attempt")
    return [(booking, attempt) for booking, attempt in rows]


def test_what_another_one_rolls_up_is_left_to_him_for_a_while(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, scale=0), Booked(minute=NOON + MINUTE, scale=0))
    assert roll_up(client, DAY)
    first = [blocks(client, seconds) for seconds in BLOCKS_S]
    assert not roll_up(client, DAY)
    assert [blocks(client, seconds) for seconds in BLOCKS_S] == first


def test_a_sealer_killed_and_another_that_rolled_up_again_are_counted_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the second is half done, and when the first was only very slow, and ends behind the second."""
    seal(client, DAY, *(Booked(minute=NOON + n * MINUTE, scale=0) for n in range(90)))
    seal(client, DAY + 1, Booked(minute=NOON, scale=0))
    before = read_usage(client, HOURS)
    noted = "INSERT INTO rolled_up"
    with monkeypatch.context() as patch:
        kill_before(client, noted, patch)
        with pytest.raises(KeyboardInterrupt):
            roll_up(client, DAY)
    assert attempts(client) == [(DAY, 1)]
    assert read_usage(client, HOURS) == before  # these rows nobody vouches for
    roll_up(client, DAY + 1)
    assert read_usage(client, HOURS) == before
    roll_up(client, DAY, taken_for_s=0)
    assert attempts(client) == [(DAY, 1), (DAY, 2), (DAY + 1, 1)]
    assert read_usage(client, HOURS) == before
    client.execute(f"{noted} (booking, attempt) VALUES", [(DAY, 1)])
    assert read_usage(client, HOURS) == before
    client.execute("TRUNCATE TABLE usage")
    assert read_usage(client, HOURS) == before, "from blocks alone"


@pytest.mark.parametrize("drops_a_second_insert", [True, False])
def test_who_begins_to_roll_up_at_the_same_time_is_alone_or_lets_go(
    client: Client, monkeypatch: pytest.MonkeyPatch, *, drops_a_second_insert: bool
) -> None:
    """Both have seen that nobody is at it, before either says that he is."""
    seal(client, DAY, *(Booked(minute=NOON + n * MINUTE, scale=0) for n in range(90)))
    execute, other = client.execute, list[bool | None]()

    def late(sql: str, *arguments: Any, **options: Any) -> Any:
        if sql.startswith("INSERT INTO rolling_up") and not other:
            other.append(None)
            other[0] = roll_up(client, DAY)
        if not drops_a_second_insert:
            options.pop("settings", None)
        return execute(sql, *arguments, **options)

    monkeypatch.setattr(client, "execute", late)
    assert (roll_up(client, DAY), other) == (False, [True])
    assert attempts(client) == [(DAY, 1)]
    assert client.execute("SELECT booking, attempt FROM rolled_up") == [(DAY, 1)]


def kill_before(client: Client, statement: str, patch: pytest.MonkeyPatch) -> None:
    """Let the process end before it executes a statement."""
    execute = client.execute

    def kill(sql: str, *arguments: Any, **options: Any) -> Any:
        if sql.startswith(statement):
            raise KeyboardInterrupt
        return execute(sql, *arguments, **options)

    patch.setattr(client, "execute", kill)


def test_what_was_sealed_before_there_were_blocks_is_rolled_up_once(client: Client) -> None:
    seal(client, DAY, Booked(minute=NOON, scale=0))
    seal(client, DAY + 1)
    seal(client, DAY + 2, Booked(minute=NOON, scale=0))
    assert roll_up_missing(client) == [DAY + 2, DAY]
    assert roll_up_missing(client) == []
    assert client.execute("SELECT booking FROM rolled_up ORDER BY booking") == [(DAY,), (DAY + 2,)]


def test_a_year_without_blocks_does_not_keep_the_sealer_from_sealing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for booking in range(DAY, DAY + 3):
        seal(client, booking, Booked(minute=NOON, scale=0))
    monkeypatch.setattr(rollup, "_TURN_S", 0.0)
    assert roll_up_missing(client) == [DAY + 2]
    assert roll_up_missing(client) == [DAY + 1]


def edges_of(seed: int) -> list[int]:
    """Return some edges; of every fourth seed days, of which the later ones begin an hour later."""
    rng = Random(seed)
    step = rng.choice([900, 1_800, 3_600, 21_600, 86_400])
    begin = 1_759_276_800 + rng.randrange(100) * 900
    if seed % 4 == 0:
        return [begin + day * 86_400 + 3_600 * (day > 20) for day in range(40)]
    return sorted({begin, *(begin + rng.randrange(1, 400) * step for _ in range(rng.choice([1, 5, 50])))})


def test_blocks_tile_any_windows(client: Client) -> None:
    """Between random edges each quarter lies in one chosen block, and no edge inside one."""
    for edges in map(edges_of, range(60)):
        (chosen,) = client.execute(
            "SELECT arraySort(groupArray((toUInt32(start), seconds))) FROM (SELECT arrayJoin(%(sizes)s) AS seconds,"
            f" arrayJoin(range(intDiv({edges[0]}, seconds) * seconds, {edges[-1]}, seconds)) AS place,"
            " toDateTime(place, 'UTC') AS start, modulo(place, 86400) AS of_day)"
            f" WHERE {tiles_sql(edges)} AND start >= {edges[0]} AND start < {edges[-1]}",
            {"sizes": list(BLOCKS_S)},
        )[0]
        at = edges[0]
        for start, seconds in chosen:
            assert start == at
            assert not any(start < edge < start + seconds for edge in edges)
            at += seconds
        assert at == edges[-1]


ROWS = [
    Booked(meter=meter, aggregation=meter, scale=0, minute=NOON + n * 7 * MINUTE, value=n % 11 + 1, sum=n % 11 + 1,
           booking=DAY + n % 3, latest_us=n, dimensions={"size": "LS"[n % 2]},
           item=f"={n % 13}" if meter == "unique_count" else str(n % 11 + 1) if meter == "percentile" else "",
           parameters='{"percentile":"95"}' if meter == "percentile" else '{"bucket":"hour"}'
           if meter == "sum_of_maxima" else "")
    for meter in ("sum", "count", "avg", "min", "max", "latest", "unique_count", "percentile", "sum_of_maxima")
    for n in range(600)
]  # fmt: skip


def answers(client: Client, start: datetime, window: Window, zone: str) -> list[UsageAnswer]:
    end = start + timedelta(days=2)
    names = sorted({row.meter for row in ROWS})
    return [read_usage(client, UsageQuery(meter=name, start=start, end=end, window=window, zone=zone,
                                          group_by=("size",))) for name in names]  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/St_Johns"])
@pytest.mark.parametrize("window", ["hour", "day", "total"])
def test_blocks_answer_as_minutes_do(client: Client, window: Window, zone: str) -> None:
    """Every aggregation that adds up, in zones half and three quarters of an hour off; the minutes are not needed."""
    for booking in range(DAY, DAY + 3):
        seal(client, booking, *(row for row in ROWS if row.booking == booking))
    before = answers(client, NOON, window, zone)
    assert all(answer.rows for answer in before)
    assert roll_up_missing(client) == [DAY + 2, DAY + 1, DAY]
    client.execute("TRUNCATE TABLE usage")
    assert answers(client, NOON, window, zone) == before


def test_late_usage_of_a_range_is_found_in_the_bookings_of_later_months(client: Client) -> None:
    last = DAY + 70_000
    for n, booking in enumerate((DAY, DAY + 35_000, last)):
        seal(client, booking, Booked(minute=NOON + n * MINUTE, value=10**n, scale=0))
        seal(client, booking + 1, Booked(minute=NOON + timedelta(days=90), scale=0))
        roll_up(client, booking + 1)
    for start in (NOON, NOON + MINUTE):  # from blocks, and from minutes
        asked = replace(HOURS, start=start, window="total")
        assert [row.value for row in read_usage(client, asked).rows] == [111 if start == NOON else 110]
        for booking in (last, DAY):
            roll_up(client, booking)
            assert [row.value for row in read_usage(client, asked).rows] == [111 if start == NOON else 110]
    (row,) = read_usage(client, replace(HOURS, window="total", up_to_booking=DAY + 35_000, sealed_only=True)).rows
    assert row.value == 11


def test_bookings_without_blocks_and_ranges_between_them_are_read_from_minutes(client: Client) -> None:
    for booking in range(DAY, DAY + 3):
        seal(client, booking, *(row for row in ROWS if row.booking == booking))
    for start in (NOON, NOON + 7 * MINUTE):
        before = answers(client, start, "total", "UTC")
        assert roll_up(client, DAY + 1)
        assert answers(client, start, "total", "UTC") == before
        for name in ("rolled_up", "rolling_up", "usage_rolled_up"):
            client.execute(f"TRUNCATE TABLE {name}")


def test_ranges_that_begin_and_end_inside_quarters_are_read_as_their_minutes_are(client: Client) -> None:
    """All but the two ends is read from blocks, whose minutes are not needed; one booking has none at first."""
    mine = [row for row in ROWS if row.meter in ("sum", "latest", "unique_count", "sum_of_maxima")]
    start = NOON + 7 * MINUTE
    asked = [UsageQuery(meter=name, start=start, end=start + timedelta(days=2), window=window, group_by=("size",),
                        zone="Asia/Kathmandu") for name in sorted({row.meter for row in mine})
             for window in ("hour", "total")]  # fmt: skip
    for booking in range(DAY, DAY + 3):
        seal(client, booking, *(row for row in mine if row.booking == booking))
    before = [read_usage(client, each) for each in asked]
    assert roll_up(client, DAY) and roll_up(client, DAY + 1)
    assert [read_usage(client, each) for each in asked] == before
    assert roll_up(client, DAY + 2)
    inside = {"first": start + 8 * MINUTE, "last": start + timedelta(days=2) - 7 * MINUTE}
    client.execute("DELETE FROM usage WHERE minute >= %(first)s AND minute < %(last)s", inside)
    assert [read_usage(client, each) for each in asked] == before


def test_a_month_up_to_this_minute_is_read_from_blocks(client: Client) -> None:
    """As commands and alarms ask for it in fourteen minutes of fifteen. What is sealed ends before."""
    start, end = datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 9, 30, 12, tzinfo=UTC)
    minutes = (end - start) // MINUTE
    seal(client, DAY, *(Booked(minute=start + n * MINUTE, scale=0) for n in range(0, minutes, 3)))
    roll_up(client, DAY)
    read = []
    for more in (0, 1):
        (row,) = read_usage(client, UsageQuery(meter=HOURS.meter, start=start, end=end + more * MINUTE)).rows
        assert row.value == minutes // 3
        read.append(client.last_query.progress.rows)
    assert read[1] < read[0] + 100


def test_a_rebuild_counts_in_a_range_that_begins_and_ends_inside_quarters(client: Client) -> None:
    seal(client, DAY, *(Booked(minute=NOON + n * MINUTE, scale=0) for n in range(240)))
    roll_up(client, DAY)
    span = int(NOON.timestamp()) + 3_600, int(NOON.timestamp()) + 7_200
    switch = Switch(generation=1, definitions=2, meters=(HOURS.meter,), span=span, last=DAY)
    note_rebuild(client, switch, *(Booked(minute=NOON + n * MINUTE, value=100, scale=0) for n in range(60, 120)))
    list_rebuilds(client, 1, 1)
    for first, end in ((7, 233), (61, 119), (50, 70), (119, 121)):
        asked = replace(HOURS, start=NOON + first * MINUTE, end=NOON + end * MINUTE, window="total")
        (row,) = read_usage(client, asked).rows
        assert row.value == sum(100 if 60 <= n < 120 else 1 for n in range(first, end))


ALL = Wanted(None, 0, 1 << 32)


def test_an_audit_finds_blocks_that_are_not_what_their_minutes_are(client: Client) -> None:
    """Rows that are gone, of one size or all, and usage of somebody else; blocks that nobody reads do not matter."""
    kinds = ("sum", "min", "max", "latest", "unique_count")
    for day in (DAY, DAY + 40_000):
        seal(client, day, *(
            Booked(meter=kind, aggregation=kind, subject=who, minute=NOON + n * MINUTE, value=n - 30, scale=0,
                   latest_us=n, item=f"={n % 3}" if kind == "unique_count" else "")
            for kind in kinds for who in ("Zoë", "Łukasz") for n in (0, 14, 61)),
            Booked(meter="net", aggregation="counter", item='["router","boot-1","1"]', minute=NOON, scale=0, count=-1),
            *(Booked(minute=NOON + n * MINUTE, sum=2**127 - 1, scale=0) for n in range(2)),
        )  # fmt: skip
        roll_up(client, day)
    client.execute("INSERT INTO usage_rolled_up SELECT * REPLACE (9 AS attempt, 7 AS count) FROM usage_rolled_up")
    # As an older version made it.
    client.execute("ALTER TABLE usage_rolled_up UPDATE item = '' WHERE meter = 'net' SETTINGS mutations_sync = 1")

    def found(wanted: Wanted = ALL) -> list[tuple[object, ...]]:
        return [(each.booking, each.seconds, each.meter, each.events, each.in_blocks, each.differs)
                for each in compare_blocks(client, DAY, DAY + 40_000, wanted)]  # fmt: skip

    assert found() == []
    gone = "ALTER TABLE usage_rolled_up DELETE WHERE meter = 'min' AND booking = {} AND seconds = 900 AND {}"
    settings = {"mutations_sync": 1}
    client.execute(gone.format(DAY, "toHour(start) = 13"), settings=settings)
    one = (DAY, 900, "min", 6, 4, ("events", "sum", "max", "latest_us", "series"))
    assert found() == [one]
    his = f"meter = 'max' AND seconds = 3600 AND booking = {DAY + 40_000} AND subject = 'Zoë'"
    client.execute("INSERT INTO usage_rolled_up SELECT * REPLACE ('Zoe' AS subject)"
                   f" FROM (SELECT * FROM usage_rolled_up WHERE {his})")  # fmt: skip
    client.execute(f"ALTER TABLE usage_rolled_up DELETE WHERE {his}", settings=settings)
    other = (DAY + 40_000, 3_600, "max", 6, 6, ("series",))
    assert found() == [one, other]
    noon = int(NOON.timestamp()) // 60
    assert found(Wanted(frozenset({"max", "sum"}), noon, noon + 1)) == [other]
    assert found(Wanted(None, noon + 720, noon + 721)) == []
    client.execute("TRUNCATE TABLE usage_rolled_up")
    assert len(found()) == 2 * 7 * len(BLOCKS_S)
    client.execute("TRUNCATE TABLE rolled_up")
    assert found() == [], "minutes are read"


def test_an_audit_finds_seals_that_do_not_say_what_is_sealed(client: Client) -> None:
    for n in range(4):
        seal(client, DAY + n, *(Booked(minute=NOON + n * MINUTE, scale=0, count=3) for n in range(2)))
    seal(client, DAY + 4)
    assert list(compare_seals(client, 0, DAY + 4)) == []
    settings = {"mutations_sync": 1}
    client.execute(f"ALTER TABLE usage DELETE WHERE booking = {DAY}", settings=settings)
    client.execute(f"ALTER TABLE seals DELETE WHERE booking = {DAY + 1}", settings=settings)
    client.execute(f"ALTER TABLE seals UPDATE last_minute = first_minute WHERE booking = {DAY + 2}", settings=settings)
    lost, unsealed, minutes = compare_seals(client, 0, DAY + 4)
    assert (lost.booking, lost.held) == (DAY, None) and lost.sealed is not None and lost.sealed.events == 6
    assert (unsealed.booking, unsealed.sealed) == (DAY + 1, None)
    assert minutes.sealed is not None and minutes.held is not None
    assert (minutes.sealed.last_minute, minutes.held.last_minute) == (NOON, NOON + MINUTE)
    assert list(compare_seals(client, DAY + 3, DAY + 4)) == []
