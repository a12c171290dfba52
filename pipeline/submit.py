"""Run the job on a cluster as a service: submit it, stay beside it, submit it again when it has failed.

The cluster reads, counts and writes. What must be done once for all of it stays in this process: sealing, keeping
silent partitions' clocks moving, looking at the topic again, saying how the job is and how complete usage is, and
setting a damaged partition aside: the job is submitted again without it, and with it when it was repaired. A restart,
of this process or of the job, reads again from the book; savepoints and checkpoints hold nothing that is needed.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2 as job_api
from apache_beam.portability.api import beam_job_api_pb2_grpc as job_grpc
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipeline import metrics as counted
from pipeline.fates import LOOK_FOR_FATES_S, Fates
from pipeline.flink_jobs import FlinkJobs
from pipeline.follow import Follower
from pipeline.job import build
from pipeline.portable import Portable, check_known, flags_of, job_name
from pipeline.quarantine import LOOK_FOR_REPAIRS_S, SetAside
from pipeline.runtime import JobConfig
from pipeline.upkeep import Over, Upkeep
from pipeline.watch import WATCH_EVERY_S, Watch
from pipeline.worker import prepare_in_time
from tallyman.clickhouse import STORE_ERRORS, connect
from tallyman.errors import (
    BrokerError,
    ConfigError,
    DamageError,
    FencedError,
    LogError,
    StoreError,
    StoreRefusedError,
)
from tallyman.metrics import serve
from tallyman.project import Project

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_ANSWER_S = 30  # how long the job server may take; it builds the job meanwhile
_WELL_AFTER_S, _FIRST_WAIT_S, _LONGEST_WAIT_S = 60.0, 1.0, 30.0
_OVER = frozenset(("DONE", "FAILED", "CANCELLED", "DRAINED", "UPDATED"))
_AWAY = "AWAY"  # the job server, not the job
_ANOTHER = "; a second service of this topic at this job server cancels the job of the first: is only one running?"
_OURS: dict[str, Callable[[str], LogError | StoreError | StoreRefusedError]] = {
    "LogError": LogError,
    "DamageError": lambda text: DamageError.from_text(text) or LogError(text),
    "FencedError": lambda text: FencedError.from_text(text) or StoreError(text),
    "StoreRefusedError": StoreRefusedError,
}
_SENTENCE = re.compile(rf"tallyman\.errors\.({'|'.join(_OURS)}): (.+?)(?: \[while running |\\n|\n|$)")


def main(project: Project, stop: threading.Event, metrics_port: int | None, *, portable: Portable) -> int:
    """Keep the job running on the cluster until told to stop, topic after topic; return the exit code.

    Raises:
        ConfigError: An option is wrong.
    """
    flags_of(portable, "")  # what is wrong there is told before anything is waited for
    if portable.environment == "EXTERNAL" and not portable.flink_rest:
        log.warning("flink_jobs_stay", extra={"error": "without --flink-rest a job that is left runs on, and keeps its "
                                                       "slots, until it is cancelled in Flink"})  # fmt: skip
    health = Health()
    server = serve(metrics_port, health.ready) if metrics_port is not None else None
    try:
        while (config := prepare_in_time(project, stop)) is not None:
            fault = book_topic(project, config, stop, health, portable)
            if fault is not None:
                name = "log_differs" if isinstance(fault, LogError) else "store_refused"
                log.error(name, extra={"error": str(fault)})
                return 1
    finally:
        if server is not None:
            server.close()
    return 0


class Health:
    """How the job is, from the start of this process to its end, and between two topics too.

    Attributes:
        ready: Says it, and why it is not; before a job is followed it is known only what is waited for.
    """

    def __init__(self) -> None:
        self._follower: Follower | None = None

    def ready(self) -> tuple[bool, str]:
        follower = self._follower
        return counted.ready() if follower is None else follower.ready()

    @contextmanager
    def of(self, follower: Follower) -> Iterator[None]:
        """Ask who follows a job, as long as it does."""
        self._follower = follower
        try:
            yield
        finally:
            self._follower = None


def book_topic(
    project: Project, config: JobConfig, stop: threading.Event, health: Health, portable: Portable
) -> LogError | StoreRefusedError | None:
    """Keep the job of one topic running until its end, or until told to stop; return why it cannot go on."""
    flags, over = flags_of(portable, job_name(config.topic, config.topic_id)), Over(stop)
    cluster = FlinkJobs(portable.flink_rest) if portable.flink_rest else None
    follower, aside = Follower(config), SetAside(config)
    watch = Watch(connect(project.clickhouse), config.partitions, project.config.usage.expected_delay)
    fates = Fates(connect(project.clickhouse), config.topic_id, config.partitions)
    duties = [(follower.look, LOOK_EVERY_S), (aside.look, LOOK_FOR_REPAIRS_S), (watch.watch, WATCH_EVERY_S)]
    if portable.environment != "LOOPBACK":  # else the workers count in this process
        duties.append((fates.look, LOOK_FOR_FATES_S))
        with suppress(*STORE_ERRORS):  # else a duty finds where the books stand, later
            fates.look()

    def reads() -> frozenset[int]:
        return aside.without(config.assigned)

    upkeep = Upkeep(config, over, project.kafka_replication, reads, silent_s=follower.silent_s, more=duties)
    try:
        upkeep.start()
        with health.of(follower):
            fault = keep_submitting(
                lambda: run_job(config, flags, portable.job_endpoint, over, reads, cluster), over, aside.meet
            )
    finally:
        over.set()
        upkeep.close()
        follower.close()
        watch.close()
        fates.close()
        aside.close()
    return fault or upkeep.fault


def keep_submitting(
    run: Callable[[], None], stop: threading.Event, meet: Callable[[BaseException], BaseException]
) -> LogError | StoreRefusedError | None:
    """Run the job again and again until `stop`, or until trying again cannot help; return why then.

    Args:
        meet: Called with what went wrong; sets aside the partition that is to blame, so that `run` leaves it out, and
            returns why the job is submitted again, or must end.

    Raises:
        ConfigError: An option is wrong.
    """
    wait_s = _FIRST_WAIT_S
    while not stop.is_set():
        began = time.monotonic()
        try:
            run()
            if not stop.is_set():
                log.info("job_submitted_again", extra={"reason": "other partitions are to be read"})
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - a cluster fails in many ways; few of them are the end
            cause = meet(error)
            if isinstance(cause, LogError | StoreRefusedError):
                return cause
            log.warning("job_submitted_again", extra={"error": f"{type(cause).__name__}: {cause}"[:1000]})
            counted.note_failure(cause)
            if time.monotonic() - began > _WELL_AFTER_S:
                wait_s = _FIRST_WAIT_S
            stop.wait(wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
    return None


def run_job(
    config: JobConfig,
    flags: list[str],
    endpoint: str,
    stop: threading.Event,
    reads: Callable[[], frozenset[int]],
    cluster: FlinkJobs | None = None,
) -> None:
    """Submit the job and wait until it ends; cancel it when `stop` is set, or other partitions are to be read.

    Args:
        reads: Says which partitions those are, now.

    Raises:
        LogError: It failed because the log is not what was booked; DamageError if that is so of one partition.
        FencedError: A repair has fenced a partition that it read.
        StoreRefusedError: It failed because ClickHouse refuses, and will until somebody mends it.
        ConfigError: The job server does not know an option.
        BrokerError, grpc.RpcError: It failed otherwise, or the job server is away.
    """
    partitions = reads()
    while not partitions:  # each is set aside
        if stop.wait(LOOK_EVERY_S):
            return
        partitions = reads()
    with job_server(endpoint) as jobs:
        check_known(flags, _known_options(jobs), endpoint)
        name = job_name(config.topic, config.topic_id)
        left = cluster.running(_names(config)) if cluster is not None else frozenset()
        _cancel_older(jobs, config)
        before = {job.job_id for job in _jobs(jobs, name)}
        pipeline = beam.Pipeline(runner=PortableRunner(), options=_options(flags))
        build(pipeline, config, sorted(partitions), apart=True)
        result = pipeline.run()
        log.info("job_submitted", extra={"job_name": name, "job_server": endpoint})
        try:
            job_id = _job_id(jobs, name, before)
            if cluster is not None:
                cluster.hand_over(_names(config), left, lambda: stop.wait(LOOK_EVERY_S))
            state = _wait(jobs, job_id, lambda: stop.wait(LOOK_EVERY_S) or reads() != partitions)
        finally:
            _cancel(jobs, result)
            if cluster is not None:
                _cancel_there(cluster, _names(config))
        if state in _OVER:
            raise failure(state, _error_messages(jobs, job_id))


@contextmanager
def job_server(endpoint: str) -> Iterator[Any]:
    """Yield the job server's stub."""
    with grpc.insecure_channel(endpoint) as channel:
        yield job_grpc.JobServiceStub(channel)


def failure(state: str, messages: list[str]) -> BrokerError | LogError | StoreError | StoreRefusedError:
    """Return why a job has ended, in our own words where they are among the job server's messages."""
    for message in messages:
        if found := _SENTENCE.search(message):
            return _OURS[found[1]](found[2])
    reason = messages[-1].strip() if messages else "the job server gives no reason"
    return BrokerError(f"the job ended as {state}: {reason}{_ANOTHER if state == 'CANCELLED' else ''}")


def _wait(jobs: Any, job_id: str, enough: Callable[[], bool]) -> str:
    """Return the state in which the job ended, or the last one when it was enough. A job outlives its job server."""
    state = "STARTING"
    while not enough():
        try:
            answer = jobs.GetState(job_api.GetJobStateRequest(job_id=job_id), timeout=_ANSWER_S)
        except grpc.RpcError as error:
            if state != _AWAY:
                log.warning("job_server_away", extra={"error": str(error)[:300]})
            state = _AWAY
            continue
        now = job_api.JobState.Enum.Name(answer.state)
        if now != state:
            log.info("job_state", extra={"state": now})
            state = now
        if state in _OVER:
            break
    return state


def _cancel(jobs: Any, result: Any) -> None:
    """Cancel the job if it still runs, and close what Beam has opened for it in this process."""

    def cancel() -> None:
        try:
            jobs.GetJobs(job_api.GetJobsRequest(), timeout=_ANSWER_S)
            result.cancel()
        except grpc.RpcError as error:
            log.warning("job_not_cancelled", extra={"error": str(error)[:300]})

    thread = threading.Thread(target=cancel, name="cancel", daemon=True)  # Beam itself would wait for ever
    thread.start()
    thread.join(2 * _ANSWER_S)
    if thread.is_alive():
        log.warning("job_not_cancelled", extra={"error": "the job server does not answer"})


def _options(flags: list[str]) -> PipelineOptions:
    """Return the options for Beam, which warns of those of Flink: it learns of them from the job server later."""
    logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)
    return PipelineOptions(flags)


def _known_options(jobs: Any) -> set[str]:
    described = jobs.DescribePipelineOptions(
        job_api.DescribePipelineOptionsRequest(), timeout=_ANSWER_S, wait_for_ready=True
    )
    return {str(option.name) for option in described.options} | set(_options([]).get_all_options())


def _jobs(jobs: Any, name: str) -> list[Any]:
    found = jobs.GetJobs(job_api.GetJobsRequest(), timeout=_ANSWER_S).job_info
    return [job for job in found if job.job_name == name]


def _job_id(jobs: Any, name: str, before: set[str]) -> str:
    """Return the job that was submitted now, which Beam keeps to itself.

    Raises:
        BrokerError: The job server does not know it: it was restarted meanwhile, and forgot.
    """
    for job in _jobs(jobs, name):
        if job.job_id not in before:
            return str(job.job_id)
    raise BrokerError(f'the job server took the job "{name}" and does not know it; was it restarted meanwhile?')


def _names(config: JobConfig) -> tuple[str, ...]:
    """Return the names of the jobs of a topic and of those that it follows."""
    return *(job_name(each.name, each.topic_id) for each in config.before), job_name(config.topic, config.topic_id)


def _cancel_there(cluster: FlinkJobs, names: Collection[str]) -> None:
    try:
        cluster.cancel(names, cluster.running(names))
    except BrokerError as error:  # why the job ended is worth more; the next one finds it, or an operator
        log.warning("job_not_cancelled", extra={"error": str(error)[:300]})


def _cancel_older(jobs: Any, config: JobConfig) -> None:
    """Cancel what an earlier process has left running: two jobs would count right, but do all work twice. That of a
    topic before, which has ended while nobody looked, has nothing to do and keeps its slots.
    """
    for job in (job for name in _names(config) for job in _jobs(jobs, name)):
        if job_api.JobState.Enum.Name(job.state) not in _OVER:
            log.info("older_job_cancelled", extra={"job_id": job.job_id})
            jobs.Cancel(job_api.CancelJobRequest(job_id=job.job_id), timeout=_ANSWER_S)


def _error_messages(jobs: Any, job_id: str) -> list[str]:
    """Return the errors that the job server tells of a job that has ended, oldest first."""
    errors = []
    try:
        for message in jobs.GetMessageStream(job_api.JobMessagesRequest(job_id=job_id), timeout=5):
            if message.message_response.importance == job_api.JobMessage.JOB_MESSAGE_ERROR:
                errors.append(message.message_response.message_text)
    except grpc.RpcError as error:  # the stream of a job that is long over may stay open
        log.debug("job_messages_end", extra={"error": str(error)[:300]})
    return errors
