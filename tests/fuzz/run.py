"""A run of made records over some partitions, with what is forwarded going home."""

from __future__ import annotations

import random
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fetches import NOON_MS
from tests.fuzz.meters import definitions
from tests.fuzz.odd import BYTES
from tests.fuzz.records import Maker, Record
from tests.fuzz.walk import Walk

PARTITIONS = 2
CHUNK = 1 << 13
MOST_VERSIONS = 20
_PAGE = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to so far."""

    records: int
    fates: Counter[str]
    reasons: Counter[str]
    most_s_per_mb: float
    busy_s: float
    rss_mb: int


class Run:
    """Makes records, books them, and compares: raises AssertionError at the first stretch that differs.

    Args:
        pool: Bytes of other making, to be sent and spliced in.
        records: How many will be made in all: over them the definitions change.
    """

    def __init__(self, seed: int, records: int, pool: Sequence[bytes] = BYTES) -> None:
        self._rng, self._records = random.Random(seed), records
        self.walks = [
            Walk(number, PARTITIONS, definitions, self._rng, chunk_size=CHUNK) for number in range(PARTITIONS)
        ]
        self._makers = [Maker(self._rng, number, PARTITIONS, pool) for number in range(PARTITIONS)]
        self._home: list[list[Record]] = [[] for _ in range(PARTITIONS)]  # on their way to their home partition
        self._now_ms = NOON_MS
        self.made = 0

    def go(self) -> Iterator[Report]:
        """Go on to the end, telling now and then how it stands."""
        told = 0
        while self.made < self._records:
            self.step()
            if self.made - told >= 5000:
                told = self.made
                yield self.report()
        for number in range(PARTITIONS):
            while self._home[number]:
                self._send(number, [])
        yield self.report()

    def step(self) -> None:
        """Make and book one stretch."""
        number = self._rng.randrange(PARTITIONS)
        maker = self._makers[number]
        maker.newest = 1 + self.made * MOST_VERSIONS // self._records
        records = maker.stretch(self._now_ms)
        self.made += len(records)
        self._send(number, records)
        # Mostly milliseconds pass; now and then hours, so that ids expire and days begin; sometimes a clock goes back.
        self._now_ms += self._rng.choice((1, 5, 50, 200, 1000, -300)) if self._rng.random() < 0.995 else 3_600_000

    def _send(self, number: int, records: Sequence[Record]) -> None:
        records = [*self._home[number], *records]
        self._home[number] = []
        for home, record in self.walks[number].send(records, self._now_ms):
            self._home[home].append(record)

    def report(self) -> Report:
        fates, reasons = Counter[str](), Counter[str]()
        for walk in self.walks:
            fates.update(walk.fates)
            fates.update(walk.chunk.here.counts._asdict())
            reasons.update(walk.reasons)
        slowest, busy = max(walk.most_s_per_mb for walk in self.walks), sum(walk.busy_s for walk in self.walks)
        return Report(self.made, fates, reasons, slowest, busy, resident_mb())


def resident_mb() -> int:
    """Return how much memory this process holds, in MB."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE >> 20
