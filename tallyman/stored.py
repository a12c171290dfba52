"""The SQL of reading usage: what `usage` holds of sealed bookings and `usage_hot` of later ones, never both, and
`usage_rebuilt` instead of what a generation in force covers.

Sums are taken in 256 bits: a year of the largest quantities of all tenants does not fit 128. Rows are told apart by the
version of the definitions that booked them: it decides aggregation, scale and parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tallyman.blocks import BLOCKS_S, tiled, tiles_sql
from tallyman.meter import Aggregation
from tallyman.rebuilds import Range, Switches, in_force_sql
from tallyman.sealed import Months, about
from tallyman.usage import UsageQuery

if TYPE_CHECKING:
    from clickhouse_driver import Client

_MEASURED = "minute, definitions, aggregation, scale, parameters, count, sum"
_COLUMNS = f"subject, dimensions, {_MEASURED}"
_EXTREMES = "min, max, latest, latest_us, latest_by"  # half of a row's bytes, which most meters do not need
_MADE = "any(r.aggregation), any(r.scale), any(r.parameters), r.definitions AS definitions"
_NO_EXTREMES = "0, 0, 0, -1, ''"
_ORDER = "(r.latest_us, r.latest_by)"
_RESOURCE, _INCARNATION = "JSONExtractRaw(r.item, 2)", "JSONExtractRaw(r.item, 3)"
_TIME_US = "toInt64(JSONExtractString(r.item, 1))"


class TotalsRow(NamedTuple):
    """Totals of a series, as far as a question tells series apart, in one window.

    Attributes:
        start_s: Where the window begins, in seconds since 1970.
        latest_by: The identity in hexadecimal digits.
    """

    aggregation: str
    scale: int
    parameters: str
    definitions: int
    start_s: int
    subject: str
    dimensions: str
    item: str
    events: int
    sum: int
    min: int
    max: int
    latest: int
    latest_us: int
    latest_by: str


class ValuesRow(NamedTuple):
    """How often each value was there in one window: `events[i]` times the item `items[i]`."""

    aggregation: str
    scale: int
    parameters: str
    definitions: int
    start_s: int
    subject: str
    dimensions: str
    items: Sequence[str]
    events: Sequence[int]


class MomentsRow(NamedTuple):
    """Readings of one series, in no order, under their items.

    Attributes:
        values: Where a counter stood, what a level changed by, or what a level or state was.
        by: Identities in hexadecimal digits, where they order readings.
    """

    aggregation: str
    scale: int
    parameters: str
    definitions: int
    subject: str
    dimensions: str
    items: Sequence[str]
    events: Sequence[int]
    values: Sequence[int]
    by: Sequence[str]


class PeakRow(NamedTuple):
    """How high a counter stood at most; resource and incarnation are both "" where blocks did not tell them apart."""

    subject: str
    dimensions: str
    resource: str
    incarnation: str
    scale: int
    value: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where a question's rows lie: in `usage` up to the booking `bound`, and hot above `sealed_to`.

    Attributes:
        switches: The generations in force, the newest last, read before `sealed_to` was.
        months: Which bookings are sealed; all of those up to `bound`.
    """

    client: Client
    query: UsageQuery
    sealed_to: int
    bound: int
    months: Months
    switches: Switches = ()

    def read(self, *statements: str, series: Sequence[tuple[str, str]] = ()) -> list[Any]:
        """Read what some statements give, all of it in one reading.

        Args:
            series: The rows of the table `asked_series`. It goes along as columns: as a list in the statement each
                would take longer to parse than to find.
        """
        parameters = {"meter": self.query.meter, "subjects": list(self.query.subjects)}
        beside = [
            {
                "name": "asked_series",
                "structure": [("subject", "String"), ("dimensions", "String")],
                "data": [{"subject": subject, "dimensions": dimensions} for subject, dimensions in series],
            }
        ]
        rows: list[Any] = self.client.execute(
            " UNION ALL ".join(statements), parameters, external_tables=beside if series else None
        )
        return rows

    def table(self, columns: str, span: Range, *, only: str = "", edges: Sequence[int] = ()) -> str:
        """Return the SQL of the meter's rows in a range of minutes.

        Args:
            only: One more condition.
            edges: Where windows begin and end, as `tiled` gives them. Nothing finer need be told apart, so that
                sealed usage between the outermost may come from the far fewer rows of `usage_rolled_up`.
        """
        query = self.query
        switches = tuple(each for each in self.switches if each.about(query.meter, span))
        counts = in_force_sql(switches)
        asked = "meter = %(meter)s"
        asked += " AND subject IN %(subjects)s" if query.subjects else ""
        asked += f" AND {only}" if only else ""
        wanted = f"generation = {counts} AND {asked} AND {_within(span)}"
        parts = list(self._sealed(columns, asked, switches, span, edges))
        if switches:
            numbers = _listed([each.generation for each in switches])
            parts.append(
                f"SELECT {columns} FROM usage_rebuilt FINAL WHERE generation IN ({numbers}) AND {wanted}"  # noqa: S608
                f" AND booking <= {self.bound}"
            )
        if not query.sealed_only:
            hot = f"booking > {self.sealed_to}"
            hot += "" if query.up_to_booking is None else f" AND booking <= {query.up_to_booking}"
            parts.append(f"SELECT {columns} FROM usage_hot FINAL WHERE {wanted} AND {hot}")  # noqa: S608
        return f"({' UNION ALL '.join(parts)})"

    def _sealed(
        self, columns: str, asked: str, switches: Switches, span: Range, edges: Sequence[int]
    ) -> Iterator[str]:
        """Yield the SQL of what is sealed: of blocks between the outermost edges, and of minutes beside them."""
        if not edges:
            yield self._minutes(columns, asked, switches, span)
            return
        inside = edges[0], edges[-1]
        yield from self._blocks(columns, asked, switches, inside, edges)
        for rest in ((span[0], inside[0]), (inside[1], span[1])):
            if rest[0] < rest[1] and about(self.months, rest):
                yield self._minutes(columns, asked, switches, rest)

    def _minutes(self, columns: str, asked: str, switches: Switches, span: Range) -> str:
        first, last = self._bookings(span)
        return (
            f"SELECT {columns} FROM usage WHERE generation = {in_force_sql(switches)}"  # noqa: S608
            f" AND {asked} AND {_within(span)} AND {_booked(first, last)}"
        )

    def _blocks(
        self, columns: str, asked: str, switches: Switches, span: Range, edges: Sequence[int]
    ) -> Iterator[str]:
        first, last = self._bookings(span)
        attempts = self._attempts(first, last) if any(month.others for month in about(self.months, span)) else ()
        counts = in_force_sql(switches)
        only = f" AND {counts} = 0" if switches else ""  # there are blocks of generation 0 alone
        # A rebuild's edges cut blocks, too: each is covered as a whole or not at all.
        cuts = (edge for each in switches for edge in each.span if span[0] < edge < span[1])
        yield (
            f"(WITH start AS minute SELECT {columns} FROM usage_rolled_up"  # noqa: S608
            # In one step: no condition alone rules out a whole granule, and six steps take a tenth longer.
            f" PREWHERE {tiles_sql({*edges, *cuts})} AND {asked} AND {_within(span)} AND {_booked(first, last)}{only}"
            f" AND {_attempts_sql(attempts)} SETTINGS enable_multiple_prewhere_read_steps = 0)"
        )
        others = [booking for booking, attempt in attempts if not attempt]
        if others:
            yield self._minutes(columns, f"{asked} AND booking IN ({_listed(others)})", switches, span)

    def _bookings(self, span: Range) -> tuple[int, int]:
        """Return the first and the last booking that a range's sealed usage may lie in; none if they are reversed."""
        months = about(self.months, span)
        first = min((month.first for month in months), default=1)
        return first, min(max((month.last for month in months), default=0), self.bound)

    def there(self, span: Range, aggregation: Aggregation) -> str:
        """Return the SQL of readings as a table `r` with its condition: those whose events were not voided."""
        mine = f"aggregation = '{aggregation}'"
        voiding = self.table("item", span, only=f"{mine} AND count <= 0")
        doubtful = self.table("subject, dimensions, item, count", span, only=f"{mine} AND item IN {voiding}")
        gone = f"SELECT subject, dimensions, item FROM {doubtful} GROUP BY ALL HAVING sum(count) <= 0"  # noqa: S608
        table = self.table(f"{_COLUMNS}, item, {_EXTREMES}", span, only=f"{mine} AND count > 0")
        return f"{table} AS r WHERE (r.subject, r.dimensions, r.item) NOT IN ({gone})"

    def _attempts(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the sealed bookings of which the first attempt has not come to blocks, with the one that has, or 0.

        Read before blocks are: all rows of an attempt that is found are there then, and more of them never come.
        """
        rows = self.client.execute(
            "SELECT booking, minIf(attempt, attempt > 0) AS found FROM"
            " (SELECT booking, 0 AS attempt FROM seals WHERE rows > 0 AND booking >= %(first)s AND booking <= %(last)s"
            " UNION ALL SELECT booking, attempt FROM rolled_up WHERE booking >= %(first)s AND booking <= %(last)s)"
            " GROUP BY booking HAVING found != 1 ORDER BY booking",
            {"first": first, "last": last},
        )
        return [(int(booking), int(attempt)) for booking, attempt in rows]


@dataclass(frozen=True, slots=True)
class Windowed:
    """How a question tells rows apart.

    Attributes:
        edges: Where windows begin and end, in seconds since 1970; None for minutes.
    """

    source: Source
    span: Range
    edges: Sequence[int] | None
    by_dimension: bool

    def table(self, columns: str) -> str:
        """Return the SQL of the rows that are asked for."""
        edges = () if self.edges is None else tiled((*self.edges, *self.span))
        return self.source.table(columns, self.span, edges=edges)

    def columns(self) -> str:
        """Return the SQL of a row's window and series."""
        minute = "toUInt32(r.minute)"
        start = minute if self.edges is None else _start_sql(minute, self.edges)
        only = "%(subjects)s[1]" if len(self.source.query.subjects) == 1 else "''"
        subject = "r.subject" if self._by_subject else only
        dimensions = "r.dimensions" if self.by_dimension else "'{}'"
        return f"{start} AS start_s, {subject} AS subject, {dimensions} AS dimensions"

    def needed(self) -> str:
        """Return the columns of the table that those are made of; each one that is read takes a twentieth longer."""
        series = ("subject, " if self._by_subject else "") + ("dimensions, " if self.by_dimension else "")
        return f"{series}{_MEASURED}"

    def keys(self) -> str:
        """Return the SQL of what rows are grouped by; what is constant costs time and tells nothing."""
        subject, dimensions = (", subject" if self._by_subject else ""), (", dimensions" if self.by_dimension else "")
        return f"start_s{subject}{dimensions}, definitions"

    @property
    def _by_subject(self) -> bool:
        """Whether subjects are told apart; the only one that is asked for need not be."""
        return "subject" in self.source.query.group_by and len(self.source.query.subjects) != 1


def _start_sql(minute: str, edges: Sequence[int]) -> str:
    """Return the SQL of where the window begins that a minute lies in: counted, where all windows are as long.

    >>> _start_sql("m", [3_600, 7_200, 10_800]), _start_sql("m", [0, 3_600, 90_000])
    ('toUInt32(3600 + intDiv(m - 3600, 3600) * 3600)', "roundDown(m, CAST('[0,3600,90000]' AS Array(UInt32)))")
    """
    first, length = edges[0], edges[1] - edges[0]
    if all(end - start == length for start, end in pairwise(edges)):
        return f"toUInt32({first} + intDiv({minute} - {first}, {length}) * {length})"
    # As a text: the parser takes longer for hundreds of literals.
    return f"roundDown({minute}, CAST('[{','.join(map(str, edges))}]' AS Array(UInt32)))"


def read_totals(asked: Windowed, *, extremes: bool) -> list[TotalsRow]:
    """Read totals by window."""
    table = asked.table(f"{asked.needed()}, {_EXTREMES}" if extremes else asked.needed())
    latest = f"argMax(r.latest, {_ORDER}), max(r.latest_us), hex(argMax(r.latest_by, {_ORDER}))"
    rows = asked.source.read(
        f"SELECT {_MADE}, {asked.columns()}, '', sum(r.count), sum(toInt256(r.sum)),"  # noqa: S608
        f" {f'min(r.min), max(r.max), {latest}' if extremes else _NO_EXTREMES}"
        f" FROM {table} AS r GROUP BY {asked.keys()}"
    )
    return [TotalsRow(*row) for row in rows]


def read_first(asked: Windowed) -> list[TotalsRow]:
    """Read the earliest reading of each window; of several at one time the largest identity's."""
    order = "(-r.latest_us, r.latest_by)"
    rows = asked.source.read(
        f"SELECT {_MADE}, {asked.columns()}, argMax(r.item, {order}), sum(r.count), toInt256(0), 0, 0,"  # noqa: S608
        f" argMax(r.latest, {order}), min(r.latest_us), hex(argMax(r.latest_by, {order}))"
        f" FROM {asked.source.there(asked.span, 'first')} GROUP BY {asked.keys()}"
    )
    return [TotalsRow(*row) for row in rows]


def read_values(asked: Windowed) -> list[ValuesRow]:
    """Read how often each value was there, by window."""
    values = (
        f"SELECT any(r.aggregation) AS aggregation, any(r.scale) AS scale, any(r.parameters) AS parameters,"  # noqa: S608
        f" r.definitions AS definitions, {asked.columns()}, r.item AS item, sum(r.count) AS count"
        f" FROM {asked.table(f'{asked.needed()}, item')} AS r GROUP BY {asked.keys()}, item"
    )
    rows = asked.source.read(
        f"SELECT {_MADE}, start_s, subject, dimensions, groupArray(r.item), groupArray(r.count)"  # noqa: S608
        f" FROM ({values}) AS r GROUP BY start_s, subject, dimensions, definitions"
    )
    return [ValuesRow(*row) for row in rows]


def read_distinct(asked: Windowed) -> list[TotalsRow]:
    """Read how many values there were, as `sum`, by window and tenant; dimensions are not told apart."""
    newest = (
        "r.aggregation AS aggregation, 0 AS scale, argMax(r.parameters, r.definitions) AS parameters,"
        " max(r.definitions) AS definitions"
    )
    values = (
        f"SELECT {newest}, {asked.columns()}, r.item AS item, sum(r.count) AS count"  # noqa: S608
        f" FROM {asked.table(f'{asked.needed()}, item')} AS r GROUP BY start_s, subject, aggregation, item"
    )
    rows = asked.source.read(
        f"SELECT {newest}, start_s, subject, '{{}}', '', sum(r.count), countIf(r.count > 0), {_NO_EXTREMES}"  # noqa: S608
        f" FROM ({values}) AS r GROUP BY start_s, subject, aggregation"
    )
    return [TotalsRow(*row) for row in rows]


def read_made(source: Source, before_s: int, aggregations: Sequence[Aggregation]) -> list[tuple[str, str]]:
    """Read as which of some aggregations, by which parameters, rows before an instant were booked, the newest last.

    Of all the past, so from its largest blocks; what lies behind the last of them is read by minute.
    """
    quarters = before_s - before_s % BLOCKS_S[-1]
    named = "', '".join(aggregations)
    only = f"aggregation IN ('{named}')"
    columns = "aggregation, parameters, definitions"
    begin = min((month.first_s for month in source.months), default=quarters)
    edges = begin - begin % BLOCKS_S[0], quarters
    tables = [source.table(columns, (0, quarters), only=only, edges=edges if edges[0] < edges[1] else ())]
    if quarters < before_s:
        tables.append(source.table(columns, (quarters, before_s), only=only))
    rows = source.read(
        f"SELECT aggregation, parameters FROM ({' UNION ALL '.join(tables)})"  # noqa: S608
        " GROUP BY aggregation, parameters ORDER BY max(definitions)"
    )
    return [(str(aggregation), str(parameters)) for aggregation, parameters in rows]


def moments_sql(source: Source, span: Range, aggregation: Aggregation, value: str) -> str:
    """Return the SQL of every reading in a range; those of a moment may lie in several bookings and are not merged.

    Args:
        value: The column that holds what was read: "max", "sum" or "latest".
    """
    mine = f"r.aggregation = '{aggregation}'"  # what another aggregation booked is only named
    by = "hex(r.latest_by)" if value == "latest" else "''"
    table = source.table(f"{_COLUMNS}, item, {_EXTREMES}", span)
    return (
        f"SELECT {_MADE}, r.subject AS subject, r.dimensions AS dimensions, groupArrayIf(r.item, {mine}),"  # noqa: S608
        f" groupArrayIf(r.count, {mine}), groupArrayIf(r.{value}, {mine}), groupArrayIf({by}, {mine})"
        f" FROM {table} AS r GROUP BY subject, dimensions, definitions"
    )


def last_moments_sql(source: Source, before_s: int, aggregation: Aggregation) -> str:
    """Return the SQL of the last reading of each resource in each series before an instant."""
    made = ", ".join(f"argMax(r.{name}, {_ORDER})" for name in ("scale", "parameters", "definitions"))
    return (
        f"SELECT '{aggregation}', {made}, r.subject AS subject, r.dimensions AS dimensions,"  # noqa: S608
        f" [argMax(r.item, {_ORDER})], [toInt64(1)], [argMax(r.latest, {_ORDER})], [hex(argMax(r.latest_by, {_ORDER}))]"
        f" FROM {source.there((0, before_s), aggregation)} GROUP BY subject, dimensions, {_RESOURCE}"
    )


def sums_before_sql(source: Source, before_s: int, aggregation: Aggregation) -> str:
    """Return the SQL of each series' sum before an instant, as a reading just before it."""
    item = f'["{before_s * 1_000_000 - 1}",null,null]'
    table = source.table(_COLUMNS, (0, before_s), only=f"aggregation = '{aggregation}'")
    return (
        f"SELECT {_MADE}, r.subject AS subject, r.dimensions AS dimensions, ['{item}'], [toInt64(1)],"  # noqa: S608
        f" [sum(toInt256(r.sum))], [''] FROM {table} AS r GROUP BY subject, dimensions, definitions"
    )


def counters_before_sql(source: Source, before_s: int, aggregation: Aggregation) -> str:
    """Return the SQL of where each incarnation's counter stood before an instant, in the series that are asked for.

    That is the highest reading of an incarnation; of an unknown one, which may have begun anew, the last.
    """
    last = f"argMax(r.max, {_TIME_US})"
    return (
        f"SELECT {_MADE}, r.subject AS subject, r.dimensions AS dimensions, [argMax(r.item, {_TIME_US})],"  # noqa: S608
        f" [toInt64(1)], [if({_INCARNATION} = 'null', {last}, max(r.max))], ['']"
        f" FROM {source.there((0, before_s), aggregation)} AND (r.subject, r.dimensions) IN asked_series"
        f" GROUP BY subject, dimensions, definitions, {_RESOURCE}, {_INCARNATION}"
    )


def read_peaks(source: Source, before_s: int, seen_to_s: int) -> list[PeakRow]:
    """Read how high counters stood at most before an instant, those that were read between it and another one.

    It may be too high, by readings that were voided and where blocks do not tell incarnations apart: it comes from
    blocks, and says of few counters that one has to look closely.
    """
    mine, columns = "aggregation = 'counter'", "subject, dimensions, item, scale, max"
    begin = min((month.first_s for month in source.months), default=before_s)
    edges = begin - begin % BLOCKS_S[0], before_s - before_s % BLOCKS_S[0]
    table = source.table(columns, (0, before_s), only=mine, edges=edges if edges[0] < edges[1] else ())
    # Parsing costs most: readings that differ in their time alone are parsed once.
    rests = (
        "SELECT DISTINCT subject, dimensions, substring(item, position(item, ',')) AS rest"  # noqa: S608
        f" FROM {source.table(columns, (before_s, seen_to_s), only=mine)}"
    )
    named = "JSONExtract(concat('[\"\"', rest), 'Tuple(String, String, String)')"
    seen = (
        f"SELECT DISTINCT subject, dimensions, name.2, name.3 FROM ({rests})"  # noqa: S608
        f" ARRAY JOIN [{named}, ('', '', '')] AS name"
    )
    rows = source.read(
        "WITH JSONExtract(r.item, 'Tuple(String, String, String)') AS name"  # noqa: S608
        " SELECT r.subject AS subject, r.dimensions AS dimensions, name.2, name.3, r.scale AS scale, max(r.max)"
        f" FROM {table} AS r WHERE (r.subject, r.dimensions, name.2, name.3) IN ({seen}) GROUP BY ALL"
    )
    return [PeakRow(*row) for row in rows]


def read_moments(source: Source, *statements: str, series: Sequence[tuple[str, str]] = ()) -> list[MomentsRow]:
    """Read what some statements of this module give, all of it in one reading."""
    return [MomentsRow(*row) for row in source.read(*statements, series=series)]


def _attempts_sql(attempts: Sequence[tuple[int, int]]) -> str:
    """Return the SQL of the blocks that count, of bookings that have any.

    Args:
        attempts: The bookings whose first attempt does not count, with the one that does, or 0.
    """
    if not attempts:
        return "attempt = 1"
    usual = f"attempt = 1 AND booking NOT IN ({_listed([booking for booking, _ in attempts])})"
    later = ", ".join(f"({booking}, {attempt})" for booking, attempt in attempts if attempt)
    return f"({usual} OR (booking, attempt) IN ({later}))" if later else usual


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _booked(first: int, last: int) -> str:
    """Return the SQL of some bookings: those of a month lie apart from those of other ones."""
    return f"booking >= {first} AND booking <= {last}"


def _within(span: Range) -> str:
    return f"minute >= {_instant(span[0])} AND minute < {_instant(span[1])}"


def _instant(second: int) -> str:
    return f"toDateTime({second}, 'UTC')"
