"""Records through decoding, counting once and folding as a worker does them, and each result beside the reference."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.batches import BatchWalk, Fetch
from pipeline.book import OpenChunk, Place
from pipeline.columns import Block
from pipeline.decode import blocks
from pipeline.decoders import Decoders
from pipeline.dedupe import Judge, count_once
from pipeline.fold import fold
from pipeline.id_filter import IdFilter
from pipeline.identities import Accepted
from pipeline.write import Flush
from tallyman.headers import Headers
from tallyman.meter import Definitions
from tests.fetches import CODECS, TOPIC_ID, batch_of, fetch_of
from tests.fuzz.records import Record
from tests.fuzz.reference import KEPT_CHUNKS, Reference
from tests.unit.pipeline.events import StoredHere, new_chunk

_FATES = ("received", "aggregated", "duplicate", "dead", "ignored", "forwarded", "conflict")
_LARGEST_BATCH = 4 << 20


class Walk:
    """One partition's log, booked by the pipeline and told by the reference.

    Attributes:
        most_s_per_mb: What the slowest stretch took per megabyte of log, in CPU seconds.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        load: Callable[[int], Definitions],
        rng: random.Random,
        *,
        chunk_size: int,
    ) -> None:
        self.partition, self._rng, self._forgets = partition, rng, random.Random(partition)
        self.reference = Reference(partition, partitions, chunk_size, load)
        self.decoders = Decoders(load, partitions)
        self.chunk: OpenChunk = new_chunk(Place(), size=chunk_size, partition=partition)
        self.store = StoredHere()
        self.judge = Judge(self.store, IdFilter(1 << 20))
        self.judge.filter.load(self.store, TOPIC_ID, {partition: self.chunk.base})
        self.fates: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.most_s_per_mb = self.busy_s = 0.0
        self._dead: list[Any] = []
        self._conflicts: list[Any] = []
        self._forwards: list[Any] = []

    def send(self, records: Sequence[Record], at_ms: int) -> list[tuple[int, Record]]:
        """Append records and book them; return what is to be forwarded, with the partition that is its home."""
        first = self.chunk.here.offset
        fetch = self._fetch([(record.value, record.headers, at_ms) for record in records], first)
        for place, record in enumerate(records):
            self.reference.read(first + place, at_ms, record.headers, record.value)
        began = time.process_time()
        for block in blocks(fetch, self.chunk, self.decoders):
            self._book(block)
        took = time.process_time() - began
        self.busy_s += took
        size = sum(len(record.value or b"") for record in records)
        self.most_s_per_mb = max(self.most_s_per_mb, took / max(size / 1e6, 0.05))
        return self._compare()

    def _fetch(self, rows: list[tuple[bytes | None, Headers, int]], first: int) -> Fetch:
        """Return the records as a fetch: made by hand, or read from the bytes of Kafka batches."""
        name = self._rng.choice(sorted(CODECS))
        large = sum(len(value or b"") for value, _, _ in rows) > _LARGEST_BATCH
        if self._rng.random() < 0.5 or large:
            return fetch_of(rows, first=first, partition=self.partition)
        half = self._rng.randint(0, len(rows))
        parts = [(rows[:half], first), (rows[half:], first + half)]
        batches = [batch_of([(None, value, headers) for value, headers, _ in part], base=base, codec=name,
                            appended_ms=rows[0][2]) for part, base in parts if part]  # fmt: skip
        found = BatchWalk(b"".join(batches), TOPIC_ID, self.partition, first).next_fetch(1 << 30)
        assert found is not None and len(found) == len(rows)
        return found

    def _book(self, block: Block) -> None:
        count_once(block, self.chunk, self.decoders.catalog(block.after.definitions), self.judge)
        for flush in fold(block, self.chunk, self.decoders, flush_s=1e9):
            self._write(flush)
        if self._forgets.random() < 0.05:  # a worker forgets series when a table was cleared; here at any time
            self.decoders.renumber(self.chunk.here.definitions, [self.chunk.table])

    def _write(self, flush: Flush) -> None:
        """Take a flush as ClickHouse would, and compare its totals."""
        chunk = self.chunk
        self._take(chunk)
        rows, slots = chunk.table.take_changes()
        place = chunk.number, chunk.here.booking, chunk.here.definitions
        expected = self.reference.usage.pop(place, {})
        found = {}
        columns = (rows.count, rows.sum, rows.min, rows.max, rows.latest_us, rows.by_high, rows.by_low, rows.latest)
        for key, *row in zip(rows.keys.tolist(), *(column.tolist() for column in columns), strict=True):
            series = flush.catalog.series[key >> 32]
            name = flush.catalog.meters[series.meter].meter
            count, total, least, most, time_us, high, low, latest = row
            found[name, series.subject, series.dimensions, series.item, key & 0xFFFFFFFF] = (
                count, total, least, most, (time_us, (high, low)), latest,
            )  # fmt: skip
        wanted = {key: tuple(row) for key, row in expected.items()}
        _same(f"usage of chunk, booking, definitions {place}", found, wanted)
        for ids in chunk.accepted.unwritten():
            for high, low, *rest in zip(*(column.tolist() for column in ids), strict=True):
                self.store.rows.setdefault((high, low), []).append(Accepted(*rest))
        chunk.accepted.acknowledge(len(chunk.accepted.unwritten()))
        chunk.table.acknowledge(slots)
        chunk.acknowledged = chunk.here
        if chunk.here.offset == chunk.end:
            self._close(chunk)

    def _close(self, chunk: OpenChunk) -> None:
        """Compare what became of a chunk's events, and forget old ids as the reference does."""
        counts = chunk.here.counts
        _same(f"counts of chunk {chunk.number}", counts._asdict(), self._expected_counts(chunk.number))
        assert counts.received == sum(counts[1:6]), counts
        self.fates.update(counts._asdict())
        self.reference.counts.pop(chunk.number, None)
        oldest = (chunk.number + 1 - KEPT_CHUNKS) * chunk.size
        self.decoders.let_go(chunk.here.definitions)
        kept = ((key, [row for row in rows if row.offset >= oldest]) for key, rows in self.store.rows.items())
        self.store.rows = {key: rows for key, rows in kept if rows}

    def _expected_counts(self, number: int) -> dict[str, int]:
        counts = self.reference.counts[number]
        return {fate: counts[fate] for fate in _FATES}

    def _take(self, chunk: OpenChunk) -> None:
        self._dead += chunk.dead
        self._conflicts += chunk.conflicts
        self._forwards += chunk.forwards
        assert not chunk.corrections
        for done in (chunk.dead, chunk.conflicts, chunk.forwards, chunk.raw):
            done.clear()

    def _compare(self) -> list[tuple[int, Record]]:
        """Compare what a stretch left behind, letter by letter."""
        self._take(self.chunk)
        reference, chunk = self.reference, self.chunk
        letters = sorted(reference.letters)
        found = sorted(self._dead, key=lambda letter: (letter.offset, letter.index))
        _same("places of dead letters", [(each.offset, each.index, each.reason) for each in found],
              [(each.offset, each.index, each.reason) for each in letters])  # fmt: skip
        for told, letter in zip(found, letters, strict=True):
            place = f"dead letter {letter.offset}/{letter.index}"
            _same(f"{place}: detail", [told.detail], [told.detail if letter.detail is None else letter.detail])
            _same(f"{place}: body", [told.body], [told.body if letter.body is None else letter.body])
            assert told.detail, place
            self.reasons[letter.reason] += 1
        conflicts = [(each.offset, each.index, each.first_offset, each.first_index) for each in self._conflicts]
        _same("conflicts", sorted(conflicts), sorted(reference.conflicts))
        forwards = sorted((each.partition, each.value) for each in self._forwards)
        _same("forwards", forwards, sorted(reference.forwards))
        if chunk.here.offset > chunk.start:
            counts = self._expected_counts(chunk.number)
            _same(f"counts of open chunk {chunk.number}", chunk.here.counts._asdict(), counts)
        going = [(each.partition, Record(each.value, tuple(each.headers))) for each in self._forwards]
        for done in (reference.letters, reference.conflicts, reference.forwards):
            done.clear()  # type: ignore[attr-defined]
        self._dead, self._conflicts, self._forwards = [], [], []
        return going


def _same(what: str, found: Any, expected: Any) -> None:
    if found == expected:
        return
    if isinstance(found, dict):
        keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        differ = [(key, found.get(key), expected.get(key)) for key in keys[:5]]
    else:
        differ = [pair for pair in zip([*found, None], [*expected, None], strict=False) if pair[0] != pair[1]][:5]
    raise AssertionError(f"{what}: the pipeline, then the reference: {differ}"[:3000])
