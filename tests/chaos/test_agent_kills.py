"""The agent's spool and sender and the broker are killed with -9, again and again: nothing accepted is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kafka import TopicPartition

from tallyman.kafka import end_offsets, make_consumer
from tallyman.local.kafka import Broker

pytestmark = pytest.mark.chaos

ROUNDS = 6
COLLECTOR = "värd-1"

# Accepts as fast as it can, sends at the same time, and reports what was accepted, in one write for each batch.
AGENT = """
import os, sys
from pathlib import Path
from collectors import agent, send
from collectors.send import Sender
from collectors.spool import Spool
folder, bootstrap, topic, collector = sys.argv[1:]
send.PAUSE_MOST_S = 0.5
spool = Spool(Path(folder), max_bytes=1 << 30, segment_bytes=100_000)
Sender(spool, lambda: agent.connect([bootstrap]), topic=topic, collector=collector, pause_least_s=0.05).start()
while True:
    content = os.urandom(300).hex()
    number = spool.append(content.encode(), watermark_us=0, rows=1, state=content[:40].encode())
    os.write(1, f"{spool.epoch} {number} {content}\\n".encode())
    if sys.stdin.read(1) == "":
        break
"""


class Child:
    """An agent in a process of its own; `accepted` is what it reported."""

    def __init__(self, folder: Path, bootstrap: str, topic: str) -> None:
        command = [sys.executable, "-c", AGENT, str(folder), bootstrap, topic, COLLECTOR]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.accepted: dict[tuple[str, int], bytes] = {}

    def accepts(self, count: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for _ in range(count):
            self._note(self.process.stdout.readline())
            self.process.stdin.write(b".")
            self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.stdout is not None
        for line in self.process.stdout.read().splitlines(keepends=True):
            self._note(line)
        self.process.wait()

    def _note(self, line: bytes) -> None:
        if line.endswith(b"\n"):  # else killed while it reported
            epoch, number, content = line.decode().split()
            self.accepted[epoch, int(number)] = content.encode()


def read_batches(bootstrap: str, topic: str) -> list[tuple[tuple[str, int], bytes]]:
    consumer = make_consumer((bootstrap,))
    place = TopicPartition(topic, 0)
    consumer.assign([place])
    end = end_offsets(consumer, topic, [0])[0]
    consumer.seek(place, 0)
    found = []
    while consumer.position(place) < end:
        for record in (record for records in consumer.poll(1000).values() for record in records):
            headers = {name: value.decode() for name, value in record.headers}
            found.append(((headers["tallyman-epoch"], int(headers["tallyman-sequence"])), record.value))
    consumer.close()
    return found


def test_whatever_is_killed_each_accepted_batch_arrives_with_the_same_bytes_and_in_order(
    tmp_path: Path, own_broker: Broker
) -> None:
    chance = random.Random(20261101)
    topic = own_broker.create_topic("usage.events", partitions=1)
    accepted: dict[tuple[str, int], bytes] = {}
    child = Child(tmp_path / "spool", own_broker.bootstrap, topic)
    for round_ in range(ROUNDS):
        child.accepts(chance.randrange(1, 400))
        if round_ % 3 == 1:
            own_broker.kill()
            child.accepts(chance.randrange(1, 200))
            own_broker.start()
        child.kill()
        accepted |= child.accepted
        child = Child(tmp_path / "spool", own_broker.bootstrap, topic)
    child.accepts(10)
    arrived: dict[tuple[str, int], bytes] = {}
    for _ in range(600):
        batches = read_batches(own_broker.bootstrap, topic)
        arrived = dict(batches)
        if accepted.keys() | child.accepted.keys() <= arrived.keys():
            break
        threading.Event().wait(0.1)
    child.kill()
    accepted |= child.accepted
    assert {identity: arrived.get(identity) for identity in accepted} == accepted
    contents: dict[tuple[str, int], set[bytes]] = {}
    for identity, content in batches:
        contents.setdefault(identity, set()).add(content)
    assert max(map(len, contents.values())) == 1, "a number never carries other bytes"
    first_seen = [number for _, number in dict.fromkeys(identity for identity, _ in batches)]
    assert first_seen == sorted(first_seen)
    assert len({epoch for epoch, _ in arrived}) == 1, "the epoch belongs to the spool, not to the process"
