"""A sealer beside those of the workers, in a process of its own that can be told to die between two steps.

python -m tests.chaos.sealer PROJECT DATA BOARD
"""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import chain
from pathlib import Path

from clickhouse_driver import errors as driver_errors

from pipeline.close import found_books
from pipeline.seal import Seal, Sealer
from tallyman.clickhouse import NETWORK_ERRORS, connect
from tallyman.log import setup
from tallyman.project import load_project
from tests.chaos.board import Board

# Where it can be told to die. It looks again and again; what comes behind happens only when this sealer is the first to
# see a booking that all partitions have left.
STEPS = ("looks", "frontier", "staging", "totalled", "checked", "replaced", "rolled up")
EVERY_S = 0.2  # more often than the workers do it, so that it is often the first


def main() -> None:
    setup("warning")
    folder, data, path = (Path(argument) for argument in sys.argv[1:])
    project, board = load_project(folder, data), Board(path)
    topic = found_books(project)
    client = connect(project.clickhouse)
    sealer = Sealer(client, [(topic.topic_id, number, topic.chunk_size) for number in range(topic.partitions)])
    while True:
        try:
            for step in chain(STEPS[:1], sealer.steps()):
                if not isinstance(step, Seal) and board["sealer.dies_at"] == STEPS.index(step) + 1:
                    board["sealer.dies_at"] = 0
                    os.kill(os.getpid(), signal.SIGKILL)
            board["sealer.looks"] += 1
            if sealer.ended:
                return  # started again, it seals the topic that follows
        except (*NETWORK_ERRORS, driver_errors.Error):
            client.disconnect()  # killed, stopped or full just now
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
