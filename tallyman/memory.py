"""How a process takes memory from the system."""

from __future__ import annotations

import ctypes

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's mallopt(3)


def use_one_arena() -> bool:
    """Have all threads take memory from one heap; call it before there are any. Only glibc knows of others.

    By itself it gives threads heaps of their own, of 64 MiB pieces, which go back to the system with each large array
    and are asked for again with the next: a page fault for every 4 KiB. A worker's threads take turns in any case.

    Returns:
        Whether it could be set.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(set_option(_ARENA_MAX, 1))
