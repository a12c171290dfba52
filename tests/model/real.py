"""Drive what runs in production, on the real tables, through random schedules of the model.

    python -m tests.model.real --schedules 1000               # on a ClickHouse of its own
    python -m tests.model.real --schedules 1 --seed 17        # one of them again
    python -m tests.model.real --repairs                      # in which retention eats, and operators repair

Workers, sealers and readers are the real code; each may be paused, overtaken or killed before each statement, and
statements fail. After every step the rows are compared with the log, as in `tests.model.chunk_check`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from tests.model.actors import deployed, start_all
from tests.model.chunk_check import interleave
from tests.model.chunk_model import Broken
from tests.model.repair_switches import OFF
from tests.model.repaired import RepairedRealWorld, deployed_repaired, start_repaired
from tests.model.server import running_clickhouse
from tests.model.store import Store
from tests.model.world import RealWorld

STEPS, REPAIRED_STEPS = 450, 900


def run_schedule(seed: int, store: Store, steps: int = STEPS) -> None:
    """Run one interleaving on the real tables; raise Broken at the first step that breaks an invariant."""
    world = RealWorld(seed, store)
    start_all(world)
    with deployed(world):
        interleave(world, steps, happening=0.12)


def run_repaired(seed: int, store: Store, steps: int = REPAIRED_STEPS, without: str | None = None) -> None:
    """Run one interleaving in which retention reaches what is not booked, and operators repair."""
    world = RepairedRealWorld(seed, store)
    start_repaired(world)
    with deployed_repaired(world), OFF[without](world) if without else nullcontext():
        interleave(world, steps, happening=0.12)


def survey(
    store: Store, schedules: int, first: int, run: Callable[[int, Store], None] = run_schedule
) -> Iterator[tuple[int, str]]:
    """Run schedules; yield each seed, and how it broke if it did."""
    for seed in range(first, first + schedules):
        try:
            run(seed, store)
            yield seed, ""
        except Broken as broken:
            yield seed, str(broken)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.real", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--repairs", action="store_true", help="with damaged places, and repairs of them")
    parser.add_argument("--without", choices=OFF, help="one rule of repairs, switched off in the real code")
    options = parser.parse_args()
    run = partial(run_repaired, without=options.without) if options.repairs or options.without else run_schedule
    logging.disable(logging.ERROR)  # the code under test tells of each fault that it meets
    began, broken = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, running_clickhouse(Path(folder)) as endpoint:
        store = Store(endpoint)
        for done, (seed, how) in enumerate(survey(store, options.schedules, options.seed, run), start=1):
            broken += bool(how)
            if how:
                print(f"\rseed {seed}: {how}")
            each_s = (time.monotonic() - began) / done
            left_min = (options.schedules - done) * each_s / 60
            print(f"\r{done}/{options.schedules} schedules, {broken} broken, {each_s:.2f} s each, "
                  f"{left_min:.0f} min left ", end="", file=sys.stderr, flush=True)  # fmt: skip
        store.close()
    print(f"\n{options.schedules - broken} held, {broken} broken, {time.monotonic() - began:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
