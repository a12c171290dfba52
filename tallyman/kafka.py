"""The door to Kafka: topics as the books need them, producers that wait for every copy, readers that never jump.

Everything that must be set for exactly-once counting is set here and nowhere else (DESIGN 3.2).
"""

from __future__ import annotations

import logging
import re
import socket
import struct
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar
from uuid import UUID

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, TopicAlreadyExistsError
from kafka.record.util import crc32c_c

from tallyman.errors import BrokerError, LogError

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
ANY_SIZE = 1 << 30  # of what is sent on as it came, before it is compressed; the broker knows what is too large
_DAY_MS = 86_400_000
_RETENTION_MS = 30 * _DAY_MS  # of a new topic; an operator may change it
_LEAST_RETENTION_MS = 2 * _DAY_MS  # twice the day of log that a quiet partition's restart may need
_PROGRESS_RETENTION_MS = 7 * _DAY_MS
_PATIENCE_S = 30.0
_REFUSAL = re.compile(r"""error_message=(['"])(.+?)\1[,)]""")
_T = TypeVar("_T")


class LogConfig(Protocol):
    """What this door wants to know of `tallyman.config.KafkaConfig`."""

    @property
    def topic(self) -> str: ...
    @property
    def progress_topic(self) -> str: ...
    @property
    def partitions(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic; `topic_id` is Kafka's own, as its tools print it: a topic made anew under the old name has another."""

    name: str
    topic_id: str
    partitions: int


def ensure_topics(brokers: Sequence[str], config: LogConfig, replication: int = 3) -> tuple[TopicInfo, TopicInfo]:
    """Make the events and the progress topic where they are missing, check them, and return them in this order.

    Args:
        replication: Copies of a new topic; 1 is for the embedded stack only, which has one broker.

    Raises:
        LogError: A topic exists with settings that would lose or double usage.
        BrokerError: Kafka does not answer.
    """
    wanted = {
        config.topic: (config.partitions, _settings(replication, _RETENTION_MS)),
        config.progress_topic: (1, _settings(replication, _PROGRESS_RETENTION_MS)),
    }

    def make(admin: Any) -> None:
        missing = [name for name in wanted if _describe(admin, name) is None]
        for name in missing:
            partitions, settings = wanted[name]
            options = {"num_partitions": partitions, "replication_factor": replication, "configs": settings}
            with suppress(TopicAlreadyExistsError):  # somebody else was faster; it is checked like any other
                admin.create_topics({name: options}, wait_for_metadata=True)
            log.info("topic_made", extra={"topic": name, "partitions": partitions})

    ask(brokers, "make the topics", make)
    events, progress = (check_topic(brokers, name, replication=replication) for name in wanted)
    return events, progress


def _settings(replication: int, retention_ms: int) -> dict[str, str]:
    return {
        "message.timestamp.type": "LogAppendTime",
        "cleanup.policy": "delete",
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
        "retention.ms": str(retention_ms),
        "retention.bytes": "-1",
        "min.insync.replicas": "1" if replication == 1 else "2",
        "unclean.leader.election.enable": "false",
    }


def read_topic(brokers: Sequence[str], name: str) -> TopicInfo | None:
    """Return a topic, None when it does not exist.

    Raises:
        BrokerError: Kafka does not answer.
    """
    return ask(brokers, f'describe topic "{name}"', lambda admin: _describe(admin, name))


def check_topic(
    brokers: Sequence[str],
    name: str,
    *,
    topic_id: str | None = None,
    partitions: int | None = None,
    replication: int = 3,
) -> TopicInfo:
    """Return the topic if usage can be booked from it exactly once; called at start and again while running.

    Args:
        topic_id: The topic that was booked so far; None before anything was.
        partitions: The number it had when it was made.
        replication: 1 allows a single copy: the embedded stack.

    Raises:
        LogError: It is missing, made anew, of another size, or a setting is wrong; all of them in one message.
        BrokerError: Kafka does not answer.
    """

    def look(admin: Any) -> tuple[TopicInfo | None, Mapping[str, str]]:
        info = _describe(admin, name)
        if info is None:
            return None, {}
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
        return info, {key: str(entry["value"]) for key, entry in found["topic"][name].items()}

    info, settings = ask(brokers, f'describe topic "{name}"', look)
    if info is None:
        raise LogError(f'topic "{name}": expected it on {_at(brokers)}, got no such topic; "tallyman up" makes it')
    faults = list(_faults(info, topic_id, partitions)) + list(faults_of(settings, replication))
    if faults:
        raise LogError(f'topic "{name}" on {_at(brokers)}: ' + "; ".join(faults))
    return info


def _faults(info: TopicInfo, topic_id: str | None, partitions: int | None) -> Iterable[str]:
    if topic_id is not None and info.topic_id != topic_id:
        yield (
            f"expected the topic {topic_id} that was booked, got another one of the same name ({info.topic_id}); "
            "a topic that is deleted takes its log along: give the new one a new name"
        )
    if partitions is not None and info.partitions != partitions:
        yield (
            f"expected {partitions} partitions, got {info.partitions}; the number never changes, "
            "since every key would get a new home: growth is a new topic, see docs/operations/topic-growth.md"
        )


def faults_of(settings: Mapping[str, str], replication: int) -> Iterable[str]:
    """Yield a sentence for each topic setting that would lose or double usage."""
    copies = 1 if replication == 1 else 2
    must = (
        ("message.timestamp.type", "LogAppendTime", "lateness is judged by the broker's clock, not by a sender's"),
        ("cleanup.policy", "delete", "compaction would remove usage"),
        ("unclean.leader.election.enable", "false", "it would lose acknowledged usage"),
        ("retention.bytes", "-1", "a size limit removes usage that nobody has read, however short the outage"),
    )
    for name, value, why in must:
        if settings.get(name) != value:
            yield f"{name}: expected {value}, got {settings.get(name)} ({why})"
    least = (
        ("min.insync.replicas", copies, "acknowledged must mean stored more than once"),
        ("max.message.bytes", MAX_MESSAGE_BYTES, "batches of our own collectors would be refused"),
    )
    for name, number, why in least:
        if int(settings.get(name, "0")) < number:
            yield f"{name}: expected at least {number}, got {settings.get(name)} ({why})"
    retention_ms = int(settings.get("retention.ms", "0"))
    if 0 <= retention_ms < _LEAST_RETENTION_MS:
        yield f"retention.ms: expected at least {_LEAST_RETENTION_MS} or -1, got {retention_ms} (a restart reads a day)"


def _describe(admin: Any, name: str) -> TopicInfo | None:
    for topic in admin.describe_topics([name]):
        if topic["name"] == name and topic["error_code"] == 0:
            return TopicInfo(name, topic_id_text(topic["topic_id"]), len(topic["partitions"]))
    return None


def topic_id_text(topic_id: UUID | str) -> str:
    """Write a topic's UUID as Kafka's own tools do: base64 without padding."""
    octets = (topic_id if isinstance(topic_id, UUID) else UUID(topic_id)).bytes
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


_MURMUR = 0x5BD1E995
_WORD = 0xFFFFFFFF


@lru_cache(maxsize=1 << 16)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner (murmur2) gives a key: the event's home."""
    size = len(key)
    h = 0x9747B28C ^ size
    whole = size >> 2
    for word in struct.unpack_from(f"<{whole}I", key):
        k = word * _MURMUR & _WORD
        k = (k ^ k >> 24) * _MURMUR & _WORD
        h = h * _MURMUR & _WORD ^ k
    rest = key[whole << 2 :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * _MURMUR & _WORD
    h = (h ^ h >> 13) * _MURMUR & _WORD
    h ^= h >> 15
    return (h & 0x7FFFFFFF) % partitions


def make_producer(brokers: Sequence[str], **options: Any) -> Any:
    """Return a producer whose futures succeed only when every in-sync replica has the record, each once unless
    `options` say otherwise.

    Its buffer has no bound of its own: whoever sends waits for futures before sending much more.

    Raises:
        BrokerError: Kafka does not answer.
    """
    settings: dict[str, Any] = {
        "acks": "all",
        "enable_idempotence": True,
        "compression_type": "lz4",
        "linger_ms": 5,
        "batch_size": 256 * 1024,
        "max_request_size": MAX_MESSAGE_BYTES,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
        "reconnect_backoff_max_ms": 2000,
    }
    return _make(KafkaProducer, brokers, settings | options)


def let_go(producer: Any, wait_s: float = 0.0) -> None:
    """End a producer; what Kafka has not acknowledged after `wait_s` is given up, and no error hides the one before."""
    if wait_s:
        with suppress(KafkaError):
            producer.flush(timeout=wait_s)
    # kafka-python 3.0's close() raises when batches are left, before it has stopped its thread, which then goes on
    # sending for ever; so stop that first. A test counts the threads.
    network = getattr(producer, "_sender", None)
    if network is not None:
        network.force_close()
        network.join(5.0)
    try:
        producer.close(timeout=0)
    except KafkaError as error:
        log.debug("producer_closed_with_an_error", extra={"cause": str(error)})


def make_consumer(brokers: Sequence[str], **options: Any) -> Any:
    """Return a consumer that reads committed records in small fetches, checks checksums and never jumps.

    It belongs to no group unless `options` name one, and commits nothing: progress lives with the data.

    Raises:
        BrokerError: Kafka does not answer.
    """
    if crc32c_c is None:
        log.warning("crc32c_missing", extra={"next_step": "pip install 'kafka-python[crc32c]'; 1000 times as fast"})
    settings: dict[str, Any] = {
        "isolation_level": "read_committed",
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
        "group_id": None,
        "check_crcs": True,
        "allow_auto_create_topics": False,
        "fetch_max_wait_ms": 200,
        "max_partition_fetch_bytes": 2
        * 1024
        * 1024,  # 16 busy partitions fit one answer, so that none waits for the next
        "fetch_max_bytes": 16 * 1024 * 1024,
        "max_poll_records": 10_000,
        "metadata_max_age_ms": 30_000,  # how soon a topic made anew is noticed
        "reconnect_backoff_max_ms": 1000,
        "metrics_enabled": False,
    }
    return _make(KafkaConsumer, brokers, settings | options)


def log_starts(consumer: Any, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the first offset that each partition still has.

    Raises:
        BrokerError: Kafka does not answer.
    """
    return _offsets(consumer.beginning_offsets, topic, partitions)


def end_offsets(consumer: Any, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the offset behind the last record of each partition that a reader may see now.

    Raises:
        BrokerError: Kafka does not answer.
    """
    return _offsets(consumer.end_offsets, topic, partitions)


def _offsets(
    read: Callable[[list[TopicPartition]], Mapping[TopicPartition, int]], topic: str, partitions: Iterable[int]
) -> dict[int, int]:
    try:
        found = read([TopicPartition(topic, partition) for partition in partitions])
    except KafkaError as error:
        raise BrokerError(f'topic "{topic}": expected the ends of its log, got {_said(error)}; try again') from error
    return {place.partition: offset for place, offset in found.items()}


def ask(brokers: Sequence[str], what: str, question: Callable[[Any], _T], patience_s: float = _PATIENCE_S) -> _T:
    """Ask Kafka's administration, again and again with growing pauses while the broker is away.

    Raises:
        BrokerError: No answer within `patience_s`, or a refusal.
    """
    until = time.monotonic() + patience_s
    pause_s = 0.1
    while True:
        try:
            admin = _make(KafkaAdminClient, brokers, {"reconnect_backoff_max_ms": 1000}, request="an answer")
            try:
                return question(admin)
            finally:
                admin.close()
        except (KafkaError, BrokerError) as error:
            may_pass = getattr(error, "retriable", False)
            if not may_pass or time.monotonic() + pause_s > until:
                if isinstance(error, BrokerError):
                    raise
                raise BrokerError(f"Kafka on {_at(brokers)}: expected to {what}, got {_said(error)}") from error
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 2.0)


def _make(
    client: Callable[..., _T], brokers: Sequence[str], settings: Mapping[str, Any], request: str = "a connection"
) -> _T:
    # A client that fails in its constructor leaves its network thread behind, so somebody must be there first.
    if not brokers or not any(map(_listens, brokers)):
        raise BrokerError(
            f"Kafka on {_at(brokers)}: expected {request}, got nobody listening; "
            'start it ("tallyman up") or correct kafka.brokers in tallyman.yaml'
        )
    try:
        return client(bootstrap_servers=list(brokers), bootstrap_timeout_ms=10_000, **settings)
    except KafkaError as error:
        raise BrokerError(f"Kafka on {_at(brokers)}: expected {request}, got {_said(error)}; try again") from error


def _listens(broker: str) -> bool:
    host, _, port = broker.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]") or broker, int(port) if port.isdigit() else 9092), 2.0):
            return True
    except OSError:
        return False


def _at(brokers: Sequence[str]) -> str:
    return ", ".join(brokers) or "no broker (kafka.brokers is empty)"


def _said(error: BaseException) -> str:
    """Return an error's name and text; of a refusal, which kafka-python shows as all of request and response, why."""
    name, text = type(error).__name__, str(error)
    if reason := _REFUSAL.search(text):
        return f"{name}: {reason[2]}"
    return text if name in text else f"{name}: {text}" if text else name
