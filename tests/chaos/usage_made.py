"""The usage that the chaos run sends: a function of a seed and a number, so that a process killed anywhere can make it
again, and so that the exact totals are known without asking anybody.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from collectors.arrow import Reading
from tallyman.event import Event, Series, encode_event, identity
from tallyman.meter import encode_dimensions

METERS = """meters:
- {meter: host.cpu, event_type: chaos.cpu, aggregation: sum, value: value, scale: 9, unit: s, dimensions: {core: core}}
- {meter: host.work, event_type: chaos.work, aggregation: sum, value: value, scale: 9, unit: s}
- {meter: server.seconds, event_type: chaos.server, aggregation: sum, value: value, scale: 9, unit: s,
   dimensions: {flavor: flavor}}
- {meter: server.largest, event_type: chaos.server, aggregation: max, value: value, scale: 9, unit: s}
- {meter: server.last, event_type: chaos.server, aggregation: latest, value: value, scale: 9, unit: s}
- {meter: server.flavors, event_type: chaos.server, aggregation: unique_count, value: flavor}
"""
IGNORED = "chaos.ignored"
SCALE = 10**9
MINUTES = 10
SUBJECTS = ("Zoë Åström", "株式会社さくらデータ", "Łódź Robotics", "tenant-4")
CORES, FLAVORS, SOURCES = 8, 5, 7
READINGS_IN_BATCH, READINGS_IN_STRAY, EVENTS_IN_LOT = 1000, 100, 500
CONFLICTS_IN_LOT, UNKNOWN_IN_LOT, BROKEN_IN_LOT, OLD_IN_LOT, IGNORED_IN_LOT = 5, 2, 2, 1, 3
STRAY_EVERY = 25  # lots between two stray batches
_DAY_US = 86_400_000_000
_KINDS = ("agent", "stray", "other", "lot")
_SERIES = [
    Series(type="chaos.cpu", subject=subject, scale=9, data={"core": str(core)})
    for subject in SUBJECTS
    for core in range(CORES)
]
Ints = npt.NDArray[np.int64]


class _Columns(NamedTuple):
    series: Ints
    times_us: Ints  # since the run's first minute
    values: Ints  # scaled


class Amount(NamedTuple):
    """What one meter keeps of a series and minute: how many events, and the figure that the meter is asked for."""

    events: int
    value: int


Key = tuple[str, str, str, str, int]  # meter, subject, dimensions, item, minute since 1970


@dataclass(frozen=True, slots=True)
class Made:
    """What can be sent in a run. `base_us`: its first minute."""

    seed: int
    base_us: int

    def readings(self, number: int) -> list[Reading]:
        """Return the readings of a numbered batch of the agent."""
        return self._readings(self._batch(number))

    def stray(self, number: int, *, other: bool = False) -> list[Reading]:
        """Return a small batch of a second collector, whose copies go astray; `other`: another one of its number."""
        return self._readings(self._columns("other" if other else "stray", number, READINGS_IN_STRAY, len(_SERIES)))

    def lot(self, number: int) -> list[Event]:
        """Return the foreign events of a lot that count."""
        columns = self._lot(number)
        return [self._event(number, index, *row) for index, row in enumerate(zip(*map(_list, columns), strict=True))]

    def conflicting(self, number: int) -> list[Event]:
        """Return events with ids of a lot, and other content."""
        return [event._replace(data={**event.data, "value": "77"}) for event in self.lot(number)[:CONFLICTS_IN_LOT]]

    def odd_lines(self, number: int) -> list[bytes]:
        """Return lines that must end as dead letters, and behind them those that must be ignored."""
        return [body for bodies in self.dead_of(number).values() for body in bodies] + [
            self._odd(number, index, IGNORED) for index in range(IGNORED_IN_LOT)
        ]

    def dead_of(self, number: int) -> dict[str, list[bytes]]:
        """Return, by reason, the bodies of a lot's dead letters."""
        return {
            "unknown_meter": [self._odd(number, index, "chaos.unknown") for index in range(UNKNOWN_IN_LOT)],
            "malformed": [json.dumps({"lot": number, "cut": index})[:-1].encode() for index in range(BROKEN_IN_LOT)],
            "too_old": [self._odd(number, index, "chaos.server", -40 * _DAY_US) for index in range(OLD_IN_LOT)],
        }

    def _odd(self, number: int, index: int, kind: str, later_us: int = 0) -> bytes:
        data = {"value": "1", "flavor": "odd"}
        return encode_event(
            Event(f"odd {number}/{index}", "//odd", kind, SUBJECTS[index % 4], self.base_us + later_us, data)
        )

    def _event(self, number: int, index: int, series: int, time_us: int, value: int) -> Event:
        whole, fraction = divmod(value, SCALE)
        data = {"value": f"{whole}.{fraction:09d}", "flavor": _flavor(series % FLAVORS)}
        source, subject = f"//api/{index % SOURCES}", SUBJECTS[series // FLAVORS]
        return Event(f"{number}/{index}", source, "chaos.server", subject, self.base_us + time_us, data)

    def _batch(self, number: int) -> _Columns:
        return self._columns("agent", number, READINGS_IN_BATCH, len(_SERIES))

    def _lot(self, number: int) -> _Columns:
        return self._columns("lot", number, EVENTS_IN_LOT, len(SUBJECTS) * FLAVORS, largest=1000 * SCALE)

    def _columns(self, kind: str, number: int, size: int, series: int, largest: int = SCALE) -> _Columns:
        rng = np.random.default_rng([self.seed, _KINDS.index(kind), number])
        times_us = rng.integers(MINUTES * 60_000_000, size=size)
        return _Columns(rng.integers(series, size=size), times_us, rng.integers(largest, size=size))

    def _readings(self, columns: _Columns) -> list[Reading]:
        rows = zip(*map(_list, columns), strict=True)
        return [
            Reading(_SERIES[series], self.base_us + time_us, self.base_us + time_us + 1_000_000, value)
            for series, time_us, value in rows
        ]


def events_in(batches: int, lots: int) -> int:
    """Return how many distinct events count of so many batches and lots."""
    strays = len(range(0, lots, STRAY_EVERY))
    return batches * READINGS_IN_BATCH + strays * READINGS_IN_STRAY + lots * EVENTS_IN_LOT


def expected(made: Made, batches: int, lots: int) -> dict[Key, Amount]:
    """Return what must be stored when so many batches and lots were sent, host.work apart."""
    cpu, servers = _Cells(len(_SERIES)), _Cells(len(SUBJECTS) * FLAVORS)
    largest = np.full((len(SUBJECTS), MINUTES), -1, np.int64)
    last = _Last(made)
    for number in range(batches):
        cpu.add(made._batch(number))
    for number in range(lots):
        lot = made._lot(number)
        servers.add(lot)
        np.maximum.at(largest, (lot.series // FLAVORS, _minutes(lot)), lot.values)
        last.add(number, lot)
        if number % STRAY_EVERY == 0:
            cpu.add(made._columns("stray", number, READINGS_IN_STRAY, len(_SERIES)))
    first = made.base_us // 60_000_000
    found: dict[Key, Amount] = {}
    for (series, minute), amount in cpu.amounts():
        of = _SERIES[series]
        found["host.cpu", of.subject, encode_dimensions(dict(of.data)), "", first + minute] = amount
    in_minute: dict[tuple[int, int], int] = defaultdict(int)
    for (series, minute), amount in servers.amounts():
        subject, flavor = SUBJECTS[series // FLAVORS], _flavor(series % FLAVORS)
        in_minute[series // FLAVORS, minute] += amount.events
        dimensions = encode_dimensions({"flavor": flavor})
        found["server.seconds", subject, dimensions, "", first + minute] = amount
        found["server.flavors", subject, "{}", f"={flavor}", first + minute] = Amount(amount.events, amount.events)
    for (subject_number, minute), count in in_minute.items():
        subject = SUBJECTS[subject_number]
        top = int(largest[subject_number, minute])
        found["server.largest", subject, "{}", "", first + minute] = Amount(count, top)
        found["server.last", subject, "{}", "", first + minute] = Amount(count, last.value(subject_number, minute))
    return found


class _Cells:
    """Counts and sums by series and minute."""

    def __init__(self, series: int) -> None:
        self._counts, self._sums = np.zeros((series, MINUTES), np.int64), np.zeros((series, MINUTES), np.int64)

    def add(self, columns: _Columns) -> None:
        where = columns.series, _minutes(columns)
        np.add.at(self._counts, where, 1)
        np.add.at(self._sums, where, columns.values)

    def amounts(self) -> list[tuple[tuple[int, int], Amount]]:
        places = zip(*map(_list, self._counts.nonzero()), strict=True)
        return [((s, m), Amount(int(self._counts[s, m]), int(self._sums[s, m]))) for s, m in places]


@dataclass(slots=True)
class _Last:
    """The newest value by subject and minute; of two at the same microsecond, the larger identity's."""

    made: Made
    best: dict[tuple[int, int], tuple[int, bytes, int]] = field(default_factory=dict)

    def add(self, number: int, lot: _Columns) -> None:
        cells = lot.series // FLAVORS * MINUTES + _minutes(lot)
        newest = np.full(len(SUBJECTS) * MINUTES, -1, np.int64)
        np.maximum.at(newest, cells, lot.times_us)
        for row in np.flatnonzero(newest[cells] == lot.times_us).tolist():
            cell = divmod(int(cells[row]), MINUTES)
            time_us = int(lot.times_us[row])
            known = self.best.get(cell)
            if known is None or time_us >= known[0]:
                columns = (int(column[row]) for column in lot)
                event = self.made._event(number, row, *columns)
                mine = time_us, _ordered(identity(event.subject, event.source, event.id)), int(lot.values[row])
                self.best[cell] = max(mine, known) if known else mine

    def value(self, subject: int, minute: int) -> int:
        return self.best[subject, minute][2]


def _ordered(digest: bytes) -> bytes:
    """Return an identity as ClickHouse orders it: two words, each with its largest byte first."""
    return digest[:8][::-1] + digest[8:][::-1]


def _minutes(columns: _Columns) -> Ints:
    minutes: Ints = columns.times_us // 60_000_000
    return minutes


def _flavor(number: int) -> str:
    return f"m{number}"


def _list(column: Any) -> list[int]:
    found: list[int] = column.tolist()
    return found
