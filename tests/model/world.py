"""The model's world with the real tables of one database as its store.

The log is the model's: holes, retention, a stepping clock. What a service would ask of the store is asked of the real
tables, by the code that asks in production where there is such code. One minute of the model is 144 real ones, so that
its day of ten minutes is a UTC day.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain
from random import Random
from typing import Any

import numpy as np

from pipeline.batches import Fetch
from pipeline.frontier import Frontier, read_frontier
from pipeline.seal import read_sealed_to
from pipeline.write import Progress
from tallyman.aggregates import read_usage
from tallyman.completeness import read_completeness
from tallyman.corrections import write_correction
from tallyman.errors import BrokerError, LogError
from tallyman.event import (
    ADMITTED,
    CLOSE,
    CORRECTS,
    DEFINITIONS,
    TICK,
    Event,
    encode_event,
    format_time,
    home_key,
    identity,
)
from tallyman.kafka import partition_of
from tallyman.meter import Definitions, Meter
from tallyman.usage import UsageAnswer, UsageQuery
from tests.model import judging
from tests.model.chunk_check import CheckedWorld
from tests.model.chunk_model import CHUNK, CLOSES, CORRECTABLE, NEVER, Broken, Rules
from tests.model.judging import AHEAD, OLDEST, Record
from tests.model.process import running
from tests.model.store import Door, Faults, Store

TOPIC = "model"
UNIT_MS = 8_640_000  # one minute of the model
FIRST_DAY = 20_454  # 2026-01-01
START_MS = FIRST_DAY * 86_400_000
SUM, LATEST, DISTINCT = "compute", "compute.latest", "compute.distinct"
CREDIT, CREDIT_DISTINCT = "credit", "credit.distinct"  # of what can be corrected


def definitions(number: int) -> Definitions:
    """The model's two meter definitions, 1 and 2: the second ones change the unit.

    Raises:
        LogError: There are no others.
    """
    if number not in (1, 2):
        raise LogError(f"the log puts definitions {number} in force, which nobody made")
    common: dict[str, Any] = {"value": "value", "scale": (0, 3)[number - 1]}
    return Definitions(
        number=number,
        meters=(
            Meter(meter=SUM, event_type="compute", aggregation="sum", **common),
            Meter(meter=LATEST, event_type="compute", aggregation="latest", **common),
            Meter(meter=DISTINCT, event_type="compute", aggregation="unique_count", **common),
            Meter(meter=CREDIT, event_type="credit", aggregation="sum", **common),
            Meter(meter=CREDIT_DISTINCT, event_type="credit", aggregation="unique_count", **common),
        ),
        oldest_accepted=timedelta(milliseconds=OLDEST * UNIT_MS),
        furthest_ahead=timedelta(milliseconds=AHEAD * UNIT_MS),
    )


def real_booking(booking: int) -> int:
    return (FIRST_DAY + booking // CLOSES) * 1000 + booking % CLOSES


def model_booking(booking: int) -> int:
    return (booking // 1000 - FIRST_DAY) * CLOSES + min(booking % 1000, CLOSES - 1)  # a seal may name the last of a day


class LogOutlet:
    """Forwards go to the model's log. Who is told of progress looks at once whether it is there."""

    def __init__(self, world: RealWorld) -> None:
        self._world = world

    def forward(self, forwards: Any) -> None:
        world = self._world
        for each in () if world.replaying else forwards:
            running().pause("forward")
            executed, acknowledged = world.faults.fate("forward")
            if executed:
                appended = world.now + world.broker_skew
                world.logs[each.partition].append(world.events[each.value], appended, admitted=True)
            if not acknowledged:
                raise BrokerError("Kafka did not acknowledge")

    def push(self, progress: Progress) -> None:
        if not self._world.settling and self._world.reached()[progress.partition] < progress.place.offset:
            raise Broken("I2 who waits for usage was told of a place that cannot be read yet")

    def close(self) -> None:
        return


class RealWorld(CheckedWorld):
    """A world whose tables are real. Its processes are given by `tests.model.actors`."""

    def __init__(self, seed: int, store: Store) -> None:
        super().__init__(seed, Rules())
        self.real = store
        store.empty()
        self.faults = Faults(self.rng, share=0.04)
        self.events: dict[bytes, judging.Event] = {}
        self.start: Sequence[Callable[[RealWorld], Iterator[None]]] = ()
        self.deploy(self.rng)
        self.dropped = 0  # how often hot rows of sealed bookings were dropped
        self._checked = (0, 0, 0)
        self._sealed_before: dict[int, dict[tuple, tuple]] = {}

    def deploy(self, rng: Random) -> None:
        """Choose how the code is set up; small limits, so that a few records reach them."""
        tight = rng.random() < 0.5
        self.most_keys, self.block_rows = (12, 24) if tight else (900_000, 1 << 20)
        self.most_ids = rng.choice((3, 1_000_000))
        self.chunk_size, self.most_records = CHUNK, 5
        self.archive = rng.random() < 0.2
        self.patience_s = 40.0
        self.flush_share, self.threads_share = 0.25, 0.1

    def makers(self) -> Sequence[Callable[[], Iterator[None]]]:
        return [lambda make=make: make(self) for make in self.start]  # type: ignore[misc]

    def anew(self) -> RealWorld:
        again = RealWorld(0, self.real)
        again.start, again.flush_share = self.start, 0.1
        again.chunk_size, again.most_records = 8 * CHUNK, 8 * CHUNK  # what comes out does not depend on it
        again.archive = False
        return again

    def door(self, *, numpy: bool = False) -> Any:
        """Return what a process has for a client."""
        return Door(self.real, running(), self.faults, numpy=numpy)

    @property
    def calm(self) -> bool:
        return self.faults.share == 0

    @calm.setter
    def calm(self, value: bool) -> None:
        """Called by the model's constructor, and when the faults end."""
        self.settling = value
        if value:
            self.faults.share = 0.0

    def now_ms(self) -> int:
        return START_MS + self.now * UNIT_MS

    # What the log and its events are in reality.

    def home(self, event: judging.Event) -> int:
        return partition_of(home_key(event.subject, event.first), len(self.logs))

    def meter(self, event: judging.Event, meters: int) -> tuple[str, tuple]:
        """What is expected of an event; the value is scaled as it is stored."""
        if event.subject == CORRECTABLE:
            count = bool(event.value) - bool(event.was)
            return event.subject, (count, (event.value - event.was) * (1, 1000)[meters], NEVER)
        value = event.value * (1, 1000)[meters]
        digest = identity(event.subject, event.identity, event.identity)
        ordered = digest[:8][::-1] + digest[8:][::-1]  # two little-endian words, as ClickHouse orders their bytes
        return event.subject, (1, value, (event.minute, ordered, value))

    def fetch(self, partition: int, position: int, most: int) -> Fetch:
        """Return up to so many records from `position` on, or from the log's begin: as a consumer that would jump."""
        log, records = self.logs[partition], []
        first = position = max(position, log.start)
        for _ in range(most):
            record, position = log.next(position, log.end, strict=True)
            if record is None:
                break
            records.append(record)
        values = [self._value(record) for record in records]
        return Fetch(
            TOPIC, partition, first, position,
            np.array([record.offset for record in records], np.int64),
            np.array([START_MS + record.appended_at * UNIT_MS for record in records], np.int64),
            values, [None] * len(records), [_headers(record) for record in records],
            tuple((record.offset, 0, zlib.crc32(value)) for record, value in zip(records, values, strict=True)),
        )  # fmt: skip

    def _value(self, record: Record) -> bytes:
        if record.event is None:
            return b""
        event = record.event
        body = _body(event, event.value)
        if event.corrects:
            time = format_time(START_MS * 1000)
            body = write_correction(_body(event, event.was), body, event_id=event.identity, time=time, reason="")
        self.events[body] = event
        return body

    # What the model's services ask of the store, asked of the real tables.

    def real_frontier(self, partition: int) -> Frontier:
        return read_frontier(self.real, TOPIC, partition, self.chunk_size)  # type: ignore[arg-type]

    def frontier(self, partition: int) -> Any:  # type: ignore[override]
        found = self.real_frontier(partition)
        return found.chunk, found.start, found.turned, found.reached

    def reached(self) -> list[int]:
        """Return how far readers are told that each partition is booked."""
        told = read_completeness(self.real).partitions  # type: ignore[arg-type]
        places = {each.partition: each.offset for each in told}
        return [places.get(partition, 0) for partition in range(len(self.logs))]

    @property
    def sealed_to(self) -> int:
        real = read_sealed_to(self.real) if hasattr(self, "real") else 0  # type: ignore[arg-type]
        return model_booking(real) if real else -1

    @sealed_to.setter
    def sealed_to(self, value: int) -> None:
        """Called by the model's constructor; here the table `seals` says it."""

    def hot_rows(self) -> dict[tuple, tuple]:
        rows = self.real.execute(
            "SELECT partition, chunk, booking, definitions, meter, subject, toUnixTimestamp(minute), count, sum,"
            " latest, latest_us, hex(latest_by) FROM usage_hot FINAL WHERE booking > %(sealed)s",
            {"sealed": read_sealed_to(self.real)},  # type: ignore[arg-type]
        )
        return _rows(rows, 2)

    def sealed(self) -> dict[int, dict[tuple, tuple]]:
        rows = self.real.execute(
            "SELECT booking, definitions, meter, subject, toUnixTimestamp(minute), count, sum, latest, latest_us,"
            " hex(latest_by) FROM usage"
        )
        sealed: dict[int, dict[tuple, tuple]] = {}
        for key, value in _rows(rows, 0).items():
            sealed.setdefault(key[0], {})[key] = value
        return sealed

    def booking_to_seal(self) -> int | None:
        """Return a booking that every partition has left and nobody has sealed."""
        left = min(model_booking(self.real_frontier(partition).reached.booking) for partition in range(len(self.logs)))
        sealed_to = self.sealed_to
        return min((key[2] for key in self.hot_rows() if sealed_to < key[2] < left), default=None)

    # What must be true.

    def check(self) -> None:
        """I2 and I4, after whatever was done."""
        versions = self.real.versions
        written = (versions["usage_hot"], versions["progress"], versions["seals"], versions["usage"])
        if written == self._checked:
            return
        if written[3] != self._checked[-1]:
            self._check_sealed()
        self._checked = written
        self.check_prefix(self.hot_rows(), self.sealed_to, self.reached())

    def _check_sealed(self) -> None:
        sealed = self.sealed()
        for booking, rows in self._sealed_before.items():
            if sealed.get(booking) != rows:
                raise Broken(f"I4 sealed booking {booking} changed")
        self._sealed_before = sealed

    def check_answer(self, answer: UsageAnswer) -> None:
        """I2 and I3 for who reads through `read_usage`: as much as it claims, no more than is, nothing goes back."""
        complete_to = -1 if answer.complete_to is None else _unit(answer.complete_to)
        least: Counter[tuple[str, int]] = Counter()
        most: Counter[tuple[str, int]] = Counter()
        for booking in chain.from_iterable(self.bookings()):
            if booking.row[3] != CORRECTABLE:
                most[booking.row[3:]] += 1
                least[booking.row[3:]] += booking.clock < complete_to
        events = {(str(row.groups["subject"]), _unit(row.start)): row.events for row in answer.rows}
        if any(events.get(key, 0) < count for key, count in least.items()):
            raise Broken("I2 an answer claims more than it holds")
        if any(most[key] < count for key, count in events.items()):
            raise Broken("I2 an answer holds something twice")
        if any(events.get(key, 0) < count for key, count in self.read_counts.items()):
            raise Broken("I3 a key went back")
        self.read_counts = events

    def check_end(self) -> None:
        """I1, I4, I5; and what readers, distinct values and the counts of each chunk say."""
        self._check_readers()
        self._check_items()
        self._check_counts()
        if self.archive:
            self._check_letters()
        super().check_end()

    def accepted(self) -> Iterator[tuple[judging.Event, int]]:
        """Yield what was accepted, and the partition in which it counts."""
        for partition, booked in enumerate(self.bookings()):
            records = {record.offset: record.event for record in self.logs[partition].records}
            for booking in booked:
                event = records[booking.offset]
                assert event is not None
                yield event, partition

    def _check_readers(self) -> None:
        right: Counter[tuple[str, int]] = Counter()
        for event, _ in self.accepted():
            right[event.subject, event.minute] += event.value - event.was
        answers = (ask(self.real, len(self.logs), meter) for meter in (SUM, CREDIT))
        read = {(row.groups["subject"], _unit(row.start)): row.value for answer in answers for row in answer.rows}
        if nonzero(read) != {key: Decimal(value) for key, value in nonzero(right).items()}:
            raise Broken("I1 what readers are told differs from the distinct accepted events")

    def _check_items(self) -> None:
        right: Counter[tuple[str, int, str]] = Counter()
        for event, _ in self.accepted():
            for value, count in ((event.was, -1), (event.value, 1)):
                if value:
                    right[event.subject, event.minute, f"={value}"] += count
        rows = self.real.execute(
            "SELECT subject, toUnixTimestamp(minute), item, sum(count) FROM usage_booked WHERE meter IN %(meters)s"
            " GROUP BY subject, minute, item",
            {"meters": (DISTINCT, CREDIT_DISTINCT)},
        )
        stored = {
            (subject, (second * 1000 - START_MS) // UNIT_MS, item): count for subject, second, item, count in rows
        }
        if nonzero(stored) != nonzero(right):
            raise Broken("I1 the distinct values differ from those of the accepted events")

    def _check_counts(self) -> None:
        """received = aggregated + duplicate + dead + ignored + forwarded, each as the log says."""
        rows = self.real.execute("SELECT partition, sumForEach(reached_counts) FROM progress FINAL GROUP BY partition")
        stored = {partition: counts[:6] for partition, counts in rows if any(counts)}
        right = {}
        for partition, verdicts in enumerate(map(dict.values, self.verdicts)):
            of = Counter(verdicts)
            right[partition] = [sum(of.values()), of["accepted"], of["duplicate"], of["dead"], 0, of["stray"]]
        if stored != {partition: counts for partition, counts in right.items() if any(counts)}:
            raise Broken(f"I1 the counts of what became of events are {stored}, by the log {right}")

    def _check_letters(self) -> None:
        """A dead letter for each event that is dead, and each record in the raw archive, once."""
        dead = {
            (number, offset) for number, each in enumerate(self.verdicts) for offset in each if each[offset] == "dead"
        }
        rows = self.real.execute("SELECT partition, offset FROM dead_letters FINAL")
        if sorted(rows) != sorted(dead):
            raise Broken("I1 the dead letters differ from the dead events")
        rows = self.real.execute("SELECT partition, offset FROM events FINAL")
        if sorted(rows) != [(number, record.offset) for number, log in enumerate(self.logs) for record in log.records]:
            raise Broken("I1 the raw archive differs from the log")


def ask(client: Any, partitions: int, meter: str = SUM) -> UsageAnswer:
    """Read all usage of a meter as a dashboard does."""
    start = datetime.fromtimestamp(START_MS / 1000, UTC)
    query = UsageQuery(meter=meter, start=start, end=start + timedelta(days=400), window="minute")
    return read_usage(client, query, meters=definitions(2).meters, expected_delay=timedelta(0), partitions=partitions)


def nonzero(totals: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return what is left of totals when what was taken back in whole does not show."""
    return {key: value for key, value in totals.items() if value}


def _body(event: judging.Event, value: int) -> bytes:
    """Return a version of an event as it is sent: nothing if it is void."""
    if not value:
        return b""
    kind = "credit" if event.subject == CORRECTABLE else "compute"
    time_us = (START_MS + event.minute * UNIT_MS) * 1000
    return encode_event(Event(event.first, event.first, kind, event.subject, time_us, {"value": str(value)}))


def _unit(time: datetime) -> int:
    return (int(time.timestamp()) * 1000 - START_MS) // UNIT_MS


def _rows(rows: list[tuple], lead: int) -> dict[tuple, tuple]:
    """Return rows with the model's keys; the meters of an event are one row: (count, sum, latest)."""
    sums: dict[tuple, tuple] = {}
    latest: dict[tuple, tuple] = {}
    distinct: Counter[tuple] = Counter()
    for row in rows:
        place, (booking, number, meter, subject, second, count, total, last, last_us, by) = row[:lead], row[lead:]
        minute = (second * 1000 - START_MS) // UNIT_MS
        key = (*place, model_booking(booking), max(number, 1) - 1, subject, minute)
        if meter in (SUM, CREDIT):
            sums[key] = (count, total)
            if meter == CREDIT:
                latest[key] = NEVER
        elif meter == LATEST:
            latest[key] = ((last_us // 1000 - START_MS) // UNIT_MS, bytes.fromhex(by), last)
        else:
            distinct[key] += count
    if sums.keys() != latest.keys() or distinct != {key: count for key, (count, _) in sums.items()}:
        raise Broken("I2 the meters of the same events show different events")
    return {key: (*sums[key], latest[key]) for key in sums}


def _headers(record: Record) -> tuple[tuple[str, bytes], ...]:
    if record.event is None and not record.opens and not record.meters:
        return ((TICK, b"1"),)
    if record.event is None:
        number = record.meters + 1 if record.meters else 0
        return ((CLOSE, str(real_booking(record.opens)).encode()), (DEFINITIONS, str(number).encode()))
    if record.event.corrects:
        return ((CORRECTS, record.event.identity.partition("~")[2].encode()),)
    return ((ADMITTED, b"1"),) if record.admitted else ()
