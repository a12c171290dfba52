"""Compiled loops over identities, which are hashes already: the probes of a Bloom filter, and which occur twice.

They do what `pipeline.id_filter` and `pipeline.dedupe` do with numpy, bit for bit, an identity at a time: eight probes
of one overlap with those of the next, and nothing is written down in between. `pipeline.compiled` imports this module.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import numpy as np
from numba import njit, types

_U = np.uint64
_BITS, _INTS, _FLAGS = types.uint8[::1], types.int32[::1], types.boolean[::1]
_WORDS = types.Array(types.uint64, 1, "A", readonly=True)  # columns of a table of words, too
_PROBES_EACH = 8  # for a hash, on an average; where they lie by chance it is less than one


@njit(types.void(_BITS, types.uint64, types.uint64, types.int64, _WORDS, _WORDS), cache=True, nogil=True)
def set_bits(octets, share_bits, below, probes, high, low):
    """Set the bits of identities in a filter whose shares have so many bits each, a power of two.

    Args:
        below: How many of a hash's bits lie below the number of its share.
    """
    mask = share_bits - _U(1)
    for i in range(len(high)):
        at, share, step = high[i], (high[i] >> below) * share_bits, low[i] | _U(1)
        for _ in range(probes):
            place = share + (at & mask)
            octets[np.int64(place >> _U(3))] |= np.uint8(1) << np.uint8(place & _U(7))
            at += step


@njit(types.void(_BITS, types.uint64, types.uint64, types.int64, _WORDS, _WORDS, _FLAGS), cache=True, nogil=True)
def find_bits(octets, share_bits, below, probes, high, low, found):
    """Tell of which identities all bits are set."""
    mask = share_bits - _U(1)
    for i in range(len(high)):
        at, share, step = high[i], (high[i] >> below) * share_bits, low[i] | _U(1)
        found[i] = True
        for _ in range(probes):
            place = share + (at & mask)
            if octets[np.int64(place >> _U(3))] & (np.uint8(1) << np.uint8(place & _U(7))) == 0:
                found[i] = False
                break
            at += step


@njit(types.boolean(_WORDS, _INTS, _FLAGS), cache=True, nogil=True)
def find_repeated(hashes, table, found):
    """Tell which hashes occur more than once.

    Args:
        table: Zeros, at least one more of them than hashes, as many as a power of two.

    Returns:
        Whether that could be told: a tenant may choose ids whose hashes all lie in each other's way, and would have
        everybody in its partition wait for the square of their number.
    """
    mask, left = len(table) - 1, _PROBES_EACH * len(hashes)
    for i in range(len(hashes)):
        slot = np.int64(hashes[i] >> _U(1)) & mask
        while table[slot] != 0 and hashes[table[slot] - 1] != hashes[i]:
            slot = (slot + 1) & mask
            left -= 1
        if left < 0:
            return False
        if table[slot] != 0:
            found[table[slot] - 1] = found[i] = True
        else:
            table[slot] = i + 1
    return True


@njit(types.void(_WORDS, _WORDS, _FLAGS, _FLAGS), cache=True, nogil=True)
def find_wanted(hashes, wanted, marks, found):
    """Tell which hashes are among those that are wanted.

    Args:
        wanted: In order.
        marks: As many as a power of two, all off: of most hashes one of them says that they are not wanted.
        found: All off.
    """
    mask = len(marks) - 1
    for i in range(len(wanted)):
        marks[np.int64(wanted[i]) & mask] = True
    for i in range(len(hashes)):
        if not marks[np.int64(hashes[i]) & mask]:
            continue
        first, behind = 0, len(wanted)
        while first < behind:
            middle = (first + behind) >> 1
            if wanted[middle] < hashes[i]:
                first = middle + 1
            else:
                behind = middle
        found[i] = first < len(wanted) and wanted[first] == hashes[i]
