"""The log is cut where a chunk, a booking or the definitions change, by the log alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline import stretch
from pipeline.batches import empty_fetch
from pipeline.book import DAY_MS, Place, chain
from pipeline.decode import blocks
from tallyman.errors import LogError
from tallyman.event import ARROW, BATCH, LINES, MAX_RECORD_EVENTS
from tallyman.headers import kind_of
from tallyman.meter import Definitions
from tests.fetches import NOON_MS, TOPIC_ID, fetch_of
from tests.unit.pipeline.events import (
    NDJSON,
    PLAIN,
    SERVER,
    TRAFFIC,
    Walk,
    body,
    new_chunk,
    new_decoders,
    numbered,
)

TODAY = NOON_MS // DAY_MS
TICK = (("tallyman-tick", b"1"),)


def close(booking: int, definitions: int = 1) -> tuple[tuple[str, bytes], ...]:
    return (("tallyman-close", str(booking).encode()), ("tallyman-definitions", str(definitions).encode()))


def places(walk: Walk) -> list[tuple[int, int, bool, bool]]:
    """Return the stretches that were cut: from, to, whether a booking begins, whether the chunk ends."""
    return [(each.before.offset, each.after.offset, each.turn, each.closes) for each in walk.blocks]


def test_a_fetch_is_cut_where_chunks_end() -> None:
    walk = Walk(chunk=new_chunk(size=8)).send(*(body(i) for i in range(20)))
    assert places(walk) == [(0, 8, True, True), (8, 16, False, True), (16, 20, False, False)]
    assert (walk.chunk.number, walk.chunk.covered, walk.counts["aggregated"]) == (2, 4, 4)


def test_a_hole_over_the_end_of_a_chunk_closes_the_chunk() -> None:
    """Transaction markers and aborted records leave holes; a chunk is a range of offsets, not a count of records."""
    walk = Walk(chunk=new_chunk(size=8))
    walk.go(fetch_of([(body(i), (), NOON_MS) for i in range(3)], offsets=[5, 6, 11], behind=12))
    assert places(walk) == [(0, 8, True, True), (8, 12, False, False)]
    assert [block.received for block in walk.blocks] == [2, 1]


def test_a_booking_begins_at_its_first_record_wherever_a_reader_paused_in_the_hole_before_it() -> None:
    """Else one that paused and one that did not would name two restart places, and retention may fall between."""
    midnight = (TODAY + 1) * DAY_MS
    yesterday, marker, today = (0, 1, 11), (2, 1, 12), (5, 1, 13)
    first = replace(fetch_of([(body(1), (), midnight - 1)], behind=1), digests=(yesterday,))
    hole = replace(fetch_of([], first=1, behind=4), digests=(marker,))
    rest = replace(fetch_of([(body(2), (), midnight)], offsets=[5], first=4, behind=6), digests=(today,))
    paused = Walk().go(first).go(hole).go(rest)
    at_once = Walk().go(first).go(replace(rest, first=1, digests=(marker, today)))
    assert paused.chunk.turned == at_once.chunk.turned
    assert paused.chunk.turned.offset == 5 and paused.chunk.turned.digest == chain(0, [yesterday, marker], 0, 5)
    assert paused.chunk.here == at_once.chunk.here


def test_a_fetch_without_records_moves_on_over_several_chunks() -> None:
    walk = Walk(chunk=new_chunk(size=8)).go(fetch_of([], first=0, behind=17))
    assert [stretch[:2] for stretch in places(walk)] == [(0, 8), (8, 16), (16, 17)]


def test_a_booking_begins_at_utc_midnight_by_the_clock_of_the_log() -> None:
    midnight = (TODAY + 1) * DAY_MS
    walk = Walk().go(fetch_of([(body(1), (), midnight - 1), (body(2), (), midnight)]))
    assert [block.after.booking for block in walk.blocks] == [TODAY * 1000, (TODAY + 1) * 1000]
    assert places(walk) == [(0, 1, True, False), (1, 2, True, False)]


def test_a_clock_that_goes_back_moves_nothing_back() -> None:
    """A broker's clock was set back over midnight: the log clock is the running maximum."""
    midnight = (TODAY + 1) * DAY_MS
    walk = Walk().go(fetch_of([(body(1), (), midnight), (body(2), (), midnight - 5), (body(3), (), midnight + 1)]))
    assert [(block.after.clock_ms, block.after.booking) for block in walk.blocks] == [
        (midnight + 1, (TODAY + 1) * 1000)
    ]
    walk.go(fetch_of([(body(4), (), NOON_MS)], first=3))
    assert walk.chunk.here.clock_ms == midnight + 1


def test_a_close_opens_the_booking_that_it_names_and_a_copy_of_it_opens_nothing() -> None:
    opens = TODAY * 1000 + 3
    walk = Walk().go(
        fetch_of(
            [(body(1), (), NOON_MS), (b"", close(opens), NOON_MS), (body(2), (), NOON_MS), (b"", close(opens), NOON_MS)]
        )
    )
    assert [(block.before.offset, block.after.booking) for block in walk.blocks] == [(0, TODAY * 1000), (1, opens)]
    assert walk.counts["received"] == 2


def test_an_older_close_that_comes_late_opens_nothing() -> None:
    walk = Walk().send(b"", headers=close(TODAY * 1000 + 7)).send(b"", headers=close(TODAY * 1000 + 3))
    assert walk.chunk.here.booking == TODAY * 1000 + 7


def test_a_close_from_beyond_tomorrow_is_nobodys_close() -> None:
    walk = Walk().send(b"", headers=close((TODAY + 2) * 1000))
    assert walk.chunk.here.booking == TODAY * 1000


def test_what_comes_after_a_close_is_judged_by_its_definitions_and_what_came_before_is_not() -> None:
    second = Definitions(number=2, meters=(replace(SERVER, meter="compute.minutes", scale=0),))
    walk = Walk(PLAIN, second)
    walk.go(fetch_of([(body(1), (), NOON_MS), (b"", close(TODAY * 1000 + 1, 2), NOON_MS), (body(2), (), NOON_MS)]))
    assert walk.reasons == ["too_precise"]  # 1.5 at scale 0
    assert walk.sums() == {"compute.hours": 1_500_000}


def test_definitions_change_even_if_the_booking_that_their_close_names_is_open_already() -> None:
    """Rows of two definitions never share a row: a turn is made all the same."""
    second = Definitions(number=2, meters=(replace(SERVER, scale=3),))
    walk = Walk(PLAIN, second).send(b"", headers=close(TODAY * 1000 + 5))
    walk.go(
        fetch_of([(body(1), (), NOON_MS), (b"", close(TODAY * 1000 + 5, 2), NOON_MS), (body(2), (), NOON_MS)], first=1)
    )
    assert [block.turn for block in walk.blocks] == [True, False, True]
    walk.flush()
    assert sorted(walk.totals.values()) == [1500, 1_500_000]


def test_what_was_sent_before_the_first_close_is_judged_by_definitions_1() -> None:
    walk = Walk().send(body(1)).send(b"", headers=close(TODAY * 1000 + 1))
    assert walk.sums() == {"compute.hours": 1_500_000}


def test_a_tick_moves_the_clock_of_a_silent_partition_over_midnight() -> None:
    walk = Walk().send(body(1)).send(b"", headers=TICK, at_ms=NOON_MS + DAY_MS)
    assert walk.chunk.here.booking == (TODAY + 1) * 1000 and walk.counts["received"] == 1


def test_offsets_that_are_folded_already_are_skipped() -> None:
    """After a rebuild of the pipeline the reader brings again what this process knows."""
    records = [(body(i), (), NOON_MS) for i in range(6)]
    walk = Walk().go(fetch_of(records[:4]))
    walk.go(fetch_of(records[2:], first=2))
    walk.go(fetch_of(records[:3]))
    assert walk.counts["received"] == walk.counts["aggregated"] == 6
    assert walk.blocks[-1].idle
    assert walk.chunk.here.digest == chain(0, fetch_of(records).digests, 0, 6)


def test_an_idle_poll_is_an_idle_block() -> None:
    walk = Walk().go(empty_fetch(TOPIC_ID, 0, 0))
    assert [block.idle for block in walk.blocks] == [True]


def test_a_gap_is_refused_with_a_sentence() -> None:
    with pytest.raises(LogError, match="partition 0: expected offset 1 next, got a fetch that begins at 5"):
        Walk().send(body(1)).go(fetch_of([(body(2), (), NOON_MS)], first=5))


def test_a_block_that_was_not_folded_is_not_passed_over() -> None:
    walk = blocks(fetch_of([(body(i), (), NOON_MS) for i in range(9)]), new_chunk(size=8), new_decoders())
    next(walk)
    with pytest.raises(LogError, match="the block up to 8 was not folded"):
        next(walk)


def test_a_log_that_differs_from_what_was_booked_is_refused() -> None:
    chunk = new_chunk()
    chunk.earlier = Place(2, NOON_MS, TODAY * 1000, 1, digest=12345)
    with pytest.raises(LogError, match=r"below offset 2 the log differs .* an operator decides"):
        Walk(chunk=chunk).send(body(1), body(2), body(3))


def test_the_same_log_meets_its_digest_again_however_it_is_fetched() -> None:
    records = [(body(i), (), NOON_MS) for i in range(5)]
    chunk = new_chunk()
    chunk.earlier = Place(3, NOON_MS, TODAY * 1000, 1, digest=chain(0, fetch_of(records).digests, 0, 3))
    walk = Walk(chunk=chunk).go(fetch_of(records[:2])).go(fetch_of(records[2:], first=2))
    assert walk.chunk.earlier is None and walk.counts["aggregated"] == 5


def test_one_bad_line_of_five_hundred_is_one_dead_letter_with_its_place() -> None:
    lines = [body(i) for i in range(500)]
    lines[250] = b'{"id": "e-250"'
    walk = Walk().send(b"\n".join(lines), headers=NDJSON)
    (letter,) = walk.chunk.dead
    assert (letter.reason, letter.offset, letter.index, letter.body) == ("malformed", 0, 250, lines[250])
    assert walk.counts["aggregated"] == 499


@pytest.mark.parametrize("content, value, reason", [
    ("application/xml", b"<usage/>", "unknown_format"),
    (BATCH, b"[1", "malformed"),
    (BATCH, b'["\xff]', "not_utf8"),
    (ARROW, b"not arrow", "missing_field"),
    (LINES, b"x" * (4 * 1024 * 1024 + 1), "too_large"),
    ("", b"x" * (4 * 1024 * 1024 + 1), "too_large"),
    (LINES, b"x\n" * (MAX_RECORD_EVENTS + 1), "too_large"),
    (BATCH, b"[" + b"0," * MAX_RECORD_EVENTS + b"0]", "too_large"),
])  # fmt: skip
def test_a_record_that_is_no_record_is_one_dead_letter(content: str, value: bytes, reason: str) -> None:
    walk = Walk().send(value, headers=(("content-type", content.encode()),)).send(body(1))
    assert (walk.reasons, walk.counts["received"], walk.counts["dead"], walk.counts["aggregated"]) == (
        [reason],
        2,
        1,
        1,
    )
    assert walk.chunk.dead[0].body == value


@pytest.mark.parametrize("headers, reason", [
    ((("tallyman-collector", b"host-01"),), "missing_field"),
    ((("tallyman-collector", b"\xff"), ("tallyman-epoch", b"e"), ("tallyman-sequence", b"1")), "not_utf8"),
    ((("tallyman-collector", b"h"), ("tallyman-epoch", b"e"), ("tallyman-sequence", b"-1")), "wrong_type"),
    ((("tallyman-close", b"soon"),), "wrong_type"),
    ((("trace", bytes(1 << 20)),), "too_large"),
])  # fmt: skip
def test_headers_that_cannot_be_read_make_a_dead_letter_never_an_exception(headers: object, reason: str) -> None:
    problem = kind_of(headers).problem  # type: ignore[arg-type]
    assert problem is not None and problem.reason == reason
    assert Walk().send(body(1), headers=headers).reasons == [reason]  # type: ignore[arg-type]


def test_formats_in_one_stretch_of_log_keep_their_order() -> None:
    """The first copy wins, whichever decoder it went through."""
    traffic = body(1, type="traffic", data={"bytes": 7})
    walk = Walk().go(fetch_of([(traffic, NDJSON, NOON_MS), (body(1), (), NOON_MS), (body(2), NDJSON, NOON_MS)]))
    assert walk.sums() == {"net.bytes": 7, "compute.hours": 1_500_000}
    assert [(each.offset, each.first_offset) for each in walk.conflicts] == [(1, 0)]


def test_an_empty_numbered_batch_is_a_heartbeat() -> None:
    walk = Walk().send(b"", headers=numbered(1)).send(body(1), headers=numbered(2))
    assert walk.counts["received"] == walk.counts["aggregated"] == 1 and not walk.chunk.dead


def test_the_archive_holds_every_record_with_its_headers() -> None:
    chunk, decoders = new_chunk(), new_decoders(replace(PLAIN, meters=(SERVER, TRAFFIC)))
    fetch = fetch_of([(body(1), (), NOON_MS), (b"", TICK, NOON_MS), (None, NDJSON, NOON_MS)])
    (block,) = blocks_of(fetch, chunk, decoders)
    assert [(raw.offset, raw.headers, raw.body) for raw in block.raw] == [
        (0, (), body(1)),
        (1, TICK, b""),
        (2, NDJSON, b""),
    ]


def test_the_archive_changes_nothing_about_how_plain_records_are_read() -> None:
    chunk, decoders = new_chunk(), new_decoders(replace(PLAIN, meters=(SERVER, TRAFFIC)))
    (block,) = blocks_of(fetch_of([(body(n), (), NOON_MS) for n in range(3)]), chunk, decoders)
    assert [raw.body for raw in block.raw] == [body(n) for n in range(3)]
    assert (block.received, [len(part) for part in block.parts]) == (3, [3])


def blocks_of(fetch, chunk, decoders):  # type: ignore[no-untyped-def]
    return [next(blocks(fetch, chunk, decoders, archive=True))]


def test_what_new_definitions_read_of_an_event_is_held_from_their_close_on() -> None:
    """Sums hold no extremes and no latest value; the meters behind the close ask for both."""
    newest, top = replace(SERVER, aggregation="latest"), replace(SERVER, meter="top", aggregation="max")
    second = Definitions(number=2, meters=(newest, top))
    walk = Walk(PLAIN, second).go(
        fetch_of([(body(1), (), NOON_MS), (b"", close(TODAY * 1000 + 1, 2), NOON_MS), (body(2), (), NOON_MS)])
    )
    rows, _ = walk.chunk.table.take_changes()
    assert rows.latest.tolist() == rows.max.tolist() == [1_500_000] * 2 and rows.latest_us.all()


@pytest.mark.parametrize("content", [LINES, BATCH])
def test_a_fetch_is_cut_where_its_records_may_become_too_much(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mebibyte of the shortest lines is half a million dead letters; wherever it is cut, it comes to the same."""
    events = [body(1), body(2), b"1", body(3)]
    record = b"\n".join(events) if content == LINES else b"[" + b",".join(events) + b"]"
    rows = [(record, (("content-type", content.encode()),), NOON_MS)] * 3 + [(body(4), (), NOON_MS)] * 3
    whole = Walk().go(fetch_of(rows))
    monkeypatch.setattr(stretch, "_MOST", np.array([[1 << 20], [3]]))
    cut = Walk().go(fetch_of(rows))
    assert [len(walk.blocks) for walk in (whole, cut)] == [1, 4]
    assert cut.sums() == whole.sums() and cut.chunk.here == whole.chunk.here
    letters = [[(letter.offset, letter.index) for letter in walk.dead] for walk in (whole, cut)]
    assert letters[0] == letters[1] == [(offset, 2) for offset in range(3)]


def test_blank_lines_are_counted_too() -> None:
    walk = Walk().send(b"\n" * 65_536, b"\n" * 65_537, body(1), headers=NDJSON)
    assert (walk.reasons, walk.counts["aggregated"], walk.chunk.dead[0].offset) == (["too_large"], 1, 1)


def test_headers_are_counted_though_they_be_empty() -> None:
    assert Walk().send(body(1), headers=(("", b""),) * 4097).reasons == ["too_large"]
    assert Walk().send(body(1), headers=(("", b""),) * 4096).reasons == []
