"""How a process takes memory from the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tallyman.memory import use_one_arena

ARENAS = """
import ctypes, sys, threading
from tallyman.memory import use_one_arena
if sys.argv[1] == "one":
    assert use_one_arena()
threads = [threading.Thread(target=lambda: bytearray(1 << 16)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""


def arenas(which: str) -> int:
    """Return how many heaps a process with some threads has, as glibc itself counts them."""
    done = subprocess.run([sys.executable, "-c", ARENAS, which], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONMALLOC": "malloc"})  # fmt: skip
    return done.stderr.count("Arena ")


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="only glibc has arenas")
def test_threads_share_one_heap() -> None:
    assert arenas("one") == 1 < arenas("any")


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not use_one_arena()
