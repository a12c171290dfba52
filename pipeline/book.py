"""Where a partition stands: places, bookings, and the chunk that this process has open in it.

The rules are those of `tests/model/chunk_model.py`; a change of the protocol changes that file first. Open
chunks live in this module, not in a `DoFn`, because runners throw `DoFn` instances away while the process lives on.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pipeline.aggregate import Table
from pipeline.heard import Voices
from pipeline.identities import AcceptedIds
from pipeline.lanes import this_lane

DAY_MS = 86_400_000
BOOKINGS_PER_DAY = 1000
MAX_IDS_IN_MEMORY = 1_000_000  # of all open chunks of a process; 70 bytes each


class Counts(NamedTuple):
    """What became of the events of a chunk; received is always the sum of the next five."""

    received: int = 0
    aggregated: int = 0
    duplicate: int = 0
    dead: int = 0
    ignored: int = 0
    forwarded: int = 0
    conflict: int = 0  # those duplicates that came with other content

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a partition: log clock, booking, definitions and digest before the record at `offset`."""

    offset: int = 0
    clock_ms: int = 0
    booking: int = 0
    definitions: int = 0
    digest: int = 0
    counts: Counts = field(default_factory=Counts)


def booking_after(booking: int, clock_ms: int, opens: int = 0) -> int:
    """Return a record's booking: the day of the log clock, or a later one that a close opened. A close names the
    booking, so that a second copy of it changes nothing.

    A close that names a booking beyond tomorrow's range is nobody's close and opens nothing.
    """
    day = clock_ms // DAY_MS
    if opens >= (day + 2) * BOOKINGS_PER_DAY:
        opens = 0
    return max(booking, day * BOOKINGS_PER_DAY, opens)


def chain(digest: int, batches: Iterable[tuple[int, int, int]], first: int, before: int) -> int:
    """Chain (base offset, leader epoch, CRC) of the Kafka batches that begin in [first, before) onto a digest."""
    for base, epoch, crc in batches:
        if first <= base < before:
            digest = zlib.crc32(struct.pack("<qiI", base, epoch, crc & 0xFFFFFFFF), digest)
    return digest


@dataclass(slots=True)
class DeadLetter:
    """One event that could not be accepted, where it stands and why.

    Attributes:
        body: The event's own bytes; the whole record's when the record could not be read.
        content_type: What `body` is. How the record came, its `headers` say.
    """

    offset: int
    index: int
    appended_ms: int
    booking: int
    reason: str
    detail: str
    body: bytes
    content_type: str = ""
    type: str = ""
    source: str = ""
    subject: str = ""
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class Conflict:
    """A later copy of an accepted event, with other content."""

    offset: int
    index: int
    first_offset: int
    first_index: int
    booking: int
    appended_ms: int
    body: bytes


class CorrectionRow(NamedTuple):
    """An accepted correction: what an event counted as, and what it counts as since (empty: nothing)."""

    offset: int
    appended_ms: int
    booking: int
    subject: str
    source: str
    id: str
    version: int
    first_offset: int
    reason: str
    was: bytes
    now: bytes


@dataclass(slots=True)
class Forward:
    """A record to be sent to its home partition, before the place that it came from may be passed."""

    partition: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


@dataclass(slots=True)
class RawRecord:
    """A record for the raw archive."""

    offset: int
    appended_ms: int
    booking: int
    headers: tuple[tuple[str, bytes], ...]
    body: bytes


@dataclass(slots=True)
class OpenChunk:
    """The chunk that is being booked, from its start or from where its last booking began. A function of the log.

    Attributes:
        here: How far everything is folded in; `turned`: where the last booking began.
        base: Ids below this offset are asked of ClickHouse, ids from here on are in `accepted`.
        acknowledged: The place of the last progress row that ClickHouse acknowledged, None before the first.
        waits_since: When the first of what came behind that was folded in.
        sealed_to: The newest booking that was sealed when it was opened; `booked`: how many of its events were booked.
    """

    topic_id: str
    partition: int
    size: int
    number: int
    here: Place
    turned: Place
    base: int
    table: Table
    accepted: AcceptedIds
    earlier: Place | None = None  # a place that another run reached: its digest must be met again
    acknowledged: Place | None = None
    waits_since: float = field(default_factory=time.monotonic)
    flushed_at: float = field(default_factory=time.monotonic)
    flush_cost_s: float = 0.0  # what the last flush took
    caught_up: bool = False  # since then, the end of the log was reached
    spent_s: float = 0.0  # what it took to come here from the place where a restart begins
    repairs: int = 0  # of how many repairs of the partition this process knows
    sealed_to: int = 0
    booked: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    corrections: list[CorrectionRow] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    raw: list[RawRecord] = field(default_factory=list)
    voices: Voices = field(default_factory=Voices)

    @property
    def start(self) -> int:
        return self.number * self.size

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def covered(self) -> int:
        """How many offsets of the chunk are folded in, from its start: the version of its rows."""
        return self.here.offset - self.start

    @property
    def unwritten(self) -> bool:
        return self.acknowledged != self.here

    @property
    def in_sealed(self) -> bool:
        """Whether its events would land in a sealed booking, which only another line of topics can have sealed."""
        return 0 < self.here.booking <= self.sealed_to and self.here.counts.received > self.booked

    @property
    def full_of_ids(self) -> bool:
        """Whether a flush would let go of some: each chunk keeps its share of what a process may."""
        return len(self.accepted) > self._most_ids

    @property
    def _most_ids(self) -> int:
        return MAX_IDS_IN_MEMORY // max(1, OPEN.count())

    def forget_written_ids(self) -> None:
        """Let ClickHouse answer for the older half of what is acknowledged, before a chunk's ids fill the memory. Most
        copies are of the newest ids.
        """
        if self.full_of_ids:
            # A block that waits to be folded was judged: its ids stay.
            self.base = max(self.base, self.accepted.forget_to(self._most_ids // 2, self.here.offset))

    def turn(self, place: Place) -> None:
        """Begin a booking with the record at a place: what lies before is acknowledged, nobody need read it again."""
        self.turned = place
        self.spent_s = 0.0
        self.table.clear()
        self.voices.clear()

    def go_on(self) -> None:
        """Begin the next chunk: the last flush of this one was acknowledged."""
        self.number += 1
        self.booked = 0
        self.spent_s = 0.0
        self.base = self.start
        self.here = replace(self.here, counts=Counts())
        self.turned = self.here
        self.acknowledged = self.here  # an open chunk of which nothing was read needs no progress row
        self.table.clear()
        self.voices.clear()
        self.accepted.clear()


class OpenChunks(MutableMapping[tuple[str, int], OpenChunk]):
    """The open chunks by (topic id, partition). A thread sees those of its lane: nobody else touches them."""

    def __init__(self) -> None:
        self._lanes: dict[int, dict[tuple[str, int], OpenChunk]] = {}

    def __getitem__(self, key: tuple[str, int]) -> OpenChunk:
        return self._mine()[key]

    def __setitem__(self, key: tuple[str, int], chunk: OpenChunk) -> None:
        self._lanes.setdefault(this_lane(), {})[key] = chunk

    def __delitem__(self, key: tuple[str, int]) -> None:
        del self._mine()[key]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._mine())

    def __len__(self) -> int:
        return len(self._mine())

    def copy(self) -> dict[tuple[str, int], OpenChunk]:
        """Return them as they are now, for who looks while others open and leave chunks."""
        return self._mine().copy()

    def count(self) -> int:
        """Return how many this process has open, in all lanes."""
        return sum(map(len, list(self._lanes.values())))

    def leave(self, lane: int) -> None:
        """Forget a lane's chunks: nobody will work in it again."""
        self._lanes.pop(lane, None)

    def _mine(self) -> dict[tuple[str, int], OpenChunk]:
        return self._lanes.get(this_lane(), {})


OPEN = OpenChunks()
