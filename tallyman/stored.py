"""The SQL of reading usage: what `usage` holds of sealed bookings and `usage_hot` of later ones, never both.

Every statement gives rows of one shape (`StoredRow`). Sums are taken in 256 bits: a year of the largest quantities of
all tenants does not fit 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tallyman.meter import Aggregation
from tallyman.usage import UsageQuery

if TYPE_CHECKING:
    from clickhouse_driver import Client

# An hour in each of several years is an edge; the query carries them all.
SETTINGS = {"do_not_merge_across_partitions_select_final": 1, "max_query_size": 16_777_216}
Range = tuple[int, int]  # half-open, in seconds since 1970

_COLUMNS = "subject, dimensions, minute, definitions, aggregation, scale, parameters, count, sum"
_EXTREMES = "min, max, latest, latest_us, latest_by"  # half of a row's bytes, which most meters do not need
_NEWEST = "r.aggregation AS aggregation, r.scale AS scale, r.parameters AS parameters, max(r.definitions)"
_SUMS = "sum(r.count), sum(toInt256(r.sum))"
_NO_EXTREMES = "0, 0, 0, -1, ''"
_ORDER = "(r.latest_us, r.latest_by)"
_LATEST = f"argMax(r.latest, {_ORDER}), max(r.latest_us), hex(argMax(r.latest_by, {_ORDER}))"
_SERIES = "subject, dimensions, aggregation, scale, parameters"
_RESOURCE, _INCARNATION = "JSONExtractRaw(r.item, 2)", "JSONExtractRaw(r.item, 3)"
_TIME_US = "toInt64(JSONExtractString(r.item, 1))"


class StoredRow(NamedTuple):
    """What is stored under one key, as far as a question tells keys apart.

    Attributes:
        start_s: Where its minute or window begins, in seconds since 1970.
        definitions: The newest version that booked into it.
        latest_by: The identity in hexadecimal digits.
    """

    start_s: int
    subject: str
    dimensions: str
    item: str
    aggregation: str
    scale: int
    parameters: str
    definitions: int
    events: int
    sum: int
    min: int
    max: int
    latest: int
    latest_us: int
    latest_by: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a question's rows lie: in `usage` up to the booking `bound`, and hot above `sealed_to`."""

    client: Client
    query: UsageQuery
    sealed_to: int
    bound: int

    def rows(self, *statements: str, series: Sequence[tuple[str, str]] = ()) -> list[StoredRow]:
        """Read what some statements give, all of it in one reading."""
        parameters = {"meter": self.query.meter, "subjects": list(self.query.subjects), "series": tuple(series)}
        found = self.client.execute(" UNION ALL ".join(statements), parameters, settings=SETTINGS)
        return [StoredRow(*row) for row in found]

    def table(self, columns: str, span: Range, *, only: str = "") -> str:
        """Return the SQL of the meter's rows in a range of minutes; `only` is one more condition."""
        query, (first, last) = self.query, self._bookings(span)
        wanted = f"generation = 0 AND meter = %(meter)s AND minute >= {_instant(span[0])}"
        wanted += f" AND minute < {_instant(span[1])}"
        wanted += " AND subject IN %(subjects)s" if query.subjects else ""
        wanted += f" AND {only}" if only else ""
        parts = [f"SELECT {columns} FROM usage WHERE {wanted} AND booking >= {first} AND booking <= {last}"]  # noqa: S608
        if not query.sealed_only:
            hot = f"booking > {self.sealed_to}"
            hot += "" if query.up_to_booking is None else f" AND booking <= {query.up_to_booking}"
            parts.append(f"SELECT {columns} FROM usage_hot FINAL WHERE {wanted} AND {hot}")  # noqa: S608
        return f"({' UNION ALL '.join(parts)})"

    def _bookings(self, span: Range) -> Range:
        """Return the first and last sealed booking that may hold usage of a range; (0, 0) if none does."""
        rows = self.client.execute(
            "SELECT min(booking), max(booking) FROM seals WHERE rows > 0"  # noqa: S608
            f" AND last_minute >= {_instant(span[0])} AND first_minute < {_instant(span[1])}"
        )
        return int(rows[0][0]), min(int(rows[0][1]), self.bound)


def totals_sql(source: Source, span: Range, *, edges: Sequence[int] | None, by_dimension: bool, extremes: bool) -> str:
    """Return the SQL of totals by window; `edges` are where windows begin and end, None for minutes."""
    table = source.table(f"{_COLUMNS}, {_EXTREMES}" if extremes else _COLUMNS, span)
    figures = f"min(r.min), max(r.max), {_LATEST}" if extremes else _NO_EXTREMES
    return (
        f"SELECT {_keys(source, edges, by_dimension)}, '', {_NEWEST}, {_SUMS}, {figures}"  # noqa: S608
        f" FROM {table} AS r GROUP BY start_s, {_SERIES}"
    )


def values_sql(source: Source, span: Range, *, edges: Sequence[int] | None, by_dimension: bool) -> str:
    """Return the SQL of how often each value was there, by window."""
    return (
        f"SELECT {_keys(source, edges, by_dimension)}, r.item AS item, {_NEWEST}, {_SUMS}, {_NO_EXTREMES}"  # noqa: S608
        f" FROM {source.table(f'{_COLUMNS}, item', span)} AS r GROUP BY start_s, {_SERIES}, item"
    )


def distinct_sql(source: Source, span: Range, *, edges: Sequence[int] | None) -> str:
    """Return the SQL of how many values were there, as `sum`, by window and tenant; dimensions are not told apart."""
    newest = "argMax(r.parameters, r.definitions) AS parameters, max(r.definitions) AS definitions"
    values = (
        f"SELECT {_keys(source, edges, False)}, r.aggregation AS aggregation, r.item AS item, {newest},"  # noqa: S608
        f" sum(r.count) AS count FROM {source.table(f'{_COLUMNS}, item', span)} AS r"
        " GROUP BY start_s, subject, aggregation, item"
    )
    return (
        f"SELECT start_s, subject, '{{}}', '', aggregation, 0, {newest}, sum(r.count),"  # noqa: S608
        f" toInt256(countIf(r.count > 0)), {_NO_EXTREMES} FROM ({values}) AS r GROUP BY start_s, subject, aggregation"
    )


def first_sql(source: Source, span: Range, *, edges: Sequence[int] | None, by_dimension: bool) -> str:
    """Return the SQL of the earliest reading in each window; of several at one time the largest identity's."""
    moments = (
        f"SELECT {_keys(source, edges, by_dimension)}, r.item AS item, r.aggregation AS aggregation,"  # noqa: S608
        " r.scale AS scale, r.parameters AS parameters, max(r.definitions) AS definitions, sum(r.count) AS count,"
        f" {_told('latest')} AS latest, {_told('latest_us')} AS latest_us, {_told('latest_by')} AS latest_by"
        f" FROM {source.table(f'{_COLUMNS}, item, {_EXTREMES}', span)} AS r"
        f" GROUP BY start_s, {_SERIES}, item HAVING count > 0"
    )
    order = "(-r.latest_us, r.latest_by)"
    return (
        f"SELECT start_s, subject, dimensions, argMax(r.item, {order}), {_NEWEST}, sum(r.count), toInt256(0), 0, 0,"  # noqa: S608
        f" argMax(r.latest, {order}), min(r.latest_us), hex(argMax(r.latest_by, {order}))"
        f" FROM ({moments}) AS r GROUP BY start_s, {_SERIES}"
    )


def moments_sql(source: Source, span: Range) -> str:
    """Return the SQL of every moment in a range."""
    return (
        "SELECT toUInt32(min(r.minute)), r.subject AS subject, r.dimensions AS dimensions, r.item AS item,"  # noqa: S608
        f" {_NEWEST}, {_SUMS}, 0, maxIf(r.max, r.count > 0), {_told('latest')}, {_told('latest_us')},"
        f" hex({_told('latest_by')})"
        f" FROM {source.table(f'{_COLUMNS}, item, {_EXTREMES}', span)} AS r GROUP BY {_SERIES}, item"
    )


def last_moments_sql(source: Source, before_s: int, aggregation: Aggregation, *, across_dimensions: bool) -> str:
    """Return the SQL of the last moment of each resource before an instant.

    Args:
        across_dimensions: Whether a resource whose dimensions change is still the same one.
    """
    dimensions = f"argMax(r.dimensions, {_ORDER}) AS dimensions" if across_dimensions else "r.dimensions AS dimensions"
    return (
        f"SELECT toUInt32(max(r.minute)), r.subject AS subject, {dimensions}, argMax(r.item, {_ORDER}),"  # noqa: S608
        f" '{aggregation}', argMax(r.scale, {_ORDER}), argMax(r.parameters, {_ORDER}), max(r.definitions),"
        f" toInt64(1), toInt256(0), 0, 0, {_LATEST} FROM {_there(source, (0, before_s), aggregation)}"
        f" GROUP BY subject, {'' if across_dimensions else 'dimensions, '}{_RESOURCE}"
    )


def sums_before_sql(source: Source, before_s: int, aggregation: Aggregation) -> str:
    """Return the SQL of each series' sum before an instant, as a moment just before it."""
    item = f'["{before_s * 1_000_000 - 1}",null,null]'
    table = source.table(_COLUMNS, (0, before_s), only=f"aggregation = '{aggregation}'")
    return (
        f"SELECT toUInt32({before_s - 60}), r.subject AS subject, r.dimensions AS dimensions, '{item}', {_NEWEST},"  # noqa: S608
        f" toInt64(1), sum(toInt256(r.sum)), {_NO_EXTREMES} FROM {table} AS r GROUP BY {_SERIES}"
    )


def counters_before_sql(source: Source, before_s: int, aggregation: Aggregation) -> str:
    """Return the SQL of where each incarnation's counter stood before an instant, in the series that are asked for.

    That is the highest reading of an incarnation; of an unknown one, which may have begun anew, the last.
    """
    last = f"argMax(r.max, {_TIME_US})"
    return (
        f"SELECT toUInt32(max(r.minute)), r.subject AS subject, r.dimensions AS dimensions, argMax(r.item, {_TIME_US}),"  # noqa: S608
        f" r.aggregation AS aggregation, r.scale AS scale, argMax(r.parameters, r.definitions), max(r.definitions),"
        f" toInt64(1), toInt256(0), 0, if({_INCARNATION} = 'null', {last}, max(r.max)), 0, -1, ''"
        f" FROM {_there(source, (0, before_s), aggregation)} AND (r.subject, r.dimensions) IN %(series)s"
        f" GROUP BY subject, dimensions, aggregation, scale, {_RESOURCE}, {_INCARNATION}"
    )


def _keys(source: Source, edges: Sequence[int] | None, by_dimension: bool) -> str:
    """Return the columns of a window and series, as far as the question tells series apart."""
    minute = "toUInt32(r.minute)"
    start = minute if edges is None else f"roundDown({minute}, [{', '.join(map(str, edges))}])"
    subject = "r.subject" if "subject" in source.query.group_by else "''"
    dimensions = "r.dimensions" if by_dimension else "'{}'"
    return f"{start} AS start_s, {subject} AS subject, {dimensions} AS dimensions"


def _told(column: str) -> str:
    """Return the SQL of a column where the newest value stands; what takes a reading back tells none of its own."""
    return f"argMaxIf(r.{column}, {_ORDER}, r.count > 0)"


def _there(source: Source, span: Range, aggregation: Aggregation) -> str:
    """Return the SQL of moments as a table `r` with its condition: those whose events were not voided."""
    mine = f"aggregation = '{aggregation}'"
    voiding = source.table("item", span, only=f"{mine} AND count <= 0")
    doubtful = source.table("subject, dimensions, item, count", span, only=f"{mine} AND item IN {voiding}")
    gone = f"SELECT subject, dimensions, item FROM {doubtful} GROUP BY subject, dimensions, item HAVING sum(count) <= 0"  # noqa: S608
    table = source.table(f"{_COLUMNS}, item, {_EXTREMES}", span, only=f"{mine} AND count > 0")
    return f"{table} AS r WHERE (r.subject, r.dimensions, r.item) NOT IN ({gone})"


def _instant(second: int) -> str:
    return f"toDateTime({second}, 'UTC')"
