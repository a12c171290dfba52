"""The quick way through JSON agrees with the contract on every event, whoever its neighbours are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import Catalog
from pipeline.json_events import JsonDecoder
from pipeline.lines import Lines
from tallyman.errors import EventError
from tallyman.event import decode_event, identity
from tallyman.meter import Definitions, Meter, measure
from tests.unit.pipeline.events import event, words

METERS = (
    Meter(
        meter="compute.hours",
        event_type="server",
        aggregation="sum",
        value="hours",
        scale=6,
        dimensions={"region": "region", "size": "size"},
    ),
    Meter(meter="compute.servers", event_type="server", aggregation="count", dimensions={"region": "region"}),
    Meter(
        meter="compute.large",
        event_type="server",
        aggregation="max",
        value="hours",
        scale=18,
        where={"size": ("L", "1", "true", "1.0")},
        allow_negative=False,
    ),
    Meter(meter="store.bytes", event_type="store", aggregation="sum", value="bytes", scale=0, allow_negative=False),
    Meter(
        meter="lb.requests",
        event_type="balancer",
        aggregation="sum",
        value="usage.requests",
        scale=0,
        dimensions={"host": "host.name"},
    ),
    Meter(meter="lb.hosts", event_type="balancer.host", aggregation="count", dimensions={"host": "host"}),
    Meter(
        meter="pod.cpu",
        event_type="pod",
        aggregation="sum",
        value="\\Processor",
        dimensions={"app": 'labels["app"]'},
    ),
)
CATALOG = Catalog(Definitions(number=1, meters=METERS, ignore=("heartbeat",)))
PARTITIONS = 3

Verdict = tuple[Any, ...]


class Literal(str):
    """JSON as it stands: what no encoder would write."""


def spell(value: Any) -> str:
    """Write JSON; `Literal` goes in as it is, dicts may hold it."""
    if isinstance(value, Literal):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{spell(name)}:{spell(each)}" for name, each in value.items()) + "}"
    return msgspec.json.encode(value).decode()


def by_contract(body: bytes) -> Verdict:
    try:
        found = decode_event(body)
        numbers = CATALOG.by_type.get(found.type)
        if numbers is None:
            if found.type in CATALOG.ignored:
                return ("ignored",)
            raise EventError("unknown_meter", f'type: no meter wants "{found.type}"')
        readings = [measure(CATALOG.meters[number], found) for number in numbers]
    except EventError as error:
        return "dead", error.reason, error.detail
    rows = sorted((r.meter, r.subject, r.dimensions, r.value) for r in readings if r is not None)
    if not rows:
        return ("ignored",)
    return "counts", found.time_us, words(identity(found.subject, found.source, found.id)), rows


def by_columns(bodies: list[bytes], decoder: JsonDecoder | None = None) -> list[Verdict]:
    count = len(bodies)
    lines = Lines(bodies, list(range(count)), [0] * count, [0] * count, [0] * count, [False] * count)
    events, dead, ignored = (decoder or JsonDecoder(CATALOG, PARTITIONS)).decode(lines, "", 20_757_000)
    verdicts: list[Verdict] = [("ignored",)] * count
    for letter in dead:
        verdicts[letter.offset] = "dead", letter.reason, letter.detail
        assert letter.body == bodies[letter.offset]
    rows: list[list[Any]] = [[] for _ in range(len(events))]
    columns = (events.reading_event, events.reading_series, events.reading_value)
    for place, series, value in zip(*(column.tolist() for column in columns), strict=True):
        key = CATALOG.series[series]
        rows[place].append((CATALOG.meters[key.meter].meter, key.subject, key.dimensions, value))
    for place, offset in enumerate(events.offsets.tolist()):
        who = int(events.high[place]), int(events.low[place])
        verdicts[offset] = "counts", int(events.times_us[place]), who, sorted(rows[place])
        assert events.bodies[place] == bodies[offset]
    assert ignored == verdicts.count(("ignored",))
    return verdicts


def server(**changed: Any) -> dict[str, Any]:
    return event(**changed)


def data(**fields: Any) -> dict[str, Any]:
    return event(data={"hours": "1.5", "region": "Nürnberg", "size": "L"} | fields)


ODD_TEXTS = ["", "1", "true", "Nürnberg", "x" * 300, "ü" * 600, "\0", "a\nb", "🙂", "L"]
ODD_JSON = [
    Literal(each)
    for each in (
        "1",
        "1.0",
        "1.00",
        "10e-1",
        "true",
        "false",
        "null",
        "-0",
        "0",
        '{"name":"a"}',
        "[]",
        "[1]",
        '"\\ud800"',
        '"\\ud83d\\ude42"',
        "9" * 25,
        '"\\u0000"',
        "1e400",
        "1e99999999999999999999",
        "NaN",
        "01",
        '"a\nb"',
        "-1",
        "4300000000",
    )
]
DIMENSIONS = st.sampled_from([*ODD_TEXTS, *ODD_JSON])
VALUES = st.one_of(
    st.sampled_from(
        [
            "1e3",
            "+1",
            ".5",
            "5.",
            " 1",
            "1 ",
            "",
            "NaN",
            "nan",
            "Infinity",
            "-inf",
            "1_000",
            "٣",
            "0x10",
            "-",
            "-0",
            "-0.0",
            "1" + "0" * 40,
            "1e40",
            "1e-40",
            "0e99",
            "0.000001",
            "0.0000001",
            "1.5000000",
            "123456789012345678901234567890.123456",
            "1." + "0" * 80,
            "0" * 80 + "1",
            "9" * 24,
            "9" * 23,
            "-" + "9" * 24,
            "0.123456789012345678",
            "1\n",
        ]
    ),
    st.sampled_from(
        [
            Literal(each)
            for each in (
                "1",
                "1.5",
                "-1",
                "1e3",
                "1E-3",
                "1e40",
                "NaN",
                "Infinity",
                "true",
                "null",
                '{"value":1}',
                "[1]",
                "9" * 41,
                "9" * 24,
                "9223372036854775807",
                "9223372036854775808",
                "-9223372036854775809",
                "0.1234567",
                "0.123456789012345678",
                "1.10",
                "-0.0",
                "1e99999999999999999999",
                "0.1e1",
            )
        ]
    ),
    st.integers(-(10**31), 10**31).map(lambda number: Literal(str(number))),
    st.integers(-(10**6), 10**6).map(lambda number: Literal(str(number))),
    st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**20), max_value=10**20).map(str),
    st.decimals(allow_nan=True, allow_infinity=True).map(str),
)
TIMES = st.sampled_from(
    [
        "2026-10-31T12:00:00Z",
        "2026-10-31T12:00:00z",
        "2026-10-31t12:00:00Z",
        "2026-10-31 12:00:00Z",
        "2026-10-31T12:00:00+05:30",
        "2026-10-31T12:00:00-23:59",
        "2026-10-31T12:00:00+24:00",
        "2026-10-31T12:00:00",
        "2026-10-31T23:59:60Z",
        "2026-10-31T24:00:00Z",
        "2026-10-31T12:00:59.9999999Z",
        "2026-10-31T12:00:00.123456789Z",
        "2026-10-31T12:00:00.5Z",
        "2026-10-31T12:00:00.Z",
        "2026-02-29T12:00:00Z",
        "2024-02-29T12:00:00Z",
        "1970-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "2000-01-01T00:00:00Z",
        "1999-12-31T23:59:59Z",
        "2000-01-01T00:00:00+00:01",
        "2099-12-31T23:59:59.999999Z",
        "2100-01-01T00:00:00Z",
        "2026-10-31",
        "1793448000",
        "",
        "2026-10-31T12:00:00Z ",
        "2026-10-31T12:00:00Z\n",
        Literal("1793448000"),
        Literal("null"),
    ]
)
NAMES = st.sampled_from(
    [
        "",
        "a",
        "x" * 256,
        "x" * 257,
        "x" * 1024,
        "x" * 1025,
        "ü" * 512,
        "ü" * 513,
        "🙂" * 256,
        "🙂" * 257,
        "\0",
        Literal('"\\ud800"'),
        Literal("null"),
        Literal("1"),
        Literal('"\\u00fc"'),
    ],
)
TYPES = st.sampled_from(["server", "store", "balancer", "balancer.host", "pod", "heartbeat", "nobody", "", "x" * 2000])
RAW = st.sampled_from(
    [
        b"",
        b" ",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b"{",
        b'{"id":"a",',
        b'"source":"s"}',
        b"\xff",
        b'{"id":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"data":{"note":"\xff"}}',
        b"nonsense",
        b"{}{}",
        b"\0",
    ]
)


@st.composite
def good(draw: st.DrawFn) -> bytes:
    number = draw(st.integers(0, 5))
    return spell(
        event(number, data={"hours": "0.25", "region": draw(st.sampled_from(["Genève", "Łódź"])), "size": "L"})
    ).encode()


@st.composite
def odd(draw: st.DrawFn) -> bytes:
    wire = data()
    for _ in range(draw(st.integers(1, 2))):
        what = draw(st.sampled_from(["time", "name", "type", "dimension", "value", "other", "missing"]))
        if what == "time":
            wire["time"] = draw(TIMES)
        elif what == "name":
            wire[draw(st.sampled_from(["id", "source", "subject"]))] = draw(NAMES)
        elif what == "type":
            wire["type"] = draw(TYPES)
            wire["data"] = {"bytes": draw(VALUES), "usage": Literal('{"requests":7}'), "host": draw(DIMENSIONS),
                            "\\Processor": 2, 'labels["app"]': draw(DIMENSIONS)}
        elif what == "dimension":
            wire["data"][draw(st.sampled_from(["region", "size", "host"]))] = draw(DIMENSIONS)
        elif what == "value":
            wire["data"]["hours"] = draw(VALUES)
        elif what == "other":
            wire[draw(st.sampled_from(["specversion", "data", "extra"]))] = draw(
                st.sampled_from(["1.0", "0.3", Literal("1.0"), Literal("null"), Literal("{}"), Literal("[]")])
            )
        else:
            wire.pop(draw(st.sampled_from(sorted(wire))), None)
        if not isinstance(wire.get("data"), dict):
            break
    return draw(frame(spell(wire).encode("utf-8", "surrogatepass")))


@st.composite
def frame(draw: st.DrawFn, body: bytes) -> bytes:
    """Wrap, cut, repeat or space an event's bytes."""
    way = draw(st.integers(0, 12))
    if way == 0:
        return body[: draw(st.integers(0, len(body)))]
    if way == 1:
        return body.replace(b",", b",\n ")
    if way == 2:
        return b" \t\r" + body + b"\r"
    if way == 3:
        return body + body
    if way == 4:
        return body[:-1] + b',"id":"again","data":{"hours":2,"hours":"3","region":"x"}}'
    if way == 5:
        return body[:-1] + b',"note":"\xff"}'
    if way == 6:
        return body[:-1] + b',"note":"\\u0000\xc3\xbc"}'
    return body


EVENTS = st.lists(st.one_of(good(), odd(), odd(), RAW), min_size=1, max_size=12)


@settings(max_examples=250, deadline=None)
@given(EVENTS)
def test_the_quick_way_and_the_contract_agree_on_every_event(bodies: list[bytes]) -> None:
    """Readings, reasons and details; together, one by one, and by the contract alone."""
    expected = [by_contract(body) for body in bodies]
    decoder = JsonDecoder(CATALOG, PARTITIONS)
    assert [by_columns([body], decoder)[0] for body in bodies] == expected
    assert by_columns(bodies) == expected
    assert by_columns(bodies, decoder) == expected


def test_what_no_field_is_named_like_is_read_line_by_line_beside_events_that_are_not() -> None:
    """Definitions that were in force before such a path was refused; a worker could make no decoder of them."""
    pods = [spell(event(n, type="pod", data={"\\Processor": "0.5", 'labels["app"]': f"a{n % 2}"})) for n in range(12)]
    bodies = [text.encode() for pair in zip(pods, [spell(data(hours="1"))] * 12, strict=True) for text in pair]
    expected = [by_contract(body) for body in bodies]
    assert expected[0][3] == [("pod.cpu", "Zoë Åström", '{"app":"a0"}', 500_000_000)]
    assert by_columns(bodies) == expected


def test_an_event_cut_over_two_lines_is_two_dead_letters_even_beside_two_events_on_one_line() -> None:
    """Four events in, four lines: decoded as one text they would be three good ones."""
    body = spell(data()).encode()
    half = body.index(b'"data"')
    bodies = [body[:half], body[half:], body + body]
    assert [verdict[0] for verdict in by_columns(bodies)] == ["dead"] * 3


def test_one_and_true_and_one_point_zero_are_three_values_of_a_dimension_that_another_meter_reads_deeper() -> None:
    """`host` is a whole dimension of one meter and the parent of another's; Python takes the three for one key."""
    bodies = [
        spell(event(i, type="balancer.host", data={"host": Literal(text)})).encode()
        for i, text in enumerate(("1", "true", "1.0", '"1"'))
    ]
    texts = [verdict[3][0][2] for verdict in by_columns(bodies)]
    assert texts == ['{"host":"1"}', '{"host":"true"}', '{"host":"1.0"}', '{"host":"1"}']


def test_an_object_where_a_dimension_belongs_is_a_dead_letter_and_disturbs_nobody() -> None:
    bodies = [
        spell(event(1, type="balancer.host", data={"host": Literal('{"name":"a"}')})).encode(),
        spell(data()).encode(),
    ]
    verdicts = by_columns(bodies)
    assert verdicts[0][:2] == ("dead", "wrong_type") and verdicts[1][0] == "counts"


@pytest.mark.parametrize("place", ["data", "top"])
def test_bytes_that_are_no_utf8_are_refused_wherever_they_stand(place: str) -> None:
    """Also in a field that no meter reads: the body is shown to people and sent on."""
    body = spell(data(note="?") if place == "data" else data() | {"note": "?"}).encode()
    assert by_columns([body.replace(b'"?"', b'"\xff"')])[0][:2] == ("dead", "not_utf8")


def test_digits_below_a_microsecond_are_cut_off_so_that_an_event_stays_in_its_minute() -> None:
    assert by_columns([spell(event(time="2026-10-31T12:00:59.9999999Z")).encode()])[0][1] % 60_000_000 == 59_999_999


def test_the_names_of_a_dead_letter_are_those_of_its_event() -> None:
    """A person looks for the tenant's dead letters by name."""
    lines = Lines([spell(data(hours="lots")).encode()], [7], [5], [5], [3], [False])
    _, (letter,), _ = JsonDecoder(CATALOG, PARTITIONS).decode(lines, "application/json", 20_757_000)
    assert (letter.offset, letter.index, letter.appended_ms, letter.booking) == (7, 5, 5, 20_757_000)
    assert (letter.type, letter.source, letter.subject) == ("server", "nova/berlin-1", "Zoë Åström")
