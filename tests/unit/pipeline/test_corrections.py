"""An event that was counted is taken back and counted anew, once, and only if it is the one that was counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from pipeline.corrections import refuse_dead
from tallyman.corrections import write_correction
from tallyman.errors import EventError
from tallyman.meter import BY_MOMENT, Definitions, Meter
from tests.fetches import NOON_MS, fetch_of
from tests.unit.pipeline.events import PLAIN, TRAFFIC, Walk, body, event

DAY_MS = 86_400_000
MOMENTS = Definitions(
    number=1,
    meters=(
        Meter(meter="level", event_type="server", aggregation="time_weighted", value="hours", scale=0),
        Meter(meter="people", event_type="visit", aggregation="unique_count", value="user"),
        Meter(meter="peak", event_type="traffic", aggregation="max", value="bytes", scale=0),
    ),
)
CHANGED = Definitions(
    number=2, meters=(Meter(meter="compute.hours", event_type="server", aggregation="sum", value="days", scale=6),)
)


def correction(was: bytes, now: bytes, version: int = 1, **changed: Any) -> Any:
    """Return a correction's record as `Walk.send` takes it."""
    wire = msgspec.json.decode(
        write_correction(was, now, event_id=f"fix-{version}", time="2026-10-31T13:00:00Z", reason="measured twice")
    )
    wire |= changed
    return [msgspec.json.encode(wire)], (("tallyman-corrects", str(version).encode()),)


def send(walk: Walk, fix: Any) -> Walk:
    records, headers = fix
    return walk.send(*records, headers=headers)


def hours(value: str, number: int = 1) -> bytes:
    return body(number, data={"hours": value, "region": "Nürnberg"})


def test_a_voided_event_counts_no_more_and_an_amended_one_as_it_should_have() -> None:
    walk = Walk().send(hours("10", 1), hours("20", 2), hours("30", 3))
    send(walk, correction(hours("20", 2), b""))
    assert walk.sums() == {"compute.hours": 40_000_000}
    send(walk, correction(hours("30", 3), hours("25", 3)))
    assert walk.sums() == {"compute.hours": 35_000_000}
    assert walk.counts["received"] == walk.counts["aggregated"] == 5
    assert [(row.id, row.version, row.first_offset, row.reason) for row in walk.chunk.corrections] == [
        ("e-2", 1, 1, "measured twice"), ("e-3", 1, 2, "measured twice"),
    ]  # fmt: skip


def test_a_correction_that_comes_twice_corrects_once() -> None:
    walk = Walk().send(hours("10"))
    for _ in range(2):
        send(walk, correction(hours("10"), hours("4")))
    assert walk.sums() == {"compute.hours": 4_000_000}
    assert (walk.counts["duplicate"], walk.counts["conflict"]) == (1, 0)


def test_another_correction_of_the_same_version_is_a_conflict_and_changes_nothing() -> None:
    walk = Walk().send(hours("10"))
    send(walk, correction(hours("10"), hours("4")))
    send(walk, correction(hours("10"), hours("5")))
    assert walk.sums() == {"compute.hours": 4_000_000}
    assert (walk.counts["duplicate"], walk.counts["conflict"], len(walk.conflicts)) == (1, 1, 1)


def test_what_was_corrected_can_be_corrected_again_and_what_was_voided_can_come_back() -> None:
    walk = Walk().send(hours("10"))
    send(walk, correction(hours("10"), b""))
    send(walk, correction(b"", hours("7"), 2))
    send(walk, correction(hours("7"), hours("8"), 3))
    assert walk.sums() == {"compute.hours": 8_000_000}


def test_a_late_copy_of_a_voided_event_stays_a_duplicate() -> None:
    walk = Walk().send(hours("10"))
    send(walk, correction(hours("10"), b""))
    walk.send(hours("10"))
    assert walk.sums() == {"compute.hours": 0}
    assert walk.counts["duplicate"] == 1


@pytest.mark.parametrize(
    ("fix", "reason"),
    [
        (correction(hours("11"), hours("4")), "unknown_event"),
        (correction(hours("10", 2), hours("4", 2)), "unknown_event"),
        (correction(hours("10"), hours("4"), 2), "unknown_event"),
        (correction(hours("10"), hours("4", 2)), "wrong_type"),
        (correction(hours("10"), hours("text")), "not_a_number"),
        (correction(hours("10"), hours("4"), data={"was": hours("10").decode()}), "wrong_type"),
        (correction(hours("10"), hours("4"), subject="Łukasz"), "wrong_type"),
        (correction(hours("10"), hours("10")), "wrong_type"),
        (correction(hours("10"), b"{"), "malformed"),
        (correction(hours("10"), hours("4"), type="server"), "wrong_type"),
    ],
)
def test_a_correction_of_something_else_is_a_dead_letter(fix: Any, reason: str) -> None:
    walk = send(Walk().send(hours("10")), fix)
    assert walk.reasons == [reason]
    assert walk.sums() == {"compute.hours": 10_000_000}
    assert (walk.counts["received"], walk.counts["dead"]) == (2, 1)


def test_a_correction_before_its_event_is_a_dead_letter() -> None:
    walk = send(Walk(), correction(hours("10"), b"")).send(hours("10"))
    assert walk.reasons == ["unknown_event"]
    assert walk.sums() == {"compute.hours": 10_000_000}


def test_an_event_whose_meters_have_changed_since_is_not_taken_back_by_the_new_ones() -> None:
    walk = Walk(PLAIN, CHANGED).send(hours("10"))
    walk.send(b"", headers=(("tallyman-close", b"20757001"), ("tallyman-definitions", b"2")))
    send(walk, correction(hours("10"), b""))
    assert walk.reasons == ["not_correctable"]


def later(value: str, number: int = 1) -> bytes:
    return body(number, time="2026-11-30T12:00:00Z", data={"hours": value, "region": "Nürnberg"})


def reused(*, cut_at: int) -> Walk:
    """Book an event, its void when its id had expired, and another event under this id; the log is cut in two."""
    void, headers = correction(hours("10"), b"")
    later_ms = NOON_MS + 30 * DAY_MS
    records: list[Any] = [(hours("10"), (), NOON_MS), (void[0], headers, later_ms), (later("7"), (), later_ms)]
    walk = Walk(replace(PLAIN, oldest_accepted=timedelta(hours=1), furthest_ahead=timedelta(0)))
    return walk.go(fetch_of(records[:cut_at])).go(fetch_of(records[cut_at:], first=cut_at))


@pytest.mark.parametrize("cut_at", [0, 1, 2, 3])
def test_a_void_counts_wherever_the_log_was_cut_though_its_id_was_used_again_behind_it(cut_at: int) -> None:
    walk = reused(cut_at=cut_at)
    assert (walk.sums(), walk.reasons) == ({"compute.hours": 7_000_000}, [])


def test_an_id_that_is_used_again_after_a_void_is_corrected_like_any_other() -> None:
    walk = reused(cut_at=3)
    at_ms = walk.chunk.here.clock_ms
    for fix, counted in (
        (correction(b"", hours("10"), 2), 7),  # by who was told of the void only
        (correction(later("7"), later("5")), 5),
        (correction(later("7"), later("6")), 5),  # there is this version, of this event
        (correction(later("5"), b"", 2), 0),
    ):
        records, headers = fix
        walk.send(*records, headers=headers, at_ms=at_ms)
        assert walk.sums() == {"compute.hours": counted * 1_000_000}
    assert walk.reasons == ["unknown_event"] and walk.counts["duplicate"] == 1


def test_what_brings_back_a_void_event_does_not_bring_back_another_one_under_its_id() -> None:
    """It was outrun, and comes late, when the later event is void too: nothing in it says which one it means."""
    walk = reused(cut_at=3)
    at_ms = walk.chunk.here.clock_ms
    for (record,), headers in (correction(later("7"), b""), correction(b"", hours("9"), 2)):
        walk.send(record, headers=headers, at_ms=at_ms)
    assert (walk.sums(), walk.reasons) == ({"compute.hours": 0}, ["not_correctable"])


def test_an_event_whose_type_has_no_meter_any_more_is_not_called_voided() -> None:
    walk = Walk(PLAIN, Definitions(number=2, meters=(TRAFFIC,), ignore=("server", "heartbeat"))).send(hours("10"))
    walk.send(b"", headers=(("tallyman-close", b"20757001"), ("tallyman-definitions", b"2")))
    send(walk, correction(hours("10"), b""))
    send(walk, correction(hours("10"), hours("4")))
    assert walk.reasons == ["not_correctable"] * 2
    assert walk.sums() == {"compute.hours": 10_000_000}


def test_an_event_is_amended_to_a_type_that_lost_its_meters_since() -> None:
    """What is taken back is as it was counted; what counts instead counts as its type does now."""
    first = body(1, type="traffic", data={"bytes": 7})
    walk = Walk(PLAIN, Definitions(number=2, meters=(TRAFFIC,), ignore=("server",))).send(first)
    walk.send(b"", headers=(("tallyman-close", b"20757001"), ("tallyman-definitions", b"2")))
    send(walk, correction(first, hours("10")))
    assert (walk.sums(), walk.reasons) == ({"net.bytes": 0}, [])


def test_a_maximum_has_forgotten_its_single_values_and_says_so() -> None:
    first = body(1, type="traffic", data={"bytes": 7})
    walk = send(Walk(MOMENTS).send(first), correction(first, b""))
    assert walk.reasons == ["not_correctable"]
    assert "keeps its max and no single values" in walk.chunk.dead[0].detail


def test_a_distinct_value_that_is_voided_counts_no_more() -> None:
    first, other = (msgspec.json.encode(event(n, type="visit", data={"user": n})) for n in (1, 2))
    walk = send(Walk(MOMENTS).send(first, other), correction(first, b""))
    rows, _ = walk.chunk.table.take_changes()
    catalog = walk.cut().catalog
    found = {catalog.series[key >> 32].item: count for key, count in zip(rows.keys, rows.count, strict=True)}
    assert found == {"=1": 0, "=2": 1}


def test_of_two_values_at_one_moment_the_corrected_one_is_a_point_of_its_own() -> None:
    walk = send(Walk(MOMENTS).send(hours("10")), correction(hours("10"), hours("4")))
    send(walk, correction(hours("4"), hours("5"), 2))
    rows, _ = walk.chunk.table.take_changes()
    catalog = walk.cut().catalog
    moment = '"1793448000000000",null,null,"t7-NGl0orUw"'
    found = {catalog.series[key >> 32].item: count for key, count in zip(rows.keys, rows.count, strict=True)}
    assert found == {f"[{moment}]": 0, f'[{moment},"1"]': 0, f'[{moment},"2"]': 1}


@pytest.mark.parametrize("aggregation", sorted(BY_MOMENT))
def test_what_is_voided_leaves_the_same_row_wherever_a_worker_flushed(aggregation: str) -> None:
    """Who catches up folds both at once, as an audit does; else the rows of one prefix of the log would differ."""
    named = {"state": "region", "states": ("Nürnberg",)} if aggregation == "lifecycle" else {"value": "hours"}
    meter = Meter(meter="m", event_type="server", aggregation=aggregation, scale=0, **named)  # type: ignore[arg-type]
    found = []
    for folded_between in (False, True):
        walk = Walk(Definitions(number=1, meters=(meter,))).send(hours("7"))
        if folded_between:
            walk.chunk.table.fold()
        send(walk, correction(hours("7"), b""))
        rows, _ = walk.chunk.table.take_changes()
        found.append(tuple(int(column[0]) for column in (rows.count, rows.sum, rows.max, rows.latest, rows.latest_us)))
    assert found[0] == found[1] and found[0][0] == 0


@pytest.mark.parametrize("voided", [1, 2])
@pytest.mark.parametrize("aggregation", sorted(BY_MOMENT - {"lifecycle"}))
def test_of_two_events_at_one_moment_the_other_one_counts_when_one_is_voided(aggregation: str, voided: int) -> None:
    """A wrong reading is sent anew under another id, with the time at which it was taken, and then voided."""
    meter = Meter(meter="m", event_type="server", aggregation=aggregation, scale=0, value="hours")  # type: ignore[arg-type]
    walk = Walk(Definitions(number=1, meters=(meter,))).send(hours("7", 1), hours("5", 2))
    send(walk, correction(hours(("7", "5")[voided - 1], voided), b""))
    rows, _ = walk.chunk.table.take_changes()
    left = [int(rows.latest[i]) or int(rows.max[i]) for i in range(len(rows.keys)) if rows.count[i] > 0]
    assert left == [(5, 7)[voided - 1]]


def test_a_correction_on_a_foreign_partition_is_forwarded_home() -> None:
    for partitions in (2, 3, 5, 7):
        walk = Walk(partitions=partitions)
        send(walk, correction(hours("10"), b""))
        if walk.chunk.forwards:
            (forward,) = walk.chunk.forwards
            assert dict(forward.headers)["tallyman-corrects"] == b"1" and walk.counts["forwarded"] == 1
            return
    raise AssertionError("every partition was home")


@pytest.mark.parametrize(
    ("changed", "reason", "detail"),
    [
        ({"time": "yesterday"}, "bad_time", "time: "),
        ({"data": 5}, "wrong_type", "data"),
        ({"data": {"hours": "nonsense"}}, "not_a_number", "data.now: value: "),
        ({"type": "x.unknown"}, "unknown_meter", 'no meter wants "x.unknown"'),
    ],
    ids=lambda value: "",
)
def test_a_correction_that_would_be_a_dead_letter_is_known_before_it_is_sent(
    changed: dict[str, Any], reason: str, detail: str
) -> None:
    for was, version in ((hours("10"), 1), (b"", 2)):
        with pytest.raises(EventError) as error:
            refuse_dead(was, body(1, **changed), version, PLAIN)
        assert detail in str(error.value)
        assert error.value.reason == reason


def test_a_correction_that_would_count_is_not_refused() -> None:
    ignored = body(1, type="heartbeat")
    for was, now in ((hours("10"), hours("4")), (hours("10"), b""), (b"", hours("4")), (hours("10"), ignored)):
        refuse_dead(was, now, 1, PLAIN)


def test_what_has_forgotten_its_single_values_is_refused_before_it_is_sent() -> None:
    with pytest.raises(EventError, match="peak keeps its max and no single values to take back"):
        refuse_dead(body(1, type="traffic", data={"bytes": "7"}), b"", 1, MOMENTS)


@pytest.mark.parametrize("now", [b"", hours("4")], ids=["void", "amend"])
def test_what_other_meters_measured_is_refused_before_it_is_sent(now: bytes) -> None:
    finer = replace(PLAIN, number=2, meters=tuple(replace(meter, scale=meter.scale + 1) for meter in PLAIN.meters))
    with pytest.raises(EventError, match="its meters changed since definitions 1"):
        refuse_dead(hours("10"), now, 1, finer, PLAIN)
    refuse_dead(hours("10"), now, 1, replace(PLAIN, number=2), PLAIN)
    refuse_dead(b"", hours("4"), 2, finer, PLAIN)
