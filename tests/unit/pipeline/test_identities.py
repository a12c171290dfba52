"""Which identities were accepted since the chunk's base: the exact answer is by position."""

from __future__ import annotations

import numpy as np

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


def test_ids_are_forgotten_below_an_offset_and_only_those() -> None:
    accepted = AcceptedIds()
    accepted.add(columns((1, 1, 10), (2, 2, 11)))
    accepted.add(columns((3, 3, 12)))
    accepted.acknowledge(2)
    accepted.forget_below(12)
    assert list(accepted.find([(1, 1), (3, 3)])) == [(3, 3)] and not accepted.unwritten()
    accepted.add(columns((4, 4, 13)))
    assert len(accepted) == 2 and [int(block.offsets[0]) for block in accepted.unwritten()] == [13]


def test_what_is_acknowledged_is_not_written_again_but_still_found() -> None:
    accepted = AcceptedIds()
    accepted.add(columns((1, 1, 10)))
    accepted.acknowledge(1)
    accepted.add(columns((2, 2, 11)))
    assert [block.offsets.tolist() for block in accepted.unwritten()] == [[11]]
    assert len(accepted.find([(1, 1), (2, 2)])) == 2
    accepted.clear()
    assert not accepted.find([(1, 1)]) and not accepted.unwritten()
