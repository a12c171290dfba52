"""Count once: judge every event of a block by the log alone, and let through those that nobody counted before.

The order of the questions is the model's: too late or too early (unless judged before), not at home, seen before.
"Seen" means accepted at a smaller position, so that a replay gives the same answer.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.book import Conflict, Counts, Forward, OpenChunk
from pipeline.catalog import Catalog
from pipeline.columns import Block, Events
from pipeline.compiled import load_id_kernel
from pipeline.corrections import count_corrections
from pipeline.id_filter import IdFilter
from pipeline.identities import Accepted, IdColumns, IdStore
from pipeline.letters import event_letter, record_letter
from tallyman.errors import EventError
from tallyman.event import ADMITTED, CONTENT_TYPE, SINGLE, format_time

Mask = npt.NDArray[np.bool_]


class Judge(NamedTuple):
    """What counting once asks of the outside world."""

    ids: IdStore
    filter: IdFilter


def count_once(block: Block, chunk: OpenChunk, catalog: Catalog, judge: Judge) -> Block:
    """Fill in the block's accepted readings, counts, dead letters, conflicts and forwards; remember what was
    accepted.
    """
    counts = Counts(received=block.received, ignored=block.ignored)
    copies = _find_copies(block.parts, block, chunk, judge)
    for part in block.parts:
        if part.claims is not None:
            counts = counts.plus(_count_numbered(part, copies, block, chunk, catalog, judge))
        else:
            counts = counts.plus(_count_foreign(part, block, chunk, catalog, judge))
    if block.corrections:
        find = partial(_find, block, chunk, judge)
        counts = counts.plus(count_corrections(block, chunk, lambda wanted, below: find(wanted, below=below)))
        block.corrections = []
    block.counts = counts._replace(dead=len(block.dead), forwarded=len(block.forwards))
    block.parts = []
    chunk.dead += block.dead
    chunk.forwards += block.forwards
    chunk.raw += block.raw
    return block


def _count_foreign(part: Events, block: Block, chunk: OpenChunk, catalog: Catalog, judge: Judge) -> Counts:
    undecided = ~_late(part, block, catalog)
    stray = undecided & (part.homes != block.partition)
    if stray.any():
        _forward(part, np.flatnonzero(stray), block)
        undecided &= ~stray
    duplicate, conflict = _duplicates(part, undecided, block, chunk, catalog, judge)
    accepted = undecided & ~duplicate
    _accept(part, accepted, chunk, judge.filter, np.maximum(part.clocks_ms * 1000, part.times_us),
            block.after.definitions)  # fmt: skip
    block.readings.append(part.readings(accepted))
    return Counts(aggregated=int(accepted.sum()), duplicate=int(duplicate.sum()), conflict=conflict)


class _Copies(NamedTuple):
    """What is known of the numbered batches of a block: the earlier acceptance of those that are copies."""

    earlier: dict[int, Accepted]  # by offset


def _find_copies(parts: list[Events], block: Block, chunk: OpenChunk, judge: Judge) -> _Copies:
    """Tell which numbered batches were accepted before, below the block or in it: the smaller offset wins."""
    claims = [part.claims for part in parts if part.claims is not None]
    if not claims:
        return _Copies({})
    all_of = IdColumns(*(np.concatenate(column) for column in zip(*claims, strict=True)))
    suspects = judge.filter.perhaps(block.topic_id, block.partition, all_of.high, all_of.low)
    rows = np.flatnonzero(suspects | _repeated(all_of.high))
    if not len(rows):
        return _Copies({})
    rows = rows[np.argsort(all_of.offsets[rows])]
    keys = list(zip(all_of.high[rows].tolist(), all_of.low[rows].tolist(), strict=True))
    seen = _find_newest(block, chunk, judge, sorted(set(keys)))
    earlier: dict[int, Accepted] = {}
    for row, key in zip(rows.tolist(), keys, strict=True):
        offset, index, remembered, digest, definitions = (int(column[row]) for column in all_of[2:])
        if key in seen:
            earlier[offset] = seen[key]
        else:
            seen[key] = Accepted(offset, index, remembered, digest, definitions)
    return _Copies(earlier)


def _count_numbered(
    part: Events, copies: _Copies, block: Block, chunk: OpenChunk, catalog: Catalog, judge: Judge
) -> Counts:
    """A numbered batch has one identity: it is accepted, or a copy, as a whole, at any age.

    The first copy decides for all its rows, also for those that are dead: a later copy brings none of them in, so that
    only a dead letter that is let in again can, by the identity of its own.
    """
    claims = part.claims
    assert claims is not None
    size, counts = len(claims.high), Counts()
    fresh = np.ones(size, bool)
    if copies.earlier:
        alive, dead = np.bincount(part.batch, minlength=size).tolist(), Counter(each.offset for each in part.dead)
    for place, offset in enumerate(claims.offsets.tolist() if copies.earlier else ()):
        first = copies.earlier.get(offset)
        if first is None:
            continue
        fresh[place] = False
        events = alive[place] + dead[offset]
        if first.digest == int(claims.digests[place]):
            counts = counts.plus(Counts(duplicate=events))
            continue
        detail = f"this number was used at {first.where} with other content"
        block.dead.append(record_letter(block, offset, EventError("number_reused", detail)))
        counts = counts.plus(Counts(received=1 - events))  # the record is one dead letter
    among = fresh[part.batch]
    if fresh.all():
        block.dead += part.dead
        accepted = claims
    else:
        offsets = set(claims.offsets[fresh].tolist())
        block.dead += [letter for letter in part.dead if letter.offset in offsets]
        accepted = claims.where(fresh)
    chunk.accepted.add(accepted)
    judge.filter.add(accepted.high, accepted.low)
    counting = among & ~_late(part, block, catalog, among)
    block.readings.append(part.readings(counting))
    return counts.plus(Counts(aggregated=int(np.count_nonzero(counting))))


def _late(part: Events, block: Block, catalog: Catalog, among: Mask | None = None) -> Mask:
    """Set aside what is too old or too far ahead, by the clock of the log."""
    clocks = part.clocks_ms * 1000
    old = ~part.admitted & (part.times_us < clocks - catalog.oldest_us_of(part))
    ahead = ~part.admitted & (part.times_us > clocks + catalog.ahead_us)
    late: Mask = old | ahead
    if among is not None:
        late &= among
    for row in np.flatnonzero(late).tolist() if late.any() else ():
        reason = "too_old" if old[row] else "too_far_ahead"
        log_clock = format_time(int(clocks[row]))
        detail = f"time {format_time(int(part.times_us[row]))}, clock of the log {log_clock}"
        block.dead.append(event_letter(part, row, block, reason, detail))
    return late


def _duplicates(
    part: Events, undecided: Mask, block: Block, chunk: OpenChunk, catalog: Catalog, judge: Judge
) -> tuple[Mask, int]:
    """Tell which events were accepted before; the exact question is asked only of those the filter is not sure
    about.
    """
    duplicate = np.zeros(len(part), bool)
    suspects = undecided & judge.filter.perhaps(block.topic_id, block.partition, part.high, part.low)
    suspects |= undecided & _repeated(part.high)
    if not suspects.any():
        return duplicate, 0
    rows = np.flatnonzero(suspects).tolist()
    keys = {row: (int(part.high[row]), int(part.low[row])) for row in rows}
    seen = _find_newest(block, chunk, judge, sorted(set(keys.values())))
    conflicts = 0
    for row in rows:
        clock_us, first = int(part.clocks_ms[row]) * 1000, seen.get(keys[row])
        if first is not None and (part.admitted[row] or clock_us - first.remembered_us <= catalog.remember_us):
            duplicate[row] = True
            if first.digest != int(part.digests[row]):
                conflicts += 1
                chunk.conflicts.append(_conflict(part, row, block, first))
        else:
            seen[keys[row]] = Accepted(
                int(part.offsets[row]),
                int(part.indexes[row]),
                max(clock_us, int(part.times_us[row])),
                int(part.digests[row]),
            )
    return duplicate, conflicts


def _repeated(high: npt.NDArray[np.uint64]) -> Mask:
    """Tell which values occur more than once."""
    kernel = load_id_kernel()
    if kernel is not None:
        found = np.zeros(len(high), bool)
        if kernel.find_repeated(high, np.zeros(1 << (2 * len(high)).bit_length(), np.int32), found):
            return found
    order = np.argsort(high)
    ordered = high[order]
    same = ordered[1:] == ordered[:-1]
    result = np.zeros(len(high), bool)
    if same.any():
        result[order[1:][same]] = True
        result[order[:-1][same]] = True
    return result


def _find_newest(
    block: Block, chunk: OpenChunk, judge: Judge, identities: list[tuple[int, int]]
) -> dict[tuple[int, int], Accepted]:
    """Return the newest acceptance of each identity that is known so far.

    ClickHouse, which takes many milliseconds, is asked only for those that were not accepted from the chunk's base on:
    what was is newer than all that it has below.
    """
    found = chunk.accepted.find(identities)
    others = [each for each in identities if each not in found or found[each].offset < chunk.base]
    stored = judge.ids.find(block.topic_id, block.partition, chunk.base, others) if others else {}
    for key, accepted in stored.items():
        found[key] = accepted.after(found.get(key))
    return found


def _find(
    block: Block, chunk: OpenChunk, judge: Judge, identities: list[tuple[int, int]], *, below: int
) -> dict[tuple[int, int], Accepted]:
    """Return the newest acceptance of each identity below an offset of this block, and whether one came before it."""
    found = judge.ids.find(block.topic_id, block.partition, chunk.base, identities)
    for key, accepted in chunk.accepted.find(identities, below).items():
        found[key] = accepted.after(found.get(key))
    return found


def _accept(
    part: Events,
    accepted: Mask,
    chunk: OpenChunk,
    known: IdFilter,
    remembered: npt.NDArray[np.int64],
    definitions: int,
) -> None:
    rows: npt.NDArray[np.int64] | slice = slice(None) if accepted.all() else np.flatnonzero(accepted)
    high = part.high[rows]
    columns = IdColumns(
        high,
        part.low[rows],
        part.offsets[rows],
        part.indexes[rows],
        remembered[rows],
        part.digests[rows],
        np.full(len(high), definitions, np.uint32),
    )
    chunk.accepted.add(columns)
    known.add(columns.high, columns.low)


def _forward(part: Events, rows: npt.NDArray[np.int64], block: Block) -> None:
    """Send foreign events home one by one, marked as judged."""
    headers = ((CONTENT_TYPE, SINGLE.encode()), (ADMITTED, b"1"))
    block.forwards += [Forward(int(part.homes[row]), b"", part.bodies[row], headers) for row in rows.tolist()]


def _conflict(part: Events, row: int, block: Block, first: Accepted) -> Conflict:
    return Conflict(
        offset=int(part.offsets[row]),
        index=int(part.indexes[row]),
        first_offset=first.offset,
        first_index=first.event_index,
        booking=block.after.booking,
        appended_ms=int(part.appended_ms[row]),
        body=part.bodies[row],
    )
