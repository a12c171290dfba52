"""What ClickHouse says of damaged places in the log: partitions that are set aside, and decisions to go on behind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tallyman.usage import Repair

if TYPE_CHECKING:
    from clickhouse_driver import Client

_REPAIRS = (
    "SELECT topic_id, partition, number, chunk_size, from_offset, to_offset, from_clock_ms, to_clock_ms, from_booking,"
    " booking, definitions, counts, reason, note, who, decided_at FROM repairs FINAL"
)
# A condition on rows of `ids`: those at a repair's place or behind it, written by a worker that did not know of the
# repair, never counted. Their records were skipped, or were judged anew since, perhaps by other definitions.
NOT_UNDONE = (
    " AND NOT arrayExists("
    "each -> topic_id = each.1 AND partition = each.2 AND offset >= each.3 AND ids.repairs < each.4,"
    " (SELECT groupArray((toString(topic_id), partition, from_offset, number)) FROM repairs FINAL))"
)
# The same of rows that are keyed by position and say their booking: dead letters, conflicts, raw records. What lies
# behind a repair is judged anew in its booking or a later one, and says so then. (What was skipped is judged by nobody:
# no count has it, which the view `reconciliation` sees to; a dead letter of it stays, and can be let in again.)
NOT_JUDGED_ANEW = (
    " AND NOT arrayExists("
    "each -> topic_id = each.1 AND partition = each.2 AND offset >= each.3 AND booking < each.4,"
    " (SELECT groupArray((toString(topic_id), partition, to_offset, booking)) FROM repairs FINAL))"
)
LATE = "late"  # reason of what is no decision: it stood behind a topic's end and was not copied
_LOST = (
    "SELECT topic_id, partition, 0, chunk_size, from_offset, to_offset, from_clock_ms, to_clock_ms, booking, booking,"
    " definitions, [], 'late', '', '', noticed_at FROM late_lost FINAL ORDER BY topic_id, partition, from_offset"
)
_CONSTRAINT = re.compile(r"\bCONSTRAINT `?((?:repaired|sealed)_\w+)`? ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A partition that is set aside: it stands at `offset`, and nothing is booked or sealed behind it."""

    topic_id: str
    partition: int
    offset: int
    reason: str
    detail: str
    noticed_at: datetime


def read_repairs(client: Client, topic_id: str | None = None, partition: int | None = None) -> tuple[Repair, ...]:
    """Return the decisions, of a partition in the order in which they were taken."""
    wanted = " WHERE topic_id = %(topic)s AND partition = %(partition)s" if topic_id is not None else ""
    rows = client.execute(
        f"{_REPAIRS}{wanted} ORDER BY topic_id, partition, number", {"topic": topic_id, "partition": partition}
    )
    return tuple(map(_repair, rows))


def read_lost(client: Client) -> tuple[Repair, ...]:
    """Return what stood behind the end of a topic and was not copied to the one that follows: retention took it before,
    or it is too large.

    Nobody decided it, and no frontier goes by it; figures lack it as they lack what a repair skipped.
    """
    return tuple(map(_repair, client.execute(_LOST)))


def note_lost(client: Client, lost: Repair) -> None:
    """Write such a gap down; of those that begin at the same offset the longest counts."""
    client.execute(
        "INSERT INTO late_lost (topic_id, partition, chunk_size, from_offset, to_offset, from_clock_ms, to_clock_ms,"
        " booking, definitions, noticed_at) VALUES",
        [(lost.topic_id, lost.partition, lost.chunk_size, lost.from_offset, lost.to_offset, lost.from_clock_ms,
          lost.to_clock_ms, lost.booking, lost.definitions, lost.decided_at)],
    )  # fmt: skip


def _repair(row: Sequence[Any]) -> Repair:
    found = dict(zip(Repair.__dataclass_fields__, row, strict=True))
    return Repair(**{**found, "counts": tuple(found["counts"])})


def newest_repairs(repairs: Sequence[Repair]) -> dict[tuple[str, int], Repair]:
    """Return the newest decision of each partition: all that stands before it is closed."""
    return {(each.topic_id, each.partition): each for each in repairs}


def note_quarantine(client: Client, topic_id: str, partition: int, offset: int, reason: str, detail: str) -> None:
    """Write down that a partition is set aside; again changes nothing."""
    known = len(read_repairs(client, topic_id, partition))
    client.execute(
        "INSERT INTO quarantines (topic_id, partition, offset, repairs, reason, detail) VALUES",
        [(topic_id, partition, offset, known, reason, detail)],
    )


def read_quarantines(
    client: Client, reached: Mapping[tuple[str, int], int], repairs: Sequence[Repair]
) -> tuple[Quarantine, ...]:
    """Return the partitions that are set aside now.

    Args:
        reached: How far each partition is booked: what was booked behind a quarantine has left it.
    """
    newest = newest_repairs(repairs)
    rows = client.execute(
        "SELECT topic_id, partition, offset, reason, detail, noticed_at, repairs FROM quarantines FINAL"
        " ORDER BY topic_id, partition, noticed_at"
    )
    found = {}
    for topic_id, partition, offset, reason, detail, noticed_at, known in rows:
        key = topic_id, partition
        decided = newest[key].number if key in newest else 0
        if reached.get(key, 0) <= offset and decided == known:
            found[key] = Quarantine(topic_id=topic_id, partition=partition, offset=offset, reason=reason,
                                    detail=detail, noticed_at=noticed_at)  # fmt: skip
    return tuple(found.values())


def unfence(client: Client, table: str) -> None:
    """Let a private copy of a table take rows of every age: a copy has its original's constraints."""
    (query,) = client.execute(
        "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = %(name)s",
        {"name": table},
    )[0]
    for name in _CONSTRAINT.findall(query):
        client.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
