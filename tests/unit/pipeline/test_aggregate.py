"""The columns of the stream, Beam's CombineFn and a plain loop are one algebra, and none of them wraps."""

from __future__ import annotations

import random
import tracemalloc
from functools import reduce
from itertools import pairwise
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.aggregate import EVERYTHING, Needs, Readings, Reduced, Table, reduce_readings, wide_enough
from pipeline.combine import UsageCombineFn
from pipeline.values import narrow
from tallyman.usage import EMPTY, Totals, merge

# (key, scaled value, time in microseconds, identity); an identity is read once, so it has one value.
Reading = tuple[int, int, int, bytes]
VALUES = st.one_of(
    st.integers(-5, 5), st.integers(-(10**30), 10**30), st.sampled_from([2**62, 2**63 - 1, -(2**63), 2**63, 0])
)
READINGS = st.lists(
    # Keys close together are reduced in cells, keys far apart are sorted.
    st.tuples(
        st.sampled_from([0, 1, 5 << 32, (5 << 32) + 3, 1 << 60]),
        VALUES,
        st.integers(0, 3),
        st.binary(min_size=16, max_size=16),
    ),
    min_size=1, max_size=40, unique_by=lambda reading: reading[3],
)  # fmt: skip


def plain(readings: list[Reading]) -> dict[int, Totals]:
    """Total with Python integers and nothing else."""
    rows: dict[int, list[Reading]] = {}
    for reading in readings:
        rows.setdefault(reading[0], []).append(reading)
    result = {}
    for key, mine in rows.items():
        values = [value for _, value, _, _ in mine]
        _, latest, time_us, identity = max(mine, key=lambda reading: reading[2:])
        result[key] = Totals(len(mine), sum(values), min(values), max(values), latest, (time_us, identity))
    return result


def columns(readings: list[Reading]) -> Readings:
    words = np.frombuffer(b"".join(identity for *_, identity in readings), ">u8").reshape(-1, 2).astype(np.uint64)
    keys, values, times, _ = zip(*readings, strict=True)
    return Readings(np.array(keys, np.int64), narrow(list(values)), np.array(times, np.int64), words[:, 0], words[:, 1])


def totals(rows: Reduced) -> dict[int, Totals]:
    by = np.stack([rows.by_high, rows.by_low], axis=1).astype(">u8")
    return {
        key: Totals(*rest, (time_us, by[i].tobytes()))
        for i, (key, *rest, time_us) in enumerate(
            zip(*(getattr(rows, name).tolist() for name in Reduced.__slots__[:7]), strict=True)
        )
    }


@settings(max_examples=150, deadline=None)
@given(READINGS)
def test_reducing_columns_gives_what_a_plain_loop_gives(readings: list[Reading]) -> None:
    assert totals(reduce_readings(columns(readings), EVERYTHING)) == plain(readings)


@given(st.lists(st.tuples(st.sampled_from([0, 3, 7 << 32, 1 << 60]), st.integers(-9, 9), st.sampled_from([1, -1])),
                min_size=1))  # fmt: skip
def test_what_is_taken_back_counts_less_than_nothing(rows: list[tuple[int, int, int]]) -> None:
    keys, values, weights = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    nothing = np.zeros(len(rows), np.uint64)
    found = reduce_readings(Readings(keys, values, keys, nothing, nothing, weights), Needs())
    assert dict(zip(found.keys.tolist(), found.count.tolist(), strict=True)) == {
        key: sum(weight for other, _, weight in rows if other == key) for key, _, _ in rows
    }


@settings(max_examples=150, deadline=None)
@given(READINGS, st.lists(st.integers(0, 39), max_size=4), st.booleans())
def test_a_table_gives_what_a_plain_loop_gives_however_it_is_cut(
    readings: list[Reading], cuts: list[int], fold: bool
) -> None:
    """Cut into several appends, folded in between or not."""
    table = Table(EVERYTHING)
    places = sorted({0, len(readings), *(cut for cut in cuts if cut < len(readings))})
    for first, last in pairwise(places):
        table.add(columns(readings[first:last]))
        if fold:
            table.fold()
    assert totals(table.take_changes()[0]) == plain(readings)


@settings(max_examples=100, deadline=None)
@given(READINGS, st.randoms())
def test_beams_combine_fn_gives_what_a_plain_loop_gives(readings: list[Reading], rng: random.Random) -> None:
    """One by one, many at once, and merged from parts in any order."""
    combine = UsageCombineFn()
    for key, expected in plain(readings).items():
        mine = [reading[1:] for reading in readings if reading[0] == key]
        cut = rng.randrange(len(mine) + 1)
        parts = [combine.add_inputs(combine.create_accumulator(), mine[:cut])]
        parts += [combine.add_input(combine.create_accumulator(), reading) for reading in mine[cut:]]
        rng.shuffle(parts)
        assert combine.extract_output(combine.merge_accumulators(parts)) == expected


def test_many_readings_of_one_key_go_through_the_columns_and_stay_exact() -> None:
    """A hundred values near 10^30: their sum leaves 64 bits a trillion times over."""
    readings = [(0, 10**30 - number, number, number.to_bytes(16, "big")) for number in range(100)]
    found = UsageCombineFn().add_inputs(EMPTY, [reading[1:] for reading in readings])
    assert found == plain(readings)[0] and found.sum == 100 * 10**30 - 4950


def test_the_latest_of_large_identities_is_the_larger_one() -> None:
    """The halves of an identity are unsigned: the first bit is no sign."""
    low, high = bytes(16), b"\xff" * 16
    assert UsageCombineFn().add_inputs(EMPTY, [(1, 5, high), (2, 5, low)]).latest == 1


SOME_TOTALS = READINGS.map(lambda readings: [Totals(1, v, v, v, v, (t, i)) for _, v, t, i in readings])


@settings(max_examples=100, deadline=None)
@given(SOME_TOTALS, st.randoms())
def test_merging_does_not_depend_on_order_or_grouping(parts: list[Totals], rng: random.Random) -> None:
    expected = reduce(merge, parts, EMPTY)
    shuffled = rng.sample(parts, len(parts))
    cut = rng.randrange(len(parts) + 1)
    assert merge(reduce(merge, shuffled[:cut], EMPTY), reduce(merge, shuffled[cut:], EMPTY)) == expected


def test_sums_go_over_to_python_integers_before_64_bits_could_wrap() -> None:
    assert wide_enough(np.array([2**61, 2**61], np.int64)).dtype == object
    assert wide_enough(np.array([2**60, 2**60], np.int64)).dtype == np.int64
    assert wide_enough(np.array([-(2**63)], np.int64)).dtype == object


def test_a_sum_that_grows_over_many_flushes_never_wraps() -> None:
    """Each append is small; only their sum passes 2^63."""
    table = Table()
    for number in range(20):
        table.add(columns([(7, 2**60, number, number.to_bytes(16, "big"))]))
        rows, slots = table.take_changes()
        table.acknowledge(slots)
    assert rows.sum.tolist() == [20 * 2**60] and rows.count.tolist() == [20]


def test_a_row_stays_changed_until_it_is_acknowledged() -> None:
    table = Table()
    table.add(columns([(1, 5, 0, bytes(16)), (2, 6, 0, bytes(16))]))
    _, slots = table.take_changes()
    assert len(table.take_changes()[1]) == 2
    table.acknowledge(slots)
    table.add(columns([(2, 1, 0, bytes(16))]))
    rows, _ = table.take_changes()
    assert (rows.keys.tolist(), rows.sum.tolist()) == ([2], [7])


def test_a_table_grows_past_its_first_thousand_rows_and_keeps_wide_numbers() -> None:
    table = Table()
    table.add(columns([(0, 10**25, 0, bytes(16))]))
    table.fold()
    table.add(columns([(key, 1, 0, bytes(16)) for key in range(5000)]))
    rows, _ = table.take_changes()
    assert len(rows.keys) == 5000 and sum(rows.sum.tolist()) == 10**25 + 5000


def read(tenant: str, value: str, time_us: int) -> tuple[str, Any]:
    return tenant, (int(value), time_us, bytes(16))


def test_usage_is_combined_per_key_on_a_bounded_pipeline() -> None:
    """Also beyond 64 bits, where Beam's own coder for integers would refuse: `Any` chooses one that does not."""
    readings = [("Zoë", "3", 1), ("Zoë", "1" + "0" * 29, 2), ("Łukasz", "-1", 1)]
    expected = [("Zoë", (2, 10**29 + 3, 10**29)), ("Łukasz", (1, -1, -1))]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        found = pipeline | beam.Create(readings) | beam.MapTuple(read) | beam.CombinePerKey(UsageCombineFn())
        assert_that(found | beam.MapTuple(lambda key, t: (key, f"{(t.count, t.sum, t.latest)}")),
                    equal_to([(key, f"{row}") for key, row in expected]))  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=200))
def test_a_change_is_handed_out_until_it_is_acknowledged_whatever_came_before(steps: list[tuple[int, bool]]) -> None:
    """A row is found again among many that came in any order, and carries its whole total."""
    table, sums, waiting = Table(), dict[int, int](), set[int]()
    for number, (key, flush) in enumerate(steps, start=1):
        table.add(columns([(key << 32, number, number, number.to_bytes(16, "big"))]))
        sums[key << 32] = sums.get(key << 32, 0) + number
        waiting.add(key << 32)
        if flush:
            rows, slots = table.take_changes()
            found = dict(zip(rows.keys.tolist(), rows.sum.tolist(), strict=True))
            assert found == {each: sums[each] for each in waiting}
            table.acknowledge(slots)
            waiting.clear()
    table.fold()
    assert (table.changed_rows, len(table)) == (len(waiting), len(sums))


@pytest.mark.parametrize(("needs", "bytes_each"), [(Needs(), 70), (Needs(extremes=True), 90), (EVERYTHING, 130)])
def test_a_million_series_take_what_their_meters_need(needs: Needs, bytes_each: int) -> None:
    """Columns, and nothing of Python's for each of them."""
    table, size = Table(needs), 1_000_000
    nothing = np.zeros(size, np.uint64)
    keys = np.arange(size) << 32
    tracemalloc.start()
    table.add(Readings(keys, keys, keys, nothing, nothing))
    table.fold()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == size and held < bytes_each * size


@settings(max_examples=50, deadline=None)
@given(READINGS, st.sampled_from([Needs(), Needs(extremes=True), Needs(latest=True)]), st.booleans())
def test_what_no_meter_needs_is_zero_and_the_rest_is_as_ever(
    readings: list[Reading], needs: Needs, fold: bool
) -> None:
    table, whole = Table(needs), Table(EVERYTHING)
    for number, reading in enumerate(readings):
        table.add(columns([reading]))
        whole.add(columns([reading]))
        if fold and number % 3 == 0:
            table.fold()
    rows, everything = table.take_changes()[0], whole.take_changes()[0]
    order, as_whole = np.argsort(rows.keys), np.argsort(everything.keys)
    kept = {"keys", "count", "sum", *(("min", "max") if needs.extremes else ()),
            *(("latest", "latest_us", "by_high", "by_low") if needs.latest else ())}  # fmt: skip
    for name in Reduced.__slots__:
        expected = getattr(everything, name)[as_whole].tolist() if name in kept else [0] * len(order)
        assert getattr(rows, name)[order].tolist() == expected, name


def test_a_table_that_is_empty_learns_what_new_definitions_need() -> None:
    table = Table()
    table.need(EVERYTHING)
    table.add(columns([(1, 5, 3, b"a" * 16)]))
    (rows, _) = table.take_changes()
    assert (rows.min.tolist(), rows.latest.tolist(), rows.latest_us.tolist()) == ([5], [5], [3])
