"""Reconcile what became of events: received = aggregated + duplicate + dead + ignored + forwarded, for each chunk, and
every dead letter and conflict that was counted is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clickhouse_driver import Client

_SQL = "SELECT * FROM reconciliation ORDER BY topic_id, partition, chunk"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCounts:
    """What became of the events of a chunk, or of several.

    Attributes:
        first: Offset of the first record; `behind`: the offset behind the last one that is booked.
        conflict: Those duplicates that came with other content.
        letters, conflicts: How many rows of `dead_letters` and `conflicts` there are.
    """

    topic_id: str
    partition: int
    chunk: int
    first: int
    behind: int
    received: int
    aggregated: int
    duplicate: int
    dead: int
    ignored: int
    forwarded: int
    conflict: int
    letters: int
    conflicts: int

    @property
    def faults(self) -> tuple[str, ...]:
        """What does not reconcile, as sentences; nothing when all does."""
        told = self.aggregated + self.duplicate + self.dead + self.ignored + self.forwarded
        faults = []
        if told != self.received:
            faults.append(f"received {self.received}, but {told} events have an outcome")
        if self.letters != self.dead:
            faults.append(f"dead {self.dead}, but there are {self.letters} dead letters")
        if self.conflicts != self.conflict:
            faults.append(f"conflict {self.conflict}, but there are {self.conflicts} conflicts")
        return tuple(faults)


def read_counts(client: Client) -> tuple[ChunkCounts, ...]:
    """Return the counts of every chunk that is booked, the open ones too."""
    rows, columns = client.execute(_SQL, with_column_types=True)
    names = [name for name, _ in columns]
    return tuple(ChunkCounts(**dict(zip(names, row, strict=True))) for row in rows)
