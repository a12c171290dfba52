"""Lines are decoded as one text only where each is one object that is not nested too deeply."""

from __future__ import annotations

import pytest

from pipeline.catalog import Catalog
from pipeline.json_events import JsonDecoder
from pipeline.lines import Lines
from pipeline.together import MOST_TOGETHER, join_objects
from tallyman.nesting import MAX_NESTING
from tests.unit.pipeline.events import PLAIN, body

FEW, MANY = 10, MAX_NESTING + 10  # they are looked at in different ways


def nested(nesting: int, *, long: int = 0) -> bytes:
    deep = b"[" * (nesting - 2) + b"]" * (nesting - 2)
    return body("deep").replace(b'"hours"', b'"pad":"' + b"x" * long + b'","note":' + deep + b',"hours"')


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("nesting, joined", [(MAX_NESTING, True), (MAX_NESTING + 1, False)])
@pytest.mark.parametrize("long", [0, 100_000])
def test_one_line_among_others_that_is_nested_too_deeply_is_not_joined(
    count: int, nesting: int, joined: bool, long: int
) -> None:
    lines = [*(body(number) for number in range(count)), nested(nesting, long=long)]
    assert bool(join_objects(lines)) == joined


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("odd", [b"", b"1", b" {}", b"{} ", b"{}\n{}", b"{\n}", b"[]", b'"{}"'])
def test_what_is_not_one_object_on_one_line_is_not_joined(count: int, odd: bytes) -> None:
    lines = [body(number) for number in range(count)]
    for place in (0, count // 2, count):
        assert not join_objects([*lines[:place], odd, *lines[place:]])
    assert join_objects(lines) == b"\n".join(lines)


def test_a_bad_line_costs_only_its_neighbours_the_quick_way() -> None:
    """And every line keeps its place, also over the edges of what is decoded together."""
    count = 2 * MOST_TOGETHER + 5
    bodies = [body(number) for number in range(count)]
    bodies[MOST_TOGETHER + 1] = nested(MAX_NESTING + 1)
    bodies[count - 1] = b"{"
    lines = Lines(bodies, list(range(count)), [0] * count, [0] * count, [0] * count, [False] * count)
    events, dead, _ = JsonDecoder(Catalog(PLAIN), 1, few=1 << 30).decode(lines, "", 0)
    assert [(letter.offset, letter.reason) for letter in dead] == [
        (MOST_TOGETHER + 1, "too_deep"), (count - 1, "malformed"),
    ]  # fmt: skip
    assert events.offsets.tolist() == [n for n in range(count) if n not in (MOST_TOGETHER + 1, count - 1)]
    assert events.bodies == [bodies[n] for n in events.offsets.tolist()]
