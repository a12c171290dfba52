"""What is asked each second costs beside many partitions, years of bookings and many collectors, and in a small store.

    python -m bench.many_partitions                        # 10 million chunks: a year at 20,000 events a second
    python -m bench.many_partitions --chunks 50_000_000    # a year at 100,000

Both stores hold one tenant's hour. In the large one all partitions have chunks in the booking that is open, a seal for
each of a thousand bookings tells where all partitions stood, and 100,000 collectors that keep up were heard since. What
stands there after years must not be read again with each answer: the least of some tries, by the wall clock.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clickhouse_driver import Client

from bench.many_collectors import HEARD
from bench.tables import table, times
from pipeline.seal import Sealer
from pipeline.watch import Watch
from tallyman.aggregates import read_known, read_usage
from tallyman.clickhouse import connect, migrate
from tallyman.local.stack import StackOptions, running_stack
from tallyman.log import setup
from tallyman.usage import UsageQuery

TOPIC, CHUNK, SEALED, OPEN = "Ecl5Q0nRQo2TbJGAGKdzDA", 1 << 16, 20_415_000, 20_416_000
BEGIN = datetime(2025, 11, 24, tzinfo=UTC)
LIMIT_MS = 1000.0  # an answer takes a second at most
AT_ONCE = 2_000_000  # rows that are written with one statement
_PROGRESS = """
INSERT INTO progress (topic_id, partition, chunk, generation, covered, reached_offset, reached_clock_ms,
    reached_booking)
SELECT '{topic}', number % {partitions}, intDiv(number, {partitions}) AS n, 0, {size}, (n + 1) * {size},
    {begin_ms} + n * 1000, {booking} FROM numbers({first}, {count})"""
_SEALS = """
INSERT INTO seals (booking, generation, rows, events, first_minute, last_minute, places)
SELECT {sealed} - {seals} + 1 + number, 0, 1, 1, toDateTime({begin_s}), toDateTime({begin_s}),
    concat('[', arrayStringConcat(arrayMap(p -> concat('{{"topic_id":"{topic}","partition":', toString(p), ',"chunk":',
    toString({chunk}), ',"offset":', toString({chunk} * {size}), ',"clock_ms":{begin_ms},"booking":{sealed},',
    '"definitions":1,"digest":0}}'), range({partitions})), ','), ']') FROM numbers({seals})"""


@dataclass(frozen=True)
class Size:
    """How large a store is; `opened` chunks lie behind the last seal."""

    partitions: int
    chunks: int
    opened: int
    seals: int
    collectors: int
    heard: int

    @property
    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=(self.chunks + self.opened) // self.partitions - 1)

    def told(self) -> str:
        return (
            f"{self.partitions} partitions, {self.chunks:,} chunks in {self.seals:,} sealed bookings, {self.opened:,}"
            f" since; {self.collectors:,} collectors, heard in {self.heard:,} rows"
        )


def fill(client: Client, size: Size) -> None:
    """Write what a pipeline would have written by then."""
    names = {
        "topic": TOPIC, "size": CHUNK, "partitions": size.partitions, "chunk": size.chunks // size.partitions,
        "begin_ms": _ms(BEGIN), "begin_s": _ms(BEGIN) // 1000, "sealed": SEALED, "seals": size.seals,
    }  # fmt: skip
    client.execute(
        "INSERT INTO topics (topic_id, name, partitions, chunk_size, follows, line, begins) VALUES",
        [(TOPIC, "usage", size.partitions, CHUNK, "", TOPIC, 0)],
    )
    for first, behind, booking in ((0, size.chunks, SEALED), (size.chunks, size.chunks + size.opened, OPEN)):
        for begin in range(first, behind, AT_ONCE):
            count = min(AT_ONCE, behind - begin)
            client.execute(_PROGRESS.format(**names | {"booking": booking, "first": begin, "count": count}))
    client.execute(_SEALS.format(**names))
    client.execute("INSERT INTO rolled_up (booking, attempt) SELECT booking, 1 FROM seals")
    client.execute("INSERT INTO heard_joined_to (booking, joined_at) VALUES", [(SEALED, BEGIN)])
    turns = size.heard // size.collectors
    client.execute(
        HEARD.format(collectors=size.collectors, rows=size.heard, topic=TOPIC, partitions=size.partitions, booking=OPEN,
                     from_ms=_ms(size.now) - turns * 8000 + 1000, left_out=size.heard)
    )  # fmt: skip
    client.execute(
        "INSERT INTO usage_hot (meter, subject, dimensions, minute, booking, definitions, topic_id, partition, chunk,"
        " generation, covered, aggregation, scale, parameters, count, sum) SELECT 'vm.seconds', 'tenant-7', '{}',"
        f" toDateTime({_ms(size.now) // 60_000 * 60 - 3600} + 60 * number, 'UTC'), {OPEN}, 1, '{TOPIC}', 0, 0, 0, 10,"
        " 'sum', 0, '', 1, 5 FROM numbers(60)"
    )
    for name in ("progress", "heard", "heard_newest"):
        client.execute(f"OPTIMIZE TABLE {name} FINAL")


def questions(client: Client, size: Size) -> dict[str, Callable[[], object]]:
    """Return what is asked again and again."""
    sealer = Sealer(client, [(TOPIC, partition, CHUNK) for partition in range(size.partitions)])
    watch = Watch(client, size.partitions, timedelta(seconds=10))
    end = size.now.replace(second=0)
    query = UsageQuery(meter="vm.seconds", start=end - timedelta(hours=1), end=end, subjects=("tenant-7",))
    return {
        "a tenant's last hour": lambda: read_usage(client, query),
        "what alarms are decided by, each second": lambda: read_known(client),
        "whether there is something to seal, each second": sealer.seal_all,
        "the metrics of each worker, each 15 s": watch.watch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=10_000_000, help="chunks that are sealed in the large store")
    arguments = parser.parse_args()
    setup("error")
    large = Size(256, arguments.chunks // 256 * 256, 137_216, 1000, 100_000, 5_000_000)
    found: list[dict[str, float]] = []
    for size in (Size(4, 1000, 40, 3, 100, 1000), large):
        with (
            tempfile.TemporaryDirectory() as folder,
            running_stack(Path(folder), options=StackOptions(kafka=False)) as stack,
        ):
            client = connect(stack.clickhouse, timeout_s=1800)
            migrate(client)
            fill(client, size)
            print(size.told(), flush=True)
            found.append({name: min(times(client, ask, 5)) for name, ask in questions(client, size).items()})
    small, much = found
    rows = [(name, f"{small[name]:,.0f}", f"{much[name]:,.0f}", f"{much[name] / small[name]:.1f}",
             "met" if much[name] < LIMIT_MS else "missed") for name in small]  # fmt: skip
    table(("ms", "small", "large", "large by small", f"limit {LIMIT_MS:,.0f}"), rows)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp()) * 1000


if __name__ == "__main__":
    main()
