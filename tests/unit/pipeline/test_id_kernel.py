"""The compiled loops over identities give what numpy gives: the same bits, the same answers, the same repetitions."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import dedupe, id_filter, identities
from pipeline.compiled import load_id_kernel
from pipeline.dedupe import _repeated
from pipeline.id_filter import IdFilter, _Layer
from pipeline.identities import EVERYTHING
from tests.unit.pipeline.events import StoredHere

KERNEL = load_id_kernel()
needs_numba = pytest.mark.skipif(KERNEL is None, reason="numba is absent")
WORDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.integers(0, 40))
Answer = Callable[[], Any]


def both(answer: Answer) -> tuple[Any, Any]:
    """Return an answer by the compiled loops, and the one without them."""
    found = []
    for kernel in (KERNEL, None):
        with pytest.MonkeyPatch.context() as patch:
            loaded: Callable[[], ModuleType | None] = lambda kernel=kernel: kernel  # noqa: E731
            patch.setattr(id_filter, "load_id_kernel", loaded)
            patch.setattr(dedupe, "load_id_kernel", loaded)
            patch.setattr(identities, "load_id_kernel", loaded)
            found.append(answer())
    return found[0], found[1]


@needs_numba
@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), max_size=200), st.lists(st.tuples(WORDS, WORDS), max_size=50))
def test_a_layer_has_the_same_bits_and_answers(inside: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    """Rows of a table of words, which are no columns of their own, too."""
    words, asked = (np.array(each, np.uint64).reshape(-1, 2) for each in (inside, inside + others))

    def fill() -> tuple[bytes, list[bool]]:
        layer = _Layer(1 << 14, 64)
        layer._set(words[:, 0], words[:, 1])
        return layer._bytes.tobytes(), layer.perhaps(asked[:, 0], asked[:, 1]).tolist()

    compiled, plain = both(fill)
    assert compiled == plain
    assert all(compiled[1][: len(inside)])


@needs_numba
@settings(deadline=None)
@given(st.lists(WORDS, max_size=300))
@example([])
@example([7])
@example([2**64 - 1] * 300)
@example([n << 20 for n in range(100)] * 2)
def test_what_occurs_twice_is_found_wherever_hashes_lie(values: list[int]) -> None:
    """Also where all of them begin in one place of the table."""
    high = np.array(values, np.uint64)
    compiled, plain = both(lambda: _repeated(high).tolist())
    assert compiled == plain == [values.count(value) > 1 for value in values]


@needs_numba
def test_hashes_that_were_chosen_to_lie_in_each_others_way_take_no_longer_than_they_may() -> None:
    """Of five hundred ids that a tenant tries, one lies among the first slots of the table: seconds of looking."""
    assert KERNEL is not None
    high = np.random.default_rng(4).integers(0, 2**64, 20_000, np.uint64)
    chosen = high & ~np.uint64(0x1FF00)
    for values, told in ((high, True), (chosen, False)):
        room = np.zeros(1 << (2 * len(values)).bit_length(), np.int32)
        assert KERNEL.find_repeated(values, room, np.zeros(len(values), bool)) is told
    compiled, plain = both(lambda: _repeated(np.concatenate([chosen, chosen[:1]])).tolist())
    assert compiled == plain and plain[0] and plain[-1] and sum(plain) == 2


@needs_numba
@settings(deadline=None)
@given(st.lists(WORDS, max_size=300), st.lists(WORDS, max_size=40))
@example([5, 7, 5], [])
@example([5 + (n << 20) for n in range(100)], [5, 5 + (7 << 20), 5 + (200 << 20)])
def test_what_is_wanted_is_found_wherever_hashes_lie(values: list[int], wanted: list[int]) -> None:
    """Also where all of them have the same mark."""
    high, asked = np.array(values, np.uint64), np.array(wanted, np.uint64)
    compiled, plain = both(lambda: identities._rows_of(high, asked))
    assert compiled == plain == [row for row, value in enumerate(values) if value in wanted]


@needs_numba
@pytest.mark.parametrize("limit_bytes", [1 << 40, 1 << 12], ids=["grows", "covers less"])
def test_a_filter_over_several_layers_answers_the_same(limit_bytes: int) -> None:
    high, low = np.random.default_rng(3).integers(0, 2**64, (2, 20_000), np.uint64)

    def ask() -> list[bool]:
        known = IdFilter(1 << 12, limit_bytes)
        known.load(StoredHere(), "topic", {0: EVERYTHING})
        for first in range(0, 10_000, 1000):
            known.add(high[first : first + 1000], low[first : first + 1000])
        return known.perhaps("topic", 0, high, low).tolist()

    compiled, plain = both(ask)
    assert compiled == plain
    assert all(compiled[:10_000]) and (limit_bytes < 1 << 20 or not all(compiled))
