"""What a record's headers say it is, and what of them goes with a dead letter so that it can be let in again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tallyman.binary import PREFIX, is_binary, read_attributes
from tallyman.errors import EventError
from tallyman.event import (
    ADMITTED,
    CLOSE,
    COLLECTOR,
    CONTENT_TYPE,
    CORRECTS,
    DEFINITIONS,
    END,
    EPOCH,
    INDEX,
    LAST_US,
    MAX_NAME_BYTES,
    SEQUENCE,
    TICK,
    WATERMARK,
    Format,
    format_of,
)

Headers = tuple[tuple[str, bytes], ...]
_FOREIGN = frozenset((CONTENT_TYPE, ADMITTED))
_NUMBERED = _FOREIGN | {COLLECTOR, EPOCH, SEQUENCE}
_OWN = _NUMBERED | {INDEX, WATERMARK, CORRECTS, TICK, CLOSE, DEFINITIONS, END}
_LONGEST_KEPT = 4096
MAX_HEADERS = 4096  # with empty names they take no bytes
MAX_HEADER_BYTES = 1 << 20  # of all headers of a record, which go with it when it is sent on


class RecordKind(NamedTuple):
    """What a record's headers say it is.

    Attributes:
        ends: The topic ends behind this record.
        event_index: Of an event of a numbered batch that is let in again; -1 is the batch itself.
        watermark_us: Of a numbered batch, event time up to which its collector has sent everything with it, or 0.
        corrects: Of a correction, the number of the version that it makes, from 1.
        attributes: Of a CloudEvent in binary mode.
    """

    format: Format | None
    content_type: str
    admitted: bool = False
    control: bool = False
    opens: int = 0
    definitions: int = 0
    ends: bool = False
    collector: str = ""
    epoch: str = ""
    sequence: int = -1
    event_index: int = -1
    watermark_us: int = 0
    corrects: int = 0
    attributes: dict[str, str] | None = None
    problem: EventError | None = None


PLAIN = RecordKind("single", "")


def headers_of(sent: Iterable[tuple[str, bytes | None]] | None) -> Headers:
    """Return a record's headers as Kafka gave them; one without a value, as Java's clients may send it, is empty."""
    return tuple((name, value or b"") for name, value in sent or ())


def kind_of(headers: Headers) -> RecordKind:
    """Read a record's headers; what cannot be read makes the record a dead letter, never an exception."""
    if not headers:
        return PLAIN
    named = {name.lower(): value for name, value in headers}
    content_type = named.get(CONTENT_TYPE, b"")[:_LONGEST_KEPT].decode("utf-8", "replace")
    try:
        if TICK in named or CLOSE in named or END in named:
            opens, definitions = _number(named, CLOSE), _number(named, DEFINITIONS)
            return RecordKind(None, content_type, control=True, opens=opens, definitions=definitions, ends=END in named)
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MAX_HEADERS:
            raise EventError("too_large", f"headers: expected at most {MAX_HEADERS} of them, got {len(headers)}")
        if size > MAX_HEADER_BYTES:
            raise EventError("too_large", f"headers: expected at most {MAX_HEADER_BYTES} bytes together, got {size}")
        kind = RecordKind("single", content_type, ADMITTED in named)
        if is_binary(named, content_type):
            kind = kind._replace(attributes=read_attributes(named, content_type))
        else:
            kind = kind._replace(format=format_of(content_type))
        if CORRECTS in named:
            return _correction(kind, named)
        return _batch(kind, named) if COLLECTOR in named else kind
    except (EventError, UnicodeDecodeError) as error:
        problem = error if isinstance(error, EventError) else EventError("not_utf8", f"headers: {error}")
        return RecordKind(None, content_type, problem=problem)


def _correction(kind: RecordKind, named: dict[str, bytes]) -> RecordKind:
    version = _number(named, CORRECTS)
    if not 0 < version < 1 << 31:
        raise EventError("out_of_range", f"header {CORRECTS}: expected 1 or more, got {version}")
    if kind.format != "single" or COLLECTOR in named:
        raise EventError("wrong_type", f"header {CORRECTS}: expected it beside one JSON event, got {kind.content_type}")
    return kind._replace(corrects=version)


def _batch(kind: RecordKind, named: dict[str, bytes]) -> RecordKind:
    """Read the number of a batch, or of one event of it."""
    collector, epoch = (named.get(name, b"").decode("utf-8") for name in (COLLECTOR, EPOCH))
    if not collector or not epoch or SEQUENCE not in named:
        raise EventError("missing_field", f"headers: expected {COLLECTOR}, {EPOCH} and {SEQUENCE} together")
    for name in (COLLECTOR, EPOCH):
        if len(named[name]) > MAX_NAME_BYTES:
            raise EventError(
                "out_of_range", f"header {name}: expected at most {MAX_NAME_BYTES} bytes, got {len(named[name])}"
            )
    index = _number(named, INDEX) if INDEX in named else -1
    if index >= 0 and kind.format != "single":
        raise EventError("wrong_type", f"header {INDEX}: expected it beside one JSON event, got {kind.content_type}")
    sequence, watermark_us = _number(named, SEQUENCE), _watermark(named.get(WATERMARK, b""))
    return kind._replace(
        collector=collector, epoch=epoch, sequence=sequence, event_index=index, watermark_us=watermark_us
    )


def _watermark(text: bytes) -> int:
    """Read what a collector says of itself; what cannot be read says nothing, and kills no usage."""
    value = int(text) if text.isdigit() and len(text) <= 18 else 0
    return value if value < LAST_US else 0


def _number(named: dict[str, bytes], name: str) -> int:
    text = named.get(name, b"0")
    if not text.isdigit() or len(text) > 18:
        raise EventError("wrong_type", f"header {name}: expected a whole number, got {text[:40]!r}")
    return int(text)


def kept_headers(headers: Headers, kind: RecordKind) -> Headers:
    """Return what a dead letter keeps of its record's headers: what says how it is read, and who it is.

    A record of many events may make as many letters: each keeps only what its event needs to be let in again.
    """
    one = kind.format in (None, "single")
    names, longest = (_OWN, _LONGEST_KEPT) if one else (_NUMBERED if kind.sequence >= 0 else _FOREIGN, MAX_NAME_BYTES)
    kept: dict[str, tuple[str, bytes]] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in names or (one and lower.startswith(PREFIX)):
            kept.pop(lower, None)  # of two, the last counts
            kept[lower] = name, value[:longest] if one else value.strip()[:longest]  # a content type has room around
    return tuple(kept.values())
