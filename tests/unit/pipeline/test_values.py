"""Columns of quantities and times hold exactly what the contract says of each value alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.values import narrow, parse_times, scale_values
from tallyman.errors import EventError
from tallyman.event import format_time, parse_time
from tallyman.meter import parse_quantity, scaled_text

INTEGERS = st.one_of(
    st.integers(-(10**6), 10**6), st.integers(-(10**31), 10**31), st.sampled_from([2**63 - 1, 2**63, -(2**63)])
)
TEXTS = st.one_of(
    st.from_regex(r"-?[0-9]{1,31}(\.[0-9]{1,19})?", fullmatch=True, alphabet=st.characters(max_codepoint=127)),
    st.sampled_from(["1e3", "+1", ".5", "-0", "0.0", "", "NaN"]),
)


def one_by_one(values: list[Any], scale: int) -> tuple[list[int], list[tuple[int, str, str]]]:
    numbers, failures = [], []
    for row, value in enumerate(values):
        try:
            numbers.append(parse_quantity(value, scale))
        except EventError as error:
            numbers.append(0)
            failures.append((row, error.reason, error.detail))
    return numbers, failures


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.lists(INTEGERS, min_size=1), st.lists(TEXTS, min_size=1)), st.sampled_from([0, 2, 9, 18]))
def test_a_column_holds_what_each_value_is_alone(values: list[Any], scale: int) -> None:
    numbers, failures = scale_values(values, scale)
    found = numbers.tolist(), [(row, error.reason, error.detail) for row, error in failures]
    assert found == one_by_one(values, scale)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(10**30) + 1, 10**30 - 1), min_size=1), st.integers(0, 18))
def test_what_is_written_is_read_back_to_the_last_digit(values: list[int], scale: int) -> None:
    numbers, failures = scale_values([scaled_text(value, scale) for value in values], scale)
    assert numbers.tolist() == values and not failures


def test_a_byte_counter_in_nano_units_leaves_64_bits_without_wrapping() -> None:
    """10 GB at scale 9 is 10^19, more than an int64 holds."""
    numbers, _ = scale_values([10_000_000_000, 1], 9)
    assert numbers.tolist() == [10**19, 10**9]


def test_true_is_no_number() -> None:
    numbers, failures = scale_values([1, True], 0)
    assert numbers.tolist() == [1, 0] and [(row, error.reason) for row, error in failures] == [(1, "not_a_number")]


@pytest.mark.parametrize("value, reason", [
    ("0.0000000001", "too_precise"), ("1e40", "out_of_range"), (10**40, "out_of_range"), (None, "missing_field"),
    ({}, "not_a_number"), ("NaN", "not_a_number"), ("", "not_a_number"), ("1 ", "not_a_number"),
])  # fmt: skip
def test_each_way_to_be_no_quantity_has_its_reason(value: Any, reason: str) -> None:
    assert [error.reason for _, error in scale_values([value, "1"], 9)[1]] == [reason]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(946_684_800_000_000, 4_102_444_799_999_999), min_size=1))
def test_times_are_read_to_the_microsecond(times: list[int]) -> None:
    found, failures = parse_times([format_time(time_us) for time_us in times])
    assert found.tolist() == times and not failures


DAY, CLOCK, ZONE = r"20[0-9]{2}-[01][0-9]-[0-3][0-9]", r"[0-2][0-9]:[0-6][0-9]", r"(Z|z|[+-][0-2][0-9]:[0-6][0-9])"
ASCII = st.characters(max_codepoint=127)
CALENDAR_TIMES = st.from_regex(
    rf"{DAY}[Tt ]{CLOCK}:[0-6][0-9](\.[0-9]{{1,8}})?{ZONE}", fullmatch=True, alphabet=ASCII
)
UNIX_TIMES = st.from_regex(r"[0-9]{8,11}(\.[0-9]{1,8})?", fullmatch=True, alphabet=ASCII)
ODD_TIMES = st.one_of(CALENDAR_TIMES, UNIX_TIMES)


@settings(max_examples=150, deadline=None)
@given(st.lists(ODD_TIMES, min_size=1, max_size=4))
def test_a_time_in_a_column_is_what_it_is_alone(texts: list[str]) -> None:
    times, failures = parse_times(texts)
    failed = dict(failures)
    for row, text in enumerate(texts):
        try:
            assert times[row] == parse_time(text) and row not in failed
        except EventError as error:
            assert (failed[row].reason, times[row]) == (error.reason, 0)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1780586634.1", "2026-06-04T15:23:54.100000Z"),
        ("1780586634.2000009", "2026-06-04T15:23:54.200000Z"),
        ("1780586634", "2026-06-04T15:23:54Z"),
        ("946684800", "2000-01-01T00:00:00Z"),
    ],
)
def test_seconds_since_1970_as_text_keep_exactly_their_fraction(text: str, time: str) -> None:
    assert format_time(parse_time(text)) == time


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1780586634000", "bad_time"),  # milliseconds
        ("20261031", "bad_time"),  # a date
        ("900000000", "year_out_of_range"),
        ("-1780586634", "bad_time"),
        ("1780586634.", "bad_time"),
        ("١٧٨٠٥٨٦٦٣٤", "bad_time"),
    ],
)
def test_other_digits_are_no_time(text: str, reason: str) -> None:
    with pytest.raises(EventError) as caught:
        parse_time(text)
    assert caught.value.reason == reason


def test_narrow_keeps_what_does_not_fit_64_bits() -> None:
    assert narrow([2**63]).tolist() == [2**63] and narrow([1]).dtype == np.int64


@pytest.mark.parametrize("digits", [38, 39, 64, 65, 127, 128, 255, 256, 300, 1000, 5000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_text_of_many_digits_is_out_of_range_and_never_another_number(digits: int, sign: str) -> None:
    """Arrow takes a text of three hundred digits for a small number; alone or beside others, it must not count."""
    text = sign + "3" + "9" * digits + ".12"
    values, failures = scale_values(["1.5", text], 6)
    assert (values[0], [row for row, _ in failures]) == (1_500_000, [1])
    assert [row for row, _ in scale_values([text], 6)[1]] == [0]
