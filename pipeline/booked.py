"""What the books say of each chunk of a partition: where it begins, how far it is booked, and what became of its
events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from clickhouse_driver import Client

from pipeline.book import Counts, Place
from pipeline.frontier import PLACES, place_of, repaired_place
from tallyman.books import Topic
from tallyman.repairs import read_repairs


@dataclass(frozen=True, slots=True)
class BookedChunk:
    """A chunk as it is booked; `reached` carries its counts."""

    topic_id: str
    partition: int
    size: int
    chunk: int
    start: Place
    reached: Place

    @property
    def end(self) -> int:
        return (self.chunk + 1) * self.size

    @property
    def closed(self) -> bool:
        return self.reached.offset == self.end

    def holds(self, booking: int) -> bool:
        """Whether something of this chunk may be booked in a booking."""
        return self.start.booking <= booking <= self.reached.booking


def read_chunks(client: Client, topic: Topic) -> Iterator[BookedChunk]:
    """Yield the unbroken run of chunks of each partition of a topic, from its newest repair on, the open one last."""
    for partition in range(topic.partitions):
        repairs = read_repairs(client, topic.topic_id, partition)
        rows = client.execute(
            f"SELECT chunk, {PLACES} FROM progress FINAL"  # noqa: S608 - our own words
            " WHERE topic_id = %(topic)s AND partition = %(partition)s AND generation = 0 ORDER BY chunk",
            {"topic": topic.topic_id, "partition": partition},
        )
        # All before the newest repair is closed by it: what it was counted from is gone.
        number, start = (repairs[-1].chunk, repaired_place(repairs[-1])) if repairs else (0, Place())
        for chunk, *columns in rows:
            if chunk < number or place_of(columns[:6]).booking < start.booking:
                continue
            if chunk != number:
                break
            number += 1
            booked = BookedChunk(topic.topic_id, partition, topic.chunk_size, chunk, start, place_of(columns[:6]))
            yield booked
            if not booked.closed:
                break
            start = replace(booked.reached, counts=Counts())
