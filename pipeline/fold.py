"""Fold blocks into the open chunk, and say when it must be flushed. The heart of `SumUsage`; pure but for the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

from pipeline.book import OPEN, OpenChunk
from pipeline.catalog import Catalog
from pipeline.columns import Block
from pipeline.decoders import Decoders
from pipeline.write import Flush

# ClickHouse cuts blocks at 1,048,449 rows, and a cut block is no longer one cut of the log. Far below it, since a flush
# holds its rows as Python objects, 250 bytes each, and one fetch more may come on top.
MAX_CHANGED_KEYS = 200_000
MAX_DEAD_LETTERS = 20_000  # kilobytes each, and one block more may come on top
_SHARE_BEHIND, _LONGEST_PAUSE_S = 3, 0.6  # of what the last flush took


def fold(block: Block, chunk: OpenChunk, decoders: Decoders, *, flush_s: float) -> Iterator[Flush]:
    """Add a judged block to its chunk, yielding flushes; each must be acknowledged before the next is asked for."""
    if not block.idle:
        if block.turn:
            if chunk.table.changed or chunk.voices.changed:
                yield Flush(chunk, decoders.catalog(chunk.here.definitions))
            _note_met(chunk, decoders.catalog(chunk.here.definitions))
            chunk.turn(block.begins)
        catalog = decoders.catalog(block.after.definitions)
        if not len(chunk.table) and not chunk.table.pending:
            chunk.table.need(catalog.needs)
        for readings in block.readings:
            chunk.table.add(readings)
        chunk.voices.add(block.heard)
        if not chunk.unwritten:
            chunk.waits_since = time.monotonic()
        chunk.here = replace(block.after, counts=block.before.counts.plus(block.counts))
    if block.closes:
        yield Flush(chunk, decoders.catalog(chunk.here.definitions))
        _note_met(chunk, decoders.catalog(chunk.here.definitions))
        chunk.go_on()
        _forget_items(decoders.catalog(chunk.here.definitions))
        return
    chunk.caught_up |= block.at_end
    yield from due(chunk, decoders, flush_s)


def due(chunk: OpenChunk, decoders: Decoders, flush_s: float) -> Iterator[Flush]:
    """Yield a flush if the chunk has one to make and it is time; what the process's other chunks have goes with it."""
    if chunk.unwritten and _is_due(chunk, flush_s, _rested_at()):
        yield _flush(chunk, decoders)


def _rested_at() -> float:
    """Return when the next flush of a process that is behind may begin, by the monotonic clock, whichever chunk is due.

    A flush rewrites every series that changed, so who is behind makes few: they take a quarter of the time, where it
    would be more. Were each chunk to count from its own last flush, each would be due when its turn comes, and be
    written alone with the little that one fetch brought. Who keeps up has the time: it rests for no other chunk.
    """
    last = max(OPEN.values(), key=attrgetter("flushed_at"), default=None)
    if last is None or _caught_up():
        return 0.0
    return last.flushed_at + min(_SHARE_BEHIND * last.flush_cost_s, _LONGEST_PAUSE_S)


def _is_due(chunk: OpenChunk, flush_s: float, rested_at: float) -> bool:
    """Tell whether it is time for a chunk that has something to write."""
    own = chunk.flushed_at + max(flush_s, min(chunk.flush_cost_s, _LONGEST_PAUSE_S))
    if time.monotonic() >= max(own, rested_at):
        return True
    return len(chunk.dead) > MAX_DEAD_LETTERS or _changed_keys(chunk) > MAX_CHANGED_KEYS


def _flush(chunk: OpenChunk, decoders: Decoders) -> Flush:
    """Return a flush; what the process's other chunks have goes with it."""
    return Flush(chunk, decoders.catalog(chunk.here.definitions), tuple(_companions(chunk, decoders)))


def _caught_up() -> bool:
    """Whether the end of the log was reached since the last flush, in each partition that has something to write."""
    return all(chunk.caught_up for chunk in OPEN.values() if chunk.unwritten)


def due_elsewhere(block: Block, decoders: Decoders, flush_s: float) -> Iterator[Flush]:
    """Yield the flushes that are due in the other open chunks of this process: flushing needs no timers."""
    others = [chunk for key, chunk in list(OPEN.items()) if key != (block.topic_id, block.partition)]
    rested_at = _rested_at()  # asked once for all, not once for each
    for chunk in others:
        if chunk.unwritten and _is_due(chunk, flush_s, rested_at):
            yield _flush(chunk, decoders)
            rested_at = _rested_at()


def _companions(chunk: OpenChunk, decoders: Decoders) -> Iterator[tuple[OpenChunk, Catalog]]:
    """Yield the other open chunks that have something to write, as long as all fits one block."""
    keys = _changed_keys(chunk)
    for other in list(OPEN.values()):
        if other is not chunk and other.unwritten:
            keys += _changed_keys(other)
            if keys > MAX_CHANGED_KEYS:
                return
            yield other, decoders.catalog(other.here.definitions)


def _note_met(chunk: OpenChunk, catalog: Catalog) -> None:
    """Note which series a table held that is about to be cleared."""
    catalog.note_met(chunk.table.codes())
    catalog.met.cleared += 1


def _forget_items(catalog: Catalog) -> None:
    """Let go of what only closed chunks have counted values under, now and then: distinct values have no end."""
    if catalog.crowded:
        catalog.forget_items(number for chunk in list(OPEN.values()) for number in chunk.table.series())


def _changed_keys(chunk: OpenChunk) -> int:
    """Return how many rows a flush of the chunk would write."""
    table = chunk.table
    if table.pending_rows > MAX_CHANGED_KEYS // 2:
        table.fold()  # readings of one key are many, rows of it one
    return table.pending_rows + table.changed_rows
