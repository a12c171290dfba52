"""The door through which everyone reads usage: exact figures per window and group, and how complete they are.

The list of rebuilds in force is read first, then progress, then which bookings are sealed, then the data (sealed
bookings from `usage`, later ones from `usage_hot`, rebuilt rows instead of what they cover), so that an answer never
claims more than it holds and a row is never counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from tallyman.aggregations import AGGREGATES, terms_of
from tallyman.asked import Groups, Named, Windows, windows_of
from tallyman.completeness import Completeness, PartitionProgress, read_completeness
from tallyman.errors import UsageQueryError
from tallyman.figures import (
    Asked,
    Figures,
    Shape,
    as_aggregation,
    find_unseen,
    read_carried,
    read_figures,
    reads_alike,
)
from tallyman.heard import read_gaps
from tallyman.meter import Aggregation, Meter, parameters_of
from tallyman.period import FIRST_MOMENT
from tallyman.rebuilds import Switches, read_switches
from tallyman.sealed import decided_to
from tallyman.stored import Source
from tallyman.usage import CollectorSeen, Gap, UsageAnswer, UsageQuery, UsageRow

if TYPE_CHECKING:
    from clickhouse_driver import Client

__all__ = [
    "Completeness",
    "Known",
    "MeterSeen",
    "PartitionProgress",
    "read_completeness",
    "read_known",
    "read_meters",
    "read_rows",
    "read_usage",
]

_LIKELY = Shape("sum", "")  # of a meter that the project does not know; what is found says what it is


@dataclass(frozen=True, slots=True)
class MeterSeen:
    """A meter that has usage."""

    meter: str
    aggregation: Aggregation
    events: int


@dataclass(frozen=True, slots=True)
class Known:
    """What answers may be taken from: the rebuilds in force, and then how far usage is booked and sealed.

    It may serve several questions for a minute: what was sealed since then is still read as hot.
    """

    switches: Switches
    completeness: Completeness


def read_known(
    client: Client,
    *,
    expected_delay: timedelta = timedelta(seconds=10),
    partitions: int | None = None,
    switches: Switches | None = None,
) -> Known:
    """Read what answers may be taken from.

    Args:
        expected_delay, partitions: See `read_completeness`.
        switches: Which rebuilds count, for questions that must agree; else those that are in force now.
    """
    in_force = read_switches(client) if switches is None else switches
    return Known(in_force, read_completeness(client, expected_delay=expected_delay, partitions=partitions))


def read_usage(
    client: Client,
    query: UsageQuery,
    *,
    meters: Sequence[Meter] = (),
    expected_delay: timedelta = timedelta(seconds=10),
    partitions: int | None = None,
    switches: Switches | None = None,
) -> UsageAnswer:
    """Answer a question about one meter, exactly.

    Windows are half-open and begin where the zone's local clock begins a new one. A window without usage has no row,
    but one over which a level or state holds has: what holds is carried, as far as usage is complete, or as far as the
    bookings decide it that are asked for. An empty range has one 0 row for `count` and `unique_count`, if the question
    leaves one group that it is of, and none for others.

    Args:
        meters: The project's, for units and for meters that have no usage yet.
        expected_delay, partitions, switches: See `read_known`.

    Raises:
        UsageQueryError: No such meter, dimension, zone or window; an empty or inverted range; a condition that
            excludes everything; a booking that is not sealed yet.
    """
    windows = windows_of(query)
    known = read_known(client, expected_delay=expected_delay, partitions=partitions, switches=switches)
    defined = _defined(query, meters)
    completeness = _about(known, query, defined)
    bound = _bound(query, completeness)
    shape, rows, zero = _read_rows(client, query, windows, known.switches, completeness, meters, closely=True)
    since = _carried_from(query, shape)
    return UsageAnswer(
        query=query,
        unit=defined.unit if defined else "",
        rows=rows or zero,
        complete_to=completeness.complete_to,
        sealed_to=bound,
        repaired=tuple(
            each for each in completeness.repairs if each.touches(since, query.end, _last_booking(query, bound))
        ),
        held_by=completeness.held_by,
        behind=_behind(query, completeness),
        gaps=_gaps(client, query, since, completeness, defined),
        rebuilt=tuple(
            each.generation for each in known.switches if each.about(query.meter, (windows.start, windows.end))
        ),
        felt_for=query.start - since,
    )


def read_rows(client: Client, query: UsageQuery, known: Known, *, meters: Sequence[Meter] = ()) -> tuple[UsageRow, ...]:
    """Return the rows of an answer alone, for who has read already what it may be taken from.

    What is grouped has a row only where there is usage: an alarm must tell silence from a level that goes on.

    Raises:
        UsageQueryError: See `read_usage`.
    """
    windows, about = windows_of(query), _about(known, query, _defined(query, meters))
    _, rows, zero = _read_rows(client, query, windows, known.switches, about, meters, closely=False)
    return rows or (() if query.group_by else zero)


def _read_rows(
    client: Client,
    query: UsageQuery,
    windows: Windows,
    switches: Switches,
    completeness: Completeness,
    meters: Sequence[Meter],
    *,
    closely: bool,
) -> tuple[Shape, tuple[UsageRow, ...], tuple[UsageRow, ...]]:
    """Return what the meter is, the rows, and those that say 0 instead where there are none."""
    defined = _defined(query, meters)
    source = Source(
        client, query, completeness.sealed_to, _bound(query, completeness), completeness.months, switches
    )
    asked = Asked(source, windows, Groups(query), _known_to(query, completeness))
    shape, figures = _read(asked, defined, meters, closely=closely)
    if defined is not None:
        asked.groups.check_names(defined.dimensions)
    rows = tuple(_rows(figures, windows, query))
    return shape, rows, _zero(query) if not rows and AGGREGATES[shape.aggregation].zero_if_empty else ()


def _defined(query: UsageQuery, meters: Sequence[Meter]) -> Meter | None:
    return next((meter for meter in meters if meter.meter == query.meter), None)


def _gaps(
    client: Client, query: UsageQuery, since: datetime, completeness: Completeness, defined: Meter | None
) -> tuple[Gap, ...]:
    if not completeness.collectors:
        return ()
    event_type = defined.event_type if defined else None
    followed = completeness.epochs > completeness.collectors
    return read_gaps(client, query.subjects, event_type, since, query.end, any_followed=followed)


def _behind(query: UsageQuery, completeness: Completeness) -> tuple[CollectorSeen, ...]:
    if completeness.reached_to is None or completeness.reached_to < query.end:
        return ()  # nobody can have said all of it
    live = (each for each in completeness.lagging if each.state == "live")
    return tuple(each for each in live if each.watermark is not None and each.watermark < query.end)


def _carried_from(query: UsageQuery, shape: Shape) -> datetime:
    """Return from when on what was read may tell something of the range: what is missing may have ended a level."""
    if shape.aggregation not in ("time_weighted", "lifecycle"):
        return query.start
    believed_for_us = terms_of(shape.parameters, 0).believed_for_us
    most = query.start - FIRST_MOMENT
    return query.start - (most if believed_for_us is None else min(most, timedelta(microseconds=believed_for_us)))


def _about(known: Known, query: UsageQuery, defined: Meter | None) -> Completeness:
    return known.completeness.about(query.subjects, defined.event_type if defined else None)


def _last_booking(query: UsageQuery, bound: int) -> int | None:
    """Return the last booking that an answer looks into; None when it looks into all."""
    return bound if query.sealed_only else query.up_to_booking


def read_meters(client: Client) -> tuple[MeterSeen, ...]:
    """Return the meters that have usage, by name."""
    rows = client.execute(
        "SELECT meter, argMax(b.aggregation, b.booking), sum(b.count) FROM usage_booked AS b"
        " GROUP BY meter ORDER BY meter",
    )
    return tuple(MeterSeen(meter, as_aggregation(aggregation), int(events)) for meter, aggregation, events in rows)


def _read(
    asked: Asked, defined: Meter | None, meters: Sequence[Meter], *, closely: bool
) -> tuple[Shape, Figures]:
    """Read by the project's definition, and once more as whatever else groups were booked last."""
    shape = _LIKELY if defined is None else Shape(defined.aggregation, parameters_of(defined))
    figures, found = read_figures(asked, shape)
    shapes = list(found.shapes())
    newest = shapes[-1] if shapes else shape
    if not shapes and defined is None:
        newest = _seen_shape(asked.source.client, asked.source.query.meter, meters)
        shapes.append(newest)
    unseen = find_unseen(asked, shape, found, closely=closely)
    if unseen is not None:
        shapes += read_carried(asked, unseen)
    read = [shape]
    for other in shapes:
        if not any(reads_alike(other, each) for each in read):
            more, _ = read_figures(asked, other)
            figures = {**figures, **more}
            read.append(other)
    return newest, figures


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


def _known_to(query: UsageQuery, completeness: Completeness) -> datetime | None:
    """Return up to where levels are carried; None, where nothing is booked: over all that is asked for.

    While some partitions have not come to anything, as when usage begins or a topic has grown, the others say it.
    Where a question says which bookings it looks into, they alone decide it, so that the same bookings give the same
    figure for ever. Which collectors are silent, and how far the log has come since, changes no invoice.
    """
    last = _last_booking(query, _bound(query, completeness))
    if last is None:
        return completeness.known_to
    decided = decided_to(last)
    if last <= completeness.sealed_to or completeness.reached_to is None:
        return decided
    return min(decided, completeness.reached_to)  # of a booking that is still open, the log has to say it first


def _rows(figures: Figures, windows: Windows, query: UsageQuery) -> Iterator[UsageRow]:
    """Yield figures as rows, in order of (start, groups)."""
    for (start, group), figure in sorted(figures.items(), key=_order):
        proof = figure.proof
        yield UsageRow(
            start=datetime.fromtimestamp(start, UTC),
            end=datetime.fromtimestamp(windows.end_of(start), UTC),
            groups=dict(zip(query.group_by, group, strict=True)),
            value=figure.value,
            events=figure.events,
            resets=None if proof is None else proof.resets,
            holes=None if proof is None else proof.holes,
            decreases=None if proof is None else proof.decreases,
        )


def _order(item: tuple[tuple[int, Named], Any]) -> Any:
    (start, group), _ = item
    return start, [(name is not None, name or "") for name in group]


def _zero(query: UsageQuery) -> tuple[UsageRow, ...]:
    """Return the one row of a count over nothing, if the question leaves only one group that it can be of."""
    asked: Mapping[str, Sequence[str | None]] = {**query.where, "subject": query.subjects}
    if any(len(asked.get(name, ())) != 1 for name in query.group_by):
        return ()
    groups = {name: asked[name][0] for name in query.group_by}
    start, end = query.start.astimezone(UTC), query.end.astimezone(UTC)
    return (UsageRow(start=start, end=end, groups=groups, value=Decimal(0), events=0),)


def _seen_shape(client: Client, name: str, meters: Sequence[Meter]) -> Shape:
    rows = client.execute(
        "SELECT argMax(b.aggregation, b.definitions), argMax(b.parameters, b.definitions), count()"
        " FROM usage_booked AS b WHERE meter = %(meter)s",
        {"meter": name},
    )
    aggregation, parameters, seen = rows[0]
    if seen:
        return Shape(as_aggregation(aggregation), parameters)
    known = sorted({*(meter.meter for meter in read_meters(client)), *(meter.meter for meter in meters)})
    near = get_close_matches(name, known, n=1)
    listed = f"; known: {', '.join(known)}" if known and len(known) <= 20 else ""
    hint = f'; did you mean "{near[0]}"?' if near else listed
    raise UsageQueryError(f'meter: expected one that is defined or has usage, got "{name}"{hint}')
