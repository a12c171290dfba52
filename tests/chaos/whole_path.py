"""Send usage through the whole path while everything goes wrong, and compare what is stored with what was sent.

    python -m tests.chaos.whole_path --events 10000000 --kills 100 --seed 1

Real processes: an agent's spool and sender, the agent of a host, a client with bad habits (ids sent twice, to wrong
partitions, or again with other content), Kafka, pipelines that share the partitions and one that reads all of them,
ClickHouse, a sealer. All of them are killed with -9, disks fill up, clocks are set and stand still, bookings are closed
while late events come. Then: stored = acknowledged, counts of every chunk add up, sealed bookings are what they were,
and a replay of the log from zero gives the same rows. At last partitions are added: the pipeline must stop with a
sentence, and the runbook for a new topic brings it through, with usage on both sides.

Exit codes: 0 all is right, 1 something differs, 3 the time limit was reached.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tallyman.cli.output import table_lines
from tallyman.log import setup
from tests.chaos.board import WORKERS
from tests.chaos.disks import Kind, enter_own_mounts
from tests.chaos.faults import FAULTS, plan
from tests.chaos.watch import Watch

if TYPE_CHECKING:
    from tests.chaos.run import Outcome

OUT_OF_TIME = 3


def main() -> int:
    options = _parse(sys.argv[1:])
    disks: Kind = "limit" if options.disks == "limit" else enter_own_mounts("tests.chaos.whole_path")
    setup("error")
    for library in ("kafka", "clickhouse_driver"):  # they are away again and again: that is the point
        logging.getLogger(library).setLevel(logging.CRITICAL)
    from tests.chaos.run import Run, RunOptions  # Beam takes seconds, and this is the second life of the process

    folder = Path(options.folder or tempfile.mkdtemp(prefix="tallyman-chaos-"))
    rng = random.Random(options.seed)
    faults = list(options.only) if options.only else plan(options.kills, rng)
    print(f"seed {options.seed}, {len(faults)} faults, full disks by {disks}, logs in {folder}", file=sys.stderr)
    watch = Watch(limit_s=options.limit * 60, exit_code=OUT_OF_TIME, stalled_s=options.patience)
    run = Run(folder / "project", RunOptions(options.events, options.seed, options.workers, disks), faults, rng, watch)
    began = time.monotonic()
    try:
        outcome = run.go()
    except TimeoutError as error:
        print(f"{error}; seed {options.seed}, logs are kept in {folder}", file=sys.stderr)
        return 1
    _print(outcome, options.seed, time.monotonic() - began)
    if options.json:
        Path(options.json).write_text(json.dumps(vars(outcome), ensure_ascii=False, indent=2))
    if outcome.differences:
        print(f"logs are kept in {folder}", file=sys.stderr)
        return 1
    if not options.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.whole_path",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="faults: " + ", ".join(FAULTS),
    )
    add = parser.add_argument
    add("--events", type=int, default=10_000_000, metavar="N", help="at least so many events that count (%(default)s)")
    add("--kills", type=int, default=108, metavar="N",
        help="so many kills -9, evenly over all processes, and a third as many other faults (%(default)s)")  # fmt: skip
    add("--workers", type=int, default=2, choices=range(1, len(WORKERS) + 1), metavar="N",
        help="pipelines that share the partitions, beside one that reads all of them (%(default)s)")  # fmt: skip
    add("--seed", type=int, default=1, metavar="N", help="decides usage, faults and their order (%(default)s)")
    add("--limit", type=float, default=60, metavar="MINUTES",
        help="end by then whatever happens, with everything that was started (%(default)s)")  # fmt: skip
    add("--patience", type=float, default=180, metavar="SECONDS",
        help="give up when something that must happen does not happen for so long (%(default)s)")  # fmt: skip
    add("--only", action="append", choices=list(FAULTS), metavar="FAULT",
        help="this fault instead of a plan; may be repeated")  # fmt: skip
    add("--disks", choices=["auto", "limit"], default="auto",
        help="how disks get full: a small file system in memory where the kernel allows mounts, else, or with "
             "'limit', a limit on the size of files (%(default)s)")  # fmt: skip
    add("--folder", metavar="PATH", help="work here and keep everything (default: a temporary folder, kept on failure)")
    add("--json", metavar="FILE", help="write the outcome here, too")
    return parser.parse_args(arguments)


def _print(outcome: Outcome, seed: int, took_s: float) -> None:
    for line in table_lines(("fault", "times"), sorted(outcome.struck.items()), None):
        print(line)
    print()
    for line in table_lines(("killed with -9", "times"), sorted(outcome.kills.items()), None):
        print(line)
    print()
    for line in table_lines(("checked", "how much", "result"), outcome.checks, None):
        print(line)
    print()
    for difference in outcome.differences:
        print(f"DIFFERS: {difference}")
    kills = sum(outcome.kills.values())
    verdict = f"{len(outcome.differences)} differences" if outcome.differences else "stored = acknowledged"
    print(f"{verdict}: {outcome.events:,} events, {kills} kills, {sum(outcome.struck.values())} faults, "
          f"{took_s:.0f} s, seed {seed}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
