"""However a range is asked for, an hour of it is the same: what is read in order of time, in random stories."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from clickhouse_driver import Client

from pipeline.rollup import roll_up
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.meter import Meter
from tests.integration.test_usage_carried import DAYS, HOUR, MINUTE, NOON, ask, reading
from tests.usage_rows import Booked, book, fresh_database, progress, seal

pytestmark = pytest.mark.integration
BOOKING = 20_731_000
_SHARED: dict[str, Any] = {"event_type": "t", "scale": 0, "dimensions": {"a": "a"}}
_STATE: dict[str, Any] = {"aggregation": "lifecycle", "resource": "r", "state": "s", "states": ("on",)}
METERS = [
    Meter(meter="plain", aggregation="counter", resource="r", **_SHARED),
    Meter(meter="boots", aggregation="counter", resource="r", incarnation="i", **_SHARED),
    Meter(meter="holes", aggregation="counter", resource="r", incarnation="i", believed_for=30 * HOUR, **_SHARED),
    Meter(meter="disk", aggregation="time_weighted", resource="r", **_SHARED),
    Meter(meter="disk5", aggregation="time_weighted", resource="r", believed_for=5 * HOUR + MINUTE / 9, **_SHARED),
    Meter(meter="seats", aggregation="time_weighted", level="delta", **_SHARED),
    Meter(meter="up", **_STATE, **_SHARED),
    Meter(meter="up9", believed_for=9 * HOUR, **_STATE, **_SHARED),
]


@pytest.fixture(scope="module")
def database(clickhouse_endpoint: ClickHouseEndpoint) -> Iterator[Client]:
    with fresh_database(clickhouse_endpoint) as client:
        yield client


class Story:
    """Readings of two resources of two tenants over six days; some are voided, counters begin anew and fall back."""

    def __init__(self, meter: Meter, rng: random.Random) -> None:
        self._meter, self._rng = meter, rng
        self._stood: dict[tuple[str, str], int] = {}
        self._boots: dict[tuple[str, str], int] = {}

    def rows(self) -> Iterator[Booked]:
        at, number = NOON - 6 * DAYS, 0
        while at < NOON:
            at += self._rng.choice([MINUTE * 7, HOUR, 3 * HOUR, 9 * HOUR]) + timedelta(seconds=self._rng.randrange(60))
            number += 1
            row = self._reading(at, number.to_bytes(2, "big"))
            yield row
            if self._rng.random() < 0.15:
                value = -int(row.value)
                yield replace(row, value=value, sum=value, count=-1, latest_us=-1, booking=BOOKING + 2)

    def _reading(self, at: Any, by: bytes) -> Booked:
        rng, meter = self._rng, self._meter
        resource, subject, dimension = rng.choice("xy"), rng.choice(["t1", "t2"]), rng.choice([None, "", "z"])
        incarnation = None
        if meter.aggregation == "counter":
            dimension = {"x": None, "y": "z"}[resource]
            value, incarnation = self._count((subject, resource))
        else:
            value = rng.randrange(2) if meter.aggregation == "lifecycle" else rng.randrange(-3, 9)
        named = None if meter.level == "delta" else resource
        return reading(
            meter, at, value, named, incarnation, subject=subject, dimensions={"a": dimension},
            booking=BOOKING + rng.randrange(3), latest_by=by,
        )  # fmt: skip

    def _count(self, whose: tuple[str, str]) -> tuple[int, str | None]:
        rng, meter = self._rng, self._meter
        if rng.random() < 0.15:
            self._boots[whose] = self._boots.get(whose, 0) + 1
            self._stood[whose] = 0
        steps = rng.randrange(-90, 20) if meter.incarnation and rng.random() < 0.1 else rng.randrange(20)
        value = self._stood[whose] = max(0, self._stood.get(whose, 100) + steps)
        return value, f"boot-{self._boots.get(whose, 0)}" if meter.incarnation else None


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.meter)
def test_an_hour_is_the_same_in_whichever_range_and_with_whomever_it_is_asked_for(
    database: Client, meter: Meter
) -> None:
    for table in ("usage", "usage_hot", "usage_rolled_up", "rolling_up", "rolled_up", "seals", "progress"):
        database.execute(f"TRUNCATE TABLE {table}")
    rng = random.Random(meter.meter)
    rows = list(Story(meter, rng).rows())
    for booking in (BOOKING, BOOKING + 1):
        seal(database, booking, *(row for row in rows if row.booking == booking))
    assert roll_up(database, BOOKING)
    book(database, *(row for row in rows if row.booking == BOOKING + 2))
    progress(database, 0, 0, 3, NOON + 10 * MINUTE)
    begin, end = NOON - 6 * DAYS, NOON + 2 * HOUR
    by = "a", "subject"
    whole = ask(database, meter, begin, end, window="hour", group_by=by).rows
    assert whole
    for _ in range(4):
        first, last = (begin + n * HOUR for n in sorted(rng.sample(range(146), 2)))
        part = ask(database, meter, first, last, window="hour", group_by=by).rows
        assert part == tuple(row for row in whole if first <= row.start < last)
        total = sum((row.value for row in ask(database, meter, first, last).rows), Decimal(0))
        assert total == sum((row.value for row in part), Decimal(0))
        one = ask(database, meter, first, last, window="hour", group_by=by, subjects=("t1",)).rows
        assert one == tuple(row for row in part if row.groups["subject"] == "t1")
