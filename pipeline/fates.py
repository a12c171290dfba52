"""What became of the events of a job whose workers show no metrics: counted from the books, by the service beside it.

Each event counts once, however often a worker was killed and read again: progress says what a chunk came to, and what
is told is by how much that grew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clickhouse_driver import Client

from pipeline.metrics import OUTCOMES
from tallyman.metrics import counter
from tallyman.repairs import NOT_JUDGED_ANEW

LOOK_FOR_FATES_S = 5.0
_DEAD = 1 + OUTCOMES.index("dead")  # of the counts in progress, which begin with what was received
_NOTHING = (0,) * (1 + len(OUTCOMES))
_NEWEST = (
    "SELECT partition, max(chunk) FROM progress WHERE topic_id = %(topic)s AND generation = 0 GROUP BY partition"
)
# The key begins with topic and partition: the least chunk rules out granules, each partition's own one the rest.
_BOOKED = (
    "SELECT partition, chunk, reached_offset, reached_counts FROM progress FINAL WHERE topic_id = %(topic)s"
    " AND generation = 0 AND chunk >= %(least)s"
    " AND chunk >= transform(partition, %(partitions)s, %(chunks)s, toUInt64(0)) ORDER BY partition, chunk"
)
_LETTERS = (
    "SELECT reason, count() FROM dead_letters FINAL WHERE topic_id = %(topic)s AND generation = 0"  # noqa: S608
    " AND partition IN %(partitions)s AND offset >= %(least)s"
    " AND offset >= transform(partition, %(partitions)s, %(begins)s, toUInt64(0))"
    f" AND offset < transform(partition, %(partitions)s, %(ends)s, toUInt64(0)){NOT_JUDGED_ANEW}"
    " GROUP BY reason"
)


@dataclass(slots=True)
class _Chunk:
    """The newest chunk of a partition, as far as it was told."""

    number: int = 0
    offset: int = 0
    counts: Sequence[int] = _NOTHING


class Fates:
    """Tells by how much the counts in the books of one topic grow.

    Args:
        partitions: How many the topic has.
    """

    def __init__(self, client: Client, topic_id: str, partitions: int) -> None:
        self._client, self._topic_id, self._partitions = client, topic_id, partitions
        self._told: dict[int, _Chunk] = {}

    def close(self) -> None:
        """Let go of the connection."""
        self._client.disconnect()

    def look(self) -> None:
        """Look once; the first look only remembers where the books stand.

        Raises:
            clickhouse_driver.errors.Error, OSError: ClickHouse does not answer; what happens meanwhile is told later.
        """
        try:
            if not self._told:
                self._told = self._begin()
            else:
                self._tell(self._grown(self._told))
        except BaseException:
            self._client.disconnect()
            raise

    def _begin(self) -> dict[int, _Chunk]:
        newest = dict(self._client.execute(_NEWEST, {"topic": self._topic_id}))
        told = {number: _Chunk(newest.get(number, 0)) for number in range(self._partitions)}
        return {number: chunks[-1] for number, chunks in self._read(told).items()}

    def _grown(self, told: Mapping[int, _Chunk]) -> dict[int, tuple[_Chunk, list[int]]]:
        """Return the newest chunk of each partition, and by how much the counts grew up to there."""
        grown = {}
        for partition, chunks in self._read(told).items():
            before, growth = told[partition], list(_NOTHING)
            for chunk in chunks:
                known = before.counts if chunk.number == before.number else _NOTHING
                for place, (now, then) in enumerate(zip(chunk.counts, known, strict=True)):
                    growth[place] += max(0, now - then)  # a repair may go on with less than was booked
            grown[partition] = chunks[-1], growth
        return grown

    def _tell(self, grown: Mapping[int, tuple[_Chunk, list[int]]]) -> None:
        # Asked before anything is told, so that a look that fails tells nothing twice.
        letters = self._letters({number: chunk.offset for number, (chunk, growth) in grown.items() if growth[_DEAD]})
        for place, outcome in enumerate(OUTCOMES, 1):
            if number := sum(growth[place] for _, growth in grown.values()):
                counter("tallyman_pipeline_events_total").labels(outcome).inc(number)
        for reason, number in letters:
            counter("tallyman_pipeline_dead_letters_total").labels(reason).inc(number)
        self._told = {partition: chunk for partition, (chunk, _) in grown.items()}

    def _read(self, told: Mapping[int, _Chunk]) -> dict[int, list[_Chunk]]:
        """Return what is booked of each partition's chunks from the told one on; that one if nothing is."""
        rows = self._client.execute(
            _BOOKED,
            {"topic": self._topic_id, "least": min(chunk.number for chunk in told.values()), "partitions": [*told],
             "chunks": [chunk.number for chunk in told.values()]},
        )  # fmt: skip
        found: dict[int, list[_Chunk]] = {}
        for partition, number, offset, counts in rows:
            if partition in told:
                found.setdefault(partition, []).append(_Chunk(number, offset, counts))
        return {partition: found.get(partition, [chunk]) for partition, chunk in told.items()}

    def _letters(self, ends: Mapping[int, int]) -> list[tuple[str, int]]:
        """Return how many dead letters of each reason lie between what was told and some places."""
        if not ends:
            return []
        begins = [self._told[partition].offset for partition in ends]
        rows: list[tuple[str, int]] = self._client.execute(
            _LETTERS,
            {"topic": self._topic_id, "partitions": [*ends], "least": min(begins), "begins": begins,
             "ends": [*ends.values()]},
        )  # fmt: skip
        return rows
