"""What a dead letter keeps so that it can be let in again, and what happens when it is (P3, P4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from collectors.arrow import Reading, encode_readings
from tallyman.event import ADMITTED, ARROW, BATCH, INDEX, SINGLE, Series, home_key
from tallyman.kafka import partition_of
from tallyman.meter import Meter
from tests.unit.pipeline.events import NOON_US, PLAIN, Walk, body, numbered, short_window

Headers = tuple[tuple[str, bytes], ...]
BINARY: Headers = (
    ("ce_specversion", b"1.0"), ("ce_id", b"e-1"), ("ce_source", b"nova/berlin-1"), ("ce_type", b"server"),
    ("ce_subject", "Zoë Åström".encode()), ("ce_time", b"2026-10-31T12:00:00Z"),
    ("content-type", b"application/json; charset=utf-8"),
)  # fmt: skip
OLD = {"time": "2026-10-31T10:00:00Z"}


def without(headers: Headers, name: str) -> Headers:
    return tuple(each for each in headers if each[0] != name)


def away(key: Callable[[str], bytes]) -> str:
    """Return a name whose home is the other one of two partitions."""
    return next(name for name in map("host-{:02}".format, range(99)) if partition_of(key(name), 2) == 1)


def again(sequence: int, index: int, collector: str = "host-01") -> Headers:
    """Return the headers of one event of a numbered batch that is let in again."""
    return (*numbered(sequence, collector=collector, content=SINGLE), (INDEX, str(index).encode()), (ADMITTED, b"1"))


def bytes_of(amount: Any, number: int = 1) -> bytes:
    return body(number, type="traffic", data={"bytes": amount})


def batch(*rows: tuple[str, int, int]) -> bytes:
    return encode_readings([Reading(Series(type=kind, subject="Zoë Åström", scale=0), at, at + 1, value)
                            for kind, at, value in rows])  # fmt: skip


def test_binary_mode_is_the_same_event_as_structured_mode() -> None:
    walk = Walk().send(b'{"hours": "1.5", "region": "Malm\xc3\xb6"}', headers=BINARY).send(body(1))
    assert walk.sums() == {"compute.hours": 1_500_000} and walk.counts["duplicate"] == 1


def test_an_event_in_binary_mode_that_lacks_an_attribute_is_a_dead_letter_with_its_own_body() -> None:
    (letter,) = Walk().send(b'{"hours": 1}', headers=without(BINARY, "ce_subject")).chunk.dead
    assert (letter.reason, letter.body) == ("missing_field", b'{"hours": 1}')
    assert dict(letter.headers)["ce_id"] == b"e-1"


@pytest.mark.parametrize(
    "data, reason", [(b'{"hours": "lots"}', "not_a_number"), (b"{", "malformed"), (b"7", "wrong_type")]
)
def test_a_dead_event_in_binary_mode_keeps_the_body_and_the_headers_that_it_came_with(data: bytes, reason: str) -> None:
    (letter,) = Walk().send(data, headers=BINARY).chunk.dead
    assert (letter.reason, letter.body, letter.headers) == (reason, data, BINARY)


def test_a_late_event_in_binary_mode_keeps_them_too() -> None:
    late = (*without(BINARY, "ce_time"), ("ce_time", b"2026-10-31T10:00:00Z"))
    (letter,) = Walk(short_window()).send(b'{"hours": 1}', headers=late).chunk.dead
    assert (letter.reason, letter.body, letter.headers, letter.type) == ("too_old", b'{"hours": 1}', late, "server")


def test_a_stray_event_in_binary_mode_is_forwarded_as_the_event_that_it_is() -> None:
    source = away(lambda name: home_key("Zoë Åström", name))
    walk = Walk(partitions=2)
    walk.send(b'{"hours": 1}', headers=(*without(BINARY, "ce_source"), ("ce_source", source.encode())))
    (forward,) = walk.chunk.forwards
    assert (
        msgspec.json.decode(forward.value)["id"] == "e-1" and dict(forward.headers)["content-type"] == SINGLE.encode()
    )


def test_the_content_type_of_a_dead_line_says_what_its_bytes_are() -> None:
    odd = (("Content-Type", b"APPLICATION/X-NDJSON; charset=utf-8"), ("traceparent", b"00"))
    (letter,) = Walk().send(b"\n".join([body(1), b"{"]), headers=odd).chunk.dead
    assert (letter.content_type, letter.headers) == (SINGLE, odd[:1])


@pytest.mark.parametrize("number", [(), numbered(3)[1:]])
def test_each_dead_event_of_a_record_keeps_only_the_headers_that_it_needs(number: Headers) -> None:
    """A mebibyte of headers beside 65,536 events would else be 64 GiB of dead letters."""
    own = (("content-type", BATCH.encode()), *number)
    idle = [(f"ce_a{n}", b"x" * 4090) for n in range(50)] + [("tallyman-note", b"x" * 4090), ("tallyman-epoch", b"x")]
    letters = Walk().send(b"[1,2,3]", headers=(*idle, ("Content-Type", b"x" * 4090), *own)).chunk.dead
    assert len(letters) == 3 and all(letter.headers == own for letter in letters)
    assert len({id(letter.headers) for letter in letters}) == 1


CPU = Meter(meter="host.cpu", event_type="cpu", aggregation="sum", value="value", scale=0)
HOST = replace(short_window(), meters=(*short_window().meters, CPU))


def test_a_late_row_of_an_arrow_batch_is_a_dead_letter_that_a_person_can_read() -> None:
    rows = batch(("cpu", NOON_US, 1), ("cpu", NOON_US - 7_200_000_000, 8), ("cpu", NOON_US, 2))
    walk = Walk(HOST).send(rows, headers=numbered(3, content=ARROW))
    (letter,) = walk.chunk.dead
    assert (letter.reason, letter.index, letter.content_type, letter.type) == ("too_old", 1, SINGLE, "cpu")
    assert msgspec.json.decode(letter.body)["data"] == {"value": "8"} and letter.headers == numbered(3, content=ARROW)
    assert walk.sums() == {"host.cpu": 3}


def test_a_row_that_is_let_in_again_counts_once_however_often_it_is_retried() -> None:
    """Its identity is its place in its batch; a mended copy is a conflict and counts no more."""
    rows = batch(("cpu", NOON_US, 1), ("cpu", NOON_US - 7_200_000_000, 8))
    walk = Walk(HOST).send(rows, headers=numbered(3, content=ARROW))
    (letter,) = walk.chunk.dead
    walk.send(letter.body, letter.body, headers=again(3, 1)).send(letter.body + b" ", headers=again(3, 1))
    assert walk.sums() == {"host.cpu": 9}
    assert (walk.counts["duplicate"], walk.counts["conflict"], len(walk.conflicts)) == (2, 1, 1)
    walk.send(letter.body, headers=again(3, 0)).send(letter.body, headers=again(4, 1))
    assert walk.sums() == {"host.cpu": 25}  # other rows, other batches: other events


def test_the_first_copy_of_a_batch_decides_for_its_dead_rows_too() -> None:
    """Sent again under definitions that want them they stay out: only their dead letters bring them in."""
    closes = (("tallyman-close", b"20757001"), ("tallyman-definitions", b"2"))
    rows = batch(("cpu", NOON_US, 5), ("cpu", NOON_US, 7))
    walk = Walk(PLAIN, replace(HOST, number=2)).send(rows, headers=numbered(9, content=ARROW)).send(b"", headers=closes)
    walk.send(rows, headers=numbered(9, content=ARROW))
    assert (walk.reasons, walk.sums()) == (["unknown_meter"] * 2, {})
    for letter in walk.dead:
        walk.send(letter.body, headers=again(9, letter.index))
    assert walk.sums() == {"host.cpu": 12} and reconciles(walk)


def test_a_copy_of_a_batch_gives_no_second_dead_letter_for_its_rows() -> None:
    lines = b"\n".join([bytes_of(1, 1), bytes_of("lots", 2)])
    walk = Walk().send(lines, headers=numbered(1)).send(lines, headers=numbered(1))
    assert walk.reasons == ["not_a_number"] and walk.counts["duplicate"] == 2 and reconciles(walk)


def test_a_number_used_again_is_one_dead_letter_with_the_whole_record() -> None:
    lines = b"\n".join([bytes_of(2, 1), bytes_of("lots", 2)])
    walk = Walk().send(bytes_of(1), headers=numbered(1)).send(lines, headers=numbered(1))
    (letter,) = walk.chunk.dead
    assert (letter.reason, letter.body, letter.headers) == ("number_reused", lines, numbered(1)) and reconciles(walk)


def test_a_dead_line_of_a_numbered_batch_is_let_in_by_its_number_and_line() -> None:
    lines = b"\n".join([bytes_of(1, 1), bytes_of("lots", 2)])
    walk = Walk().send(lines, headers=numbered(1)).send(bytes_of(6, 2), bytes_of(6, 2), headers=again(1, 1))
    assert walk.sums() == {"net.bytes": 7} and walk.counts["duplicate"] == 1 and reconciles(walk)


def test_an_event_that_is_let_in_again_and_still_is_none_is_a_dead_letter_again() -> None:
    walk = Walk().send(bytes_of("lots"), headers=again(1, 4))
    (letter,) = walk.chunk.dead
    assert (letter.reason, letter.headers) == ("not_a_number", again(1, 4)) and reconciles(walk)


def test_an_event_that_is_let_in_again_on_a_foreign_partition_goes_home_with_its_number() -> None:
    headers = again(1, 1, away(str.encode))
    (forward,) = Walk(partitions=2).send(bytes_of(6), headers=headers).chunk.forwards
    assert (forward.partition, forward.value, forward.headers) == (1, bytes_of(6), headers)


def test_old_usage_that_is_let_in_again_counts_and_a_year_out_of_range_never_does() -> None:
    admitted = ((ADMITTED, b"1"),)
    walk = Walk(short_window()).send(body(1, **OLD), body(2, time="1999-12-31T00:00:00Z"), headers=admitted)
    assert walk.reasons == ["year_out_of_range"] and walk.counts["aggregated"] == 1


@pytest.mark.parametrize("headers, reason", [
    ((*numbered(1, content=ARROW), (INDEX, b"1")), "wrong_type"),
    ((*numbered(1, content=SINGLE), (INDEX, b"-1")), "wrong_type"),
    (numbered(1, collector="h" * 1025), "out_of_range"),
])  # fmt: skip
def test_numbers_that_no_retry_writes_make_a_dead_letter(headers: Headers, reason: str) -> None:
    assert Walk().send(bytes_of(1), headers=headers).reasons == [reason]


def reconciles(walk: Walk) -> bool:
    received, *fates, _ = walk.chunk.here.counts
    return received == sum(fates)
