"""What the log says of numbered batches: the same for any cut into chunks, flushes and re-reads."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.arrow import encode_readings
from collectors.intervals import Reading
from pipeline.heard import EVERYBODY, MOST_NAMES, SILENT, UNKNOWN, Feeds, Heard, Voices, feeds_of
from pipeline.write import Flush
from tallyman.event import ARROW, WATERMARK, Series
from tallyman.headers import RecordKind, kind_of
from tallyman.kafka import partition_of
from tests.fetches import NOON_MS, fetch_of
from tests.unit.pipeline.events import NOON_US, Walk, body, new_chunk, numbered
from tests.unit.pipeline.test_write import Store, Wire, wait_never, write

Row = tuple[int, int, int, int]  # first, last, and their watermarks


def batch(sequence: int, at: int = 0, feeds: Feeds = SILENT) -> Heard:
    kind = RecordKind("arrow", "", collector="värd-1", epoch="e1", sequence=sequence, watermark_us=sequence * 10)
    return Heard(kind, NOON_MS + at, feeds)


def runs(voices: Voices) -> list[Row]:
    found = voices.by_epoch["värd-1", "e1"].runs
    return [(run.first, run.last, run.first_watermark_us, run.last_watermark_us) for run in found]


def missing(rows: Iterable[Row]) -> list[tuple[int, int, int, int]]:
    """Return the gaps of rows as `collector_gaps` finds them: first, last, and the watermarks around them."""
    found, reached = [], (-1, 0)
    for first, last, before, behind in sorted(rows):
        if reached[0] >= 0 and first > reached[0] + 1:
            found.append((reached[0] + 1, first - 1, reached[1], before))
        reached = max(reached, (last, behind))
    return found


def gaps_of(sequences: Iterable[int]) -> list[tuple[int, int, int, int]]:
    ordered = sorted(set(sequences))
    pairs = pairwise(ordered)
    return [(one + 1, two - 1, one * 10, two * 10) for one, two in pairs if two > one + 1]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.data())
def test_any_order_and_any_cut_into_chunks_flushes_and_re_reads_gives_the_same_gaps(
    sequences: list[int], data: st.DataObject
) -> None:
    """Rows of every flush are kept, of zombies and of shorter prefixes too: more facts change nothing."""
    rows: list[Row] = []
    for _ in range(data.draw(st.integers(1, 2))):  # a second worker reads the same log, cut otherwise
        voices, at = Voices(), 0
        while at < len(sequences):
            size = data.draw(st.integers(1, len(sequences) - at))
            voices.add(batch(each) for each in sequences[at : at + size])
            at += size
            rows += [
                (run.first, run.last, run.first_watermark_us, run.last_watermark_us)
                for _, _, run, _ in voices.unwritten()
            ]
            if data.draw(st.booleans()):
                voices.acknowledge()
            if data.draw(st.booleans()):
                voices.clear()
    assert missing(rows) == gaps_of(sequences)


@given(st.permutations(range(12)))
def test_a_whole_epoch_is_one_run_in_whatever_order_it_comes(sequences: list[int]) -> None:
    voices = Voices()
    voices.add(batch(each) for each in sequences)
    assert runs(voices) == [(0, 11, 0, 110)]


def test_batches_in_order_are_one_run_with_the_clocks_of_its_ends() -> None:
    voices = Voices()
    voices.add(batch(n, n) for n in (1, 2, 3, 7))
    assert runs(voices) == [(1, 3, 10, 30), (7, 7, 70, 70)]
    [run, _] = voices.by_epoch["värd-1", "e1"].runs
    assert (run.first_clock_ms, run.clock_ms) == (NOON_MS + 1, NOON_MS + 3)


def test_a_copy_says_that_its_sender_lives_and_nothing_else() -> None:
    voices = Voices()
    voices.add([batch(1), batch(2), batch(3)])
    voices.acknowledge()
    voices.add([batch(2, 9)])
    assert runs(voices) == [(1, 3, 10, 30)]
    assert [run.clock_ms for _, _, run, _ in voices.unwritten()] == [NOON_MS + 9]


def test_only_what_changed_is_written_again() -> None:
    voices = Voices()
    voices.add([batch(1), batch(5)])
    voices.acknowledge()
    assert not voices.changed
    voices.add([batch(6)])
    assert [(run.first, run.last) for _, _, run, _ in voices.unwritten()] == [(5, 6)]


def test_a_new_tenant_is_told_in_every_row_of_its_collector() -> None:
    voices = Voices()
    voices.add([batch(1), batch(5, feeds=feeds_of(["a"], ["cpu"]))])
    voices.acknowledge()
    voices.add([batch(6, feeds=feeds_of(["b"], ["cpu"]))])
    assert [sorted(feeds.subjects) for _, _, _, feeds in voices.unwritten()] == [["a", "b"], ["a", "b"]]


def test_more_tenants_than_are_listed_are_everybody() -> None:
    assert feeds_of(map(str, range(MOST_NAMES)), ["cpu"]).subjects != EVERYBODY
    assert feeds_of(map(str, range(MOST_NAMES + 1)), ["cpu"]) == (EVERYBODY, {"cpu"})
    voices = Voices()
    voices.add([batch(1, feeds=feeds_of(["a"], ["cpu"])), batch(2, feeds=UNKNOWN), batch(3, feeds=feeds_of(["b"], []))])
    assert voices.by_epoch["värd-1", "e1"].feeds == UNKNOWN


@pytest.mark.parametrize(("text", "told"), [(b"17", 17), (b"", 0), (b"soon", 0), (b"-1", 0), (b"9" * 18, 0)])
def test_a_watermark_that_cannot_be_read_says_nothing_and_kills_no_usage(text: bytes, told: int) -> None:
    kind = kind_of((*numbered(4), (WATERMARK, text)))
    assert (kind.problem, kind.sequence, kind.watermark_us) == (None, 4, told)


def heard_rows(walk: Walk) -> list[tuple[object, ...]]:
    store = Store()
    write(walk.cut(), store, Wire(), pause=wait_never)
    columns = dict(store.inserts).get("heard", [])
    return list(zip(*columns, strict=True))


def test_a_flush_tells_runs_watermarks_tenants_and_types_behind_usage_and_before_progress() -> None:
    cpu = Series(type="server", subject="Zoë Åström", data={})
    readings = encode_readings([Reading(cpu, NOON_US, NOON_US + 1, 1)])
    marked = [(*numbered(n, content=ARROW), (WATERMARK, str(NOON_US + n).encode())) for n in (1, 2, 4)]
    walk = Walk()
    for headers, value in zip(marked, (readings, b"", readings), strict=True):
        walk.send(value or encode_readings([]), headers=headers)
    store = Store()
    write(walk.cut(), store, Wire(), pause=wait_never)
    assert store.tables[-2:] == ["heard", "progress"]
    rows = list(zip(*dict(store.inserts)["heard"], strict=True))
    assert [(row[0], row[1], row[7], row[8], row[9], row[10]) for row in rows] == [
        ("host-01", "spool-7", 1, 2, NOON_US + 1, NOON_US + 2),
        ("host-01", "spool-7", 4, 4, NOON_US + 4, NOON_US + 4),
    ]
    assert {(tuple(row[13]), tuple(row[14])) for row in rows} == {(("Zoë Åström",), ("server",))}
    assert heard_rows(walk) == [], "nothing changed since"


def test_a_watermark_is_no_further_ahead_of_the_log_than_readings_may_be() -> None:
    """A host's clock stood in 2030 for one heartbeat; two workers that cut the log otherwise write the same of it."""
    hour_us, seconds = 3_600_000_000, (0, 10, 20)
    marks = [NOON_US + 5, 1_900_000_000_000_000, NOON_US + 20_000_000]
    last = []
    for is_cut in (False, True):
        walk = Walk()
        for number, (second, mark) in enumerate(zip(seconds, marks, strict=True)):
            headers = (*numbered(number), (WATERMARK, str(mark).encode()))
            walk.send(b"", headers=headers, at_ms=NOON_MS + second * 1000)
            if is_cut:
                last.append([(row[7:11], row[12]) for row in heard_rows(walk)])
        last.append([(row[7:11], row[12]) for row in heard_rows(walk)])
    whole, first, second, third, nothing = last
    assert whole == third == [((0, 2, NOON_US + 5, NOON_US + 20_000_000), NOON_MS + 20_000)] and not nothing
    assert first == [((0, 0, NOON_US + 5, NOON_US + 5), NOON_MS)]
    assert second == [((0, 1, NOON_US + 5, NOON_US + 10_000_000 + hour_us), NOON_MS + 10_000)]


def test_a_batch_that_is_dead_as_a_whole_is_not_missing() -> None:
    walk = Walk().send(b"no arrow", headers=numbered(1, content=ARROW))
    assert [row[7:9] for row in heard_rows(walk)] == [(1, 1)]


def test_a_batch_on_a_foreign_partition_is_heard_at_home_only() -> None:
    home = partition_of(b"host-01", 7)
    for partition in range(7):
        walk = Walk(partitions=7, chunk=new_chunk(partition=partition))
        walk.go(fetch_of([(body(1), numbered(1), NOON_MS)], partition=partition))
        assert bool(heard_rows(walk)) == (partition == home)


def test_what_was_heard_is_written_before_a_booking_turns() -> None:
    """Nothing of the earlier booking is read again by a restart: it must be in the table by then."""
    walk = Walk().send(b"", headers=numbered(1))
    written: list[Flush] = []
    walk._acknowledge = written.append  # type: ignore[method-assign]
    walk.send(b"", headers=numbered(2), at_ms=NOON_MS + 86_400_000)
    assert len(written) == 1
    assert [(run.first, run.last) for _, _, run, _ in walk.chunk.voices.unwritten()] == [(2, 2)]
