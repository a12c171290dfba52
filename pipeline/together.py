"""Lines that may be decoded as one text: each is one object, and none is nested too deeply.

An object that is cut over two lines, beside two on one line, would else pass for whole ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tallyman.nesting import MAX_NESTING, is_too_deep

MOST_TOGETHER = 512  # more neither fit the processor's cache nor save anything; one bad line costs those beside it
_NEWLINE, _OPENED, _CLOSED = b"\n{}"
_CASE = 0x20  # what a [ lacks of a {


def join_objects(lines: Sequence[bytes]) -> bytes:
    """Return JSON lines as one text, or nothing where some line is not one object, or is nested too deeply."""
    text = b"\n".join(lines)
    few = len(lines) < MAX_NESTING  # Python's own search is quicker than numpy's fixed costs
    if not (_is_object_each(text, len(lines)) if few else _are_objects(text, len(lines))):
        return b""
    if few:
        crowded = _count(text, b"{") + _count(text, b"[") >= MAX_NESTING + len(lines)
    else:
        crowded = _is_crowded(text, max(map(len, lines)))
    return b"" if crowded and any(map(is_too_deep, lines)) else text


def _is_object_each(text: bytes, lines: int) -> bool:
    ends = lines - 1
    whole = text.startswith(b"{") and text.endswith(b"}")
    return whole and _count(text, b"\n") == ends and text.count(b"}\n{") == ends


def _count(text: bytes, octet: bytes) -> int:
    """Do what `bytes.count` does, in a third of the time: that looks at every byte, `replace` searches."""
    return len(text) - len(text.replace(octet, b""))


def _are_objects(text: bytes, lines: int) -> bool:
    octets = np.frombuffer(text, np.uint8)
    ends: npt.NDArray[np.int64] = np.flatnonzero(octets == _NEWLINE)
    if octets[0] != _OPENED or octets[-1] != _CLOSED or len(ends) != lines - 1:
        return False
    return bool((octets[ends - 1] == _CLOSED).all() and (octets[ends + 1] == _OPENED).all())


def _is_crowded(text: bytes, longest: int) -> bool:
    """Tell whether so many brackets open so close together that one line may hold them all."""
    opened = np.flatnonzero((np.frombuffer(text, np.uint8) | _CASE) == _OPENED)
    return len(opened) > MAX_NESTING and bool((opened[MAX_NESTING:] - opened[:-MAX_NESTING]).min() < longest)
