"""Lines read shape by shape, by compiled loops or without, give what they give one by one, whoever stands beside."""

from __future__ import annotations

import itertools
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import compiled_lookalikes, lookalikes, meanings
from pipeline.catalog import Catalog
from pipeline.compiled import load_kernel
from pipeline.json_events import JsonDecoder
from pipeline.lines import Lines
from pipeline.shapes import free_parts, scan, template_of
from tallyman.meter import Definitions, Meter

METERS = (
    Meter(meter="hours", event_type="server", aggregation="sum", value="hours", scale=6,
          dimensions={"region": "region"}),
    Meter(meter="servers", event_type="server", aggregation="count"),
    Meter(meter="large", event_type="server", aggregation="max", value="hours", scale=18, where={"size": ("L", "4")},
          allow_negative=False),
    Meter(meter="bytes", event_type="store", aggregation="sum", value="bytes", scale=0, allow_negative=False),
    Meter(meter="deep", event_type="deep", aggregation="count", dimensions={"host": "host.name"}),
    Meter(meter="calls", event_type="call", aggregation="count", dimensions={"region": "region"},
          where={"size": ("L",)}),
)  # fmt: skip
ALONE = 1 << 30
LeftOver = Callable[[list[bytes]], list[int]]
WAYS = [
    pytest.param(True, marks=pytest.mark.skipif(load_kernel() is None, reason="numba is absent"), id="compiled"),
    pytest.param(False, id="python"),
]

# Shapes: {0} is the line's id; letters are drawn below.
SHAPES = (
    '{{"specversion":"1.0","id":{i},"source":{s},"type":{k},"subject":{s},"time":{t},"data":{{"region":{s},"hours":{q},"note":{s}}}}}',
    '{{"id":{i},"type":{k},"subject":{s},"source":{s},"time":{t},"data":{{"note":{s},"hours":{q},"region":{s},"size":{s}}}}}',
    '{{"id":{i},"type":{k},"subject":{s},"source":{s},"time":{t},"data":{{"note":{s},"hours":{n},"size":{n},"free":{n}}}}}',
    '{{"id":{i},"type":{k},"subject":{s},"source":{s},"data":{{"list":[{n},{n}],"more":{{"hours":{q}}},"bytes":{n}}},"time":{t}}}',
    '{{"id": {i}, "source": {s}, "type": {k}, "subject": {s}, "time": {t}, "data": {{"hours": {n}, "region": {s}}}}}',
    '{{"id":{i},"id":{i},"source":{s},"type":{k},"subject":{s},"time":{t},"data":{{"hours":{q},"hours":{n}}}}}',
    '{{"time":{t},"data":{s},"id":{n},"source":{s},"type":{k},"subject":{s}}}',
    '{{"id":{i},"source":{s},"type":"deep","subject":{s},"time":{t},"data":{{"host":{{"name":{s}}},"hours":{n}}}}}',
    '{{"id":{i},"source":{s},"type":"call","subject":{s},"time":{t},"data_base64":{b}}}',
    '{{"specversion":{s},"id":{i},"source":{s},"type":"call","subject":{s},"time":{t},"dataschema":{s},"datacontenttype":{s},'
    '"region":{s},"size":{n},"data":{{"region":{s},"size":"L","Region":{s},"more":{{"size":{s}}}}}}}',
)
TEXTS = ["Zoë Åström", "a", "b", "L", "4", "1.0", "", "{", "}", ",", ":", '\\"', "\\\\", "\\u0041", "a,b:{}", "x" * 300,
         "ü" * 600, "🙂", "\t", "\n", "\r", "\x7f", "nul\x00", "s3", "n4", "true"]  # fmt: skip
QUANTITIES = ["1", "1.5", "-2.25", "0", "-0", "007", ".5", "5.", "1e3", "+1", "", "1.1234567", "1" * 25, "9" * 40,
              "1/2", "NaN", " 1", "1-2", "99999999999999999999.123456"]  # fmt: skip
NUMBERS = ["1", "4", "1.5", "-2", "-0", "-0.0", "01", "1.", "1.2.3", "1e3", "1E400", "true", "null", "9" * 18, "9" * 19,
           "9" * 40, "1.0", '"4"', " 4", "-", "[1]", "{}"]  # fmt: skip
TIMES = ["2026-10-31T12:00:00Z", "2026-10-31T12:00:00.123456Z", "2026-10-31T12:00:00+01:00", "2026-02-30T12:00:00Z",
         "1999-12-31T23:59:59Z", "2026-10-31 12:00:00Z", "2026-10-31T12:00:00.1234567Z", "2026-10-31T24:00:00Z",
         "soon", "", "2026-10-31T12:00:60Z", "2026/10/31T12:00:00Z"]  # fmt: skip
ENCODED = [b64encode(text).decode() for text in (b'{"size":"L","region":"a"}', b'{"size":"L","region":"b"}', b"{}")]
SPLICES = [b"", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", "é🙂".encode(), b"\\", b'"', b'","id":"x',
           b"0", b"e1", b".", b"-", b" ", b"\x00", b"\x1f", b"\x7f", b"9" * 19]  # fmt: skip
TYPES = ["server", "store", "call", "heartbeat", "unknown", "deep", ""]


def mostly(usual: list[str], odd: list[str]) -> st.SearchStrategy[str]:
    return st.one_of(*[st.sampled_from(usual)] * 12, st.sampled_from(odd))


class Slots:
    """Fills a shape's slots, each with another value."""

    def __init__(self, draw: Any, number: int) -> None:
        self.draw, self.number = draw, number

    def fill(self, shape: str) -> bytes:
        for letter in "isktqnb":
            while f"{{{letter}}}" in shape:
                shape = shape.replace(f"{{{letter}}}", self.value(letter), 1)
        return shape.replace("{{", "{").replace("}}", "}").encode()

    def value(self, letter: str) -> str:
        if letter == "i":
            text = self.draw(mostly([f"id-{self.number}"], TEXTS))
        elif letter == "s":
            text = self.draw(mostly(TEXTS[:4], TEXTS))
        elif letter == "k":
            text = self.draw(mostly(["server", "store"], TYPES))
        elif letter == "t":
            text = self.draw(mostly(TIMES[:2], TIMES))
        elif letter == "b":
            text = self.draw(mostly(ENCODED, [*TEXTS, b64encode(b"<a/>").decode(), "eyJ"]))
        elif letter == "q":
            text = self.draw(mostly(QUANTITIES[:3], QUANTITIES))
        else:
            return str(self.draw(mostly(NUMBERS[:3], NUMBERS))).replace("{", "{{").replace("}", "}}")
        return '"' + str(text).replace("{", "{{").replace("}", "}}") + '"'


@st.composite
def batches(draw: Any) -> list[bytes]:
    """Lines of a few shapes, with traps: cut short, joined, with the ends of Windows, in no UTF-8."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    count = draw(st.integers(0, 24))
    bodies = [Slots(draw, number).fill(draw(st.sampled_from(shapes))) for number in range(count)]
    for _ in range(draw(st.integers(0, 2))):
        if bodies:
            at = draw(st.integers(0, len(bodies) - 1))
            line = bodies[at]
            bodies[at] = draw(
                st.sampled_from([line[:-1], line[: len(line) // 2], line + b"\r", line + b"\n" + line, line * 2, b"",
                                 line[:-9] + b"\xff" + line[-9:], b" " + line, line + b" ", line.replace(b":", b" : ")])
            )  # fmt: skip
    return bodies


def lines_of(bodies: list[bytes]) -> Lines:
    count = len(bodies)
    return Lines(bodies, list(range(count)), [0] * count, [1] * count, [2] * count, [False] * count)


def outcome(decoder: JsonDecoder, bodies: list[bytes]) -> tuple[Any, ...]:
    """Return all that a decoder says of lines, without the numbers that it gives to series."""
    events, dead, ignored = decoder.decode(lines_of(bodies), "", 7)
    keys = [decoder.catalog.series[i] for i in events.reading_series.tolist()]
    readings = sorted(
        zip(events.reading_event.tolist(), map(str, keys), events.reading_value.tolist(), strict=True)
    )
    columns = [events.offsets, events.times_us, events.high, events.low, events.digests, events.homes, events.clocks_ms]
    return [column.tolist() for column in columns], events.bodies, readings, dead, ignored


def decoder(few: int, *, compiled: bool = False) -> JsonDecoder:
    catalog = Catalog(Definitions(number=1, meters=METERS, ignore=("heartbeat",)))
    return JsonDecoder(catalog, 3, few=few, kernel=load_kernel() if compiled else None)


@pytest.mark.parametrize("compiled", WAYS)
@settings(max_examples=100, deadline=None)
@given(st.lists(batches(), min_size=1, max_size=3))
def test_lines_give_the_same_together_and_alone(compiled: bool, stretches: list[list[bytes]]) -> None:
    """Each stretch twice: in the second round the decoder knows the shapes and the labels."""
    together, alone = decoder(2, compiled=compiled), decoder(ALONE)
    for bodies in stretches * 2:
        assert outcome(together, bodies) == outcome(alone, bodies)


@st.composite
def mutants(draw: Any) -> list[bytes]:
    """Good lines of one shape, of which some have other bytes somewhere."""
    bodies = [plain(n, value=draw(st.sampled_from(["1.5", '"2"', "-3"]))) for n in range(draw(st.integers(2, 12)))]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(bodies) - 1))
        line, place = bodies[at], draw(st.integers(0, len(bodies[at])))
        bytes_there = draw(st.one_of(st.binary(max_size=4), st.sampled_from(SPLICES)))
        bodies[at] = line[:place] + bytes_there + line[place + draw(st.integers(0, 3)) :]
    return bodies


@pytest.mark.parametrize("compiled", WAYS)
@settings(max_examples=300, deadline=None)
@given(mutants())
def test_mutated_lines_give_the_same_together_and_alone(compiled: bool, bodies: list[bytes]) -> None:
    assert outcome(decoder(2, compiled=compiled), bodies) == outcome(decoder(ALONE), bodies)


@pytest.mark.parametrize("compiled", WAYS)
def test_every_byte_in_every_place_gives_the_same_together_and_alone(compiled: bool) -> None:
    """Each place of a line once, with a byte that stands for its kind."""
    good = plain(1)
    bodies = [good[:at] + bytes([octet]) + good[at + 1 :] for at in range(len(good)) for octet in b'"\\0-{\xff\xc3\n ']
    assert outcome(decoder(2, compiled=compiled), bodies) == outcome(decoder(ALONE), bodies)


@pytest.mark.parametrize("compiled", WAYS)
def test_labels_of_all_shapes_together_take_no_more_memory_than_they_may(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant may send long labels without end, in as many shapes as it likes; and what it sends counts as ever."""
    most = 1 << 19
    for module in (compiled_lookalikes, lookalikes):
        monkeypatch.setattr(module, "LEARNED", 0)
    together, alone = decoder(2, compiled=compiled), decoder(ALONE)

    def learn() -> int:
        for shape, part in itertools.product(range(4), range(6)):
            bodies = [plain(n, subject=f"{part}-{n}-".ljust(400, "x"), more=f',"m{shape}":1') for n in range(60)]
            assert outcome(together, bodies) == outcome(alone, bodies)
        books = [shape.book for shape in together._compiled._shapes.values() if shape] if together._compiled else [
            shape for shape in together._lookalikes._shapes.values() if shape]  # fmt: skip
        assert len(books) == 4
        return sum(book.size for book in books)

    assert learn() > 2 * most
    monkeypatch.setattr(meanings, "KNOWN_BYTES", most)
    assert learn() < 1.5 * most


def plain(number: int, **changed: str) -> bytes:
    parts = {"subject": "Zoë Åström", "value": '"1.5"', "region": '"Nürnberg"', "more": ""} | changed
    return (
        f'{{"id":"e-{number}","source":"nova","type":"server","subject":"{parts["subject"]}","time":"2026-10-31T12:00:00Z",'
        f'"data":{{"region":{parts["region"]},"hours":{parts["value"]}{parts["more"]}}}}}'
    ).encode()


@pytest.fixture(params=WAYS)
def left_over(request: pytest.FixtureRequest) -> Callable[[list[bytes]], list[int]]:
    """Tells which lines are left to be read one by one."""
    return lambda bodies: decoder(2, compiled=request.param).read_alike(lines_of(bodies).together())[1].tolist()


def test_lines_of_one_shape_need_no_second_look(left_over: LeftOver) -> None:
    assert left_over([plain(n) for n in range(20)]) == []


def test_numbers_need_no_quotes(left_over: LeftOver) -> None:
    assert left_over([plain(n, value=f"{n}.25") for n in range(20)]) == []


def test_two_clients_in_turns_are_both_read_together(left_over: LeftOver) -> None:
    """They write the same number of texts, under keys of other lengths."""
    bodies = [plain(n, more=f',"{"zone" if n % 2 else "comment"}":"{n}"') for n in range(40)]
    assert left_over(bodies) == []


@pytest.mark.parametrize(
    "line",
    [
        plain(7, value='"many"'),
        plain(7, subject='Zo\\"e'),
        plain(7, subject=""),
        plain(7, value="01"),
        plain(7, more=',"hours":"2"'),
        plain(7).replace(b"T12", b" 12"),
        plain(7).replace(b"Z", b"\xff", 1),
        plain(7) + b"\n" + plain(8),
    ],
)
def test_only_the_odd_line_is_looked_at_again(left_over: LeftOver, line: bytes) -> None:
    bodies = [plain(n) for n in range(20)]
    bodies[7] = line
    assert left_over(bodies) == [7]


def test_labels_that_never_come_again_are_not_all_learned(left_over: LeftOver) -> None:
    """To learn one costs more than a line's decoding."""
    assert len(left_over([plain(n, subject=f"tenant-{n}") for n in range(800)])) == 800 - 32 - 100


def test_the_template_of_a_line_holds_no_text_but_its_keys() -> None:
    assert template_of(b'{"id":"7","data":{"value":1.5,"x":[1,2]}}') == b'{"id":"s3","data":{"value":"n8","x":[1,2]}}'


def test_a_key_that_stands_twice_is_no_shape() -> None:
    assert free_parts(plain(1, more=',"hours":"2"'), frozenset()) == ()


def test_data_in_base64_say_what_each_line_counts_for(left_over: LeftOver) -> None:
    """Dimensions and filters stand in them; the first line's had been taken for those of all."""
    starts = [plain(n).replace(b"server", b"call").partition(b',"data"')[0] for n in range(9)]
    bodies = [start + f',"data_base64":"{ENCODED[n % 3]}"}}'.encode() for n, start in enumerate(starts)]
    assert left_over(bodies) == list(range(9))
    (*_, readings, dead, ignored) = outcome(decoder(2), bodies)
    assert ([place for place, *_ in readings], dead, ignored) == ([0, 1, 2, 3, 4, 5], [], 3)


def test_a_line_with_a_backslash_is_not_plain() -> None:
    bodies = [b'{"a":"b"}', b'{"a":"\\""}']
    sheet = scan(bodies, np.array([9, 10]))
    assert sheet is not None
    assert sheet.plain.tolist() == [True, False]
