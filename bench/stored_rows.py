"""What a flush, a question and a look-up cost while the store grows: rows of usage and identities from a million on.

    python -m bench.stored_rows                             # 1, 10 and 100 million: half an hour, 10 GB of disk
    python -m bench.stored_rows 1_000_000 10_000_000        # other sizes, each larger than the one before

The store is filled by ClickHouse itself: nine tenths of the rows are sealed, in thirty bookings of a day, the others
hot in today's; as many identities; a row of progress for each thousand. One tenant's rows are the same at every size,
all that is added is other people's. Figures are medians of the wall clock when merges have ended, and of the CPU of the
worker and the server together, which a busy machine changes less. A flush has a share in the merges that it leaves, so
its CPU is that of many flushes until all is merged, divided by them, less what the server takes when nothing happens.

What must stay flat is what each row and each answer costs. A look-up by itself, without the filter in front of it, is
for copies and for the new ids of which the filter is not sure; what it costs is told below, and grows.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
from clickhouse_driver import Client

from bench.stand import cpu_s, process_on
from bench.tables import forget_conditions, table
from pipeline.aggregate import Readings, Table, encode_keys
from pipeline.book import Forward, OpenChunk, Place
from pipeline.catalog import Catalog
from pipeline.frontier import StoredIds, read_frontier
from pipeline.id_filter import IdFilter
from pipeline.identities import EVERYTHING, AcceptedIds, IdColumns
from pipeline.rollup import roll_up
from pipeline.series import SeriesKey
from pipeline.write import Flush, Progress, Tables, write
from tallyman.aggregates import read_usage
from tallyman.clickhouse import connect, migrate
from tallyman.completeness import read_completeness
from tallyman.local.stack import StackOptions, running_stack
from tallyman.log import setup
from tallyman.meter import Definitions, Meter
from tallyman.usage import UsageQuery

SIZES = (1_000_000, 10_000_000, 100_000_000)
LIMIT = 1.5  # times the cost at the first size; what is flat varies by a third on a machine that others use
FIRST, DAYS, TOPIC, CHUNK = datetime(2026, 3, 1, tzinfo=UTC), 30, "bench-topic", 1 << 16
TODAY = FIRST + timedelta(days=DAYS)
METER = Meter(meter="compute.seconds", event_type="compute.usage", aggregation="sum", value="value")
ASKED, ASKED_SERIES = "tenant-asked", 100
FLUSHED, LOOKED_UP, REPEATS, FLUSHES = 10_000, (500, 10_000), 9, 60
COPIES = 100  # of FLUSHED ids that are counted once: one in a hundred comes again
_SHARED = "{booking}, 1, 0, '', 'sum', 9, '', 60, toInt128(number + 1) * 1000000007, 0, 0, 0, 0, ''"
_COLUMNS = (
    "meter, subject, dimensions, minute, booking, definitions, generation, item, aggregation, scale, parameters, count,"
    " sum, min, max, latest, latest_us, latest_by"
)
_OTHERS = (
    "'compute.seconds', concat('tenant-', toString(intDiv(number, 5760))),"
    " concat('{{\"flavor\":\"f', toString(intDiv(number, 1440) % 4), '\"}}'),"
    " toDateTime({day}, 'UTC') + (number % 1440) * 60"
)


@dataclass(frozen=True)
class Cost:
    """What one thing took: milliseconds by the clock and of CPU, medians."""

    wall_ms: float
    cpu_ms: float


class Nowhere:
    """An outlet behind which nobody waits."""

    def forward(self, forwards: Sequence[Forward]) -> None:
        return

    def close(self) -> None:
        return

    def push(self, progress: Progress) -> None:
        return


class Store:
    """A ClickHouse that is filled from size to size, and asked."""

    def __init__(self, client: Client, numbers: Client, server: int) -> None:
        self.client, self._numbers, self._server = client, numbers, server
        self._filled = 0
        self._flushes = self._make_flushes()
        self._tables = Tables(client, numbers)

    def begin(self) -> None:
        """Write the tenant who is asked for, and what the first flush goes on from."""
        for number in range(DAYS):
            day, booking = _day(number)
            self.client.execute(
                f"INSERT INTO usage ({_COLUMNS}) SELECT 'compute.seconds', '{ASKED}',"
                " concat('{\"flavor\":\"f', toString(intDiv(number, 24)), '\"}'),"
                f" toDateTime({day}, 'UTC') + (number % 24) * 3600, {_SHARED.format(booking=booking)}"
                f" FROM numbers({ASKED_SERIES * 24})"
            )

    def grow(self, size: int) -> None:
        """Fill up to `size` rows and identities, and wait until ClickHouse has put them in order."""
        first, self._filled = self._filled, size
        for number in range(DAYS):
            day, booking = _day(number)
            begin, end = (int(each * 0.9) // DAYS for each in (first, size))
            self.client.execute(
                f"INSERT INTO usage ({_COLUMNS}) SELECT {_OTHERS.format(day=day)},"
                f" {_SHARED.format(booking=booking)} FROM numbers({begin}, {end - begin})"
            )
        day, booking = _day(DAYS)
        begin, end = first // 10, size // 10
        self.client.execute(
            f"INSERT INTO usage_hot ({_COLUMNS}, topic_id, partition, chunk, covered)"
            f" SELECT {_OTHERS.format(day=day)}, {_SHARED.format(booking=booking)}, '{TOPIC}', 1,"
            f" intDiv(number, 100000), {CHUNK} FROM numbers({begin}, {end - begin})"
        )
        self.client.execute(
            "INSERT INTO ids (identity_high, identity_low, topic_id, partition, offset, event_index, remembered_us,"
            f" digest, definitions) SELECT cityHash64(number), cityHash64(number + 1), '{TOPIC}', 0,"
            f" intDiv(number, 500), number % 500, 1775000000000000 + number, cityHash64(number + 2), 1"
            f" FROM numbers({first}, {size - first})"
        )
        # All but the last hundred chunks lie below the newest seal.
        chunks = size // 1000
        self.client.execute(
            "INSERT INTO progress (topic_id, partition, chunk, generation, covered, reached_offset, reached_clock_ms,"
            f" reached_booking) SELECT '{TOPIC}', 0, number, 0, {CHUNK}, (number + 1) * {CHUNK}, 1775000000000,"
            f" {booking} FROM numbers({first // 1000}, {chunks - first // 1000})"
        )
        self._seal(chunks - 100)
        self._settle()

    def _seal(self, chunk: int) -> None:
        place = {"topic_id": TOPIC, "partition": 0, "chunk": chunk, "offset": chunk * CHUNK, "clock_ms": 1775000000000,
                 "booking": _day(DAYS)[1], "definitions": 1, "digest": 0}  # fmt: skip
        places = msgspec.json.encode([place]).decode()
        rows = [
            (_day(n)[1], 0, 1, 1, FIRST + timedelta(days=n), FIRST + timedelta(days=n, minutes=1439), places)
            for n in range(DAYS)
        ]
        self.client.execute(
            "INSERT INTO seals (booking, generation, rows, events, first_minute, last_minute, places) VALUES", rows
        )
        for name in ("usage_rolled_up", "rolling_up", "rolled_up"):
            self.client.execute(f"TRUNCATE TABLE {name}")
        for number in range(DAYS):
            roll_up(self.client, _day(number)[1])

    def _settle(self) -> None:
        """Wait until no merge has been running for a while: ClickHouse looks for more to merge only now and then."""
        quiet, deadline = 0, time.monotonic() + 900
        while quiet < 60 and time.monotonic() < deadline:
            quiet = 0 if self.client.execute("SELECT count() FROM system.merges")[0][0] else quiet + 1
            time.sleep(0.3)

    def costs(self, known: IdFilter) -> dict[str, Cost]:
        """Measure everything that a worker and a reader do again and again.

        Args:
            known: The filter of a worker that has loaded it.
        """
        ids, rng = StoredIds(self._numbers), np.random.default_rng(self._filled)
        month = UsageQuery(meter="compute.seconds", subjects=(ASKED,), start=FIRST, end=TODAY, window="day")
        hour = UsageQuery(meter="compute.seconds", subjects=("tenant-0",), start=TODAY,
                          end=TODAY + timedelta(hours=1), window="minute")  # fmt: skip
        assert len(read_usage(self.client, month).rows) == DAYS
        coming = [np.array(self._some_known(COPIES, FLUSHED, rng), np.uint64) for _ in range(REPEATS + 1)]

        def count_once() -> None:
            high, low = coming.pop().T
            suspects = np.flatnonzero(known.perhaps(TOPIC, 0, high, low))
            wanted = list(zip(high[suspects].tolist(), low[suspects].tolist(), strict=True))
            assert len(ids.find(TOPIC, 0, EVERYTHING, wanted)) == COPIES

        return {
            f"count {FLUSHED:,} ids once, {COPIES} of them copies": self._cost(count_once),
            "a tenant's month by day": self._cost(lambda: read_usage(self.client, month)),
            "a tenant's last hour": self._cost(lambda: read_usage(self.client, hour)),
            "read_completeness": self._cost(lambda: read_completeness(self.client)),
            "read_frontier": self._cost(lambda: read_frontier(self.client, TOPIC, 0, CHUNK)),
            f"flush of {FLUSHED:,} rows, with its merges": self._flush_cost(),
        }

    def look_ups(self) -> dict[str, Cost]:
        """Measure what a look-up costs of ids of which half were accepted."""
        ids, rng = StoredIds(self._numbers), np.random.default_rng(self._filled + 1)
        found = {}
        for number in LOOKED_UP:
            wanted = self._some_known(number // 2, number, rng)
            assert len(ids.find(TOPIC, 0, EVERYTHING, wanted)) == number // 2
            found[f"look-up of {number:,} ids"] = self._cost(lambda: ids.find(TOPIC, 0, EVERYTHING, wanted))  # noqa: B023
        return found

    def _flush_cost(self) -> Cost:
        """Flush again and again, wait until all is merged, and return each one's share."""
        self._settle()
        idle_s, began = cpu_s(self._server), time.monotonic()
        time.sleep(10)
        idle = (cpu_s(self._server) - idle_s) / (time.monotonic() - began)
        before, began, walls = cpu_s(self._server) + cpu_s(os.getpid()), time.monotonic(), []
        for _ in range(FLUSHES):
            start = time.perf_counter()
            write(next(self._flushes), self._tables, Nowhere())
            walls.append((time.perf_counter() - start) * 1000)
        self._settle()
        spent = cpu_s(self._server) + cpu_s(os.getpid()) - before - idle * (time.monotonic() - began)
        return Cost(statistics.median(walls), spent * 1000 / FLUSHES)

    def _some_known(self, known: int, number: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Return identities, so many of which were accepted."""
        numbers = rng.choice(self._filled, known, replace=False).tolist()
        pairs = ",".join(f"(cityHash64({n}), cityHash64({n + 1}))" for n in numbers)
        mine = [(int(a), int(b)) for ((a, b),) in self.client.execute(f"SELECT arrayJoin([{pairs}])")]
        return mine + [(int(a), int(b)) for a, b in rng.integers(0, 1 << 63, (number - known, 2)).tolist()]

    def load_filter(self) -> tuple[IdFilter, str]:
        """Load the filter of a worker that begins, and say what came of it."""
        known, began = IdFilter(), time.perf_counter()
        known.load(StoredIds(self._numbers), TOPIC, {0: EVERYTHING})
        took_s = time.perf_counter() - began
        new = np.random.default_rng(3).integers(0, 1 << 64, (2, 100_000), np.uint64)
        unsure = float(known.perhaps(TOPIC, 0, *new).mean())
        return known, f"{known.size / 2**20:.0f} MiB, loaded in {took_s:.1f} s; {unsure:.2%} of new ids are looked up"

    def _cost(self, do: Callable[[], object]) -> Cost:
        do()
        walls, cpus = [], []
        for _ in range(REPEATS):
            forget_conditions(self.client)
            before, began = cpu_s(self._server) + cpu_s(os.getpid()), time.perf_counter()
            do()
            walls.append((time.perf_counter() - began) * 1000)
            cpus.append((cpu_s(self._server) + cpu_s(os.getpid()) - before) * 1000)
        return Cost(statistics.median(walls), statistics.mean(sorted(cpus)[: REPEATS - 2]))

    def _make_flushes(self) -> Iterator[Flush]:
        """Yield flushes that each hold as many rows and ids, of minutes and identities that were not there before."""
        catalog = Catalog(Definitions(number=1, meters=(METER,)))
        codes = np.array([catalog.number(SeriesKey(0, f"flushed-{n}", "{}")) for n in range(1000)], np.int32)
        rng, booking = np.random.default_rng(1), _day(DAYS)[1]
        start = Place(booking=booking, definitions=1, clock_ms=1775000000000)
        chunk = OpenChunk(TOPIC, 2, 1 << 40, 0, start, start, 0, Table(), AcceptedIds())
        minute, offset = int(TODAY.timestamp()) // 60, 0
        while True:
            rows = np.arange(FLUSHED)
            nothing = np.zeros(FLUSHED, np.uint64)
            keys = encode_keys(codes[rows % 1000], minute + rows // 1000)
            chunk.table.add(Readings(keys, rows, rows, nothing, nothing))
            high, low, digest = rng.integers(0, 1 << 63, (3, FLUSHED)).astype(np.uint64)
            chunk.accepted.add(IdColumns(high, low, offset + rows // 500, rows % 500, rows, digest,
                                         np.ones(FLUSHED, np.uint32)))  # fmt: skip
            minute, offset = minute + FLUSHED // 1000, offset + FLUSHED // 500
            chunk.here = Place(offset, start.clock_ms, booking, 1)
            yield Flush(chunk, catalog)

    def bytes_on_disk(self) -> dict[str, tuple[int, int]]:
        """Return rows and bytes of each table."""
        rows = self.client.execute(
            "SELECT table, sum(rows), sum(bytes_on_disk) FROM system.parts"
            " WHERE active AND database = currentDatabase() GROUP BY table"
        )
        return {name: (int(count), int(size)) for name, count, size in rows}


def _day(number: int) -> tuple[int, int]:
    """Return where a day begins, in seconds since 1970, and its first booking."""
    second = int((FIRST + timedelta(days=number)).timestamp())
    return second, second // 86_400 * 1000


def show(sizes: Sequence[int], costs: Sequence[dict[str, Cost]], *, limit: float | None) -> bool:
    """Print what each thing costs at each size, and say whether it stays flat by CPU."""
    rows, flat = [], True
    for name, first in costs[0].items():
        mine = [each[name] for each in costs]
        ratio = mine[-1].cpu_ms / max(first.cpu_ms, 10)  # the kernel counts in hundredths of a second
        flat &= limit is None or ratio <= limit
        cells = [f"{cost.wall_ms:,.0f} ({cost.cpu_ms:,.0f})" for cost in mine]
        verdict = () if limit is None else ("met" if ratio <= limit else "MISSED",)
        rows.append((name, *cells, f"{ratio:.2f}", *verdict))
    head = ("ms by wall (by CPU), with rows", *(f"{size:,}" for size in sizes), "last by first")
    table((*head, f"limit {limit}") if limit else head, rows, left=(0,))
    return flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES), help="rows, growing")
    parser.add_argument("--folder", type=Path, help="where the store lies meanwhile; else a temporary folder")
    arguments = parser.parse_args()
    setup("error")
    where = tempfile.TemporaryDirectory(dir=arguments.folder)
    with where as folder, running_stack(Path(folder), options=StackOptions(kafka=False)) as stack:
        client = connect(stack.clickhouse, timeout_s=1800)
        migrate(client)
        store = Store(client, connect(stack.clickhouse, numpy=True), process_on(stack.clickhouse.port))
        store.begin()
        costs, look_ups, filters = [], [], []
        for size in arguments.sizes:
            began = time.monotonic()
            store.grow(size)
            free = shutil.disk_usage(folder).free / 1e9
            print(f"{size:,} rows and ids after {time.monotonic() - began:,.0f} s; {free:,.0f} GB free", flush=True)
            known, told = store.load_filter()
            filters.append(f"filter of {size:,} ids: {told}")
            look_ups.append(store.look_ups())
            costs.append(store.costs(known))
        flat = show(arguments.sizes, costs, limit=LIMIT)
        show(arguments.sizes, look_ups, limit=None)
        print("\n".join(filters))
        for name, (rows, size) in sorted(store.bytes_on_disk().items()):
            if rows >= 1000:
                print(f"{name}: {rows:,} rows, {size / rows:.1f} bytes each")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
