"""What the service makes of a job that has ended: another try, or the sentence that an operator needs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from apache_beam.portability.api import beam_job_api_pb2 as job_api
from clickhouse_driver.errors import ServerException

from pipeline import submit
from pipeline.portable import Portable
from pipeline.submit import Health, book_topic, failure, keep_submitting
from tallyman.clickhouse import store_error
from tallyman.errors import (
    BrokerError,
    ConfigError,
    DamageError,
    FencedError,
    LogError,
    StoreError,
    StoreRefusedError,
)
from tests.unit.pipeline.test_job import CONFIG

# As Flink hands on what Python raised in a worker: once with real line breaks, once inside a repr.
TRACEBACK = """org.apache.flink.runtime.JobException: Recovery is suppressed by FixedDelayRestartBackoffTimeStrategy(...)
Caused by: java.lang.RuntimeException: Error received from SDK harness for instruction 7: Traceback (most recent call last):
  File "pipeline/decode.py", line 95, in _meet_again
    raise LogError(
tallyman.errors.LogError: partition 3: below offset 120 the log differs from what was booked (digest 1, booked 2); \
it was truncated. Nothing is guessed: an operator decides [while running 'ReadUsage/Read-ptransform-9']
"""  # noqa: E501
SENTENCE = (
    "partition 3: below offset 120 the log differs from what was booked (digest 1, booked 2); it was truncated. "
    "Nothing is guessed: an operator decides"
)


@pytest.mark.parametrize("message", [TRACEBACK, repr(TRACEBACK), TRACEBACK.replace(" [while", "\n[while")])
def test_our_own_sentence_is_found_in_what_flink_says(message: str) -> None:
    found = failure("FAILED", ["Checkpoint expired", message, "Recovery is suppressed"])
    assert isinstance(found, LogError) and str(found) == SENTENCE


def test_a_damaged_partition_is_known_by_its_text() -> None:
    """Beam cannot make an error of ours again that takes more than a message, so it puts its text into another."""
    damage = DamageError(3, "digest", SENTENCE)
    message = TRACEBACK.replace("tallyman.errors.LogError", "RuntimeError: tallyman.errors.DamageError")
    found = failure("FAILED", [message.replace(SENTENCE, str(damage))])
    assert isinstance(found, DamageError) and repr(found) == repr(damage)
    cut_off = failure("FAILED", [message])
    assert type(cut_off) is LogError and str(cut_off) == SENTENCE


def test_a_fenced_partition_is_known_by_its_text() -> None:
    said = "DB::Exception: Constraint `repaired_7a6f_12_3` for table books.ids is violated. Stack trace:\n0."
    fenced = store_error(ServerException(said, 469), "INSERT INTO ids")
    message = TRACEBACK.replace("tallyman.errors.LogError", "RuntimeError: tallyman.errors.FencedError")
    found = failure("FAILED", [message.replace(SENTENCE, str(fenced))])
    assert isinstance(found, FencedError) and repr(found) == repr(fenced)
    cut_off = failure("FAILED", [message])
    assert type(cut_off) is StoreError and str(cut_off) == SENTENCE


def test_any_other_end_may_pass() -> None:
    found = failure("FAILED", ["NoResourceAvailableException: Could not acquire the minimum required resources.\n"])
    assert isinstance(found, BrokerError)
    assert str(found) == (
        "the job ended as FAILED: NoResourceAvailableException: Could not acquire the minimum required resources."
    )
    assert "gives no reason" in str(failure("FAILED", []))


def test_of_a_job_that_was_cancelled_it_is_said_who_does_that() -> None:
    """Two services, as of a deployment with two replicas, cancel each other's job in turn, and nothing is booked."""
    assert str(failure("CANCELLED", [])) == (
        "the job ended as CANCELLED: the job server gives no reason; a second service of this topic at this job server "
        "cancels the job of the first: is only one running?"
    )


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_FIRST_WAIT_S", 0.001)


def as_it_is(error: BaseException) -> BaseException:
    return error


def ends(*errors: Exception | None) -> Callable[[], None]:
    left = list(errors)

    def run() -> None:
        error = left.pop(0)
        if error is not None:
            raise error

    return run


@pytest.mark.usefixtures("no_waiting")
def test_a_job_that_failed_is_submitted_again_until_the_log_is_at_fault() -> None:
    fault = LogError("the log was cut")
    run = ends(BrokerError("no slots"), RuntimeError("gRPC"), None, fault)
    assert keep_submitting(run, threading.Event(), as_it_is) is fault


@pytest.mark.usefixtures("no_waiting")
def test_a_damaged_partition_is_left_to_who_sets_it_aside_and_the_job_is_submitted_again() -> None:
    met, refused = list[BaseException](), StoreRefusedError("the quarantines table is gone")
    answers = iter((StoreError("set aside"), refused))

    def meet(error: BaseException) -> BaseException:
        met.append(error)
        return next(answers)

    damages = [DamageError(n, "cut", "the log ends at 7") for n in range(2)]
    assert keep_submitting(ends(*damages), threading.Event(), meet) is refused
    assert met == damages


@pytest.mark.usefixtures("no_waiting")
def test_a_wrong_option_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="no such option"):
        keep_submitting(ends(ConfigError("no such option")), threading.Event(), as_it_is)


def test_a_stop_ends_it() -> None:
    stop = threading.Event()
    stop.set()
    assert keep_submitting(ends(), stop, as_it_is) is None


def test_a_refusal_of_clickhouse_ends_the_job_too() -> None:
    """Its sentence holds quotes and brackets, and Flink hands it on inside a traceback."""
    refusal = str(
        store_error(ServerException("DB::Exception: Table `t` does not exist. Stack trace:\n0.", 60), "INSERT")
    )
    traceback = (
        TRACEBACK.split("tallyman.errors")[0] + f"tallyman.errors.StoreRefusedError: {refusal} [while running 'W']"
    )
    found = failure("FAILED", [traceback])
    assert isinstance(found, StoreRefusedError) and str(found) == refusal
    assert keep_submitting(ends(found), threading.Event(), as_it_is) is found


class JobServer:
    """Knows the jobs that it is told of."""

    def __init__(self, *names: str) -> None:
        running = job_api.JobState.RUNNING
        self._jobs = [SimpleNamespace(job_id=f"id-{n}", job_name=name, state=running) for n, name in enumerate(names)]
        self.cancelled = list[str]()

    def GetJobs(self, request: object, timeout: float) -> Any:
        return SimpleNamespace(job_info=self._jobs)

    def Cancel(self, request: Any, timeout: float) -> None:
        self.cancelled.append(request.job_id)


def test_a_job_that_its_server_has_forgotten_is_submitted_again_with_a_sentence() -> None:
    jobs = JobServer("tallyman-usage", "another", "tallyman-usage")
    assert submit._job_id(jobs, "tallyman-usage", {"id-0"}) == "id-2"
    with pytest.raises(BrokerError, match='took the job "tallyman-usage" and does not know it'):
        submit._job_id(jobs, "tallyman-usage", {"id-0", "id-2"})


def test_a_job_server_that_never_answers_a_cancel_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(submit, "_ANSWER_S", 0.01)
    answered = threading.Event()
    submit._cancel(JobServer(), SimpleNamespace(cancel=answered.wait))
    answered.set()
    assert [record.message for record in caplog.records] == ["job_not_cancelled"]


def test_the_job_of_a_topic_that_ended_while_the_service_was_down_is_cancelled() -> None:
    jobs = JobServer(*(submit.job_name(name, "id") for name in ("usage.v1", "usage.v2", "usage.of.others")))
    before = SimpleNamespace(name="usage.v1", topic_id="id")
    config: Any = SimpleNamespace(topic="usage.v2", topic_id="id", before=(before,))
    submit._cancel_older(jobs, config)
    assert jobs.cancelled == ["id-0", "id-1"]


@pytest.mark.parametrize(
    ("environment", "pool", "more"),
    [("LOOPBACK", "", []), ("EXTERNAL", "localhost:50000", ["Fates"])],
    ids=["workers in this process count themselves", "workers elsewhere show nothing"],
)
def test_the_service_beside_a_cluster_says_how_complete_usage_is_and_what_died(
    monkeypatch: pytest.MonkeyPatch, environment: Any, pool: str, more: list[str]
) -> None:
    """As a worker does: a silent host, batches that did not come and dead letters are alarms on a cluster, too."""
    seen: list[Any] = []

    class Duties:
        fault = None

        def __init__(self, *_: Any, more: Any, **__: Any) -> None:
            seen.extend(duty.__self__ for duty, _ in more)

        def start(self) -> None:
            return

        def close(self) -> None:
            return

    monkeypatch.setattr(submit, "Upkeep", Duties)
    monkeypatch.setattr(submit, "keep_submitting", lambda *_: None)
    usage = SimpleNamespace(expected_delay=timedelta(seconds=10))
    project: Any = SimpleNamespace(clickhouse=CONFIG.database, kafka_replication=1, config=SimpleNamespace(usage=usage))
    portable = Portable(job_endpoint="localhost:8099", environment=environment, environment_config=pool)
    assert book_topic(project, CONFIG, threading.Event(), Health(), portable) is None
    assert [type(each).__name__ for each in seen] == ["Follower", "SetAside", "Watch", *more]
