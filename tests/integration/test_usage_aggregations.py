"""Every aggregation on the real engine: windows, zones and groups give what a look at every single event gives."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from functools import reduce
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from clickhouse_driver import Client

from tallyman.aggregates import read_usage
from tallyman.aggregations import AGGREGATES, Cell, Span, Terms, Timeline, terms_of
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import BY_MOMENT, CORRECTABLE, Meter, decode_dimensions, encode_dimensions, parameters_of
from tallyman.period import window_edges
from tallyman.usage import EMPTY, Totals, UsageAnswer, UsageQuery, merge, scaled
from tests.unit.aggregations.made import Event, cell_of
from tests.usage_rows import Booked, book, fresh_database, seal

pytestmark = pytest.mark.integration
BERLIN = ZoneInfo("Europe/Berlin")
FIRST = datetime(2026, 10, 24, tzinfo=BERLIN)  # the day after has 25 hours
START, END = FIRST + timedelta(hours=30), datetime(2026, 10, 27, tzinfo=BERLIN)
WHO = {"dimensions": {"az": "az", "size": "size"}, "event_type": "t"}
METERS = {
    meter.meter: meter
    for meter in (
        *(Meter(meter=name, aggregation=name, **WHO)  # type: ignore[arg-type]
          for name in ("sum", "count", "avg", "min", "max", "latest", "first", "unique_count", "stddev")),
        Meter(meter="gib", aggregation="sum", multiply_by="1/1073741824", **WHO),
        *(Meter(meter=f"shifted.{name}", aggregation=name, multiply_by="2/3", add="-1/7", **WHO)  # type: ignore[arg-type]
          for name in ("sum", "avg", "max", "first", "sum_of_maxima")),
        Meter(meter="p95", aggregation="percentile", percentile="95", multiply_by="2/3", **WHO),
        *(Meter(meter=f"peaks.{bucket}", aggregation="sum_of_maxima", bucket=bucket, **WHO)  # type: ignore[arg-type]
          for bucket in ("minute", "hour", "day")),
        Meter(meter="disk", aggregation="time_weighted", resource="r", **WHO),
        Meter(meter="disk.believed", aggregation="time_weighted", believed_for=timedelta(hours=5, seconds=7), **WHO),
        Meter(meter="disk.average", aggregation="time_weighted", answer="average", resource="r", **WHO),
        Meter(meter="seats", aggregation="time_weighted", level="delta", multiply_by="1/3600", **WHO),
        Meter(meter="uptime", aggregation="lifecycle", resource="r", state="s", states=("on",), **WHO),
        Meter(meter="uptime.believed", aggregation="lifecycle", resource="r", state="s", states=("on",),
              believed_for=timedelta(hours=9), **WHO),
        Meter(meter="bytes", aggregation="counter", resource="r", incarnation="i", **WHO),
        Meter(meter="bytes.most", aggregation="counter", resource="r", incarnation="i", of="max", **WHO),
        Meter(meter="packets", aggregation="counter", resource="r", believed_for=timedelta(hours=3), **WHO),
    )
}  # fmt: skip
DAY = 20_753_000  # a booking that begins when all of it has happened: the bookings decide how far levels are carried
BOOKINGS = (DAY, DAY + 1, DAY + 2)  # the last is not sealed
NOT_BY_MINUTE = ("stddev", "time_weighted", "lifecycle", "counter")
ATTO = Decimal("1e-18")
POINT: Mapping[str, Callable[[Totals], Any]] = {
    "disk": lambda totals: scaled(totals.latest or 0, 4),
    "seats": lambda totals: scaled(totals.sum, 4),
    "uptime": lambda totals: Decimal(bool(totals.latest)),
    "bytes": lambda totals: scaled(totals.max or 0, 4),
}
Stored = tuple[int, int, Cell]  # booking, scale, what is stored


def make_events(meter: Meter, rng: random.Random) -> Iterator[Event]:
    """Yield events of two tenants from a day before the range to its end, some at one moment."""
    moments = [rng.randrange(int(FIRST.timestamp()), int(END.timestamp())) * 1_000_000 for _ in range(40)]
    moments += [int(edge.timestamp()) * 1_000_000 for edge in (START, START + timedelta(hours=1), FIRST)]
    for number in range(130):
        value = rng.choice((0, 1, 1)) if meter.aggregation == "lifecycle" else rng.randrange(-3, 40)
        yield Event(
            rng.randrange(2**100) << 8 | number,
            abs(value) if meter.aggregation == "counter" else value,
            rng.choice(moments) + rng.choice((0, 0, 1, 999_999)),
            subject=rng.choice(("tenant-zoë", "tenant-zoë", "Łukasz")),
            dimensions=encode_dimensions({"az": rng.choice(("nord", "", None)), "size": rng.choice(("s", "l"))}),
            resource=rng.choice(("vm-1", "vm-2", 'Zoës "vm"')) if meter.resource else None,
            incarnation=rng.choice(("boot-1", "boot-2", "boot-3")) if meter.incarnation else None,
        )


def make_stored(meter: Meter, rng: random.Random) -> list[Stored]:
    """Return what events leave behind, some of them voided later; one of the bookings was made with fewer digits."""
    stored: list[Stored] = []
    cells = [cell_of(event, meter.aggregation) for event in make_events(meter, rng)]
    alone = Counter((cell.subject, cell.dimensions, cell.item) for cell in cells)
    for cell in cells:
        booking = rng.choice(BOOKINGS)
        stored.append((booking, scale_of(booking), cell))
        # Of two readings at one moment, what is stored does not say which one was voided.
        clear = meter.aggregation not in BY_MOMENT or alone[cell.subject, cell.dimensions, cell.item] == 1
        if meter.aggregation in CORRECTABLE and clear and rng.random() < 0.15:
            read = cell.totals
            void = Totals(-1, -read.sum, -(read.min or 0), -(read.max or 0), -(read.latest or 0), read.latest_at)
            later = rng.choice(
                [other for other in BOOKINGS if other >= booking and scale_of(other) == scale_of(booking)]
            )
            stored.append((later, scale_of(booking), cell._replace(totals=void)))
    return stored


def scale_of(booking: int) -> int:
    return 2 if booking == DAY else 4


def write(client: Client, stored: Mapping[str, Sequence[Stored]], rng: random.Random) -> None:
    """Book what is stored in chunks of two partitions, seal two bookings, and leave a zombie below the seal."""
    rows: dict[int, list[Booked]] = defaultdict(list)
    for name, mine in stored.items():
        cells: dict[Any, Totals] = defaultdict(lambda: EMPTY)
        for booking, scale, cell in mine:
            chunk = rng.randrange(2) if booking == BOOKINGS[-1] else 0
            key = booking, scale, chunk, cell.subject, cell.dimensions, cell.start_s, cell.item
            cells[key] = merge(cells[key], cell.totals)
        for (booking, scale, chunk, *key), totals in cells.items():
            rows[booking].append(as_row(METERS[name], booking, scale, chunk, key, totals))
    for booking in BOOKINGS[:-1]:
        seal(client, booking, *rows[booking])
    book(client, *rows[BOOKINGS[-1]], *(replace(row, partition=7) for row in rows[DAY][:50]))


def as_row(meter: Meter, booking: int, scale: int, chunk: int, key: Sequence[Any], totals: Totals) -> Booked:
    subject, dimensions, start_s, item = key
    value = {"min": totals.min, "max": totals.max, "sum_of_maxima": totals.max, "counter": totals.max}
    shown = value.get(meter.aggregation, totals.latest) or 0
    return Booked(
        minute=datetime.fromtimestamp(start_s, UTC),
        meter=meter.meter, subject=subject, dimensions=decode_dimensions(dimensions), item=item,
        aggregation=meter.aggregation, parameters=parameters_of(meter), booking=booking, definitions=scale,
        chunk=chunk, scale=scale, count=totals.count, value=scaled(shown, scale), sum=scaled(totals.sum, scale),
        latest_us=max(0, totals.latest_at[0]), latest_by=totals.latest_at[1],
    )  # fmt: skip


def look_at_everything(
    query: UsageQuery, meter: Meter, stored: Sequence[Stored], keep: Callable[[str, Mapping[str, str | None]], bool]
) -> list[Any]:
    """Derive an answer window by window from all that was ever stored, without a database."""
    aggregate: Any = AGGREGATES[meter.aggregation]
    terms = terms_of(parameters_of(meter), 4)
    cells = [
        aggregate.rescaled(cell, 10 ** (4 - scale)) for booking, scale, cell in stored
        if query.up_to_booking is None or booking <= query.up_to_booking
        if not query.sealed_only or booking < BOOKINGS[-1]
    ]  # fmt: skip

    def group_of(place: Any) -> tuple[str | None, ...] | None:
        values = decode_dimensions(place.dimensions)
        if not keep(place.subject, values):
            return None
        return tuple(place.subject if name == "subject" else values[name] for name in query.group_by)

    known = aggregate.gather(cells) if isinstance(aggregate, Timeline) else cells
    found = []
    edges = [int(edge.timestamp()) for edge in window_edges(query.window, query.start, query.end, query.zone)]
    for start, end in pairwise(edges):
        for group, figure in figures(aggregate, known, window(start, end, query, terms), terms, group_of):
            proof = figure.proof and (figure.proof.resets, figure.proof.holes, figure.proof.decreases)
            found.append((start, end, group, figure.value, figure.events, proof))
    return sorted(found, key=lambda row: (row[0], [(name is not None, name or "") for name in row[2]]))


def figures(aggregate: Any, cells: Any, span: Span, terms: Terms, group_of: Any) -> Iterator[Any]:
    if isinstance(aggregate, Timeline):
        for (_, group), figure in aggregate.derive_each(cells, [span], terms, group_of).items():
            yield group, figure
        return
    groups: dict[Any, list[Cell]] = defaultdict(list)
    for cell in cells:
        group = group_of(cell)
        if span.start_us <= cell.start_s * 1_000_000 < span.end_us and group is not None:
            groups[group].append(cell)
    for group, mine in groups.items():
        figure = aggregate.derive(reduce(aggregate.add, mine, aggregate.empty()), span, terms)
        if figure is not None:
            yield group, figure


def window(start: int, end: int, query: UsageQuery, terms: Terms) -> Span:
    first, last = (datetime.fromtimestamp(second, UTC) for second in (start, end))
    buckets = window_edges(terms.bucket, first, last, query.zone)[:-1]
    return Span(start * 10**6, end * 10**6, tuple(int(edge.timestamp()) for edge in buckets))


@pytest.fixture(scope="module")
def booked(clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[tuple[Client, Mapping[str, Sequence[Stored]]]]:
    rng = random.Random("tallyman")
    stored = {name: make_stored(meter, rng) for name, meter in METERS.items()}
    with fresh_database(clickhouse_endpoint) as client:
        write(client, stored, rng)
        yield client, stored


def shown(answer: UsageAnswer) -> list[Any]:
    return [
        (
            int(row.start.timestamp()), int(row.end.timestamp()), tuple(row.groups.values()), row.value, row.events,
            None if row.resets is None else (row.resets, row.holes, row.decreases),
        )
        for row in answer.rows
    ]  # fmt: skip


QUESTIONS: Mapping[str, tuple[dict[str, Any], Callable[[str, Mapping[str, str | None]], bool]]] = {
    "in all, as of the first booking": ({"up_to_booking": DAY, "group_by": ()}, lambda who, named: True),
    "by day of Berlin and tenant, as invoices ask": (
        {"window": "day", "zone": "Europe/Berlin", "group_by": ("subject",), "sealed_only": True,
         "up_to_booking": DAY + 1},
        lambda who, named: True,
    ),
    "by hour of Kolkata and zone, of one tenant": (
        {"window": "hour", "zone": "Asia/Kolkata", "group_by": ("az",), "subjects": ("tenant-zoë",)},
        lambda who, named: who == "tenant-zoë",
    ),
    "only a missing zone or one up north, but no large ones there": (
        {"window": "day", "group_by": ("az", "subject"), "where": {"az": (None, "nord")},
         "exclude": ({"az": ("nord",), "size": ("l", "xl")},)},
        lambda who, named: named["az"] in (None, "nord") and not (named["az"] == "nord" and named["size"] == "l"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", METERS)
def test_what_is_read_is_what_a_look_at_every_event_gives(
    booked: tuple[Client, Mapping[str, Sequence[Stored]]], name: str, question: str
) -> None:
    client, stored = booked
    options, keep = QUESTIONS[question]
    query = UsageQuery(**{"meter": name, "start": START, "end": END, "group_by": ("subject",), **options})
    answer = read_usage(client, query, meters=tuple(METERS.values()))
    expected = look_at_everything(query, METERS[name], stored[name], keep)
    assert shown(answer) == expected
    assert expected


@pytest.mark.parametrize("name", METERS)
def test_minutes_of_an_hour_and_a_meter_that_the_project_does_not_know(
    booked: tuple[Client, Mapping[str, Sequence[Stored]]], name: str
) -> None:
    """What was booked says which aggregation it is, and by which parameters its answers are derived."""
    client, stored = booked
    query = UsageQuery(
        meter=name, start=START, end=START + timedelta(hours=2), window="minute", group_by=("subject", "size")
    )
    expected = look_at_everything(query, METERS[name], stored[name], lambda who, named: True)
    assert shown(read_usage(client, query)) == expected


def test_the_view_of_minutes_shows_what_is_read_by_minute(
    booked: tuple[Client, Mapping[str, Sequence[Stored]]],
) -> None:
    """Exactly, up to the 18 digits behind the point that the view has."""
    client, _ = booked
    found = client.execute(
        "SELECT meter, toUInt32(minute), subject, dimensions, value, events FROM usage_minute"
        f" WHERE minute >= toDateTime({int(START.timestamp())}) AND minute < toDateTime({int(END.timestamp())})"
    )
    shown_by_view: dict[str, dict[Any, Any]] = defaultdict(dict)
    for meter, minute, subject, dimensions, value, events in found:
        named = decode_dimensions(dimensions)
        shown_by_view[meter][minute, (subject, named["az"], named["size"])] = value, events
    left_out = {name for name, meter in METERS.items() if meter.aggregation in NOT_BY_MINUTE}
    assert set(shown_by_view) == set(METERS) - left_out
    for name, mine in shown_by_view.items():
        query = UsageQuery(meter=name, start=START, end=END, window="minute", group_by=("subject", "az", "size"))
        read = {
            (int(row.start.timestamp()), tuple(row.groups.values())): (row.value.quantize(ATTO, ROUND_DOWN), row.events)
            for row in read_usage(client, query, meters=tuple(METERS.values())).rows
        }
        assert mine.keys() == read.keys()
        for key, (value, events) in mine.items():
            assert events == read[key][1]
            cut_twice = name == "p95" or METERS[name].add != "0"
            assert abs(value - read[key][0]) <= (ATTO if cut_twice else 0), (name, key)


def test_the_view_of_points_shows_every_reading_that_was_not_voided(
    booked: tuple[Client, Mapping[str, Sequence[Stored]]],
) -> None:
    client, stored = booked
    for name in ("disk", "seats", "uptime", "bytes"):
        aggregate: Any = AGGREGATES[METERS[name].aggregation]
        state = aggregate.gather(aggregate.rescaled(cell, 10 ** (4 - scale)) for _, scale, cell in stored[name])
        expected = sorted(
            (moment.subject, moment.dimensions, moment.time_us, moment.resource or "", moment.incarnation or "",
             POINT[name](totals), totals.count)
            for moment, totals in state.items() if totals.count > 0
        )  # fmt: skip
        found = client.execute(
            "SELECT subject, dimensions, toUnixTimestamp64Micro(time), ifNull(resource, ''), ifNull(incarnation, ''),"
            " value, events FROM usage_points WHERE meter = %(meter)s ORDER BY ALL",
            {"meter": name},
        )
        assert sorted(found) == expected


def test_a_percentile_that_nobody_else_can_read_breaks_no_view(client: Client) -> None:
    """As definitions may have it that were put in force before such files were refused: answers read it as ever."""
    texts = {"plain": "50", "space": "50 ", "under": "5_0", "twice": "5__0\n", "script": "٥٠"}
    meters = [Meter(meter=name, event_type="t", aggregation="percentile", percentile=texts[name]) for name in texts]
    book(
        client,
        *(Booked(meter=meter.meter, aggregation="percentile", item=str(n * 10**9), parameters=parameters_of(meter),
                 minute=START) for n in (1, 2) for meter in meters),
        Booked(meter="other", minute=START, value=7),
    )  # fmt: skip
    half = dict.fromkeys(texts, Decimal("1.5"))
    query = UsageQuery(meter="", start=START, end=START + timedelta(hours=1))
    assert {name: read_usage(client, replace(query, meter=name)).rows[0].value for name in texts} == half
    del half["script"]
    assert dict(client.execute("SELECT meter, value FROM usage_minute")) == half | {"other": 7}
