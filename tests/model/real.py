"""Drive the real decoder, counter, folder, writer, reader and sealer, on the real tables, through the model's
schedules.

The log is the model's (`chunk_model.PartitionLog`: holes, retention, a stepping clock); everything behind it
is what runs
in production. One minute of the model is 144 real ones, so that its day of ten minutes is a UTC day.

    python -m tests.model.real 1000                 # schedules, on a ClickHouse of its own
    python -m tests.model.real 50 --seed 17         # from this seed on
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.batches import Fetch
from pipeline.book import OpenChunk
from pipeline.decode import Decoders, blocks
from pipeline.dedupe import Judge, count_once
from pipeline.fold import fold
from pipeline.frontier import Frontier, StoredIds, read_frontier
from pipeline.identities import IdFilter
from pipeline.seal import Sealer, read_sealed_to
from pipeline.write import Flush, Progress, Tables
from tallyman.clickhouse import connect, migrate
from tallyman.errors import StoreError
from tallyman.event import ADMITTED, Event, encode_event, home_key, identity
from tallyman.kafka import partition_of
from tallyman.meter import Definitions, Meter
from tests.model import chunk_check, chunk_model
from tests.model.chunk_check import CheckedWorld
from tests.model.chunk_model import AHEAD, CHUNK, CLOSES, OLDEST, Broken, Record, Rules, add

TOPIC = "model"
UNIT_MS = 8_640_000  # one minute of the model
FIRST_DAY = 20_454  # 2026-01-01
START_MS = FIRST_DAY * 86_400_000
OLD, NEW = "compute.seconds", "compute.kiloseconds"


def definitions(number: int) -> Definitions:
    """The model's two meter definitions: the second ones rename the meter and change its unit."""
    slug, scale = ((OLD, 0), (NEW, 3))[number - 1]
    common: dict[str, Any] = {"event_type": "compute", "value": "value", "scale": scale}
    return Definitions(
        number=number,
        meters=(
            Meter(meter=slug, aggregation="sum", **common),
            Meter(meter=f"{slug}.latest", aggregation="latest", **common),
        ),
        oldest_accepted=timedelta(milliseconds=OLDEST * UNIT_MS),
        furthest_ahead=timedelta(milliseconds=AHEAD * UNIT_MS),
    )


class ModelDecoders(Decoders):
    """Definitions 0 are in force from the start, as in the model."""

    def get(self, number: int) -> Any:
        return super().get(number + 1)


def real_booking(booking: int) -> int:
    return (FIRST_DAY + booking // CLOSES) * 1000 + booking % CLOSES


def model_booking(booking: int) -> int:
    return (booking // 1000 - FIRST_DAY) * CLOSES + min(booking % 1000, CLOSES - 1)  # a seal may name the last of a day


def real_home(event: chunk_model.Event, partitions: int) -> int:
    return partition_of(home_key(event.subject, event.identity), partitions)


def real_meter(event: chunk_model.Event, meters: int) -> tuple[str, tuple]:
    """What the model's oracle expects of an event; the value is scaled as it is stored."""
    slug, factor = (OLD, 1) if meters == 0 else (NEW, 1000)
    value = event.value * factor
    digest = identity(event.subject, event.identity, event.identity)
    ordered = digest[:8][::-1] + digest[8:][::-1]  # two little-endian words, as ClickHouse orders their bytes
    return f"{slug}/{event.subject}", (1, value, (event.minute, ordered, value))


class FaultyTables(Tables):
    """Inserts that are sometimes not acknowledged: they happened, or they did not."""

    def __init__(self, world: RealWorld) -> None:
        super().__init__(world.client, world.writer)
        self._world = world

    def _insert(self, sql: str, columns: Any) -> None:
        fails = self._world.rng.random() < (0.0 if self._world.calm else 0.05)
        if not fails or self._world.rng.random() < 0.5:
            super()._insert(sql, columns)
            self._world.blocks += 1
        if fails:
            raise StoreError("an insert was not acknowledged")


class LogOutlet:
    """Forwards go to the model's log; nobody waits for progress."""

    def __init__(self, world: RealWorld) -> None:
        self._world = world

    def forward(self, forwards: Any) -> None:
        world = self._world
        for each in () if world.replaying else forwards:
            world.logs[each.partition].append(world.events[each.value], world.now + world.broker_skew, admitted=True)

    def push(self, progress: Progress) -> None:
        return

    def close(self) -> None:
        return


@dataclass(frozen=True)
class Endpoint:
    host: str
    port: int
    user: str
    password: str
    database: str


class RealWorld(CheckedWorld):
    """The model's world, with the real tables of one database as its store."""

    def __init__(self, seed: int, endpoint: Endpoint, database: str) -> None:
        self.endpoint = Endpoint(endpoint.host, endpoint.port, endpoint.user, endpoint.password, database)
        maker = connect(endpoint)
        maker.execute(f"CREATE DATABASE {database}")
        maker.disconnect()
        self.client, self.writer = connect(self.endpoint), connect(self.endpoint, numpy=True)
        migrate(self.client)
        super().__init__(seed, Rules())
        self.events: dict[bytes, chunk_model.Event] = {}
        self.blocks = 0
        self.decoders = ModelDecoders(definitions, len(self.logs))
        self.tables, self.outlet = FaultyTables(self), LogOutlet(self)

    def drop(self) -> None:
        self.client.execute(f"DROP DATABASE {self.endpoint.database} SYNC")
        self.client.disconnect()
        self.writer.disconnect()

    # What the model's services ask of the store, asked of the real tables.

    def frontier(self, partition: int) -> Any:  # type: ignore[override]
        found = self.real_frontier(partition)
        return found.chunk, found.start, found.turned, found.reached

    def real_frontier(self, partition: int) -> Frontier:
        return read_frontier(self.client, TOPIC, partition, CHUNK)

    @property
    def sealed_to(self) -> int:
        real = read_sealed_to(self.client)
        return model_booking(real) if real else -1

    @sealed_to.setter
    def sealed_to(self, value: int) -> None:
        """The model's constructor sets it; here the table `seals` says it."""

    def hot_rows(self) -> dict[tuple, tuple]:
        rows = self.client.execute(
            "SELECT partition, chunk, booking, definitions, meter, subject, toUnixTimestamp(minute), count, sum,"
            " latest, latest_us, hex(latest_by) FROM usage_hot FINAL WHERE booking > (SELECT max(booking) FROM seals)"
        )
        return self._rows(rows, 2)

    def sealed_rows(self) -> dict[tuple, tuple]:
        rows = self.client.execute(
            "SELECT booking, definitions, meter, subject, toUnixTimestamp(minute), count, sum, latest, latest_us,"
            " hex(latest_by) FROM usage"
        )
        return self._rows(rows, 0)

    def _rows(self, rows: list[tuple], lead: int) -> dict[tuple, tuple]:
        """Return rows with the model's keys; the two meters of a slug are one row: (count, sum, latest)."""
        sums: dict[tuple, tuple] = {}
        latest: dict[tuple, tuple] = {}
        for row in rows:
            place, (booking, number, meter, subject, second, count, total, last, last_us, by) = row[:lead], row[lead:]
            minute = (second * 1000 - START_MS) // UNIT_MS
            slug = meter.removesuffix(".latest")
            key = (*place, model_booking(booking), number, f"{slug}/{subject}", minute)
            if meter == slug:
                sums[key] = (count, total)
            else:
                latest[key] = ((last_us // 1000 - START_MS) // UNIT_MS, bytes.fromhex(by), last)
        if sums.keys() != latest.keys():
            raise Broken("I2 two meters of the same events show different rows")
        return {key: (*sums[key], latest[key]) for key in sums}

    def usage(self) -> dict[tuple, tuple]:
        totals: dict[tuple, tuple] = {}
        sealed_to = self.sealed_to
        for key, value in self.sealed_rows().items():
            if key[0] <= sealed_to:
                add(totals, key[2:], value)
        for key, value in self.hot_rows().items():
            add(totals, key[4:], value)
        return totals

    def fetch(self, partition: int, position: int) -> Fetch:
        """Return a few records from `position` on, as the reader brings them."""
        log, records = self.logs[partition], []
        first = position
        for _ in range(self.rng.randint(1, 4)):
            record, position = log.next(position, log.end, strict=True)
            if record is None:
                break
            records.append(record)
        values = [self._value(record) for record in records]
        return Fetch(
            TOPIC, partition, first, position,
            np.array([record.offset for record in records], np.int64),
            np.array([START_MS + record.appended_at * UNIT_MS for record in records], np.int64),
            values, [None] * len(records), [_headers(record) for record in records],
            tuple((record.offset, 0, zlib.crc32(value)) for record, value in zip(records, values, strict=True)),
        )  # fmt: skip

    def _value(self, record: Record) -> bytes:
        if record.event is None:
            return b""
        event = record.event
        time_us = (START_MS + event.minute * UNIT_MS) * 1000
        body = encode_event(
            Event(event.identity, event.identity, "compute", event.subject, time_us, {"value": str(event.value)})
        )
        self.events[body] = event
        return body


def _headers(record: Record) -> tuple[tuple[str, bytes], ...]:
    if record.event is None and not record.opens and not record.meters:
        return (("tallyman-tick", b"1"),)
    if record.event is None:
        opens = str(real_booking(record.opens)).encode()
        return (("tallyman-close", opens), ("tallyman-definitions", str(record.meters).encode()))
    return ((ADMITTED, b"1"),) if record.admitted else ()


def work(world: RealWorld) -> Iterator[None]:
    """Run a worker as `chunk_model.work` does, with the real stages."""
    rng = world.rng
    while True:
        partition = rng.randrange(len(world.logs))
        chunk = world.real_frontier(partition).open(CHUNK, ordered=True)
        judge = Judge(StoredIds(world.writer), IdFilter(1 << 10))
        if rng.random() < 0.5:
            judge.filter.load(judge.ids, TOPIC, partition)
        yield
        last = chunk.number + rng.randint(1, 3)
        while chunk.number < last and (yield from _book_some(world, chunk, judge)):
            yield
        yield


def _book_some(world: RealWorld, chunk: OpenChunk, judge: Judge) -> Iterator[None]:
    """Fetch, decode, count and fold once; return whether to go on."""
    try:
        fetch = world.fetch(chunk.partition, chunk.here.offset)
    except chunk_model.TruncatedError:
        return False
    if fetch.next == fetch.first:
        if chunk.unwritten:
            yield from _flush(world, Flush(chunk, world.decoders.catalog(chunk.here.definitions)), patient=False)
        return False
    for block in blocks(fetch, chunk, world.decoders):
        count_once(block, chunk, world.decoders.catalog(block.after.definitions), judge)
        for flush in fold(block, chunk, world.decoders, flush_s=0 if world.rng.random() < 0.3 else 1e9):
            # A flush that is merely due may fail and come later; one before a turn or at the chunk's end must succeed.
            needed = block.closes or chunk.here.offset < block.after.offset
            if not (yield from _flush(world, flush, patient=block.closes)) and needed:
                return False
        yield
    return True


def _flush(world: RealWorld, flush: Flush, *, patient: bool) -> Iterator[None]:
    while True:
        try:
            for _ in flush.steps(world.tables, world.outlet):
                yield
            return True
        except StoreError:
            if not patient:
                return False
            yield


def seal(world: RealWorld) -> Iterator[None]:
    """Run a sealer, step by step."""
    sealer = Sealer(connect(world.endpoint), [(TOPIC, number, CHUNK) for number in range(len(world.logs))])
    while True:
        before = world.sealed_rows()
        steps = sealer.steps()
        for _ in steps:
            yield
            after = world.sealed_rows()
            if any(after.get(key) != value for key, value in before.items()):
                raise Broken("I4 a sealed booking changed")
            before = after
        yield


def run_schedule(seed: int, endpoint: Endpoint, steps: int = 200) -> None:
    """Run one interleaving on the real tables; raise Broken at the first step that breaks an invariant."""
    world = RealWorld(seed, endpoint, f"model_{seed}")
    try:
        _run(world, steps)
        _check_end(world, endpoint)
    finally:
        world.drop()


def _run(world: RealWorld, steps: int) -> None:
    makers = [work, work, work, seal, seal, chunk_model.close, chunk_check.read]
    actors, asleep = [make(world) for make in makers], [0] * len(makers)
    for step in range(steps):
        if world.rng.random() < 0.35:
            _happen(world)
            continue
        who, blocks_before, fate = world.rng.randrange(len(actors)), world.blocks, world.rng.random()
        if asleep[who] > step:
            continue
        next(actors[who])
        if world.blocks != blocks_before:
            world.check_prefix(world.hot_rows(), world.sealed_to, world.reached())
        if fate < 0.02:
            actors[who] = makers[who](world)  # killed, and started again
        elif fate < 0.05:
            asleep[who] = step + world.rng.choice((10, 40, 120))  # a zombie: goes on later with what it knew
    _settle(world, actors[:5])


def _happen(world: RealWorld) -> None:
    """As `chunk_check.happen`; dropping old hot rows is a statement here."""
    world.store.tables["usage_hot"].clear()
    sealed_to = world.sealed_to
    chunk_check.happen(world)
    if world.rng.random() < 0.03:
        for (booking,) in world.client.execute("SELECT DISTINCT booking FROM usage_hot"):
            if model_booking(booking) < sealed_to:
                world.client.execute(f"ALTER TABLE usage_hot DROP PARTITION {booking}")


def _settle(world: RealWorld, actors: list[Iterator[None]]) -> None:
    world.calm, world.broker_skew = True, 0
    actors = [*actors, work(world)]
    for turn in range(6000):
        next(world.rng.choice(actors))
        if turn % 20 == 0 and all(offset >= log.end for offset, log in zip(world.reached(), world.logs, strict=True)):
            return
    raise Broken("I1 the log was never booked to its end")


def _check_end(world: RealWorld, endpoint: Endpoint) -> None:
    """I1, I4 and I5 when everything has come to rest."""
    by_booking: dict[tuple, tuple] = {}
    by_minute: dict[tuple, tuple] = {}
    for booking in chain.from_iterable(world.bookings()):
        add(by_booking, booking.row[1:], booking.value)
        add(by_minute, booking.row[3:], booking.value)
    if max(Counter(booking.identity for booking in chain.from_iterable(world.bookings())).values(), default=0) > 1:
        raise Broken("I1 an identity is booked twice")
    if world.usage() != by_minute:
        raise Broken("I1 the totals differ from the distinct accepted events")
    for key, value in world.sealed_rows().items():
        if key[0] <= world.sealed_to and by_booking.get(key) != value:
            raise Broken(f"I4 sealed booking {key[0]} is wrong")
    again = RealWorld(0, endpoint, f"{world.endpoint.database}_again")
    try:
        again.logs, again.now, again.replaying = world.logs, world.now, True
        for log in again.logs:
            log.start = 0  # the raw archive still has what retention removed
        _settle(again, [])
        if again.usage() != world.usage():
            raise Broken("I5 a replay differs")
    finally:
        again.drop()


def survey(schedules: int, endpoint: Endpoint, first: int = 0) -> dict[str, Any]:
    """Run schedules; return how many held, and the first seed of each way to break."""
    found: Counter = Counter()
    seeds: dict[str, int] = {}
    for seed in range(first, first + schedules):
        try:
            run_schedule(seed, endpoint)
            found["held"] += 1
        except Broken as broken:
            found[str(broken)[:2]] += 1
            seeds.setdefault(str(broken), seed)
        print(f"\r{seed - first + 1}/{schedules} {dict(found)}", end="", file=sys.stderr, flush=True)
    return {**found, "seeds": seeds}


# The oracle of the model asks these; in a real world they answer as the real code does.
def install() -> None:
    """Let the model's oracle use the real home and the real meters."""
    chunk_check.home, chunk_check.meter = real_home, real_meter


if __name__ == "__main__":
    from tests.model.server import running_clickhouse

    install()
    start = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    with tempfile.TemporaryDirectory() as folder, running_clickhouse(Path(folder)) as server:
        print("\n", survey(int(sys.argv[1]), server, start))
