"""`correction`: events that are taken back or amended later, with their history kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from tallyman.corrections import read_history
from tallyman.meter import Meter
from tests.vectors.books import Books, Question
from tests.vectors.building import (
    aggregation,
    dotted,
    meter,
    moments_of,
    range_of,
    scale_of,
    type_of,
    wire,
    wires,
    zone_of,
)
from tests.vectors.compare import RowOptions, check_number, check_rows, check_total
from tests.vectors.kinds.meter import (
    CORRECTABLE_FORMS,
    check_corrected,
    conditions_of,
    correction,
    dimensions_of,
    grouped_by,
    size_of,
)
from tests.vectors.kinds.outcomes import DEAD, check_dead, check_outcomes, error_of, is_refusal
from tests.vectors.model import Incomparable, Mismatch, NotOffered, Outgoing, Plan, Vector, Wire

_VOIDS = ("void", "delete", "cancel")
_AMENDS = ("amend", "replace", "update")
_AFTER = {f"after_{name}": "after_void" for name in _VOIDS} | {f"after_{name}": "after_amend" for name in _AMENDS}


@dataclass(slots=True)
class _Step:
    """The case up to one of its corrections, in a series of its own."""

    meter: Meter
    question: Question
    events: list[Outgoing]
    plain: list[Wire]


def plan(vector: Vector) -> Plan:
    """Go through the events before any correction, and again up to each of the corrections."""
    plain = [event for event in vector.events if not _is_correction(event)]
    fixes = [fix for event in vector.events if _is_correction(event) for fix in _fixes(_by_our_name(event))]
    steps = [_step(vector, plain, fixes[:n], f".{n}") for n in range(len(fixes) + 1)]
    return Plan(
        meters=[step.meter for step in steps],
        events=[event for step in steps for event in step.events],
        forms=CORRECTABLE_FORMS,
        check=lambda books: _check(books, vector, steps, fixes),
    )


def _is_correction(event: Any) -> bool:
    return isinstance(event, Mapping) and "id" not in event and bool({*_VOIDS, *_AMENDS} & set(event))


def _by_our_name(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return a correction in our words; what it says besides is what the event shall be."""
    names = dict.fromkeys(_VOIDS, "void") | dict.fromkeys(_AMENDS, "amend")
    return {names.get(name, name): told for name, told in event.items()}


def _fixes(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a void of several events as one void of each."""
    named = event.get("void")
    return [{**event, "void": each} for each in named] if isinstance(named, list) else [event]


def _step(vector: Vector, plain: list[Any], fixes: list[Mapping[str, Any]], tag: str) -> _Step:
    query, sent = vector.query, wires(vector, plain, tag)
    path = dotted(query.get("valueProperty", "$.value"))
    settings = aggregation(query.get("aggregation", "SUM"), query)
    every = [*sent, *({"data": fix.get("data")} for fix in fixes)]
    definition = meter(vector, tag, plain[0].get("type") if plain else None, value=path, scale=scale_of(every, path),
                       dimensions=dimensions_of(query), **settings)  # fmt: skip
    events = [Outgoing.of(each) for each in sent]
    versions = {each.wire["id"]: [each] for each in events if each.wire}
    corrections = []
    for fix in fixes:
        name = fix.get("void", fix.get("amend"))
        if name not in versions:  # what comes of the correction of an event that nobody sent is the question
            versions[name] = [Outgoing.of((sent[0] if sent else wire(vector, tag, **type_of(vector))) | {"id": name})]
        known = versions[name]
        if "void" in fix and not known[-1].body:
            continue  # it counts for nothing already, and whoever voids it again is told so
        now = None if "void" in fix else _amended(known[0].wire or {}, fix)
        corrections.append(correction(known[-1], now, len(known)))
        known.append(now or Outgoing(body=b"", wire=known[0].wire))
    size = size_of(query)
    moments = moments_of(event.wire for known in versions.values() for event in known if event.wire)
    start, end = range_of(query, moments, size)
    question = Question(meter=definition.meter, start=start, end=end, size=size, group_by=grouped_by(query),
                        zone=zone_of(query), moments=moments,
                        **conditions_of(query))  # fmt: skip
    return _Step(definition, question, events + corrections, sent)


def _amended(was: Wire, fix: Mapping[str, Any]) -> Outgoing:
    """Return an event as it shall count.

    Raises:
        NotOffered: It would be another event.
    """
    if others := set(fix) - {"amend", "data", "time", "reason"}:
        raise NotOffered(f"an amended {', '.join(sorted(others))}: an event keeps its identity and type")
    return Outgoing.of(was | {name: fix[name] for name in ("data", "time") if name in fix})


def _check(books: Books, vector: Vector, steps: list[_Step], fixes: list[Mapping[str, Any]]) -> str:
    values = [_value(books, step) for step in steps]
    names = ["before", *(f"after_{'void' if 'void' in fix else 'amend'}" for fix in fixes)]
    rows, each = vector.expected.get("rows"), vector.expected.get("after_each")
    expected = {
        _AFTER.get(name, name): vector.expected[name]
        for name in vector.expected
        if name.startswith(("before", "after", "value")) and name != "after_each"
    }
    are_refused = is_refusal(vector.expected) or any(name in vector.expected for name in DEAD)
    if not expected and "audit_rows" not in vector.expected and rows is None and each is None and not are_refused:
        raise Incomparable(f"expected holds nothing to compare: {', '.join(vector.expected) or 'nothing'}")
    if set(expected) <= set(names) and len(set(names)) == len(names):
        told = dict(zip(names, values, strict=True))
    elif not expected:
        told = {}
    elif len(expected) == len(values):  # several of one sort: by their order
        told = dict(zip(expected, values, strict=True))
    elif set(expected) == {"value"}:
        told = {"value": values[-1]}
    else:
        raise Incomparable(f"expected holds {', '.join(expected)} for {len(fixes)} corrections")
    if are_refused:
        _check_refused(books, vector, steps[-1])
    else:
        check_corrected(books, [event for step in steps for event in step.events])
    is_sum = steps[0].meter.aggregation == "sum"
    for name in expected:
        check_total(name, told[name], expected[name], is_sum=is_sum, tolerance=vector.tolerance)
    for n, wanted in enumerate(each or ()):
        value = values[n + len(values) - len(each)]
        check_total(f"after_each {n}", value, wanted, is_sum=is_sum, tolerance=vector.tolerance)
    if rows is not None:
        question = steps[-1].question
        check_rows(books.ask(question), rows, RowOptions(vector.tolerance, (question.start, question.end)))
    kept = sum(_versions(books, each) for each in steps[-1].plain)
    if "audit_rows" in vector.expected:
        check_number("audit_rows", kept, vector.expected["audit_rows"])
    return f"{', '.join(map(str, values))}; {kept} versions in the history"


def _check_refused(books: Books, vector: Vector, step: _Step) -> None:
    """Make sure that corrections are dead, and no more of them than the case says.

    Raises:
        Mismatch: None is, or for another reason.
    """
    check_outcomes(books, step.events, vector.expected)
    dead = [event for event in step.events if event.corrects and books.letter(event)]
    if not dead:
        raise Mismatch("expected a correction that is refused, but all of them count")
    for event in dead:
        check_dead(books, event, error_of(vector.expected))


def _value(books: Books, step: _Step) -> Decimal | None:
    rows = books.ask(replace(step.question, group_by=(), size=None))
    return rows[0].value if rows else None


def _versions(books: Books, event: Wire) -> int:
    history = read_history(books.project, books.client, event["subject"], event["source"], event["id"])
    return len(history.versions)
