"""`meter`: events in, one query, rows out. Also what a case of another kind asks in the same words."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from tallyman.corrections import write_correction
from tallyman.errors import UsageQueryError
from tallyman.meter import CORRECTABLE, Aggregation, Meter, dimension_text
from tests.vectors.books import SECOND, Books, Question
from tests.vectors.building import (
    SECONDS_REMARK,
    aggregation,
    dotted,
    mark_seconds,
    meter,
    moments_of,
    needs_seconds,
    range_of,
    raw_of,
    scale_of,
    wires,
    zone_of,
)
from tests.vectors.compare import RowOptions, check_number, check_rows, check_total
from tests.vectors.kinds.outcomes import check_outcomes, is_refusal
from tests.vectors.model import (
    FORMS,
    Form,
    Incomparable,
    Mismatch,
    NotOffered,
    Outgoing,
    Plan,
    Unknown,
    Vector,
    Wire,
)
from tests.vectors.windows import WindowSize, named_size

_REPORTS = re.compile(r"\b(one|two|three|[0-9]+) duplicate-with-different-content")
CORRECTABLE_FORMS: tuple[Form, ...] = ("single", "batch", "lines")  # in binary mode other bytes count than were sent
_WORDS = {"one": 1, "two": 2, "three": 3}
_CUSTOMERS = ("filterCustomerId", "customer", "customer_id", "external_customer_id")
_INCLUDES = ("include", "filters", "filter", "filterGroupBy")
_EQUAL, _UNEQUAL = ("eq", "in"), ("ne", "neq", "nin")
_DEDUPES = {"keep_first": "first", "first_wins": "first", "keep_last": "last", "last_wins": "last"}
_TOTALS = ("count", "sum", "avg", "min", "max", "latest", "unique_count")


@dataclass(slots=True)
class Going:
    """One go of a case: its events in a series of their own, a meter, and the question to that meter."""

    sent: list[Wire]
    meter: Meter
    question: Question
    events: list[Outgoing]


def plan(vector: Vector) -> Plan:
    """Send the events and ask the query; also after each event where the case says what is expected then."""
    expected = vector.expected
    if not isinstance(expected, Mapping):
        raise Incomparable(f"expected holds nothing to compare: {expected!r}")
    name = vector.query.get("aggregation", "SUM")
    whole = go(vector, vector.events, name)
    goes = [whole]
    made = Plan(check=lambda books: check(books, vector, whole, totals, steps))
    steps = []
    for n, value in enumerate(expected.get("after_each", ()), 1):
        step = go(vector, vector.events[:n], name, f".{n}")
        steps.append((step, value))
        goes.append(step)
    totals = {each: go(vector, vector.events, each, f".{each}") for each in _TOTALS if each in expected}
    if "value" in expected:
        totals["value"] = go(vector, vector.events, name, ".value")
    goes += totals.values()
    made.meters = [each.meter for each in goes]
    made.events = [event for each in goes for event in each.events]
    made.remarks = remarks_of(vector, whole)
    made.forms = forms_of(made.events)
    return made


def forms_of(events: Sequence[Outgoing]) -> Sequence[Form]:
    """Return the forms in which events may travel."""
    if any(event.wire is None and not event.corrects for event in events):
        return ("single",)  # bytes that are no event would spoil a whole batch
    return CORRECTABLE_FORMS if any(event.corrects for event in events) else FORMS


def go(vector: Vector, events: Sequence[Any], name: Any, tag: str = "") -> Going:
    """Prepare one go of a case.

    Args:
        name: The aggregation, as a peer calls it.
        tag: Tells it from the case's other goes.
    """
    query = vector.query
    raw = [(n, found) for n, found in enumerate(map(raw_of, events)) if found]
    events = [event for event in events if raw_of(event) is None]
    sent = wires(vector, events, tag)
    size = size_of(query)
    start, end = range_of(query, moments_of(sent), size)
    settings = aggregation(name, query)
    if "valueProperty" in query and settings["aggregation"] != "count":
        settings |= {"value": dotted(query["valueProperty"]), "scale": scale_of(sent, dotted(query["valueProperty"]))}
    dimensions = dimensions_of(query)
    if needs_seconds(start, end):
        dimensions |= mark_seconds(sent)
    kind = query.get("eventType") or (events[0].get("type") if events else None)
    definition = meter(vector, tag, kind, dimensions=dimensions, **settings)
    question = _question(vector, definition.meter, sent, (start, end), size)
    going = outgoing(sent, definition.aggregation, _kept(query.get("dedupe")))
    for place, event in raw:
        going.insert(place, event)
    return Going(sent, definition, question, going)


def window_named(query: Mapping[str, Any]) -> Any:
    """Return the length of the windows that a query asks for, None if it asks for a total."""
    return next((query[name] for name in ("windowSize", "window_size", "granularity") if query.get(name)), None)


def size_of(query: Mapping[str, Any], key: str = "windowSize") -> WindowSize | None:
    """Return the size of the windows that a query asks for, None for one total."""
    name = window_named(query) if key == "windowSize" else query.get(key)
    if not name:
        return None
    week = next((query[name] for name in ("week_start", "weekStart") if query.get(name)), "MONDAY")
    if str(week).upper() not in ("MONDAY", "MON", "1"):
        raise NotOffered(f"weeks that begin on {week}: they begin on Monday")
    anchors = ("anchor_day", "billing_anchor", "billingAnchor", "anchor")
    return named_size(str(name), next((query[name] for name in anchors if query.get(name)), None))


def outgoing(sent: Sequence[Wire], how: Aggregation, kept: str) -> list[Outgoing]:
    """Return the events to send.

    Here the first copy of an event wins. Where the case's rule is that the last one replaces it, the producer that
    means this sends an amendment instead of a second copy; of an aggregation that forgets its single values nothing
    can be amended, and the copy that the case keeps goes first.
    """
    if kept in ("first", "none"):  # a peer that counts every copy sends nothing else; here the first one counts
        return [Outgoing.of(wire) for wire in sent]
    if kept != "last":
        raise Unknown(f'unknown dedupe "{kept}"')
    return _amended(sent) if how in CORRECTABLE else _last_first(sent)


def _kept(told: Any) -> str:
    """Return which copy of an event a case keeps: the first, the last, or none for all of them."""
    if told is None or isinstance(told, bool):
        return "none" if told is False else "first"
    return _DEDUPES.get(told, str(told))


def _key(wire: Wire) -> tuple[Any, ...]:
    # A copy with another time is another event to the peer, and to us the same one with other content.
    return tuple(wire.get(name) for name in ("subject", "source", "id", "time"))


def _amended(sent: Sequence[Wire]) -> list[Outgoing]:
    made: list[Outgoing] = []
    versions: dict[tuple[Any, ...], list[Outgoing]] = {}
    for wire in sent:
        event, known = Outgoing.of(wire), versions.setdefault(_key(wire), [])
        made.append(correction(known[-1], event, len(known)) if known and known[-1].body != event.body else event)
        known.append(event)
    return made


def _last_first(sent: Sequence[Wire]) -> list[Outgoing]:
    last = {_key(wire): n for n, wire in enumerate(sent)}
    kept = set(last.values())
    first = [Outgoing.of(wire) for n, wire in enumerate(sent) if n in kept]
    return first + [Outgoing.of(wire) for n, wire in enumerate(sent) if n not in kept]


def correction(was: Outgoing, now: Outgoing | None, version: int) -> Outgoing:
    """Return the correction that makes an event count as `now`, or not at all."""
    name, time = f"{(was.wire or {}).get('id')}/{version}", str((was.wire or {}).get("time"))
    text = now.body if now else b""
    return Outgoing(body=write_correction(was.body, text, event_id=name, time=time, reason="as the case says"),
                    corrects=version)  # fmt: skip


def check(
    books: Books, vector: Vector, whole: Going, totals: Mapping[str, Going], steps: Sequence[tuple[Going, Any]]
) -> str:
    """Compare all that the case expects.

    Raises:
        Mismatch: Something differs, or nothing could be compared.
    """
    expected, told = vector.expected, []
    check_corrected(books, whole.events)
    if is_refusal(expected):
        return check_refused(books, whole.question)
    wanted = expected.get("rows", expected.get("values"))
    if wanted is None and isinstance(expected.get("csv"), str):
        wanted = list(csv.DictReader(io.StringIO(expected["csv"])))
    if wanted is not None:
        rows = books.ask(whole.question)
        check_rows(rows, wanted, _options(vector, whole))
        told.append(f"{len(rows)} rows")
    for n, (step, value) in enumerate(steps, 1):
        check_number(f"after event {n}", _one(books, step.question), value, vector.tolerance)
    for name, step in totals.items():
        value, is_sum = _one(books, step.question), step.meter.aggregation == "sum"
        check_total(name, value, expected[name], is_sum=is_sum, tolerance=vector.tolerance)
        told.append(f"{name} {value}")
    if reports := _REPORTS.search(" ".join(map(str, expected.values()))):
        conflicts = sum(map(books.is_conflict, whole.events))
        check_number("copies with other content", conflicts, _WORDS.get(reports[1], reports[1]))
        told.append(f"{conflicts} copy with other content refused and reported")
    if outcomes := check_outcomes(books, whole.events, expected):
        told.append(outcomes)
    if not told and not steps:
        raise Incomparable(f"expected holds nothing to compare: {', '.join(expected) or 'nothing'}")
    return ", ".join(told)


def check_corrected(books: Books, events: Sequence[Outgoing]) -> None:
    """Make sure that each correction was accepted."""
    for letter in (books.letter(event) for event in events if event.corrects):
        if letter:
            raise Mismatch(f"a correction is dead: {letter.reason}: {letter.detail}")


def check_refused(books: Books, question: Question) -> str:
    """Make sure that a question is refused, with a sentence."""
    try:
        rows = books.ask(question)
    except UsageQueryError as error:
        return f"refused: {error}"
    raise Mismatch(f"expected a refusal, got {'; '.join(map(str, rows)) or 'no row'}")


def _one(books: Books, question: Question) -> Decimal | None:
    rows = books.ask(replace(question, group_by=(), size=None))
    return rows[0].value if rows else None


def conditions_of(query: Mapping[str, Any]) -> dict[str, Any]:
    """Return for whom and under which conditions a query asks, as a question has them."""
    include, unwanted = _by_operator(included_by(query))
    where = _conditions(include)
    told = next((query[name] for name in ("subjects", "subject", *_CUSTOMERS) if query.get(name) is not None), None)
    by_condition = where.pop("subject", None)
    subjects: Any = [told] if isinstance(told, str) else told
    if subjects is None and by_condition is not None:
        subjects = [value for value in by_condition if value is not None]
    return {
        "subjects": None if subjects is None else tuple(map(str, subjects)),
        "where": where,
        # One that names no value leaves out nothing; `read_usage` takes none that fits everything.
        "exclude": tuple(
            _conditions(each)
            for each in (*excluded_by(query), *unwanted)
            if any(values != [] for values in each.values())
        ),
    }


def included_by(query: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the conditions that an event must meet: name -> value, values, or an operator and its operand.

    Raises:
        Unknown: They are told in another way.
    """
    told: Any = next((query[name] for name in _INCLUDES if query.get(name)), {})
    if isinstance(told, list) and all(isinstance(each, Mapping) and {"key", "values"} <= set(each) for each in told):
        return {each["key"]: each["values"] for each in told}
    if not isinstance(told, Mapping):
        raise Unknown(f"expected conditions by name, the case has {told!r}")
    return told


def _by_operator(told: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return conditions as values that are wanted, and as conditions that leave an event out.

    Raises:
        NotOffered: A condition compares otherwise than for equality.
    """
    wanted: dict[str, Any] = {}
    unwanted: list[dict[str, Any]] = []
    for name, value in told.items():
        operators = value if isinstance(value, Mapping) else {"eq": value}
        for sign, operand in operators.items():
            operator = str(sign).lower().removeprefix("$")
            if operator in _EQUAL and name not in wanted:
                wanted[name] = operand
            elif operator in _UNEQUAL:
                unwanted.append({name: operand})
            else:
                raise NotOffered(f'{name}: a condition "{sign}": a dimension has one of some values, or none of them')
    return wanted, unwanted


def excluded_by(query: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the conditions of which an event that fits one is left out."""
    told = query.get("exclude") or ()
    return [told] if isinstance(told, Mapping) else list(told)


def _question(
    vector: Vector, slug: str, sent: Sequence[Wire], span: tuple[datetime, datetime], size: WindowSize | None
) -> Question:
    query = vector.query
    return Question(
        meter=slug,
        start=span[0],
        end=span[1],
        **conditions_of(query),
        group_by=grouped_by(query),
        size=size,
        zone=zone_of(query),
        moments=tuple(moments_of(sent)),
    )


def _conditions(wanted: Mapping[str, Any]) -> dict[str, tuple[str | None, ...]]:
    listed = {name: values if isinstance(values, list) else [values] for name, values in wanted.items()}
    return {name: tuple(dimension_text(name, value) for value in values) for name, values in listed.items()}


def grouped_by(query: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that a query groups by."""
    told = query.get("groupBy") or ()
    return (told,) if isinstance(told, str) else tuple(map(str, told))


def dimensions_of(query: Mapping[str, Any]) -> dict[str, str]:
    """Return what is grouped by or filtered on, as dimensions: name -> path."""
    grouped = query.get("groupBy") or ()
    paths = dict(grouped) if isinstance(grouped, Mapping) else {name: name for name in grouped_by(query)}
    for condition in (included_by(query), *excluded_by(query)):
        paths |= {name: name for name in condition if name not in paths}
    return {name: dotted(path) for name, path in paths.items() if name != "subject"}


def _options(vector: Vector, going: Going) -> RowOptions:
    names = [name for name in going.meter.dimensions if name != SECOND]
    return RowOptions(vector.tolerance, (going.question.start, going.question.end), blank_groups(names, going))


def blank_groups(names: Sequence[str], going: Going) -> frozenset[str]:
    """Return the groups that no event has as "": there, an expected "" can only mean that the key is missing."""
    datas = [wire["data"] for wire in going.sent if isinstance(wire.get("data"), Mapping)]
    return frozenset(name for name in names if not any(data.get(going.meter.dimensions[name]) == "" for data in datas))


def remarks_of(vector: Vector, whole: Going) -> list[str]:
    """Return which rules of ours bend a case."""
    remarks = [NOBODY_REMARK] if whole.question.subjects == () else []
    if any(event.corrects for event in whole.events):
        remarks.append("the first copy wins here: a copy that replaces another one is sent as its amendment")
    elif [event.wire for event in whole.events if event.wire] != whole.sent:
        remarks.append(
            f"the first copy wins here, and of a meter with {whole.meter.aggregation} nothing can be amended: "
            "the copy that the case keeps was sent first"
        )
    if SECOND in whole.meter.dimensions:
        remarks.append(SECONDS_REMARK)
    return remarks + _blank_remark(vector, whole)


def _blank_remark(vector: Vector, whole: Going) -> list[str]:
    rows = vector.expected.get("rows") or ()
    expects_blank = any("" in (row.get("groupBy") or {}).values() for row in rows if isinstance(row, Mapping))
    blank = expects_blank and blank_groups(list(whole.meter.dimensions), whole)
    return [BLANK_REMARK] if blank else []


NOBODY_REMARK = "an empty list of subjects asks nobody, and read_usage is not asked: to it, none named are all"
BLANK_REMARK = 'a missing group key is null here, never "": the case may choose, and expects ""'
