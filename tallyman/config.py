"""What an operator sets in `tallyman.yaml`: one frozen dataclass for each section, each default in one place.

Everything has a default; an empty file is a working project on the embedded stack. Durations are written "200ms",
"30s", "5m", "1h", "35d"; secrets may be written "${NAME}", which reads an environment variable.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from tallyman.errors import ConfigError
from tallyman.files import Secret, write_duration

MEBIBYTE = 1024 * 1024
LEAST_CHUNK = 8
# ClickHouse adds it to the moment of a record, in seconds since 1970 that end in 2106 and begin again there: what is
# kept longer would be older than its time at once, and gone.
LONGEST_TTL = timedelta(days=50 * 365)
CONTROL_KINDS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")
TOPIC_NAME_EXPECTED = 'expected 1 to 249 of the letters a to z and A to Z, digits and ". _ -"'
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


def _need(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 1 <= int(text) <= 65535


def is_topic_name(name: str) -> bool:
    """Whether Kafka takes it as the name of a topic."""
    return _TOPIC_NAME.fullmatch(name) is not None and name not in (".", "..")


def _above_zero(section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        good = value > timedelta(0) if isinstance(value, timedelta) else value > 0
        _need(good, f"{name}: expected more than 0, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """Where usage events go. Without brokers: the embedded stack's.

    Attributes:
        brokers: "host:port" of one or more brokers.
        topic: Usage events. Its partitions never change: growth is a new topic.
        progress_topic: What the pipeline has booked, for whoever waits for it.
        chunk_size: Offsets in an aligned chunk, a power of two; it belongs to the topic and is set when that is made.
        replication: Copies of a new topic on your own brokers; the embedded stack has one broker and so one copy.
    """

    brokers: tuple[str, ...] = ()
    topic: str = "usage.events.v1"
    progress_topic: str = "usage.progress.v1"
    partitions: int = 4
    chunk_size: int = 65536
    replication: int = 3

    def __post_init__(self) -> None:
        _above_zero(self, "partitions", "chunk_size", "replication")
        for name, value in (("topic", self.topic), ("progress_topic", self.progress_topic)):
            _need(is_topic_name(value), f'{name}: {TOPIC_NAME_EXPECTED}, got "{value}"')
        same = self.topic == self.progress_topic
        _need(not same, f'progress_topic: expected another topic than that of the events, got "{self.topic}" for both')
        power = self.chunk_size & (self.chunk_size - 1) == 0
        _need(power, f"chunk_size: expected a power of two such as 65536, got {self.chunk_size}")
        _need(self.chunk_size >= LEAST_CHUNK, f"chunk_size: expected {LEAST_CHUNK} or more, got {self.chunk_size}")
        for broker in self.brokers:
            host, _, port = broker.rpartition(":")
            _need(bool(host) and _is_port(port), f'brokers: expected host:port such as kafka-1:9092, got "{broker}"')


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickHouseConfig:
    """Where aggregates live, by ClickHouse's native protocol. Without a host: the embedded stack's."""

    host: str = ""
    port: int = 9000
    user: str = "default"
    password: Secret = field(default=Secret(""), repr=False)
    database: str = "tallyman"

    def __post_init__(self) -> None:
        _need(_is_port(str(self.port)), f"port: expected 1 to 65535, got {self.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """Where alarm states, invoices and definitions live: an SQLAlchemy URL. Empty: SQLite in the data folder."""

    url: Secret = field(default=Secret(""), repr=False)

    def __post_init__(self) -> None:
        good = not self.url or "://" in self.url
        _need(good, "url: expected a URL such as postgresql+psycopg://tallyman@db-1/tallyman, got none")  # never shown
        known = not self.url or self.url.split("://")[0] in CONTROL_KINDS
        _need(known, "url: expected sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME, got another kind of store")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageConfig:
    """Which events are accepted.

    Attributes:
        oldest_accepted: Older events are dead letters, by the clock of the log.
        furthest_ahead: Events further in the future are dead letters, by the clock of the log.
        expected_delay: How long foreign events take to arrive; until then a window is not called complete.
        ignore: Event types that no meter wants and that are no dead letters either.
    """

    oldest_accepted: timedelta = timedelta(days=35)
    furthest_ahead: timedelta = timedelta(hours=1)
    expected_delay: timedelta = timedelta(seconds=10)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _above_zero(self, "oldest_accepted")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The agent on this host.

    Attributes:
        collector: The name under which its batches are numbered; it must be this host's alone.
        subject: Who used what it measures. Empty: the collector's name.
        interval: How often it measures; must fit into a minute without a rest, so that no interval crosses one.
        spool_folder: Where accepted events wait for Kafka. Empty: `spool/` in the data folder.
        spool_max_bytes: When it is full the agent stops measuring and says so; it never drops.
        collectors: Which ones run, with their options.
    """

    collector: str = field(default_factory=socket.gethostname)
    subject: str = ""
    interval: timedelta = timedelta(seconds=10)
    spool_folder: str = ""
    spool_max_bytes: int = 256 * MEBIBYTE
    collectors: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: {"host": {}})

    def __post_init__(self) -> None:
        _above_zero(self, "interval", "spool_max_bytes")
        _need(bool(self.collector), 'collector: expected a name, got ""; the host has none, so set one')
        fits = timedelta(minutes=1) % self.interval == timedelta(0)
        _need(fits, f"interval: expected a part of a minute such as 10s or 30s, got {self.interval.total_seconds():g}s")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """How the pipeline works; nothing here changes a figure.

    Attributes:
        flush: How often what was counted becomes visible.
        rebuild_after: How long one Beam pipeline runs before it is built anew; or after `rebuild_bundles`.
        archive: Whether records are kept as they came, in `events`.
        archive_ttl: How long they are kept there; 0 for ever, else at most fifty years.
        tick: How long a partition is silent before its clock is moved.
        partitions: Which partitions this process reads. Empty: its share; all workers of a topic share them evenly.
        id_filter_bytes: Most memory for knowing which ids are new, 1 GiB for 250 million (on Flink for each partition);
            of more, some new ids are looked up: of 400 million one in 2,500, of 10^9 one in ten.
    """

    flush: timedelta = timedelta(milliseconds=200)
    rebuild_after: timedelta = timedelta(minutes=5)
    rebuild_bundles: int = 10_000
    archive: bool = False
    archive_ttl: timedelta = timedelta(0)
    tick: timedelta = timedelta(seconds=30)
    partitions: tuple[int, ...] = ()
    id_filter_bytes: int = 1024 * MEBIBYTE

    def __post_init__(self) -> None:
        _above_zero(self, "flush", "rebuild_after", "rebuild_bundles", "tick")
        longest, ttl = write_duration(LONGEST_TTL), write_duration(self.archive_ttl)
        _need(self.archive_ttl <= LONGEST_TTL, f"archive_ttl: expected at most {longest}, or 0d for ever, got {ttl}")
        least = 32 * MEBIBYTE
        _need(self.id_filter_bytes >= least, f"id_filter_bytes: expected {least} or more, got {self.id_filter_bytes}")
        _need(all(number >= 0 for number in self.partitions), f"partitions: expected 0 or more, got {self.partitions}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """Where alarms are delivered.

    Attributes:
        secrets: One or two live secrets ("whsec_..."), the newest first; both sign.
        format: Standard Webhooks, or the body that Alertmanager sends.
        allow_private: Whether the address may be loopback or a private network.
    """

    url: str
    secrets: tuple[Secret, ...] = field(default=(), repr=False)
    format: Literal["standard", "alertmanager"] = "standard"
    allow_private: bool = False
    timeout: timedelta = timedelta(seconds=15)

    def __post_init__(self) -> None:
        _above_zero(self, "timeout")
        good = self.url.startswith(("http://", "https://"))
        _need(good, f'url: expected https://... or http://..., got "{self.url}"')


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesConfig:
    """The rules engine: endpoints by the names that alarms use."""

    endpoints: Mapping[str, EndpointConfig] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoicesConfig:
    """The invoice batch.

    Attributes:
        entity: Who writes the invoices, a file of the project.
        folder: Where documents go. Empty: `invoices/` in the data folder.
    """

    entity: str = "entity.yaml"
    folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TallymanConfig:
    """A project's `tallyman.yaml`. `operator` is who runs it, as people read it."""

    operator: str = ""
    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    clickhouse: ClickHouseConfig = field(default_factory=ClickHouseConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    usage: UsageConfig = field(default_factory=UsageConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    rules: RulesConfig = field(default_factory=RulesConfig)
    invoices: InvoicesConfig = field(default_factory=InvoicesConfig)
