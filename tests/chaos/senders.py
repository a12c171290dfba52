"""The two senders of the chaos run, each a process that is killed at any moment and goes on from what it had on disk.

python -m tests.chaos.senders agent PROJECT DATA BASE_US BATCHES
python -m tests.chaos.senders foreign PROJECT DATA BASE_US LOTS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tallyman.errors import SpoolFullError
from tallyman.event import CONTENT_TYPE, LINES, encode_event, encode_lines, home_key
from tallyman.kafka import make_producer, partition_of
from tallyman.project import Project, load_project
from tests.chaos.usage_made import copies, lot, readings


def agent(project: Project, base_us: int, batches: int) -> None:
    """Append numbered batches to the real spool, and send them by the real sender."""
    from collectors.agent import connect
    from collectors.arrow import encode_readings
    from collectors.send import Sender
    from collectors.spool import Spool

    spool = Spool(project.data / "chaos-spool", max_bytes=64 * 1024 * 1024)
    brokers = project.kafka_brokers
    sender = Sender(spool, lambda: connect(brokers), topic=project.config.kafka.topic, collector="chaos-host")
    sender.start()
    number = int(spool.state or b"0")
    while number < batches:
        rows = readings(number, base_us)
        try:
            spool.append(encode_readings(rows), watermark_us=base_us, rows=len(rows), state=str(number + 1).encode())
            number += 1
        except SpoolFullError:
            time.sleep(0.2)  # the sender makes room; nothing tells us when
    while spool.pending_bytes:
        time.sleep(0.1)
    sender.stop(5)
    spool.close()


def foreign(project: Project, base_us: int, lots: int) -> None:
    """Send lots of foreign events to their homes; what is not noted as acknowledged is sent again after a kill."""
    done = project.data / "foreign-done"
    first = int(done.read_text()) if done.exists() else 0
    topic, partitions = project.config.kafka.topic, project.config.kafka.partitions
    producer = make_producer(project.kafka_brokers)
    for number in range(first, lots):
        futures = []
        for copy in copies(number):
            events = lot(copy, base_us)
            homes: dict[int, list] = {}
            for event in events:
                homes.setdefault(partition_of(home_key(event.subject, event.source), partitions), []).append(event)
            for home, mine in homes.items():
                if number % 10 == 3:  # some clients send one event a record, with no header at all
                    futures += [producer.send(topic, value=encode_event(event), partition=home) for event in mine]
                else:
                    wrong = number % 50 == 7  # and some have another partitioner
                    where = (home + 1) % partitions if wrong else home
                    headers = [(CONTENT_TYPE, LINES.encode())]
                    futures.append(producer.send(topic, value=encode_lines(mine), headers=headers, partition=where))
        for future in futures:
            future.get(timeout=300)
        temporary = done.with_suffix(".new")
        temporary.write_text(str(number + 1))
        temporary.replace(done)


def main() -> None:
    kind, folder, data, base_us, count = sys.argv[1:]
    project = load_project(Path(folder), Path(data))
    (agent if kind == "agent" else foreign)(project, int(base_us), int(count))


if __name__ == "__main__":
    main()
