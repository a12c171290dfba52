"""Cases about what is too old or too far ahead: their times are moved so that the case's `now` is the real one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.vectors.compare import instant
from tests.vectors.kinds.outcomes import BY_PLACE, NAMED
from tests.vectors.model import Limit, Query, Unknown, Vector

_ABOUT: tuple[tuple[Limit, re.Pattern[str]], ...] = (
    ("furthest_ahead", re.compile(r"future|ahead", re.IGNORECASE)),
    ("oldest_accepted", re.compile(r"too.?(old|late)|stale|expired|in the past", re.IGNORECASE)),
)
_FIGURES = frozenset(
    ("rows", "values", "points", "value", "groupBy", "seconds", "minutes", "hours", "days", "before", "after_each")
)  # fmt: skip
_TIMES = frozenset(
    ("time", "timestamp", "from", "to", "start", "stop", "windowStart", "windowEnd", "now", "arrival", "arrives",
     "arrived", "arrived_at", "arrival_time", "received", "received_at", "sent_at", "ingested_at")
)  # fmt: skip


def limits_of(vector: Vector) -> frozenset[Limit]:
    """Return which of our limits a case wants to be kept: those that are the reason of a refusal that it expects.

    Where a case about what is late says when it is now, and that something is refused but not why, it may be either.
    """
    if not isinstance(vector.expected, Mapping):
        return frozenset()
    sentences = list(_sentences(vector.expected))
    found = frozenset(limit for limit, pattern in _ABOUT if any(map(pattern.search, sentences)))
    dated = vector.kind == "late" and vector.query.get("now") is not None
    if not found and dated and _refuses(vector.expected, len(vector.events)):
        return frozenset(limit for limit, _ in _ABOUT)
    return found


def _refuses(expected: Mapping[str, Any], events: int) -> bool:
    """Whether an answer says that some event is not accepted."""
    accepted = expected.get("accepted")
    if isinstance(accepted, int):  # as is a bool
        return accepted < events
    return any(expected.get(name) for name in ("rejected", "refused", "dead", "dropped"))


def _sentences(expected: Mapping[str, Any]) -> Iterator[str]:
    """Yield all that an answer says in words, besides names of groups and of events."""
    for name, told in expected.items():
        if name in _FIGURES or name in NAMED:
            continue
        yield name
        for each in told if isinstance(told, list) else [told]:
            if isinstance(each, Mapping):
                yield from _sentences(each)
            elif isinstance(each, str) and (each is told or name not in BY_PLACE):
                yield each


def at_our_time(vector: Vector) -> Vector:
    """Return a case as if its `now` were the minute that is under way; one that has none as it is."""
    if vector.query.get("now") is None:
        return vector
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    shift = minute - instant(vector.query["now"]).replace(second=0, microsecond=0)
    return replace(
        vector,
        events=[_moved(event, shift) for event in vector.events],
        query=Query({n: _moved_field(n, value, shift) for n, value in vector.query.items() if n != "now"}),
        expected=Query(_moved(vector.expected, shift)) if isinstance(vector.expected, Mapping) else vector.expected,
    )


def _moved(told: Any, shift: timedelta) -> Any:
    if isinstance(told, Mapping):
        return {name: _moved_field(name, value, shift) for name, value in told.items()}
    if isinstance(told, list) and len(told) == 2 and isinstance(told[0], str):
        return [_moved_field("time", told[0], shift), told[1]]  # a point
    return [_moved(each, shift) for each in told] if isinstance(told, list) else told


def _moved_field(name: str, value: Any, shift: timedelta) -> Any:
    if isinstance(value, list) and name in ("rows", "values", "points"):
        return _moved(value, shift)
    if name not in _TIMES or not isinstance(value, str):
        return value
    try:
        return (instant(value) + shift).isoformat().replace("+00:00", "Z")
    except (Unknown, OverflowError):
        return value  # no time: what it is for is to be refused
