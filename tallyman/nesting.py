"""How deeply JSON may be nested: a number of our own, because that of a decoder depends on the stack in use, and
whether an event is accepted may depend on its bytes alone.
"""

from __future__ import annotations

import re
from itertools import accumulate

from tallyman.errors import EventError

MAX_NESTING = 64  # arrays and objects of an event that are open at once, its own braces included
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes(set(range(256)) - set(_STEPS))
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def is_too_deep(text: bytes, most: int = MAX_NESTING) -> bool:
    """Tell whether more than `most` arrays and objects are open at once in a JSON text, also in a malformed one.

    >>> is_too_deep(b'{"data":{"note":"]]["}}', most=2)
    False
    """
    if text.count(b"{") + text.count(b"[") <= most:
        return False
    texts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    brackets = b"".join(texts[::2]).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > most


def check_nesting(text: bytes, most: int = MAX_NESTING) -> None:
    """Refuse JSON that is nested too deeply.

    Raises:
        EventError: `too_deep`.
    """
    if is_too_deep(text, most):
        raise EventError("too_deep", f"expected at most {MAX_NESTING} arrays and objects inside each other, got more")


def flatten(text: bytes, most: int) -> bytes:
    """Return JSON of the same length, in which a 0 stands for whatever is nested more deeply than `most`."""
    pieces, kept, depth = [], 0, 0
    for token in _TOKEN.finditer(text):
        step = _STEPS.get(token[0][0], 0)
        depth += step
        if step > 0 and depth == most + 1:
            pieces.append(text[kept : token.start()])
            kept = token.start()
        elif step < 0 and depth == most:
            pieces.append(b"0".ljust(token.end() - kept))
            kept = token.end()
    return b"".join((*pieces, text[kept:] if depth <= most else b""))
