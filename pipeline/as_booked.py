"""Count by other definitions what was accepted when it was booked: the ids at their positions say what that was.

Nothing is judged anew (rule `judged_as_booked` of `tests/model/rebuild_model.py`): a copy stays a copy, and what was
too late, or left out by every filter, stays out. What was accepted and cannot be counted now is refused, never dropped;
and so is a chunk of which `ids` does not give as many accepted events as were booked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from clickhouse_driver import Client

from pipeline.book import Counts, DeadLetter, OpenChunk
from pipeline.booked import BookedChunk
from pipeline.catalog import Catalog
from pipeline.columns import Block, Events
from pipeline.dedupe import Judge
from pipeline.replay import Wanted
from tallyman.books import load_definitions
from tallyman.errors import EventError, RebuildError
from tallyman.event import CORRECTION, decode_event
from tallyman.meter import Definitions
from tallyman.repairs import NOT_JUDGED_ANEW, NOT_UNDONE

Keys = npt.NDArray[np.int64]  # offset behind the block's first << 32 | index in the record
_NUMBER_REUSED = "number_reused"  # a record that became one dead letter, whatever it held


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """By which definitions a job counts, for which meters, and up to which booking."""

    definitions: int
    meters: tuple[str, ...]
    last: int


def definitions_of(engine: sa.Engine, rebuilding: Rebuilding) -> Definitions:
    """Return the definitions of some meters alone: the others have no say in what an event counts for.

    What was accepted for another meter is ignored; only a type that no definitions ever knew is a dead letter still.
    """
    every = [load_definitions(engine, number) for number in range(1, rebuilding.definitions + 1)]
    known = {
        *(meter.event_type for each in every for meter in each.meters),
        *(name for each in every for name in each.ignore),
    }
    meters = tuple(meter for meter in every[-1].meters if meter.meter in rebuilding.meters)
    return replace(every[-1], meters=meters, ignore=tuple(sorted(known)))


def note_accepted(client: Client, name: str, chunks: Iterable[BookedChunk]) -> None:
    """Make the job's table of accepted positions: `ids` is in the order of identities, so all is read once a topic."""
    client.execute(
        f"CREATE TABLE {name}_accepted (topic_id String, partition UInt32, offset UInt64, event_index UInt32)"
        " ENGINE = MergeTree ORDER BY (topic_id, partition, offset, event_index)"
    )
    spans: dict[str, dict[int, tuple[int, int]]] = {}
    for chunk in chunks:
        of_topic = spans.setdefault(chunk.topic_id, {})
        first, behind = of_topic.get(chunk.partition, (chunk.start.offset, 0))
        of_topic[chunk.partition] = min(first, chunk.start.offset), max(behind, chunk.reached.offset)
    for topic_id, of_topic in spans.items():
        every = [of_topic.get(partition, (0, 0)) for partition in range(max(of_topic) + 1)]
        client.execute(
            f"INSERT INTO {name}_accepted SELECT topic_id, partition, offset, event_index FROM ids"  # noqa: S608
            " WHERE topic_id = %(topic)s AND partition < %(partitions)s AND offset >= %(first)s[partition + 1]"
            f" AND offset < %(behind)s[partition + 1]{NOT_UNDONE}",
            {"topic": topic_id, "partitions": len(every), "first": [first for first, _ in every],
             "behind": [behind for _, behind in every]},
        )  # fmt: skip


def count_positions(client: Client, name: str, topic_id: str, partition: int, first: int, behind: int) -> int:
    """Return how many positions of a stretch were accepted; a merge of `ids` may not have seen all copies of a row."""
    rows = client.execute(
        f"SELECT uniqExact(offset, event_index) FROM {name}_accepted WHERE topic_id = %(topic)s"  # noqa: S608
        " AND partition = %(partition)s AND offset >= %(first)s AND offset < %(behind)s",
        {"topic": topic_id, "partition": partition, "first": first, "behind": behind},
    )
    return int(rows[0][0])


class AsBooked:
    """Judges a block as it was judged: see `pipeline.replay.Count`.

    Args:
        name: Of the job's tables.
        rebuilding: None: by the definitions of then, only to count how many events `ids` says were accepted.

    Attributes:
        numbered: Whether numbered batches came since it was set to False: each has one id for all its events.
    """

    def __init__(self, client: Client, name: str, rebuilding: Rebuilding | None, wanted: Wanted) -> None:
        self._client, self._name, self._rebuilding, self._wanted = client, name, rebuilding, wanted
        self.numbered = False

    def __call__(self, block: Block, chunk: OpenChunk, catalog: Catalog, judge: Judge) -> Block:
        """Let through what was accepted in a block.

        Raises:
            RebuildError: Something was accepted that these definitions cannot count.
        """
        self.numbered |= bool(block.heard)
        accepted = self._positions(block, f"{self._name}_accepted")
        self._refuse((letter for letter in block.dead if _key(block, letter) in accepted), block)
        received, aggregated = block.received, 0
        for part in block.parts:
            if part.claims is not None:
                found, fewer = self._numbered(part, block, accepted)
                received -= fewer
            else:
                found = np.isin(_keys(block, part.offsets, part.indexes), accepted)
            if self._rebuilding is not None:
                block.readings.append(part.readings(found))
            aggregated += int(np.count_nonzero(found))
        for correction in block.corrections:
            if correction.offset - block.before.offset << 32 in accepted:
                block.readings += correction.readings if self._rebuilding is not None else ()
                aggregated += 1
        block.counts = Counts(received=received, aggregated=aggregated)
        block.parts, block.corrections, block.dead, block.forwards = [], [], [], []
        return block

    def _numbered(self, part: Events, block: Block, accepted: Keys) -> tuple[npt.NDArray[np.bool_], int]:
        """Return which rows of numbered batches were accepted, and how many events fewer were received.

        A batch is accepted as a whole, but for the rows that were dead then.
        """
        claims = part.claims
        assert claims is not None
        fresh = np.isin(_keys(block, claims.offsets, claims.indexes), accepted)
        dead = self._positions(block, "dead_letters", NOT_JUDGED_ANEW)
        letters = [letter for letter in part.dead if fresh[claims.offsets == letter.offset].any()]
        self._refuse((letter for letter in letters if _key(block, letter) not in dead), block)
        rows = fresh[part.batch] & ~np.isin(_keys(block, part.offsets, part.indexes), dead)
        fewer = 0
        reused = self._reused(block) if not fresh.all() else set()
        for place, offset in enumerate(claims.offsets.tolist()):
            if offset in reused:
                events = int(np.count_nonzero(part.batch == place))
                fewer += events + sum(1 for letter in part.dead if letter.offset == offset) - 1
        return rows, fewer

    def _positions(self, block: Block, table: str, condition: str = "") -> Keys:
        """Return the positions of a block that are in a table."""
        rows = self._client.execute(
            f"SELECT offset, event_index FROM {table} WHERE topic_id = %(topic)s"  # noqa: S608 - our own words
            f" AND partition = %(partition)s AND offset >= %(first)s AND offset < %(behind)s{condition}",
            _range(block),
            columnar=True,
        )
        if not rows:
            return np.zeros(0, np.int64)
        return _keys(block, np.array(rows[0], np.int64), np.array(rows[1], np.int64))

    def _reused(self, block: Block) -> set[int]:
        rows = self._client.execute(
            "SELECT offset FROM dead_letters WHERE topic_id = %(topic)s AND partition = %(partition)s"  # noqa: S608
            f" AND offset >= %(first)s AND offset < %(behind)s AND reason = %(reason)s{NOT_JUDGED_ANEW}",
            _range(block) | {"reason": _NUMBER_REUSED},
        )
        return {int(offset) for (offset,) in rows}

    def _refuse(self, letters: Iterable[DeadLetter], block: Block) -> None:
        """Stop at the first event of the rebuild that was accepted and cannot be counted."""
        if self._rebuilding is None or block.after.booking > self._rebuilding.last:
            return
        for letter in letters:
            minutes = list(_minutes(letter.body))
            if minutes and not any(self._wanted.first <= minute < self._wanted.end for minute in minutes):
                continue
            raise RebuildError(
                f"partition {block.partition}, offset {letter.offset}, event {letter.index}: it was accepted, "
                f"but definitions {self._rebuilding.definitions} cannot count it: {letter.reason}, {letter.detail}. "
                "Nothing was changed; mend the definitions, or leave its minute out of the range"
            )


def _range(block: Block) -> dict[str, object]:
    return {"topic": block.topic_id, "partition": block.partition, "first": block.before.offset,
            "behind": block.after.offset}  # fmt: skip


def _keys(block: Block, offsets: npt.NDArray[np.int64], indexes: npt.NDArray[np.int64]) -> Keys:
    keys: Keys = (offsets - block.before.offset << 32) | indexes
    return keys


def _key(block: Block, letter: DeadLetter) -> int:
    return (letter.offset - block.before.offset << 32) | letter.index


def _minutes(body: bytes) -> Iterator[int]:
    """Yield the minutes of an event, or of the two that a correction holds; nothing if it is not to be read."""
    texts: Sequence[bytes] = (body,)
    try:
        event = decode_event(body)
        if event.type == CORRECTION:
            texts = [str(event.data.get(name) or "").encode() for name in ("was", "now")]
        for text in texts:
            if text:
                yield decode_event(text).time_us // 60_000_000
    except EventError:
        return
