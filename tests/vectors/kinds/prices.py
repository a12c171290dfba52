"""`bucketed`: the maxima of buckets, priced through tiers, each group by itself or all together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from rules.plan import Tier
from rules.price import price_tiers
from tallyman.meter import Bucket
from tests.vectors.books import Books, Question
from tests.vectors.building import (
    DEFAULTS,
    aggregation,
    bucket_named,
    bucket_of,
    meter,
    moments_of,
    range_of,
    scale_of,
    wire,
    zone_of,
)
from tests.vectors.compare import Row, RowOptions, check_number, check_rows, groups_of, instant, number
from tests.vectors.kinds.meter import Going, forms_of, go, grouped_by, remarks_of, size_of
from tests.vectors.kinds.meter import check as check_meter
from tests.vectors.kinds.outcomes import check_outcomes, is_refusal
from tests.vectors.model import Incomparable, Outgoing, Plan, Unknown, Vector
from tests.vectors.windows import WindowSize

_HOUR = timedelta(hours=1)
_FIGURES = ("cost_grouped", "cost_ungrouped", "cost", "units", "value")


def plan(vector: Vector) -> Plan:
    """Send each bucket's values in an hour of its own, and price what `sum_of_maxima` answers."""
    if vector.events and isinstance(vector.events[0], Mapping) and "data" in vector.events[0]:
        return _plan_events(vector)
    path = next((name for name in ("max", "value") if vector.events and name in vector.events[0]), "max")
    names = sorted({name for event in vector.events for name in event} - {"bucket", "time", "id", path})
    times = _times(vector)
    sent = [
        wire(vector, id=f"e{n}", time=time, data={name: event[name] for name in (*names, path) if name in event})
        for n, (event, time) in enumerate(zip(vector.events, times, strict=True))
    ]
    query = vector.query
    size = _bucket(vector)
    how = aggregation(query.get("aggregation", "MAX"), query)["aggregation"]
    if how not in ("max", "sum_of_maxima", "sum"):
        raise Unknown(f'buckets of which the "{query["aggregation"]}" is taken')
    settings = {"aggregation": "sum"} if how == "sum" else {"aggregation": "sum_of_maxima", "bucket": size}
    definition = meter(vector, value=path, scale=scale_of(sent, path), dimensions={name: name for name in names},
                       **settings)  # fmt: skip
    start, end = range_of(query, moments_of(sent), WindowSize(size))
    question = Question(meter=definition.meter, start=start, end=end, group_by=names, size=WindowSize(size),
                        zone=zone_of(query))  # fmt: skip
    return Plan(
        meters=[definition],
        events=[Outgoing.of(each) for each in sent],
        check=lambda books: _check(books, vector, question, _rows_question(vector, question)),
    )


def _bucket(vector: Vector) -> Bucket:
    return bucket_of(bucket_named(vector.query) or "HOUR")


def _plan_events(vector: Vector) -> Plan:
    """Plan a case whose events are whole: a question to a meter, whose buckets may be priced, too."""
    name, size = vector.query.get("aggregation", "MAX"), _bucket(vector)
    going = go(vector, vector.events, name)
    if going.meter.aggregation not in ("max", "sum_of_maxima", "sum"):
        raise Unknown(f'buckets of which the "{name}" is taken')
    if going.meter.aggregation != "sum":
        going.meter = replace(going.meter, aggregation="sum_of_maxima", bucket=size)
    by_bucket = replace(going.question, size=WindowSize(size))
    return Plan(
        meters=[going.meter],
        events=going.events,
        forms=forms_of(going.events),
        remarks=remarks_of(vector, going),
        check=lambda books: _check_events(books, vector, going, by_bucket),
    )


def _check_events(books: Books, vector: Vector, going: Going, by_bucket: Question) -> str:
    expected, told = vector.expected, []
    if any(name in expected for name in _FIGURES):
        told.append(_check(books, vector, by_bucket))
    if is_refusal(expected) or {"rows", "values"} & set(expected):
        told.append(check_meter(books, vector, going, {}, ()))
    elif outcomes := check_outcomes(books, going.events, expected):
        told.append(outcomes)
    if not told:
        raise Incomparable(f"expected holds nothing to compare: {', '.join(expected) or 'nothing'}")
    return ", ".join(told)


def _rows_question(vector: Vector, question: Question) -> Question:
    """Return the question whose rows a case of values expects: by the groups that the query or the rows name."""
    rows = [row for row in vector.expected.get("rows", vector.expected.get("values")) or () if isinstance(row, Mapping)]
    named = grouped_by(vector.query) or tuple({name: None for row in rows for name in groups_of(row, frozenset())})
    return replace(question, group_by=named, size=size_of(vector.query))


def _times(vector: Vector) -> list[Any]:
    """Return when each event is: as it says, or in an hour that its bucket has for itself."""
    buckets = list(dict.fromkeys(str(event["bucket"]) for event in vector.events if "bucket" in event))
    if buckets and "bucketSize" in vector.query:
        raise Unknown("buckets that have names and a length")
    origin = instant(DEFAULTS["time"])
    return [
        (origin + buckets.index(str(event["bucket"])) * _HOUR).isoformat()
        if "bucket" in event
        else event.get("time", DEFAULTS["time"])
        for event in vector.events
    ]


def _check(books: Books, vector: Vector, question: Question, by_rows: Question | None = None) -> str:
    """Compare figures made of the buckets, and rows where the question that has them is given."""
    tiers, rows, is_grouped = _tiers(vector), books.ask(question), bool(vector.query.get("grouped"))
    hours: dict[datetime, Decimal] = defaultdict(Decimal)
    for row in rows:
        hours[row.start] += row.value

    def price(quantities: Iterable[Decimal]) -> Decimal:
        return sum((price_tiers(quantity, tiers) for quantity in quantities), Decimal(0))

    answers: Mapping[str, Callable[[], Decimal]] = {
        "cost_grouped": lambda: price(row.value for row in rows),
        "cost_ungrouped": lambda: price(hours.values()),
        "cost": lambda: price((row.value for row in rows) if is_grouped else hours.values()),
        "units": lambda: _units(books, question),
        "value": lambda: _units(books, question),
    }
    told = {name: answers[name]() for name in _FIGURES if name in vector.expected}
    for name, value in told.items():
        check_number(name, value, vector.expected[name], vector.tolerance)
    shown = [f"{name} {value}" for name, value in told.items()]
    wanted = vector.expected.get("rows", vector.expected.get("values"))
    if by_rows is not None and wanted is not None:
        found = books.ask(by_rows)
        check_rows(found, wanted, RowOptions(vector.tolerance, (by_rows.start, by_rows.end)))
        shown.append(f"{len(found)} rows")
    if not shown:
        raise Incomparable(f"expected holds nothing to compare: {', '.join(vector.expected)}")
    return ", ".join(shown)


def _units(books: Books, question: Question) -> Decimal:
    rows: list[Row] = books.ask(replace(question, size=None))
    return sum((row.value for row in rows), Decimal(0))


def _tiers(vector: Vector) -> list[Tier]:
    """Return our tiers; one that says `above` only is the open one."""
    tiers: list[Mapping[str, Any]] = vector.query.get("tiers") or [{"unit": "1"}]
    made = []
    for tier in tiers:
        upper = number(tier.get("up_to", tier.get("to")) or "Infinity")
        unit, flat = tier.get("unit", tier.get("unit_amount", 0)), tier.get("flat", tier.get("flat_amount", 0))
        made.append(Tier(upper if upper.is_finite() else None, number(unit), number(flat)))
    return made
