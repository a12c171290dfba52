"""What the books say of each chunk of a partition: where it begins, how far it is booked, and what became of its
events."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby

from clickhouse_driver import Client, errors

from pipeline.book import Counts, Place
from pipeline.frontier import PLACES, place_of, read_begin, repaired_place
from pipeline.replay import INDEX_FACTOR, OFFSET_FACTOR
from tallyman.books import Topic
from tallyman.errors import ConfigError
from tallyman.repairs import NOT_UNDONE, read_repairs
from tallyman.topics import ENDED

_TTL = re.compile(r"\bTTL (.+?)(?: SETTINGS |$)")


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


def read_chunks(
    client: Client, topic: Topic, first_booking: int = 0, *, begun: bool = False
) -> Iterator[BookedChunk]:
    """Yield the unbroken run of chunks of each partition of a topic, from its newest repair on; the last one is open,
    or that in which the topic ends.

    Args:
        first_booking: Closed chunks that hold nothing from there on may be left out.
        begun: Yield what comes behind a closed chunk, too: progress says nothing of it yet, `reached` is its start.
    """
    begin = read_begin(client, topic.topic_id)
    for partition in range(topic.partitions):
        repairs = read_repairs(client, topic.topic_id, partition)
        # All before the newest repair is closed by it: what it was counted from is gone.
        number, start = (repairs[-1].chunk, repaired_place(repairs[-1])) if repairs else (0, begin)
        if first_booking > start.booking:
            number, start = _skip(client, topic.topic_id, partition, number, start, first_booking)
        rows = client.execute(
            f"SELECT chunk, {PLACES} FROM progress FINAL"  # noqa: S608
            " WHERE topic_id = %(topic)s AND partition = %(partition)s AND generation = 0 AND chunk >= %(first)s"
            " ORDER BY chunk",
            {"topic": topic.topic_id, "partition": partition, "first": number},
        )
        goes_on = True
        for chunk, *columns in rows:
            reached, turned = place_of(columns[:6]), place_of(columns[6:])
            if reached.booking < start.booking:
                continue
            if chunk != number:
                break
            number += 1
            ends = reached.booking == ENDED
            last_booking = turned.booking if ends else reached.booking
            booked = BookedChunk(topic.topic_id, partition, topic.chunk_size, chunk, start, reached, last_booking)
            yield booked
            goes_on = booked.closed and not ends
            if not goes_on:
                break
            start = replace(booked.reached, counts=Counts())
        if begun and goes_on:
            yield BookedChunk(topic.topic_id, partition, topic.chunk_size, number, start, start, start.booking)


def _skip(
    client: Client, topic_id: str, partition: int, number: int, start: Place, first_booking: int
) -> tuple[int, Place]:
    """Return the newest chunk that ends before a booking, and its start; where nothing can be skipped, what was given.

    Bookings only grow along chunks, so that all before it end before, too.
    """
    asked = {"topic": topic_id, "partition": partition, "number": number, "from": start.booking, "to": first_booking}
    mine = "topic_id = %(topic)s AND partition = %(partition)s AND generation = 0"
    rows = client.execute(
        f"SELECT chunk, {PLACES} FROM progress FINAL WHERE {mine} AND chunk ="  # noqa: S608 - our own words
        f" (SELECT max(chunk) FROM progress FINAL WHERE {mine} AND chunk > %(number)s AND reached_booking >= %(from)s"
        " AND reached_booking < %(to)s) - 1 AND chunk >= %(number)s AND reached_booking >= %(from)s",
        asked,
    )
    if not rows:
        return number, start
    chunk, *columns = rows[0]
    return int(chunk) + 1, replace(place_of(columns[:6]), counts=Counts())


def read_ids(client: Client, chunks: Sequence[BookedChunk]) -> dict[tuple[str, int, int], tuple[int, int]]:
    """Return how many identities the books hold of each chunk, by (topic id, partition, chunk), and their mark.

    Args:
        chunks: Ordered by topic.
    """
    ids: dict[tuple[str, int, int], tuple[int, int]] = {}
    for topic_id, group in groupby(chunks, key=lambda chunk: chunk.topic_id):
        mine = list(group)
        size, partitions = mine[0].size, max(chunk.partition for chunk in mine) + 1
        first, behind = [2**63] * partitions, [0] * partitions
        for chunk in mine:
            first[chunk.partition] = min(first[chunk.partition], chunk.start.offset)
            behind[chunk.partition] = max(behind[chunk.partition], chunk.reached.offset)
        rows = client.execute(
            "SELECT partition, intDiv(offset, %(size)s) AS chunk, count(), groupBitXor(identity_high"  # noqa: S608
            " + identity_low * 3 + digest + toUInt64(remembered_us)"
            " + offset * %(offset_factor)s + event_index * %(index_factor)s)"
            " FROM ids FINAL WHERE topic_id = %(topic)s AND partition < %(partitions)s"
            " AND offset >= %(first)s[partition + 1]"
            f" AND offset < %(behind)s[partition + 1]{NOT_UNDONE} GROUP BY partition, chunk",
            {"size": size, "topic": topic_id, "first": first, "behind": behind, "partitions": partitions,
             "offset_factor": OFFSET_FACTOR, "index_factor": INDEX_FACTOR},
        )  # fmt: skip
        ids |= {(topic_id, partition, chunk): (int(count), int(mark)) for partition, chunk, count, mark in rows}
    return ids


def expired_to(client: Client, clocks_ms: Iterable[int]) -> int:
    """Return the newest of some log clocks at which ids were accepted that a TTL of the operator may have taken since;
    -1 if none. Ids are remembered from the log clock on, or from the event's time if that is later.
    """
    clocks = sorted(set(clocks_ms))
    ttl = _ttl_of_ids(client)
    if not ttl:
        return -1
    kept_from = bisect_left(clocks, True, key=lambda clock_ms: _takes(client, ttl, clock_ms) is False)
    return clocks[kept_from - 1] if kept_from else -1


def refuse_short_memory(client: Client, remember: timedelta, now_ms: int) -> None:
    """Refuse a TTL of the operator that takes ids of which copies may still be accepted: those would count again.

    One that looks at more than when an id is remembered from cannot be judged, and is the operator's.

    Args:
        remember: How long an id has to answer for its copies.

    Raises:
        ConfigError: The sentence says how long it has to be.
    """
    ttl = _ttl_of_ids(client)
    if ttl and _takes(client, ttl, now_ms - int(remember.total_seconds() * 1000)):
        raise ConfigError(
            f"the TTL on ids ({ttl}) takes identities before their copies are too old to count, {remember} after they "
            "were accepted (the largest oldest_accepted, and usage.furthest_ahead): copies would count again; ALTER "
            'TABLE ids MODIFY TTL to a longer one, see "accepted identities" in docs/operations.md'
        )


def _ttl_of_ids(client: Client) -> str:
    """Return the expression of the TTL on `ids`, "" if there is none, or no table yet."""
    rows = client.execute("SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = 'ids'")
    ttl = _TTL.search(rows[0][0]) if rows else None
    return ttl[1] if ttl else ""


def _takes(client: Client, ttl: str, clock_ms: int) -> bool | None:
    """Whether a TTL takes by now what is remembered from a log clock on; None where more would have to be known."""
    remembered = f"SELECT toInt64({clock_ms * 1000}) AS remembered_us"
    try:
        return bool(client.execute(f"SELECT toDateTime({ttl}) <= now() FROM ({remembered})")[0][0])  # noqa: S608
    except errors.ServerException:  # it looks at other columns, or is not only one
        return None
