"""What the books say of each chunk of a partition: where it begins, how far it is booked, and what became of its
events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from clickhouse_driver import Client

from pipeline.book import Counts, Place
from pipeline.frontier import PLACES, place_of, read_begin, repaired_place
from tallyman.books import Topic
from tallyman.repairs import read_repairs
from tallyman.topics import ENDED


@dataclass(frozen=True, slots=True)
class BookedChunk:
    """A chunk as it is booked; `reached` carries its counts.

    Attributes:
        last_booking: The last one that something of it may be booked in.
    """

    topic_id: str
    partition: int
    size: int
    chunk: int
    start: Place
    reached: Place
    last_booking: int

    @property
    def end(self) -> int:
        return (self.chunk + 1) * self.size

    @property
    def closed(self) -> bool:
        return self.reached.offset == self.end

    def holds(self, booking: int) -> bool:
        """Whether something of this chunk may be booked in a booking."""
        return self.start.booking <= booking <= self.last_booking


def read_chunks(client: Client, topic: Topic) -> Iterator[BookedChunk]:
    """Yield the unbroken run of chunks of each partition of a topic, from its newest repair on; the last one is open,
    or that in which the topic ends.
    """
    begin = read_begin(client, topic.topic_id)
    for partition in range(topic.partitions):
        repairs = read_repairs(client, topic.topic_id, partition)
        rows = client.execute(
            f"SELECT chunk, {PLACES} FROM progress FINAL"  # noqa: S608 - our own words
            " WHERE topic_id = %(topic)s AND partition = %(partition)s AND generation = 0 ORDER BY chunk",
            {"topic": topic.topic_id, "partition": partition},
        )
        # All before the newest repair is closed by it: what it was counted from is gone.
        number, start = (repairs[-1].chunk, repaired_place(repairs[-1])) if repairs else (0, begin)
        for chunk, *columns in rows:
            reached, turned = place_of(columns[:6]), place_of(columns[6:])
            if chunk < number or reached.booking < start.booking:
                continue
            if chunk != number:
                break
            number += 1
            ends = reached.booking == ENDED
            last_booking = turned.booking if ends else reached.booking
            booked = BookedChunk(topic.topic_id, partition, topic.chunk_size, chunk, start, reached, last_booking)
            yield booked
            if ends or not booked.closed:
                break
            start = replace(booked.reached, counts=Counts())
