"""Where to go on: the frontier of each partition, read from ClickHouse, and the ids below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from clickhouse_driver import Client

from pipeline.aggregate import Needs, Table
from pipeline.book import Counts, OpenChunk, Place
from pipeline.identities import HASHES, Accepted, AcceptedIds, Portion
from tallyman.clickhouse import store_errors
from tallyman.errors import StoreError
from tallyman.repairs import NOT_UNDONE, read_repairs
from tallyman.topics import begin_of, ends_of
from tallyman.usage import Repair

_ASKED_AT_ONCE, _PORTION = 20_000, 1_000_000  # ids
PLACES = (
    "reached_offset, reached_clock_ms, reached_booking, reached_definitions, reached_digest, reached_counts,"
    " turned_offset, turned_clock_ms, turned_booking, turned_definitions, turned_digest, turned_counts"
)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The unbroken run of closed chunks, and the open one behind it.

    Attributes:
        chunk: Number of the first open chunk; `start`: the place where it begins.
        repairs: How many repairs of the partition it takes into account.
        sealed_to: The newest booking that was sealed before the rest was read: the partition has left it, unless
            another line of topics sealed it.
        turned: Where a restart begins; `reached`: how far any writer's progress goes.
    """

    topic_id: str
    partition: int
    chunk: int
    start: Place
    turned: Place
    reached: Place
    repairs: int = 0
    sealed_to: int = 0

    @property
    def in_sealed(self) -> bool:
        """Whether it stands in what is sealed."""
        return bool(self.sealed_to) and self.reached.booking <= self.sealed_to

    def open(self, size: int, needs: Needs) -> OpenChunk:
        """Return the open chunk as a restart finds it: nothing folded since its last booking began."""
        earlier = self.reached if self.reached.offset > self.turned.offset else None
        booked = self.reached.counts.received
        return OpenChunk(self.topic_id, self.partition, size, self.chunk, self.turned, self.turned,
                         self.turned.offset, Table(needs), AcceptedIds(), earlier,
                         repairs=self.repairs, sealed_to=self.sealed_to, booked=booked)  # fmt: skip


def read_frontier(client: Client, topic_id: str, partition: int, size: int) -> Frontier:
    """Read the frontier of a partition, counted from the place that the last seal recorded, or from its first one.

    Raises:
        StoreError, StoreRefusedError: ClickHouse did not tell.
    """
    with store_errors(client, f"reading progress and seals for partition {partition}"):
        return _read_frontier(client, topic_id, partition, size)


def _read_frontier(client: Client, topic_id: str, partition: int, size: int) -> Frontier:
    repairs = read_repairs(client, topic_id, partition)
    sealed_to, chunk, start = _sealed_place(client, topic_id, partition)
    if repairs and chunk <= repairs[-1].chunk:
        # All before the place where an operator let booking go on is closed by that decision.
        chunk, start = repairs[-1].chunk, repaired_place(repairs[-1])
    rows = client.execute(
        f"SELECT chunk, covered, {PLACES} FROM progress FINAL"  # noqa: S608 - our own words
        " WHERE topic_id = %(topic)s AND partition = %(partition)s AND generation = 0 AND chunk >= %(chunk)s"
        " ORDER BY chunk",
        {"topic": topic_id, "partition": partition, "chunk": chunk},
    )
    turned = reached = start
    for number, covered, *columns in rows:
        if number != chunk:
            break
        if columns[2] < start.booking:
            continue  # written before the repair that closed it
        reached, turned = place_of(columns[:6]), place_of(columns[6:])
        if covered < size:
            break
        chunk, start = chunk + 1, Place(*_place_values(reached), Counts())
        turned = reached = start
    found = Frontier(topic_id, partition, chunk, start, turned, reached, len(repairs), sealed_to)
    # What its line booked there was sealed by another one: nobody writes it again.
    return replace(found, turned=reached) if found.in_sealed else found


def repaired_place(repair: Repair) -> Place:
    """Return the place where booking goes on after a repair; a chunk that is continued keeps its counts."""
    counts = Counts(*repair.counts) if repair.from_offset // repair.chunk_size == repair.chunk else Counts()
    return Place(repair.to_offset, repair.from_clock_ms, repair.booking, repair.definitions, 0, counts)


def _sealed_place(client: Client, topic_id: str, partition: int) -> tuple[int, int, Place]:
    """Return the newest sealed booking, and the chunk to count from with its first place."""
    rows = client.execute("SELECT booking, places FROM seals FINAL ORDER BY booking DESC LIMIT 1")
    sealed_to, places = rows[0] if rows else (0, "[]")
    for place in msgspec.json.decode(places):
        if (place["topic_id"], place["partition"]) == (topic_id, partition):
            # The seal records the start of the chunk that was open: everything before it is closed.
            return int(sealed_to), place["chunk"], Place(
                place["offset"], place["clock_ms"], place["booking"], place["definitions"], place["digest"]
            )
    return int(sealed_to), 0, read_begin(client, topic_id)


def read_begin(client: Client, topic_id: str) -> Place:
    """Return the place where every partition of a topic begins.

    It is the latest clock, booking and definitions at the ends of the topic that it follows, if it follows one; else
    the booking that was given to it when it was met first, so that nothing of it is booked into what others sealed, and
    the definitions in force then.

    Raises:
        StoreError: That one is not booked to its end yet.
    """
    before, booking, definitions = begin_of(client, topic_id)
    if before is None:
        return Place(booking=booking, definitions=definitions)
    ends = ends_of(client, before.topic_id)
    if len(ends) < before.partitions:
        raise StoreError(
            f"topic {topic_id} follows {before.name}, of which {len(ends)} of {before.partitions} partitions are "
            "booked to their end; it begins when all are"
        )
    return Place(0, *(max(values) for values in list(zip(*ends.values(), strict=True))[1:]))


def place_of(columns: Any) -> Place:
    offset, clock_ms, booking, definitions, digest, counts = columns
    return Place(offset, clock_ms, booking, definitions, digest, Counts(*counts))


def _place_values(place: Place) -> tuple[int, int, int, int, int]:
    return place.offset, place.clock_ms, place.booking, place.definitions, place.digest


class StoredIds:
    """The `ids` table: see `pipeline.identities.IdStore`.

    Args:
        client: With numpy columns.
        before: The ids of the topics before, the first one first: what they accepted is known in every partition.
    """

    def __init__(self, client: Client, before: Sequence[str] = ()) -> None:
        self._client = client
        self._before = tuple(before)

    def find(
        self, topic_id: str, partition: int, below: int, identities: list[tuple[int, int]]
    ) -> dict[tuple[int, int], Accepted]:
        found: dict[tuple[int, int], Accepted] = {}
        if not below and not self._before:
            return found
        for first in range(0, len(identities), _ASKED_AT_ONCE):
            wanted = set(identities[first : first + _ASKED_AT_ONCE])
            numbers = ",".join(str(high) for high, _ in wanted)
            columns = self._ask(
                "SELECT identity_high, identity_low, offset, event_index, remembered_us, digest,"  # noqa: S608 - integers
                # By itself ClickHouse would begin with the smaller columns, which rule out nothing.
                " definitions, length(%(line)s) - indexOf(%(line)s, topic_id) FROM ids"
                f" PREWHERE identity_high IN ({numbers})"
                " WHERE (topic_id = %(topic)s AND partition = %(partition)s AND offset < %(below)s"
                f" OR topic_id IN %(before)s){NOT_UNDONE}"
                " ORDER BY indexOf(%(line)s, topic_id), offset, event_index",
                {"topic": topic_id, "partition": partition, "below": below, "before": self._before or ("",),
                 "line": [*self._before, topic_id]},
            )  # fmt: skip
            for high, low, *rest in zip(*(np.asarray(column).tolist() for column in columns), strict=True):
                if (high, low) in wanted:
                    found[high, low] = Accepted(*rest).after(found.get((high, low)))
        return found

    def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
        """Yield the accepted identities of some partitions, each below an offset, in the order of their hashes, from
        one on, about a million at a time, however many there are. All partitions are read through either way.
        """
        span = HASHES >> 12
        while start < HASHES:
            end = min(start + span, HASHES)
            columns = self._ask(
                "SELECT identity_high, identity_low FROM ids WHERE topic_id = %(topic)s AND partition IN %(partitions)s"
                " AND offset < transform(partition, %(partitions)s, %(below)s, toUInt64(0))"
                " AND identity_high >= %(start)s AND identity_high <= %(last)s",
                {"topic": topic_id, "partitions": [*below], "below": [*below.values()], "start": start,
                 "last": end - 1},
            )  # fmt: skip
            high, low = (np.asarray(column, np.uint64) for column in (columns if len(columns) else ((), ())))
            yield Portion(end, high, low)
            start, span = end, min(8 * span, span * _PORTION // max(len(high), 1))

    def _ask(self, sql: str, values: dict[str, Any]) -> Any:
        """Return columns.

        Raises:
            StoreError, StoreRefusedError: ClickHouse did not tell.
        """
        with store_errors(self._client, "reading ids"):
            return self._client.execute(sql, values, columnar=True)
