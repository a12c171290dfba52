"""Compare usage as it is booked with usage as it was counted again, in ClickHouse, key by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from clickhouse_driver import Client

from pipeline.catalog import EXTREMES_COUNT, LATEST_COUNTS
from pipeline.replay import Wanted
from tallyman.usage import scaled

KEYS = "meter, subject, dimensions, minute, booking, definitions, item"
_VALUES = "aggregation, scale, parameters, count, sum, min, max, latest, latest_us, latest_by"
_NAMES = tuple(_VALUES.split(", "))
_SETTINGS = {"max_bytes_before_external_group_by": 2 << 30, "do_not_merge_across_partitions_select_final": 1}


@dataclass(frozen=True, slots=True)
class Figures:
    """What a row of usage says."""

    aggregation: str
    scale: int
    parameters: str
    count: int
    sum: int
    min: int
    max: int
    latest: int
    latest_us: int
    latest_by: str

    @property
    def value(self) -> Decimal:
        """The one figure by which people know such a row, in the meter's scale."""
        figure = self.sum
        if self.aggregation in EXTREMES_COUNT:
            figure = self.min if self.aggregation == "min" else self.max
        elif self.aggregation in LATEST_COUNTS:
            figure = self.latest
        return scaled(figure, self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that one side has and the other has not, or has otherwise."""

    meter: str
    subject: str
    dimensions: str
    minute: datetime
    booking: int
    definitions: int
    item: str
    booked: Figures | None
    recounted: Figures | None

    @property
    def differs(self) -> tuple[str, ...]:
        """The names of what differs; nothing when a side has no such row."""
        if self.booked is None or self.recounted is None:
            return ()
        return tuple(name for name in _NAMES if getattr(self.booked, name) != getattr(self.recounted, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterCompared:
    """How the rows of one meter compare."""

    meter: str
    rows: int
    booked_events: int
    recounted_events: int
    different: int


@dataclass(frozen=True, slots=True)
class Sides:
    """What is compared: `booked` and `recounted` are queries for keys and values; only rows that meet `condition`."""

    booked: str
    recounted: str
    condition: str
    parameters: dict[str, Any]


def sides(
    name: str,
    sealed_to: int,
    wanted: Wanted,
    skip: Sequence[tuple[int, int]],
    first: int,
    later: Sequence[tuple[str, int, int]],
) -> Sides:
    """Return what an audit compares.

    Args:
        name: The job's tables; `<name>_hot` is a copy of the hot rows.
        skip: Ranges of bookings, both ends in it, that cannot be compared.
        first: The first booking.
        later: Chunks (topic id, partition, number) whose hot rows came too late to be counted again.
    """
    condition = "booking >= %(first)s AND minute >= toDateTime(%(from)s, 'UTC') AND minute < toDateTime(%(to)s, 'UTC')"
    if wanted.meters is not None:
        condition += " AND meter IN %(meters)s"
    for low, high in skip:
        condition += f" AND NOT (booking >= {int(low)} AND booking <= {int(high)})"
    columns = f"{KEYS}, {_VALUES}"
    booked = (
        f"SELECT {columns} FROM usage WHERE generation = 0 AND booking <= %(sealed_to)s AND {condition}"  # noqa: S608
        f" UNION ALL SELECT {columns} FROM {name}_hot FINAL WHERE {condition}"
        + (" AND (topic_id, partition, chunk) NOT IN %(later)s" if later else "")
    )
    recounted = f"SELECT {columns} FROM {name} FINAL WHERE {condition}"  # noqa: S608 - our own words
    parameters: dict[str, Any] = {
        "first": first,
        "from": wanted.first * 60,
        "to": min(wanted.end * 60, 2**32 - 1),
        "meters": sorted(wanted.meters or ("",)),
        "sealed_to": sealed_to,
        "later": list(later),
    }
    return Sides(booked, recounted, condition, parameters)


def rebuilt_sides(name: str, generation: int, definitions: int, last: int) -> Sides:
    """Return what proves a rebuild.

    Args:
        name: The table of a job that counted it again.
        definitions, last: By which definitions it counts, and up to which booking.
    """
    columns = f"{KEYS}, {_VALUES}"
    recounted = columns.replace("definitions", f"toUInt32({int(definitions)}) AS definitions")
    return Sides(
        booked=f"SELECT {columns} FROM usage_rebuilt FINAL WHERE generation = {int(generation)}",  # noqa: S608
        recounted=f"SELECT {recounted} FROM {name} FINAL WHERE booking <= {int(last)}",  # noqa: S608
        condition="",
        parameters={},
    )


def compare(client: Client, both: Sides, limit: int) -> tuple[tuple[MeterCompared, ...], tuple[Difference, ...]]:
    """Return each meter's rows and how many differ, and the first differences by (booking, minute)."""
    pairs = _pairs(both)
    meters = client.execute(
        "SELECT meter, count(), sum(booked.5), sum(recounted.5), countIf(booked != recounted)"  # noqa: S608
        f" FROM ({pairs}) GROUP BY meter ORDER BY meter",
        both.parameters,
        settings=_SETTINGS,
    )
    rows = client.execute(
        f"SELECT {KEYS}, booked, recounted FROM ({pairs}) WHERE booked != recounted"  # noqa: S608
        f" ORDER BY booking, minute, {KEYS} LIMIT {int(limit)}",
        both.parameters,
        settings=_SETTINGS,
    )
    return tuple(_meter(row) for row in meters), tuple(_difference(row) for row in rows)


def _pairs(both: Sides) -> str:
    """Return a query for each key and both sides' figures, as tuples that begin with how many rows there were."""

    def figures(side: int) -> str:
        return (
            f"tuple(toUInt8(countIf(side = {side}) > 0), anyIf(u.aggregation, side = {side}),"
            f" anyIf(u.scale, side = {side}), anyIf(u.parameters, side = {side}), sumIf(u.count, side = {side}),"
            f" sumIf(u.sum, side = {side}), minIf(u.min, side = {side}), maxIf(u.max, side = {side}),"
            f" argMaxIf(u.latest, (u.latest_us, u.latest_by), side = {side}), maxIf(u.latest_us, side = {side}),"
            f" hex(argMaxIf(u.latest_by, (u.latest_us, u.latest_by), side = {side})))"
        )

    return (
        f"SELECT {KEYS}, {figures(0)} AS booked, {figures(1)} AS recounted FROM"  # noqa: S608 - our own words
        f" (SELECT *, 0 AS side FROM ({both.booked}) UNION ALL SELECT *, 1 AS side FROM ({both.recounted})) AS u"
        f" GROUP BY {KEYS}"
    )


def _meter(row: Sequence[Any]) -> MeterCompared:
    meter, rows, booked, recounted, different = row
    return MeterCompared(
        meter=meter,
        rows=int(rows),
        booked_events=int(booked),
        recounted_events=int(recounted),
        different=int(different),
    )


def _difference(row: Sequence[Any]) -> Difference:
    meter, subject, dimensions, minute, booking, definitions, item, booked, recounted = row
    return Difference(
        meter=meter,
        subject=subject,
        dimensions=dimensions,
        minute=minute.replace(tzinfo=UTC),
        booking=booking,
        definitions=definitions,
        item=item,
        booked=_figures(booked),
        recounted=_figures(recounted),
    )


def _figures(values: Sequence[Any]) -> Figures | None:
    there, *rest = values
    return Figures(*rest) if there else None
