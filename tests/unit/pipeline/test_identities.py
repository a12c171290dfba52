"""Which identities were accepted since the chunk's base: the exact answer is by position."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.identities import Accepted, AcceptedIds, IdColumns


def columns(*rows: tuple[int, int, int]) -> IdColumns:
    high, low, offsets = (np.array(column, np.uint64) for column in zip(*rows, strict=True))
    nothing = np.zeros(len(rows), np.int64)
    return IdColumns(high, low, offsets.astype(np.int64), nothing, nothing, nothing.astype(np.uint64),
                     np.ones(len(rows), np.uint32))  # fmt: skip


def test_the_newest_acceptance_of_an_id_is_found() -> None:
    """An id that was forgotten and used again answers for its second use."""
    accepted = AcceptedIds()
    accepted.add(columns((1, 1, 10), (2, 2, 11)))
    accepted.add(columns((1, 1, 30), (1, 9, 31)))
    assert accepted.find([(1, 1), (3, 3)]) == {(1, 1): Accepted(30, 0, 0, 0, again=True)}
    assert accepted.find([(1, 1)], below=30) == {(1, 1): Accepted(10, 0, 0, 0)}


def test_the_oldest_written_ids_are_forgotten_and_only_those() -> None:
    """A block of records that lie between those of another one is behind all that is forgotten, or forgotten, too."""
    accepted = AcceptedIds()
    for rows in (((1, 1, 10), (2, 2, 13)), ((3, 3, 12),), ((4, 4, 14),), ((5, 5, 15),)):
        accepted.add(columns(*rows))
    accepted.acknowledge(3)
    assert accepted.forget_to(5, 99) == 0 and len(accepted) == 5
    assert accepted.forget_to(4, 99) == 14 and len(accepted) == 3
    assert accepted.forget_to(0, 14) == 13 and [len(block.high) for block in accepted.unwritten()] == [1]
    assert list(accepted.find([(1, 1), (4, 4), (5, 5)])) == [(4, 4), (5, 5)]
    assert accepted.forget_to(0, 99) == 15 and len(accepted) == 1
    accepted.add(columns((6, 6, 16)))
    assert [int(block.offsets[0]) for block in accepted.unwritten()] == [15, 16]


def test_what_is_acknowledged_is_not_written_again_but_still_found() -> None:
    accepted = AcceptedIds()
    accepted.add(columns((1, 1, 10)))
    accepted.acknowledge(1)
    accepted.add(columns((2, 2, 11)))
    assert [block.offsets.tolist() for block in accepted.unwritten()] == [[11]]
    assert len(accepted.find([(1, 1), (2, 2)])) == 2
    accepted.clear()
    assert not accepted.find([(1, 1)]) and not accepted.unwritten()


STEPS = st.lists(
    st.one_of(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=5),  # accepted
        st.sampled_from(["ask", "acknowledge", "forget", "clear"]),
    ),
    max_size=30,
)


@given(STEPS)
def test_whenever_one_asks_the_answer_is_that_of_all_that_was_kept(steps: list[str | list[tuple[int, int]]]) -> None:
    accepted, kept, unwritten, offset = AcceptedIds(), list[tuple[int, int, int]](), 0, 0
    everything = [(high, low) for high in range(10) for low in range(3)]
    for step in [*steps, "ask"]:
        if isinstance(step, list):
            rows = [(high, low, offset + row) for row, (high, low) in enumerate(step)]
            kept += rows
            offset += len(rows)
            if rows:
                accepted.add(columns(*rows))
        elif step == "acknowledge":
            accepted.acknowledge(len(accepted.unwritten()))
            unwritten = len(kept)
        elif step == "forget":
            accepted.forget_to(0, offset)
            del kept[:unwritten]
            unwritten = 0
        elif step == "clear":
            accepted.clear()
            kept, unwritten = [], 0
        places = {row[:2]: row[2] for row in kept}
        if step == "ask":
            assert {key: each.offset for key, each in accepted.find(everything).items()} == places
        assert len(accepted) == len(kept)
        assert sum(len(block.high) for block in accepted.unwritten()) == len(kept) - unwritten
