"""`bucketed`: the maxima of buckets, priced through tiers, each group by itself or all together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from rules.plan import Tier
from rules.price import price_tiers
from tests.vectors.books import Books, Question
from tests.vectors.building import DEFAULTS, bucket_of, meter, moments_of, range_of, scale_of, wire
from tests.vectors.compare import Row, check_number, instant, number
from tests.vectors.model import Incomparable, Outgoing, Plan, Unknown, Vector
from tests.vectors.windows import WindowSize

_HOUR = timedelta(hours=1)


def plan(vector: Vector) -> Plan:
    """Send each bucket's values in an hour of its own, and price what `sum_of_maxima` answers."""
    path = next((name for name in ("max", "value") if vector.events and name in vector.events[0]), "max")
    names = sorted({name for event in vector.events for name in event} - {"bucket", "time", "id", path})
    times = _times(vector)
    sent = [
        wire(vector, id=f"e{n}", time=time, data={name: event[name] for name in (*names, path) if name in event})
        for n, (event, time) in enumerate(zip(vector.events, times, strict=True))
    ]
    query = vector.query
    size = bucket_of(query.get("bucketSize", query.get("bucket_size", query.get("bucket", "HOUR"))))
    definition = meter(vector, aggregation="sum_of_maxima", bucket=size, value=path, scale=scale_of(sent, path),
                       dimensions={name: name for name in names})  # fmt: skip
    start, end = range_of(query, moments_of(sent), WindowSize(size))
    question = Question(meter=definition.meter, start=start, end=end, group_by=names, size=WindowSize(size),
                        zone=str(query.get("windowTimeZone") or "UTC"))  # fmt: skip
    return Plan(
        meters=[definition],
        events=[Outgoing.of(each) for each in sent],
        check=lambda books: _check(books, vector, question),
    )


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


def _check(books: Books, vector: Vector, question: Question) -> str:
    tiers, rows, is_grouped = _tiers(vector), books.ask(question), bool(vector.query.get("grouped"))
    grouped = sum((price_tiers(row.value, tiers) for row in rows), Decimal(0))
    hours: dict[datetime, Decimal] = defaultdict(Decimal)
    for row in rows:
        hours[row.start] += row.value
    together = sum((price_tiers(value, tiers) for value in hours.values()), Decimal(0))
    answers: Mapping[str, Callable[[], Decimal]] = {
        "cost_grouped": lambda: grouped,
        "cost_ungrouped": lambda: together,
        "cost": lambda: grouped if is_grouped else together,
        "units": lambda: _units(books, question),
        "value": lambda: _units(books, question),
    }
    told = {name: answers[name]() for name in vector.expected if name in answers}
    for name, value in told.items():
        check_number(name, value, vector.expected[name])
    if not told:
        raise Incomparable(f"expected holds nothing to compare: {', '.join(vector.expected)}")
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _units(books: Books, question: Question) -> Decimal:
    rows: list[Row] = books.ask(replace(question, size=None))
    return sum((row.value for row in rows), Decimal(0))


def _tiers(vector: Vector) -> list[Tier]:
    """Return our tiers; one that says `above` only is the open one."""
    tiers: list[Mapping[str, Any]] = vector.query.get("tiers") or [{"unit": "1"}]
    made = []
    for tier in tiers:
        upper = tier.get("up_to")
        made.append(Tier(None if upper is None else number(upper), number(tier.get("unit", 0)),
                         number(tier.get("flat", 0))))  # fmt: skip
    return made
