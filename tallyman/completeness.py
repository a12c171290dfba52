"""How far usage is booked: the frontier of each partition, its log clock, and the bookings that are sealed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tallyman.heard import HEARD_SQL, Clocks, read_lagging
from tallyman.repairs import Quarantine, newest_repairs, read_lost, read_quarantines, read_repairs
from tallyman.sealed import MONTHS_SQL, Months, months_of
from tallyman.topics import ABANDONED_SQL, ENDED, LINE_SQL
from tallyman.usage import CollectorSeen, Repair

if TYPE_CHECKING:
    from clickhouse_driver import Client

# The runs of closed chunks, each as what its rows cover together and where the last one ends. Without FINAL: the index
# leads to thousands of chunks of a partition, of which a filter leaves the few that count; FINAL would merge them all.
# Of the rows of a chunk the longest counts; it is the furthest in all.
_RUNS = (
    "SELECT topic_id, partition, min(chunk), argMin(begins, chunk), sum(covers), max(chunk),"
    " argMax((begins + covers, clock_ms, booking), chunk) FROM"
    " (SELECT topic_id, partition, chunk, max(covered) AS covers, min(reached_offset - covered) AS begins,"
    " max(reached_clock_ms) AS clock_ms, max(reached_booking) AS booking FROM progress"
    " WHERE generation = 0{near} GROUP BY topic_id, partition, chunk) GROUP BY topic_id, partition"
)
_CHUNKS = (
    "SELECT topic_id, partition, chunk, covered, reached_offset, reached_clock_ms, reached_booking"
    " FROM progress FINAL WHERE generation = 0{near} AND (topic_id, partition) IN %(doubtful)s"
    " ORDER BY topic_id, partition, chunk"
)
_TOGETHER, _MOST_BEGINS = 64, 100
_DELAY = "usage.expected_delay_ms"  # as the view names it
# In two readings, each by an index of its own: with OR every chunk that was ever booked would be looked at.
_ENDED = f"SELECT groupUniqArray((topic_id, partition)) FROM progress WHERE reached_booking = {ENDED}"  # noqa: S608
# Asked only where topics of more than one line were noted.
_ABANDONED = f"SELECT DISTINCT topic_id, partition FROM progress WHERE topic_id IN ({ABANDONED_SQL})"  # noqa: S608
# One statement for all that is read before progress: each costs more by itself than what it finds.
_SEAL = (
    "SELECT (SELECT groupArray((booking, places)) FROM"  # noqa: S608
    " (SELECT booking, places FROM seals FINAL ORDER BY booking DESC LIMIT 1)), (SELECT count() FROM repairs),"
    " (SELECT count() FROM quarantines), (SELECT count() FROM collectors_retired), (SELECT count() FROM late_lost),"
    f" ({_ENDED}), (SELECT uniqExact(line) FROM topics)"
)
# How many partitions the topic of the line has that no other one follows; 0 while nothing was booked.
_PARTITIONS_NOW = (
    "SELECT sum(partitions) FROM topics FINAL WHERE topic_id NOT IN (SELECT follows FROM topics)"  # noqa: S608
    f" AND line = ({LINE_SQL})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionProgress:
    """How far one partition is booked without a hole.

    Attributes:
        offset: The next record to book.
        clock: The log clock there; None before anything was booked.
    """

    topic_id: str
    partition: int
    offset: int
    clock: datetime | None
    booking: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completeness:
    """Up to where the books tell everything.

    Attributes:
        complete_to: Event time up to which nothing is missing that was sent in time; None when that is unknown.
        sealed_to: The newest booking that is sealed, 0 for none.
        quarantines: Partitions that are set aside, their log is not what was booked: `complete_to` stands still.
        repairs: Where booking went on behind a damaged place, by an operator's decision; and what stood behind
            the end of a topic and was not copied, reason `late`.
        collectors: How many were ever heard; `epochs`: in how many, which are more if some began anew.
        lagging: The collectors, by name, that live or are silent and have said less than `reached_to`: all others
            have said that.
        held_by: The silent ones that hold `complete_to` back, the furthest behind first.
        booked_to: Event time up to which the log tells everything, whatever collectors have yet to send.
        reached_to: The same of the partitions of which something is booked; others may have more. None without any.
        known_to: What `complete_to` would be if those were all: levels are carried no further.
        months: Which bookings are sealed: all up to `sealed_to`, and perhaps later ones.
    """

    complete_to: datetime | None
    sealed_to: int
    partitions: tuple[PartitionProgress, ...]
    quarantines: tuple[Quarantine, ...] = ()
    repairs: tuple[Repair, ...] = ()
    collectors: int = 0
    epochs: int = 0
    lagging: tuple[CollectorSeen, ...] = ()
    held_by: tuple[CollectorSeen, ...] = ()
    booked_to: datetime | None = None
    reached_to: datetime | None = None
    known_to: datetime | None = None
    months: Months = ()

    def about(self, subjects: Collection[str] = (), event_type: str | None = None) -> Completeness:
        """Return how complete usage of some subjects (none: of all) and a type (None: of any) is: collectors that
        never measured any do not matter.
        """
        lagging = tuple(each for each in self.lagging if each.may_feed(subjects, event_type))
        known_to, held_by = _held_back(self.reached_to, lagging)
        found = replace(self, known_to=known_to, lagging=lagging)
        return found if self.booked_to is None else replace(found, complete_to=known_to, held_by=held_by)


class _Seal(NamedTuple):
    """The newest seal, with its places by (topic id, partition), and which rare things there may be.

    Attributes:
        booking: 0 while nothing is sealed.
        ended: The partitions of topics that have ended or are abandoned: others go on, nothing waits for these.
            `places` has none of them.
    """

    booking: int
    places: Mapping[tuple[str, int], _Place]
    ended: frozenset[tuple[str, int]]
    any_repairs: bool
    any_quarantines: bool
    any_retired: bool
    any_lost: bool


class _Place(msgspec.Struct):
    topic_id: str
    partition: int
    chunk: int
    offset: int
    clock_ms: int
    booking: int


def read_completeness(
    client: Client, *, expected_delay: timedelta = timedelta(seconds=10), partitions: int | None = None
) -> Completeness:
    """Read how complete usage is. Call it before reading usage: what it says is in the tables then.

    Args:
        expected_delay: How long events take to arrive; the least log clock less this is complete.
        partitions: How many there are, should ClickHouse not know yet; while some have no progress yet, nothing is
            known to be complete. Those of a topic that has ended, or of another line than is booked, say nothing any
            more.
    """
    seal, repairs, frontiers = _read_frontiers(client)
    reached = [each for each in frontiers if each.booking != ENDED]  # which may have ended since the seal was read
    clocks = [each.clock for each in reached if each.clock is not None]
    # How many there are is asked behind progress, too; till then it is not known whether this is `booked_to`.
    least = min(clocks) - expected_delay if clocks else None
    by_partition = {(each.topic_id, each.partition): each.clock for each in reached if each.clock is not None}
    # Months behind the seal: what it says is sealed is in them.
    (now, months, (collectors, epochs)), lagging = read_lagging(
        client, Clocks(by_partition), least, _PARTITIONS_NOW, MONTHS_SQL, HEARD_SQL, any_retired=seal.any_retired
    )
    expected = int(now) or partitions or 1
    known = bool(reached) and len(clocks) == len(reached) and len(reached) >= expected
    offsets = {(each.topic_id, each.partition): each.offset for each in reached}
    booked_to = least if known else None
    everything = Completeness(
        complete_to=booked_to,
        sealed_to=seal.booking,
        partitions=tuple(reached),
        quarantines=_set_aside(client, seal, offsets, repairs) if seal.any_quarantines else (),
        repairs=(*repairs, *(read_lost(client) if seal.any_lost else ())),
        collectors=int(collectors),
        epochs=int(epochs),
        lagging=lagging,
        booked_to=booked_to,
        reached_to=least,
        months=months_of(months),
    )
    return everything.about()


def tell_delay(client: Client, expected_delay: timedelta) -> bool:
    """Have the view `completeness_minute` know how long events take to arrive; return whether that is news."""
    told = client.execute("SELECT value FROM settings_told FINAL WHERE name = %(name)s", {"name": _DELAY})
    value = round(expected_delay / timedelta(milliseconds=1))
    if told == [(value,)]:
        return False
    client.execute("INSERT INTO settings_told (name, value) VALUES", [(_DELAY, value)])
    return True


def _set_aside(
    client: Client, seal: _Seal, offsets: Mapping[tuple[str, int], int], repairs: Sequence[Repair]
) -> tuple[Quarantine, ...]:
    """Return the partitions that are set aside of those that go on."""
    found = read_quarantines(client, offsets, repairs)
    return tuple(each for each in found if (each.topic_id, each.partition) not in seal.ended)


def read_reached(client: Client) -> tuple[int, Iterable[PartitionProgress]]:
    """Return the newest sealed booking, and how far the partitions are booked of which something is: in a few
    statements, however many there are. Those of topics that have ended may be left out, and abandoned ones are.
    """
    seal, _, frontiers = _read_frontiers(client)
    return seal.booking, frontiers


def _read_frontiers(client: Client) -> tuple[_Seal, tuple[Repair, ...], Iterable[PartitionProgress]]:
    seal = _read_seal(client)
    repairs = read_repairs(client) if seal.any_repairs else ()
    begins, repaired = _with_repairs(seal, repairs)
    near, named = _near(seal)
    found, doubtful = {}, []
    for topic_id, partition, first, start, covered, last, reached in client.execute(_RUNS.format(near=near), named):
        key = str(topic_id), _int(partition)
        begin = begins[key].chunk if key in begins else 0
        # Chunks do not overlap, so rows that cover as much as lies between their ends have no hole.
        if key not in repaired and first <= begin <= last and covered == reached[0] - start:
            found[key] = _progress(key, *map(_int, reached))
        else:
            doubtful.append(key)
    if doubtful:
        rows = client.execute(_CHUNKS.format(near=near), {**named, "doubtful": tuple(doubtful)})
        found |= _follow_each(rows, begins)
    for key in begins.keys() - found.keys():
        found[key] = _follow(key, [], begins[key])
    return seal, repairs, [found[key] for key in sorted(found)]


def clocks_of(found: Completeness) -> Clocks:
    """Return the log clocks up to which partitions are booked."""
    return Clocks({(each.topic_id, each.partition): each.clock for each in found.partitions if each.clock is not None})


def _with_repairs(
    seal: _Seal, repairs: Sequence[Repair]
) -> tuple[Mapping[tuple[str, int], _Place], Collection[tuple[str, int]]]:
    """Return where each partition's run of chunks begins: what lies before a repair is closed by it.

    And those that begin at a repair, in whose chunk a row may stand that was written before it.
    """
    begins, repaired = dict(seal.places), set()
    for (topic_id, partition), repair in newest_repairs(repairs).items():
        known = begins.get((topic_id, partition))
        if (topic_id, partition) in seal.ended:
            continue
        if known is None or known.chunk <= repair.chunk:
            begins[topic_id, partition] = _Place(
                topic_id, partition, repair.chunk, repair.to_offset, repair.from_clock_ms, repair.booking
            )
            repaired.add((topic_id, partition))
    return begins, repaired


def _held_back(
    booked_to: datetime | None, lagging: Iterable[CollectorSeen]
) -> tuple[datetime | None, tuple[CollectorSeen, ...]]:
    """Return up to where both the log and every collector that is not retired say that all is there, and which silent
    ones hold that back. Who carries no watermark promised none: it holds nothing.
    """
    if booked_to is None:
        return None, ()
    marks = [(each.watermark, each) for each in lagging if each.watermark is not None]
    complete_to = min([booked_to, *(mark for mark, _ in marks)])
    silent = ((mark, each.name, each) for mark, each in marks if each.state == "silent")
    held = sorted(silent, key=lambda found: found[:2])
    return complete_to, tuple(each for _, _, each in held)


def _read_seal(client: Client) -> _Seal:
    newest, repairs, quarantines, retired, lost, ends, lines = client.execute(_SEAL)[0]
    booking, written = newest[0] if newest else (0, "")
    ended = frozenset(map(_key, [*ends, *(client.execute(_ABANDONED) if lines > 1 else ())]))
    found = msgspec.json.decode(written, type=list[_Place]) if written else []
    places = {(place.topic_id, place.partition): place for place in found}
    return _Seal(
        int(booking),
        {key: place for key, place in places.items() if key not in ended},
        ended,
        any_repairs=bool(repairs),
        any_quarantines=bool(quarantines),
        any_retired=bool(retired),
        any_lost=bool(lost),
    )


def _key(place: tuple[object, object]) -> tuple[str, int]:
    return str(place[0]), _int(place[1])


def _near(seal: _Seal) -> tuple[str, dict[str, object]]:
    """Return the SQL of what was booked from the last seal on, and the lists that it names."""
    lists: dict[str, object] = {"sealed": tuple(seal.places), "ended": tuple(seal.ended)}
    begins = []
    for number, (chunk, keys) in enumerate(_begins(seal.places)):
        begins.append(f"(topic_id, partition) IN %(begin_{number})s AND chunk >= {chunk}")
        lists[f"begin_{number}"] = tuple(keys)
    near = ""
    if begins:
        # Lists tell the index where to look, but take long for each row that it leads to: an array tells those apart.
        near = f" AND indexHint({' OR '.join(begins)} OR (topic_id, partition) NOT IN %(sealed)s)"
        topics = sorted({topic_id for topic_id, _ in seal.places})
        each_from = []
        for number, topic_id in enumerate(topics):
            chunks = {partition: place.chunk for (of, partition), place in seal.places.items() if of == topic_id}
            lists[f"topic_{number}"] = topic_id
            listed = [chunks.get(partition, 0) for partition in range(max(chunks) + 1)]
            each_from.append(f"topic_id = %(topic_{number})s, CAST('{listed}' AS Array(UInt64))[partition + 1]")
        near += f" AND chunk >= multiIf({', '.join(each_from)}, 0)"
    return near + (" AND (topic_id, partition) NOT IN %(ended)s" if seal.ended else ""), lists


def _begins(places: Mapping[tuple[str, int], _Place]) -> Iterable[tuple[int, Sequence[tuple[str, int]]]]:
    """Return from which chunk on to look, and for which partitions.

    A busy partition is half a million chunks a year ahead of a silent one, so that one least chunk for all would read
    them all for ever; one for each of thousands of partitions would be too long a statement.
    """
    width = _TOGETHER
    while len({place.chunk // width for place in places.values()}) > _MOST_BEGINS:
        width *= 2
    found: dict[int, list[tuple[str, int]]] = {}
    for key, place in places.items():
        found.setdefault(place.chunk // width, []).append(key)
    return [(min(places[key].chunk for key in keys), keys) for keys in found.values()]


def _follow_each(
    rows: Iterable[Sequence[object]], begins: Mapping[tuple[str, int], _Place]
) -> Mapping[tuple[str, int], PartitionProgress]:
    """Follow each partition's unbroken run of closed chunks to the open one; rows come in order of chunks."""
    groups = groupby(rows, key=lambda row: (str(row[0]), _int(row[1])))
    return {
        key: _follow(key, [tuple(_int(value) for value in row[2:]) for row in group], begins.get(key))
        for key, group in groups
    }


def _follow(key: tuple[str, int], chunks: Sequence[tuple[int, ...]], place: _Place | None) -> PartitionProgress:
    expected = place.chunk if place else 0
    offset, clock_ms, booking = (place.offset, place.clock_ms, place.booking) if place else (0, 0, 0)
    # A chunk's size belongs to the topic; every row but the first chunk's tells it.
    size = next(((reached - covered) // chunk for chunk, covered, reached, _, _ in chunks if chunk), 0)
    for chunk, covered, reached, reached_clock_ms, reached_booking in chunks:
        if chunk < expected or (chunk == expected and reached_booking < booking):
            continue  # closed, or written before the repair that closed it
        if chunk > expected:
            break
        offset, clock_ms, booking = reached, reached_clock_ms, reached_booking
        if covered < size:
            break
        expected += 1
    return _progress(key, offset, clock_ms, booking)


def _progress(key: tuple[str, int], offset: int, clock_ms: int, booking: int) -> PartitionProgress:
    clock = datetime.fromtimestamp(clock_ms // 1000, UTC) + timedelta(milliseconds=clock_ms % 1000)
    return PartitionProgress(
        topic_id=key[0], partition=key[1], offset=offset, clock=clock if clock_ms else None, booking=booking
    )


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
