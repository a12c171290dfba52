"""What the books say of each chunk of a partition: where it begins, how far it is booked, and what became of its
events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from clickhouse_driver import Client

from pipeline.book import Counts, Place
from pipeline.frontier import PLACES, place_of
from tallyman.books import Topic


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
    """Yield the unbroken run of chunks of each partition of a topic, the open one last."""
    for partition in range(topic.partitions):
        rows = client.execute(
            f"SELECT chunk, {PLACES} FROM progress FINAL"  # noqa: S608 - our own words
            " WHERE topic_id = %(topic)s AND partition = %(partition)s AND generation = 0 ORDER BY chunk",
            {"topic": topic.topic_id, "partition": partition},
        )
        start = Place()
        for number, (chunk, *columns) in enumerate(rows):
            if chunk != number:
                break
            booked = BookedChunk(topic.topic_id, partition, topic.chunk_size, chunk, start, place_of(columns[:6]))
            yield booked
            if not booked.closed:
                break
            start = replace(booked.reached, counts=Counts())
