"""What became of each event of a case: counted, dead for a reason, a copy of another one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.vectors.books import Books
from tests.vectors.compare import check_number
from tests.vectors.model import Incomparable, Mismatch, Outgoing, Unknown

# Sentence -> the reasons that mean the same; the first that fits. NaN and the infinities are one reason with us.
_MEANINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"specversion", ("wrong_type", "missing_field")),
    (r"time.?zone|utc.?offset", ("bad_time",)),
    (r"event.*not found|(unknown|no such) event", ("unknown_event", "unknown_meter")),
    (r"empty|blank", ("missing_field", "wrong_type", "not_a_number")),
    (r"missing|required|absent|not found|null", ("missing_field", "wrong_type")),
    (r"\bnan\b", ("not_a_number",)),
    (r"infinit|\binf\b", ("not_a_number", "out_of_range")),  # a float overflows to infinity, a decimal is too large
    (r"negative", ("negative",)),
    (r"precis|digits|scale", ("too_precise",)),
    (r"too large|too many bytes", ("too_large", "out_of_range")),
    (r"range|overflow|too big|too long", ("out_of_range", "year_out_of_range")),
    (r"unmarshal|must be an? (object|string)", ("malformed", "wrong_type")),
    (r"\bnest|\bdeep", ("too_deep",)),
    (r"too old|late|\bpast\b", ("too_old",)),
    (r"future|ahead", ("too_far_ahead",)),
    (r"time|date|month|year", ("bad_time", "year_out_of_range", "too_old", "too_far_ahead")),
    (r"^invalid.?format", ("bad_time", "not_a_number", "malformed", "wrong_type", "unknown_format")),
    (r"content.?type|media type|format", ("unknown_format",)),
    (r"utf", ("not_utf8",)),
    (r"json|malformed|body|syntax", ("malformed", "wrong_type")),
    (r"meter|code", ("unknown_meter",)),
    (r"pars|numeric|number|convert|invalid|not a", ("not_a_number", "wrong_type", "malformed", "bad_time")),
    (r"boolean|unsupported value", ("not_a_number", "wrong_type")),
    (r"type", ("wrong_type",)),
    (r"exceed", ("out_of_range", "too_large", "too_precise")),
)
_COUNTED = ("accepted", "counted", "aggregated")
DEAD = (
    "rejected", "dead", "dead_letters", "quarantined", "errors", "with_errors", "invalid", "failed", "failures",
)  # fmt: skip
_RESULTS = (
    (("accepted", "ok", "success", "stored", "created", "counted", "2"), "accepted"),
    (("duplicate", "409"), "duplicates"),
    (("rejected", "error", "failed", "invalid", "dead", "4"), "rejected"),
)
NAMED = ("index", "id", "event_id", "transaction_id")
_WHY = ("error", "reason", "message")
_COPIES = ("duplicates", "duplicate_indexes")
BY_PLACE = ("stored", *DEAD, *_COUNTED, *_COPIES)  # what names events by their places or ids
INGESTED = ("stored", "rejected", *_COUNTED, *_COPIES)  # what is said of events, not of a question


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


def status_of(expected: Any) -> int:
    """Return an expected status; "2xx" is 200, and a refusal without a status 400."""
    if not isinstance(expected, Mapping):
        raise Incomparable(f"expected holds no status: {expected!r}")
    status, error = str(expected.get("status", "")).lower().replace("x", "0"), expected.get("error")
    if status.isdigit():
        return int(status)
    return 400 if error else 200


def is_refusal(expected: Any) -> bool:
    """Tell whether what a case expects of its question, or of its event, is that it is refused."""
    return status_of(expected) >= 400


def check_outcomes(books: Books, events: Sequence[Outgoing], expected: Mapping[str, Any]) -> str:
    """Compare how many events counted, are dead or were copies, where the case says so; return ours, or "".

    What is stored is what counts and what is dead, which is kept with its bytes.

    Raises:
        Mismatch: A number differs.
    """
    wanted = _by_list(expected)
    places = range(len(events))
    dead = [n for n in places if books.letter(events[n])]
    counted = [n for n in places if books.is_accepted(events[n])]
    copies = [n for n in places if n not in dead and n not in counted]
    kept = [n for n in dead if not events[n].is_too_large]
    told = {"stored": sorted(counted + kept), "conflicts": [n for n in places if books.is_conflict(events[n])]}
    told |= dict.fromkeys(_COUNTED, counted) | dict.fromkeys(DEAD, dead) | dict.fromkeys(_COPIES, copies)
    asked = [name for name in told if name in wanted]
    for name in asked:
        expected.get(name)  # it is compared
        _check_places(name, told[name], wanted[name], events)
        if name in DEAD and isinstance(wanted[name], list):
            for each in wanted[name]:
                _check_reason(books, events, each)
    shown = f"{len(counted)} of {len(events)} count, dead {dead}, copies {copies}"
    return shown if asked else ""


def _by_list(expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer with errors by place, and one with a result for each event, as lists of places."""
    told = dict(expected)
    for name in DEAD:
        if isinstance(told.get(name), Mapping):
            told[name] = [{"index": int(place), "reason": _in_words(why)} for place, why in told[name].items()]
    results = expected.get("results")
    for n, result in enumerate(results if isinstance(results, list) else ()):
        status = str(result.get("status") if isinstance(result, Mapping) else result).lower()
        names = [name for words, name in _RESULTS if status in words or (status[:1] in words and status.isdigit())]
        if not names:
            raise Unknown(f'an event\'s result of a status "{status}"')
        told_of = dict(result) if isinstance(result, Mapping) else {}
        place = told_of.get("index", n)
        why = {name: told_of[name] for name in _WHY if told_of.get(name)} if names[0] in DEAD else {}
        known = told.get(names[0])
        told[names[0]] = [*(known if isinstance(known, list) else ()), {"index": place, **why} if why else place]
    return told


def _in_words(why: Any) -> str:
    """Return all that is said in lists and mappings, in one text."""
    parts = why.values() if isinstance(why, Mapping) else why
    return str(why) if isinstance(why, str) else " ".join(map(_in_words, parts))


def _check_places(name: str, ours: Sequence[int], wanted: Any, events: Sequence[Outgoing]) -> None:
    """Compare the places of some events in a case with a number of them, a list of them, or all and none.

    Raises:
        Mismatch: They are others.
    """
    if isinstance(wanted, list):
        places = sorted(_place_of(each, events) for each in wanted)
        if places != list(ours):
            raise Mismatch(f"{name}: expected {places}, got {list(ours)}")
        return
    if isinstance(wanted, bool):
        wanted = len(events) if wanted else 0
    check_number(name, len(ours), wanted)


def _place_of(told: Any, events: Sequence[Outgoing]) -> int:
    """Return the place of an event that is told by its place, by its id, or by an object that has one of both."""
    given = next((told[name] for name in NAMED if name in told), None) if isinstance(told, Mapping) else told
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    found = [n for n, event in enumerate(events) if event.wire and event.wire.get("id") == given]
    if len(found) != 1:
        raise Unknown(f"expected the place or the id of an event, the case has {told!r}")
    return found[0]


def _check_reason(books: Books, events: Sequence[Outgoing], told: Any) -> None:
    """Make sure that a dead event is so for the reason that stands beside its place, if one does."""
    if not isinstance(told, Mapping):
        return
    sentence = next((told[name] for name in _WHY if told.get(name)), None)
    if sentence is not None:
        check_dead(books, events[_place_of(told, events)], sentence)
