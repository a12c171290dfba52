"""A steady load of foreign NDJSON for the latency benchmark, sent by a process of its own.

    python -m bench.load PROJECT DATA EVENTS_PER_SECOND SEED    # until its standard input ends; then prints totals

The records are made once; each time they are sent their ids get another beginning, so that every event counts.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from bench.events import events
from tallyman.event import CONTENT_TYPE, LINES, encode_event, home_key
from tallyman.kafka import make_producer, partition_of
from tallyman.project import Project, load_project

EVENTS_IN_RECORD = 500
RECORDS = 160
_SEED = 7
_HEADERS = [(CONTENT_TYPE, LINES.encode())]
Template = tuple[int, bytes]  # home partition, lines


def make_templates(project: Project) -> list[Template]:
    """Make the records, each for the home partition of its events, and keep them beside the project."""
    partitions = project.config.kafka.partitions
    lines: list[list[bytes]] = [[] for _ in range(partitions)]
    made: list[Template] = []
    for event in events(sys.maxsize, seed=_SEED):
        home = partition_of(home_key(event.subject, event.source), partitions)
        lines[home].append(encode_event(event))
        if len(lines[home]) == EVENTS_IN_RECORD:
            made.append((home, b"\n".join(lines[home])))
            lines[home] = []
            if len(made) == RECORDS:
                break
    _file(project).write_bytes(pickle.dumps(made))
    return made


def records(templates: list[Template], seed: int) -> Iterator[Template]:
    """Yield records for ever, none of whose ids was there before, for another `seed` than before."""
    for turn in count():
        for home, value in templates:
            yield home, value.replace(b'"id":"%d-' % _SEED, b'"id":"%d.%d-' % (seed, turn))


def fill(project: Project, templates: list[Template], number: int) -> None:
    """Send so many records as fast as Kafka takes them."""
    producer = make_producer(project.kafka_brokers)
    made = records(templates, 0)
    futures = [_send(producer, project, *next(made)) for _ in range(number)]
    for future in futures:
        future.get(60)
    producer.close()


def _send(producer: Any, project: Project, home: int, value: bytes) -> Any:
    return producer.send(project.config.kafka.topic, value=value, headers=_HEADERS, partition=home)


def _file(project: Project) -> Path:
    return project.folder / "load.pickle"


def main() -> None:
    """Send at a steady rate until standard input ends; print events and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, help="folder for which the templates were made")
    parser.add_argument("data", type=Path, help="its data, where `stack.json` lies")
    parser.add_argument("rate", type=float, help="events per second")
    parser.add_argument("seed", type=int, help="of the ids")
    told = parser.parse_args()
    project = load_project(told.project, told.data)
    made = records(pickle.loads(_file(project).read_bytes()), told.seed)
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    producer = make_producer(project.kafka_brokers)
    pause_s, began, sent = EVENTS_IN_RECORD / told.rate, time.monotonic(), 0
    while not over.wait(max(0.0, began + sent * pause_s - time.monotonic())):
        _send(producer, project, *next(made))
        sent += 1
    took_s = time.monotonic() - began
    producer.flush(60)
    producer.close()
    print(sent * EVENTS_IN_RECORD, took_s)


if __name__ == "__main__":
    main()
