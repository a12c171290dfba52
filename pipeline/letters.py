"""Dead letters with all that letting them in again needs: the event's own bytes, its names, its record's headers."""

from __future__ import annotations

from pipeline.book import DeadLetter
from pipeline.columns import Block, Events, Records
from tallyman.errors import EventError
from tallyman.event import SINGLE, decode_event


def complete(letter: DeadLetter, records: Records) -> DeadLetter:
    """Add to the dead letter of one event what its record says of it, and return it.

    An event in binary mode gets the body back that it came with.
    """
    _, kind, value = records.at(letter.offset)
    letter.headers = records.kept_headers(letter.offset)
    letter.content_type = kind.content_type if kind.format == "single" else SINGLE
    if kind.attributes is not None:
        letter.body = value
    return letter


def event_letter(part: Events, row: int, block: Block, reason: str, detail: str) -> DeadLetter:
    """Make the dead letter of an event that is well-formed, and not accepted all the same."""
    body = part.bodies[row] if part.body_of is None else part.body_of(row)
    letter = DeadLetter(int(part.offsets[row]), int(part.indexes[row]), int(part.appended_ms[row]),
                        block.after.booking, reason, detail, body)  # fmt: skip
    try:
        event = decode_event(body)
        letter.type, letter.source, letter.subject = event.type, event.source, event.subject
    except EventError:  # a row that no JSON event can say
        pass
    assert block.records is not None
    return complete(letter, block.records)


def record_letter(block: Block, offset: int, error: EventError) -> DeadLetter:
    """Make the one dead letter of a record that could not be taken as a whole."""
    assert block.records is not None
    appended_ms, kind, value = block.records.at(offset)
    return DeadLetter(offset, 0, appended_ms, block.after.booking, error.reason, error.detail, value,
                      kind.content_type, source=kind.collector, headers=block.records.kept_headers(offset))  # fmt: skip
