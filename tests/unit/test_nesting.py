"""How deeply an event may be nested is a number of ours, equal in every format and on every stack."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallyman.binary import compose
from tallyman.errors import EventError
from tallyman.event import BATCH, LINES, Event, Rejected, decode_event, decode_record
from tallyman.nesting import MAX_NESTING, flatten, is_too_deep

HEAD = '{"id":"e-1","source":"nova","type":"server","subject":"Zoë Åström","time":"2026-10-31T12:00:00Z"'
ATTRIBUTES = {"specversion": "1.0", "id": "e-1", "source": "nova", "type": "server", "subject": "Zoë Åström",
              "time": "2026-10-31T12:00:00Z"}  # fmt: skip


def data(nesting: int) -> str:
    """Return data of an event whose deepest point has so many arrays and objects around it."""
    inside = nesting - 2
    opened = "".join('{"]\\"":' if place % 2 else "[" for place in range(inside))
    closed = "".join("}" if place % 2 else "]" for place in reversed(range(inside)))
    return f'{{"value":1,"note":{opened}1{closed}}}'


def event(nesting: int) -> bytes:
    return f'{HEAD},"data":{data(nesting)}}}'.encode()


def verdict(decode: Callable[[], object]) -> str:
    try:
        decode()
    except EventError as error:
        return f"{error.reason}: {error.detail}"
    return "fine"


@pytest.mark.parametrize(
    "nesting, expected",
    [
        (MAX_NESTING, "fine"),
        (MAX_NESTING + 1, "too_deep: expected at most 64 arrays and objects inside each other, got more"),
        (100_000, "too_deep: expected at most 64 arrays and objects inside each other, got more"),
    ],
)
def test_an_event_may_be_nested_equally_deeply_in_every_format(nesting: int, expected: str) -> None:
    body, good = event(nesting), event(3)
    assert verdict(lambda: decode_event(body)) == expected
    assert verdict(lambda: decode_event(compose(ATTRIBUTES, data(nesting).encode()))) == expected
    for content_type, record in ((BATCH, b"[" + b" , ".join([good, body, good]) + b"]"),
                                 (LINES, b"\n".join([good, body, good]))):  # fmt: skip
        first, middle, last = decode_record(content_type, record)
        assert isinstance(first, Event) and isinstance(last, Event)
        if isinstance(middle, Rejected):
            assert (f"{middle.reason}: {middle.detail}", middle.raw) == (expected, body)
        else:
            assert expected == "fine"


def test_the_stack_in_use_decides_nothing() -> None:
    """A decoder's own limit is what is left of Python's stack: accepted here, refused there."""

    def further_down(frames: int) -> list[str]:
        if frames:
            return further_down(frames - 1)
        bodies = [event(nesting) for nesting in (MAX_NESTING, MAX_NESTING + 1, 900)]
        return [verdict(partial(decode_event, body)) for body in bodies]

    assert further_down(700) == further_down(0)


def test_brackets_in_texts_open_nothing() -> None:
    body = (HEAD + ',"data":{"note":"' + "[" * 500 + '\\"' + "{" * 500 + '\\\\"}}').encode()
    assert verdict(lambda: decode_event(body)) == "fine"


def test_an_array_of_a_thousand_objects_is_not_deep() -> None:
    assert verdict(lambda: decode_event((HEAD + ',"data":{"disks":[' + "{}," * 999 + "{}]}}").encode())) == "fine"


def test_a_batch_that_never_closes_what_it_opened_is_malformed_as_a_whole() -> None:
    (only,) = decode_record(BATCH, b"[" + event(3) + b"," + b"[" * 100_000)
    assert isinstance(only, Rejected) and only.reason == "malformed"


@pytest.mark.parametrize("digits", [4300, 4301, 100_000])
def test_an_integer_of_any_length_is_no_matter_where_nobody_reads_it(digits: int) -> None:
    """Python reads 4,300 digits, or fewer, as it was started; an event may not depend on that."""
    body = (HEAD + ',"note":"' + "9" * 700 + '","data":{"value":1,"note":[-' + "9" * digits + ",1.5e3]}}").encode()
    assert decode_event(body).data["value"] == 1


@pytest.mark.parametrize("rest", [b'"' + b'\\"' * 50_000, b'"\\' * 50_000, (b"1" * 639 + b",") * 100])
def test_a_text_without_an_end_behind_a_long_integer_is_read_once(rest: bytes) -> None:
    """Each quote was tried as a beginning: a record of four mebibytes would have held a worker for hours."""
    began_s = time.process_time()
    with pytest.raises(EventError):
        decode_event(b'{"id":5,"n":[' + b"1" * 640 + b"," + rest)
    assert time.process_time() - began_s < 2


def test_a_long_integer_has_the_same_text_as_a_short_one() -> None:
    body = (HEAD + ',"data":{"serial":' + "9" * 800 + ',"note":' + "9" * 5000 + "}}").encode()
    assert str(decode_event(body).data["serial"]) == "9" * 800


JSON = st.recursive(st.sampled_from(["1", '"[{"', '"\\\\"', '"\\""', "null"]), lambda inner: st.one_of(
    st.lists(inner, max_size=3).map(lambda each: f"[{' ,'.join(each)} ]"),
    st.lists(inner, max_size=3).map(lambda each: "{" + ",".join(f'"}}{i}" : {v}' for i, v in enumerate(each)) + "}"),
))  # fmt: skip


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.integers(0, 4))
def test_depth_is_what_a_reader_of_the_json_would_count(text: str, most: int) -> None:
    value = json.loads(text)
    assert is_too_deep(text.encode(), most) == (depth_of(value) > most)
    flat = flatten(text.encode(), most)
    assert len(flat) == len(text) and depth_of(json.loads(flat)) == min(depth_of(value), most)
