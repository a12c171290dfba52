"""The options of a job on a cluster: what is forced, and each way to ask for what would stop usage in silence."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.portable import FORCED, Portable, check_known, flags_of, job_name
from tallyman.errors import ConfigError


def asked(*options: str, **changed: Any) -> Portable:
    wanted = {"job_endpoint": "localhost:8099", "environment": "LOOPBACK", "options": options} | changed
    return Portable(**wanted)


def test_what_matters_is_forced_and_the_rest_has_a_default() -> None:
    flags = flags_of(asked("--parallelism=4"), job_name("usage.events.v1", "Ecl5Q0nR"))
    assert set(flags) == {
        "--streaming",
        "--finish_bundle_before_checkpointing",
        "--checkpointing_interval=5000",
        "--max_bundle_time_mills=10",
        "--number_of_execution_retries=3",
        "--execution_retry_delay=1000",
        "--parallelism=4",
        "--job_endpoint=localhost:8099",
        "--environment_type=LOOPBACK",
        "--job_name=tallyman-usage.events.v1-Ecl5Q0nR",
    }


def test_an_operator_may_choose_within_bounds() -> None:
    """What is chosen comes once, in the place of the default; what is forced may be said again."""
    options = ("--checkpointing_interval=60000", "--streaming", "--experiments=one", "--experiments=two=2")
    flags = flags_of(asked(*options), "usage")
    assert [flag for flag in flags if "checkpointing_interval" in flag] == ["--checkpointing_interval=60000"]
    assert [flag for flag in flags if "experiments" in flag] == ["--experiments=one", "--experiments=two=2"]
    assert flags.count("--streaming") == 1


def test_workers_of_their_own_are_found_by_their_address() -> None:
    flags = flags_of(
        asked(environment="EXTERNAL", environment_config="pool:50000", job_endpoint="flink-1:8099"), "usage"
    )
    assert "--environment_type=EXTERNAL" in flags and "--environment_config=pool:50000" in flags


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (asked("parallelism=4"), '"parallelism=4": expected --name=value or --name, as in --parallelism=4'),
        (asked("--runner=SparkRunner"), "--runner: write --runner before the --"),
        (asked("--environment_type=DOCKER"), "--environment_type: write --environment before the --"),
        (asked("--job_name=mine"), "--job_name: it is not yours to choose: a job is found again by its name"),
        (
            asked("--finish_bundle_before_checkpointing=false"),
            "it must be on: without it partitions stand still, and nobody says so",
        ),
        (asked("--streaming=false"), "--streaming=false: it must be on: the job never ends"),
        (
            asked("--checkpointing_interval=-1"),
            r"--checkpointing_interval: expected 1 or more \(without checkpoints Flink does not restart .*\), got -1",
        ),
        (asked("--checkpointing_interval"), "expected 1 or more .*, got nothing"),
        (
            asked("--max_bundle_time_mills=1000"),
            r"expected 1 to 100 \(a partition gets one turn in each bundle\), got 1000",
        ),
        (asked("--number_of_execution_retries=-1"), "expected 0 or more .* must end the job, .* got -1"),
        (asked("--experiments=enable_data_sampling"), "it copies the job's elements, which never leave their process"),
        (asked(job_endpoint="8099"), '--job-endpoint: expected host:port such as flink-1:8099, got "8099"'),
        (asked(job_endpoint="flink-1:http"), 'such as flink-1:8099, got "flink-1:http"'),
        (asked(job_endpoint="flink-1:8099"), "--environment LOOPBACK: .* flink-1:8099 is elsewhere; .* use EXTERNAL"),
        (asked(environment="EXTERNAL"), '--environment-config: expected host:port such as localhost:50000, got ""'),
        (asked(environment_config="pool:50000"), "--environment-config: LOOPBACK needs none"),
        (asked(flink_rest="flink-1:8081"), "--flink-rest: expected a URL such as http://flink-1:8081, got .flink-1"),
    ],
)
def test_what_would_go_wrong_in_silence_is_refused_with_a_sentence(wanted: Portable, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        flags_of(wanted, "usage")


@pytest.mark.parametrize("endpoint", ["localhost:1", "127.0.0.1:1", "127.3.2.1:1", "[::1]:1"])
def test_a_job_server_on_this_machine_may_use_this_process(endpoint: str) -> None:
    assert flags_of(asked(job_endpoint=endpoint), "usage")


def test_a_misspelt_option_is_refused_with_the_nearest_one() -> None:
    """Beam drops what the job server does not know without a word."""
    known = {*FORCED, "parallelism", "job_name"}
    check_known(["--parallelism=4", "--streaming"], known, "flink-1:8099")
    with pytest.raises(ConfigError, match=r'"--paralellism": .*; did you mean "--parallelism"'):
        check_known(["--paralellism=4"], known, "flink-1:8099")


def test_a_job_server_of_another_runner_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not know finish_bundle_before_checkpointing .* expected .* a Flink"):
        check_known([], {"streaming"}, "spark-1:8099")
