"""Executable specification of how Tallyman books usage: log -> chunks -> usage_hot -> usage.

What becomes of a record is in `judging.py`. Every rule of the protocol is a switch in `Rules`; `chunk_check.py` runs
seeded interleavings and shows what each is for. Workers, sealers and readers are generators: at each `yield` a process
may be paused, killed or overtaken.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.model.judging import AHEAD, OLDEST, Event, Known, Record, accept, judge

CHUNK = 8  # offsets in a chunk, fixed for the life of a topic
DAY = 10  # minutes in a day; small, so that a schedule crosses several
CLOSES = 100  # booking = day * CLOSES + the number of the close on that day
BLOCK = 4  # rows of usage that the store takes as one block; what is larger it cuts, and each piece stands alone
CORRECTABLE, NEVER = "c", (-1, "")  # the subject whose events are corrected; they have no latest value


@dataclass(frozen=True)
class Rules:
    """The protocol: each field is one rule that an implementation must keep."""

    seen_at_start: bool = True  # a re-read knows the ids accepted below its start, and only those
    restart_at_turn: bool = True  # a re-read starts where the chunk's last booking began: retention is safe
    ids_before_progress: bool = True  # accepted ids are durable before the progress row
    remember_longer_than_late: bool = True  # ids outlive the lateness limit
    remember_from_event_time: bool = True  # counted from the later of log clock and event time (replays may lie ahead)
    home_partition: bool = True  # an event counts only in the partition that its identity hashes to
    judge_by_log_time: bool = True  # lateness is judged by append times in the log, never by a worker's clock
    clock_never_back: bool = True  # the log clock is the running maximum of append times
    meters_in_key: bool = True  # rows of different definitions never replace each other
    meters_from_log: bool = True  # the meter definitions in force at an offset are those that the log names
    chunk_size_pinned: bool = True  # the chunk size belongs to the topic, not to a worker's configuration
    refuse_truncated_head: bool = True  # a read below the log start fails (auto_offset_reset="none")
    clean_when_acked: bool = True  # a key stays dirty until the block that holds it was acknowledged
    close_before_next: bool = True  # the next chunk starts when the last flush of this one was acknowledged
    flush_fits_a_block: bool = True  # what a process flushes together is one block: the store does not cut it
    progress_after_data: bool = True  # the progress row follows its data rows
    push_after_progress: bool = True  # who waits for usage is told of a place when its rows can be read
    progress_read_first: bool = True  # a reader asks for progress, then for data
    longest_prefix_wins: bool = True  # a row's version = the offsets covered from the chunk start
    book_by_log_day: bool = True  # rows carry and are partitioned by their booking; one block each, in order
    private_staging: bool = True  # each sealing attempt has its own staging table
    recheck_before_replace: bool = True  # after reading the rows, check that the booking is still unsealed
    correct_what_counted: bool = True  # a correction is accepted if what it names was accepted before it, as it says


class Place(NamedTuple):
    """A position in a partition, with the log clock, the booking and the meters before the record at it."""

    offset: int
    clock: int
    booking: int
    meters: int


class Broken(AssertionError):
    """An invariant does not hold."""


class TruncatedError(Exception):
    """The wanted offset is below the start of the log."""


class InsertError(Exception):
    """An insert was not acknowledged: it happened or it did not."""


class PartitionLog:
    """One Kafka partition: offsets with gaps (markers, aborted records) and a start that retention moves."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.start = self.end = 0

    def append(
        self, event: Event | None, appended_at: int, admitted: bool = False, opens: int = 0, meters: int = 0
    ) -> None:
        self.records.append(Record(self.end, appended_at, event, admitted, opens, meters))
        self.end += 1

    def next(self, position: int, stop: int, strict: bool) -> tuple[Record | None, int]:
        """Return the next record below `stop` and the position after it; gaps move the position too."""
        if position < self.start and strict:
            raise TruncatedError(position)
        for record in self.records:
            if record.offset >= max(position, self.start):
                return (record, record.offset + 1) if record.offset < stop else (None, stop)
        return None, max(position, min(stop, self.end))


class Store:
    """ClickHouse. Tables are {key: (version, block number, value)}: the highest version stays, of ties the last."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.blocks = rng, 0
        self.tables: dict[str, dict] = defaultdict(dict)
        self.staging: dict[str, dict] = defaultdict(dict)
        self.sealed: dict[int, dict] = {}

    def insert(self, table: str, rows: list[tuple[tuple, int, tuple]], failing: float) -> None:
        """Insert (key, version, value) rows as one block of one ClickHouse partition, the only thing that is atomic."""
        fails = self.rng.random() < failing
        if not fails or self.rng.random() < 0.5:
            self.blocks += 1
            for key, version, value in rows:
                if version >= self.tables[table].get(key, (-1,))[0]:
                    self.tables[table][key] = (version, self.blocks, value)
        if fails:
            raise InsertError(table)

    def final(self, table: str) -> dict[tuple, tuple]:
        return {key: value for key, (_, _, value) in self.tables[table].items()}


def add(totals: dict, key: tuple, value: tuple) -> None:
    """Merge a (count, sum, latest) into `totals`; latest is (minute, identity), so that ties have one winner."""
    old = totals.get(key, (0, 0, value[2]))
    totals[key] = (old[0] + value[0], old[1] + value[1], max(old[2], value[2]))


def booking_after(booking: int, clock: int, record: Record) -> int:
    """Return the record's booking: its log day, or what a close opened (it names it: a second copy is harmless)."""
    return max(booking, clock // DAY * CLOSES, record.opens)


class World:
    """What outlives every process: the log, the store, the control store; and the queries that services ask."""

    def __init__(self, seed: int, rules: Rules) -> None:
        self.rng, self.rules, self.store = random.Random(seed), rules, Store(random.Random(seed))
        self.now, self.broker_skew, self.calm, self.replaying = 20, 0, False, False
        self.logs = [PartitionLog() for _ in range(self.rng.choice((2, 2, 3)))]
        self.told: dict[int, int] = {}  # the places that were pushed to whoever waits for usage
        self.meters = 0  # control store: the newest meter definitions
        self.sealed_to = -1  # control store: every booking up to this one is sealed
        self.opened = 0  # control store: the booking of the newest close

    def home(self, event: Event) -> int:
        """Return the partition in which an event counts."""
        return zlib.crc32(event.first.encode()) % len(self.logs)

    def meter(self, event: Event, meters: int) -> tuple[str, tuple]:
        """Apply the meter definitions: the second ones merge subjects and change the unit.

        What can be corrected has no latest value, which does not know what was before it.
        """
        factor = (1, 1000)[meters > 0]
        if event.subject == CORRECTABLE:
            count = bool(event.value) - bool(event.was)
            return event.subject, (count, (event.value - event.was) * factor, NEVER)
        return event.subject if meters == 0 else "a", (1, event.value * factor, (event.minute, event.identity))

    def frontier(self, partition: int) -> tuple[int, Place, Place, Place]:
        """Return the first open chunk, its start, where its last booking began, and the place reached.

        The frontier is the unbroken run of closed chunks from the first one.
        """
        mine = {key[1]: value for key, value in self.store.final("progress").items() if key[0] == partition}
        chunk, start = 0, Place(0, 0, 0, 0)
        while mine.get(chunk, (0,))[0] >= CHUNK:
            chunk, start = chunk + 1, mine[chunk][1]
        _, here, turned = mine.get(chunk, (0, start, start))
        return chunk, start, turned, here

    def reached(self) -> list[int]:
        return [self.frontier(partition)[3].offset for partition in range(len(self.logs))]

    def booking_to_seal(self) -> int | None:
        """Return the oldest unsealed booking that every partition has left, so that nothing can be booked into it."""
        ends = [self.frontier(partition)[3] for partition in range(len(self.logs))]
        by_log = self.rules.book_by_log_day
        open_from = min(end.booking if by_log else (end.clock - AHEAD) // DAY * CLOSES for end in ends)
        waiting = sorted({key[2] for key in self.hot_rows() if self.sealed_to < key[2] < open_from})
        return waiting[0] if waiting else None

    def hot_rows(self) -> dict[tuple, tuple]:
        """Rows above the seal. What lies below is sealed already, or a zombie's late write."""
        return {
            key: value
            for key, value in self.store.final("usage_hot").items()
            if key[2] > self.sealed_to or not self.rules.book_by_log_day
        }

    def sealed(self) -> dict[int, dict[tuple, tuple]]:
        """Return the rows of each sealed booking."""
        return self.store.sealed

    def usage(self) -> dict[tuple, tuple]:
        """Total per (subject, minute), as a dashboard or an invoice reads it."""
        totals: dict[tuple, tuple] = {}
        for booking, rows in self.sealed().items() if self.rules.book_by_log_day else ():
            for key, value in rows.items() if booking <= self.sealed_to else ():
                add(totals, key[2:], value)
        for key, value in self.hot_rows().items():
            add(totals, key[4:], value)
        return totals


def work(world: World):
    """Run a worker: take some partitions, book them from their frontiers, let go. No lock, no lease, no fencing."""
    rng = world.rng
    while True:
        held: list[OpenChunk] = []
        for partition in rng.sample(range(len(world.logs)), rng.randint(1, len(world.logs))):
            held.append((yield from open_chunk(world, partition)))
        for _ in range(rng.randint(1, 24)):
            if not (yield from rng.choice(held).book(held)):
                break  # a process that cannot go on forgets all that it holds
            yield
        yield


def open_chunk(world: World, partition: int):
    """Return the open chunk of a partition as a restart finds it: the frontier, and the ids below it."""
    rules = world.rules
    chunk, start, turned, _ = world.frontier(partition)
    start = turned if rules.restart_at_turn else start
    yield
    seen: dict[str, Known] = {}
    for (owner, offset), (identity, known) in sorted(world.store.final("ids").items()):
        below = offset < start.offset or not rules.seen_at_start
        forgotten = start.clock - known.remembered_from > OLDEST // 3 and not rules.remember_longer_than_late
        if owner == partition and below and not forgotten:
            seen[identity] = known  # ids older than REMEMBER answer for admitted records only
    yield
    return OpenChunk(world, partition, chunk, start, start, seen)


@dataclass
class OpenChunk:
    """One chunk, booked from its start or from where its last booking began. Its state is a function of the log."""

    world: World
    partition: int
    number: int
    here: Place
    turned: Place
    seen: dict[str, Known]
    totals: dict[tuple, tuple] = field(default_factory=dict)
    dirty: set = field(default_factory=set)  # keys whose newest value is not acknowledged
    ids: list = field(default_factory=list)  # accepted ids that are not acknowledged
    strays: list = field(default_factory=list)
    acknowledged: Place | None = None  # of the last progress row

    def __post_init__(self) -> None:
        self.size = CHUNK if self.world.rules.chunk_size_pinned or self.world.rng.random() < 0.5 else CHUNK * 2
        if not self.world.rules.chunk_size_pinned:
            self.here = self.here._replace(offset=self.start)

    @property
    def start(self) -> int:
        return self.number * self.size

    @property
    def covered(self) -> int:
        """How many offsets are folded in, from the start of the chunk: the version of its rows."""
        return self.here.offset - self.start

    def book(self, held: list[OpenChunk]):
        """Count the next record, flush what must be or may be; return whether the process can go on."""
        world, rules = self.world, self.world.rules
        end = self.start + self.size
        try:
            record, position = world.logs[self.partition].next(self.here.offset, end, rules.refuse_truncated_head)
        except TruncatedError:
            return False  # read the frontier again; if it persists, an operator decides
        there = self.place_after(record, position) if record else self.here._replace(offset=position)
        if record and (there.booking, there.meters) != (self.here.booking, self.here.meters):
            if self.dirty and rules.book_by_log_day and not (yield from flush(world, self.together(held))):
                return False  # a flush ends where the booking or the meters end
            # What lies before is booked: nobody need read it again. Not the place reached, which may be in a gap: all
            # that have read so far name the same place.
            self.turned = self.here._replace(offset=record.offset)
        self.here = there
        if record:
            self.fold(record)
        closed = self.here.offset >= end
        full = len(self.dirty) >= BLOCK and rules.flush_fits_a_block
        if closed or full or not record or world.rng.random() < 0.3:
            flushed = yield from flush(world, self.together(held))
            while not flushed and (full or (closed and rules.close_before_next)):
                flushed = yield from flush(world, self.together(held))
        if closed:
            held[held.index(self)] = OpenChunk(world, self.partition, self.number + 1, self.here, self.here, self.seen)
        return True

    def place_after(self, record: Record, offset: int) -> Place:
        clock = max(self.here.clock, record.appended_at) if self.world.rules.clock_never_back else record.appended_at
        booking, meters = booking_after(self.here.booking, clock, record), max(self.here.meters, record.meters)
        return Place(offset, clock, booking, meters)

    def fold(self, record: Record) -> None:
        """Count one record into the chunk."""
        world, rules, event = self.world, self.world.rules, record.event
        clock, booking = self.here.clock, self.here.booking
        at_home = event is not None and (world.home(event) == self.partition or not rules.home_partition)
        judged_at = clock if rules.judge_by_log_time else world.now
        verdict = judge(record, judged_at, self.here.meters, at_home, self.seen)
        if event and event.corrects and verdict == "dead" and not rules.correct_what_counted:
            verdict = "accepted"
        if verdict == "stray":
            self.strays.append(event)
        if verdict == "accepted":
            remembered_from = max(clock, event.minute) if rules.remember_from_event_time else clock
            known = accept(event, remembered_from, self.here.meters, self.seen)
            self.ids.append(((self.partition, record.offset), 0, (event.identity, known)))
            subject, value = world.meter(event, self.here.meters if rules.meters_from_log else world.meters)
            booked_in = booking if rules.book_by_log_day else event.minute // DAY * CLOSES
            key = (booked_in, self.here.meters if rules.meters_in_key else 0, subject, event.minute)
            add(self.totals, key, value)
            self.dirty.add(key)

    def together(self, held: list[OpenChunk]) -> list[OpenChunk]:
        """Return this chunk and others of the process that have something to write, as long as all is one block."""
        cuts, keys = [self], len(self.dirty)
        for other in held:
            keys += len(other.dirty) if other is not self else 0
            if keys > BLOCK and self.world.rules.flush_fits_a_block:
                break
            if other is not self and other.acknowledged != other.here and self.world.rng.random() < 0.7:
                cuts.append(other)
        return cuts

    def rows(self, booking: int) -> list[tuple[tuple, int, tuple]]:
        """Return the changed rows of a booking: (key, version, value)."""
        version = self.covered if self.world.rules.longest_prefix_wins else self.world.store.blocks
        keys = sorted(key for key in self.dirty if key[0] == booking)
        return [((self.partition, self.number, *key), version, self.totals[key]) for key in keys]


def flush(world: World, cuts: list[OpenChunk]):
    """Write what some open chunks of one process have, together: each is a cut through its own part of the log.

    Forwards, ids, changed rows, progress, in this order; then the push. Return whether all was acknowledged.
    """
    rules, store = world.rules, world.store
    writes = [("ids", [row for cut in cuts for row in cut.ids])]
    for booking in sorted({key[0] for cut in cuts for key in cut.dirty}):  # every cut is a prefix of the log
        rows = [row for cut in cuts for row in cut.rows(booking)]
        writes += [("usage_hot", rows[first : first + BLOCK]) for first in range(0, len(rows), BLOCK)]
    progress = [((cut.partition, cut.number), cut.covered, (cut.covered, cut.here, cut.turned)) for cut in cuts]
    writes.append(("progress", progress))
    if not rules.ids_before_progress:
        writes.append(writes.pop(0))
    if not rules.progress_after_data:
        writes.insert(1, writes.pop(-1))
    if not rules.clean_when_acked:
        for cut in cuts:
            cut.dirty.clear()
    if not rules.push_after_progress:
        tell(world, cuts)
    yield from forward(world, cuts)
    try:
        for table, rows in writes:
            if rows:
                store.insert(table, rows, failing=0.0 if world.calm else 0.05)
                yield
    except InsertError:
        return False
    for cut in cuts:
        cut.dirty.clear()
        cut.ids.clear()
        cut.acknowledged = cut.here
    tell(world, cuts)
    return True


def forward(world: World, cuts: list[OpenChunk]):
    """Send what counts in another partition there, as judged already."""
    for cut in cuts:
        while cut.strays and not world.replaying:
            event = cut.strays[0]
            world.logs[world.home(event)].append(event, world.now + world.broker_skew, admitted=True)
            cut.strays.pop(0)  # acknowledged; a crash before this line sends it again
            yield


def tell(world: World, cuts: list[OpenChunk]) -> None:
    """Push the places up to which usage can be read."""
    for cut in cuts:
        world.told[cut.partition] = max(world.told.get(cut.partition, 0), cut.here.offset)


def seal(world: World):
    """Run a sealer; there may be several. Copy the rows of a finished booking into `usage`, atomically."""
    rules, store = world.rules, world.store
    while True:
        booking = world.booking_to_seal()
        yield
        if booking is None:
            continue
        totals: dict[tuple, tuple] = {}
        for key, value in world.hot_rows().items():
            if key[2] == booking:
                add(totals, key[2:], value)
        if rules.recheck_before_replace and world.sealed_to >= booking:
            continue
        name = f"staging_{world.rng.random()}" if rules.private_staging else "staging"
        yield
        for key, value in totals.items():
            add(store.staging[name], key, value)
        yield
        rows = store.staging.pop(name, {})  # REPLACE PARTITION
        if store.sealed.get(booking, rows) != rows:
            raise Broken(f"I4 sealed booking {booking} changed")
        store.sealed[booking] = rows
        yield
        world.sealed_to = max(world.sealed_to, booking)


def close(world: World):
    """Close the books now, and perhaps apply new meters: one record into each partition, or two after a crash."""
    while True:
        yield
        if world.rng.random() < 0.9:
            continue
        behind = world.rng.choice((0, 0, DAY))  # the operator's clock may be behind the log's
        world.opened = max(world.opened, (world.now - behind) // DAY * CLOSES) + 1  # by compare-and-set
        opens, apply = world.opened, world.rng.random() < 0.3
        if apply:
            world.meters = 1
        for log in world.logs:
            for _ in range(world.rng.choice((1, 1, 2))):
                log.append(None, world.now + world.broker_skew, opens=opens, meters=1 if apply else 0)
                yield
