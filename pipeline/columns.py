"""Events as columns: what `DecodeUsage` makes of a stretch of log, and what `CountOnce` and `SumUsage` work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.aggregate import Readings, encode_keys
from pipeline.book import Counts, DeadLetter, Forward, Place, RawRecord
from pipeline.heard import Heard
from pipeline.identities import IdColumns
from tallyman.event import Event
from tallyman.headers import Headers, RecordKind, kept_headers
from tallyman.meter import Meter

Identity = tuple[int, int]
MetersAt = Callable[[int], tuple[Meter, ...]]


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a fetch as they came: a dead letter keeps what it was made of."""

    offsets: npt.NDArray[np.int64]
    appended_ms: npt.NDArray[np.int64]
    values: list[bytes | None]
    headers: list[Headers]
    kinds: list[RecordKind]
    kept: dict[int, Headers] = field(default_factory=dict)

    def at(self, offset: int) -> tuple[int, RecordKind, bytes]:
        """Return when a record was appended, what its headers say it is, and its value."""
        row = int(np.searchsorted(self.offsets, offset))
        return int(self.appended_ms[row]), self.kinds[row], self.values[row] or b""

    def kept_headers(self, offset: int) -> Headers:
        """Return what all dead letters of a record keep of its headers."""
        if offset not in self.kept:
            row = int(np.searchsorted(self.offsets, offset))
            self.kept[offset] = kept_headers(self.headers[row], self.kinds[row])
        return self.kept[offset]


@dataclass(slots=True)
class Events:
    """Well-formed events that some meter wants, in log order, and their readings.

    Attributes:
        high, low: The identity's two halves. Of a numbered batch all rows share one.
        homes: The partition in which each event counts.
        admitted: Judged before (a dead letter let in again, or forwarded): only its identity is checked.
        bodies: The bytes of each event, for dead letters and conflicts; of a numbered batch, of its record.
        reading_event, reading_series, reading_value: One row for each meter that wants an event.
        claims: Of numbered batches, their identities: each is accepted, or a copy, as a whole. None: foreign events.
        batch: Which of the claims each row belongs to.
        dead: Of numbered batches, the rows that are dead if this is the first copy; a letter's offset names its batch.
        body_of: Of numbered batches, writes a row as the JSON event that it stands for.
    """

    offsets: npt.NDArray[np.int64]
    indexes: npt.NDArray[np.int64]
    appended_ms: npt.NDArray[np.int64]
    clocks_ms: npt.NDArray[np.int64]
    times_us: npt.NDArray[np.int64]
    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    digests: npt.NDArray[np.uint64]
    homes: npt.NDArray[np.int64]
    admitted: npt.NDArray[np.bool_]
    bodies: Sequence[bytes]
    reading_event: npt.NDArray[np.int64]
    reading_series: npt.NDArray[np.int32]
    reading_value: npt.NDArray[Any]
    content_type: str = ""
    claims: IdColumns | None = None
    batch: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    dead: list[DeadLetter] = field(default_factory=list)
    body_of: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def readings(self, accepted: npt.NDArray[np.bool_]) -> Readings:
        """Return the readings of the accepted events."""
        event, series, value = self.reading_event, self.reading_series, self.reading_value
        if not accepted.all():
            chosen = accepted[event]
            event, series, value = event[chosen], series[chosen], value[chosen]
        times = self.times_us[event]
        return Readings(encode_keys(series, times // 60_000_000), value, times, self.high[event], self.low[event])


@dataclass(frozen=True, slots=True)
class Correction:
    """One correction, understood but not judged.

    Attributes:
        home: The partition in which the event counts.
        first, before, after: Identities of the event itself, of the version that is corrected and of the one that this
            makes.
        meters: Those that the event's type has under the definitions in force.
        meters_at: Those that it had under earlier ones.
    """

    offset: int
    appended_ms: int
    clock_ms: int
    home: int
    event: Event
    version: int
    was: bytes
    now: bytes
    reason: str
    body: bytes
    headers: Headers
    first: Identity
    before: Identity
    after: Identity
    readings: tuple[Readings, ...] = ()
    meters: tuple[Meter, ...] = ()
    meters_at: MetersAt = field(default=lambda number: ())


@dataclass(slots=True)
class Block:
    """A stretch of log inside one chunk, one booking and one version of the definitions.

    Attributes:
        after: The place behind it; its counts are filled in when the block is folded.
        begins: The place of its first record, if a booking begins here.
        turn: A booking begins here; what is not written yet is flushed first.
        closes: The chunk ends behind it; all of it is flushed before the next one begins.
        idle: The poll brought nothing.
        at_end: The broker said that the log ends behind it.
    """

    topic_id: str
    partition: int
    before: Place
    after: Place
    begins: Place = field(default_factory=Place)
    turn: bool = False
    closes: bool = False
    idle: bool = False
    at_end: bool = False
    parts: list[Events] = field(default_factory=list)
    readings: list[Readings] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    corrections: list[Correction] = field(default_factory=list)
    raw: list[RawRecord] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    records: Records | None = None
    received: int = 0
    ignored: int = 0
    counts: Counts = field(default_factory=Counts)
