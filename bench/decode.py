"""What it costs to turn JSON events into columns: by compiled loops, shape by shape, one by one, and in msgspec alone.

    python -m bench.decode             # a hundred thousand events
    python -m bench.decode 1000000     # as many

The ways take turns, so that a busy machine is as unkind to each; of each stretch the best turn counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from bench.events import TYPE, single_records
from pipeline.catalog import Catalog
from pipeline.compiled import load_kernel
from pipeline.json_events import JsonDecoder
from pipeline.lines import Lines
from tallyman.meter import Definitions, Meter

METER = Meter(meter="compute.seconds", event_type=TYPE, aggregation="sum",
              dimensions={"flavor": "flavor", "region": "region"})  # fmt: skip
TURNS = 7


def stretches(count: int, size: int) -> list[Lines]:
    """Return `count` events as stretches of log of `size` lines each."""
    bodies = [body for body, _ in single_records(count)]
    now = int(time.time() * 1000)
    result = []
    for first in range(0, count, size):
        part = bodies[first : first + size]
        offsets, clocks = [first + i for i in range(len(part))], [now] * len(part)
        result.append(Lines(part, offsets, [0] * len(part), clocks, clocks, [False] * len(part)))
    return result


def decoding(*, few: int, compiled: bool = False) -> Callable[[Lines], object]:
    """Return the pipeline's own decoder, with or without its ways for lines that look alike."""
    kernel = load_kernel() if compiled else None
    decoder = JsonDecoder(Catalog(Definitions(number=1, meters=(METER,))), 1, few=few, kernel=kernel)
    return lambda lines: decoder.decode(lines, "", 0)


def msgspec_alone() -> Callable[[Lines], object]:
    """Return a decoder that makes objects of the lines and does nothing with them."""
    decoder = JsonDecoder(Catalog(Definitions(number=1, meters=(METER,))), 1)
    return lambda lines: decoder._parse(lines.bodies)


def measure(count: int, size: int) -> dict[str, float]:
    """Return nanoseconds of CPU per event for each way."""
    parts = stretches(count, size)
    ways = {"compiled": decoding(few=0, compiled=True), "by shape": decoding(few=0),
            "one by one": decoding(few=1 << 30), "msgspec alone": msgspec_alone()}  # fmt: skip
    best = {name: np.full(len(parts), np.inf) for name in ways}
    for _ in range(TURNS):
        for i, part in enumerate(parts):
            for name, decode in ways.items():
                began = time.process_time_ns()
                decode(part)
                best[name][i] = min(best[name][i], time.process_time_ns() - began)
    return {name: float(each.sum()) / count for name, each in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", nargs="?", type=int, default=100_000, help="how many, made once")
    count = parser.parse_args().events
    print(f"{'lines together':>14}  {'compiled':>9}  {'by shape':>9}  {'one by one':>10}  {'msgspec alone':>13}  "
          f"{'times as fast':>13}")  # fmt: skip
    for size in (8, 16, 32, 64, 250, 1000, 4000, 16000):
        quick, shape, single, alone = measure(count, size).values()
        print(f"{size:>14}  {quick:>6.0f} ns  {shape:>6.0f} ns  {single:>7.0f} ns  {alone:>10.0f} ns  "
              f"{single / quick:>13.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
