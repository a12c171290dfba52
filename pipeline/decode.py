"""From a fetch to blocks: cut the log where a chunk, a booking or the definitions change, and decode what lies
between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.batches import Fetch
from pipeline.book import OpenChunk, Place, chain
from pipeline.columns import Block, Events, Records
from pipeline.corrections import measure_correction, read_correction
from pipeline.decoders import Decoders
from pipeline.letters import complete, record_letter
from pipeline.lines import Lines, Stretch
from pipeline.numbered import ArrowRecord, add_numbered, arrow_events
from pipeline.stretch import LogRows, add_lines, raw_record, read_alike, read_log, segment_end
from tallyman.binary import compose
from tallyman.errors import DamageError, EventError, LogError
from tallyman.event import CONTENT_TYPE, CORRECTS, MAX_RECORD_BYTES, SINGLE
from tallyman.headers import RecordKind
from tallyman.topics import ENDED


def blocks(fetch: Fetch, chunk: OpenChunk, decoders: Decoders, *, archive: bool = False) -> Iterator[Block]:
    """Cut a fetch into blocks; the caller folds each into the chunk before it asks for the next.

    Raises:
        LogError: There is a gap between what is folded and the fetch, or the log is not what was booked.
    """
    if fetch.first > chunk.here.offset:
        raise LogError(
            f"partition {fetch.partition}: expected offset {chunk.here.offset} next, "
            f"got a fetch that begins at {fetch.first}"
        )
    if fetch.next <= chunk.here.offset:
        yield Block(fetch.topic_id, fetch.partition, chunk.here, chunk.here, idle=True, at_end=fetch.at_end)
        return
    log = read_log(fetch, chunk.here)
    row = 0
    while chunk.here.offset < fetch.next:
        before, stop = chunk.here, min(fetch.next, chunk.end)
        last = segment_end(log, row, stop)
        offset = stop if last == len(log.offsets) or log.offsets[last] >= stop else int(log.offsets[last - 1]) + 1
        if last > row:
            clock, booking = int(log.clocks[last - 1]), int(log.bookings[last - 1])
            definitions = int(log.definitions[last - 1])
        else:
            clock, booking, definitions = before.clock_ms, before.booking, before.definitions
        digest = chain(before.digest, fetch.digests, before.offset, offset)
        after = Place(offset, clock, booking, definitions, digest, before.counts)
        _meet_again(fetch, chunk, after)
        turns = booking > before.booking or definitions > before.definitions
        block = Block(fetch.topic_id, fetch.partition, before, after, turn=turns, closes=offset == chunk.end,
                      at_end=fetch.at_end and offset == fetch.next,
                      begins=_record_place(fetch, before, int(log.offsets[row])) if turns else before)  # fmt: skip
        _fill(block, log, row, last, decoders, archive)
        row = last
        yield block
        if chunk.here.offset != offset:
            raise LogError(f"partition {fetch.partition}: the block up to {offset} was not folded")


def _record_place(fetch: Fetch, before: Place, offset: int) -> Place:
    """Return the place of the next record: the same for all, also for those that paused in the gap before it."""
    return replace(before, offset=offset, digest=chain(before.digest, fetch.digests, before.offset, offset))


def _meet_again(fetch: Fetch, chunk: OpenChunk, after: Place) -> None:
    """Compare the digest where another run's progress stands with ours at the same place."""
    earlier = chunk.earlier
    if earlier is None or after.offset < earlier.offset:
        return
    chunk.earlier = None
    digest = chain(chunk.here.digest, fetch.digests, chunk.here.offset, earlier.offset)
    if digest != earlier.digest:
        raise DamageError(
            chunk.partition,
            "digest",
            f"partition {chunk.partition}: below offset {earlier.offset} the log differs from what was booked "
            f"(digest {digest}, booked {earlier.digest}); it was truncated, or its topic made anew. "
            "Nothing is guessed: an operator decides",
        )


def _fill(block: Block, log: LogRows, first: int, last: int, decoders: Decoders, archive: bool) -> None:
    """Decode the records of a block: foreign events together, each numbered batch by itself."""
    if block.after.booking == ENDED:  # the end marker, and what counts in the topic that follows
        if archive and block.before.booking != ENDED:
            block.raw = [raw_record(log, first, block.before.booking)]
        return
    _, json_decoder, arrow_decoder = decoders.get(block.after.definitions)
    arrow_decoder.begin()
    booking = block.after.booking
    records = block.records = Records(log.offsets, log.appended, log.values, log.headers, log.kinds)
    lines, arrow = Lines(), list[ArrowRecord]()
    rows = range(first, last)
    if archive:
        block.raw = [raw_record(log, row, booking) for row in rows]
    alike = read_alike(log, first, last)
    for row in rows if alike is None else ():
        kind = log.kinds[row]
        value = log.values[row] or b""
        if kind.control:
            continue
        try:
            if kind.problem is not None:
                raise kind.problem
            if kind.corrects:
                _correction(block, log, row, kind, value, decoders)
            elif kind.sequence >= 0:
                add_numbered(block, log, row, kind, value, decoders, arrow)
            else:
                add_lines(lines, log, row, kind, value)
        except EventError as error:
            block.received += 1
            block.dead.append(record_letter(block, int(log.offsets[row]), error))
    if arrow:
        block.parts.append(arrow_events(block, log, arrow, decoders))
    foreign: Stretch = lines.together() if alike is None else alike
    if len(foreign):
        block.received += len(foreign)
        events, dead, ignored = json_decoder.decode(foreign, SINGLE, booking)
        block.dead += [complete(letter, records) for letter in dead]
        block.ignored += ignored
        if len(events):
            block.parts.append(events)
    _order(block)


def _order(block: Block) -> None:
    """Put foreign events that were decoded apart back into log order: the smaller position wins."""
    foreign = [part for part in block.parts if part.claims is None]
    if len(foreign) < 2:
        return
    block.parts = [part for part in block.parts if part.claims is not None]
    block.parts.append(concatenate(foreign))


def concatenate(parts: list[Events]) -> Events:
    """Join foreign events, in log order."""
    columns = (
        "offsets",
        "indexes",
        "appended_ms",
        "clocks_ms",
        "times_us",
        "high",
        "low",
        "digests",
        "homes",
        "admitted",
    )
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    bodies = [body for part in parts for body in part.bodies]
    starts = np.cumsum([0, *(len(part) for part in parts)])
    event = np.concatenate([part.reading_event + start for part, start in zip(parts, starts, strict=False)])
    order = np.lexsort((joined["indexes"], joined["offsets"]))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return Events(
        **{name: column[order] for name, column in joined.items()},
        bodies=[bodies[i] for i in order.tolist()],
        reading_event=places[event],
        reading_series=np.concatenate([part.reading_series for part in parts]),
        reading_value=np.concatenate([part.reading_value for part in parts]),
        content_type=parts[0].content_type,
    )


def _correction(block: Block, log: LogRows, row: int, kind: RecordKind, value: bytes, decoders: Decoders) -> None:
    catalog, decoder, _ = decoders.get(block.after.definitions)
    if kind.attributes is not None:
        value = compose(kind.attributes, value)
    if len(value) > MAX_RECORD_BYTES:
        raise EventError("too_large", f"expected at most {MAX_RECORD_BYTES} bytes, got {len(value)}")
    clocks = int(log.appended[row]), int(log.clocks[row])
    headers = ((CONTENT_TYPE, SINGLE.encode()), (CORRECTS, str(kind.corrects).encode()))
    found = read_correction(value, kind.corrects, decoders.partitions, int(log.offsets[row]), clocks, headers)
    if found.home == block.partition:
        found = measure_correction(found, decoder, catalog, lambda number: decoders.catalog(number).meters)
    block.received += 1
    block.corrections.append(found)
