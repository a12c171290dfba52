"""What may go to a terminal, or to whoever reads a log in one: it obeys some characters, and tenants write what they
like. Letters, spaces and ends of lines stay as they are, whatever else there is becomes an escape.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable


def printable(text: str) -> str:
    """Return a text of one or many lines that does nothing but show.

    >>> printable("Zo\\x1b[2Jë")
    'Zo\\\\x1b[2Jë'
    """
    return _escaped(text, lambda c: c.encode("unicode_escape").decode())


def one_line(text: str) -> str:
    """Return a text as `printable` does, on one line: nobody writes lines of their own among ours."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable_json(text: str) -> str:
    """Return JSON that does nothing but show, and says the same."""
    return _escaped(text, lambda c: json.dumps(c)[1:-1])


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else escape(c) for c in text)
