"""Series come and go while a worker lives on: those that are gone are forgotten, and no total changes by it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import pytest

from collectors.arrow import Reading, encode_readings
from pipeline import catalog as catalogs
from pipeline import json_events
from pipeline.aggregate import EVERYTHING, Readings, Table, encode_keys
from pipeline.batches import Fetch
from pipeline.book import DAY_MS, OPEN
from pipeline.catalog import Catalog
from pipeline.dedupe import Judge
from pipeline.id_filter import IdFilter
from pipeline.json_events import JsonDecoder
from pipeline.lines import Lines
from pipeline.runtime import Database, JobConfig, Runtime
from pipeline.write import Flush
from tallyman.event import ARROW, Series, home_key
from tallyman.kafka import partition_of
from tallyman.meter import Definitions, Meter
from tests.fetches import NOON_MS, TOPIC_ID, fetch_of
from tests.unit.pipeline.events import NDJSON, NOON_US, StoredHere, body, new_chunk, new_decoders, numbered

KEPT, PODS, RECORDS = 60, 20, 4  # series; pods in a record; records in a chunk
CPU = Meter(meter="pod.cpu", event_type="pod", aggregation="sum", value="cpu", scale=0, dimensions={"pod": "pod"})
MEMORY = Meter(meter="pod.memory", event_type="pod", aggregation="max", value="memory", scale=0,
               dimensions={"pod": "pod"})  # fmt: skip
IMAGES = Meter(meter="pod.images", event_type="pod", aggregation="unique_count", value="image",
               dimensions={"pod": "pod"})  # fmt: skip
CONFIG = JobConfig(
    brokers=(), topic="usage", topic_id=TOPIC_ID, partitions=1, assigned=(0,), chunk_size=RECORDS, flush_s=0,
    progress_topic="progress", control_url="",
    database=Database(host="", port=0, user="", password="", database=""),
)  # fmt: skip


class Worker(Runtime):
    """The stages, with several partitions open; what they write goes into a dictionary, where rows replace rows."""

    def __init__(self, partitions: int, *meters: Meter) -> None:
        judge = Judge(StoredHere(), IdFilter(1 << 16))
        judge.filter.load(judge.ids, TOPIC_ID, dict.fromkeys(range(partitions), 0))
        nothing: Any = None
        decoders = new_decoders(Definitions(number=1, meters=meters), partitions=partitions)
        super().__init__(CONFIG, nothing, judge, decoders, nothing)
        self.partitions = partitions
        for partition in range(partitions):
            OPEN[TOPIC_ID, partition] = new_chunk(size=RECORDS, partition=partition)
        self.rows: dict[tuple[Any, ...], tuple[int, int]] = {}
        self.most = 0

    @property
    def catalog(self) -> Catalog:
        return self.decoders.catalog(0)

    def go(self, fetch: Fetch) -> None:
        for block in self.decode(fetch):
            for flush in self.sum(self.count(block)):
                self.take(flush)
            self.most = max(self.most, self.catalog.series.lasting)

    def take(self, flush: Flush) -> None:
        for chunk, catalog in [(flush.chunk, flush.catalog), *flush.others]:
            rows, slots = chunk.table.take_changes()
            place = chunk.partition, chunk.here.booking, chunk.number
            for key, *values in zip(*(column.tolist() for column in (rows.keys, rows.sum, rows.max)), strict=True):
                series = catalog.series[key >> 32]
                name = catalog.meters[series.meter].meter, series.dimensions, series.item, key & 0xFFFFFFFF
                self.rows[(*place, *name)] = (values[0], values[1])
            chunk.accepted.acknowledge(len(chunk.accepted.unwritten()))
            chunk.table.acknowledge(slots)
            chunk.voices.acknowledge()
            chunk.acknowledged = chunk.here

    def send(self, partition: int, pods: list[str], *, at_ms: int = NOON_MS, image: str = "nginx") -> None:
        """Append a record with an event of each pod."""
        first = OPEN[TOPIC_ID, partition].here.offset
        lines = b"\n".join(
            body(f"{first}/{pod}", type="pod", source=sender_of(partition, self.partitions, of_event=True),
                 data={"pod": pod, "cpu": str(first + 1), "memory": str(first % 7), "image": image})
            for pod in pods
        )  # fmt: skip
        self.go(fetch_of([(lines, NDJSON, at_ms)], first=first, partition=partition))

    def total(self, meter: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for (_, _, _, name, pod, *_), (total, _) in self.rows.items():
            found[pod] += total if name == meter else 0
        return +found


@cache
def sender_of(partition: int, partitions: int, *, of_event: bool) -> str:
    """Return a sender whose events are at home in a partition."""
    names = (f"node-{number}" for number in count())
    keys = ((name, home_key("Zoë Åström", name) if of_event else name.encode()) for name in names)
    return next(name for name, key in keys if partition_of(key, partitions) == partition)


@pytest.fixture(autouse=True)
def few_are_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(catalogs, "SERIES_KEPT", KEPT)
    OPEN.clear()
    yield
    OPEN.clear()


@pytest.mark.parametrize("seed", range(6))
def test_pods_that_come_and_go_take_no_more_room_with_time_and_count_exactly(seed: int) -> None:
    """Each pod lives for a while, in one partition or in several; chunks end at different times."""
    rng = random.Random(seed)
    partitions = rng.randint(1, 3)
    worker, sent, born = Worker(partitions, CPU, MEMORY, IMAGES), Counter[str](), 0
    images: Counter[str] = Counter()
    alive: list[str] = []
    for step in range(400):
        born += 5
        alive = [*alive, *(f"web-{number}" for number in range(born - 5, born))][-2 * PODS :]
        pods = rng.sample(alive, min(PODS, len(alive)))
        partition = rng.choice((0, rng.randrange(partitions)))
        offset = OPEN[TOPIC_ID, partition].here.offset
        worker.send(partition, pods, at_ms=NOON_MS + step * 1000 + (DAY_MS if step > 250 else 0), image=f"i{step % 3}")
        sent.update({f'{{"pod":"{pod}"}}': offset + 1 for pod in pods})
        images.update(f'{{"pod":"{pod}"}}' for pod in pods)
    for chunk in list(OPEN.values()):
        worker.take(Flush(chunk, worker.catalog))
    assert worker.total("pod.cpu") == sent
    found: Counter[str] = Counter()
    counted = worker.catalog.meters.index(IMAGES)
    assert counted == 2
    for (_, _, _, name, pod, *_), _ in worker.rows.items():
        found[pod] += name == "pod.images"
    assert set(+found) == set(images)
    assert born == 2000 and worker.most < 1500, "of 6000 series"


def test_series_that_live_are_never_learned_again() -> None:
    """However many there are, and however seldom a partition's chunk ends."""
    worker = Worker(3, CPU, MEMORY, IMAGES)
    live = [[f"db-{partition}-{number}" for number in range(PODS)] for partition in range(3)]
    before = worker.catalog
    for step in range(60):
        for partition in range(3):
            if partition < 2 or step % 10 == 0:
                worker.send(partition, live[partition], at_ms=NOON_MS + step * 1000)
    assert worker.catalog is before
    assert worker.catalog.series.lasting == 3 * 3 * PODS > KEPT
    assert OPEN[TOPIC_ID, 2].number == 1


def test_a_few_that_are_gone_do_not_cost_the_others_their_numbers() -> None:
    worker = Worker(1, CPU)
    live, before = [f"db-{number}" for number in range(5 * PODS)], worker.catalog
    for step in range(4 * RECORDS):
        worker.send(0, [*live, f"job-{step}", f"job-{step}b", f"job-{step}c"])
    for _ in range(10 * RECORDS):
        worker.send(0, live)
    assert worker.catalog is before


def test_columns_of_numbered_batches_follow() -> None:
    """Their series tables are known by the old numbers until then."""
    cpu = Meter(meter="cpu", event_type="cpu", aggregation="sum", value="value", scale=0, dimensions={"pod": "pod"})
    worker, expected = Worker(2, cpu), Counter[str]()
    stays = [Series(type="cpu", subject="acme", scale=0, data={"pod": f"db-{number}"}) for number in range(3)]
    for step in range(40 * RECORDS):
        comes = [Series(type="cpu", subject="acme", scale=0, data={"pod": f"job-{step}-{i}"}) for i in range(PODS)]
        readings = [Reading(each, NOON_US, NOON_US, step + 1) for each in [*stays, *(comes if step % 3 else [])]]
        expected.update({f'{{"pod":"{each.series.data["pod"]}"}}': step + 1 for each in readings})
        first = OPEN[TOPIC_ID, step % 2].here.offset
        headers = numbered(step + 1, collector=sender_of(step % 2, 2, of_event=False), content=ARROW)
        worker.go(fetch_of([(encode_readings(readings), headers, NOON_MS)], first=first, partition=step % 2))
    for chunk in list(OPEN.values()):
        worker.take(Flush(chunk, worker.catalog))
    found = worker.total("cpu")
    assert found == expected and worker.most < 600


def test_renumbering_keeps_every_slot() -> None:
    rng = np.random.default_rng(7)
    for needs in (catalogs.Needs(), EVERYTHING):
        table, plain = Table(needs), Table(needs)
        codes = np.sort(rng.choice(10_000, 300, replace=False))
        numbers = np.arange(300)
        for step in range(20):
            rows = rng.integers(0, 300, 500)
            minutes, values = rng.integers(0, 3, 500), rng.integers(-9, 9, 500)
            ids = rng.integers(0, 1 << 40, (2, 500)).astype(np.uint64)
            for each, names in ((table, codes), (plain, numbers)):
                keys = encode_keys(names[rows].astype(np.int32), minutes)
                each.add(Readings(keys, values, minutes + step, ids[0], ids[1]))
            if step == 9:
                kept = np.unique(table.codes())
                table.renumber(kept)
                assert len(kept) == 300
                codes = numbers
                slots = table.take_changes()[1]
                assert plain.take_changes()[1].tolist() == slots.tolist()
                table.acknowledge(slots)
                plain.acknowledge(slots)
        for left, right in zip(*(_columns(each) for each in (table, plain)), strict=True):
            assert left == right


def _columns(table: Table) -> list[list[Any]]:
    rows, slots = table.take_changes()
    return [slots.tolist(), *(getattr(rows, name).tolist() for name in type(rows).__slots__)]


def test_what_a_filter_leaves_out_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_events, "_LEFT_OUT_KEPT", 100)
    meter = Meter(meter="vm", event_type="vm", aggregation="count", dimensions={"id": "id"}, where={"zone": ("a",)})
    catalog = Catalog(Definitions(number=1, meters=(meter,)))
    decoder = JsonDecoder(catalog, 1, few=1 << 30, kernel=None)
    for step in range(30):
        bodies = [body(n, type="vm", data={"id": f"{step}-{n}", "zone": "b"}) for n in range(50)]
        zeros = [0] * len(bodies)
        _, dead, ignored = decoder.decode(Lines(bodies, zeros, zeros, zeros, zeros, [False] * len(bodies)), "", 0)
        assert (dead, ignored) == ([], 50)
    (plan,) = decoder._plans["vm"]
    assert len(plan.cache) <= 200
