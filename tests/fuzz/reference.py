"""A slow reference: one record and one event at a time, by the contracts in `tallyman` alone, with dicts for tables.

It says what every record of a partition's log must come to. Whatever it shares with the pipeline is a contract: how
headers, events, meters and identities are read. Columns, shapes, filters, chunks of work: none of it is here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

from crc32c import crc32c

from tallyman.binary import compose
from tallyman.errors import EventError
from tallyman.event import (
    COLLECTOR,
    CORRECTION,
    MAX_RECORD_BYTES,
    Event,
    batch_identity,
    decode_event,
    home_key,
    identity,
    split_record,
    version_identity,
)
from tallyman.headers import Headers, RecordKind, kind_of
from tallyman.kafka import partition_of
from tallyman.meter import CORRECTABLE, Definitions, Meter, Reading, measure
from tests.fuzz.arrow_rows import rows_of

DAY_MS = 86_400_000
KEPT_CHUNKS = 3  # ids of chunks before these are forgotten, here and in the store of the walk: the run has no end
Identity = tuple[int, int]


class Seen(NamedTuple):
    """An accepted identity."""

    offset: int
    index: int
    remembered_us: int
    digest: int


class Letter(NamedTuple):
    """A dead letter; `detail` and `body` are None where the pipeline may say it in its own words."""

    offset: int
    index: int
    reason: str
    detail: str | None
    body: bytes | None


class Row(NamedTuple):
    """A row of usage: what one series has in one minute."""

    count: int
    sum: int
    min: int
    max: int
    moment: tuple[int, Identity]  # of the latest value
    latest: int


class Judged(NamedTuple):
    """One event on its way to being counted."""

    offset: int
    index: int
    event: Event
    body: bytes
    readings: Sequence[Reading]


SeriesMinute = tuple[str, str, str, str, int]


class Reference:
    """What a partition's log comes to.

    Args:
        load: Returns a version of the definitions.
    """

    def __init__(self, partition: int, partitions: int, chunk_size: int, load: Callable[[int], Definitions]) -> None:
        self.partition, self._partitions, self._size, self._load = partition, partitions, chunk_size, cache(load)
        self.clock_ms = self.booking = self.definitions = 0
        self.seen: dict[bytes, Seen] = {}
        self.counts: dict[int, Counter[str]] = defaultdict(Counter)  # by chunk
        self.usage: dict[tuple[int, int, int], dict[SeriesMinute, Row]] = defaultdict(dict)  # chunk, booking, version
        self.letters: list[Letter] = []
        self.conflicts: list[tuple[int, int, int, int]] = []
        self.forwards: list[tuple[int, bytes]] = []
        self._chunk = 0

    def read(self, offset: int, appended_ms: int, headers: Headers, value: bytes | None) -> None:
        """Judge one record."""
        body, kind = value or b"", kind_of(headers)
        self._enter(offset // self._size)
        self.clock_ms = max(self.clock_ms, appended_ms)
        day = self.clock_ms // DAY_MS
        self.booking = max(self.booking, day * 1000)
        if kind.control:
            if kind.opens < (day + 2) * 1000:
                self.booking = max(self.booking, kind.opens)
            self.definitions = max(self.definitions, kind.definitions)
            return
        try:
            if kind.problem is not None:
                raise kind.problem
            if kind.corrects:
                self._correction(offset, kind, body)
            elif kind.sequence >= 0:
                self._numbered(offset, kind, body)
            else:
                self._foreign(offset, kind, body)
        except EventError as error:
            self._note("received")
            own_words = kind.format == "arrow" or kind.corrects > 0
            self.letters.append(Letter(offset, 0, error.reason, None if own_words else error.detail, body))
            self._note("dead")

    def _enter(self, chunk: int) -> None:
        if chunk != self._chunk:
            self._chunk = chunk
            oldest = (chunk - KEPT_CHUNKS) * self._size
            self.seen = {who: seen for who, seen in self.seen.items() if seen.offset >= oldest}

    def _foreign(self, offset: int, kind: RecordKind, body: bytes) -> None:
        if kind.format == "arrow":
            raise EventError("missing_field", f"Arrow batches must be numbered: header {COLLECTOR} is missing")
        for index, part in enumerate(_parts(kind, body)):
            self._note("received")
            shown = body if kind.attributes is not None else part
            found = self._understand(offset, index, part, shown)
            if found is not None:
                home = partition_of(home_key(found.event.subject, found.event.source), self._partitions)
                who = identity(found.event.subject, found.event.source, found.event.id)
                self._count_once(found, who, home, shown, admitted=kind.admitted)

    def _understand(self, offset: int, index: int, part: bytes, shown: bytes) -> Judged | None:
        try:
            event = decode_event(part)
            readings = self._measure(event)
        except EventError as error:
            self._die(offset, index, error, shown)
            return None
        if not readings:
            self._note("ignored")
            return None
        return Judged(offset, index, event, part, readings)

    def _measure(self, event: Event) -> list[Reading]:
        meters = [meter for meter in self.meters if meter.event_type == event.type]
        if not meters and event.type not in self._in_force.ignore:
            raise EventError("unknown_meter", f'type: no meter wants "{event.type}"')
        found = [measure(meter, event) for meter in meters]
        return [reading for reading in found if reading is not None]

    @property
    def _in_force(self) -> Definitions:
        return self._load(max(self.definitions, 1))

    @property
    def meters(self) -> tuple[Meter, ...]:
        return self._in_force.meters

    def _is_late(self, found: Judged, shown: bytes | None) -> bool:
        window, clock_us = self._in_force, self.clock_ms * 1000
        counted = {reading.meter for reading in found.readings}
        least = min(window.oldest_of(meter) for meter in window.meters if meter.meter in counted)
        oldest = clock_us - round(least.total_seconds() * 1e6)
        newest = clock_us + round(window.furthest_ahead.total_seconds() * 1e6)
        if oldest <= found.event.time_us <= newest:
            return False
        reason = "too_old" if found.event.time_us < oldest else "too_far_ahead"
        self.letters.append(Letter(found.offset, found.index, reason, None, shown))
        self._note("dead")
        return True

    def _count_once(self, found: Judged, who: bytes, home: int, shown: bytes, *, admitted: bool) -> None:
        if not admitted and self._is_late(found, shown):
            return
        if home != self.partition:
            self._note("forwarded")
            self.forwards.append((home, found.body))
            return
        definitions = self._in_force
        clock_us, digest, first = self.clock_ms * 1000, digest_of(found.body), self.seen.get(who)
        remember_us = round(definitions.remember.total_seconds() * 1e6)
        if first is not None and (admitted or clock_us - first.remembered_us <= remember_us):
            self._note("duplicate")
            if first.digest != digest:
                self._conflict(found.offset, found.index, first)
            return
        remembered = max(clock_us, found.event.time_us)
        self.seen[who] = Seen(found.offset, found.index, remembered, digest)
        self._note("aggregated")
        self._book(found, words(who))

    def _numbered(self, offset: int, kind: RecordKind, body: bytes) -> None:
        if len(body) > MAX_RECORD_BYTES:
            raise EventError("too_large", f"expected at most {MAX_RECORD_BYTES} bytes, got {len(body)}")
        home = partition_of(kind.collector.encode(), self._partitions)
        if home != self.partition:
            self._note("received")
            self._note("forwarded")
            self.forwards.append((home, body))
            return
        index = kind.event_index if kind.event_index >= 0 else None
        who = batch_identity(kind.collector, kind.epoch, kind.sequence, index)
        if kind.event_index >= 0:
            self._one_of_a_batch(offset, kind, body, who, home)
            return
        dead, kept, ignored = self._rows(offset, kind, body)
        if not kept and not dead and not (ignored and kind.format == "arrow"):
            return
        first, events = self.seen.get(who), len(kept) + len(dead)
        if first is not None and first.digest != digest_of(body):
            detail = f"this number was used at offset {first.offset} with other content"
            raise EventError("number_reused", detail)
        self._note("received", events)
        if first is not None:
            self._note("duplicate", events)
            return
        self.seen[who] = Seen(offset, 0, 0, digest_of(body))
        self.letters += dead
        self._note("dead", len(dead))
        for found in kept:
            if kind.admitted or not self._is_late(found, None):
                self._note("aggregated")
                self._book(found, words(who))

    def _one_of_a_batch(self, offset: int, kind: RecordKind, body: bytes, who: bytes, home: int) -> None:
        (part,) = _parts(kind, body)
        self._note("received")
        found = self._understand(offset, 0, part, body)
        if found is not None:
            self._count_once(found, who, home, body, admitted=kind.admitted)

    def _rows(self, offset: int, kind: RecordKind, body: bytes) -> tuple[list[Letter], list[Judged], int]:
        """Return the dead and the good events of a numbered batch, and how many were ignored."""
        dead, kept, ignored = [], [], 0
        for index, (read, part) in enumerate(self._events_of(kind, body)):
            try:
                event = read()
                readings = self._measure(event)
            except EventError as error:
                detail = None if part is None else error.detail
                shown = body if kind.attributes is not None else part
                dead.append(Letter(offset, index, error.reason, detail, shown))
                continue
            if readings:
                kept.append(Judged(offset, index, event, part or b"", readings))
            else:
                ignored += 1
        self._note("received", ignored)
        self._note("ignored", ignored)
        return dead, kept, ignored

    def _events_of(self, kind: RecordKind, body: bytes) -> Iterator[tuple[Callable[[], Event], bytes | None]]:
        if kind.format == "arrow":
            for row in rows_of(body):
                yield row.event, None
            return
        for part in _parts(kind, body):
            yield partial(decode_event, part), part

    def _correction(self, offset: int, kind: RecordKind, body: bytes) -> None:
        text = compose(kind.attributes, body) if kind.attributes is not None else body
        if len(text) > MAX_RECORD_BYTES:
            raise EventError("too_large", f"expected at most {MAX_RECORD_BYTES} bytes, got {len(text)}")
        event = decode_event(text)
        was, now = self._texts(event)
        named = decode_event(was or now)
        for each in (was, now):
            if each and _names(decode_event(each)) != (event.subject, event.source, named.id):
                told = "data: expected events of the correction's subject and source, of one id"
                raise EventError("wrong_type", told)
        home = partition_of(home_key(event.subject, event.source), self._partitions)
        if home != self.partition:
            self._note("received")
            self._note("forwarded")
            self.forwards.append((home, text))
            return
        self._correct(offset, kind.corrects, was, now, named)

    def _texts(self, event: Event) -> tuple[bytes, bytes]:
        if event.type != CORRECTION:
            raise EventError("wrong_type", f'type: expected "{CORRECTION}" under this header, got "{event.type[:100]}"')
        found = []
        for name in ("was", "now"):
            value = event.data.get(name)
            if not isinstance(value, str):
                got = type(value).__name__
                raise EventError("wrong_type", f"data.{name}: expected the event's JSON as text, got {got}")
            found.append(value.encode())
        if found[0] == found[1]:
            raise EventError("wrong_type", "data.was and data.now: expected two texts that differ, got the same twice")
        return found[0], found[1]

    def _correct(self, offset: int, version: int, was: bytes, now: bytes, named: Event) -> None:
        """The made logs hold no corrections that could be accepted, so that no usage is taken back here."""
        self._check_measures(was, now)
        who = (named.subject, named.source, named.id)
        before = self.seen.get(identity(*who) if version == 1 else version_identity(*who, version - 1))
        if before is None:
            what = f"version {version - 1} of it" if version > 1 else "no such event"
            raise EventError("unknown_event", f'"{named.id[:100]}": {what} was accepted before')
        if before.digest == digest_of(was):
            raise AssertionError(f"offset {offset}: a correction that can be accepted")
        raise EventError("unknown_event", f"data.was: these are not the bytes that were accepted at {before.offset}")

    def _check_measures(self, was: bytes, now: bytes) -> None:
        types = sorted({decode_event(text).type for text in (was, now) if text})
        for meter in (meter for kind in types for meter in self.meters if meter.event_type == kind and was):
            if meter.aggregation not in CORRECTABLE:
                raise EventError("not_correctable", meter.meter)
        for text in (was, now):
            try:
                if text:
                    self._measure(decode_event(text))
            except EventError as error:
                raise EventError("not_correctable" if text is was else error.reason, error.detail) from error

    def _book(self, found: Judged, who: Identity) -> None:
        place = found.offset // self._size, self.booking, self.definitions
        rows = self.usage[place]
        for reading in found.readings:
            key = (reading.meter, reading.subject, reading.dimensions, reading.item, reading.minute)
            value, moment, old = reading.value, (found.event.time_us, who), rows.get(key)
            if old is None:
                rows[key] = Row(1, value, value, value, moment, value)
                continue
            latest = (moment, value) if moment >= old.moment else (old.moment, old.latest)
            rows[key] = Row(
                old.count + 1, old.sum + value, min(old.min, value), max(old.max, value), *latest
            )

    def _die(self, offset: int, index: int, error: EventError, body: bytes) -> None:
        self.letters.append(Letter(offset, index, error.reason, error.detail, body))
        self._note("dead")

    def _conflict(self, offset: int, index: int, first: Seen) -> None:
        self._note("conflict")
        self.conflicts.append((offset, index, first.offset, first.index))

    def _note(self, fate: str, count: int = 1) -> None:
        self.counts[self._chunk][fate] += count


def _parts(kind: RecordKind, body: bytes) -> list[bytes]:
    """Return the bytes of a record's events."""
    if kind.attributes is None:
        return split_record(kind.content_type, body)
    text = compose(kind.attributes, body)
    return [text] if len(text) <= MAX_RECORD_BYTES else split_record(kind.content_type, text)


def _names(event: Event) -> tuple[str, str, str]:
    return event.subject, event.source, event.id


def digest_of(text: bytes) -> int:
    """Return the digest of an event's bytes, or of a numbered record's."""
    return int(crc32c(text)) | len(text) << 32


def words(digest: bytes) -> Identity:
    """Return an identity as two numbers, in the order in which they decide between values of one moment."""
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
