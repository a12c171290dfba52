"""What an answer says where a meter's definitions changed: by a tenant's own rows, whoever else is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction
from typing import Any

import pytest
from clickhouse_driver import Client

from pipeline.rollup import roll_up
from tallyman.aggregates import Known, read_known, read_rows, read_usage
from tallyman.errors import UsageQueryError
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import Meter
from tallyman.usage import UsageAnswer, UsageQuery
from tests.integration.test_usage_carried import BYTES, DAYS, DISK, HOUR, MINUTE, NOON, UPTIME, ask, reading, values
from tests.usage_rows import DAY, Booked, book, fresh_database, seal

pytestmark = pytest.mark.integration
HOURS_NOW = '{"factor":"3600/1"}'


@pytest.fixture(scope="module")
def database(clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[Client]:
    with fresh_database(clickhouse_endpoint) as client:
        yield client


@pytest.fixture
def client(database: Client) -> Client:
    for table in ("usage", "usage_hot", "usage_rolled_up", "rolled_up", "rolling_up", "seals", "progress"):
        database.execute(f"TRUNCATE TABLE {table}")
    return database


def sealed(client: Client, meter: str, **options: Any) -> UsageAnswer:
    asked = {"meter": meter, "start": NOON, "end": NOON + DAYS, "sealed_only": True, **options}
    return read_usage(client, UsageQuery(**asked))


def of(answer: UsageAnswer, subject: str) -> list[Decimal]:
    return [row.value for row in answer.rows if row.groups["subject"] == subject]


# Who else is asked for.


@pytest.mark.parametrize("rolled", [False, True])
def test_a_tenant_used_the_same_whoever_else_is_asked_for(client: Client, rolled: bool) -> None:
    vcpu = {"meter": "vcpu", "scale": 0}
    seal(
        client, DAY,
        Booked(**vcpu, minute=NOON, value=7200, subject="gone"),
        Booked(**vcpu, minute=NOON, value=7200, subject="stays"),
        Booked(**vcpu, minute=NOON + HOUR, value=2, subject="stays", definitions=2, parameters=HOURS_NOW),
    )  # fmt: skip
    if rolled:
        roll_up(client, DAY)
    assert of(sealed(client, "vcpu", subjects=("gone",)), "gone") == [7200]
    both = sealed(client, "vcpu", subjects=("gone", "stays"))
    assert (of(both, "gone"), of(both, "stays")) == ([7200], [14_400]), "two hours are 7200 seconds more"
    assert values(sealed(client, "vcpu", group_by=())) == [21_600]
    assert values(sealed(client, "vcpu", group_by=(), window="hour")) == [14_400, 7200]


def test_a_tenant_has_usage_whoever_else_is_asked_for(client: Client) -> None:
    """The meter became another aggregation in the middle of the month."""
    people = {"meter": "people", "minute": NOON}
    seal(
        client, DAY,
        Booked(**people, value=5, subject="gone"),
        Booked(**people, aggregation="unique_count", item="=Zoë", definitions=2, subject="stays"),
    )  # fmt: skip
    assert of(sealed(client, "people", subjects=("gone",)), "gone") == [5]
    both = sealed(client, "people", subjects=("gone", "stays"))
    assert (of(both, "gone"), of(both, "stays")) == ([5], [1])


def pairs(older: list[str], newer: list[str], *, every: int) -> list[Any]:
    """Return all pairs of aggregations; most are more of the same, and run with --long."""
    return [
        pytest.param(first, second, marks=[pytest.mark.long] if (row + column) % every else [])
        for row, first in enumerate(older)
        for column, second in enumerate(newer)
    ]


@pytest.mark.parametrize(
    ("older", "newer"),
    pairs(
        ["sum", "first", "percentile", "counter", "lifecycle", "min"],
        ["sum", "first", "percentile", "counter", "time_weighted", "max"],
        every=3,
    ),
)
def test_every_group_is_read_as_what_it_was_booked_as_last(client: Client, older: str, newer: str) -> None:
    """What one asks for beside it changes no figure: tenants, dimensions, or a project that says otherwise."""
    book(
        client,
        *mixed(older, "early", {"az": "a"}, 1), *mixed(older, "late", {"az": "a"}, 1),
        *mixed(newer, "late", {"az": "b"}, 2), *mixed(newer, "last", {"az": "b"}, 2),
    )  # fmt: skip
    known = read_known(client)
    for by in (("subject",), ("subject", "az"), ("az", "subject")):
        whole = {tuple(row.groups.items()): row for row in asked(client, by)}
        assert len({named["subject"] for named in map(dict, whole)}) == 3
        for subject in ("early", "late", "last"):
            alone = asked(client, by, known=known, subjects=(subject,))
            assert alone == [row for row in whole.values() if row.groups["subject"] == subject]
        for aggregation in ("sum", "first", "unique_count"):
            other = Meter(meter="m", event_type="t", aggregation=aggregation, dimensions={"az": "az"})  # type: ignore[arg-type]
            assert asked(client, by, [other], known=known) == list(whole.values())
        for place in ("a", "b") if "az" in by else ():
            alone = asked(client, by, known=known, where={"az": (place,)})
            assert alone == [row for row in whole.values() if row.groups["az"] == place]


def mixed(aggregation: str, subject: str, named: dict[str, str | None], definitions: int) -> Iterator[Booked]:
    """Yield an hour of usage under some definitions."""
    for number in range(3):
        at = NOON + (20 * definitions + number) * MINUTE
        time_us = round(at.timestamp() * 1_000_000)
        item = {"percentile": "7", "sum": "", "min": "", "max": ""}.get(aggregation, f'["{time_us}","r","i"]')
        yield Booked(
            meter="m", subject=subject, dimensions=named, aggregation=aggregation, minute=at, value=1 + number, scale=0,
            item=item, latest_us=time_us, latest_by=b"\1", definitions=definitions,
            parameters='{"factor":"1/7","percentile":"99"}' if definitions == 2 else "",
        )  # fmt: skip


def asked(
    client: Client, by: tuple[str, ...], meters: Any = (), known: Known | None = None, **options: Any
) -> list[Any]:
    query = UsageQuery(meter="m", start=NOON, end=NOON + HOUR, group_by=by, **options)
    if known is not None:
        return list(read_rows(client, query, known, meters=meters))
    return list(read_usage(client, query, meters=meters).rows)


# What definitions make of what they booked.


def test_each_definition_is_worth_what_it_says_and_the_newest_rounds(client: Client) -> None:
    same = {"meter": "m", "minute": NOON}
    rows = [
        Booked(**same, value=10, scale=2, count=4, parameters='{"factor":"1/3","offset":"1/7"}'),
        Booked(**same, value=20, scale=0, count=2, definitions=2, parameters='{"factor":"3/1"}'),
        Booked(**same, value=7, scale=1, definitions=3, parameters='{"digits":"1","rounding":"up"}'),
    ]
    book(client, *rows[:2])
    exactly = Fraction(10, 3) + Fraction(4, 7) + 60
    (row,) = asked(client, ())
    assert (row.value, row.events) == (Decimal(exactly.numerator) / exactly.denominator, 6)
    book(client, rows[2])
    (row,) = asked(client, ())
    assert (row.value, row.events) == (Decimal("71.0"), 7)


def test_an_average_is_over_what_each_definition_is_worth(client: Client) -> None:
    same = {"meter": "m", "minute": NOON, "aggregation": "avg"}
    book(
        client,
        Booked(**same, value=7200, scale=0, count=2, parameters='{"offset":"100/1"}'),
        Booked(**same, value=2, scale=3, definitions=2, parameters=HOURS_NOW),
    )
    assert [row.value for row in asked(client, ())] == [(7200 + 200 + 7200) / Decimal(3)]


def test_thousands_of_calls_are_thousands_though_they_are_counted_singly_since(client: Client) -> None:
    same = {"meter": "m", "minute": NOON, "aggregation": "count"}
    book(
        client,
        Booked(**same, count=1500, parameters='{"factor":"1/1000"}'),
        Booked(**same, count=2, definitions=2),
        Booked(**{**same, "aggregation": "sum"}, value=3, count=4, definitions=0, parameters=HOURS_NOW),
    )
    assert [(row.value, row.events) for row in asked(client, ())] == [(Decimal("7.5"), 1506)]


@pytest.mark.parametrize("aggregation", ["sum", "avg"])
def test_a_count_that_became_a_sum_adds_no_billionths(client: Client, aggregation: str) -> None:
    """For each event the pipeline writes 1 as its sum, unscaled, beside the meter's scale."""
    same = {"meter": "m", "minute": NOON, "scale": 9}
    book(
        client,
        Booked(**same, aggregation="count", value=0, sum=Decimal("0.000001"), count=1000),
        Booked(**{**same, "minute": NOON + MINUTE}, aggregation=aggregation, value=7, definitions=2),
    )
    (row,) = asked(client, ())
    assert (row.value, row.events) == ({"sum": 1007, "avg": Decimal(1007) / 1001}[aggregation], 1001)


# Levels and states that were booked otherwise than the project says, and of which nothing was read since.

BRIEFLY = replace(DISK, believed_for=HOUR)


@pytest.mark.parametrize("rolled", [None, False, True])
def test_a_level_holds_as_booked_though_the_project_says_otherwise_and_nothing_is_read_in_the_range(
    client: Client, rolled: bool | None
) -> None:
    level = reading(DISK, NOON - 2 * DAYS + 7 * MINUTE, 40)
    if rolled is None:
        book(client, level)
    else:
        seal(client, DAY, level)
    if rolled:
        roll_up(client, DAY)
    for edited in (BRIEFLY, replace(UPTIME, meter="disk"), Meter(meter="disk", event_type="t", aggregation="sum")):
        for subjects in ((), ("tenant-zoë",)):
            if edited.aggregation == "sum" and not subjects:
                continue
            day = ask(client, edited, NOON - 3 * DAYS, NOON + HOUR, window="hour", subjects=subjects)
            assert values(day)[-1] == 40 * 3600
            for start in (NOON, NOON + 3 * MINUTE):
                assert values(ask(client, edited, start, start + HOUR, subjects=subjects)) == [40 * 3600]


def test_a_level_holds_for_each_tenant_as_it_was_booked(client: Client) -> None:
    """One was read last under definitions that believed for ever, another under those that believe for an hour."""
    book(
        client,
        reading(DISK, NOON - 2 * DAYS, 40, subject="early"),
        reading(BRIEFLY, NOON - 30 * MINUTE, 7, subject="late", definitions=2),
        reading(BRIEFLY, NOON - 2 * DAYS, 9, subject="gone", definitions=2),
    )
    for project in (BRIEFLY, DISK, replace(DISK, believed_for=3 * DAYS)):
        for others in ((), ("late",), ("gone",), ("gone", "late")):
            answer = ask(client, project, subjects=("early", *others), group_by=("subject",))
            assert of(answer, "early") == [40 * 3600], (project.believed_for, others)
            assert of(answer, "late") == [7 * 1800] * ("late" in others)
            assert not of(answer, "gone")


def test_a_level_in_one_zone_holds_whatever_was_read_in_another(client: Client) -> None:
    book(
        client,
        reading(DISK, NOON - 2 * DAYS, 40, dimensions={"az": "a"}),
        reading(BRIEFLY, NOON - 30 * MINUTE, 7, dimensions={"az": "b"}, definitions=2),
    )
    one: dict[str, Any] = {"subjects": ("tenant-zoë",), "group_by": ("az",)}
    project = replace(BRIEFLY, dimensions={"az": "az"})
    assert values(ask(client, project, **one)) == [40 * 3600, 7 * 1800]
    assert values(ask(client, project, where={"az": ("a",)}, **one)) == [40 * 3600]


@pytest.mark.parametrize("rolled", [False, True])
@pytest.mark.parametrize("became", ["sum", "lifecycle", "counter"])
def test_a_level_holds_whoever_is_read_as_what_the_meter_became(client: Client, became: str, rolled: bool) -> None:
    """A tenant or a zone of which nothing was read since then is the same by itself and beside others."""
    old = [reading(DISK, NOON - 2 * DAYS, 40, subject="early"), reading(DISK, NOON - DAYS, 9, dimensions={"az": "a"})]
    seal(client, DAY, *old)
    if rolled:
        roll_up(client, DAY)
    now = {"sum": Meter(meter="disk", event_type="t", aggregation="sum"), "lifecycle": replace(UPTIME, meter="disk"),
           "counter": replace(BYTES, meter="disk")}[became]  # fmt: skip
    later = [reading(now, NOON + minute * MINUTE, 1, dimensions={"az": "b"}, definitions=2) for minute in (3, 5)]
    book(client, *(replace(row, booking=DAY + 1, item=row.item if became != "sum" else "") for row in later))
    both: dict[str, Any] = {"subjects": ("early", "tenant-zoë"), "group_by": ("subject",)}
    assert of(ask(client, now, **both), "early") == [40 * 3600]
    assert of(ask(client, now, subjects=("early",), group_by=("subject",)), "early") == [40 * 3600]
    zones: dict[str, Any] = {"subjects": ("tenant-zoë",), "group_by": ("az",)}
    now = replace(now, dimensions={"az": "az"})
    alone = values(ask(client, now, where={"az": ("a",)}, **zones))
    assert alone == [row.value for row in ask(client, now, **zones).rows if row.groups["az"] == "a"] == [9 * 3600]


def test_where_nothing_was_ever_booked_a_level_that_is_defined_has_no_row(client: Client) -> None:
    for subjects in ((), ("tenant-zoë",)):
        assert values(ask(client, BRIEFLY, subjects=subjects)) == []
    counted = Meter(meter="n", event_type="t", aggregation="count")
    book(client, reading(replace(DISK, meter="n"), NOON - DAYS, 0))
    assert values(ask(client, counted)) == [0], "a count over nothing, whatever it was once booked as"


# The view of minutes, where late usage brought rows of other definitions into one.


@pytest.mark.parametrize(
    ("older", "newer"),
    pairs(
        ["sum", "count", "min", "max", "latest"],
        ["sum", "count", "avg", "min", "max", "latest", "sum_of_maxima"],
        every=2,
    ),
)
def test_the_view_of_minutes_shows_what_is_read_where_a_meter_became_another(
    client: Client, older: str, newer: str
) -> None:
    made = (("m", 5, "1/1"), ("n", -5, "3600/1"), ("o", 70, "1/1000"))
    for meter, value, factor in made:
        factor = "5/4" if newer in ("sum", "count", "avg") else factor  # the view has one conversion for a minute
        same = {"meter": meter, "minute": NOON, "scale": 2}
        book(
            client,
            Booked(**same, value=7, aggregation=older, count=2, latest_us=9, parameters='{"factor":"5/4"}'),
            Booked(**same, value=value, aggregation=newer, latest_us=8, definitions=2,
                   parameters=f'{{"factor":"{factor}"}}'),
        )  # fmt: skip
    seen = client.execute("SELECT meter, value, events FROM usage_minute ORDER BY meter")
    known, atto = read_known(client), Decimal("1e-18")
    for (meter, _, _), (name, value, events) in zip(made, seen, strict=True):
        query = UsageQuery(meter=meter, start=NOON, end=NOON + MINUTE)
        (row,) = read_rows(client, query, known)
        assert (name, value, events) == (meter, row.value.quantize(atto, ROUND_DOWN), row.events)


@pytest.mark.parametrize("newer", ["first", "unique_count", "percentile"])
@pytest.mark.parametrize("older", ["first", "unique_count", "percentile"])
def test_the_view_of_minutes_shows_only_the_items_of_what_a_meter_is_now(
    client: Client, older: str, newer: str
) -> None:
    same = {"meter": "m", "minute": NOON, "scale": 0, "latest_us": 5}
    items = {"first": '["5",null,null,"{}"]', "unique_count": "=x{}", "percentile": "10{}"}
    book(
        client,
        *(Booked(**same, aggregation=older, item=items[older].format(n), value=n) for n in range(9)),
        Booked(**same, aggregation=newer, item=items[newer].format(99), value=3, definitions=2, count=2,
               parameters='{"percentile":"50"}'),
    )  # fmt: skip
    (row,) = read_usage(client, UsageQuery(meter="m", start=NOON, end=NOON + MINUTE)).rows
    assert client.execute("SELECT value, events FROM usage_minute WHERE meter = 'm'") == [(row.value, row.events)]


# Names.


def test_a_name_that_is_no_utf8_is_refused_with_a_sentence(client: Client) -> None:
    """A shell hands on bytes as they are."""
    asked: dict[str, Any] = {"start": NOON, "end": NOON + HOUR}
    with pytest.raises(UsageQueryError, match=r"subject: expected a text in UTF-8, got '\\udcff'"):
        read_usage(client, UsageQuery(meter="m", subjects=("a", "\udcff"), **asked))
    with pytest.raises(UsageQueryError, match="meter: expected a text in UTF-8"):
        read_usage(client, UsageQuery(meter="m\udcff", **asked))
