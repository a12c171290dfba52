"""Find the offsets from which one row of usage comes, by counting its chunks once more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from clickhouse_driver import Client

from pipeline import recount
from pipeline.book import OpenChunk
from pipeline.catalog import Catalog
from pipeline.columns import Block
from pipeline.compare import Difference
from pipeline.recount import RecountConfig, Task
from pipeline.replay import Wanted


@dataclass(frozen=True, slots=True)
class Contribution:
    """The offsets in [first, last] of a partition that count for a row; none where only its booking lies there."""

    topic: str
    partition: int
    first: int
    last: int
    offsets: tuple[int, ...]


@dataclass(slots=True)
class _Trace:
    """Notes the offsets whose readings fall under one key."""

    row: Difference
    offsets: set[int] = field(default_factory=set)

    def __call__(self, block: Block, chunk: OpenChunk, catalog: Catalog) -> None:
        if (block.after.booking, block.after.definitions) != (self.row.booking, self.row.definitions):
            return
        minute = int(self.row.minute.timestamp()) // 60
        for readings in block.readings:
            for row in ((readings.keys & 0xFFFFFFFF) == minute).nonzero()[0].tolist():
                series = catalog.series[int(readings.keys[row]) >> 32]
                named = catalog.meters[series.meter].meter, series.subject, series.dimensions, series.item
                if named == (self.row.meter, self.row.subject, self.row.dimensions, self.row.item):
                    self._note(chunk, block, (int(readings.by_high[row]), int(readings.by_low[row])))

    def _note(self, chunk: OpenChunk, block: Block, identity: tuple[int, int]) -> None:
        found = chunk.accepted.find([identity]).get(identity)
        if found is not None and block.before.offset <= found.offset < block.after.offset:
            self.offsets.add(found.offset)
        else:  # what is taken back or put right was accepted before
            self.offsets |= {each.offset for each in chunk.corrections if each.offset >= block.before.offset}


def trace(client: Client, config: RecountConfig, tasks: Sequence[Task], row: Difference) -> tuple[Contribution, ...]:
    """Return where a row comes from, nothing if no record counts for it.

    Args:
        config: Of the job that counted before: its table tells in which chunks to look.
    """
    chosen = _tasks_of(client, config, tasks, row)
    with recount.tables_of_a_job(config.database, client) as name:
        return tuple(_contributions(replace(config, name=name, wanted=Wanted(frozenset())), chosen, row))


def _contributions(config: RecountConfig, tasks: Sequence[Task], row: Difference) -> Iterator[Contribution]:
    process = recount.Process(config)
    names = {topic_id: name for topic_id, name, _ in config.topics}
    try:
        for task in tasks:
            notes = process.stages[task.topic_id].observe = _Trace(row)
            recount.recount(task, process.source(task.topic_id), process.stages[task.topic_id])
            yield Contribution(
                names[task.topic_id], task.partition, task.start.offset, task.stops[-1] - 1,
                tuple(sorted(notes.offsets))
            )  # fmt: skip
    finally:
        process.close()


def _tasks_of(client: Client, config: RecountConfig, tasks: Sequence[Task], row: Difference) -> list[Task]:
    rows = client.execute(
        f"SELECT DISTINCT topic_id, partition, chunk FROM {config.name} WHERE meter = %(meter)s"  # noqa: S608
        " AND subject = %(subject)s AND dimensions = %(dimensions)s AND minute = toDateTime(%(minute)s, 'UTC')"
        " AND booking = %(booking)s AND definitions = %(definitions)s AND item = %(item)s",
        {
            "meter": row.meter,
            "subject": row.subject,
            "dimensions": row.dimensions,
            "minute": int(row.minute.timestamp()),
            "booking": row.booking,
            "definitions": row.definitions,
            "item": row.item,
        },
    )
    known = {(topic_id, partition, chunk) for topic_id, partition, chunk in rows}
    return [task for task in tasks if (task.topic_id, task.partition, task.chunk) in known]
