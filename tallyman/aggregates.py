"""The door through which everyone reads usage: exact figures per window and group, and how complete they are.

Progress is read first, then which bookings are sealed, then the data (sealed bookings from `usage`, later ones from
`usage_hot`), so that an answer never claims more than it holds and a row is never counted from both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from tallyman.completeness import Completeness, PartitionProgress, read_completeness
from tallyman.errors import UsageQueryError
from tallyman.files import nearest
from tallyman.meter import AGGREGATIONS, Aggregation, Meter, decode_dimensions
from tallyman.period import window_edges
from tallyman.usage import EMPTY, Totals, UsageAnswer, UsageQuery, UsageRow, merge, value_of

if TYPE_CHECKING:
    from clickhouse_driver import Client

__all__ = [
    "Completeness",
    "MeterSeen",
    "PartitionProgress",
    "read_completeness",
    "read_meters",
    "read_usage",
]

# An hour in each of several years is an edge; the query carries them all.
_SETTINGS = {"do_not_merge_across_partitions_select_final": 1, "max_query_size": 16_777_216}
_MINUTE = timedelta(minutes=1)
_COLUMNS = "subject, dimensions, minute, definitions, aggregation, scale, count, sum"
# Sums are taken in 256 bits: a year of the largest quantities of all tenants does not fit 128.
_TOTALS = "sum(u.count), sum(toInt256(u.sum)), max(u.definitions)"
# Half of a row's bytes, which most meters do not need.
_EXTREMES = "min, max, latest, latest_us, latest_by"
_EXTREME_TOTALS = (
    "min(u.min), max(u.max), argMax(u.latest, (u.latest_us, u.latest_by)), max(u.latest_us),"
    " hex(argMax(u.latest_by, (u.latest_us, u.latest_by)))"
)
_WITH_EXTREMES = ("min", "max", "latest")


@dataclass(frozen=True, slots=True)
class MeterSeen:
    """A meter that has usage."""

    meter: str
    aggregation: Aggregation
    events: int


@dataclass(frozen=True, slots=True)
class _Part:
    """Totals of one window and group that were booked under one aggregation and scale."""

    window: datetime
    groups: tuple[str | None, ...]
    aggregation: Aggregation
    scale: int
    definitions: int
    totals: Totals


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a question's rows lie: `bookings` of `usage` up to `bound`, and everything hot above `sealed_to`."""

    query: UsageQuery
    edges: Sequence[datetime]
    sealed_to: int
    bound: int
    bookings: tuple[int, int]


def read_usage(
    client: Client,
    query: UsageQuery,
    *,
    meters: Sequence[Meter] = (),
    expected_delay: timedelta = timedelta(seconds=10),
    partitions: int | None = None,
) -> UsageAnswer:
    """Answer a question about one meter, exactly.

    Windows are half-open and begin where the zone's local clock begins a new one. A window without usage has no row;
    an empty range has one 0 row for a `count` meter and none for others.

    Args:
        meters: The project's, for units and for meters that have no usage yet.
        expected_delay, partitions: See `read_completeness`.

    Raises:
        UsageQueryError: No such meter, dimension, zone or window; an empty or inverted range; a booking that is not
            sealed yet.
    """
    edges = _edges(query)
    completeness = read_completeness(client, expected_delay=expected_delay, partitions=partitions)
    sealed_to = _bound(query, completeness)
    defined = next((meter for meter in meters if meter.meter == query.meter), None)
    source = _Source(query, edges, completeness.sealed_to, sealed_to, _read_bookings(client, query))
    parts = _read_parts(client, source, defined)
    aggregation = max(parts, key=lambda part: part.definitions).aggregation if parts else None
    if aggregation is None:
        aggregation = defined.aggregation if defined else _seen_aggregation(client, query.meter, meters)
    rows = tuple(_rows(parts, edges, query, aggregation))
    if not rows and aggregation == "count":
        rows = (_zero(query),)
    return UsageAnswer(
        query=query,
        unit=defined.unit if defined else "",
        rows=rows,
        complete_to=completeness.complete_to,
        sealed_to=sealed_to,
    )


def read_meters(client: Client) -> tuple[MeterSeen, ...]:
    """Return the meters that have usage, by name."""
    rows = client.execute(
        "SELECT meter, argMax(b.aggregation, b.booking), sum(b.count) FROM usage_booked AS b"
        " GROUP BY meter ORDER BY meter",
        settings=_SETTINGS,
    )
    return tuple(MeterSeen(meter, _aggregation(aggregation), int(events)) for meter, aggregation, events in rows)


def _edges(query: UsageQuery) -> tuple[datetime, ...]:
    for name, moment in (("from", query.start), ("to", query.end)):
        if moment.tzinfo is None:
            raise UsageQueryError(f"{name}: expected an instant with a zone, got {moment.isoformat()}")
        if moment.astimezone(UTC).timestamp() % 60:
            raise UsageQueryError(
                f"{name}: expected a whole minute, which is how fine usage is kept, got {moment.isoformat()}"
            )
    edges = window_edges("total" if query.window == "minute" else query.window, query.start, query.end, query.zone)
    if query.window == "minute":  # minutes are what is stored: no edges needed
        return edges[:1]
    return edges


def _bound(query: UsageQuery, completeness: Completeness) -> int:
    """Return up to which booking the answer is sealed."""
    if query.up_to_booking is None:
        return completeness.sealed_to
    if query.sealed_only and query.up_to_booking > completeness.sealed_to:
        raise UsageQueryError(
            f"booking {query.up_to_booking}: expected a sealed one, got {completeness.sealed_to} as the newest; "
            "close the books (tallyman close) and wait until they are sealed"
        )
    return min(query.up_to_booking, completeness.sealed_to)


def _read_bookings(client: Client, query: UsageQuery) -> tuple[int, int]:
    """Return the first and last sealed booking that may hold usage of the range; (0, 0) if none does."""
    rows = client.execute(
        "SELECT min(booking), max(booking) FROM seals WHERE rows > 0"
        " AND last_minute >= toDateTime(%(start)s, 'UTC') AND first_minute < toDateTime(%(end)s, 'UTC')",
        {"start": int(query.start.timestamp()), "end": int(query.end.timestamp())},
    )
    return int(rows[0][0]), int(rows[0][1])


def _read_parts(client: Client, source: _Source, defined: Meter | None) -> list[_Part]:
    """Read totals from both tables, grouped as asked for; once more where they need columns that were left out."""
    extremes = defined is not None and defined.aggregation in _WITH_EXTREMES
    rows = client.execute(*_sql(source, extremes=extremes), settings=_SETTINGS)
    if not extremes and any(row[3] in _WITH_EXTREMES for row in rows):
        rows = client.execute(*_sql(source, extremes=True), settings=_SETTINGS)
    # Filters are applied to groups: ClickHouse would look into the JSON of every row.
    named = {text: decode_dimensions(text) for text in {row[2] for row in rows}}
    if defined is not None:
        _check_names(source.query, {*defined.dimensions, *(name for values in named.values() for name in values)})
    fitting = {text for text, values in named.items() if _fits(values, source.query.where)}
    return [_part(source.query, row, named[row[2]]) for row in rows if row[2] in fitting]


def _check_names(query: UsageQuery, known: set[str]) -> None:
    """Refuse a dimension that the meter has neither now nor in what is booked: its column would be empty, silently."""
    asked = [
        *(("by", name) for name in query.group_by if name != "subject"),
        *(("where", name) for name in query.where),
    ]
    for key, name in asked:
        if name not in known:
            choices = sorted(known | {"subject"} if key == "by" else known)
            raise UsageQueryError(f'{key}: expected a dimension of {query.meter}, got "{name}"{nearest(name, choices)}')


def _part(query: UsageQuery, row: Sequence[Any], values: Mapping[str, str | None]) -> _Part:
    second, subject, _, aggregation, scale, *figures = row
    return _Part(
        window=datetime.fromtimestamp(second, UTC),
        groups=tuple(subject if name == "subject" else values.get(name) for name in query.group_by),
        aggregation=_aggregation(aggregation),
        scale=scale,
        definitions=figures[2],
        totals=_totals(aggregation, figures),
    )


def _sql(source: _Source, *, extremes: bool) -> tuple[str, dict[str, Any]]:
    query = source.query
    by_dimension = query.where or [name for name in query.group_by if name != "subject"]
    window = "toUInt32(u.minute)" if query.window == "minute" else "roundDown(toUInt32(u.minute), %(edges)s)"
    keys = [
        f"{window} AS window",
        "u.subject AS subject" if "subject" in query.group_by else "'' AS subject",
        "u.dimensions AS dimensions" if by_dimension else "'{}' AS dimensions",
    ]
    parameters: dict[str, Any] = {
        "meter": query.meter,
        "start": int(query.start.timestamp()),
        "end": int(query.end.timestamp()),
        "edges": [int(edge.timestamp()) for edge in source.edges],
        "sealed_to": source.sealed_to,
        "first": source.bookings[0],
        "last": min(source.bookings[1], source.bound),
        "up_to": query.up_to_booking if query.up_to_booking is not None else 2**32 - 1,
        "subjects": list(query.subjects),
    }
    wanted = "generation = 0 AND meter = %(meter)s"
    wanted += " AND minute >= toDateTime(%(start)s, 'UTC') AND minute < toDateTime(%(end)s, 'UTC')"
    wanted += " AND subject IN %(subjects)s" if query.subjects else ""
    columns = f"{_COLUMNS}, {_EXTREMES}" if extremes else _COLUMNS
    totals = f"{_TOTALS}, {_EXTREME_TOTALS}" if extremes else _TOTALS
    parts = [f"SELECT {columns} FROM usage WHERE {wanted} AND booking >= %(first)s AND booking <= %(last)s"]  # noqa: S608
    if not query.sealed_only:
        hot = "booking > %(sealed_to)s AND booking <= %(up_to)s"
        parts.append(f"SELECT {columns} FROM usage_hot FINAL WHERE {wanted} AND {hot}")  # noqa: S608
    sql = (
        f"SELECT {', '.join(keys)}, u.aggregation AS aggregation, u.scale AS scale, {totals}"  # noqa: S608
        f" FROM ({' UNION ALL '.join(parts)}) AS u GROUP BY window, subject, dimensions, aggregation, scale"
    )
    return sql, parameters


def _fits(values: Mapping[str, str | None], where: Mapping[str, Sequence[str | None]]) -> bool:
    """Whether dimensions are asked for: null and absent are the same, "" is not."""
    return all(values.get(name) in wanted for name, wanted in where.items())


def _totals(aggregation: str, figures: Sequence[Any]) -> Totals:
    """Return what a row says; min, max and latest are filled only for the aggregations that need them."""
    count, total, _, *extremes = figures
    least, most, latest, latest_us, latest_by = extremes or (None, None, None, -1, "")
    return Totals(
        count=count,
        sum=total,
        min=least if aggregation == "min" else None,
        max=most if aggregation == "max" else None,
        latest=latest if aggregation == "latest" else None,
        latest_at=(latest_us, bytes.fromhex(latest_by)) if aggregation == "latest" else EMPTY.latest_at,
    )


def _rows(
    parts: Sequence[_Part], edges: Sequence[datetime], query: UsageQuery, aggregation: Aggregation
) -> Iterator[UsageRow]:
    """Add up what belongs together and turn it into exact decimals, in order of (start, groups)."""
    scale = max((part.scale for part in parts), default=0)
    merged: dict[tuple[datetime, tuple[str | None, ...]], Totals] = {}
    for part in parts:
        key = part.window, part.groups
        merged[key] = merge(merged.get(key, EMPTY), _rescaled(part.totals, 10 ** (scale - part.scale)))
    for (start, groups), totals in sorted(merged.items(), key=_order):
        value = value_of(totals, aggregation, scale)
        if value is not None:
            end = start + _MINUTE if query.window == "minute" else edges[bisect_right(edges, start)]
            named = dict(zip(query.group_by, groups, strict=True))
            yield UsageRow(start=start, end=end, groups=named, value=value, events=totals.count)


def _rescaled(totals: Totals, factor: int) -> Totals:
    if factor == 1:
        return totals

    def times(value: int | None) -> int | None:
        return None if value is None else value * factor

    least, most, latest = times(totals.min), times(totals.max), times(totals.latest)
    return Totals(totals.count, totals.sum * factor, least, most, latest, totals.latest_at)


def _order(item: tuple[tuple[datetime, tuple[str | None, ...]], Totals]) -> Any:
    (start, groups), _ = item
    return start, [(group is not None, group or "") for group in groups]


def _zero(query: UsageQuery) -> UsageRow:
    """Return the row of a count over nothing; a group is named where the question leaves only one."""
    asked: Mapping[str, Sequence[str | None]] = {**query.where, "subject": query.subjects}
    groups = {name: asked[name][0] if len(asked.get(name, ())) == 1 else None for name in query.group_by}
    start, end = query.start.astimezone(UTC), query.end.astimezone(UTC)
    return UsageRow(start=start, end=end, groups=groups, value=Decimal(0), events=0)


def _seen_aggregation(client: Client, name: str, meters: Sequence[Meter]) -> Aggregation:
    seen = {meter.meter: meter.aggregation for meter in read_meters(client)}
    if name in seen:
        return seen[name]
    known = sorted({*seen, *(meter.meter for meter in meters)})
    near = get_close_matches(name, known, n=1)
    listed = f"; known: {', '.join(known)}" if known and len(known) <= 20 else ""
    hint = f'; did you mean "{near[0]}"?' if near else listed
    raise UsageQueryError(f'meter: expected one that is defined or has usage, got "{name}"{hint}')


def _aggregation(text: str) -> Aggregation:
    for aggregation in AGGREGATIONS:
        if aggregation == text:
            return aggregation
    raise UsageQueryError(f'aggregation: expected one of {", ".join(AGGREGATIONS)}, got "{text}"; update Tallyman')
