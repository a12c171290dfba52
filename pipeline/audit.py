"""Prove that usage in ClickHouse is what the log says: count it again from Kafka or the raw archive, and compare.

Each chunk is counted from the place where the books say it begins, and must come to the place, the counts and the
accepted identities that the books say it ends with; so each proves the next, and the first begins with nothing. Then
every row of usage is compared, and what was made of sealed usage with it. What cannot be counted again is named, never
passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from clickhouse_driver import Client

from pipeline import recount
from pipeline.book import BOOKINGS_PER_DAY, DAY_MS, Place
from pipeline.booked import BookedChunk, read_chunks
from pipeline.compare import Difference, MeterCompared, compare, sides
from pipeline.derived import BlocksDifference, SealDifference, compare_blocks, compare_seals
from pipeline.recount import Found, RecountConfig, SourceName, Task
from pipeline.replay import INDEX_FACTOR, OFFSET_FACTOR, Wanted
from pipeline.runtime import Database
from pipeline.seal import read_sealed_to
from pipeline.trace import Contribution, trace
from tallyman import books
from tallyman.clickhouse import connect
from tallyman.control import open_control
from tallyman.errors import StoreError, UsageQueryError
from tallyman.files import nearest
from tallyman.kafka import read_topic
from tallyman.meter import Definitions
from tallyman.project import Project
from tallyman.rebuilds import read_switches
from tallyman.repairs import NOT_UNDONE, newest_repairs, read_repairs, unfence
from tallyman.usage import Repair

Show = Callable[[str, int, int], None]  # (what is done, how many of how many)
COUNTS = ("received", "aggregated", "duplicate", "dead", "ignored", "forwarded", "conflict")
LIMIT = 20
_LOOKS = 8  # at a pipeline that is busy


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
    """A span that could not be counted again, and the bookings that therefore cannot be compared."""

    span: Span
    bookings: tuple[int, int]
    reason: str


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
        LogError: The log changed while it was read.
    """
    engine = open_control(project.control_url)
    books.prepare(engine)
    check_question(engine, question)
    client = connect(project.clickhouse)
    name = recount.make_tables(client)
    try:
        return _Audit(project, question, client, engine, name, show).run()
    finally:
        recount.drop_tables(client, name)
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

    def run(self) -> AuditReport:
        # Made first, so that a busy pipeline gets no further than need be between the two readings.
        self._client.execute(f"CREATE TABLE {self._name}_hot AS usage_hot")
        unfence(self._client, f"{self._name}_hot")
        repairs = newest_repairs(read_repairs(self._client))
        self._report.rebuilt = tuple(
            each.generation for each in read_switches(self._client) if self._wanted.overlaps(each)
        )
        # In this order: bookings above the seal are read hot, and hot rows reach at least as far as progress says.
        sealed_to = read_sealed_to(self._client)
        booked, behind = self._read_books(sealed_to, repairs)
        chunks = [chunk for chunk in booked if chunk.last_booking >= self._first_booking]
        within_reach = [chunk for chunk in chunks if self._is_within_reach(chunk)]
        tasks = [_task(chunk, behind) for chunk in within_reach]
        found, totals = recount.run_tasks(
            self._config, tasks, lambda done, of: self._show("counting again", done, of), self._client
        )
        self._check_totals(totals)
        self._check_chunks(within_reach, found)
        skip = [each.bookings for each in self._report.unchecked]
        both = sides(self._name, sealed_to, self._wanted, skip, self._first_booking)
        self._show("comparing", len(tasks), len(tasks))
        self._report.meters, self._report.differences = compare(self._client, both, LIMIT)
        self._report.blocks += compare_blocks(self._client, self._first_booking, sealed_to, self._wanted)
        self._report.seals += compare_seals(self._client, self._first_booking, sealed_to)
        if self._report.differences:
            first = self._report.differences[0]
            self._report.first = trace(self._client, self._config, tasks, first) or self._holding(
                within_reach, first.booking
            )
        return self._report

    def _read_books(
        self, sealed_to: int, repairs: dict[tuple[str, int], Repair]
    ) -> tuple[list[BookedChunk], dict[tuple[str, int], int]]:
        """Read the chunks, then copy hot rows; again while one began in between, of which nothing would be counted.

        Rows that progress never reaches are still there at the last look, and differ.
        """
        for _ in range(_LOOKS):
            self._report.unchecked.clear()
            booked = list(self._read_chunks(repairs))
            behind = self._copy_hot(sealed_to)
            ends = {(chunk.topic_id, chunk.partition): (chunk.chunk + 1) * chunk.size for chunk in booked}
            if all(offset <= ends.get(key, 0) for key, offset in behind.items()):
                break
        return booked, behind

    def _read_chunks(self, repairs: dict[tuple[str, int], Repair]) -> Iterable[BookedChunk]:
        for topic in self._topics.values():
            yield from read_chunks(self._client, topic)
        for each in repairs.values():
            name = self._topics[each.topic_id].name if each.topic_id in self._topics else each.topic_id
            reason = f"repaired: offsets {each.from_offset} to {each.to_offset} were skipped (repair {each.number})"
            span = Span(name, each.partition, 0, each.to_offset - 1)
            self._report.unchecked.append(Unchecked(span, (0, each.from_booking), reason))
        unknown = self._client.execute(
            "SELECT topic_id, partition, max(reached_offset), min(reached_booking), max(reached_booking) FROM progress"
            " WHERE topic_id NOT IN %(known)s GROUP BY topic_id, partition ORDER BY topic_id, partition",
            {"known": list(self._topics) or [""]},
        )
        for topic_id, partition, end, low, high in unknown:
            span = Span(topic_id, partition, 0, end - 1)
            self._report.unchecked.append(Unchecked(span, (low, high), "this control store does not know the topic"))

    def _copy_hot(self, sealed_to: int) -> dict[tuple[str, int], int]:
        """Copy hot rows, so that they stand still; return behind which offset of each partition nothing is in them."""
        hot = f"{self._name}_hot"
        self._client.execute(f"TRUNCATE TABLE {hot}")
        self._client.execute(
            f"INSERT INTO {hot} SELECT * FROM usage_hot FINAL WHERE generation = 0 AND booking > %(sealed_to)s",  # noqa: S608
            {"sealed_to": sealed_to},
            settings={"max_partitions_per_insert_block": 0},  # a partition of usage_hot for each booking, sealed or not
        )
        rows = self._client.execute(
            f"SELECT topic_id, partition, max((chunk, covered)) FROM {hot} GROUP BY topic_id, partition"  # noqa: S608
        )
        return {
            (topic_id, partition): chunk * self._topics[topic_id].chunk_size + covered
            for topic_id, partition, (chunk, covered) in rows
            if topic_id in self._topics
        }

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

    def _note_unchecked(self, chunk: BookedChunk, reason: str) -> None:
        span = self._span(chunk)
        bookings = chunk.start.booking, chunk.last_booking
        last = self._report.unchecked[-1] if self._report.unchecked else None
        same = last and (last.span.topic, last.span.partition, last.reason) == (span.topic, span.partition, reason)
        if last and same and last.span.last + 1 == span.first:
            span, bookings = Span(span.topic, span.partition, last.span.first, span.last), (
                last.bookings[0], bookings[1])  # fmt: skip
            self._report.unchecked.pop()
        self._report.unchecked.append(Unchecked(span, bookings, reason))

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

    def _check_totals(self, totals: dict[recount.TotalsKey, tuple[int, int]]) -> None:
        """Hold what was written to the job's own table against what was folded."""
        if recount.stored_totals(self._client, self._name) != totals:
            raise StoreError("audit: what was counted again is not what ClickHouse stored of it; run it again")

    def _check_chunks(self, chunks: Sequence[BookedChunk], found: Sequence[Found]) -> None:
        """Compare the place, the counts and the identities of each chunk."""
        marks = {(each.topic_id, each.partition, each.chunk): each for each in found}
        ids = self._read_ids(chunks)
        for chunk in chunks:
            key = chunk.topic_id, chunk.partition, chunk.chunk
            place = marks[key].place(0)
            if self._config.source == "archive" and _is_incomplete(place, chunk.reached):
                events = f"{place.counts.received} of {chunk.reached.counts.received}"
                self._note_unchecked(chunk, f"the archive holds {events} events received in it")
                continue
            self._report.checked_chunks += 1
            self._report.checked_events += place.counts.received
            differences = _place_differences(chunk.reached, place, digests=self._config.source == "log")
            if (marks[key].ids, marks[key].mark) != ids.get(key, (0, 0)):
                differences.append(("accepted identities", str(ids.get(key, (0, 0))[0]), str(marks[key].ids)))
            self._report.chunks += [ChunkDifference(self._span(chunk), *each) for each in differences]

    def _read_ids(self, chunks: Sequence[BookedChunk]) -> dict[tuple[str, int, int], tuple[int, int]]:
        """Return how many identities the books hold of each chunk, and their mark."""
        ids: dict[tuple[str, int, int], tuple[int, int]] = {}
        for topic_id, group in groupby(chunks, key=lambda chunk: chunk.topic_id):
            mine = list(group)
            size, partitions = mine[0].size, self._topics[topic_id].partitions
            first, behind = [2**63] * partitions, [0] * partitions
            for chunk in mine:
                first[chunk.partition] = min(first[chunk.partition], chunk.start.offset)
                behind[chunk.partition] = max(behind[chunk.partition], chunk.reached.offset)
            rows = self._client.execute(
                "SELECT partition, intDiv(offset, %(size)s) AS chunk, count(), groupBitXor(identity_high"  # noqa: S608
                " + identity_low * 3 + digest + toUInt64(remembered_us)"
                " + offset * %(offset_factor)s + event_index * %(index_factor)s)"
                " FROM ids FINAL WHERE topic_id = %(topic)s AND offset >= %(first)s[partition + 1]"
                f" AND offset < %(behind)s[partition + 1]{NOT_UNDONE} GROUP BY partition, chunk",
                {"size": size, "topic": topic_id, "first": first, "behind": behind,
                 "offset_factor": OFFSET_FACTOR, "index_factor": INDEX_FACTOR},
            )  # fmt: skip
            ids |= {(topic_id, partition, chunk): (int(count), int(mark)) for partition, chunk, count, mark in rows}
        return ids


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


def _task(chunk: BookedChunk, behind: dict[tuple[str, int], int]) -> Task:
    stops = [chunk.reached.offset]
    seen = behind.get((chunk.topic_id, chunk.partition), 0)
    if not chunk.closed and chunk.reached.offset < seen <= chunk.end:
        stops.append(seen)  # rows of the open chunk may be ahead of its progress
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
