"""The usage that the chaos run sends: a function of a batch's number, so that a process killed anywhere can
make it again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from collectors.arrow import Reading
from tallyman.event import Event, Series
from tallyman.meter import encode_dimensions

METERS = """meters:
- {meter: host.cpu, event_type: chaos.cpu, aggregation: sum, value: value, scale: 9, unit: s, dimensions: {core: core}}
- {meter: server.seconds, event_type: chaos.server, aggregation: sum, value: value, scale: 9, unit: s,
   dimensions: {flavor: flavor}}
- {meter: server.largest, event_type: chaos.server, aggregation: max, value: value, scale: 9, unit: s}
"""
READINGS_IN_BATCH = 1000
EVENTS_IN_LOT = 500
_SUBJECTS = ("Zoë Åström", "株式会社さくらデータ", "Łódź Robotics", "tenant-4")
_SERIES = [
    Series(type="chaos.cpu", subject=subject, scale=9, data={"core": str(core)})
    for subject in _SUBJECTS
    for core in range(8)
]
Totals = Counter[tuple[str, str, str, int]]  # (meter, subject, dimensions, minute) -> scaled sum


def readings(batch: int, base_us: int) -> list[Reading]:
    """Return the readings of a numbered batch of the agent."""
    rng = random.Random(f"agent {batch}")
    made = []
    for _ in range(READINGS_IN_BATCH):
        time_us = base_us + rng.randrange(600) * 1_000_000
        series = _SERIES[rng.randrange(len(_SERIES))]
        made.append(Reading(series, time_us, time_us + 1_000_000, rng.randrange(10**9)))
    return made


def lot(number: int, base_us: int) -> list[Event]:
    """Return the foreign events of a lot."""
    rng = random.Random(f"foreign {number}")
    made = []
    for index in range(EVENTS_IN_LOT):
        subject = _SUBJECTS[rng.randrange(len(_SUBJECTS))]
        value = f"{rng.randrange(1000)}.{rng.randrange(10**9):09d}"
        data = {"value": value, "flavor": f"m{rng.randrange(5)}"}
        time_us = base_us + rng.randrange(600 * 10**6)
        made.append(Event(f"{number}/{index}", f"//api/{index % 7}", "chaos.server", subject, time_us, data))
    return made


def expected(batches: int, lots: int, base_us: int) -> tuple[Totals, Totals]:
    """Return the exact sums, and the largest values, that the whole run must show."""
    sums: Totals = Counter()
    largest: Totals = Counter()
    for batch in range(batches):
        for reading in readings(batch, base_us):
            series = reading.series
            key = ("host.cpu", series.subject, encode_dimensions(dict(series.data)), reading.time_us // 60_000_000)
            sums[key] += reading.value
    for number in range(lots):
        for event in lot(number, base_us):
            minute = event.time_us // 60_000_000
            whole, fraction = event.data["value"].split(".")
            value = int(whole) * 10**9 + int(fraction)
            sums["server.seconds", event.subject, encode_dimensions({"flavor": event.data["flavor"]}), minute] += value
            key = ("server.largest", event.subject, "{}", minute)
            largest[key] = max(largest[key], value)
    return sums, largest


def copies(number: int) -> Iterator[int]:
    """Yield a lot, and now and then an earlier one again: what a client does whose answer got lost."""
    yield number
    rng = random.Random(f"copies {number}")
    if number and rng.random() < 0.05:
        yield rng.randrange(number)
