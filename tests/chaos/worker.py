"""The real pipeline service, with a wall clock that the chaos run sets.

python -m tests.chaos.worker BOARD SLOT [what `tallyman pipeline` takes]
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline import upkeep
from tallyman.cli import main as command_line
from tests.chaos.board import Board
from tests.chaos.clock import follow


def main() -> None:
    board, slot, *arguments = sys.argv[1:]
    follow(Board(Path(board)), slot)
    upkeep.CHECK_EVERY_S = 5.0  # the run need not wait a minute until partitions that were added are noticed
    command_line(["pipeline", *arguments])


if __name__ == "__main__":
    main()
