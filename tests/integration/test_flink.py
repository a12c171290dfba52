"""The same job on a real Flink, by Beam's portable runner: nothing is lost or doubled, every total is exact."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import growth
from pipeline.repair import plan_repair, repair
from tallyman.clickhouse import connect
from tallyman.errors import StackError
from tallyman.local.folder import ClickHouseEndpoint
from tests.flink.parts import JobServer, python_env, tallyman_argv
from tests.flink.usage import METERS, Usage, differences, ends_of, send
from tests.integration.booking import OwnProject, wait_for
from tests.integration.test_growth import assert_books_hold, growth_states, wait_until_all_is_booked
from tests.stack import not_here

pytestmark = pytest.mark.integration
PARTITIONS, CHUNK = 4, 64
PATIENCE_S = 150


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    """Beam's job server, with a whole Flink of two slots inside it."""
    try:
        server = JobServer(tmp_path_factory.mktemp("flink"))
        server.start()
    except StackError as error:
        not_here(f"Flink cannot run here: {error}")
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def project(tmp_path: Path, kafka_broker: str, clickhouse_endpoint: ClickHouseEndpoint) -> OwnProject:
    own = OwnProject(
        tmp_path / "project", kafka_broker, clickhouse_endpoint, METERS, partitions=PARTITIONS, chunk_size=CHUNK
    )
    own.pipeline["tick"] = "2s"
    return own


class Job:
    """`tallyman pipeline --runner PortableRunner` as a process of its own, which is the worker as well."""

    def __init__(self, project: OwnProject, server: JobServer, *options: str) -> None:
        assert project.project.config.kafka.partitions == PARTITIONS  # writes tallyman.yaml
        self.log = project.folder / "pipeline.log"
        where = ("--project", project.folder, "--data", project.folder / "data")
        self._argv = tallyman_argv(
            "pipeline", "--runner", "PortableRunner", "--job-endpoint", server.endpoint,
            "--environment", "LOOPBACK", *where, "--", "--parallelism=2", "--checkpointing_interval=1000",
            *options,
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self._argv, stdout=out, stderr=out, env=python_env())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        """Ask it to end; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def running(project: OwnProject, server: JobServer, *options: str) -> Iterator[Job]:
    job = Job(project, server, *options)
    try:
        yield job
    except BaseException:
        print(job.said[-8000:], server.log.read_text(encoding="utf-8", errors="replace")[-8000:], sep="\n----\n")
        raise
    finally:
        if job.process.poll() is None:
            job.kill()


def booked_to(project: OwnProject, ends: dict[int, int]) -> bool:
    reached = project.reached()
    return all(reached.get(partition, 0) >= end for partition, end in ends.items())


@pytest.mark.long
def test_a_worker_killed_on_flink_loses_nothing_and_doubles_nothing(
    project: OwnProject, job_server: JobServer
) -> None:
    """Then the same command is simply started again: it cancels what it left running, and goes on from the book."""
    usage = Usage(PARTITIONS, seed=1)
    topic = str(project.settings["topic"])
    brokers = (project.kafka,)
    with running(project, job_server) as job:
        wait_for(lambda: "job_submitted" in job.said, "the job on Flink", PATIENCE_S)
        send(brokers, topic, usage.records(300))
        wait_for(lambda: len(project.reached()) == PARTITIONS, "progress in every partition", PATIENCE_S)
        send(brokers, topic, usage.records(600))
        job.kill()
        send(brokers, topic, usage.records(300))
        job.start()
        ends = ends_of(brokers, topic, PARTITIONS)
        wait_for(lambda: booked_to(project, ends), f"progress up to {ends}", PATIENCE_S)
        assert "older_job_cancelled" in job.said
        clock = "SELECT min(clock) FROM (SELECT max(reached_clock_ms) AS clock FROM progress GROUP BY partition)"
        before = project.ask(clock)
        wait_for(lambda: project.ask(clock) > before, "ticks in silent partitions", PATIENCE_S)
        assert job.stop() == 0
    client = connect(project.endpoint)
    ends = {partition: min(end, project.reached()[partition]) for partition, end in ends.items()}
    assert differences(client, usage, ends, CHUNK) == []
    client.disconnect()


def test_on_flink_a_topic_grows_while_usage_flows_and_every_event_counts_once(
    project: OwnProject, job_server: JobServer
) -> None:
    """The service cancels the job of the topic that has ended, and submits the one of the topic that follows."""
    usage = Usage(PARTITIONS, seed=3)
    old, brokers = str(project.settings["topic"]), (project.kafka,)
    with running(project, job_server) as job:
        wait_for(lambda: "job_submitted" in job.said, "the job on Flink", PATIENCE_S)
        before = list(usage.records(100))
        send(brokers, old, iter(before))
        plan = growth.plan_growth(project.project, PARTITIONS + 2)
        new = growth.grow(project.project, plan).name
        send(brokers, old, usage.records(50))  # behind the end: who was not told yet
        wait_for(lambda: growth_states(project) == ["ended", "booked"], "the old topic booked to its end", PATIENCE_S)
        send(brokers, new, (each for each in before if each.value.count(b'"minutes"') == 0))  # copies
        send(brokers, new, usage.records(100))
        counted = f"{usage.events} events"
        sql = "SELECT sum(count), sum(sum) FROM usage_booked"
        wanted = [tuple(map(sum, zip(*usage.totals.values(), strict=True)))]
        wait_for(lambda: project.ask(sql) == wanted, counted, PATIENCE_S)
        wait_until_all_is_booked(project, new, PARTITIONS + 2)
        assert f"tallyman-{new}" in job.said
        assert project.ask(sql) == wanted
        assert job.stop() == 0
    assert_books_hold(project)


@pytest.mark.long
def test_on_flink_a_damaged_partition_is_set_aside_and_booked_again_when_it_is_repaired(
    project: OwnProject, job_server: JobServer
) -> None:
    """Retention removed what was not booked of partition 0; the others are booked on without it."""
    usage = Usage(PARTITIONS, seed=2)
    topic, brokers = str(project.settings["topic"]), (project.kafka,)
    with project.running():
        send(brokers, topic, usage.records(40))
        project.wait_until_booked()
    stood = project.reached()[0]
    lost = list(usage.records(60))
    send(brokers, topic, iter(lost))
    project.eat(0, below=stood + 3)
    ends = ends_of(brokers, topic, PARTITIONS)
    with running(project, job_server, "--number_of_execution_retries=0") as job:
        wait_for(lambda: "partition_quarantined" in job.said, "partition 0 to be set aside", PATIENCE_S)
        others = {partition: end for partition, end in ends.items() if partition}
        wait_for(lambda: booked_to(project, others), f"progress up to {others}", PATIENCE_S)
        assert project.reached()[0] == stood
        client = connect(project.endpoint)
        plan = plan_repair(project.project, client, 0)
        assert plan is not None and (plan.first, plan.skipped, plan.problem) == (stood, 3, "retention")
        repair(project.project, client, plan, who="zoë", note="the disk was full")
        wait_for(lambda: booked_to(project, ends), f"progress up to {ends}, by the same service", PATIENCE_S)
        send(brokers, topic, iter(lost))  # sent again: what was lost counts, the rest has counted
        sql = "SELECT sum(count), sum(sum) FROM usage_booked"
        wanted = [tuple(map(sum, zip(*usage.totals.values(), strict=True)))]
        wait_for(lambda: project.ask(sql) == wanted, f"{usage.events} events", PATIENCE_S)
        assert job.stop() == 0
        client.disconnect()
