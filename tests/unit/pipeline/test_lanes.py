"""Several threads of a process, and two readers of one partition: nobody touches another's open chunk."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.book import OPEN
from pipeline.lanes import Lanes, inside, this_lane
from tests.unit.pipeline.events import new_chunk

FIRST, SECOND = ("topic", 0), ("topic", 1)


@pytest.fixture
def left() -> Iterator[list[int]]:
    """The lanes that were left, as the lanes of these tests tell it."""
    yield []
    for number in range(10):
        OPEN.leave(number)


@pytest.fixture
def lanes(left: list[int]) -> Lanes:
    def leave(number: int) -> None:
        OPEN.leave(number)
        left.append(number)

    return Lanes(leave)


def in_a_thread(work: threading.Thread) -> None:
    work.start()
    work.join(30)
    assert not work.is_alive()


def test_two_threads_do_not_see_each_others_chunks(lanes: Lanes) -> None:
    seen: list[int] = []

    def read() -> None:
        with lanes.turn(SECOND):
            seen.append(len(OPEN))
            OPEN[SECOND] = new_chunk()

    with lanes.turn(FIRST):
        OPEN[FIRST] = new_chunk()
        in_a_thread(threading.Thread(target=read))
        assert list(OPEN) == [FIRST]
    assert seen == [0] and len(OPEN) == 0


def test_the_next_turn_of_a_partition_goes_on_with_its_chunk_in_any_thread(lanes: Lanes, left: list[int]) -> None:
    chunk, found = new_chunk(), []

    def read() -> None:
        with lanes.turn(FIRST):
            found.append(OPEN[FIRST])

    with lanes.turn(FIRST):
        OPEN[FIRST] = chunk
    in_a_thread(threading.Thread(target=read))
    assert found == [chunk] and left == []


def test_a_second_reader_of_a_partition_begins_afresh_and_the_first_keeps_what_it_has(
    lanes: Lanes, left: list[int]
) -> None:
    """A job was started again while the thread that read the partition before still waits for ClickHouse."""
    chunk, chunks = new_chunk(), []

    def second_reader() -> None:
        with lanes.turn(FIRST):
            chunks.append(OPEN.get(FIRST))
            OPEN[FIRST] = new_chunk()

    with lanes.turn(FIRST):
        OPEN[FIRST] = chunk
        in_a_thread(threading.Thread(target=second_reader))
        assert chunks == [None] and OPEN[FIRST] is chunk and left == []
        overtaken = this_lane()
    assert left == [overtaken]
    with lanes.turn(FIRST):
        assert OPEN[FIRST] is not chunk


def test_after_a_failure_nothing_that_a_lane_held_is_used_again(lanes: Lanes, left: list[int]) -> None:
    with pytest.raises(ValueError, match="ClickHouse"), lanes.turn(FIRST):
        OPEN[FIRST] = new_chunk()
        failed = this_lane()
        raise ValueError("ClickHouse did not acknowledge")
    assert left == [failed] and this_lane() == 0
    with lanes.turn(FIRST) as number:
        assert number != failed and FIRST not in OPEN


def test_a_turn_that_failed_downstream_and_was_never_closed_blocks_nobody(lanes: Lanes, left: list[int]) -> None:
    """A stage behind the reader raised: Beam drops the reader's generator, and Python closes it whenever it likes."""

    def read() -> Iterator[int]:
        with lanes.turn(FIRST) as number:
            yield number

    abandoned = read()
    failed = next(abandoned)
    with lanes.turn(FIRST) as number:
        assert number != failed
        abandoned.close()
        assert left == [failed] and this_lane() == number
    with lanes.turn(FIRST) as again:
        assert again == number


def test_what_runs_beside_a_turn_may_look_into_its_lane() -> None:
    seen: list[int] = []

    def load(lane: int) -> None:
        with inside(lane):
            seen.append(this_lane())
        seen.append(this_lane())

    in_a_thread(threading.Thread(target=load, args=(7,)))
    assert seen == [7, 0] and this_lane() == 0
