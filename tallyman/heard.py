"""Read who sends, how far each collector says it has sent, and what is missing of what it numbered.

States are judged by the log clock of a collector's own partition, never by a wall clock: a pipeline that is behind
calls nobody silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

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
_RETIRED = "SELECT collector, max(heard_ms) FROM collectors_retired GROUP BY collector"
_GAPS = "SELECT collector, epoch, first, last, after, before FROM collector_gaps WHERE collector IN %(names)s"
_FIRST_WATERMARKS = (
    "SELECT collector, epoch, min(first_watermark_us) FROM heard WHERE (collector, epoch) IN %(epochs)s"
    " AND first_watermark_us > 0 GROUP BY collector, epoch"
)


@dataclass(frozen=True, slots=True)
class Clocks:
    """The log clocks up to which partitions are booked, by (topic id, partition), of topics that go on."""

    by_partition: Mapping[tuple[str, int], datetime]

    def of(self, key: tuple[str, int]) -> datetime | None:
        """Return a partition's clock; of one whose topic has ended, the newest of all."""
        return self.by_partition.get(key) or max(self.by_partition.values(), default=None)


@dataclass(frozen=True, slots=True)
class _Epoch:
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


def read_heard(client: Client, *along: str, any_retired: bool = True) -> tuple[Sequence[Any], Heard]:
    """Read who was ever heard. Read it behind progress: who spoke below its clocks is known then.

    Args:
        along: The SQL of values that are read along, since a statement costs more by itself than most find.
        any_retired: Whether operators may have retired some; if not, nobody needs to ask.
    """
    retired = {name: int(ms) for name, ms in client.execute(_RETIRED)} if any_retired else {}
    *values, epochs = client.execute(f"SELECT {', '.join((*(f'({sql})' for sql in along), _NEWEST))}")[0]
    return values, Heard([_epoch(row) for row in epochs], retired)


@dataclass(frozen=True, slots=True)
class Heard:
    """What all collectors said, and up to which log clock, in milliseconds, some of them are retired, by name."""

    epochs: Sequence[_Epoch]
    retired: Mapping[str, int]

    def collectors(self, clocks: Clocks) -> tuple[CollectorSeen, ...]:
        """Return all collectors, by name.

        Args:
            clocks: How far partitions are booked, read before.
        """
        return tuple(
            _seen(epochs, clocks, self.retired.get(name, -1)) for name, epochs in _by_collector(self.epochs)
        )


def read_gaps(
    client: Client,
    collectors: Sequence[CollectorSeen],
    start: datetime | None = None,
    end: datetime | None = None,
) -> tuple[Gap, ...]:
    """Return what is missing of some collectors' batches, and may be missing, in [start, end) of event time.

    A number that comes later closes its gap. Where an epoch was followed by another one, because the spool was thrown
    away or damaged, nobody can know from the log whether it had more: that is a possible gap.
    """
    names = [each.name for each in collectors]
    if not names:
        return ()
    missing = [
        Gap(
            collector=collector,
            epoch=epoch,
            first=int(first),
            last=int(last),
            start=_moment(after),
            end=_moment(before),
        )
        for collector, epoch, first, last, after, before in client.execute(_GAPS, {"names": names})
    ]
    followed = [each.name for each in collectors if each.epochs > 1]
    found = [*missing, *_tails(client, followed)]
    return tuple(sorted((gap for gap in found if gap.touches(start, end)), key=_gap_order))


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
        subjects=frozenset().union(*(each.subjects for each in epochs)),
        types=frozenset().union(*(each.types for each in epochs)),
    )


def _tails(client: Client, names: Sequence[str]) -> list[Gap]:
    """Return where epochs ended that others followed. Two that were heard at the same time follow no one."""
    if not names:
        return []
    wanted = set(names)
    pairs = []
    _, heard = read_heard(client, any_retired=False)
    for _, homes in _by_collector(each for each in heard.epochs if each.collector in wanted):
        epochs = _joined(homes)
        pairs += [
            (old, new) for old, new in pairwise(epochs) if old.clock_ms <= new.first_clock_ms
        ]
    if not pairs:
        return []
    rows = client.execute(_FIRST_WATERMARKS, {"epochs": [(new.collector, new.epoch) for _, new in pairs]})
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


def _from_us(moment_us: int) -> datetime | None:
    return _EPOCH + timedelta(microseconds=moment_us) if moment_us else None


def _moment(value: Any) -> datetime | None:
    """Read a time of a view, which has 1970 where it is not known."""
    moment: datetime = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return moment if moment > _EPOCH else None


def _gap_order(gap: Gap) -> tuple[str, datetime, int]:
    return gap.collector, gap.start or _EPOCH, gap.first
