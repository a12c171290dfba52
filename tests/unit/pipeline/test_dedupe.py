"""Count once: the first accepted copy wins, and the log alone says which that is (P3)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from collectors.arrow import Reading, encode_readings
from pipeline.book import Place
from pipeline.identities import Accepted
from tallyman.event import ADMITTED, ARROW, Series, format_time, home_key
from tallyman.kafka import partition_of
from tallyman.meter import Definitions, Meter
from tests.fetches import NOON_MS, fetch_of
from tests.unit.pipeline.events import (
    NDJSON,
    NOON_US,
    PLAIN,
    SERVER,
    TRAFFIC,
    StoredHere,
    Walk,
    batch_words,
    body,
    foreign_identity,
    new_chunk,
    numbered,
    short_window,
)

HOUR_MS = 3_600_000
JUDGED = ((ADMITTED, b"1"),)


def reconciles(walk: Walk) -> bool:
    received, *fates, _ = walk.chunk.here.counts
    return received == sum(fates)


def traffic(number: int, amount: object) -> bytes:
    return body(number, type="traffic", data={"bytes": amount})


def test_an_age_beyond_all_years_is_accepted_for_ever() -> None:
    """As definitions say it that were put in force before it was refused."""
    for_ever = replace(PLAIN, oldest_accepted=timedelta.max, furthest_ahead=timedelta.max)
    walk = Walk(for_ever).send(body(1, time="2000-01-01T00:00:00Z"), body(2, time="2099-12-31T23:59:59Z"), body(2))
    assert (walk.counts["aggregated"], walk.counts["duplicate"]) == (2, 1)


def test_the_first_copy_counts_and_a_later_one_does_not() -> None:
    walk = Walk().send(body(1)).send(body(2), body(1)).send(body(1))
    assert (walk.counts["aggregated"], walk.counts["duplicate"], walk.counts["conflict"]) == (2, 2, 0)
    assert walk.sums() == {"compute.hours": 3_000_000} and reconciles(walk)


def test_a_copy_of_what_was_judged_while_a_booking_turned_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is judged before the booking before it is written: ids that leave the memory then are not its own."""
    monkeypatch.setattr("pipeline.book.MAX_IDS_IN_MEMORY", 0)
    midnight = (NOON_MS // (24 * HOUR_MS) + 1) * 24 * HOUR_MS
    walk = Walk().send(body(1), at_ms=midnight - 1).send(body(2), at_ms=midnight).send(body(2), body(1), at_ms=midnight)
    assert (walk.counts["aggregated"], walk.counts["duplicate"]) == (2, 2)


def test_a_later_copy_with_other_content_is_a_conflict_with_both_offsets_and_is_not_added() -> None:
    walk = Walk().send(body(0), traffic(1, 5)).send(b"\n".join([body(2), traffic(1, 7)]), headers=NDJSON)
    (conflict,) = walk.chunk.conflicts
    assert (conflict.offset, conflict.index, conflict.first_offset, conflict.first_index) == (2, 1, 1, 0)
    assert conflict.body == traffic(1, 7)
    assert walk.sums()["net.bytes"] == 5 and walk.counts["conflict"] == 1 and reconciles(walk)


def test_a_conflict_inside_one_record_names_the_line_that_won() -> None:
    walk = Walk().send(b"\n".join([traffic(1, 5), traffic(1, 6), traffic(1, 5)]), headers=NDJSON)
    assert [(each.index, each.first_index) for each in walk.chunk.conflicts] == [(1, 0)]
    assert walk.sums() == {"net.bytes": 5} and walk.counts["duplicate"] == 2


def test_a_dead_first_copy_does_not_stand_in_the_way_of_a_good_second_one() -> None:
    walk = Walk().send(traffic(1, "lots")).send(traffic(1, 9))
    assert walk.reasons == ["not_a_number"] and walk.sums() == {"net.bytes": 9}


def test_the_same_id_of_another_source_or_tenant_is_another_event() -> None:
    walk = Walk().send(body(1), body(1, source="nova/berlin-2"), body(1, subject="Łukasz"))
    assert walk.counts["aggregated"] == 3


def test_the_time_is_no_part_of_the_identity() -> None:
    walk = Walk().send(body(1)).send(body(1, time="2026-10-31T11:00:00Z"))
    assert (walk.counts["aggregated"], walk.counts["conflict"]) == (1, 1)


def test_ids_below_the_restart_are_asked_of_the_store_and_those_above_it_are_not() -> None:
    """A zombie may have written ids that lie ahead of this worker; only smaller positions count as seen."""
    store = StoredHere()
    store.rows = {
        foreign_identity(1): [Accepted(3, 0, NOON_MS * 1000, 1)],
        foreign_identity(2): [Accepted(12, 0, NOON_MS * 1000, 1)],
    }
    walk = Walk(chunk=new_chunk(Place(10, NOON_MS, definitions=1)), store=store).send(body(1), body(2))
    assert (walk.counts["duplicate"], walk.counts["aggregated"]) == (1, 1)
    assert walk.chunk.conflicts[0].first_offset == 3


def test_copies_of_what_came_lately_are_not_asked_of_the_store() -> None:
    """A sender that repeats itself: each look-up holds up all partitions for tens of milliseconds."""
    walk = Walk(chunk=new_chunk(Place(10, NOON_MS, definitions=1))).send(*(body(i) for i in range(20)))
    walk.send(*(body(i) for i in range(5, 25)))
    assert (walk.counts["aggregated"], walk.counts["duplicate"], walk.store.asked) == (25, 15, 0)


def test_what_the_store_and_the_chunk_both_have_is_a_copy_of_the_newer_one() -> None:
    """Half of the ids left the memory; of an interleaved block older ones stay than some that left."""
    store = StoredHere()
    store.rows = {foreign_identity(1): [Accepted(12, 0, NOON_MS * 1000, 7)]}
    walk = Walk(chunk=new_chunk(Place(11, NOON_MS, definitions=1)), store=store).send(body(1))
    walk.chunk.base = 13
    walk.send(body(1, time="2026-10-31T11:00:00Z"))
    assert [each.first_offset for each in walk.chunk.conflicts] == [12]


def test_until_the_filter_is_loaded_every_id_is_asked_of_the_store() -> None:
    store = StoredHere()
    store.rows = {foreign_identity(1): [Accepted(3, 0, NOON_MS * 1000, 1)]}
    walk = Walk(chunk=new_chunk(Place(10, NOON_MS, definitions=1)), store=store, loaded=False).send(body(1), body(2))
    assert (walk.counts["duplicate"], walk.counts["aggregated"]) == (1, 1)


def test_a_loaded_filter_spares_the_store_the_question_about_new_ids() -> None:
    walk = Walk(chunk=new_chunk(Place(10, NOON_MS, definitions=1))).send(*(body(i) for i in range(20)))
    assert walk.counts["aggregated"] == 20 and walk.store.asked == 0


def test_after_a_kill_nothing_that_is_read_again_is_asked_of_the_store() -> None:
    """Its ids stand there, at the very places that are read again; a full look-up of each would take minutes."""
    store = StoredHere()
    store.rows = {foreign_identity(n): [Accepted(10 + n, 0, NOON_MS * 1000, 1)] for n in range(20)}
    store.rows[foreign_identity(30)] = [Accepted(3, 0, NOON_MS * 1000, 1)]
    walk = Walk(chunk=new_chunk(Place(10, NOON_MS, definitions=1)), store=store)
    walk.send(*(body(n) for n in range(20)))
    assert walk.counts["aggregated"] == 20 and walk.store.asked == 0
    walk.send(body(30), body(5))
    assert (walk.counts["aggregated"], walk.counts["duplicate"]) == (20, 2), "copies are still told apart"


@pytest.mark.parametrize("time_ms, reason", [
    (NOON_MS - HOUR_MS - 1000, "too_old"), (NOON_MS - HOUR_MS, None),
    (NOON_MS + 300_000, None), (NOON_MS + 301_000, "too_far_ahead"),
])  # fmt: skip
def test_lateness_is_judged_by_the_clock_of_the_log(time_ms: int, reason: str | None) -> None:
    walk = Walk(short_window()).send(body(1, time=format_time(time_ms * 1000)))
    assert walk.reasons == ([reason] if reason else []) and reconciles(walk)


PATIENT = replace(SERVER, oldest_accepted=timedelta(days=70))
STRICT = replace(SERVER, meter="compute.berlin", where={"region": ("Berlin",)}, oldest_accepted=timedelta(minutes=30))


def with_meters(*meters: Meter) -> Definitions:
    """An hour is accepted of meters that say nothing else."""
    return replace(short_window(), meters=meters)


@pytest.mark.parametrize("meters, region, minutes_ago, reason", [
    ((PATIENT,), "Berlin", 70 * 24 * 60, None), ((PATIENT,), "Berlin", 70 * 24 * 60 + 1, "too_old"),
    ((STRICT, SERVER), "Berlin", 30, None), ((STRICT, SERVER), "Berlin", 31, "too_old"),
    ((STRICT, SERVER), "Oslo", 31, None), ((STRICT, SERVER), "Oslo", 61, "too_old"),
    ((STRICT, PATIENT), "Berlin", 31, "too_old"), ((STRICT, PATIENT), "Oslo", 61, None),
])  # fmt: skip
def test_each_meter_may_say_how_late_its_events_may_come(
    meters: tuple[Meter, ...], region: str, minutes_ago: int, reason: str | None
) -> None:
    """An event is accepted for all meters that count it, or dead as a whole: the least patient of them decides."""
    time = format_time((NOON_MS - minutes_ago * 60_000) * 1000)
    walk = Walk(with_meters(*meters)).send(body(1, time=time, data={"hours": "1.5", "region": region}))
    assert walk.reasons == ([reason] if reason else []) and reconciles(walk)


@pytest.mark.parametrize("meter, reasons", [(PATIENT, []), (SERVER, ["too_old"])])
def test_rows_of_a_numbered_batch_may_come_as_late_as_their_meters_say(meter: Meter, reasons: list[str]) -> None:
    days_ago_us = NOON_US - 3 * 24 * HOUR_MS * 1000
    cpu = Series(type="server", subject="Zoë Åström", scale=6, data={"region": "Nürnberg"})
    batch = encode_readings([Reading(cpu, days_ago_us, days_ago_us, 15)])
    walk = Walk(with_meters(replace(meter, value="value"))).send(batch, headers=numbered(1, content=ARROW))
    assert walk.reasons == reasons and reconciles(walk)


def test_an_id_is_remembered_as_long_as_the_most_patient_meter_accepts_its_copies() -> None:
    event = body(1, time=format_time(NOON_US))
    later_ms = NOON_MS + 69 * 24 * HOUR_MS
    walk = Walk(with_meters(PATIENT, TRAFFIC)).send(event).send(event, at_ms=later_ms)
    assert (walk.counts["aggregated"], walk.counts["duplicate"], walk.reasons) == (1, 1, [])


def test_an_id_is_remembered_as_long_as_its_copies_could_be_accepted() -> None:
    """Accepted at noon for five past noon: a copy is one until 65 minutes after that; then it is too old anyway."""
    ahead = body(1, time=format_time((NOON_MS + 300_000) * 1000))
    walk = Walk(short_window()).send(ahead).send(ahead, at_ms=NOON_MS + 300_000 + HOUR_MS)
    walk.send(ahead, at_ms=NOON_MS + 300_000 + HOUR_MS + 1)
    assert (walk.counts["duplicate"], walk.reasons) == (1, ["too_old"])


@pytest.mark.parametrize("ahead_ms, gap_ms, copies", [
    (0, 65 * 60_000, 1), (0, 65 * 60_000 + 1, 0), (300_000, 70 * 60_000, 1), (300_000, 70 * 60_000 + 1, 0),
])  # fmt: skip
def test_an_id_is_forgotten_after_oldest_accepted_and_furthest_ahead(ahead_ms: int, gap_ms: int, copies: int) -> None:
    """Counted from the later of log clock and event time, to the millisecond; then it may be used again."""
    later_ms = NOON_MS + gap_ms
    walk = Walk(short_window()).send(body(1, time=format_time((NOON_MS + ahead_ms) * 1000)))
    walk.send(body(1, time=format_time(later_ms * 1000)), at_ms=later_ms)
    assert (walk.counts["aggregated"], walk.counts["duplicate"]) == (2 - copies, copies)


def test_what_was_judged_before_is_never_too_old_and_answers_for_ids_of_any_age() -> None:
    """A dead letter that is let in again after months: once, and not twice."""
    months_later = NOON_MS + 90 * 24 * HOUR_MS
    walk = Walk(short_window()).send(body(1)).send(body(1), body(2), body(2), headers=JUDGED, at_ms=months_later)
    assert (walk.counts["aggregated"], walk.counts["duplicate"], walk.reasons) == (2, 2, [])


def test_absolute_bounds_are_never_forgiven() -> None:
    walk = Walk().send(body(1, time="1970-01-01T00:00:00Z"), headers=JUDGED)
    assert walk.reasons == ["year_out_of_range"]


def test_a_numbered_batch_is_accepted_or_a_copy_as_a_whole() -> None:
    batch = b"\n".join(traffic(i, i) for i in range(10))
    walk = Walk().send(batch, headers=numbered(1)).send(batch, headers=numbered(1)).send(batch, headers=numbered(2))
    assert (walk.counts["aggregated"], walk.counts["duplicate"]) == (20, 10)
    assert walk.sums() == {"net.bytes": 90} and reconciles(walk)


def test_a_numbered_batch_costs_one_id() -> None:
    walk = Walk().send(b"\n".join(traffic(i, i) for i in range(10)), headers=numbered(1))
    (ids,) = walk.chunk.accepted.unwritten()
    assert (ids.high.tolist(), ids.low.tolist()) == ([batch_words(1)[0]], [batch_words(1)[1]])


def test_a_number_that_comes_again_with_other_content_is_one_dead_letter() -> None:
    walk = Walk().send(traffic(1, 5) + b"\n" + traffic(2, 5), headers=numbered(1))
    walk.send(traffic(1, 6) + b"\n" + traffic(2, 6), headers=numbered(1))
    (letter,) = walk.chunk.dead
    assert (letter.reason, letter.offset, letter.detail) == (
        "number_reused", 1, "this number was used at offset 0 with other content",
    )  # fmt: skip
    assert letter.body == traffic(1, 6) + b"\n" + traffic(2, 6)
    assert walk.sums() == {"net.bytes": 10} and reconciles(walk)


def test_a_number_reused_in_another_epoch_is_another_batch() -> None:
    """The epoch is made with the spool: a host that was installed anew begins at 1 again."""
    walk = Walk().send(traffic(1, 5), headers=numbered(1)).send(traffic(1, 6), headers=numbered(1, epoch="spool-8"))
    assert walk.sums() == {"net.bytes": 11}


def test_late_rows_of_a_numbered_batch_are_dead_letters_and_the_others_count() -> None:
    old = body(1, type="traffic", data={"bytes": 3}, time=format_time((NOON_MS - 2 * HOUR_MS) * 1000))
    walk = Walk(short_window()).send(old + b"\n" + traffic(2, 4), headers=numbered(1))
    assert (walk.reasons, walk.sums(), reconciles(walk)) == (["too_old"], {"net.bytes": 4}, True)
    assert walk.dead[0].index == 0


def test_a_copy_of_a_batch_that_was_late_in_part_counts_nothing_more() -> None:
    old = body(1, type="traffic", data={"bytes": 3}, time=format_time((NOON_MS - 2 * HOUR_MS) * 1000))
    batch = old + b"\n" + traffic(2, 4)
    walk = Walk(short_window()).send(batch, headers=numbered(1)).send(batch, headers=numbered(1))
    assert walk.sums() == {"net.bytes": 4} and walk.counts["duplicate"] == 2 and reconciles(walk)


def away(partitions: int = 2) -> str:
    """Return a source whose home is not partition 0."""
    return next(s for s in map(str, range(99)) if partition_of(home_key("Zoë Åström", s), partitions) == 1)


def test_a_stray_is_sent_home_as_judged_and_does_not_count_here() -> None:
    walk = Walk(partitions=2).send(body(1, source=away()))
    (forward,) = walk.chunk.forwards
    assert (forward.partition, forward.value) == (1, body(1, source=away()))
    assert forward.headers == (("content-type", b"application/cloudevents+json"), (ADMITTED, b"1"))
    assert walk.counts["forwarded"] == 1 and walk.counts["aggregated"] == 0 and reconciles(walk)


def test_a_stray_is_judged_where_it_was_found() -> None:
    """By this partition's clock; a late one is a dead letter here and is not sent on."""
    walk = Walk(short_window(), partitions=2).send(body(1, source=away(), time="2026-10-31T09:00:00Z"))
    assert walk.reasons == ["too_old"] and not walk.chunk.forwards


def test_a_stray_batch_is_sent_home_whole_with_its_number() -> None:
    collector = next(c for c in map(str, range(99)) if partition_of(c.encode(), 2) == 1)
    headers = numbered(7, collector=collector)
    walk = Walk(partitions=2).send(traffic(1, 5) + b"\n" + traffic(2, 5), headers=headers)
    (forward,) = walk.chunk.forwards
    assert (forward.partition, forward.key, forward.headers) == (1, collector.encode(), headers)
    assert (walk.counts["received"], walk.counts["forwarded"]) == (1, 1)


def test_events_of_ignored_types_are_counted_and_leave_no_trace() -> None:
    walk = Walk().send(body(1, type="heartbeat"), body(2))
    assert (walk.counts["ignored"], walk.counts["aggregated"], walk.reasons) == (1, 1, []) and reconciles(walk)


def test_an_event_that_two_meters_want_is_dead_for_both_if_it_is_dead_for_one() -> None:
    strict = replace(PLAIN.meters[0], meter="compute.whole", scale=0)
    walk = (
        Walk(replace(PLAIN, meters=(*PLAIN.meters, strict)))
        .send(body(1))
        .send(body(2, data={"hours": "2", "region": "Nürnberg"}))
    )
    assert walk.reasons == ["too_precise"]
    assert walk.sums() == {"compute.hours": 2_000_000, "compute.whole": 2}


def test_a_replay_gives_the_same_answer() -> None:
    """Conflicts, copies, dead letters: all of it again, however the log is cut into fetches."""
    records = [(each, (), NOON_MS) for each in (
        body(1), traffic(2, 1), traffic(2, 2), body(1), traffic(3, "?"), traffic(3, 4), body(4, type="nobody"), body(1),
    )]  # fmt: skip
    whole = Walk(chunk=new_chunk(size=8)).go(fetch_of(records))
    apart = Walk(chunk=new_chunk(size=8))
    for offset, record in enumerate(records):
        apart.go(fetch_of([record], first=offset), flush_s=0)
    assert whole.dead == apart.dead and whole.conflicts == apart.conflicts
    assert whole.sums() == apart.sums() == {"compute.hours": 1_500_000, "net.bytes": 5}


def arrow_batch(*values: int) -> bytes:
    cpu = Series(type="server", subject="Zoë Åström", scale=6, data={"region": "Nürnberg"})
    return encode_readings([Reading(cpu, NOON_US, NOON_US, value) for value in values])


def test_copies_of_a_numbered_batch_within_one_fetch_count_once_whatever_they_look_like() -> None:
    """The smaller offset wins, also between an Arrow batch and lines under the same number."""
    lines = numbered(1)
    arrow = numbered(1, content=ARROW)
    meter = replace(SERVER, value="value")
    records = [(body(1, data={"value": 5}), lines), (arrow_batch(10**6, 2 * 10**6), arrow), (arrow_batch(7), arrow)]
    for order, expected in (((0, 1, 2), 5), ((1, 0, 2), 3), ((1, 1, 2), 3)):
        walk = Walk(Definitions(number=1, meters=(meter,)))
        walk.go(fetch_of([(*records[i], NOON_MS) for i in order], first=0))
        assert walk.sums() == {"compute.hours": expected * 10**6}
        letters = [letter for letter in walk.dead if letter.reason == "number_reused"]
        assert len(letters) == len({records[i][0] for i in order}) - 1
        counts = walk.counts
        assert counts["received"] == counts["aggregated"] + counts["duplicate"] + counts["dead"]


def test_the_dead_rows_of_a_batch_that_comes_twice_are_dead_once() -> None:
    arrow = numbered(1, content=ARROW)
    batch = arrow_batch(1, 2, -(2**63))
    huge = replace(SERVER, value="value", scale=18)
    walk = Walk(Definitions(number=1, meters=(huge,)))
    walk.go(fetch_of([(batch, arrow, NOON_MS)] * 3, first=0))
    assert (walk.counts["aggregated"], walk.counts["duplicate"], walk.counts["dead"]) == (2, 6, 1)
