"""Run the job as a service: rebuild the pipeline now and then, seal, keep silent partitions' clocks moving,
say how it is.

Beam's local runner keeps some kilobytes for every bundle, so a pipeline lives for minutes and is built anew; the open
chunks outlive it. After a failure what may be half done is forgotten and read again from the frontier.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import metrics as counted
from pipeline.archive import keep_archive_for
from pipeline.booked import refuse_short_memory
from pipeline.compiled import load_id_kernel, load_kernel
from pipeline.growth import is_followed, line_to_book
from pipeline.job import build
from pipeline.members import Alone, Group, Members, Share
from pipeline.poll import check_client
from pipeline.quarantine import LOOK_FOR_REPAIRS_S, SetAside
from pipeline.read import STOP
from pipeline.runtime import Database, JobConfig, forget, release
from pipeline.source import close_readers
from pipeline.upkeep import Over, Upkeep
from pipeline.watch import WATCH_EVERY_S, Watch
from tallyman.books import Topic
from tallyman.clickhouse import connect, migrate, store_errors
from tallyman.completeness import tell_delay
from tallyman.errors import DamageError, LogError, StoreRefusedError, TallymanError
from tallyman.in_force import definitions_in_force, definitions_of
from tallyman.metrics import serve
from tallyman.project import Project

log = logging.getLogger(__name__)

_LOOK_EVERY_S, _REST_S, _LONGEST_REST_S = 0.05, 1.0, 10.0


def job_config(project: Project, line: Sequence[Topic]) -> JobConfig:
    """Return what the worker processes of a project need to know.

    Args:
        line: The topic to be booked, behind those that it follows.
    """
    settings, endpoint, topic = project.config.pipeline, project.clickhouse, line[-1]
    return JobConfig(
        brokers=tuple(project.kafka_brokers),
        topic=topic.name,
        topic_id=topic.topic_id,
        partitions=topic.partitions,
        assigned=tuple(settings.partitions) or tuple(range(topic.partitions)),
        chunk_size=topic.chunk_size,
        progress_topic=project.config.kafka.progress_topic,
        database=Database(
            host=endpoint.host,
            port=endpoint.port,
            user=endpoint.user,
            password=endpoint.password,
            database=endpoint.database,
        ),
        control_url=project.control_url,
        flush_s=settings.flush.total_seconds(),
        archive=settings.archive,
        expected_delay_us=round(project.config.usage.expected_delay.total_seconds() * 1e6),
        tick_s=settings.tick.total_seconds(),
        id_filter_bytes=settings.id_filter_bytes,
        before=tuple(line[:-1]),
        followed=is_followed(project, topic),
    )


def main(project: Project, stop: threading.Event, metrics_port: int | None) -> int:
    """Run the pipeline until told to stop, topic after topic; return the exit code.

    A retriable failure (ClickHouse or Kafka away) is waited out; a log that is not what was booked, and a database that
    will refuse until somebody mends it, end the process with a sentence.
    """
    server = serve(metrics_port, counted.ready) if metrics_port is not None else None
    try:
        while (config := prepare_in_time(project, stop)) is not None:
            fault = book_topic(project, config, stop)
            if fault is not None:
                log.error(fault.name, extra={"error": fault.sentence})
                return 1
    finally:
        if server is not None:
            server.close()
    return 0


class Fault(NamedTuple):
    """Why a worker cannot go on."""

    name: str
    sentence: str


def book_topic(project: Project, config: JobConfig, stop: threading.Event) -> Fault | None:
    """Book a topic until its end, or until told to stop; return why this worker cannot go on, if it cannot."""
    settings, over, aside = project.config.pipeline, Over(stop), SetAside(config)
    share = Share(join_group(project, config), config, leave_out=aside.without)
    watch = Watch(connect(project.clickhouse), config.partitions, project.config.usage.expected_delay)
    more = [(aside.look, LOOK_FOR_REPAIRS_S), (watch.watch, WATCH_EVERY_S)]
    upkeep = Upkeep(config, over, project.kafka_replication, share.reads, more=more)
    wait_s = 0.2
    try:
        upkeep.start()
        while not over.is_set():
            began = time.monotonic()
            try:
                run_once(config, over, settings.rebuild_after.total_seconds(), settings.rebuild_bundles, share)
                wait_s = 0.2
            except Exception as error:  # noqa: BLE001 - Beam wraps what a DoFn raised; sorted out below
                found = cause_of(error)
                cause = aside.meet(found)
                if isinstance(cause, LogError | StoreRefusedError):
                    name = "log_differs" if isinstance(cause, LogError) else "store_refused"
                    return Fault(name, str(cause))
                log.warning("pipeline_restarts", extra={"error": f"{type(cause).__name__}: {cause}"[:500]})
                counted.note_failure(cause)
                _forget_after(found, config, share.reads())
                if time.monotonic() - began > 60:
                    wait_s = 0.2
                over.wait(wait_s)
                wait_s = min(wait_s * 2, 10)
    finally:
        over.set()
        share.close()
        close_readers()
        forget()
        upkeep.close()
        watch.close()
        aside.close()
        for partition in range(config.partitions):
            counted.forget(partition)
    if upkeep.fault is not None:
        return Fault("topic_refused" if isinstance(upkeep.fault, LogError) else "store_refused", str(upkeep.fault))
    return None


def _forget_after(error: BaseException, config: JobConfig, reads: Collection[int]) -> None:
    """Forget what may be half done: all, after most failures.

    What was appended in the future is noticed before anything of its fetch is folded, and what passes by itself may
    come back often; so only this partition is read from its frontier again then.
    """
    if isinstance(error, DamageError) and error.passes_in_s is not None:
        release(config, frozenset(reads) - {error.partition})
    else:
        close_readers()
        forget()


def prepare(project: Project) -> JobConfig:
    """Bring schema, topics, books and compiled loops up to date.

    Raises:
        StoreError, BrokerError: A server is not up yet, or away again; what is half prepared is prepared again.
        ConfigError, LogError, StoreRefusedError: Somebody has to mend something first.
    """
    check_client()
    load_kernel()
    load_id_kernel()
    client = connect(project.clickhouse)
    try:
        migrate(client)
        keep_archive_for(client, project.config.pipeline.archive_ttl)
        line = line_to_book(project, client)
        remember = max(each.remember for each in (definitions_of(project), definitions_in_force(project)))
        with store_errors(client, "reading the TTL on ids"):
            refuse_short_memory(client, remember, time.time_ns() // 1_000_000)
        with store_errors(client, "telling views the expected delay"):
            tell_delay(client, project.config.usage.expected_delay)
    finally:
        client.disconnect()
    return job_config(project, line)


def prepare_in_time(project: Project, stop: threading.Event) -> JobConfig | None:
    """Prepare for the topic that is booked now, as soon as the servers let us; None when told to stop.

    Raises:
        ConfigError, LogError, StoreRefusedError: As `prepare`; waiting would not help.
    """
    wait_s = _REST_S
    while not stop.is_set():
        try:
            return prepare(project)
        except TallymanError as error:
            if not error.retriable:
                raise
            log.warning("pipeline_waits", extra={"error": str(error)[:500]})
            counted.note_waits(error)
            stop.wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_REST_S)
    return None


def join_group(project: Project, config: JobConfig) -> Group:
    """Return who says which partitions are this worker's: the operator, or the group of all workers."""
    if project.config.pipeline.partitions:
        return Alone(config.assigned)
    return Members(config.brokers, config.topic, config.partitions)


def run_once(
    config: JobConfig, stop: threading.Event, seconds: float, bundles: int, share: Share | None = None
) -> None:
    """Run one pipeline until it is time to build the next, for other partitions or the same; or to stop."""
    share = share or Share(Alone(config.assigned), config)
    reads = share.look()
    release(config, reads)
    while not reads:
        counted.note_nothing_to_read()
        if stop.wait(_LOOK_EVERY_S):
            return
        reads = share.look()
    STOP.clear()
    over = threading.Event()
    until = (stop, time.monotonic() + seconds, bundles, lambda: share.look() != reads)
    watch = threading.Thread(target=_end_in_time, args=(over, *until), name="rebuild", daemon=True)
    watch.start()
    try:
        with beam.Pipeline(runner=FnApiRunner(), options=beam_options()) as pipeline:
            build(pipeline, config, sorted(reads))
    finally:
        over.set()
        watch.join()
    counted.note_rebuild()


def beam_options() -> PipelineOptions:
    """Return the options of the local runner: one worker, because more drop data without an error.

    `flags=[]` keeps Beam from reading the command line. The runner is named by its class, because "DirectRunner" would
    first try a download.
    """
    return PipelineOptions(flags=[], direct_num_workers=1, direct_running_mode="in_memory", streaming=False)


def _end_in_time(
    over: threading.Event, stop: threading.Event, deadline: float, bundles: int, moved: Callable[[], bool]
) -> None:
    """Ask the readers to stop when the service ends, partitions move, or the pipeline has lived long enough."""
    while not over.wait(_LOOK_EVERY_S):
        if stop.is_set() or time.monotonic() > deadline or STOP.turns > bundles or moved():
            STOP.ask()
            return


def cause_of(error: BaseException) -> BaseException:
    """Return our own error inside what a runner raised, or the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TallymanError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error
