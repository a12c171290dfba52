"""From what is stored to figures by window and group: each aggregation reads what it needs and derives its answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from tallyman.aggregations import (
    AGGREGATES,
    Aggregate,
    Cell,
    Figure,
    Moment,
    Span,
    Terms,
    Timeline,
    terms_of,
)
from tallyman.asked import Groups, Named, Windows, bucket_edges, needs_dimensions
from tallyman.errors import UsageQueryError
from tallyman.meter import AGGREGATIONS, Aggregation
from tallyman.rebuilds import Range
from tallyman.stored import (
    MomentsRow,
    Source,
    TotalsRow,
    ValuesRow,
    Windowed,
    counters_before_sql,
    last_moments_sql,
    moments_sql,
    read_distinct,
    read_first,
    read_made,
    read_moments,
    read_peaks,
    read_totals,
    read_values,
    sums_before_sql,
)
from tallyman.usage import Totals, UsageQuery
from tallyman.worth import Made, Worth, worths

Figures = Mapping[tuple[int, Named], Figure]  # by the second in which a window begins, and by group
Row = TypeVar("Row", bound=TotalsRow | ValuesRow | MomentsRow)
# What adds up, and what derives the answer of the sum: how many there are is a sum, too, of one for each.
_ADDS_UP: Mapping[str, Aggregate[Any]] = {
    "sum": AGGREGATES["sum"], "count": AGGREGATES["sum"], "avg": AGGREGATES["avg"]
}  # fmt: skip
_WITH_EXTREMES = frozenset(("min", "max", "latest", "sum_of_maxima"))
_WITH_LATEST = frozenset(("latest", "first", "time_weighted"))
CARRIED: tuple[Aggregation, ...] = ("time_weighted", "lifecycle")  # what holds in a range in which nothing is read
_LEAST_LOOK_BACK_S = 86_400  # a counter that was read within it need not be looked for in all of its past


class Shape(NamedTuple):
    """How a meter's answers are derived: what a row carries of its definition."""

    aggregation: Aggregation
    parameters: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, worked out.

    Attributes:
        known_to: Where the known past ends; levels are carried no further.
    """

    source: Source
    windows: Windows
    groups: Groups
    known_to: datetime | None

    @property
    def range(self) -> Range:
        return self.windows.start, self.windows.end


class Found(NamedTuple):
    """What a reading met, of whatever aggregation it was.

    Attributes:
        newest: How the newest rows of each group came to be.
    """

    newest: Mapping[Named, Made]

    def shapes(self) -> Sequence[Shape]:
        """Return the shapes that groups were booked with last, by definitions, the newest last."""
        made = sorted({(each.definitions, each.aggregation, each.parameters) for each in self.newest.values()})
        return [Shape(as_aggregation(aggregation), parameters) for _, aggregation, parameters in made]

    def alike(self, shape: Shape) -> Collection[Named]:
        """Return the groups that have a shape."""
        same = {(each.aggregation, each.parameters) for each in self.shapes() if reads_alike(each, shape)}
        return {group for group, made in self.newest.items() if (made.aggregation, made.parameters) in same}


def can_read(aggregation: Aggregation, booked: Aggregation) -> bool:
    """Whether what was booked as one aggregation tells another one what it asks.

    >>> can_read("avg", "max"), can_read("max", "avg"), can_read("sum", "percentile")
    (True, False, False)
    """
    if aggregation in _ADDS_UP:
        return AGGREGATES[booked].kept == "together"
    return aggregation == booked or {aggregation, booked} == {"max", "sum_of_maxima"}


def reads_alike(a: Shape, b: Shape) -> bool:
    """Whether two shapes read the same rows; answers are derived by what the rows say in any case."""
    mine, other = terms_of(a.parameters, 0), terms_of(b.parameters, 0)
    same = (mine.bucket, mine.level, mine.believed_for_us) == (other.bucket, other.level, other.believed_for_us)
    return a.aggregation == b.aggregation and same


def read_figures(asked: Asked, shape: Shape) -> tuple[Figures, Found]:
    """Read the figures of a meter that has a shape, for the groups of which the newest definitions gave it that shape.

    Whose rows are of another group has no say in it, so that a figure does not depend on what is asked for beside it.
    """
    aggregate = AGGREGATES[shape.aggregation]
    if isinstance(aggregate, Timeline):
        return _read_timeline(asked, aggregate, shape)
    if shape.aggregation == "unique_count" and not needs_dimensions(asked.source.query):
        return _read_distinct(asked, shape)
    return _read_windows(asked, aggregate, shape)


def find_unseen(asked: Asked, shape: Shape, found: Found, *, closely: bool) -> tuple[str, ...] | None:
    """Return the tenants (none: all) whose levels of before the range may hold in it though a reading by a shape did
    not look for them; None where there are no such ones.

    They were booked under definitions that believed them longer than the project says, and nothing was read since. A
    question that names no tenants looks for them only if it found nothing: it would look at all that there ever were.

    Args:
        closely: Whether to look, too, where something was found of one group and nothing of another, whose meter may
            have been another aggregation when it was read last. It costs a statement, and few meters ever were.
    """
    query = asked.source.query
    carried, named = shape.aggregation in CARRIED, bool(query.subjects)
    if not found.newest:
        return query.subjects if carried or named else None
    if carried and named and terms_of(shape.parameters, 0).believed_for_us is not None:
        return query.subjects
    return (_lacking(query, found) or None) if closely and named else None


def _lacking(query: UsageQuery, found: Found) -> tuple[str, ...]:
    """Return the tenants asked for that may have a group of which nothing was found: whatever a dimension may be."""
    if any(name != "subject" for name in query.group_by):
        return query.subjects
    tenants = {group[0] for group in found.newest} if query.group_by else query.subjects
    return tuple(subject for subject in query.subjects if subject not in tenants)


def read_carried(asked: Asked, tenants: tuple[str, ...]) -> list[Shape]:
    """Return the shapes that levels and states of some tenants (none: of all) were booked with before the range."""
    source = replace(asked.source, query=replace(asked.source.query, subjects=tenants))
    rows = read_made(source, asked.windows.start, CARRIED)
    return [Shape(as_aggregation(aggregation), parameters) for aggregation, parameters in rows]


def _read_windows(asked: Asked, aggregate: Aggregate[Any], shape: Shape) -> tuple[Figures, Found]:
    """Read what windows tell by themselves."""
    buckets = _buckets(asked, shape)
    rows, naming = _read_rows(asked, shape, buckets)
    found = _find(asked, naming)
    spans: dict[int, Span] = {}
    figures = {}
    for group, mine in _by_group(asked, rows, found.alike(shape)).items():
        telling = _Telling(aggregate, found.newest[group], mine)
        states: dict[int, Any] = {}
        for row in telling.fitting:
            start, told = asked.windows.start_of(row.start_s), telling.told(row)
            states[start] = telling.aggregate.merge(states[start], told) if start in states else told
        for start, state in states.items():
            if start not in spans:
                spans[start] = asked.windows.span(start, asked.known_to, buckets)
            figure = telling.aggregate.derive(state, spans[start], telling.terms)
            if figure is not None:
                figures[start, group] = figure
    return figures, found


def _find(asked: Asked, rows: Sequence[Row]) -> Found:
    newest: dict[Named, Made] = {}
    for row in rows:
        group = asked.groups.of(row.subject, row.dimensions)
        if group is not None and (group not in newest or row.definitions > newest[group].definitions):
            newest[group] = _made(row)
    return Found(newest)


def _by_group(asked: Asked, rows: Sequence[Row], groups: Collection[Named]) -> Mapping[Named, Sequence[Row]]:
    mine: dict[Named, list[Row]] = defaultdict(list)
    for row in rows:
        group = asked.groups.of(row.subject, row.dimensions)
        if group is not None and group in groups:
            mine[group].append(row)
    return mine


def _made(row: TotalsRow | ValuesRow | MomentsRow) -> Made:
    return Made(row.definitions, row.aggregation, row.scale, row.parameters)


class _Telling:
    """What the rows of one group tell: those that its aggregation can read, and by which terms its answers follow.

    Totals that are kept together can answer any aggregation; rows that are kept apart, by value or moment, only their
    own.

    Attributes:
        aggregate: What derives the answers: how many there are is the sum of one for each.
    """

    def __init__(self, aggregate: Aggregate[Any], newest: Made, rows: Sequence[TotalsRow | ValuesRow]) -> None:
        self.aggregate: Aggregate[Any] = _ADDS_UP.get(aggregate.name, aggregate)
        together = aggregate.kept == "together"
        self.fitting = [row for row in rows if together or row.aggregation == aggregate.name]
        self._worths: Mapping[Made, Worth] | None = None
        if aggregate.name in _ADDS_UP:
            made = frozenset(_made(row) for row in self.fitting)
            self._worths, self.terms = worths(made, newest, aggregate.name)
        else:
            scale = max((row.scale for row in self.fitting), default=0)
            self.terms = terms_of(newest.parameters, scale)

    def told(self, row: TotalsRow | ValuesRow) -> Any:
        if self._worths is None or isinstance(row, ValuesRow):
            return _told(row, self.aggregate, 10 ** (self.terms.scale - row.scale))
        return Totals(row.events, self._worths[_made(row)].of(row.sum, row.events))


def _buckets(asked: Asked, shape: Shape) -> Sequence[int] | None:
    """Return the edges of the buckets that a meter has; none where it has no buckets, or each minute is one."""
    if shape.aggregation != "sum_of_maxima":
        return None
    return bucket_edges(asked.source.query, terms_of(shape.parameters, 0).bucket)


def _read_rows(
    asked: Asked, shape: Shape, buckets: Sequence[int] | None
) -> tuple[Sequence[TotalsRow | ValuesRow], Sequence[TotalsRow | ValuesRow]]:
    """Return the rows that tell something, and those that name what there is in each group, whoever can read it."""
    windowed = _windowed(asked)
    if AGGREGATES[shape.aggregation].kept == "by value":
        values = read_values(windowed)
        return values, values
    if shape.aggregation == "first":
        return read_first(windowed), read_totals(windowed, extremes=False)
    if shape.aggregation == "sum_of_maxima":  # a window is read bucket by bucket
        edges = None if windowed.edges is None or buckets is None else sorted({*windowed.edges, *buckets})
        windowed = replace(windowed, edges=edges)
    totals = read_totals(windowed, extremes=shape.aggregation in _WITH_EXTREMES)
    return totals, totals


def _windowed(asked: Asked) -> Windowed:
    edges = None if asked.windows.by_minute else asked.windows.edges
    return Windowed(asked.source, asked.range, edges, needs_dimensions(asked.source.query))


def _told(row: TotalsRow | ValuesRow, aggregate: Aggregate[Any], factor: int) -> Any:
    """Return what a row tells, as if the meter's scale had been larger by a factor."""
    if isinstance(row, ValuesRow):
        if factor == 1:
            return dict(zip(row.items, row.events, strict=True))
        cells = (Cell(row.subject, row.dimensions, row.start_s, item, Totals(count))
                 for item, count in zip(row.items, row.events, strict=True))  # fmt: skip
        return aggregate.gather(aggregate.rescaled(cell, factor) for cell in cells)
    latest = row.aggregation in _WITH_LATEST and row.latest_by != ""
    totals = Totals(  # min, max and latest are filled only for the aggregations that need them
        count=row.events,
        sum=row.sum,
        min=row.min if row.aggregation == "min" else None,
        max=row.max if row.aggregation in ("max", "sum_of_maxima") else None,
        latest=row.latest if latest else None,
        latest_at=(row.latest_us, bytes.fromhex(row.latest_by)) if latest else (-1, b""),
    )
    return aggregate.of(aggregate.rescaled(Cell(row.subject, row.dimensions, row.start_s, row.item, totals), factor))


def _read_distinct(asked: Asked, shape: Shape) -> tuple[Figures, Found]:
    """Read how many values there were, counted where they are stored: a million need not travel."""
    rows = read_distinct(_windowed(asked))
    found = _find(asked, rows)
    figures = {}
    for group, mine in _by_group(asked, rows, found.alike(shape)).items():
        terms = terms_of(found.newest[group].parameters, 0)
        for row in mine:
            if row.aggregation == "unique_count" and row.sum:
                figures[row.start_s, group] = Figure(terms.number_of(row.sum), row.events)
    return figures, found


def _read_timeline(asked: Asked, aggregate: Timeline, shape: Shape) -> tuple[Figures, Found]:
    """Read what depends on the order of readings, and on those before the range."""
    terms = terms_of(shape.parameters, 0)
    rows = _read_counters(asked, terms) if shape.aggregation == "counter" else _read_levels(asked, shape, terms)
    state, scale = _gather(rows, aggregate, terms)
    missing = _told_by_the_past(asked, shape, state, scale) if shape.aggregation == "counter" else ()
    if missing:
        more = _read_counters_before(asked, terms, missing)
        rows += more
        before, before_scale = _gather(more, aggregate, terms)
        same = not more or before_scale == scale
        state, scale = (aggregate.merge(state, before), scale) if same else _gather(rows, aggregate, terms)
    starts = asked.windows.starts()
    spans = [asked.windows.span(start, asked.known_to) for start in starts]
    found = _find(asked, rows)
    figures: dict[tuple[int, Named], Figure] = {}
    for parameters, groups in _by_parameters(found, shape).items():
        each = aggregate.derive_each(state, spans, terms_of(parameters, scale), _only(asked.groups, groups))
        figures |= {(starts[place], group): figure for (place, group), figure in each.items()}
    return figures, found


def _by_parameters(found: Found, shape: Shape) -> Mapping[str, Collection[Named]]:
    """Return the groups that have a shape by what else their newest definitions say: nearly always it is one thing."""
    groups: dict[str, set[Named]] = defaultdict(set)
    for group in found.alike(shape):
        groups[found.newest[group].parameters].add(group)
    return groups


def _only(all_groups: Groups, groups: Collection[Named]) -> Callable[[Moment], Named | None]:
    """Return what says of which of some groups a moment is; readings of others are followed, but make no figure."""

    def group_of(moment: Moment) -> Named | None:
        group = all_groups.of(moment.subject, moment.dimensions)
        return group if group in groups else None

    return group_of


def _gather(rows: Sequence[MomentsRow], aggregate: Timeline, terms: Terms) -> tuple[Mapping[Moment, Totals], int]:
    """Return what rows tell, and in which scale: that of the finest."""
    fitting = [row for row in rows if row.aggregation == aggregate.name]
    scale = max((row.scale for row in fitting), default=0)
    cells = (
        aggregate.rescaled(cell, 10 ** (scale - row.scale)) for row in fitting for cell in _cells(row, terms.level)
    )
    return aggregate.gather(cells), scale


def _cells(row: MomentsRow, level: str) -> Iterator[Cell]:
    """Yield the readings of a series, each with what its aggregation reads of it."""
    for item, count, value, by in zip(row.items, row.events, row.values, row.by, strict=True):
        if row.aggregation == "counter":
            totals = Totals(count, max=value)
        elif level == "delta":
            totals = Totals(count, value)
        else:
            totals = Totals(count, latest=value, latest_at=(0, bytes.fromhex(by)))
        yield Cell(row.subject, row.dimensions, 0, item, totals)


def _read_levels(asked: Asked, shape: Shape, terms: Terms) -> list[MomentsRow]:
    source, (start, end), aggregation = asked.source, asked.range, shape.aggregation
    if terms.level == "delta":
        before = sums_before_sql(source, start, aggregation)
        return read_moments(source, moments_sql(source, (start, end), aggregation, "sum"), before)
    if terms.believed_for_us is None:
        before = last_moments_sql(source, start, aggregation)
        return read_moments(source, moments_sql(source, (start, end), aggregation, "latest"), before)
    return read_moments(source, moments_sql(source, (_look_back(start, terms), end), aggregation, "latest"))


def _read_counters(asked: Asked, terms: Terms) -> list[MomentsRow]:
    """Read a counter's readings, and where most of them stood before: those that were read shortly before, too."""
    first, end = _counters_from(asked, terms), asked.windows.end
    return read_moments(asked.source, moments_sql(asked.source, (first, end), "counter", "max"))


def _read_counters_before(asked: Asked, terms: Terms, series: Iterable[tuple[str, str]]) -> list[MomentsRow]:
    """Read where counters stood that were last read long ago, or never."""
    statement = counters_before_sql(asked.source, _counters_from(asked, terms), "counter")
    return read_moments(asked.source, statement, series=sorted(series))


def _counters_from(asked: Asked, terms: Terms) -> int:
    start = asked.windows.start
    return max(0, min(_look_back(start, terms), start - _LEAST_LOOK_BACK_S))


def _told_by_the_past(asked: Asked, shape: Shape, state: Mapping[Moment, Totals], scale: int) -> set[tuple[str, str]]:
    """Return the series of which more has to be read than stood shortly before the range."""
    first = _counters_from(asked, terms_of(shape.parameters, 0))
    return _not_seen_before(state, asked.windows.start) | _stood_higher(asked, state, scale, first)


def _stood_higher(asked: Asked, state: Mapping[Moment, Totals], scale: int, first_s: int) -> set[tuple[str, str]]:
    """Return the series of which an incarnation may have stood higher before an instant than it was seen since.

    After a reading below its highest one a counter adds nothing until it is above that, however long ago it was.
    """
    start_us = asked.windows.start * 1_000_000
    goes_on = {moment[:2] for moment, totals in state.items() if totals.count > 0 and moment.time_us >= start_us}
    peaks: dict[tuple[str, str, str, str], int] = {}
    least: dict[tuple[str, str], int] = {}
    for moment, totals in state.items():
        if moment.incarnation is not None and totals.count > 0 and moment.time_us < start_us:
            key, value = (*moment[:2], moment.resource or "", moment.incarnation), totals.max or 0
            peaks[key] = max(peaks.get(key, value), value)
    peaks = {key: peak for key, peak in peaks.items() if key[:2] in goes_on}
    if not peaks:
        return set()
    for key, peak in peaks.items():
        least[key[:2]] = min(least.get(key[:2], peak), peak)
    found = set()
    for row in read_peaks(asked.source, first_s, asked.windows.start):
        known = peaks.get(row[:4])
        if row.resource == row.incarnation == "":
            known = least.get(row[:2])
        if known is not None and row.value * 10**scale > known * 10**row.scale:
            found.add(row[:2])
    return found


def _not_seen_before(state: Mapping[Moment, Totals], start_s: int) -> set[tuple[str, str]]:
    """Return the series of what was read since an instant and not shortly before it."""
    before: set[tuple[str, str, str | None, str | None]] = set()
    since: set[tuple[str, str, str | None, str | None]] = set()
    for moment, totals in state.items():
        if totals.count > 0:
            seen = before if moment.time_us < start_s * 1_000_000 else since
            seen.add((moment.subject, moment.dimensions, moment.resource, moment.incarnation))
    return {(subject, dimensions) for subject, dimensions, *_ in since - before}


def _look_back(start_s: int, terms: Terms) -> int:
    """Return from which whole minute on a reading may still be believed at an instant."""
    silence_s = -(-(terms.believed_for_us or 0) // 60_000_000) * 60
    return max(0, start_s - silence_s)


def as_aggregation(text: str) -> Aggregation:
    """Return what a row says it is.

    Raises:
        UsageQueryError: A newer Tallyman booked it.
    """
    for aggregation in AGGREGATIONS:
        if aggregation == text:
            return aggregation
    raise UsageQueryError(f'aggregation: expected one of {", ".join(AGGREGATIONS)}, got "{text}"; update Tallyman')
