"""`correction`: events that are taken back or amended later, with their history kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tallyman.corrections import read_history
from tallyman.meter import Meter
from tests.vectors.books import Books, Question
from tests.vectors.building import aggregation, dotted, meter, moments_of, range_of, scale_of, wires
from tests.vectors.compare import check_number
from tests.vectors.kinds.meter import CORRECTABLE_FORMS, check_corrected, correction
from tests.vectors.model import Incomparable, Mismatch, Outgoing, Plan, Unknown, Vector, Wire


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
    fixes = [event for event in vector.events if _is_correction(event)]
    steps = [_step(vector, plain, fixes[:n], f".{n}") for n in range(len(fixes) + 1)]
    return Plan(
        meters=[step.meter for step in steps],
        events=[event for step in steps for event in step.events],
        forms=CORRECTABLE_FORMS,
        check=lambda books: _check(books, vector, steps, fixes),
    )


def _is_correction(event: Any) -> bool:
    return isinstance(event, Mapping) and bool({"void", "amend"} & set(event))


def _step(vector: Vector, plain: list[Any], fixes: list[Mapping[str, Any]], tag: str) -> _Step:
    query, sent = vector.query, wires(vector, plain, tag)
    path = dotted(query.get("valueProperty", "$.value"))
    settings = aggregation(query.get("aggregation", "SUM"), query)
    every = [*sent, *({"data": fix.get("data")} for fix in fixes)]
    definition = meter(vector, tag, plain[0].get("type") if plain else None, value=path, scale=scale_of(every, path),
                       **settings)  # fmt: skip
    events = [Outgoing.of(each) for each in sent]
    versions = {each.wire["id"]: [each] for each in events if each.wire}
    corrections = []
    for fix in fixes:
        name = fix.get("void", fix.get("amend"))
        if name not in versions:
            raise Unknown(f"a correction of an event that the case has not: {name!r}")
        known = versions[name]
        now = None if "void" in fix else Outgoing.of((known[0].wire or {}) | {"data": fix.get("data")})
        corrections.append(correction(known[-1], now, len(known)))
        known.append(now or Outgoing(body=b"", wire=known[0].wire))
    start, end = range_of(query, moments_of(sent))
    question = Question(meter=definition.meter, start=start, end=end)
    return _Step(definition, question, events + corrections, sent)


def _check(books: Books, vector: Vector, steps: list[_Step], fixes: list[Mapping[str, Any]]) -> str:
    values = [_value(books, step) for step in steps]
    names = ["before", *(f"after_{'void' if 'void' in fix else 'amend'}" for fix in fixes)]
    expected = {name: value for name, value in vector.expected.items() if name.startswith(("before", "after", "value"))}
    if not expected and "audit_rows" not in vector.expected:
        raise Incomparable(f"expected holds nothing to compare: {', '.join(vector.expected) or 'nothing'}")
    if set(expected) <= set(names) and len(set(names)) == len(names):
        told = dict(zip(names, values, strict=True))
    elif len(expected) == len(values):  # several of one sort: by their order
        told = dict(zip(expected, values, strict=True))
    elif set(expected) == {"value"}:
        told = {"value": values[-1]}
    else:
        raise Incomparable(f"expected holds {', '.join(expected)} for {len(fixes)} corrections")
    for name in expected:
        if vector.expected[name] is not None:
            check_number(name, told[name], vector.expected[name], vector.tolerance)
        elif told[name] is not None:
            raise Mismatch(f"{name}: expected nothing, got {told[name]}")
    check_corrected(books, [event for step in steps for event in step.events])
    kept = sum(_versions(books, each) for each in steps[-1].plain)
    if "audit_rows" in vector.expected:
        check_number("audit_rows", kept, vector.expected["audit_rows"])
    return f"{', '.join(map(str, values))}; {kept} versions in the history"


def _value(books: Books, step: _Step) -> Decimal | None:
    rows = books.ask(step.question)
    return rows[0].value if rows else None


def _versions(books: Books, event: Wire) -> int:
    history = read_history(books.project, books.client, event["subject"], event["source"], event["id"])
    return len(history.versions)
