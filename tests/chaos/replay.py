"""Book the log once more from its start into an empty database, by one worker that nobody disturbs.

python -m tests.chaos.replay PROJECT DATA PARTITION:END ...

It is the real job, which sends nothing: forwards and ticks stand in the log already. What the log has behind the ends
is not waited for. When it is done, it seals what can be sealed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import runtime
from pipeline.book import Forward
from pipeline.frontier import read_frontier
from pipeline.outlet import KafkaOutlet
from pipeline.runtime import JobConfig
from pipeline.seal import Sealer
from pipeline.worker import prepare, run_once
from pipeline.write import Progress
from tallyman.clickhouse import connect
from tallyman.log import setup
from tallyman.project import load_project


class SilentOutlet:
    """Sends nothing."""

    def __init__(self, *brokers_and_topics: object) -> None:
        return

    def forward(self, forwards: Sequence[Forward]) -> None:
        return

    def push(self, progress: Progress) -> None:
        return

    def close(self) -> None:
        return


def replay(config: JobConfig, ends: Mapping[int, int]) -> None:
    """Book up to the ends, then seal."""
    stop, booked = threading.Event(), threading.Event()
    client = connect(config.database)

    def watch() -> None:
        while not stop.wait(0.2):
            reached = {
                partition: read_frontier(client, config.topic_id, partition, config.chunk_size).reached.offset
                for partition in ends
            }
            if all(reached[partition] >= end for partition, end in ends.items()):
                booked.set()
                stop.set()

    watcher = threading.Thread(target=watch, name="watch")
    watcher.start()
    try:
        while not booked.is_set():
            run_once(config, stop, seconds=60, bundles=10_000)
    finally:
        stop.set()
        watcher.join()
    Sealer(client, [(config.topic_id, partition, config.chunk_size) for partition in ends]).seal_all()


def main() -> None:
    setup("warning")
    folder, data, *places = sys.argv[1:]
    ends = {int(partition): int(end) for partition, end in (place.split(":") for place in places)}
    setattr(runtime, KafkaOutlet.__name__, SilentOutlet)
    replay(prepare(load_project(Path(folder), Path(data))), ends)


if __name__ == "__main__":
    main()
