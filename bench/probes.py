"""The probes of the latency benchmark: single events, each of a subject of its own, and what is seen of them."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import msgspec
from kafka import TopicPartition

from collectors.agent import connect as connect_producer
from collectors.arrow import Reading, encode_readings
from collectors.send import Sender
from collectors.spool import Spool
from rules.receiver import Received, Receiver
from tallyman.clickhouse import connect
from tallyman.event import CONTENT_TYPE, LINES, Event, Series, encode_lines, home_key
from tallyman.kafka import make_consumer, make_producer, partition_of
from tallyman.project import Project

TYPE, METER = "probe.usage", "probe.units"
COLLECTORS = 4
_PAUSE_S = 0.2  # of each kind; both together ten probes a second
_LOOK_ANYWAY_S = 0.25
_VISIBLE = "SELECT subject FROM usage_minute WHERE meter = %(meter)s AND subject IN %(waiting)s GROUP BY subject"


@dataclass(slots=True)
class Probe:
    """One event: when it was accepted, and when what follows was seen; seconds since 1970."""

    subject: str
    kind: str
    accepted_s: float = 0.0
    moments: dict[str, float] = field(default_factory=dict)


class Watch:
    """Sees probes become written, visible and a webhook, each in a thread of its own.

    Attributes:
        looks_s: How long each look into `usage_minute` took.
    """

    def __init__(self, project: Project, receiver: Receiver) -> None:
        self.probes: dict[str, Probe] = {}
        self.looks_s: list[float] = []
        self._project, self._receiver = project, receiver
        self._seen = len(receiver.messages)
        self._waiting: set[str] = set()
        self._over = threading.Event()
        self._following, self._pushed = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._look, self._follow)]
        for thread in self._threads:
            thread.start()
        self._following.wait(10)

    def expect(self, probe: Probe) -> None:
        """Begin to look for a probe; called before it is sent."""
        self.probes[probe.subject] = probe
        self._waiting.add(probe.subject)

    def wait(self, timeout_s: float) -> None:
        """Wait until every probe was seen everywhere, or say which was not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._take_webhooks()
            missing = [probe for probe in self.probes.values() if len(probe.moments) < 3]
            if not missing:
                return
            time.sleep(0.05)
        raise TimeoutError(f"{len(missing)} probes were not seen everywhere, the first: {missing[:3]}")

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)

    def _take_webhooks(self) -> None:
        for message in self._receiver.messages[self._seen :]:
            self._seen += 1
            self._note(message)

    def _note(self, message: Received) -> None:
        data = message.body["data"]
        probe = self.probes.get(data["labels"]["subject"])
        if probe is not None and data["state"] == "firing":
            probe.moments.setdefault("webhook", message.at)

    def _look(self) -> None:
        client = connect(self._project.clickhouse)
        while not self._over.is_set():
            self._pushed.wait(_LOOK_ANYWAY_S)
            self._pushed.clear()
            waiting = tuple(self._waiting.copy())
            if not waiting:
                continue
            began = time.time()
            found = client.execute(_VISIBLE, {"meter": METER, "waiting": waiting})
            now = time.time()
            self.looks_s.append(now - began)
            for (subject,) in found:
                self.probes[subject].moments["visible"] = now
                self._waiting.discard(subject)
        client.disconnect()

    def _follow(self) -> None:
        consumer = make_consumer(self._project.kafka_brokers)
        topic = self._project.config.kafka.progress_topic
        consumer.assign([TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)])
        consumer.seek_to_end()
        for place in consumer.assignment():
            consumer.position(place)
        self._following.set()
        while not self._over.is_set():
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    self._read_push(msgspec.json.decode(record.value))
        consumer.close()

    def _read_push(self, push: dict[str, Any]) -> None:
        for meter, subject, _, _ in push["touched"] or ():
            if meter == METER and subject in self.probes:
                self.probes[subject].moments.setdefault("written", push["written_ms"] / 1000)
                self._pushed.set()


class Probes:
    """Sends probes: by the spools and senders of some collectors, and as a foreign client."""

    def __init__(self, project: Project, watch: Watch, prefix: str) -> None:
        self._project, self._watch, self._prefix = project, watch, prefix
        brokers, topic = project.kafka_brokers, project.config.kafka.topic
        self._spools, self._senders = [], []
        for number in range(COLLECTORS):
            spool = Spool(project.data / f"spool-{prefix}-{number}", max_bytes=64 * 1024 * 1024)
            name = f"bench-{prefix}-{number}"
            self._spools.append(spool)
            self._senders.append(Sender(spool, lambda: connect_producer(brokers), topic=topic, collector=name))
        self._producer = make_producer(brokers)

    def __enter__(self) -> Probes:
        for sender in self._senders:
            sender.start()
        time.sleep(1)  # they are connected, as a running agent is
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for sender in self._senders:
            sender.stop(5)
        for spool in self._spools:
            spool.close()
        self._producer.close()

    def send(self, seconds: float) -> None:
        """Send both kinds for so long, at random moments, none waiting for another."""
        kinds = [threading.Thread(target=self._send_kind, args=(kind, seconds)) for kind in ("agent", "foreign")]
        for thread in kinds:
            thread.start()
        for thread in kinds:
            thread.join()

    def _send_kind(self, kind: str, seconds: float) -> None:
        rng, due, number = random.Random(kind), time.monotonic(), 0
        end = due + seconds
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            probe = Probe(f"{self._prefix}-{kind}-{number:04d}", kind)
            self._watch.expect(probe)
            (self._send_agent if kind == "agent" else self._send_foreign)(probe, number)
            number += 1
            due += rng.uniform(0, 2 * _PAUSE_S)

    def _send_agent(self, probe: Probe, number: int) -> None:
        time_us = time.time_ns() // 1000
        reading = Reading(Series(type=TYPE, subject=probe.subject, scale=0, data={}), time_us, time_us + 1, 1)
        spool = self._spools[number % COLLECTORS]
        spool.append(encode_readings([reading]), watermark_us=time_us, rows=1, state=b"")
        probe.accepted_s = time.time()

    def _send_foreign(self, probe: Probe, number: int) -> None:
        source = f"//api/{number % 7}"
        event = Event(probe.subject, source, TYPE, probe.subject, time.time_ns() // 1000, {"value": "1"})
        kafka = self._project.config.kafka
        home = partition_of(home_key(event.subject, event.source), kafka.partitions)
        headers = [(CONTENT_TYPE, LINES.encode())]
        sent = self._producer.send(kafka.topic, value=encode_lines([event]), headers=headers, partition=home)

        def accept(_: object) -> None:
            probe.accepted_s = time.time()

        sent.add_callback(accept)
