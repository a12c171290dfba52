"""From which chunk on a question reads each partition's progress."""

from __future__ import annotations

from tallyman.completeness import _MOST_BEGINS, _begins, _Place


def placed(chunks: dict[int, int]) -> dict[tuple[str, int], _Place]:
    return {("t", number): _Place("t", number, chunk, 0, 0, 0) for number, chunk in chunks.items()}


def test_partitions_that_stand_close_together_are_read_from_the_same_chunk_on() -> None:
    assert _begins(placed({0: 700, 1: 690, 2: 3})) == [(690, [("t", 0), ("t", 1)]), (3, [("t", 2)])]
    assert _begins({}) == []


def test_thousands_of_partitions_far_apart_make_no_statement_that_is_too_long() -> None:
    chunks = {number: 1000 * number for number in range(5000)}
    found = _begins(placed(chunks))
    assert len(found) <= _MOST_BEGINS
    assert sorted(key for _, keys in found for key in keys) == [("t", number) for number in range(5000)]
    assert all(chunk <= chunks[number] for chunk, keys in found for _, number in keys)
    # Twice as wide as it has to be, at most.
    assert all(chunks[keys[-1][1]] - chunk < 2 * 5_000_000 // _MOST_BEGINS for chunk, keys in found)
