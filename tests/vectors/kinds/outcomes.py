"""What became of each event of a case: counted, dead for a reason, a copy of another one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.vectors.books import Books
from tests.vectors.compare import check_number
from tests.vectors.model import Mismatch, Outgoing

# Sentence -> the reasons that mean the same; the first that fits. NaN and the infinities are one reason with us.
_MEANINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"missing|required|absent|not found|empty|null", ("missing_field", "wrong_type")),
    (r"\bnan\b|infinit|\binf\b", ("not_a_number",)),
    (r"negative", ("negative",)),
    (r"precis|digits|scale", ("too_precise",)),
    (r"too large|too many bytes", ("too_large", "out_of_range")),
    (r"range|overflow|too big", ("out_of_range", "year_out_of_range")),
    (r"too old|late", ("too_old",)),
    (r"future|ahead", ("too_far_ahead",)),
    (r"time|date|month|year", ("bad_time", "year_out_of_range", "too_old", "too_far_ahead")),
    (r"content.?type|media type|format", ("unknown_format",)),
    (r"utf", ("not_utf8",)),
    (r"json|malformed|body|syntax", ("malformed", "wrong_type")),
    (r"meter|code|unknown event", ("unknown_meter",)),
    (r"pars|numeric|number|convert|invalid|not a", ("not_a_number", "wrong_type", "malformed")),
    (r"type", ("wrong_type",)),
)
_COUNTED = ("accepted", "counted", "aggregated")
_DEAD = ("rejected", "dead", "dead_letters", "quarantined", "errors", "with_errors", "invalid")
_COPIES = ("duplicates", "duplicate_indexes")


def check_dead(books: Books, event: Outgoing, sentence: Any) -> str:
    """Make sure that an event is dead, and for the reason that a sentence means; return ours.

    Args:
        sentence: None where any reason will do.

    Raises:
        Mismatch: It counts, or is dead for another reason.
    """
    letter = books.letter(event)
    if letter is None:
        became = "it counts" if books.is_accepted(event) else "it is neither dead nor accepted"
        raise Mismatch(f"expected a dead letter ({sentence or 'any reason'}), but {became}")
    reasons = _reasons(str(sentence)) if sentence is not None else (letter.reason,)
    if letter.reason not in reasons:
        wanted = " or ".join(reasons) or "a reason for which we have no code"
        raise Mismatch(f'expected {wanted} for "{sentence}", got {letter.reason}: {letter.detail}')
    return f"dead letter {letter.reason}: {letter.detail}"


def _reasons(sentence: str) -> tuple[str, ...]:
    text = sentence.lower()
    return next((reasons for pattern, reasons in _MEANINGS if re.search(pattern, text)), ())


def error_of(expected: Any) -> Any:
    """Return the sentence of an expected refusal, None if the case has none."""
    return expected.get("error") if isinstance(expected, Mapping) else None


def check_outcomes(books: Books, events: Sequence[Outgoing], expected: Mapping[str, Any]) -> str:
    """Compare how many events counted, are dead or were copies, where the case says so; return ours, or "".

    What is stored is what counts and what is dead, which is kept with its bytes.

    Raises:
        Mismatch: A number differs.
    """
    places = range(len(events))
    dead = [n for n in places if books.letter(events[n])]
    counted = [n for n in places if books.is_accepted(events[n])]
    copies = [n for n in places if n not in dead and n not in counted]
    told = {"stored": sorted(counted + dead), "conflicts": [n for n in places if books.is_conflict(events[n])]}
    told |= dict.fromkeys(_COUNTED, counted) | dict.fromkeys(_DEAD, dead) | dict.fromkeys(_COPIES, copies)
    asked = [name for name in told if name in expected]
    for name in asked:
        _check_places(name, told[name], expected[name], len(events))
    shown = f"{len(counted)} of {len(events)} count, dead {dead}, copies {copies}"
    return shown if asked else ""


def _check_places(name: str, ours: Sequence[int], wanted: Any, events: int) -> None:
    """Compare the places of some events in a case with a number of them, a list of their places, or all and none."""
    if isinstance(wanted, list):
        places = [each.get("index") if isinstance(each, Mapping) else each for each in wanted]
        if places != list(ours):
            raise Mismatch(f"{name}: expected {places}, got {list(ours)}")
        return
    check_number(name, len(ours), (events if wanted else 0) if isinstance(wanted, bool) else wanted)
