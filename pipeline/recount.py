"""The bounded Beam job that counts chunks again: `Chunks | Recount | CombinePerKey`, into tables of its own.

What it finds lies in ClickHouse when it ends, and not in this process, so that any runner may run it: `<name>` holds
rows like those of `usage_hot`, `<name>_found` what each chunk came to, and control totals that never went through a
table of rows, so that a row lost on the way would show.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Literal

import apache_beam as beam
import msgspec
import numpy as np
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from clickhouse_driver import Client
from clickhouse_driver import errors as driver_errors

from pipeline.aggregate import wide_enough
from pipeline.archive import ArchiveSource
from pipeline.as_booked import AsBooked, Rebuilding, count_positions, definitions_of
from pipeline.book import Counts, OpenChunk, Place
from pipeline.catalog import Catalog
from pipeline.columns import Block
from pipeline.decoders import Decoders
from pipeline.dedupe import Judge, count_once
from pipeline.frontier import StoredIds
from pipeline.replay import Anything, Count, LogSource, ReplayTables, Source, Stages, Wanted, replay
from pipeline.runtime import Database
from pipeline.worker import beam_options
from tallyman.books import load_definitions
from tallyman.clickhouse import NETWORK_ERRORS, STORE_ERRORS, Endpoint, connect
from tallyman.control import open_control
from tallyman.errors import DamageError, RebuildError
from tallyman.meter import Definitions
from tallyman.repairs import unfence
from tallyman.topics import topics_before
from tallyman.usage import EMPTY, Totals, merge

SourceName = Literal["log", "archive"]
TotalsKey = tuple[str, int, int]  # (meter, booking, definitions)
ChunkKey = tuple[str, int, int]  # topic id, partition, chunk
_LOOK_EVERY_S = 0.5
_TOUCH_EVERY_S, _LEFT_AFTER_S = 3600, 86_400  # tables of jobs
_REFUSED, _UNREAD = "refused", "unread"  # names of rows that are no control totals
_BY_BEAM = re.compile(r" \[while running '.*'\]\Z", re.DOTALL)
_WHY_UNREAD = {
    "retention": "retention took records of it from the log meanwhile",
    "cut": "the log ends before it does",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecountConfig:
    """Everything that a process needs to know to count chunks again.

    Attributes:
        topics: (topic id, name, partitions) of each topic that is read.
        name: Of the tables that this job fills.
        rebuilding: Count by other definitions what was accepted; None: judge and count everything as it was booked.
    """

    brokers: tuple[str, ...]
    topics: tuple[tuple[str, str, int], ...]
    database: Database
    control_url: str
    source: SourceName
    name: str
    wanted: Wanted
    rebuilding: Rebuilding | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk to count: from the place where the books say it begins, up to each of `stops`."""

    topic_id: str
    partition: int
    size: int
    chunk: int
    start: Place
    stops: tuple[int, ...]


class Recounted(msgspec.Struct, frozen=True):
    """What a chunk came to: the place at each stop, and its accepted identities.

    Attributes:
        places: (offset, log clock, booking, definitions, digest, counts).
        ids, mark: See `pipeline.replay.Marks`; up to the first stop. In a rebuild `ids` is how many events the table
            `ids` says were accepted.
    """

    topic_id: str
    partition: int
    chunk: int
    places: list[tuple[int, int, int, int, int, tuple[int, ...]]]
    ids: int
    mark: int

    def place(self, stop: int) -> Place:
        """Return what was found at a stop."""
        offset, clock_ms, booking, definitions, digest, counts = self.places[stop]
        return Place(offset, clock_ms, booking, definitions, digest, Counts(*counts))


@dataclass(frozen=True, slots=True)
class Found:
    """What a job found.

    Attributes:
        totals: The control totals: events and sum.
        unread: The chunks whose records could not be read, and why; the job's table may hold some of their rows.
    """

    chunks: list[Recounted]
    totals: dict[TotalsKey, tuple[int, int]]
    unread: dict[ChunkKey, str]


@dataclass(slots=True)
class ControlTotals:
    """Adds up what the folded readings hold, by meter, booking and definitions; weights count as in `count`."""

    wanted: Wanted
    totals: dict[TotalsKey, Totals] = field(default_factory=dict)

    def __call__(self, block: Block, chunk: OpenChunk, catalog: Catalog) -> None:
        for readings in block.readings:
            chosen = self.wanted.rows(readings.keys, catalog)
            codes, row = np.unique(readings.keys[chosen] >> 32, return_inverse=True)
            of_meter = np.array([catalog.series.meters[code] for code in codes.tolist()], np.int64)[row]
            values = wide_enough(readings.values)[chosen]
            weights = np.ones(len(values), np.int64) if readings.weights is None else readings.weights[chosen]
            for number in np.unique(of_meter).tolist():
                mine = of_meter == number
                key = catalog.meters[number].meter, block.after.booking, block.after.definitions
                total = Totals(int(weights[mine].sum()), int(values[mine].sum()))
                self.totals[key] = merge(self.totals.get(key, EMPTY), total)


class MergeTotals(beam.CombineFn):
    """The algebra of usage (`tallyman.usage.merge`) over totals that are formed already."""

    def create_accumulator(self) -> Totals:
        return EMPTY

    def add_input(self, accumulator: Totals, element: Totals) -> Totals:
        return merge(accumulator, element)

    def merge_accumulators(self, accumulators: Iterable[Totals]) -> Totals:
        return reduce(merge, accumulators, EMPTY)

    def extract_output(self, accumulator: Totals) -> Totals:
        return accumulator


class Process:
    """What a process keeps from chunk to chunk."""

    def __init__(self, config: RecountConfig) -> None:
        self._engine = engine = open_control(config.control_url)
        self.client = connect(config.database)
        numbers = connect(config.database, numpy=True)
        self._ids_client = connect(config.database, numpy=True)
        self._tables = tables = ReplayTables(self.client, numbers, config.name, config.wanted)
        load: Callable[[int], Definitions] = partial(load_definitions, engine)
        count: Count = count_once
        if config.rebuilding:
            applied = definitions_of(engine, config.rebuilding)
            load, count = lambda _: applied, AsBooked(self.client, config.name, config.rebuilding, config.wanted)
        self.stages = {
            topic_id: Stages(
                Decoders(load, partitions),
                Judge(StoredIds(self._ids_client, topics_before(self.client, topic_id)), Anything()),
                tables,
                count=count,
            )
            for topic_id, _, partitions in config.topics
        }
        # How many events `ids` gives is counted by the definitions of then: a numbered batch has one id for all of its.
        self.as_booked = AsBooked(self.client, config.name, None, config.wanted)
        self.then = {
            topic_id: Stages(
                Decoders(partial(load_definitions, engine), partitions),
                self.stages[topic_id].judge,
                tables,
                count=self.as_booked,
            )
            for topic_id, _, partitions in config.topics
        }
        self._config, self._sources = config, dict[str, Source]()

    def source(self, topic_id: str) -> Source:
        if topic_id not in self._sources:
            self._sources[topic_id] = open_source(self._config, topic_id)
        return self._sources[topic_id]

    def close(self) -> None:
        for source in self._sources.values():
            source.close()
        self._tables.close()
        self._ids_client.disconnect()
        self._engine.dispose()


_PROCESSES: dict[RecountConfig, Process] = {}


def _process(config: RecountConfig) -> Process:
    if config not in _PROCESSES:
        _PROCESSES[config] = Process(config)
    return _PROCESSES[config]


def open_source(config: RecountConfig, topic_id: str) -> Source:
    """Return where a topic's records are read again."""
    if config.source == "archive":
        return ArchiveSource(connect(config.database), topic_id)
    name = next(name for known, name, _ in config.topics if known == topic_id)
    return LogSource(config.brokers, name, topic_id)


class _Recount(beam.DoFn):
    """Task -> control totals; the rows and what was found go to the job's tables."""

    def __init__(self, config: RecountConfig) -> None:
        self._config = config

    def process(self, task: Task) -> Iterator[tuple[TotalsKey, Totals]]:
        process = _process(self._config)
        totals = ControlTotals(self._config.wanted)
        stages = process.stages[task.topic_id]
        stages.observe = totals
        try:
            if self._config.rebuilding:
                found = recount_as_booked(task, process, self._config.name)
            else:
                found = recount(task, process.source(task.topic_id), stages)
            _note(process.client, self._config, found)
        except RebuildError as error:  # a sentence for whoever began the job; Beam would make a traceback of it
            _note_row(process.client, self._config, _REFUSED, str(error))
            return
        except DamageError as error:
            self._note_unread(process.client, task, _WHY_UNREAD.get(error.reason) or error.message)
            return
        yield from totals.totals.items()

    def _note_unread(self, client: Client, task: Task, why: str) -> None:
        """Note that a chunk cannot be read: an audit names it, a rebuild is refused."""
        if self._config.rebuilding:
            where = f"partition {task.partition}, offsets {task.start.offset} to {task.stops[0] - 1}"
            said = (
                f"{where}: {why}. Nothing was changed. If all is in the archive: --source archive; else choose a later "
                "range"
            )
            _note_row(client, self._config, _REFUSED, said)
        else:
            _note_row(client, self._config, _UNREAD, why, (task.topic_id, task.partition, task.chunk))


def recount(task: Task, source: Source, stages: Stages) -> Recounted:
    """Count a chunk again."""
    stages.tables.begin()
    chunk = stages.chunk_at(task.topic_id, task.partition, task.size, task.chunk, task.start)
    places, ids = [], None
    for place in replay(chunk, source, task.stops, stages):
        places.append((place.offset, place.clock_ms, place.booking, place.definitions, place.digest,
                       tuple(place.counts)))  # fmt: skip
        ids = ids or (stages.tables.ids.count, stages.tables.ids.mark)
    return Recounted(task.topic_id, task.partition, task.chunk, places, *(ids or (0, 0)))


def recount_as_booked(task: Task, process: Process, name: str) -> Recounted:
    """Count what was accepted of a chunk by other definitions, and how many events that are by those of then."""
    source, stages, first = process.source(task.topic_id), process.stages[task.topic_id], task.start.offset
    counted = stages.count
    assert isinstance(counted, AsBooked)
    counted.numbered = False
    found = recount(task, source, stages)
    accepted = count_positions(process.client, name, task.topic_id, task.partition, first, task.stops[0])
    if counted.numbered:
        again = recount(task, source, process.then[task.topic_id])
        accepted = again.place(0).counts.aggregated - task.start.counts.aggregated
        # A batch whose number was used before is one dead letter for what was read of it then, not of what is read now.
        found = msgspec.structs.replace(found, places=again.places)
    return msgspec.structs.replace(found, ids=accepted)


def _note(client: Client, config: RecountConfig, found: Recounted) -> None:
    body = msgspec.json.encode(found).decode()
    _note_row(client, config, "", body, (found.topic_id, found.partition, found.chunk))


class _NoteTotals(beam.DoFn):
    def __init__(self, config: RecountConfig) -> None:
        self._config = config

    def process(self, element: tuple[TotalsKey, Totals]) -> None:
        key, total = element
        name, body = msgspec.json.encode(key).decode(), msgspec.json.encode([total.count, str(total.sum)]).decode()
        _note_row(_process(self._config).client, self._config, name, body)


def _note_row(client: Client, config: RecountConfig, name: str, body: str, chunk: ChunkKey = ("", 0, 0)) -> None:
    client.execute(
        f"INSERT INTO {config.name}_found (topic_id, partition, chunk, name, body) VALUES", [(*chunk, name, body)]
    )


def build(pipeline: beam.Pipeline, config: RecountConfig, tasks: Sequence[Task]) -> None:
    """Lay out the job."""
    (
        pipeline
        | "Chunks" >> beam.Create(list(tasks))
        | "Recount" >> beam.ParDo(_Recount(config))
        | "SumTotals" >> beam.CombinePerKey(MergeTotals())
        | "NoteTotals" >> beam.ParDo(_NoteTotals(config))
    )


def run(config: RecountConfig, tasks: Sequence[Task], on_progress: Callable[[int, int], None]) -> None:
    """Run the job to its end.

    Args:
        on_progress: Called now and then with how many of how many chunks are done.

    Raises:
        TallymanError: As it was raised in the job; so with what a driver or Python raises.
    """
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(config, len(tasks), on_progress, over), daemon=True)
    watch.start()
    try:
        with beam.Pipeline(runner=FnApiRunner(), options=beam_options()) as pipeline:
            build(pipeline, config, tasks)
    except Exception as error:
        if (raised := as_raised(error)) is error:
            raise
        raise raised from None
    finally:
        over.set()
        watch.join()
        if config in _PROCESSES:
            _PROCESSES.pop(config).close()


def as_raised(error: BaseException) -> BaseException:
    """Return what a `DoFn` raised, of which Beam made another one that names the step: often a `RuntimeError`, and of a
    database's error one without its code.
    """
    while _BY_BEAM.search(str(error)) and (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _watch(config: RecountConfig, tasks: int, on_progress: Callable[[int, int], None], over: threading.Event) -> None:
    client = connect(config.database)
    sql = f"SELECT count() FROM {config.name}_found WHERE name IN ('', '{_UNREAD}')"  # noqa: S608 - our own name
    while not over.wait(_LOOK_EVERY_S):
        with suppress(*NETWORK_ERRORS, driver_errors.Error):  # the job itself will say what is wrong
            on_progress(int(client.execute(sql)[0][0]), tasks)
    client.disconnect()


@contextmanager
def tables_of_a_job(endpoint: Endpoint, client: Client) -> Iterator[str]:
    """Make the tables of a job, lend their name, and take them away.

    As long as the job lives they are touched now and then: what nobody touched for a day is left over from a job that
    was killed, and the next one drops it.
    """
    name = _make_tables(client)
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(endpoint, name, over), name="tables", daemon=True)
    keeper.start()
    try:
        yield name
    finally:
        over.set()
        keeper.join()
        drop_tables(client, name)


def _make_tables(client: Client) -> str:
    name = f"recount_{uuid.uuid4().hex}"
    client.execute(f"CREATE TABLE {name} AS usage_hot")
    unfence(client, name)
    client.execute(
        f"CREATE TABLE {name}_found (topic_id String, partition UInt32, chunk UInt64, name String, body String)"
        " ENGINE = ReplacingMergeTree ORDER BY (name, topic_id, partition, chunk)"
    )
    return name


def _keep(endpoint: Endpoint, name: str, over: threading.Event) -> None:
    client = connect(endpoint)
    while not over.wait(_TOUCH_EVERY_S):
        with suppress(*STORE_ERRORS):  # the next time may do, and who works with the tables will say what is wrong
            for (table,) in client.execute(
                "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, %(name)s)",
                {"name": name},
            ):
                client.execute(f"ALTER TABLE {table} MODIFY COMMENT 'in use'")
    client.disconnect()


def drop_tables(client: Client, name: str) -> None:
    """Drop the tables of a job, and what jobs left a day ago that were killed."""
    rows = client.execute(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND (startsWith(name, %(name)s)"
        " OR name LIKE 'recount_%%' AND metadata_modification_time < now() - toIntervalSecond(%(left)s))",
        {"name": name, "left": _LEFT_AFTER_S},
    )
    for (table,) in rows:
        client.execute(f"DROP TABLE IF EXISTS {table} SYNC")


def read_found(client: Client, name: str) -> Found:
    """Return what a job found.

    Raises:
        RebuildError: What was accepted cannot be counted by other definitions, or not be read.
    """
    rows: list[tuple[str, int, int, str, str]] = client.execute(
        f"SELECT topic_id, partition, chunk, name, body FROM {name}_found FINAL"  # noqa: S608 - our own name
        " ORDER BY topic_id, partition, chunk"
    )
    found = Found([], {}, {})
    for topic_id, partition, chunk, label, body in rows:
        if label == _REFUSED:
            raise RebuildError(body)
        if label == _UNREAD:
            found.unread[topic_id, partition, chunk] = body
        elif label:
            count, total = msgspec.json.decode(body, type=tuple[int, str])
            found.totals[msgspec.json.decode(label, type=TotalsKey)] = count, int(total)
        else:
            found.chunks.append(msgspec.json.decode(body, type=Recounted))
    return found


def stored_totals(client: Client, name: str, unread: Iterable[ChunkKey] = ()) -> dict[TotalsKey, tuple[int, int]]:
    """Return the control totals once more, from the rows that ClickHouse stored; without those of chunks that could not
    be read to their end.
    """
    rows = client.execute(
        "SELECT meter, booking, definitions, sum(u.count), sum(toInt256(u.sum))"  # noqa: S608 - our own name
        f" FROM {name} AS u FINAL WHERE (topic_id, partition, chunk) NOT IN %(unread)s"
        " GROUP BY meter, booking, definitions",
        {"unread": [*unread] or [("", 0, 0)]},
    )
    return {(meter, booking, number): (int(count), int(total)) for meter, booking, number, count, total in rows}


def run_tasks(
    config: RecountConfig, tasks: Sequence[Task], on_progress: Callable[[int, int], None], client: Client
) -> Found:
    """Run the job and return what it found."""
    if tasks:
        run(config, tasks, on_progress)
    return read_found(client, config.name)
