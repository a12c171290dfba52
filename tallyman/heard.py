"""Read who sends, how far each collector says it has sent, and what is missing of what it numbered.

States are judged by the log clock of a collector's own partition, never by a wall clock: a pipeline that is behind
calls nobody silent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tallyman.errors import UsageQueryError
from tallyman.files import nearest
from tallyman.usage import CollectorSeen, CollectorState, Gap

if TYPE_CHECKING:
    from clickhouse_driver import Client

HEARTBEAT = timedelta(seconds=10)
SILENT_AFTER = 3 * HEARTBEAT
RETIRED_AFTER = timedelta(days=7)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEWEST = (
    "groupArray((collector, epoch, toString(topic_id), partition, first_clock_ms, clock_ms, last, watermark_us,"
    " subjects, types)) FROM heard_newest FINAL"
)
# Who may have said less than `mark`: of a hundred thousand few, while all goes well. A row that is not merged yet says
# less than it will, and of what was heard at one time the least counts, so none is left out who belongs here.
_LAGGING = (
    " WHERE collector IN (SELECT collector FROM heard_newest GROUP BY collector HAVING max(watermark_us) > 0"
    " AND argMax(watermark_us, (clock_ms, -watermark_us)) < %(mark)s AND max(clock_ms) >= %(oldest)s)"
)
_FEEDS = "SELECT collector FROM heard_newest GROUP BY collector HAVING 1"
# How many collectors were ever heard, and in how many epochs.
HEARD_SQL = "SELECT [uniqExact(collector), uniqExact(collector, epoch)] FROM heard_newest"
_RETIRED = "SELECT collector, max(heard_ms) FROM collectors_retired GROUP BY collector"
_GAPS = "SELECT collector, epoch, first, last, after, before FROM collector_gaps"
# The epochs whose runs cover less than lies between their ends. Most have no gap, and to plan what the view does takes
# three times as long as to see that.
_WITH_GAPS = (
    "SELECT collector, epoch FROM (SELECT collector, epoch, first, last FROM heard_joined WHERE 1{of}"
    " UNION ALL SELECT collector, epoch, first, last FROM heard WHERE booking >"
    " (SELECT max(booking) FROM heard_joined_to WHERE joined_at < now64(3) - INTERVAL 10 MINUTE){of})"
    " GROUP BY collector, epoch HAVING intervalLengthSum(first, last + 1) < max(last) + 1 - min(first)"
)
_FOLLOWED = "SELECT collector FROM heard_newest WHERE 1{of} GROUP BY collector HAVING uniqExact(epoch) > 1"
_FIRST_WATERMARKS = (
    "SELECT collector, epoch, min(first_watermark_us) FROM heard_runs WHERE {which} AND first_watermark_us > 0"
    " GROUP BY collector, epoch"
)
_MOST_NAMED = 100  # more are told by where they come from: a list takes longer than what it saves


@dataclass(frozen=True, slots=True)
class Clocks:
    """The log clocks up to which partitions are booked, by (topic id, partition), of topics that go on; those that have
    ended or are abandoned do not.
    """

    by_partition: Mapping[tuple[str, int], datetime]

    @property
    def least(self) -> datetime | None:
        return min(self.by_partition.values(), default=None)

    def of(self, key: tuple[str, int]) -> datetime | None:
        """Return a partition's clock; of one whose topic does not go on, the newest of all."""
        return self.by_partition.get(key) or max(self.by_partition.values(), default=None)


class _Epoch(NamedTuple):
    """What is known of one epoch of a collector at its home."""

    collector: str
    epoch: str
    home: tuple[str, int]
    first_clock_ms: int
    clock_ms: int
    last: int
    watermark_us: int
    subjects: frozenset[str]
    types: frozenset[str]


def read_collectors(client: Client, clocks: Clocks) -> tuple[CollectorSeen, ...]:
    """Return all collectors that were ever heard, by name.

    Args:
        clocks: How far partitions are booked, read before.
    """
    epochs = client.execute(f"SELECT {_NEWEST}")[0][0]
    return _all_seen(epochs, clocks, _read_retired(client))


def read_lagging(
    client: Client, clocks: Clocks, mark: datetime | None, *along: str, any_retired: bool = True
) -> tuple[Sequence[Any], tuple[CollectorSeen, ...]]:
    """Return, by name, the collectors that hold back up to when usage is complete: those that have said less than
    `mark` and are not retired; none for None.

    Args:
        clocks: How far partitions are booked, read before: who spoke below these clocks is known now.
        along: The SQL of values that are read along, since a statement costs more by itself than most find.
        any_retired: Whether operators may have retired some; if not, nobody needs to ask.

    Returns:
        The values, and the collectors.
    """
    retired = _read_retired(client) if any_retired else {}
    oldest = (clocks.least or _EPOCH) - RETIRED_AFTER
    limits = {"mark": _micros(mark) if mark else 0, "oldest": max(_micros(oldest) // 1000, 0)}
    asked = ", ".join((*(f"({sql})" for sql in along), f"{_NEWEST}{_LAGGING}"))
    *values, epochs = client.execute(f"SELECT {asked}", limits)[0]
    seen = _all_seen(epochs, clocks, retired)
    return values, tuple(
        each for each in seen if each.state != "retired" and each.watermark and mark and each.watermark < mark
    )


def count_collectors(client: Client) -> Mapping[CollectorState, int]:
    """Return how many collectors there are in each state."""
    rows = client.execute("SELECT state, count() FROM collectors GROUP BY state")
    return {state: int(count) for state, count in rows}


def read_gaps(
    client: Client,
    subjects: Collection[str] = (),
    event_type: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    *,
    any_followed: bool = True,
) -> tuple[Gap, ...]:
    """Return what is missing, and may be, in [start, end) of event time, of the batches of collectors that measure
    usage of some subjects (none: of any) and a type (None: of any).

    A number that comes later closes its gap. Where an epoch was followed by another one, because the spool was thrown
    away or damaged, nobody can know from the log whether it had more: that is a possible gap.

    Args:
        any_followed: Whether there may be such epochs; if not, nobody needs to ask.
    """
    of, named = _of_feeds(client, subjects, event_type)
    if of is None:
        return ()
    holes = client.execute(_WITH_GAPS.format(of=of), named)
    only = " WHERE (collector, epoch) IN %(holes)s" if len(holes) <= _MOST_NAMED else f" WHERE 1{of}"
    rows = client.execute(_GAPS + only, {**named, "holes": tuple(holes)}) if holes else []
    found = [
        Gap(
            collector=collector,
            epoch=epoch,
            first=int(first),
            last=int(last),
            start=_moment(after),
            end=_moment(before),
        )
        for collector, epoch, first, last, after, before in rows
    ]
    if any_followed:
        epochs = client.execute(f"SELECT {_NEWEST} WHERE collector IN ({_FOLLOWED.format(of=of)})", named)[0][0]
        found += _tails(client, [_epoch(row) for row in epochs], start, end)
    return tuple(sorted((gap for gap in found if gap.touches(start, end)), key=_gap_order))


def _of_feeds(
    client: Client, subjects: Collection[str], event_type: str | None
) -> tuple[str | None, dict[str, Any]]:
    """Return one more condition on collectors, that they may feed usage, and what its SQL names; None: none may."""
    if not subjects and event_type is None:
        return "", {}
    feeds = _feeds_sql(subjects, event_type)
    asked: dict[str, Any] = {"subjects": list(subjects), "type": event_type}
    names = client.execute(f"{feeds} LIMIT {_MOST_NAMED + 1}", asked)
    if not names:
        return None, {}
    if len(names) <= _MOST_NAMED:
        return " AND collector IN %(feeds)s", {"feeds": tuple(name for (name,) in names)}
    return f" AND collector IN ({feeds})", asked


def _feeds_sql(subjects: Collection[str], event_type: str | None) -> str:
    """Return the SQL of the collectors that may feed usage, as `CollectorSeen.may_feed` says it."""
    feeds = _FEEDS
    for column, asked, wanted in (
        ("subjects", bool(subjects), "hasAny(named, %(subjects)s)"),
        ("types", event_type is not None, "has(named, %(type)s)"),
    ):
        if asked:
            named = f"groupUniqArrayArray({column})"
            feeds += f" AND (empty({named}) OR has({named}, '') OR {wanted.replace('named', named)})"
    return feeds


def retire(client: Client, collectors: Iterable[CollectorSeen], name: str) -> CollectorSeen:
    """Say that a collector will not come back; if it is heard again all the same, it lives.

    Raises:
        UsageQueryError: There is none of that name, or it still sends.
    """
    known = {each.name: each for each in collectors}
    found = known.get(name)
    if found is None:
        raise UsageQueryError(f'collector: expected one that was heard, got "{name}"{nearest(name, known)}')
    if found.state == "live":
        raise UsageQueryError(
            f'collector "{name}" still sends (last heard {found.last_heard.isoformat()}); stop it first'
        )
    heard_ms = (found.last_heard - _EPOCH) // timedelta(milliseconds=1)
    client.execute("INSERT INTO collectors_retired (collector, heard_ms) VALUES", [(name, heard_ms)])
    return found


def _read_retired(client: Client) -> Mapping[str, int]:
    """Return up to which log clock, in milliseconds, operators have retired collectors, by name."""
    return {name: int(heard_ms) for name, heard_ms in client.execute(_RETIRED)}


def _all_seen(
    rows: Iterable[Sequence[Any]], clocks: Clocks, retired: Mapping[str, int]
) -> tuple[CollectorSeen, ...]:
    epochs = [_epoch(row) for row in rows]
    return tuple(_seen(each, clocks, retired.get(name, -1)) for name, each in _by_collector(epochs))


def _epoch(row: Sequence[Any]) -> _Epoch:
    collector, epoch, topic_id, partition, first_ms, clock_ms, last, mark_us, subjects, types = row
    names = frozenset(subjects), frozenset(types)
    return _Epoch(collector, epoch, (topic_id, partition), first_ms, clock_ms, last, mark_us, *names)


def _by_collector(epochs: Iterable[_Epoch]) -> Iterable[tuple[str, list[_Epoch]]]:
    """Return each collector's epochs, the newest last."""
    found: dict[str, list[_Epoch]] = {}
    for each in sorted(epochs, key=lambda each: (each.collector, each.clock_ms, each.first_clock_ms)):
        found.setdefault(each.collector, []).append(each)
    return found.items()


def _seen(epochs: Sequence[_Epoch], clocks: Clocks, retired_ms: int) -> CollectorSeen:
    newest = epochs[-1]
    heard = _EPOCH + timedelta(milliseconds=newest.clock_ms)
    silence = (clocks.of(newest.home) or heard) - heard
    state: CollectorState = "live"
    if retired_ms >= newest.clock_ms or silence > RETIRED_AFTER:
        state = "retired"
    elif silence > SILENT_AFTER:
        state = "silent"
    # A topic that grew gave the epoch a second home: how far it has sent is the most that it said at any of them.
    watermark_us = max(each.watermark_us for each in epochs if each.epoch == newest.epoch)
    return CollectorSeen(
        name=newest.collector,
        state=state,
        watermark=_EPOCH + timedelta(microseconds=watermark_us) if watermark_us else None,
        last_heard=heard,
        epoch=newest.epoch,
        sequence=max(each.last for each in epochs if each.epoch == newest.epoch),
        epochs=len({each.epoch for each in epochs}),
        subjects=newest.subjects.union(*(each.subjects for each in epochs[:-1])),
        types=newest.types.union(*(each.types for each in epochs[:-1])),
    )


def _tails(client: Client, heard: Iterable[_Epoch], start: datetime | None, end: datetime | None) -> list[Gap]:
    """Return where epochs ended that others followed, as far as it may be in [start, end). Two that were heard at the
    same time follow no one.
    """
    pairs = []
    for _, homes in _by_collector(heard):
        pairs += [(old, new) for old, new in pairwise(_joined(homes)) if old.clock_ms <= new.first_clock_ms]
    if start is not None:  # the next one's first watermark is not behind its newest
        pairs = [(old, new) for old, new in pairs if not 0 < new.watermark_us < _micros(start)]
    if end is not None:
        pairs = [(old, new) for old, new in pairs if old.watermark_us < _micros(end)]
    if not pairs:
        return []
    news = tuple((new.collector, new.epoch) for _, new in pairs)
    followed = f"collector IN ({_FOLLOWED.format(of='')})"
    which = "(collector, epoch) IN %(epochs)s" if len(news) <= _MOST_NAMED else followed
    rows = client.execute(_FIRST_WATERMARKS.format(which=which), {"epochs": news})
    begins = {(collector, epoch): int(first) for collector, epoch, first in rows}
    return [
        Gap(
            collector=old.collector,
            epoch=old.epoch,
            first=old.last + 1,
            last=None,
            start=_from_us(old.watermark_us),
            end=_from_us(begins.get((new.collector, new.epoch), 0)),
        )
        for old, new in pairs
    ]


def _joined(homes: Sequence[_Epoch]) -> list[_Epoch]:
    """Join what one epoch said at several homes; in the order in which epochs began."""
    found: dict[str, _Epoch] = {}
    for each in homes:
        one = found.get(each.epoch)
        found[each.epoch] = each if one is None else _Epoch(
            each.collector, each.epoch, each.home,
            min(one.first_clock_ms, each.first_clock_ms), max(one.clock_ms, each.clock_ms),
            max(one.last, each.last), max(one.watermark_us, each.watermark_us),
            one.subjects | each.subjects, one.types | each.types,
        )  # fmt: skip
    return sorted(found.values(), key=lambda each: each.first_clock_ms)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _from_us(moment_us: int) -> datetime | None:
    return _EPOCH + timedelta(microseconds=moment_us) if moment_us else None


def _moment(value: Any) -> datetime | None:
    """Read a time of a view, which has 1970 where it is not known."""
    moment: datetime = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return moment if moment > _EPOCH else None


def _gap_order(gap: Gap) -> tuple[str, datetime, int]:
    return gap.collector, gap.start or _EPOCH, gap.first
