"""Which options the job runs with on a cluster: what an operator may choose, what must be so, and why.

Flink does what a wrong or misspelt option asks for in silence: partitions stand still, or get a turn in a second. So
options that matter are forced, and those that nobody knows are refused.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from tallyman.errors import ConfigError

LONGEST_BUNDLE_MS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Portable:
    """What an operator asks for on the command line.

    Attributes:
        job_endpoint: "host:port" of the Beam job server.
        environment: Where Python runs: in this process, or in a pool of workers beside each TaskManager.
        environment_config: "host:port" of that pool, as a TaskManager sees it.
        options: "--name=value" or "--name", for Beam and Flink.
        flink_rest: URL of the cluster's REST API, by which jobs are cancelled; "" for what Beam's job server can do.
    """

    job_endpoint: str
    environment: Literal["LOOPBACK", "EXTERNAL"]
    environment_config: str = ""
    options: tuple[str, ...] = ()
    flink_rest: str = ""


class _Forced(NamedTuple):
    value: str  # "" for a flag
    why: str


FORCED = {
    "streaming": _Forced("", "the job never ends"),
    "finish_bundle_before_checkpointing": _Forced("", "without it partitions stand still, and nobody says so"),
}
_OURS = {
    "runner": "--runner",
    "job_endpoint": "--job-endpoint",
    "environment_type": "--environment",
    "environment_config": "--environment-config",
    "default_environment_type": "--environment",
    "default_environment_config": "--environment-config",
}
_NAMED_BY_US = "a job is found again by its name, tallyman-TOPIC-ID"
# Retries are few, so that a log that is not what was booked ends the job with its sentence instead of being tried for
# ever; after any other failure the job is submitted anew.
DEFAULTS = {
    "checkpointing_interval": "5000",
    "max_bundle_time_mills": "10",
    "number_of_execution_retries": "3",
    "execution_retry_delay": "1000",
}
_MOST = 1 << 31
_NUMBERS = {
    "checkpointing_interval": (1, _MOST, "without checkpoints Flink does not restart what has failed"),
    "max_bundle_time_mills": (1, LONGEST_BUNDLE_MS, "a partition gets one turn in each bundle"),
    "number_of_execution_retries": (0, _MOST, "a log that is not what was booked must end the job, not begin it again"),
    "execution_retry_delay": (0, _MOST, "milliseconds"),
}
_ENCODES = ("enable_data_sampling", "enable_always_on_exception_sampling")


def job_name(topic: str, topic_id: str) -> str:
    """Return the name under which a topic's job is found, on the job server and on a cluster that others use, too."""
    return f"tallyman-{topic}-{topic_id}"


def flags_of(wanted: Portable, job: str) -> list[str]:
    """Return all options of a job as Beam takes them.

    Args:
        job: Its name, see `job_name`.

    Raises:
        ConfigError: One of them would lose usage or stop it in silence, or contradicts another.
    """
    _check_environment(wanted)
    chosen = dict(_parse(wanted.options))
    for name, value in chosen.items():
        _check_option(name, value)
    experiments = [value for name, value in _parse(wanted.options) if name == "experiments"]
    chosen = {**DEFAULTS, **chosen, **{name: forced.value for name, forced in FORCED.items()}}
    chosen.pop("experiments", None)
    flags = [f"--{name}={value}" if value else f"--{name}" for name, value in chosen.items()]
    flags += [f"--experiments={value}" for value in experiments]
    flags += [f"--job_endpoint={wanted.job_endpoint}", f"--environment_type={wanted.environment}"]
    if wanted.environment_config:
        flags.append(f"--environment_config={wanted.environment_config}")
    return [*flags, f"--job_name={job}"]


def check_known(flags: Sequence[str], known: Collection[str], endpoint: str) -> None:
    """Refuse options that neither Beam nor the job server knows: they would be dropped without a word.

    Raises:
        ConfigError: Naming the nearest option that there is; or the job server is not Flink's.
    """
    forced = [name for name in FORCED if name not in known]
    if forced:
        raise ConfigError(
            f"--job-endpoint {endpoint}: this job server does not know {forced[0]} ({FORCED[forced[0]].why}); "
            "expected the job server of a Flink runner, of Beam 2.55 or newer"
        )
    for name, _ in _parse(flags):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f'; did you mean "--{near[0]}"?' if near else "; see its documentation"
            raise ConfigError(f'"--{name}": neither Beam nor the job server at {endpoint} has such an option{hint}')


def _parse(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option in options:
        name, _, value = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not name:
            raise ConfigError(f'"{option}": expected --name=value or --name, as in --parallelism=4')
        yield name, value


def _check_environment(wanted: Portable) -> None:
    _host(wanted.job_endpoint, "--job-endpoint", "flink-1:8099")
    _check_rest(wanted.flink_rest)
    if wanted.environment == "EXTERNAL":
        _host(wanted.environment_config, "--environment-config", "localhost:50000")
    elif wanted.environment_config:
        raise ConfigError("--environment-config: LOOPBACK needs none; it is the worker pool's address for EXTERNAL")
    elif not _is_here(_host(wanted.job_endpoint, "--job-endpoint", "flink-1:8099")):
        raise ConfigError(
            f"--environment LOOPBACK: Python runs in this process, on this machine, but the job endpoint "
            f"{wanted.job_endpoint} is elsewhere; start a worker pool beside each TaskManager and use EXTERNAL"
        )


def _check_rest(url: str) -> None:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ConfigError(f'--flink-rest: expected a URL such as http://flink-1:8081, got "{url}"')


def _host(address: str, option: str, example: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ConfigError(f'{option}: expected host:port such as {example}, got "{address}"')
    return host


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_option(name: str, value: str) -> None:
    if name in _OURS:
        raise ConfigError(f"--{name}: write {_OURS[name]} before the --")
    if name == "job_name":
        raise ConfigError(f"--job_name: it is not yours to choose: {_NAMED_BY_US}")
    if name in FORCED and value not in ("", "true", "True"):
        raise ConfigError(f"--{name}={value}: it must be on: {FORCED[name].why}")
    if name in _NUMBERS:
        least, most, why = _NUMBERS[name]
        if not value.isdigit() or not least <= int(value) <= most:
            wanted = f"{least} or more" if most == _MOST else f"{least} to {most}"
            raise ConfigError(f"--{name}: expected {wanted} ({why}), got {value or 'nothing'}")
    if name == "experiments" and value.split("=")[0] in _ENCODES:
        raise ConfigError(f"--experiments={value}: it copies the job's elements, which never leave their process")
