"""The usage event: CloudEvents 1.0, decoded and encoded without losing a digit.

A record on Kafka holds one event, a batch, lines, or Arrow columns of our own collectors; its `content-type`
header says which.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from tallyman.errors import EventError
from tallyman.nesting import MAX_NESTING, check_nesting, flatten, is_too_deep

_T = TypeVar("_T")
SINGLE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
Format = Literal["single", "batch", "lines", "arrow"]
FORMATS: Mapping[str, Format] = {
    SINGLE: "single",
    BATCH: "batch",
    LINES: "lines",
    ARROW: "arrow",
    "application/json": "single",
    "text/json": "single",
    # Names under which clients send lines; none of them is registered.
    "application/ndjson": "lines",
    "application/x-jsonlines": "lines",
    "application/jsonlines": "lines",
    "application/jsonl": "lines",
}

# Headers of our own. Of whoever may write to the topic they are believed: see docs/operations.md, "Who may write to the
# topic", and docs/decisions/0004.
CONTENT_TYPE = "content-type"
COLLECTOR, EPOCH, SEQUENCE = "tallyman-collector", "tallyman-epoch", "tallyman-sequence"
WATERMARK = "tallyman-watermark-us"
TICK, CLOSE, DEFINITIONS, ADMITTED = "tallyman-tick", "tallyman-close", "tallyman-definitions", "tallyman-admitted"
END = "tallyman-end"  # a topic ends here: what stands behind it counts in the topic that follows
CORRECTS = "tallyman-corrects"  # the number of the version that a correction makes
CORRECTION = "tallyman.usage.corrected.v1"  # the type of its event
INDEX = "tallyman-index"  # beside a batch's number: one event of it, let in again by itself

MAX_RECORD_BYTES = 4 * 1024 * 1024  # a record over this is a dead letter; the topic's limit is twice this
MAX_RECORD_EVENTS = 65_536  # more are nobody's: so many of the shortest do not fit, and our own batches are smaller
MAX_NAME_BYTES = 1024  # id, source, type, subject; longer ones are nobody's name
FIRST_US = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
LAST_US = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000  # ClickHouse DateTime wraps in 2106

REASONS: Mapping[str, str] = {
    "malformed": "the bytes are no JSON of the announced form",
    "not_utf8": "the bytes are not UTF-8",
    "unknown_format": "no decoder for this content type",
    "too_deep": "arrays and objects are nested more deeply than an event may be",
    "missing_field": "a CloudEvents attribute or the metered value is missing",
    "wrong_type": "an attribute or a value has a type that it cannot have",
    "bad_time": "the time is no RFC 3339 time with a zone, and no text of seconds since 1970",
    "year_out_of_range": "the time lies outside the years 2000 to 2099",
    "too_old": "older than the deployment, or a meter that counts it, accepts, by the clock of the log",
    "too_far_ahead": "further in the future than the deployment accepts, by the clock of the log",
    "not_a_number": "the metered value is no number",
    "out_of_range": "the metered value is larger than any meter holds, or a name or dimension longer than it may be",
    "too_precise": "the metered value has more digits than the meter's scale; it is never rounded",
    "negative": "the meter takes no negative values",
    "unknown_meter": "no meter wants this type of event",
    "too_large": "the record is larger than a record may be",
    "bad_schema": "the Arrow batch has another schema than this version reads",
    "unknown_event": "a correction of an event that was not accepted, or not with these bytes",
    "not_correctable": "a meter of the event keeps no single values, or changed since the event was counted",
    "number_reused": "this collector's batch number was used before with other content",
}

# Arrow batches, version 1: one row is one reading. `series` points into the list that the schema's metadata holds
# under `tallyman.series` (JSON: type, subject, scale, data, incarnation), so that a row is six integers and a
# reader meets each name once. `value` is scaled by the series' scale; `first` and `last` are a counter's two ends.
ARROW_VERSION = "1"
ARROW_VERSION_KEY, ARROW_SERIES_KEY = "tallyman.version", "tallyman.series"
ARROW_FIELDS: tuple[tuple[str, str, bool], ...] = (
    ("series", "int32", False),
    ("time_us", "int64", False),  # the interval's start: usage belongs to the minute in which it began
    ("until_us", "int64", False),
    ("value", "int64", False),
    ("first", "int64", True),
    ("last", "int64", True),
)


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """What all readings of one series share in an Arrow batch.

    Attributes:
        data: Dimensions, as they would stand in a JSON event's `data` beside `value`.
        scale: Decimal digits behind the point in the batch's integers.
        incarnation: What the counter lives in (boot id, container id); a counter is only compared within one.
    """

    type: str
    subject: str
    scale: int = 0
    data: dict[str, str | None] = {}
    incarnation: str = ""


class Event(NamedTuple):
    """One usage event. `time_us` is microseconds since 1970 UTC; numbers in `data` are int or Decimal, never float."""

    id: str
    source: str
    type: str
    subject: str
    time_us: int
    data: Mapping[str, Any]


class Rejected(NamedTuple):
    """What could not be accepted: reason code, a sentence for a person, and the bytes."""

    reason: str
    detail: str
    raw: bytes


class _Wire(msgspec.Struct, kw_only=True):
    id: str
    source: str
    type: str
    subject: str
    time: str
    specversion: str | None = "1.0"
    data: dict[str, Any] | None = None
    data_base64: str | None = None


def _exact(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent that no Decimal has; it matters only where somebody reads the value
        return text


_decode_wire = msgspec.json.Decoder(_Wire, float_hook=_exact).decode
_decode_data = msgspec.json.Decoder(dict[str, Any], float_hook=_exact).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder(decimal_format="string").encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Python reads integers of at most 4,300 digits, or of fewer: from 640 digits on that depends on how it was started.
# A text may lack its end, or each of its quotes would be tried as the beginning of one; no digit is looked at twice.
_NUMBER = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?', re.DOTALL)
_LONG_INTEGER = re.compile(rb"(?<![0-9])-?[0-9]{640,}")
_BELOW_MICROSECONDS = re.compile(r"(\.[0-9]{6})[0-9]+")
# Seconds since 1970, from 2000 on; shorter or longer digits are dates without signs, or milliseconds.
_UNIX_SECONDS = re.compile(r"([0-9]{9,10})(?:\.([0-9]+))?")


def format_of(content_type: str | bytes | None) -> Format:
    """Return the format that a `content-type` names; parameters and letter case do not matter, no header is a
    single event.

    Raises:
        EventError: `unknown_format`.

    >>> format_of("Application/JSONL; charset=utf-8"), format_of(b"application/cloudevents-batch+json"), format_of(None)
    ('lines', 'batch', 'single')
    """
    if not content_type:
        return "single"
    text = content_type.decode("utf-8", "replace") if isinstance(content_type, bytes) else content_type
    media_type = text.split(";", 1)[0].strip().lower()
    if media_type not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise EventError("unknown_format", f'content-type: expected one of {known}, got "{text[:100]}"')
    return FORMATS[media_type]


def parse_time(text: str) -> int:
    """Return microseconds since 1970 for an RFC 3339 time with a zone, or for a text of seconds since 1970.

    "1780586634.1" is that instant and a tenth of a second, exactly. Digits below microseconds are cut off.

    Raises:
        EventError: `bad_time`, `year_out_of_range`.
    """
    try:
        if unix := _UNIX_SECONDS.fullmatch(text):
            time_us = int(unix[1] + (unix[2] or "")[:6].ljust(6, "0"))
        else:
            # Cut before reading, because msgspec rounds: 12:00:59.9999999 would be in the next minute.
            moment = msgspec.convert(_BELOW_MICROSECONDS.sub(r"\1", text), datetime)
            if moment.tzinfo is None:
                raise ValueError("no zone")
            time_us = (moment - _EPOCH) // _MICROSECOND
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise EventError("bad_time", f'time: expected RFC 3339 with a zone, got "{text[:60]}"') from error
    if not FIRST_US <= time_us < LAST_US:
        raise EventError("year_out_of_range", f'time: expected a year from 2000 to 2099, got "{text[:60]}"')
    return time_us


def format_time(time_us: int) -> str:
    """Write microseconds since 1970 as RFC 3339 in UTC."""
    text = (_EPOCH + time_us * _MICROSECOND).isoformat()
    return text.replace("+00:00", "Z")


def decode_event(body: bytes) -> Event:
    """Decode one CloudEvents JSON event.

    Raises:
        EventError: With the reason of its dead letter.
    """
    if not body.isascii():
        _check_utf8(body)  # all of it: msgspec does not look into what it skips
    check_nesting(body)
    try:
        wire = _read_wire(body)
    except msgspec.ValidationError as error:
        text = str(error)
        is_missing = "missing required field" in text or text.startswith("Expected `str`, got `null`")  # null is unset
        raise EventError("missing_field" if is_missing else "wrong_type", text) from error
    except msgspec.DecodeError as error:
        raise EventError("malformed", str(error)) from error
    for name in ("id", "source", "type", "subject"):
        value: str = getattr(wire, name)
        if not value:
            raise EventError("missing_field", f"{name}: expected text, got an empty string")
        if len(value.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise EventError(
                "out_of_range", f"{name}: expected at most {MAX_NAME_BYTES} bytes, got {len(value)} characters"
            )
    if wire.specversion is not None and wire.specversion != "1.0":
        raise EventError("wrong_type", f'specversion: expected "1.0", got "{wire.specversion[:20]}"')
    data = wire.data or {} if wire.data_base64 is None else _data_of(wire)
    return Event(wire.id, wire.source, wire.type, wire.subject, parse_time(wire.time), data)


def _data_of(wire: _Wire) -> dict[str, Any]:
    """Return what an event carries as bytes (CloudEvents JSON format 1.0, 3.1.1), if it is JSON as others carry it."""
    if wire.data is not None:
        raise EventError("wrong_type", "data_base64: expected one of data and data_base64, got both")
    try:
        body = b64decode(wire.data_base64 or "", validate=True)
        _check_utf8(body)
        check_nesting(body)
        return _read(_decode_data, body)
    except (ValueError, msgspec.DecodeError) as error:
        raise EventError("wrong_type", f"data_base64: expected a JSON object in Base64: {error}") from error


def _read_wire(body: bytes) -> _Wire:
    return _read(_decode_wire, body)


def _read(decode: Callable[[bytes], _T], body: bytes) -> _T:
    try:
        return decode(body)
    except msgspec.ValidationError:
        if not _LONG_INTEGER.search(body):
            raise
        # As Decimals, which have any length: such an integer matters only where somebody reads it.
        return decode(_NUMBER.sub(_without_long_integer, body))


def _without_long_integer(token: re.Match[bytes]) -> bytes:
    return token[0] + b"E0" if _LONG_INTEGER.fullmatch(token[0]) else token[0]


def _check_utf8(body: bytes) -> None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EventError("not_utf8", f"expected UTF-8, got {error.reason} at byte {error.start}") from error


def split_record(content_type: str | bytes | None, body: bytes) -> list[bytes]:
    """Cut a JSON record into the bytes of its events, in order; blank lines of NDJSON are no events.

    Raises:
        EventError: The record as a whole is unusable (`unknown_format`, `malformed`, `not_utf8`, `too_large`).
    """
    kind = format_of(content_type)
    if len(body) > MAX_RECORD_BYTES:
        raise EventError("too_large", f"expected at most {MAX_RECORD_BYTES} bytes, got {len(body)}")
    if kind == "lines":
        _check_count(body.count(b"\n") + (not body.endswith(b"\n")))  # blank ones, too: each is looked at
        return [line for line in body.split(b"\n") if line.strip()]
    if kind == "batch":
        try:
            return _split_batch(body)
        except msgspec.DecodeError as error:
            _check_utf8(body)
            raise EventError("malformed", f"batch: {error}") from error
    return [body]


def _check_count(count: int) -> None:
    if count > MAX_RECORD_EVENTS:
        raise EventError("too_large", f"expected at most {MAX_RECORD_EVENTS} events in a record, got {count}")


def _split_batch(body: bytes) -> list[bytes]:
    if not is_too_deep(body, MAX_NESTING + 1):
        raws = _decode_raws(body)
        _check_count(len(raws))
        return [bytes(raw) for raw in raws]
    # One event that is nested too deeply is dead, and not the others: cut a text without it, at the same places.
    parts, place = [], 0
    flat = flatten(body, MAX_NESTING + 1)
    raws = _decode_raws(flat)
    _check_count(len(raws))
    for raw in raws:
        place = flat.index(bytes(raw), place)
        parts.append(body[place : place + len(raw)])
        place += len(raw)
    return parts


def decode_record(content_type: str | bytes | None, body: bytes) -> Iterator[Event | Rejected]:
    """Yield an event, or why it is none, for each event of a JSON record (not for Arrow batches)."""
    try:
        parts = split_record(content_type, body)
    except EventError as error:
        yield Rejected(error.reason, error.detail, body)
        return
    for part in parts:
        try:
            yield decode_event(part)
        except EventError as error:
            yield Rejected(error.reason, error.detail, part)


def encode_event(event: Event) -> bytes:
    """Write an event as one line of CloudEvents JSON; Decimals become strings, so that every reader keeps the
    digits.
    """
    wire = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": format_time(event.time_us),
        "data": dict(event.data),
    }
    return _encode(wire)


def encode_lines(events: list[Event]) -> bytes:
    """Write events as NDJSON, for a record of type `LINES`."""
    return b"\n".join(map(encode_event, events))


def identity(subject: str, source: str, event_id: str) -> bytes:
    """Return the 16 bytes by which a foreign event is counted once: (tenant, source, id), never its time.

    The parts are length-prefixed, so that source "a-b" id "c" is not source "a" id "b-c".
    """
    return hashlib.blake2b(
        f"{len(subject)}:{subject}{len(source)}:{source}{event_id}".encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


def version_identity(subject: str, source: str, event_id: str, version: int) -> bytes:
    """Return the 16 bytes by which the nth correction of a foreign event is counted once."""
    names = f"version {version} {len(subject)}:{subject}{len(source)}:{source}{event_id}"
    return hashlib.blake2b(names.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def batch_identity(collector: str, epoch: str, sequence: int, index: int | None = None) -> bytes:
    """Return the 16 bytes of a numbered batch, or of one event of it that is let in again later."""
    tail = "" if index is None else f"/{index}"
    text = f"batch {len(collector)}:{collector}{len(epoch)}:{epoch}{sequence}{tail}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def home_key(subject: str, source: str) -> bytes:
    """Return the Kafka key of a foreign event; Kafka's default partitioner over it names the event's home."""
    return f"{subject}/{source}".encode("utf-8", "surrogatepass")
