"""Prove that usage in ClickHouse is what the log says: count it again from Kafka or the raw archive, and compare.

Each chunk is counted from the place where the books say it begins, and must come to the place, the counts and the
accepted identities that the books say it ends with; so each proves the next, and the first begins with nothing. Then
every row of usage is compared, and what was made of sealed usage with it. What cannot be counted again is named, never
passed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from clickhouse_driver import Client

from pipeline import recount
from pipeline.book import BOOKINGS_PER_DAY, DAY_MS, Place
from pipeline.booked import BookedChunk, expired_to, read_chunks, read_ids
from pipeline.compare import Difference, MeterCompared, compare, sides
from pipeline.derived import BlocksDifference, SealDifference, compare_blocks, compare_seals
from pipeline.frontier import read_frontier
from pipeline.hot import HotCopy, Rows
from pipeline.recount import ChunkKey, Found, RecountConfig, Recounted, SourceName, Task
from pipeline.replay import Wanted
from pipeline.runtime import Database
from pipeline.seal import read_sealed_to
from pipeline.trace import Contribution, trace
from tallyman import books
from tallyman.clickhouse import connect
from tallyman.control import open_control
from tallyman.errors import LogError, StoreError, UsageQueryError
from tallyman.files import nearest
from tallyman.kafka import read_topic
from tallyman.meter import Definitions
from tallyman.project import Project
from tallyman.rebuilds import read_switches
from tallyman.repairs import newest_repairs, read_repairs
from tallyman.usage import Repair

Show = Callable[[str, int, int], None]  # (what is done, how many of how many)
COUNTS = ("received", "aggregated", "duplicate", "dead", "ignored", "forwarded", "conflict")
LIMIT = 20
_EXPIRED = "a TTL on ids has taken identities that were accepted in it; its usage was compared"
_LOOKS = 2  # how often hot rows that progress does not reach are read again
_LOOK_EVERY_S, _PATIENCE_S = 0.2, 10.0  # while progress may catch up: a flush writes it behind the rows


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuestion:
    """What is to be proven: usage of these meters (none: all) with minutes in [start, end)."""

    meters: tuple[str, ...] = ()
    start: datetime | None = None
    end: datetime | None = None
    source: SourceName = "log"

    @property
    def wanted(self) -> Wanted:
        return Wanted(
            frozenset(self.meters) or None,
            int(self.start.timestamp()) // 60 if self.start else 0,
            int(self.end.timestamp()) // 60 if self.end else 1 << 32,
        )


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets of a partition, `last` included."""

    topic: str
    partition: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A span that could not be counted again, and its bookings.

    Attributes:
        compared: Whether their rows can be compared all the same.
    """

    span: Span
    bookings: tuple[int, int]
    reason: str
    compared: bool = False


@dataclass(frozen=True, slots=True)
class ChunkDifference:
    """A chunk that came to something else than the books say."""

    span: Span
    what: str
    booked: str
    recounted: str


@dataclass(slots=True, kw_only=True)
class AuditReport:
    """What was found. Nothing differs and nothing is unchecked: the books are what the log says.

    Attributes:
        first: Where the first difference comes from.
        reach: The first offset of each partition that could be counted again.
        rebuilt: Generations that count in this range instead of what was booked; they are proven by themselves.
        blocks, seals: Sealed bookings whose blocks, or whose seals, do not say what `usage` holds.
    """

    source: SourceName
    meters: tuple[MeterCompared, ...] = ()
    differences: tuple[Difference, ...] = ()
    first: tuple[Contribution, ...] = ()
    chunks: list[ChunkDifference] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    reach: dict[tuple[str, int], int] = field(default_factory=dict)
    rebuilt: tuple[int, ...] = ()
    checked_chunks: int = 0
    checked_events: int = 0
    blocks: list[BlocksDifference] = field(default_factory=list)
    seals: list[SealDifference] = field(default_factory=list)

    @property
    def different(self) -> int:
        rows = sum(meter.different for meter in self.meters)
        return rows + len(self.chunks) + len(self.blocks) + len(self.seals)


def audit_usage(project: Project, question: AuditQuestion, show: Show = lambda what, done, of: None) -> AuditReport:
    """Count usage again and compare it with the books. Nothing in the books is changed; a pipeline may be at work.

    Raises:
        UsageQueryError: No definitions ever had such a meter, or the range is none.
        BrokerError, StoreError: Kafka or ClickHouse does not answer; nothing is left behind that matters.
        LogError: The topic was made anew while it was read.
    """
    engine = open_control(project.control_url)
    books.prepare(engine)
    check_question(engine, question)
    client = connect(project.clickhouse)
    try:
        with recount.tables_of_a_job(project.clickhouse, client) as name:
            return _Audit(project, question, client, engine, name, show).run()
    finally:
        client.disconnect()
        engine.dispose()


def check_question(engine: sa.Engine, question: AuditQuestion) -> None:
    """Refuse a question about nothing: every answer to it would be "equal".

    Raises:
        UsageQueryError: No definitions ever had such a meter, or the range is none.
    """
    if question.start and question.end and question.start >= question.end:
        raise UsageQueryError(
            f"--to: expected a moment after --from, got {question.end:%Y-%m-%d %H:%M} for one from "
            f"{question.start:%Y-%m-%d %H:%M} on; nothing lies between them"
        )
    known = sorted({meter.meter for each in _definitions(engine) for meter in each.meters})
    for name in question.meters:
        if name not in known:
            raise UsageQueryError(f'--meter: expected one that is or was in force, got "{name}"{nearest(name, known)}')


def _definitions(engine: sa.Engine) -> list[Definitions]:
    """Return all definitions that there ever were."""
    newest = books.newest_definitions(engine)
    return [books.load_definitions(engine, number) for number in range(1, newest.number + 1 if newest else 1)]


class _Audit:
    """One audit, step by step."""

    def __init__(self, project: Project, question: AuditQuestion, client: Client, engine: sa.Engine, name: str,
                 show: Show) -> None:  # fmt: skip
        self._client, self._name, self._show = client, name, show
        self._wanted = question.wanted
        self._topics = {topic.topic_id: topic for topic in books.read_topics(engine)}
        self._report = AuditReport(source=question.source)
        self._reaches: dict[tuple[str, int], tuple[int, str]] = {}
        endpoint = project.clickhouse
        self._config = RecountConfig(
            brokers=tuple(project.kafka_brokers),
            topics=tuple((each.topic_id, each.name, each.partitions) for each in self._topics.values()),
            database=Database(host=endpoint.host, port=endpoint.port, user=endpoint.user, password=endpoint.password,
                              database=endpoint.database),
            control_url=project.control_url,
            source=question.source,
            name=name,
            wanted=question.wanted,
        )  # fmt: skip
        self._first_booking = first_booking(client, engine, self._wanted)
        self._hot = HotCopy(client, f"{name}_hot")
        self._ahead: dict[ChunkKey, int] = {}  # up to where there are rows that progress does not reach yet
        self._begun: set[ChunkKey] = set()  # chunks of which there are rows, and no progress at all

    def run(self) -> AuditReport:
        repairs = newest_repairs(read_repairs(self._client))
        self._report.rebuilt = tuple(
            each.generation for each in read_switches(self._client) if self._wanted.overlaps(each)
        )
        # In this order: bookings above the seal are read hot, and hot rows reach at least as far as progress says.
        sealed_to = read_sealed_to(self._client)
        chunks, later = self._read_books(sealed_to)
        self._note_unknown(repairs)
        within_reach = [chunk for chunk in chunks if self._is_within_reach(chunk)]
        tasks = [_task(chunk, self._ahead) for chunk in within_reach]
        found = recount.run_tasks(
            self._config, tasks, lambda done, of: self._show("counting again", done, of), self._client
        )
        self._check_totals(found)
        self._check_chunks(self._without_unread(within_reach, found.unread), found.chunks)
        skip = [each.bookings for each in self._report.unchecked if not each.compared]
        both = sides(self._name, sealed_to, self._wanted, skip, self._first_booking, later)
        self._show("comparing", len(tasks), len(tasks))
        self._report.meters, self._report.differences = compare(self._client, both, LIMIT)
        self._report.blocks += compare_blocks(self._client, self._first_booking, sealed_to, self._wanted)
        self._report.seals += compare_seals(self._client, self._first_booking, sealed_to)
        if self._report.differences:
            first = self._report.differences[0]
            self._report.first = self._trace(tasks, first) or self._holding(within_reach, first.booking)
        return self._report

    def _trace(self, tasks: Sequence[Task], row: Difference) -> tuple[Contribution, ...]:
        try:
            return trace(self._client, self._config, tasks, row)
        except LogError:  # it is read once more, and was readable before: what was found is worth more
            return ()

    def _read_books(self, sealed_to: int) -> tuple[list[BookedChunk], list[ChunkKey]]:
        """Read the chunks, then copy hot rows; return what is to be counted, and the chunks whose rows are left out:
        those that began in between, if progress reaches them now. Rows that it never reaches differ.
        """
        for _ in range(_LOOKS):
            tails: dict[tuple[str, int], BookedChunk] = {}
            read: dict[ChunkKey, BookedChunk] = {}
            for topic in self._topics.values():
                for chunk in read_chunks(self._client, topic, self._first_booking, begun=True):
                    read[_key(chunk)] = tails[chunk.topic_id, chunk.partition] = chunk
            rows = self._hot.take(sealed_to, self._first_booking, {key: each.chunk for key, each in tails.items()})
            later = [(*key, chunk) for key, tail in tails.items() for chunk in rows.get(key, {}) if chunk > tail.chunk]
            unreached = self._wait_for_progress(later, rows)
            if not unreached:
                break
        for key, tail in tails.items():
            read[_key(tail)] = self._with_rows(tail, rows.get(key, {}).get(tail.chunk))
        chunks = [
            chunk
            for chunk in read.values()
            if chunk.last_booking >= self._first_booking and chunk.reached.offset > chunk.start.offset
        ]
        return chunks, [each for each in later if each[:2] not in unreached]

    def _with_rows(self, tail: BookedChunk, rows: Rows | None) -> BookedChunk:
        """Return the last chunk of a partition as its hot rows have it, which may be ahead of its progress."""
        behind = tail.chunk * tail.size + rows.covered if rows else 0
        if rows is None or behind <= tail.reached.offset or behind > tail.end:
            return tail
        tail = replace(tail, last_booking=max(tail.last_booking, rows.booking))
        if tail.reached.offset > tail.start.offset:
            self._ahead[_key(tail)] = behind
            return tail
        self._begun.add(_key(tail))
        return replace(tail, reached=replace(tail.reached, offset=behind))

    def _wait_for_progress(
        self, later: Sequence[ChunkKey], rows: Mapping[tuple[str, int], Mapping[int, Rows]]
    ) -> Set[tuple[str, int]]:
        """Return the partitions whose progress does not reach their rows even when the flush that wrote them should be
        over.
        """
        behind: dict[tuple[str, int], int] = {}
        for topic_id, partition, chunk in later:
            place = chunk * self._topics[topic_id].chunk_size + rows[topic_id, partition][chunk].covered
            behind[topic_id, partition] = max(behind.get((topic_id, partition), 0), place)
        until = time.monotonic() + _PATIENCE_S
        while True:
            for (topic_id, partition), place in list(behind.items()):
                frontier = read_frontier(self._client, topic_id, partition, self._topics[topic_id].chunk_size)
                if frontier.reached.offset >= place:
                    del behind[topic_id, partition]
            if not behind or time.monotonic() >= until:
                return behind.keys()
            time.sleep(_LOOK_EVERY_S)

    def _note_unknown(self, repairs: dict[tuple[str, int], Repair]) -> None:
        """Note what nothing can be counted from: what lies before a repair, and topics of another control store."""
        for each in repairs.values():
            if each.from_booking < self._first_booking and not self._may_lack(each):
                continue
            name = self._topics[each.topic_id].name if each.topic_id in self._topics else each.topic_id
            reason = f"repaired: offsets {each.from_offset} to {each.to_offset} were skipped (repair {each.number})"
            span = Span(name, each.partition, 0, each.to_offset - 1)
            self._report.unchecked.append(Unchecked(span, (0, each.from_booking), reason))
        unknown = self._client.execute(
            "SELECT topic_id, partition, max(reached_offset), max(reached_booking) FROM progress"
            " WHERE topic_id NOT IN %(known)s GROUP BY topic_id, partition ORDER BY topic_id, partition",
            {"known": list(self._topics) or [""]},
        )
        for topic_id, partition, end, high in unknown:
            if high < self._first_booking:
                continue
            # In which booking its first chunk began, nobody knows: progress says where chunks end.
            span = Span(topic_id, partition, 0, end - 1)
            self._report.unchecked.append(Unchecked(span, (0, high), "this control store does not know the topic"))

    def _may_lack(self, repair: Repair) -> bool:
        """Whether usage of the wanted minutes may be among what a repair skipped, by the log's clock."""
        first_ms, end_ms = self._wanted.first * 60_000, self._wanted.end * 60_000
        return repair.skipped > 0 and repair.from_clock_ms < end_ms and repair.to_clock_ms >= first_ms

    def _is_within_reach(self, chunk: BookedChunk) -> bool:
        """Whether a chunk can be counted again; note why not."""
        key = chunk.topic_id, chunk.partition
        begins, reason = self._reach(*key)
        # An archive begins where the first record is, and a chunk may begin with offsets that hold none.
        of_chunk = begins // chunk.size * chunk.size if self._config.source == "archive" else begins
        if not reason and chunk.start.offset >= of_chunk:
            self._report.reach.setdefault((self._topics[chunk.topic_id].name, chunk.partition), chunk.start.offset)
            return True
        self._note_unchecked(chunk, reason or f"the {self._config.source} begins at offset {begins}")
        return False

    def _reach(self, topic_id: str, partition: int) -> tuple[int, str]:
        """Return where the source begins, or why there is nothing of this topic."""
        known = self._reaches.get((topic_id, partition))
        if known is None:
            known = self._reaches[topic_id, partition] = self._ask_reach(topic_id, partition)
        return known

    def _ask_reach(self, topic_id: str, partition: int) -> tuple[int, str]:
        name = self._topics[topic_id].name
        if self._config.source == "log":
            info = read_topic(self._config.brokers, name)
            if info is None or info.topic_id != topic_id:
                return 0, f'Kafka has no topic "{name}" with the id {topic_id} any more'
        source = recount.open_source(self._config, topic_id)
        try:
            first, end = source.reach(partition)
        finally:
            source.close()
        return first, "" if end > first or self._config.source == "log" else "the archive holds nothing of it"

    def _note_unchecked(self, chunk: BookedChunk, reason: str, *, compared: bool = False) -> None:
        span = self._span(chunk)
        bookings = chunk.start.booking, chunk.last_booking
        last = self._report.unchecked[-1] if self._report.unchecked else None
        same = last and (last.span.topic, last.span.partition, last.reason) == (span.topic, span.partition, reason)
        if last and same and last.span.last + 1 == span.first:
            span, bookings = Span(span.topic, span.partition, last.span.first, span.last), (
                last.bookings[0], bookings[1])  # fmt: skip
            self._report.unchecked.pop()
        self._report.unchecked.append(Unchecked(span, bookings, reason, compared))

    def _span(self, chunk: BookedChunk) -> Span:
        topic = self._topics[chunk.topic_id].name
        return Span(topic, chunk.partition, chunk.start.offset, chunk.reached.offset - 1)

    def _holding(self, chunks: Sequence[BookedChunk], booking: int) -> tuple[Contribution, ...]:
        """Return where a booking lies, for a row that nothing in the log counts for."""
        spans: dict[tuple[str, int], Contribution] = {}
        for chunk in chunks:
            if chunk.holds(booking):
                span = self._span(chunk)
                first = spans.get((span.topic, span.partition), span).first
                spans[span.topic, span.partition] = Contribution(span.topic, span.partition, first, span.last, ())
        return tuple(spans.values())

    def _without_unread(self, chunks: Sequence[BookedChunk], unread: Mapping[ChunkKey, str]) -> list[BookedChunk]:
        """Return the chunks that were counted again; note why the others were not."""
        for chunk in chunks:
            if _key(chunk) in unread:
                place = self._topics[chunk.topic_id].name, chunk.partition
                if self._report.reach.get(place) == chunk.start.offset:
                    self._report.reach[place] = chunk.reached.offset
                self._note_unchecked(chunk, unread[_key(chunk)])
        return [chunk for chunk in chunks if _key(chunk) not in unread]

    def _check_totals(self, found: Found) -> None:
        """Hold what was written to the job's own table against what was folded."""
        if recount.stored_totals(self._client, self._name, found.unread) != found.totals:
            raise StoreError("audit: what was counted again is not what ClickHouse stored of it; run it again")

    def _check_chunks(self, chunks: Sequence[BookedChunk], found: Sequence[Recounted]) -> None:
        """Compare the place, the counts and the identities of each chunk."""
        marks = {(each.topic_id, each.partition, each.chunk): each for each in found}
        ids = read_ids(self._client, chunks)
        lacking = [each.start.clock_ms for each in chunks if ids.get(_key(each), (0, 0))[0] < marks[_key(each)].ids]
        expired = expired_to(self._client, lacking)
        for chunk in chunks:
            key = _key(chunk)
            place, accepted, booked = marks[key].place(0), ids.get(key, (0, 0)), chunk.reached
            if key in self._begun:  # what it comes to, its rows and its identities have to say
                booked = place
                if self._config.source == "archive" and marks[key].ids < accepted[0]:
                    events = f"{marks[key].ids} of {accepted[0]}"
                    self._note_unchecked(chunk, f"the archive holds {events} events accepted in it")
                    continue
            if self._config.source == "archive" and _is_incomplete(place, booked):
                events = f"{place.counts.received} of {booked.counts.received}"
                self._note_unchecked(chunk, f"the archive holds {events} events received in it")
                continue
            self._report.checked_chunks += 1
            self._report.checked_events += place.counts.received
            differences = _place_differences(booked, place, digests=self._config.source == "log")
            if accepted[0] < marks[key].ids and chunk.start.clock_ms <= expired:
                self._note_unchecked(chunk, _EXPIRED, compared=True)
            elif (marks[key].ids, marks[key].mark) != accepted:
                differences.append(("accepted identities", str(accepted[0]), str(marks[key].ids)))
            self._report.chunks += [ChunkDifference(self._span(chunk), *each) for each in differences]


def first_booking(client: Client, engine: sa.Engine, wanted: Wanted) -> int:
    """Return the first booking that may hold usage of the wanted minutes."""
    if not wanted.first:
        return 0
    ahead = max((each.furthest_ahead.total_seconds() for each in _definitions(engine)), default=0)
    by_clock = int((wanted.first * 60 - ahead) * 1000) // DAY_MS * BOOKINGS_PER_DAY
    parameters: dict[str, Any] = {"from": wanted.first * 60, "to": min(wanted.end * 60, 2**32 - 1)}
    condition = "minute >= toDateTime(%(from)s, 'UTC') AND minute < toDateTime(%(to)s, 'UTC')"
    rows = client.execute(  # as it was booked: what a rebuild covers is looked for, too
        f"SELECT min(booking), count() FROM (SELECT booking FROM usage WHERE generation = 0 AND {condition}"  # noqa: S608
        f" UNION ALL SELECT booking FROM usage_hot WHERE generation = 0 AND {condition})",
        parameters,
    )
    # An event that was let in again may lie further ahead of the log clock.
    return max(0, min(by_clock, int(rows[0][0])) if rows[0][1] else by_clock)


def _key(chunk: BookedChunk) -> ChunkKey:
    return chunk.topic_id, chunk.partition, chunk.chunk


def _task(chunk: BookedChunk, ahead: Mapping[ChunkKey, int]) -> Task:
    stops = [chunk.reached.offset]
    if _key(chunk) in ahead:
        stops.append(ahead[_key(chunk)])
    return Task(chunk.topic_id, chunk.partition, chunk.size, chunk.chunk, chunk.start, tuple(stops))


def _is_incomplete(found: Place, booked: Place) -> bool:
    """Whether an archive lacks records that count: fewer events, or a clock or close that did not come."""
    fewer = found.counts.received < booked.counts.received
    return fewer or (found.clock_ms, found.booking, found.definitions) != (
        booked.clock_ms, booked.booking, booked.definitions)  # fmt: skip


def _place_differences(booked: Place, found: Place, *, digests: bool) -> list[tuple[str, str, str]]:
    names = [("log clock", "clock_ms"), ("booking", "booking"), ("definitions", "definitions")]
    if digests:
        names.append(("digest", "digest"))
    differences = [
        (what, str(getattr(booked, name)), str(getattr(found, name)))
        for what, name in names
        if getattr(booked, name) != getattr(found, name)
    ]
    for what, ours, theirs in zip(COUNTS, booked.counts, found.counts, strict=True):
        if ours != theirs:
            differences.append((f"{what} events", str(ours), str(theirs)))
    return differences
