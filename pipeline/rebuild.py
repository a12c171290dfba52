"""Rebuild past usage under the definitions in force now: counted from the log again, and booked aside.

The protocol and its rules are those of `tests/model/rebuild_model.py`, by the same names; a change of the protocol
changes that file first. Killed at any step, a rebuild leaves rows that nobody reads, and the next one has a number of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

import sqlalchemy as sa
from clickhouse_driver import Client

from pipeline import recount
from pipeline.as_booked import Rebuilding, note_accepted
from pipeline.audit import first_booking
from pipeline.book import Place
from pipeline.booked import BookedChunk, read_chunks
from pipeline.close import open_books
from pipeline.compare import Difference, MeterCompared, compare, rebuilt_sides
from pipeline.frontier import Frontier, read_frontier
from pipeline.recount import RecountConfig, SourceName, Task
from pipeline.replay import Wanted
from pipeline.runtime import Database
from pipeline.seal import read_sealed_to
from tallyman import books, generations
from tallyman.errors import RebuildError, StoreError
from tallyman.generations import Attempt
from tallyman.in_force import definitions_of
from tallyman.kafka import read_topic
from tallyman.meter import Definitions
from tallyman.period import FIRST_MOMENT, LAST_MOMENT
from tallyman.project import Project
from tallyman.rebuilds import QUARTER_S, Switch, newest_generation, refuse_to_make_again
from tallyman.repairs import read_repairs
from tallyman.topics import ENDED

LIMIT = 20
Show = Callable[[str, int, int], None]  # (what is done, how many of how many)
_KEYS = "meter, subject, dimensions, minute, booking, definitions, generation, item"
_FIGURES = "aggregation, scale, parameters, count, sum, min, max, latest, latest_us, latest_by"


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildQuestion:
    """What is to be rebuilt: usage of these meters with minutes in [start, end), in whole quarters of an hour."""

    meters: tuple[str, ...]
    start: datetime
    end: datetime
    source: SourceName = "log"

    @property
    def span(self) -> tuple[int, int]:
        return int(self.start.timestamp()), int(self.end.timestamp())

    @property
    def wanted(self) -> Wanted:
        first, end = self.span
        return Wanted(frozenset(self.meters), first // 60, end // 60)


class _OtherRowsError(StoreError):
    """Under the number of a rebuild there are not the rows that were written."""


def rebuild(
    project: Project, client: Client, question: RebuildQuestion, *, who: str, show: Show = lambda what, done, of: None
) -> Attempt:
    """Book a rebuild aside, completely; it is in force only when it is put there (`pipeline.switch`).

    Raises:
        RebuildError: It cannot be made like this; nothing was changed. The message says what to do first.
        BrokerError, StoreError: Kafka or ClickHouse does not answer; what was begun is read by nobody.
        LogError: The log changed while it was read.
    """
    engine = open_books(project)
    generations.prepare(engine)
    try:
        return _Rebuild(project, client, engine, question, show).run(who)
    finally:
        engine.dispose()


def check(
    project: Project,
    client: Client,
    generation: int,
    source: SourceName,
    show: Show = lambda what, done, of: None,
) -> tuple[tuple[MeterCompared, ...], tuple[Difference, ...]]:
    """Prove that the rows of a rebuild are what the log says under its definitions: count it again, and compare.

    Returns:
        Each meter's rows, and the first differences.

    Raises:
        RebuildError: It is not complete, or not all of its log can be read any more.
    """
    engine = open_books(project)
    generations.prepare(engine)
    try:
        switch = generations.find_ready(engine, generation).switch
        return _Rebuild(project, client, engine, _question_of(switch, source), show).check(switch)
    finally:
        engine.dispose()


def make_again(
    project: Project,
    client: Client,
    generation: int,
    source: SourceName,
    show: Show = lambda what, done, of: None,
) -> Attempt:
    """Write the rows of a rebuild once more, under its own number: a ClickHouse that was restored has lost some.

    The same records, ids and definitions come to the same rows, so it may be in force, and invoiced, as it was; what is
    there already stays.

    Raises:
        RebuildError: It is not complete, not all of its log can be read any more, or its number has other rows.
    """
    engine = open_books(project)
    generations.prepare(engine)
    try:
        attempt = generations.find_ready(engine, generation)
        refuse_to_make_again(client, attempt.switch)
        _Rebuild(project, client, engine, _question_of(attempt.switch, source), show).again(attempt.switch)
        return attempt
    finally:
        engine.dispose()


def _question_of(switch: Switch, source: SourceName) -> RebuildQuestion:
    return RebuildQuestion(meters=switch.meters, start=switch.start, end=switch.end, source=source)


class _Rebuild:
    """One rebuild, step by step."""

    def __init__(
        self, project: Project, client: Client, engine: sa.Engine, question: RebuildQuestion, show: Show
    ) -> None:
        self._project, self._client, self._engine = project, client, engine
        self._question, self._show = question, show
        self._topics = {topic.topic_id: topic for topic in books.read_topics(engine)}

    def run(self, who: str) -> Attempt:
        question, client = self._question, self._client
        generations.publish(self._engine, client)  # what is compared with is what the list says
        definitions = current_definitions(self._project, self._engine, question)
        last = read_sealed_to(client)  # nothing comes into these bookings any more (`only_what_is_sealed`)
        switch = Switch(
            generation=0, definitions=definitions.number, meters=question.meters, span=question.span, last=last
        )
        with recount.tables_of_a_job(self._project.clickhouse, client) as name:
            chunks = self._may_rebuild(switch, name)
            attempt = generations.next_generation(self._engine, switch, who, newest_generation(client))
            self._book_aside(attempt.switch, name, chunks)
        return generations.find_attempt(self._engine, attempt.switch.generation)

    def again(self, switch: Switch) -> None:
        with recount.tables_of_a_job(self._project.clickhouse, self._client) as name:
            try:
                self._book_aside(switch, name, self._readable_chunks(switch, name))
            except _OtherRowsError as error:
                raise RebuildError(
                    f"generation {switch.generation}: under its number usage_rebuilt has rows of another rebuild, too; "
                    f"throw them away: ALTER TABLE usage_rebuilt DROP PARTITION {switch.generation}, then run this "
                    "again"
                ) from error

    def check(self, switch: Switch) -> tuple[tuple[MeterCompared, ...], tuple[Difference, ...]]:
        with recount.tables_of_a_job(self._project.clickhouse, self._client) as name:
            self._count(switch, name, self._readable_chunks(switch, name))
            self._show("comparing", 1, 1)
            return compare(self._client, rebuilt_sides(name, switch.generation, switch.definitions, switch.last), LIMIT)

    def _may_rebuild(self, switch: Switch, name: str) -> Sequence[BookedChunk]:
        """Return the chunks to count, if all of them can be read, and the definitions hold for all that lies behind."""
        if not switch.last:
            raise RebuildError("nothing is sealed yet, and only sealed usage can be rebuilt; first: tallyman close")
        self._refuse_older_behind(switch)
        return self._readable_chunks(switch, name)

    def _readable_chunks(self, switch: Switch, name: str) -> Sequence[BookedChunk]:
        first = first_booking(self._client, self._engine, self._question.wanted)
        self._refuse_repaired(first, switch.last)
        chunks = [
            chunk
            for topic in self._topics.values()
            for chunk in read_chunks(self._client, topic, first)
            if first <= chunk.last_booking and chunk.start.booking <= switch.last
        ]
        self._refuse_unread(chunks, self._config(switch, name), first, switch.last)
        return chunks

    def _refuse_older_behind(self, switch: Switch) -> None:
        """Refuse while later usage was, or can still be, booked by older definitions (`older_ones_are_sealed`)."""
        for topic in self._line():
            frontiers = [
                read_frontier(self._client, topic.topic_id, partition, topic.chunk_size)
                for partition in range(topic.partitions)
            ]
            going_on = [each for each in frontiers if each.reached.booking != ENDED]
            for each in going_on:
                _refuse_before_close(each, switch)
            if going_on:  # what follows begins where all of this one has ended
                reached = min(each.reached.booking for each in going_on)
                _refuse_unsealed_before(books.newest_close(self._engine, switch.definitions, reached), switch)
                break
        # Of whatever meter and minute: what the older ones did not count of a new meter left no row of it.
        rows = self._client.execute(
            "SELECT booking, min(definitions) FROM usage_hot WHERE generation = 0 AND booking > %(last)s"
            " AND definitions < %(definitions)s GROUP BY booking ORDER BY booking DESC LIMIT 1",
            {"last": switch.last, "definitions": switch.definitions},
        )
        if rows:
            booking, number = rows[0]
            raise RebuildError(
                f"booking {booking} is still hot and holds usage by definitions {number}; sealed is up to booking "
                f"{switch.last}. First: tallyman close, which waits for the seal; then rebuild"
            )

    def _line(self) -> Sequence[books.Topic]:
        name = self._project.config.kafka.topic
        line = books.read_line(self._engine, name)
        if not line:
            raise RebuildError(f'topic "{name}" was never booked; there is nothing to rebuild')
        return line

    def _refuse_repaired(self, first: int, last: int) -> None:
        """Refuse what was booked before an operator let booking go on behind a damaged place (`nothing_unread`)."""
        for repair in read_repairs(self._client):
            if first <= repair.from_booking:
                raise RebuildError(
                    f"partition {repair.partition}: bookings up to {repair.from_booking} hold what was booked before "
                    f"repair {repair.number}, from a log that is gone; only usage that was booked later can be rebuilt"
                )
        unknown = self._client.execute(
            "SELECT topic_id FROM progress WHERE topic_id NOT IN %(known)s AND reached_booking >= %(first)s LIMIT 1",
            {"known": list(self._topics), "first": first},
        )
        if unknown:
            raise RebuildError(
                f"topic {unknown[0][0]} was booked, but this control store does not know it; point control.url at the "
                "store with which it was booked"
            )

    def _refuse_unread(self, chunks: Sequence[BookedChunk], config: RecountConfig, first: int, last: int) -> None:
        """Refuse when not all of the log that is to be counted can be read (`nothing_unread`)."""
        starts: dict[tuple[str, int], BookedChunk] = {}
        for chunk in chunks:
            starts.setdefault((chunk.topic_id, chunk.partition), chunk)
        for (topic_id, partition), chunk in starts.items():
            begins, reason = self._reach(config, topic_id, partition)
            if (
                config.source == "archive"
            ):  # it begins where the first record is; a chunk may begin with offsets that hold none
                begins = begins // chunk.size * chunk.size
            if reason or chunk.start.offset < begins:
                other = "archive" if config.source == "log" else "log"
                raise RebuildError(
                    f'topic "{self._topics[topic_id].name}", partition {partition}: usage of this range was booked '
                    f"from offset {chunk.start.offset} on (bookings {first} to {last}), but "
                    + (reason or f"the {config.source} begins at offset {begins}")
                    + f". If all is in the {other} still: --source {other}; else choose a later range"
                )

    def _reach(self, config: RecountConfig, topic_id: str, partition: int) -> tuple[int, str]:
        name = self._topics[topic_id].name
        if config.source == "log":
            info = read_topic(config.brokers, name)
            if info is None or info.topic_id != topic_id:
                return 0, f'Kafka has no topic "{name}" with the id {topic_id} any more'
        source = recount.open_source(config, topic_id)
        try:
            first, end = source.reach(partition)
        finally:
            source.close()
        return first, "" if end > first or config.source == "log" else "the archive holds nothing of it"

    def _config(self, switch: Switch, name: str) -> RecountConfig:
        endpoint = self._project.clickhouse
        return RecountConfig(
            brokers=tuple(self._project.kafka_brokers),
            topics=tuple((each.topic_id, each.name, each.partitions) for each in self._topics.values()),
            database=Database(host=endpoint.host, port=endpoint.port, user=endpoint.user, password=endpoint.password,
                              database=endpoint.database),
            control_url=self._project.control_url,
            source=self._question.source,
            name=name,
            wanted=self._question.wanted,
            rebuilding=Rebuilding(switch.definitions, switch.meters, switch.last),
        )  # fmt: skip

    def _book_aside(self, switch: Switch, name: str, chunks: Sequence[BookedChunk]) -> None:
        """Count chunks again, and write their rows under a generation, beside what was sealed (`booked_aside`)."""
        totals = self._count(switch, name, chunks)
        self._show("writing", len(chunks), len(chunks))
        self._write(switch, name, totals)

    def _count(
        self, switch: Switch, name: str, chunks: Sequence[BookedChunk]
    ) -> dict[recount.TotalsKey, tuple[int, int]]:
        """Count chunks again into the job's own table; return its control totals."""
        note_accepted(self._client, name, chunks)
        config = self._config(switch, name)
        tasks = [_task(chunk) for chunk in chunks]
        found = recount.run_tasks(
            config, tasks, lambda done, of: self._show("counting again", done, of), self._client
        )
        _check_places(chunks, found.chunks, config.source)
        if recount.stored_totals(self._client, name) != found.totals:
            raise StoreError("rebuild: what was counted is not what ClickHouse stored of it; run it again")
        return found.totals

    def _write(self, switch: Switch, name: str, totals: dict[recount.TotalsKey, tuple[int, int]]) -> None:
        """Write all rows, then that they are there (`all_rows_first`)."""
        client = self._client
        client.execute(
            f"INSERT INTO usage_rebuilt ({_KEYS}, {_FIGURES})"  # noqa: S608 - our own words
            " SELECT h.meter, h.subject, h.dimensions, h.minute, h.booking,"
            f" {switch.definitions}, {switch.generation}, h.item, any(h.aggregation), any(h.scale), any(h.parameters),"
            " sum(h.count), sum(h.sum), min(h.min), max(h.max), argMax(h.latest, (h.latest_us, h.latest_by)),"
            " max(h.latest_us), argMax(h.latest_by, (h.latest_us, h.latest_by))"
            f" FROM {name} AS h FINAL WHERE h.booking <= {switch.last}"
            " GROUP BY h.meter, h.subject, h.dimensions, h.minute, h.booking, h.item"
        )
        expected = _by_booking(totals, switch.last)
        written = {
            (meter, booking): (int(count), int(total))
            for meter, booking, count, total in client.execute(
                "SELECT meter, booking, sum(u.count), sum(toInt256(u.sum)) FROM usage_rebuilt AS u FINAL"
                " WHERE generation = %(generation)s GROUP BY meter, booking",
                {"generation": switch.generation},
            )
        }
        if written != expected:
            raise _OtherRowsError("rebuild: usage_rebuilt does not hold what was counted; run it again")
        rows = client.execute(
            "SELECT count() FROM usage_rebuilt FINAL WHERE generation = %(generation)s",
            {"generation": switch.generation},
        )[0][0]
        client.execute(
            "INSERT INTO rebuilds"
            " (generation, definitions, meters, first_minute, end_minute, last_booking, rows) VALUES",
            [as_listed(switch, rows)],
        )
        generations.mark_ready(self._engine, switch.generation)


def as_listed(switch: Switch, rows: int) -> tuple[object, ...]:
    """Return what the list says of a rebuild: what it covers (`cut_off_in_the_list`, `range_and_meters_only`)."""
    return (*switch.entry, rows)


def current_definitions(project: Project, engine: sa.Engine, question: RebuildQuestion) -> Definitions:
    """Return the newest definitions, by which the meters are counted.

    Raises:
        RebuildError: They have no such meter, the project's files say something else of it, or the range is none.
    """
    for option, moment in (("--from", question.start), ("--to", question.end)):
        if not FIRST_MOMENT <= moment <= LAST_MOMENT:
            raise RebuildError(f"{option}: expected a time from 1970 to 2106, got {moment.isoformat()}")
        if moment.timestamp() % QUARTER_S:
            raise RebuildError(
                f"{option}: expected a quarter of an hour (minute 00, 15, 30 or 45), got {moment:%Y-%m-%d %H:%M:%S}; "
                "long ranges are read by quarters"
            )
    if question.start >= question.end:
        raise RebuildError("--to: expected a moment after --from, got none; nothing lies between them")
    newest = books.newest_definitions(engine)
    if newest is None:
        raise RebuildError("no definitions are in force yet; there is nothing to rebuild")
    mine = {meter.meter: meter for meter in definitions_of(project).meters}
    known = {meter.meter: meter for meter in newest.meters}
    for name in question.meters:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise RebuildError(f'--meter: expected one of definitions {newest.number}, got "{name}"{hint}')
        if mine.get(name) != known[name]:
            raise RebuildError(
                f"{name}: the project says something else of it than definitions {newest.number}; put that in force "
                "first: tallyman apply, or take it back"
            )
    return newest


def _refuse_before_close(frontier: Frontier, switch: Switch) -> None:
    reached = frontier.reached
    if reached.definitions < switch.definitions or reached.booking <= switch.last:
        raise RebuildError(
            f"partition {frontier.partition} is booked up to offset {reached.offset}, in booking {reached.booking} by "
            f"definitions {reached.definitions}, and not yet behind the close that puts definitions "
            f"{switch.definitions} in force; see that the pipeline runs (tallyman status), then rebuild"
        )


def _refuse_unsealed_before(begins: int | None, switch: Switch) -> None:
    """Refuse while the booking before the one that the definitions opened is not sealed: what older ones ignored, as
    numbered batches may hold, left no hot row.

    Args:
        begins: The newest booking that a close of these definitions opened in every partition. Their first one opened
            none if another day's clock numbered it, and the booking that was open then began with older ones.
    """
    if begins is None:
        raise RebuildError(
            f"no close has opened a booking for definitions {switch.definitions} yet: the booking in which they came "
            "into force began with older ones. First: tallyman close, which waits for the seal; then rebuild"
        )
    if switch.last < begins - 1:
        raise RebuildError(
            f"booking {begins - 1} is not sealed yet, and what came before booking {begins} may have come under older "
            f"definitions than {switch.definitions}; sealed is up to booking {switch.last}. Wait for the seal "
            "(tallyman status says how far it is), then rebuild"
        )


def _task(chunk: BookedChunk) -> Task:
    return Task(chunk.topic_id, chunk.partition, chunk.size, chunk.chunk, chunk.start, (chunk.reached.offset,))


def _check_places(chunks: Sequence[BookedChunk], found: Sequence[recount.Recounted], source: SourceName) -> None:
    """Refuse when what was read is not what was booked: records are missing, or they are others (`nothing_unread`); and
    when `ids` has not all that was accepted of them (`judged_as_booked`).
    """
    by_chunk = {(each.topic_id, each.partition, each.chunk): each for each in found}
    for chunk in chunks:
        each = by_chunk[chunk.topic_id, chunk.partition, chunk.chunk]
        place, booked = each.place(0), chunk.reached
        if _proof(place, source) != _proof(booked, source):
            raise RebuildError(
                f"partition {chunk.partition}, offsets {chunk.start.offset} to {booked.offset - 1}: the {source} is "
                "not what was booked; nothing was changed. See: tallyman audit usage"
            )
        accepted = booked.counts.aggregated - chunk.start.counts.aggregated
        if each.ids != accepted:
            raise RebuildError(
                f"partition {chunk.partition}, offsets {chunk.start.offset} to {booked.offset - 1} (bookings "
                f"{chunk.start.booking} to {chunk.last_booking}): {accepted} events were accepted, and the table ids "
                f"gives {each.ids} of them, so that it cannot be told which ones count; a TTL on ids takes the oldest. "
                "Nothing was changed. Choose a later range (--from), or restore ids from a backup"
            )


def _proof(place: Place, source: SourceName) -> tuple[int, ...]:
    """Return what tells that the same records were read: an archive has no digests."""
    proof = place.digest if source == "log" else place.counts.received
    return place.offset, place.clock_ms, place.booking, place.definitions, proof


def _by_booking(totals: dict[recount.TotalsKey, tuple[int, int]], last: int) -> dict[tuple[str, int], tuple[int, int]]:
    """Add up control totals, whatever definitions the log had in force."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for (meter, booking, _), (count, total) in totals.items():
        if booking <= last:
            before = found.get((meter, booking), (0, 0))
            found[meter, booking] = before[0] + count, before[1] + total
    return found
