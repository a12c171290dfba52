"""A project: the folder with its settings and meters, the data folder beside it, and where its parts answer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tallyman.config import ClickHouseConfig, TallymanConfig
from tallyman.errors import ConfigError, StackError
from tallyman.files import Secret, load_marked, load_marked_folder, load_yaml, refuse_repeats, show_path
from tallyman.meter import Meter, is_path

SETTINGS_FILE = "tallyman.yaml"
STACK_FILE = "stack.json"  # written by tallyman.local.folder, whose libraries a host need not have


# It stands in URLs, file names and queries of others.
_SLUG = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
# Numbers that stand as texts in a meter: Python reads more (spaces, "9_5", digits of all scripts) than others do.
_PLAIN_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_FRACTION_LETTERS = re.compile(r"[-+0-9./eE]+")


class MetersFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of `meters/`."""

    meters: tuple[Meter, ...] = ()


class _StackClickHouse(msgspec.Struct):
    host: str
    port: int
    user: str = "default"
    password: str = ""
    database: str = "tallyman"


class _Stack(msgspec.Struct):
    kafka: str = ""
    clickhouse: _StackClickHouse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project, read and checked. Endpoints are looked up when asked for: the stack may have started since."""

    folder: Path
    data: Path
    config: TallymanConfig
    meters: tuple[Meter, ...]

    @property
    def kafka_brokers(self) -> tuple[str, ...]:
        """The configured brokers, else the running embedded stack's.

        Raises:
            StackError: Neither is there.
        """
        if self.config.kafka.brokers:
            return self.config.kafka.brokers
        stack = read_stack(self.data)
        if stack is None or not stack.kafka:
            raise self._not_there("Kafka", "kafka.brokers")
        return (stack.kafka,)

    @property
    def kafka_replication(self) -> int:
        """Copies of a topic: as configured for brokers of your own; 1 for the embedded stack's only broker."""
        return self.config.kafka.replication if self.config.kafka.brokers else 1

    @property
    def clickhouse(self) -> ClickHouseConfig:
        """The configured ClickHouse, else the running embedded stack's.

        Raises:
            StackError: Neither is there.
        """
        if self.config.clickhouse.host:
            return self.config.clickhouse
        stack = read_stack(self.data)
        if stack is None or stack.clickhouse is None:
            raise self._not_there("ClickHouse", "clickhouse.host")
        found = stack.clickhouse
        return ClickHouseConfig(
            host=found.host,
            port=found.port,
            user=found.user,
            password=Secret(found.password),
            database=found.database,
        )

    @property
    def control_url(self) -> str:
        """The configured control store, else SQLite in the data folder."""
        return self.config.control.url or f"sqlite:///{self.data / 'control.db'}"

    @property
    def invoices_folder(self) -> Path:
        """Where invoice documents go."""
        return self.data / (self.config.invoices.folder or "invoices")

    @property
    def spool_folder(self) -> Path:
        """Where the agent keeps what Kafka has not acknowledged."""
        return self.data / (self.config.agent.spool_folder or "spool")

    @property
    def agent_subject(self) -> str:
        """Whose usage the agent measures."""
        return self.config.agent.subject or self.config.agent.collector

    def _not_there(self, part: str, setting: str) -> StackError:
        where = show_path(self.data)
        settings = show_path(self.folder / SETTINGS_FILE)
        return StackError(
            f"{part}: no stack runs in {where} and {settings} has no {setting}; "
            f"start one with: tallyman up, or set {setting}"
        )


def load_project(folder: Path, data: Path | None = None, environment: Mapping[str, str] = os.environ) -> Project:
    """Read a project's settings and meters.

    Args:
        folder: Has `tallyman.yaml`.
        data: Its data folder; else $TALLYMAN_DATA, else `.tallyman/` in the project's folder.

    Raises:
        ConfigError: A file is missing or wrong; all problems at once, one line each.
    """
    settings = folder / SETTINGS_FILE
    if not settings.is_file():
        raise ConfigError(
            f"{show_path(settings)}: no such file; "
            "make a project with: tallyman init FOLDER, or name one with --project"
        )
    problems = []
    config = TallymanConfig()
    meters: tuple[Meter, ...] = ()
    try:
        config = load_yaml(settings, TallymanConfig)
    except ConfigError as error:
        problems.append(str(error))
    try:
        meters = load_meters(folder / "meters")
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return Project(folder=folder.absolute(), data=find_data(folder, data, environment), config=config, meters=meters)


def settings_place(project: Project, path: str) -> str:
    """Return "tallyman.yaml:12: rules.endpoints.operations.url", for a message about a setting."""
    settings = project.folder / SETTINGS_FILE
    try:
        return load_marked(settings, TallymanConfig).place(path)
    except ConfigError:  # gone or broken since it was read
        return f"{show_path(settings)}: {path}"


def find_data(folder: Path, data: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """Return a project's data folder, absolute."""
    named = data or environment.get("TALLYMAN_DATA")
    return Path(named).absolute() if named else folder.absolute() / ".tallyman"


def load_meters(folder: Path) -> tuple[Meter, ...]:
    """Read every meter of a folder, sorted by slug.

    Raises:
        ConfigError: A file is wrong, or two meters share a slug; both places are named.
    """
    meters, places, problems = [], [], []
    for marked in load_marked_folder(folder, MetersFile):
        for i, meter in enumerate(marked.value.meters):
            meters.append(meter)
            places.append((meter.meter, marked.place(f"meters[{i}].meter")))
            if not _SLUG.fullmatch(meter.meter):
                problems.append(
                    f'{places[-1][1]}: expected a slug of small letters, digits and ". _ -", such as server.seconds, '
                    f'got "{meter.meter}"'
                )
            for key, told in _find_unfit(meter):
                problems.append(f'{marked.place(f"meters[{i}].{key}")}: expected {told}')
    if problems:
        raise ConfigError("\n".join(problems))
    refuse_repeats("meter", places)
    return tuple(sorted(meters, key=lambda meter: meter.meter))


def find_doubtful(folder: Path) -> Iterator[str]:
    """Yield what can be meant as it stands and rarely is: a path that says once more where all paths begin."""
    for marked in load_marked_folder(folder, MetersFile):
        for i, meter in enumerate(marked.value.meters):
            for key, path in _paths(meter):
                begin = next((each for each in ("data.", "$.") if path.startswith(each)), "")
                if begin and (rest := path.removeprefix("$.").removeprefix("data.")):
                    yield (
                        f'{marked.place(f"meters[{i}].{key}")}: "{path}" is looked for at data.{path} of an event, '
                        f'since paths begin inside data; is "{rest}" meant?'
                    )


def _paths(meter: Meter) -> Iterator[tuple[str, str]]:
    """Yield the paths into `data` that a meter names, each with its key; "" where it names none."""
    yield from ((key, getattr(meter, key)) for key in ("value", "resource", "state", "incarnation"))
    yield from ((f"dimensions.{name}", path) for name, path in meter.dimensions.items())
    yield from ((key, path) for key in ("where", "ends_on") for path in getattr(meter, key))


def _find_unfit(meter: Meter) -> Iterator[tuple[str, str]]:
    """Yield what no file may say: the key, and what is expected there.

    What is in force may say it still, from before it was refused, and is read as it always was (`tallyman.meter`).
    """
    yield from _find_empty(meter)
    yield from _find_no_paths(meter)
    if meter.percentile and not _PLAIN_NUMBER.fullmatch(meter.percentile):
        yield "percentile", f'a plain number such as "95" or "99.9", got {meter.percentile!a}'
    for key, text in (("multiply_by", meter.multiply_by), ("add", meter.add)):
        if not _FRACTION_LETTERS.fullmatch(text):
            yield key, f'a fraction in digits of ASCII, such as "1/3600" or "1.5", got {text!a}'
    if meter.ends_on and meter.level == "delta":
        yield "ends_on", (
            "only with level: absolute, got delta, of which an end changes nothing; "
            "send what takes the level back to 0 as a change, or send levels"
        )
    if "subject" in meter.dimensions:
        yield "dimensions.subject", (
            f'another name: usage is grouped by "subject" to tell tenants apart; rename it, e.g. mail_subject: '
            f"{meter.dimensions['subject']}"
        )


def _find_empty(meter: Meter) -> Iterator[tuple[str, str]]:
    """Yield what is empty though nothing would ever count without it, or end."""
    if not meter.event_type:
        yield "event_type", 'the type of the events that it counts, got ""'
    if "" in meter.value_paths:
        yield "value", 'the path of the value inside data, got ""'
    for name, path in meter.dimensions.items():
        if not path:
            yield f"dimensions.{name}", 'the path of the dimension inside data, got ""'
    for key, condition in (("where", meter.where), ("ends_on", meter.ends_on)):
        for name, texts in condition.items():
            if not name:
                yield key, 'a path inside data before each list of texts, got ""'
            if not texts:
                yield f"{key}.{name}", "one text at least, got none: no event is like that"


def _find_no_paths(meter: Meter) -> Iterator[tuple[str, str]]:
    """Yield the paths that are none, such as those of a query language or of a counter of Windows."""
    for key, path in _paths(meter):
        if not is_path(path):
            yield key, (
                "a path of names with dots between, such as labels.app, without quotes, backslashes and control "
                f"characters, got {path!a}"
            )


def read_stack(data: Path) -> _Stack | None:
    """Read what the embedded stack of this data folder says about itself; None when none runs."""
    try:
        return msgspec.json.decode((data / STACK_FILE).read_bytes(), type=_Stack)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, OSError) as error:
        raise StackError(f"{show_path(data / STACK_FILE)}: {error}; stop the stack and start it again") from error


def with_config(project: Project, config: TallymanConfig) -> Project:
    """Return the same project with other settings."""
    return replace(project, config=config)
