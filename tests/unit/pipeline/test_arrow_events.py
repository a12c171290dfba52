"""Arrow batches mean what the JSON events that they stand for would mean, and broken ones break nothing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.arrow import Reading, encode_readings
from pipeline.arrow_events import ArrowDecoder
from pipeline.catalog import Catalog
from tallyman.errors import EventError
from tallyman.event import ARROW, Event, Series, decode_event, encode_event
from tallyman.meter import Definitions, Meter, measure, scaled_text
from tests.fetches import NOON_MS, fetch_of
from tests.unit.pipeline.events import NOON_US, Walk, body, new_chunk, numbered

METERS = (
    Meter(meter="cpu", event_type="cpu", aggregation="sum", scale=6, dimensions={"mode": "mode"}),
    Meter(meter="cpu.user", event_type="cpu", aggregation="max", scale=18, where={"mode": ("user",)}),
    Meter(meter="cpu.readings", event_type="cpu", aggregation="count"),
    Meter(meter="disk", event_type="disk", aggregation="sum", scale=0, allow_negative=False),
    Meter(meter="disk.kilo", event_type="disk", aggregation="sum", scale=3, allow_negative=False),
)
DEFINITIONS = Definitions(number=1, meters=METERS, ignore=("memory",))
CPU = Series(type="cpu", subject="Zoë Åström", scale=9, data={"mode": "user"})
SERIES = st.sampled_from([
    CPU, Series(type="cpu", subject="Łukasz", scale=3), Series(type="disk", subject="Zoë Åström", scale=0),
    Series(type="disk", subject="Zoë Åström", scale=2), Series(type="memory", subject="Zoë Åström"),
    Series(type="nobody", subject="Zoë Åström"), Series(type="cpu", subject="Zoë Åström", data={"mode": "x" * 2000}),
])  # fmt: skip
AMOUNTS = st.one_of(st.integers(-5, 5), st.sampled_from([10**9, 1000, 2**63 - 1, -(2**63), 10**18, 123_456_789]))
TIMES = st.sampled_from([NOON_US, NOON_US + 61_000_000, 0, -1, 2**62, 946_684_799_999_999, 4_102_444_800_000_000])
READINGS = st.lists(st.tuples(SERIES, TIMES, st.just(NOON_US), AMOUNTS).map(lambda row: Reading(*row)), max_size=12)


def by_contract(reading: Reading) -> tuple[Any, ...]:
    """Return the fate of the JSON event that a row stands for."""
    series = reading.series
    data = {**series.data, "value": scaled_text(reading.value, series.scale)}
    try:
        wire = Event("1", "host-01", series.type, series.subject, reading.time_us, data)
        event = decode_event(encode_event(wire))
        meters = [meter for meter in METERS if meter.event_type == event.type]
        if not meters:
            return ("ignored",) if event.type in DEFINITIONS.ignore else ("dead", "unknown_meter")
        found = [measure(meter, event) for meter in meters]
    except OverflowError:
        return "dead", "year_out_of_range"
    except EventError as error:
        return "dead", error.reason
    return "counts", sorted((each.meter, each.subject, each.dimensions, each.value) for each in found if each)


@settings(max_examples=200, deadline=None)
@given(READINGS)
def test_a_row_counts_as_the_json_event_that_it_stands_for(readings: list[Reading]) -> None:
    catalog = Catalog(DEFINITIONS)
    rows = ArrowDecoder(catalog).decode(encode_readings(readings))
    found: list[Any] = [[] for _ in readings]
    columns = (rows.reading_event, rows.reading_series, rows.reading_value)
    for row, number, value in zip(*(column.tolist() for column in columns), strict=True):
        key = catalog.series[number]
        found[row].append((METERS[key.meter].meter, key.subject, key.dimensions, value))
    fates: list[Any] = [("counts", sorted(row)) if row else ("ignored",) for row in found]
    for row, error in rows.errors.items():
        fates[row] = "dead", error.reason
    assert fates == [by_contract(reading) for reading in readings]
    assert rows.ignored == fates.count(("ignored",))


def test_an_ignored_row_of_an_impossible_year_is_dead_and_not_ignored_as_well() -> None:
    memory = Series(type="memory", subject="Zoë Åström")
    walk = Walk(DEFINITIONS).send(encode_readings([Reading(memory, -5, 0, 1)]), headers=numbered(1, content=ARROW))
    assert (walk.counts["received"], walk.counts["dead"], walk.counts["ignored"]) == (1, 1, 0)


def test_a_dead_row_is_shown_as_the_event_that_it_stands_for() -> None:
    far = Reading(CPU, NOON_US + 9 * 10**12, NOON_US, 1_500_000_001)
    batch = encode_readings([Reading(CPU, NOON_US, NOON_US, 1000), far._replace(time_us=-1), far])
    walk = Walk(DEFINITIONS).send(batch,
                                  headers=numbered(7, content=ARROW))  # fmt: skip
    shown = msgspec.json.decode(walk.chunk.dead[0].body)
    assert (walk.chunk.dead[0].index, shown["id"], shown["subject"]) == (1, "spool-7/7/1", "Zoë Åström")
    assert shown["data"] == {"mode": "user", "value": "1.500000001"}


@pytest.mark.parametrize("series", [
    Series(type="cpu", subject="Zoë Åström", scale=10**9), Series(type="cpu", subject="Zoë Åström", scale=-1),
    Series(type="cpu", subject=""), Series(type="", subject="Zoë Åström"), Series(type="cpu", subject="ö" * 513),
])  # fmt: skip
def test_a_series_that_no_collector_writes_is_refused(series: Series) -> None:
    with pytest.raises(EventError) as refused:
        ArrowDecoder(Catalog(DEFINITIONS)).decode(encode_readings([Reading(series, NOON_US, NOON_US, 1)]))
    assert refused.value.reason == "bad_schema"


def test_what_a_process_remembers_of_refused_series_holds_nothing_of_the_fetch_they_came_with() -> None:
    """Such a series stays known for hours; what was being read when it was met must not stay with it."""
    walk = Walk(DEFINITIONS)
    for number in range(1, 6):
        refused = Series(type="cpu", subject="Zoë Åström", data={"mode": f"{number}" * 2000})
        walk.send(encode_readings([Reading(refused, NOON_US, NOON_US, 1)]), headers=numbered(number, content=ARROW))
    assert [letter.reason for letter in walk.chunk.dead] == ["out_of_range"] * 5
    fetches = [weakref.ref(block.records.offsets) for block in walk.blocks if block.records is not None]
    walk.blocks.clear()
    gc.collect()
    assert len(fetches) == 5 and not any(fetch() is not None for fetch in fetches)


@settings(max_examples=300, deadline=None)
@given(READINGS, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3), st.integers(0, 200))
def test_damaged_bytes_are_dead_letters_and_never_an_exception(
    readings: list[Reading], damage: list[tuple[int, int]], cut: int
) -> None:
    """Counts reconcile, and the good event behind the batch counts."""
    batch = bytearray(encode_readings(readings))
    for place, octet in damage:
        batch[place % len(batch)] = octet
    records = [(bytes(batch[: len(batch) - cut] if cut % 4 == 1 else batch), numbered(1, content=ARROW), NOON_MS)]
    walk = Walk(DEFINITIONS, chunk=new_chunk(size=8)).go(fetch_of([*records, (body(1, type="memory"), (), NOON_MS)]))
    received, *fates, _ = walk.chunk.here.counts
    assert received == sum(fates) and walk.counts["ignored"] >= 1
