"""What a file of events would become if it were sent now: judged like the log, by the same decoder; nothing is sent.

By this machine's clock instead of the log's, and by the definitions that were applied last. What others send meanwhile
it cannot know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.aggregate import Readings, wide_enough
from pipeline.book import DeadLetter
from pipeline.catalog import Catalog
from pipeline.close import open_books
from pipeline.columns import Events
from pipeline.frontier import StoredIds
from pipeline.identities import Accepted
from pipeline.json_events import JsonDecoder
from pipeline.lines import Lines
from tallyman import books
from tallyman.clickhouse import connect
from tallyman.errors import EventFileError, LogError
from tallyman.event import MAX_RECORD_BYTES, SINGLE, format_time
from tallyman.event_file import open_events
from tallyman.line import read_topic_now
from tallyman.meter import factor_of, offset_of
from tallyman.project import Project
from tallyman.send import LONGEST_LINE
from tallyman.usage import scaled

_EPOCH = date(1970, 1, 1)
_DAY_MINUTES = 1440
_ADDS_UP = ("sum", "count")
_ANY_OFFSET = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterDay:
    """What a meter would count for of one day, UTC; a total where quantities simply add up."""

    meter: str
    unit: str
    day: date
    events: int
    total: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadGroup:
    """Events that would be dead letters for one reason; `first` is the number of the first of them in the file."""

    reason: str
    events: int
    first: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPreview:
    """What would become of each event of a file.

    Attributes:
        definitions: By which it was judged.
        conflict: Those duplicates that have other content than what was accepted under their id.
        too_long: Lines that no record can hold; they would not be sent.
    """

    events: int
    definitions: int
    aggregated: int
    duplicate: int
    conflict: int
    dead: int
    ignored: int
    meters: tuple[MeterDay, ...]
    letters: tuple[DeadGroup, ...]
    too_long: tuple[int, ...]


def preview_file(
    project: Project,
    path: Path | str,
    now: datetime,
    on_progress: Callable[[int, int | None], None] = lambda done, of: None,
) -> SendPreview:
    """Say what a file would become.

    Raises:
        LogError: Nothing was ever booked: there is nothing to judge it by.
        BrokerError, StoreError: Kafka, ClickHouse or the control store does not answer.
        EventFileError: The file is cut off or damaged.
        UsageQueryError: It is one array that is too large to be read at once.
        OSError: The file cannot be opened.
    """
    engine = open_books(project)
    definitions = books.closed_definitions(engine, project.config.kafka.topic)
    engine.dispose()
    if definitions is None:
        raise LogError("no definitions are in force yet; start the pipeline first: tallyman up, or tallyman pipeline")
    topic = read_topic_now(project)
    client = connect(project.clickhouse, numpy=True)
    file = open_events(path, LONGEST_LINE)
    judge = _Judge(Catalog(definitions), topic.info.topic_id, topic.info.partitions,
                   StoredIds(client, topic.before_ids), now)  # fmt: skip
    try:
        with closing(file):
            for lines in file:
                judge.take(lines)
                on_progress(file.done, file.total)
    except EventFileError as error:
        raise EventFileError(f"{error}; nothing was sent; get the whole file") from error
    finally:
        client.disconnect()
    return judge.report(tuple(sorted(file.too_long)))


@dataclass(slots=True)
class _Judge:
    """Judges events in the order of the file."""

    catalog: Catalog
    topic_id: str
    partitions: int
    ids: StoredIds
    now: datetime
    events: int = 0
    aggregated: int = 0
    duplicate: int = 0
    conflict: int = 0
    ignored: int = 0
    seen: dict[tuple[int, int], int] = field(default_factory=dict)  # identity -> digest, of the file so far
    days: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # (meter, day) -> events, sum
    letters: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    dead: Counter[str] = field(default_factory=Counter)
    decoder: JsonDecoder = field(init=False)

    def __post_init__(self) -> None:
        self.decoder = JsonDecoder(self.catalog, self.partitions)

    def take(self, lines: Sequence[bytes]) -> None:
        """Judge the next lines: too late or too early first, then seen before, as `pipeline.dedupe` does."""
        now_ms = int(self.now.timestamp() * 1000)
        numbered = [(number, line) for number, line in enumerate(lines, self.events + 1) if self._fits(number, line)]
        self.events += len(lines)
        size = len(numbered)
        if not size:
            return
        numbers, bodies = [number for number, _ in numbered], [line for _, line in numbered]
        found, dead, ignored = self.decoder.decode(
            Lines(bodies, numbers, [0] * size, [now_ms] * size, [now_ms] * size, [False] * size), SINGLE, 0
        )
        self.ignored += ignored
        for letter in dead:
            self._bury(letter)
        counting = ~self._late(found, now_ms * 1000)
        counting &= ~self._copies(found, counting, now_ms * 1000)
        self.aggregated += int(np.count_nonzero(counting))
        self._add(found.readings(counting))

    def report(self, too_long: tuple[int, ...]) -> SendPreview:
        return SendPreview(
            events=self.events,
            definitions=self.catalog.definitions.number,
            aggregated=self.aggregated,
            duplicate=self.duplicate,
            conflict=self.conflict,
            dead=self.dead.total(),
            ignored=self.ignored,
            meters=tuple(self._meter_days()),
            letters=tuple(
                DeadGroup(reason=reason, events=events, first=self.letters[reason][0][0],
                          detail=self.letters[reason][0][1])
                for reason, events in sorted(self.dead.items())
            ),
            too_long=too_long,
        )  # fmt: skip

    def _fits(self, number: int, line: bytes) -> bool:
        if len(line) > MAX_RECORD_BYTES:
            self._note_dead("too_large", number, f"expected at most {MAX_RECORD_BYTES} bytes, got {len(line)}")
        return len(line) <= MAX_RECORD_BYTES

    def _bury(self, letter: DeadLetter) -> None:
        self._note_dead(letter.reason, letter.offset, letter.detail)

    def _note_dead(self, reason: str, number: int, detail: str) -> None:
        self.dead[reason] += 1
        first = self.letters.setdefault(reason, [(number, detail)])
        first[0] = min(first[0], (number, detail))

    def _late(self, found: Events, clock_us: int) -> npt.NDArray[np.bool_]:
        old = found.times_us < clock_us - self.catalog.oldest_us_of(found)
        ahead = found.times_us > clock_us + self.catalog.ahead_us
        for row in np.flatnonzero(old | ahead).tolist():
            detail = f"time {format_time(int(found.times_us[row]))}, now {format_time(clock_us)}"
            self._note_dead("too_old" if old[row] else "too_far_ahead", int(found.offsets[row]), detail)
        late: npt.NDArray[np.bool_] = old | ahead
        return late

    def _copies(self, found: Events, among: npt.NDArray[np.bool_], clock_us: int) -> npt.NDArray[np.bool_]:
        """Tell which events were accepted before, or stand in the file before."""
        copies = np.zeros(len(found), bool)
        rows = np.flatnonzero(among).tolist()
        known = self._accepted(found, rows)
        for row in rows:
            key, digest = (int(found.high[row]), int(found.low[row])), int(found.digests[row])
            first = known.get(key)
            remembered = first is not None and clock_us - first.remembered_us <= self.catalog.remember_us
            earlier = self.seen.get(key, first.digest if remembered and first else None)
            if earlier is None:
                self.seen[key] = digest
                continue
            copies[row] = True
            self.duplicate += 1
            self.conflict += earlier != digest
        return copies

    def _accepted(self, found: Events, rows: Sequence[int]) -> dict[tuple[int, int], Accepted]:
        by_home: dict[int, list[tuple[int, int]]] = {}
        for row in rows:
            by_home.setdefault(int(found.homes[row]), []).append((int(found.high[row]), int(found.low[row])))
        known: dict[tuple[int, int], Accepted] = {}
        for home, identities in by_home.items():
            known |= self.ids.find(self.topic_id, home, _ANY_OFFSET, identities)
        return known

    def _add(self, readings: Readings) -> None:
        codes, of_series = np.unique(readings.keys >> 32, return_inverse=True)
        meters = np.array([self.catalog.series.meters[code] for code in codes.tolist()], np.int64)[of_series]
        days = (readings.keys & 0xFFFFFFFF) // _DAY_MINUTES
        values = wide_enough(readings.values)
        for meter, day in sorted(set(zip(meters.tolist(), days.tolist(), strict=True))):
            mine = (meters == meter) & (days == day)
            events, total = self.days.get((meter, day), (0, 0))
            self.days[meter, day] = events + int(np.count_nonzero(mine)), total + int(values[mine].sum())

    def _meter_days(self) -> Iterator[MeterDay]:
        for (number, day), (events, total) in sorted(self.days.items()):
            meter = self.catalog.meters[number]
            plain = meter.aggregation in _ADDS_UP and factor_of(meter) == 1 and offset_of(meter) == 0
            scale = 0 if meter.aggregation == "count" else meter.scale
            yield MeterDay(
                meter=meter.meter,
                unit=meter.unit,
                day=_EPOCH + timedelta(days=day),
                events=events,
                total=scaled(total, scale) if plain else None,
            )

