"""Corrections: an event that was counted is taken back, and counted anew as it should have been, or not at all.

A correction names the event by its identity and carries its bytes as they count now (`was`) and as they shall count
(`now`; empty: not at all). It is accepted if exactly these bytes were accepted as the version before, at a smaller
position, and nobody corrected that version before: a function of the log, like everything else. It is booked where the
log received it, with the event's own minute; what is booked already stays. Once an id was used again, after it had
expired, only what corrects the later event counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from crc32c import crc32c
from msgspec import structs

from pipeline.aggregate import Readings
from pipeline.book import Conflict, CorrectionRow, Counts, Forward, OpenChunk
from pipeline.catalog import Catalog
from pipeline.columns import Block, Correction, Events, Identity, MetersAt
from pipeline.identities import Accepted, IdColumns
from pipeline.json_events import JsonDecoder
from pipeline.letters import record_letter
from pipeline.lines import Lines
from tallyman.corrections import write_correction
from tallyman.errors import EventError
from tallyman.event import (
    CORRECTION,
    FIRST_US,
    SINGLE,
    Event,
    decode_event,
    format_time,
    home_key,
    identity,
    version_identity,
)
from tallyman.headers import Headers
from tallyman.kafka import partition_of
from tallyman.meter import BY_MOMENT, CORRECTABLE, Definitions, Meter

Find = Callable[[list[Identity], int], dict[Identity, Accepted]]  # the newest acceptances below an offset


def read_correction(body: bytes, version: int, partitions: int, offset: int, clocks: tuple[int, int],
                    headers: Headers) -> Correction:  # fmt: skip
    """Understand the record of a correction.

    Args:
        clocks: When it was appended, and the log clock, in milliseconds.

    Raises:
        EventError: It is none.
    """
    event = decode_event(body)
    if event.type != CORRECTION:
        raise EventError("wrong_type", f'type: expected "{CORRECTION}" under this header, got "{event.type[:100]}"')
    was, now = (_text(event, name) for name in ("was", "now"))
    if was == now:
        raise EventError("wrong_type", "data.was and data.now: expected two texts that differ, got the same twice")
    named = decode_event(was or now)
    for text in (was, now):
        if text and _names(decode_event(text)) != (event.subject, event.source, named.id):
            raise EventError("wrong_type", "data: expected events of the correction's subject and source, of one id")
    who = event.subject, event.source, named.id
    before = identity(*who) if version == 1 else version_identity(*who, version - 1)
    return Correction(
        offset=offset,
        appended_ms=clocks[0],
        clock_ms=clocks[1],
        home=partition_of(home_key(event.subject, event.source), partitions),
        event=named,
        version=version,
        was=was,
        now=now,
        reason=str(event.data.get("reason") or "")[:1000],
        body=body,
        headers=headers,
        first=_words(identity(*who)),
        before=_words(before),
        after=_words(version_identity(*who, version)),
    )


def measure_correction(
    correction: Correction, decoder: JsonDecoder, catalog: Catalog, meters_at: MetersAt
) -> Correction:
    """Return a correction with what it takes back and what it adds, under the definitions in force.

    Raises:
        EventError: The event as it shall count is none that could be accepted, or a meter keeps no single values.
    """
    types = {decode_event(text).type for text in (correction.was, correction.now) if text}
    meters = tuple(catalog.meters[number] for kind in sorted(types) for number in catalog.by_type.get(kind, ()))
    if correction.was:
        for meter in meters:
            if meter.aggregation not in CORRECTABLE:
                raise EventError(
                    "not_correctable",
                    f"{meter.meter} keeps its {meter.aggregation} and no single values to take back",
                )
    readings = []
    for text, sign in ((correction.was, -1), (correction.now, 1)):
        if text:
            events = _decode(text, decoder, correction, was=sign < 0)
            version = correction.version - 1 if sign < 0 else correction.version
            readings.append(_signed(events, sign, version, catalog))
    return replace(correction, readings=tuple(readings), meters=meters, meters_at=meters_at)


def refuse_dead(
    was: bytes, now: bytes, version: int, definitions: Definitions, then: Definitions | None = None
) -> None:
    """Refuse a correction of an event that was counted, before it is sent, if it would be a dead letter.

    Args:
        definitions, then: Those in force, and those under which the event was accepted as what it counts as now, if
            that is known.

    Raises:
        EventError: Why it would be one, in the words of the dead letter.
    """
    body = write_correction(was, now, event_id="-", time=format_time(FIRST_US), reason="")
    catalog = Catalog(definitions)
    found = read_correction(body, version, 1, 0, (0, 0), ())
    found = measure_correction(found, JsonDecoder(catalog, 1), catalog, lambda number: definitions.meters)
    if then is not None:
        _refuse_changed(found, then.meters, then.number)


def count_corrections(block: Block, chunk: OpenChunk, find: Find) -> Counts:
    """Judge the corrections of a block, in log order, after everything else in it; return what became of them."""
    counts = Counts()
    for correction in block.corrections:
        if correction.home != block.partition:
            block.forwards.append(Forward(correction.home, b"", correction.body, correction.headers))
            continue
        event, before, done = _find_versions(correction, find)
        if done is not None:
            conflict = done.digest != digest_of(correction.now)
            if conflict:
                chunk.conflicts.append(_conflict(correction, block, done))
            counts = counts.plus(Counts(duplicate=1, conflict=int(conflict)))
            continue
        try:
            _check(correction, before)
            _check_void(correction, event)
        except EventError as error:
            block.dead.append(record_letter(block, correction.offset, error))
            continue
        assert before is not None
        _accept(correction, before, block, chunk)
        counts = counts.plus(Counts(aggregated=1))
    return counts


def digest_of(text: bytes) -> int:
    """Return the digest of an event's bytes, as `ids` holds it."""
    return int(crc32c(text)) | len(text) << 32


def _find_versions(correction: Correction, find: Find) -> list[Accepted | None]:
    """Return where the event was accepted before a correction, the version that it corrects, and the one that it makes.

    What lies behind the correction is not known to it, wherever the log was cut into blocks. Versions from before the
    newest acceptance of the event itself were those of another event under its id.
    """
    found = find([correction.first, correction.before, correction.after], correction.offset)
    event = found.get(correction.first)
    versions = (event, found.get(correction.before), found.get(correction.after))
    return [each if each and (event is None or each.place >= event.place) else None for each in versions]


def _check(correction: Correction, before: Accepted | None) -> None:
    if before is None:
        number = correction.version - 1
        what = f"version {number} of it" if number else "no such event"
        raise EventError("unknown_event", f'"{correction.event.id[:100]}": {what} was accepted before')
    if before.digest != digest_of(correction.was):
        raise EventError("unknown_event", f"data.was: these are not the bytes that were accepted at {before.where}")
    _refuse_changed(correction, correction.meters_at(before.definitions), before.definitions)


def _refuse_changed(correction: Correction, meters: Sequence[Meter], definitions: int) -> None:
    """Refuse to take back by the meters in force what others measured, those of these definitions."""
    if not correction.was:
        return
    # The event's own type may have no meter any more: then nothing would be taken back.
    wanted = {decode_event(correction.was).type, *(meter.event_type for meter in correction.meters)}
    then = [meter for meter in meters if meter.event_type in wanted]
    if sorted(then, key=_slug) != sorted(correction.meters, key=_slug):
        raise EventError(
            "not_correctable",
            f"its meters changed since definitions {definitions}; send the difference as an event of its own",
        )


def _check_void(correction: Correction, event: Accepted | None) -> None:
    """Refuse to bring a void event back whose id others had: the correction does not say which one of them it means."""
    if not correction.was and event is not None and event.again:
        raise EventError(
            "not_correctable", "it is void, and its id was used before when it had expired; send an event with a new id"
        )


def _accept(correction: Correction, before: Accepted, block: Block, chunk: OpenChunk) -> None:
    high, low = (np.array([word], np.uint64) for word in correction.after)
    remembered = np.array([max(correction.clock_ms * 1000, correction.event.time_us)], np.int64)
    definitions = np.array([block.after.definitions], np.uint32)
    place, nothing = np.array([correction.offset], np.int64), np.zeros(1, np.int64)
    digests = np.array([digest_of(correction.now)], np.uint64)
    chunk.accepted.add(IdColumns(high, low, place, nothing, remembered, digests, definitions))
    block.readings += correction.readings
    chunk.corrections.append(
        CorrectionRow(
            correction.offset,
            correction.appended_ms,
            block.after.booking,
            correction.event.subject,
            correction.event.source,
            correction.event.id,
            correction.version,
            before.offset,
            correction.reason,
            correction.was,
            correction.now,
        )
    )


def _decode(text: bytes, decoder: JsonDecoder, correction: Correction, *, was: bool) -> Events:
    lines = Lines([text], [correction.offset], [0], [correction.appended_ms], [correction.clock_ms], [True])
    events, dead, _ = decoder.decode(lines, SINGLE, 0)
    if dead and was:
        raise EventError("not_correctable", f"its meters changed and now say: {dead[0].detail}")
    if dead:
        raise EventError(dead[0].reason, f"data.now: {dead[0].detail}")
    return events


def _signed(events: Events, sign: int, version: int, catalog: Catalog) -> Readings:
    """Return readings that count once, or take one back.

    A corrected point gets an item of its own: of two values at one moment, neither would be the later one. What takes
    one back is no value that could be the latest: whether it is folded with the other or behind it must not matter.
    """
    readings = events.readings(np.ones(len(events), bool))
    readings.values = readings.values * sign
    if sign < 0:
        readings.times_us = np.full_like(readings.times_us, FIRST_US - 1)
    readings.weights = np.full(len(readings), sign, np.int64)
    if version:
        for row, key in enumerate(readings.keys.tolist()):
            series = catalog.series[key >> 32]
            if catalog.meters[series.meter].aggregation in BY_MOMENT:
                item = f'{series.item[:-1]},"{version}"]'
                number = catalog.number(structs.replace(series, item=item))
                readings.keys[row] = number << 32 | (key & 0xFFFFFFFF)
    return readings


def _conflict(correction: Correction, block: Block, done: Accepted) -> Conflict:
    return Conflict(correction.offset, 0, done.offset, done.event_index, block.after.booking,
                    correction.appended_ms, correction.body)  # fmt: skip


def _text(event: Event, name: str) -> bytes:
    value = event.data.get(name)
    if not isinstance(value, str):
        raise EventError("wrong_type", f"data.{name}: expected the event's JSON as text, got {type(value).__name__}")
    return value.encode()


def _names(event: Event) -> tuple[str, str, str]:
    return event.subject, event.source, event.id


def _slug(meter: Meter) -> str:
    return meter.meter


def _words(digest: bytes) -> Identity:
    high, low = np.frombuffer(digest, "<u8").tolist()
    return high, low
