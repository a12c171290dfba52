"""What a value is counted under besides its series: the same whichever way an event comes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.arrow import Reading, encode_readings
from pipeline.catalog import Catalog
from pipeline.json_events import JsonDecoder
from pipeline.lines import Lines
from pipeline.series import SeriesKey
from pipeline.write import write
from tallyman.errors import EventError
from tallyman.event import ARROW, Series, decode_event
from tallyman.meter import Definitions, Meter, measure, parameters_of
from tests.unit.pipeline.events import NOON_US, Walk, event, numbered
from tests.unit.pipeline.test_write import Store, Wire

METERS = (
    Meter(meter="people", event_type="visit", aggregation="unique_count", value="user", dimensions={"site": "site"}),
    Meter(meter="visits", event_type="visit", aggregation="count", dimensions={"site": "site"}),
    Meter(meter="latency", event_type="call", aggregation="percentile", percentile="95", value="ms", scale=3),
    Meter(meter="disk", event_type="volume", aggregation="time_weighted", value="gib", scale=0, resource="volume.id",
          ends_on={"volume.gone": ("true",)}, believed_for=timedelta(hours=26)),
    Meter(meter="uptime", event_type="server", aggregation="lifecycle", resource="id", state="state",
          states=("active", "paused"), where={"kind": ("vm", "1")}),
    Meter(meter="bytes", event_type="port", aggregation="counter", value="bytes", scale=0, resource="port",
          incarnation="boot", allow_negative=False),
    Meter(meter="opened", event_type="cpu", aggregation="first", scale=9, dimensions={"mode": "mode"}),
    Meter(meter="busiest", event_type="cpu", aggregation="sum_of_maxima", bucket="day", scale=6),
)  # fmt: skip
DEFINITIONS = Definitions(number=1, meters=METERS)
TEXTS = st.sampled_from(["a", "", "7", 7, "07", 1.5, True, None, "ö" * 600, [1], "active", "true", "gone"])
NUMBERS = st.sampled_from(["1.5", 2, -3, "1e3", "0.0001", "text", None, 10**40, "NaN", True])
DATA = st.fixed_dictionaries({}, optional={
    "user": TEXTS, "site": TEXTS, "ms": NUMBERS, "gib": NUMBERS, "bytes": NUMBERS, "id": TEXTS, "state": TEXTS,
    "kind": st.sampled_from(["vm", 1, "1", "image", True]), "port": TEXTS, "boot": TEXTS, "value": NUMBERS,
    "mode": TEXTS, "volume": st.one_of(TEXTS, st.fixed_dictionaries({"id": TEXTS, "gone": TEXTS})),
})  # fmt: skip
TYPES = st.sampled_from(sorted({meter.event_type for meter in METERS}))
TIMES = st.sampled_from(["2026-10-31T12:00:00Z", "2026-10-31T12:00:00.000001Z", "2026-10-31T12:01:30+02:00", "late"])


def by_contract(catalog: Catalog, body: bytes) -> Any:
    try:
        found = decode_event(body)
        readings = [measure(catalog.meters[number], found) for number in catalog.by_type[found.type]]
    except EventError as error:
        return "dead", error.reason
    return sorted((r.meter, r.dimensions, r.item, r.value) for r in readings if r is not None)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TYPES, TIMES, DATA), min_size=1, max_size=12))
def test_an_event_is_counted_under_the_same_item_alone_and_in_company(wires: list[Any]) -> None:
    bodies = [
        msgspec.json.encode(event(i, type=kind, time=time, data=data)) for i, (kind, time, data) in enumerate(wires)
    ]
    catalog, count = Catalog(DEFINITIONS), len(wires)
    for few in (1, 1000):
        lines = Lines(bodies, list(range(count)), [0] * count, [0] * count, [0] * count, [False] * count)
        events, dead, _ = JsonDecoder(catalog, 1, few=few).decode(lines, "", 20_757_000)
        found: dict[int, Any] = {offset: [] for offset in range(count)}
        columns = (events.reading_event, events.reading_series, events.reading_value)
        for place, number, value in zip(*(column.tolist() for column in columns), strict=True):
            key = catalog.series[number]
            row = METERS[key.meter].meter, key.dimensions, key.item, value
            found[int(events.offsets[place])].append(row)
        found = {offset: sorted(rows) for offset, rows in found.items()}
        found |= {letter.offset: ("dead", letter.reason) for letter in dead}
        assert found == {i: by_contract(catalog, body) for i, body in enumerate(bodies)}


def test_a_row_of_an_arrow_batch_is_counted_under_its_own_moment() -> None:
    cpu = Series(type="cpu", subject="Zoë Åström", scale=9, data={"mode": "user"})
    readings = [Reading(cpu, NOON_US + i, NOON_US + i, 10**9 * (i + 1)) for i in range(3)]
    walk = Walk(DEFINITIONS).send(encode_readings(readings), headers=numbered(1, content=ARROW))
    catalog = walk.decoders.catalog(walk.chunk.here.definitions)
    items = {key.item for key in catalog.series if METERS[key.meter].meter == "opened" and key.item}
    assert items == {f'["{NOON_US + i}",null,null]' for i in range(3)}
    assert walk.sums() == {"opened": 6 * 10**9, "busiest": 6 * 10**6}


def test_rows_carry_what_their_reader_must_know() -> None:
    store = Store()
    calls = [msgspec.json.encode(event(i, type="call", data={"ms": ms})) for i, ms in enumerate(("1", "1", "2.5"))]
    write(Walk(DEFINITIONS).send(*calls).cut(), store, Wire())
    (columns,) = (columns for table, columns in store.inserts if table == "usage_hot")
    assert sorted(zip(columns[10], columns[14], columns[15], strict=True)) == [
        ("1000", '{"percentile":"95"}', 2), ("2500", '{"percentile":"95"}', 1),
    ]  # fmt: skip


def test_a_unit_is_converted_by_an_exact_fraction_only() -> None:
    meter = Meter(meter="hours", event_type="server", aggregation="sum", multiply_by="2/6")
    assert parameters_of(meter) == '{"factor":"1/3"}'
    for wrong in ("0", "-1", "1/0", "third", "1e40", ""):
        with pytest.raises(ValueError, match="multiply_by: expected a positive fraction"):
            Meter(meter="hours", event_type="server", aggregation="sum", multiply_by=wrong)
        if wrong not in ("0", "-1"):
            with pytest.raises(ValueError, match="add: expected a fraction"):
                Meter(meter="hours", event_type="server", aggregation="sum", add=wrong)


@pytest.mark.parametrize(
    ("settings_of", "sentence"),
    [
        ({"aggregation": "percentile"}, 'percentile: expected a number from 0 to 100, got ""'),
        ({"aggregation": "percentile", "percentile": "101"}, "percentile: expected a number"),
        (
            {"aggregation": "sum", "percentile": "95"},
            "percentile: expected only with percentile or counter, got it with sum",
        ),
        ({"aggregation": "counter", "of": "percentile"}, 'percentile: expected a number from 0 to 100, got ""'),
        (
            {"aggregation": "counter", "percentile": "95"},
            "percentile: expected only with of: percentile, got it with of: sum",
        ),
        ({"aggregation": "lifecycle", "state": "state"}, "state, states: expected the path"),
        ({"aggregation": "time_weighted", "believed_for": timedelta(0)}, "believed_for: expected more than 0 s"),
        (
            {"aggregation": "time_weighted", "level": "delta", "believed_for": timedelta(1)},
            "believed_for: expected only with level: absolute",
        ),
        ({"aggregation": "counter", "add": "1"}, "add: expected only with sum or avg"),
        ({"aggregation": "sum", "digits": 2}, "digits: expected only with rounding: nearest, up or down"),
        ({"aggregation": "sum", "rounding": "up", "digits": 19}, "digits: expected -18 to 18, got 19"),
        ({"aggregation": "max", "resource": "id"}, "resource: expected only with time_weighted or lifecycle"),
    ],
)  # fmt: skip
def test_a_setting_that_a_meter_has_no_use_for_is_refused(settings_of: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Meter(meter="m", event_type="t", **settings_of)


def test_items_of_closed_chunks_are_forgotten_and_their_numbers_given_again() -> None:
    catalog = Catalog(DEFINITIONS)
    first = [catalog.number(SeriesKey(0, "Zoë", "{}", f"={i}")) for i in range(4)]
    catalog.forget_items([])
    assert catalog.number(SeriesKey(0, "Zoë", "{}", "=0")) == first[0]  # met again: it stays
    catalog.forget_items([first[1]])
    assert catalog.number(SeriesKey(0, "Zoë", "{}", "=1")) == first[1]  # in an open chunk: it stays
    fresh = {catalog.number(SeriesKey(0, "Łukasz", "{}", f"={i}")) for i in range(2)}
    assert fresh == set(first[2:]) and catalog.number(SeriesKey(0, "Łukasz", "{}", "=2")) == 4


def test_a_chunk_with_more_distinct_values_than_memory_keeps_them_until_it_closes(monkeypatch: Any) -> None:
    monkeypatch.setattr("pipeline.catalog.ITEMS_KEPT", 10)
    walk = Walk(DEFINITIONS)
    monkeypatch.setattr("pipeline.fold.OPEN", {("topic", 0): walk.chunk})
    for start in range(0, 256, 16):
        walk.send(*(msgspec.json.encode(event(i, type="visit", data={"user": i})) for i in range(start, start + 16)))
    catalog = walk.decoders.catalog(walk.chunk.here.definitions)
    assert walk.sums() == {"people": 256, "visits": 256}
    assert len(catalog.series) < 200
