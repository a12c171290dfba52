"""What intervals promise: exact differences, proven resets, times that never lie ahead and never go back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.intervals import (
    LEVEL_HOLD_US,
    LONGEST_HOLD_US,
    SECOND_US,
    Book,
    Counter,
    Level,
    LevelMeter,
    Moment,
    Sample,
    boundary_before,
    close_interval,
    is_held,
    level_key,
    step_between,
)
from tallyman.event import Series

NOON_US = 1_793_620_800 * SECOND_US  # 2026-11-02T12:00:00Z
BOOT = "fdb697d9-324e-4f96-a6ff-0d7e4ac60aaa"
OTHER_BOOT = "0b6a1c9e-7d55-4f0e-9a53-3c5a1d0f7e11"


def at(seconds: float, *, boot: str = BOOT, wall_set_by: float = 0) -> Moment:
    """The clocks so many seconds after noon, in a boot that began at 11:00."""
    return Moment(NOON_US + int((seconds + wall_set_by) * SECOND_US), int((3600 + seconds) * SECOND_US), boot)


def eth0(value: int, incarnation: str = f"{BOOT}/4") -> Counter:
    return Counter("tallyman.host.network", {"interface": "eth0", "direction": "in"}, value, 0, incarnation)


def series_of(sample: Sample) -> Series:
    return Series(type=sample.type, subject="Zoë Åström", data=dict(sample.data))


def close(book: Book | None, samples: list[Sample], now: Moment, until_us: int | None = None):
    return close_interval(book, samples, {}, now, until_us or now.wall_us, series_of)


def opened(value: int, *, seconds: float = 0) -> Book:
    return close(None, [eth0(value)], at(seconds)).book


def test_the_very_first_reading_is_a_baseline_and_bills_nothing() -> None:
    closed = close(None, [eth0(5_000_000)], at(0))
    assert closed.readings == ()
    assert closed.book.next_us == NOON_US


def test_a_counter_is_billed_by_its_difference_and_carries_both_ends() -> None:
    (reading,) = close(opened(1000), [eth0(1234)], at(10)).readings
    assert (reading.value, reading.first, reading.last) == (234, 1000, 1234)
    assert (reading.time_us, reading.until_us) == (NOON_US, NOON_US + 10 * SECOND_US)


def test_the_next_interval_begins_where_this_one_ended() -> None:
    closed = close(opened(1000), [eth0(1234)], at(10.2), NOON_US + 10 * SECOND_US)
    (reading,) = close(closed.book, [eth0(1300)], at(20.1), NOON_US + 20 * SECOND_US).readings
    assert (reading.time_us, reading.first) == (NOON_US + 10 * SECOND_US, 1234)


def test_a_restart_of_the_agent_loses_nothing_of_the_same_boot() -> None:
    """One reading, with both ends, dated where the last one ended."""
    (reading,) = close(opened(1000), [eth0(9000)], at(1800)).readings
    assert (reading.value, reading.time_us, reading.until_us) == (8000, NOON_US, NOON_US + 1800 * SECOND_US)


def test_another_boot_proves_that_the_counter_began_at_0() -> None:
    rebooted = Moment(NOON_US + 600 * SECOND_US, 120 * SECOND_US, OTHER_BOOT)
    closed = close(opened(1000), [eth0(700, f"{OTHER_BOOT}/4")], rebooted)
    (reading,) = closed.readings
    assert (reading.value, reading.first, reading.last) == (700, 0, 700)
    assert reading.time_us == NOON_US + 480 * SECOND_US, "dated at the boot"
    assert closed.flags == (("boot", "tallyman.host.network"),)


def test_a_drop_without_a_cause_is_flagged_and_a_baseline() -> None:
    closed = close(opened(1000), [eth0(400)], at(10))
    assert (closed.readings, closed.flags) == ((), (("dropped", "tallyman.host.network"),))
    (reading,) = close(closed.book, [eth0(450)], at(20)).readings
    assert (reading.value, reading.first) == (50, 400)


def test_a_device_that_came_back_as_another_is_a_baseline_even_if_it_counts_more() -> None:
    closed = close(opened(1000), [eth0(90_000, f"{BOOT}/17")], at(10))
    assert (closed.readings, closed.flags) == ((), (("returned", "tallyman.host.network"),))


def test_a_device_that_went_and_came_back_between_readings_is_a_baseline() -> None:
    gone = close(opened(1000), [], at(10))
    back = close(gone.book, [eth0(1500)], at(20))
    assert back.readings == ()
    (reading,) = close(back.book, [eth0(1600)], at(30)).readings
    assert reading.value == 100


def test_counters_of_64_bits_keep_every_digit() -> None:
    (reading,) = close(opened(2**63 - 10), [eth0(2**63 - 3)], at(10)).readings
    assert reading.value == 7


# Clocks


def test_a_counter_beyond_64_bits_holds_up_no_other_and_goes_on_from_where_it_stood() -> None:
    """Drivers have shown 2**64 - 1, and disks multiply it."""
    broken = eth0(512 * (2**64 - 1))
    other = Counter("tallyman.host.cpu", {"mode": "user"}, 70, 2, BOOT)
    assert close(None, [broken, other], at(0)).book.counters == close(None, [other], at(0)).book.counters
    first = close(close(None, [eth0(100), other], at(0)).book, [broken, other._replace(value=75)], at(10))
    assert [(reading.series.type, reading.value) for reading in first.readings] == [("tallyman.host.cpu", 5)]
    assert first.flags == (("too_large", "tallyman.host.network"),)
    second = close(first.book, [eth0(130), other._replace(value=75)], at(20))
    assert [(reading.value, reading.first) for reading in second.readings] == [(30, 100), (0, 75)]


def test_slewing_is_no_step() -> None:
    assert step_between(at(0), at(60, wall_set_by=0.030)) == 0


@pytest.mark.parametrize("step", [3600, -3600, 2, -2])
def test_a_wall_clock_that_was_set_is_seen(step: int) -> None:
    assert step_between(at(0), at(10, wall_set_by=step)) == step * SECOND_US


def test_suspending_is_no_step() -> None:
    """The boottime clock counts while the machine sleeps."""
    assert step_between(at(0), at(8 * 3600)) == 0


def test_a_step_forward_is_nobodys_usage() -> None:
    now = at(4, wall_set_by=3600)
    closed = close(opened(1000), [eth0(1100)], now)
    (reading,) = closed.readings
    assert (reading.time_us, reading.until_us - reading.time_us) == (NOON_US, 4 * SECOND_US)
    assert closed.book.next_us == now.wall_us


def test_after_a_step_back_readings_wait_for_the_wall_clock() -> None:
    book = opened(1000, seconds=30)
    assert is_held(book, at(31, wall_set_by=-20).wall_us)
    assert is_held(book, book.next_us)
    assert not is_held(book, at(51, wall_set_by=-20).wall_us)


def test_a_clock_that_was_a_year_ahead_is_not_waited_for() -> None:
    year_s = 365 * 86400
    wrong = close(None, [eth0(1000)], at(0, wall_set_by=year_s)).book
    now = at(10)
    assert not is_held(wrong, now.wall_us)
    closed = close(wrong, [eth0(1070)], now)
    (reading,) = closed.readings
    assert (reading.value, reading.time_us, reading.until_us) == (70, NOON_US, NOON_US + 10 * SECOND_US)
    assert closed.book.next_us == now.wall_us


def test_an_hour_is_the_longest_that_is_waited_for() -> None:
    book = opened(0)
    assert is_held(book, NOON_US - LONGEST_HOLD_US)
    assert not is_held(book, NOON_US - LONGEST_HOLD_US - 1)


@given(st.integers(0, 2**52), st.sampled_from([1, 2, 5, 10, 15, 20, 30, 60]))
def test_no_boundary_lies_inside_another_interval_or_minute(wall_us: int, interval_s: int) -> None:
    boundary = boundary_before(wall_us, interval_s * SECOND_US)
    assert boundary <= wall_us < boundary + interval_s * SECOND_US
    assert boundary // (60 * SECOND_US) == (boundary + interval_s * SECOND_US - 1) // (60 * SECOND_US)


# Levels

MEMORY = Level("tallyman.host.memory", {}, 4 * 2**30)


def test_memory_is_billed_in_byte_seconds_of_the_boottime_clock() -> None:
    meter = LevelMeter(since_us=0)
    meter.add([MEMORY], 10 * SECOND_US)
    assert meter.used == {level_key(MEMORY): 4 * 2**30 * 10_000}


@given(st.lists(st.integers(1, 30 * SECOND_US), min_size=1, max_size=50))
def test_byte_seconds_of_many_intervals_are_those_of_the_whole(lengths: list[int]) -> None:
    meter, now = LevelMeter(since_us=0), 0
    for length in lengths:
        now += length
        meter.add([MEMORY], now)
    assert meter.used.get(level_key(MEMORY), 0) == MEMORY.value * (now // 1000)


def test_a_level_is_not_guessed_over_a_long_gap() -> None:
    meter = LevelMeter(since_us=0)
    meter.add([MEMORY], LEVEL_HOLD_US + 1)
    assert (meter.used, meter.unmeasured_us) == ({}, LEVEL_HOLD_US + 1)


def test_a_terabyte_for_a_minute_fits_64_bits() -> None:
    meter = LevelMeter(since_us=0)
    meter.add([Level("tallyman.host.memory", {}, 24 * 2**40)], 60 * SECOND_US)
    assert max(meter.used.values()) < 2**63


def test_a_reading_of_memory_has_no_counter_ends() -> None:
    closed = close_interval(opened(0), [MEMORY], {level_key(MEMORY): 77}, at(10), at(10).wall_us, series_of)
    (reading,) = closed.readings
    assert (reading.value, reading.first, reading.last) == (77, None, None)
