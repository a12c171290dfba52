"""JSON without a float on the way: numbers keep the digits that stand in the file."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

_LONGEST_INT = 4000  # digits; Python refuses to read longer ones


def read_json(text: str) -> Any:
    """Read JSON; a number with a point or an exponent is a Decimal."""
    return json.loads(text, parse_float=Decimal, parse_int=_whole)


def write_json(value: Any) -> bytes:
    """Write what `read_json` read: numbers literally, text as it is, keys in their order."""
    return _text(value).encode()


def _text(value: Any) -> str:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(name)}:{_text(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return json.dumps(value)  # half a character, which only an escape can write
    return json.dumps(value, ensure_ascii=False)


def _whole(text: str) -> int | Decimal:
    return int(text) if len(text) <= _LONGEST_INT else Decimal(text)
