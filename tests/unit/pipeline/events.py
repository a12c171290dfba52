"""Definitions, records and stores that the tests of the pipeline share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np

from pipeline.aggregate import Table
from pipeline.batches import Fetch
from pipeline.book import OpenChunk, Place
from pipeline.columns import Block
from pipeline.decode import blocks
from pipeline.decoders import Decoders
from pipeline.dedupe import Judge, count_once
from pipeline.fold import fold
from pipeline.id_filter import IdFilter
from pipeline.identities import HASHES, Accepted, AcceptedIds, Portion
from pipeline.write import Flush
from tallyman.event import LINES, batch_identity, identity
from tallyman.meter import Definitions, Meter
from tests.fetches import NOON_MS, TOPIC_ID, fetch_of

SIZE = 64
NOON_US = NOON_MS * 1000
NDJSON = (("content-type", LINES.encode()),)
SERVER = Meter(
    meter="compute.hours",
    event_type="server",
    aggregation="sum",
    value="hours",
    scale=6,
    dimensions={"region": "region"},
)
TRAFFIC = Meter(
    meter="net.bytes", event_type="traffic", aggregation="sum", value="bytes", scale=0, allow_negative=False
)
PLAIN = Definitions(number=1, meters=(SERVER, TRAFFIC), ignore=("heartbeat",))


def event(number: int | str = 1, **changed: Any) -> dict[str, Any]:
    """Return an event as JSON would hold it; what is None is left out."""
    wire: dict[str, Any] = {
        "specversion": "1.0",
        "id": f"e-{number}",
        "source": "nova/berlin-1",
        "type": "server",
        "subject": "Zoë Åström",
        "time": "2026-10-31T12:00:00Z",
        "data": {"hours": "1.5", "region": "Nürnberg"},
    }
    wire |= changed
    return {name: value for name, value in wire.items() if value is not None}


def body(number: int | str = 1, **changed: Any) -> bytes:
    return msgspec.json.encode(event(number, **changed))


class StoredHere:
    """The `ids` table as a list."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], list[Accepted]] = {}
        self.asked = 0

    def find(
        self, topic_id: str, partition: int, below: int, identities: list[tuple[int, int]]
    ) -> dict[tuple[int, int], Accepted]:
        self.asked += 1
        found: dict[tuple[int, int], Accepted] = {}
        for key in identities:
            for row in self.rows.get(key, ()):
                if row.offset < below:
                    found[key] = row.after(found.get(key))
        return found

    def stream(self, topic_id: str, below: Mapping[int, int], start: int = 0) -> Iterator[Portion]:
        keys = [key for key, rows in self.rows.items() if any(row.offset < max(below.values()) for row in rows)]
        yield Portion(HASHES, np.array([k[0] for k in keys], np.uint64), np.array([k[1] for k in keys], np.uint64))


def new_chunk(here: Place | None = None, *, size: int = SIZE, partition: int = 0) -> OpenChunk:
    here = here or Place()
    return OpenChunk(
        TOPIC_ID, partition, size, here.offset // size, here, here, here.offset, Table(), AcceptedIds(), None
    )


def new_decoders(*definitions: Definitions, partitions: int = 1) -> Decoders:
    known = {each.number: each for each in definitions or (PLAIN,)}
    return Decoders(known.__getitem__, partitions)


class Walk:
    """Decode, count and fold, with everything acknowledged at once; what a worker does without Beam and servers."""

    def __init__(
        self,
        *definitions: Definitions,
        partitions: int = 1,
        chunk: OpenChunk | None = None,
        store: StoredHere | None = None,
        loaded: bool = True,
    ) -> None:
        self.decoders = new_decoders(*definitions, partitions=partitions)
        self.chunk = chunk or new_chunk()
        self.store = store or StoredHere()
        self.judge = Judge(self.store, IdFilter(1 << 16))
        if loaded:
            self.judge.filter.load(self.store, TOPIC_ID, {self.chunk.partition: self.chunk.base})
        self.blocks: list[Block] = []
        self.dead: list[Any] = []
        self.conflicts: list[Any] = []
        self.forwards: list[Any] = []
        self.totals: dict[tuple[Any, ...], int] = {}

    def go(self, fetch: Fetch, *, flush_s: float = 1e9) -> Walk:
        for block in blocks(fetch, self.chunk, self.decoders):
            self.blocks.append(block)
            if not block.idle:
                count_once(block, self.chunk, self.decoders.catalog(block.after.definitions), self.judge)
            for flush in fold(block, self.chunk, self.decoders, flush_s=flush_s):
                self._acknowledge(flush)
        return self

    def send(self, *records: bytes, headers: Sequence[tuple[str, bytes]] = (), at_ms: int = NOON_MS) -> Walk:
        """Append records behind what was folded, and fold them."""
        return self.go(fetch_of([(each, headers, at_ms) for each in records], first=self.chunk.here.offset))

    def flush(self) -> Walk:
        self._acknowledge(self.cut())
        return self

    def cut(self) -> Flush:
        """Return a flush of what is folded so far."""
        return Flush(self.chunk, self.decoders.catalog(self.chunk.here.definitions))

    def _acknowledge(self, flush: Flush) -> None:
        chunk = self.chunk
        self.dead += chunk.dead
        self.conflicts += chunk.conflicts
        self.forwards += chunk.forwards
        rows, slots = chunk.table.take_changes()
        for key, total in zip(rows.keys.tolist(), rows.sum.tolist(), strict=True):
            series = flush.catalog.series[key >> 32]
            meter = flush.catalog.meters[series.meter].meter
            here, minute = chunk.here, key & 0xFFFFFFFF
            counted = (meter, series.subject, series.dimensions, series.item, minute)
            place = (here.booking, *counted, here.definitions, chunk.number)
            self.totals[place] = total  # a row replaces itself
        for columns in chunk.accepted.unwritten():
            for high, low, *rest in zip(*(column.tolist() for column in columns), strict=True):
                self.store.rows.setdefault((high, low), []).append(Accepted(*rest))
        chunk.accepted.acknowledge(len(chunk.accepted.unwritten()))
        chunk.table.acknowledge(slots)
        chunk.voices.acknowledge()
        for done in (chunk.dead, chunk.conflicts, chunk.forwards, chunk.raw):
            done.clear()
        chunk.acknowledged = chunk.here
        chunk.forget_written_ids()

    @property
    def counts(self) -> dict[str, int]:
        return self.chunk.here.counts._asdict()

    @property
    def reasons(self) -> list[str]:
        return [each.reason for each in (*self.dead, *self.chunk.dead)]

    def sums(self) -> dict[str, int]:
        """Return what each meter totals over everything, in every booking and chunk that this walk has seen."""
        self.flush()
        result: dict[str, int] = {}
        for (_, meter, *_), total in self.totals.items():
            result[meter] = result.get(meter, 0) + total
        return result


def numbered(sequence: int, *, collector: str = "host-01", epoch: str = "spool-7", content: str = LINES) -> Any:
    return (
        ("content-type", content.encode()),
        ("tallyman-collector", collector.encode()),
        ("tallyman-epoch", epoch.encode()),
        ("tallyman-sequence", str(sequence).encode()),
    )


def words(digest: bytes) -> tuple[int, int]:
    """Return an identity as the two numbers that the columns hold."""
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def foreign_identity(number: int | str = 1) -> tuple[int, int]:
    return words(identity("Zoë Åström", "nova/berlin-1", f"e-{number}"))


def batch_words(sequence: int) -> tuple[int, int]:
    return words(batch_identity("host-01", "spool-7", sequence))


def short_window() -> Definitions:
    return Definitions(
        number=1, meters=(SERVER, TRAFFIC), oldest_accepted=timedelta(hours=1), furthest_ahead=timedelta(minutes=5)
    )


Loader = Callable[[int], Definitions]
