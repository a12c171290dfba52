"""What lasts: `time_weighted`, `lifecycle`, `set` and `active_days`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from typing import Any, Literal

from tallyman.meter import Meter
from tests.vectors.books import Books, Question
from tests.vectors.building import meter, moments_of, needs_seconds, range_of, scale_of, wire
from tests.vectors.compare import (
    RowOptions,
    check_number,
    check_rounded,
    check_rows,
    groups_of,
    instant,
    number,
)
from tests.vectors.model import Incomparable, Mismatch, NotOffered, Outgoing, Plan, Unknown, Vector, Wire
from tests.vectors.windows import WindowSize

_ANSWERS: tuple[Literal["average", "integral"], ...] = ("average", "integral")
_RESOURCES = ("resource", "resource_id", "item")
_MINUTE = timedelta(minutes=1)
_UNITS = {"seconds": "1", "minutes": "1/60", "hours": "1/3600", "days": "1/86400"}
# Words in the names of events after which a resource is not in use any more.
_ENDS = re.compile(r"delet|destroy|terminat|remov|stop|end|shelve_offload|suspend|pause|detach|release", re.IGNORECASE)
_BEGINS = re.compile(r"unpause|resume|unshelve|start", re.IGNORECASE)


def plan_level(vector: Vector) -> Plan:
    """Plan a `time_weighted` case: a level built from changes, or told as it is, over its range."""
    sent = _events(vector)
    path = _first_of(("delta", "level", "value"), sent) or "delta"
    start, end = _whole_range(vector.query, moments_of(sent))
    sent += _initial(vector, sent, start, path)
    settings: dict[str, Any] = {"value": path, "scale": scale_of(sent, path)}
    settings |= {"level": "delta"} if path == "delta" else {"resource": _first_of(_RESOURCES, sent)}
    settings["dimensions"] = {name: name for name in vector.query.get("groupBy") or ()}
    asked = meter(vector, aggregation="time_weighted", **_answer(vector), **settings)
    both = [replace(asked, meter=f"{asked.meter}.{answer}", answer=answer, multiply_by="1") for answer in _ANSWERS]
    question = Question(meter=asked.meter, start=start, end=end, group_by=tuple(settings["dimensions"]))
    return Plan(
        meters=[asked, *both],
        events=[Outgoing.of(each) for each in sent],
        check=lambda books: _check_level(books, vector, question, sent, path),
    )


def _answer(vector: Vector) -> dict[str, str]:
    """Return what is asked of the level, and in which unit."""
    how = str(vector.query.get("aggregation", "")).upper()
    if "AVG" in how or "AVERAGE" in how:
        return {"answer": "average"}
    if not re.search("INTEGRAL|SUM|SECONDS|HOURS|TIME_WEIGHTED$", how):
        raise Unknown(f'unknown aggregation "{how}"')
    return {"answer": "integral", "multiply_by": _UNITS["hours"] if "HOURS" in how else "1"}


def _first_of(names: Sequence[str], sent: Sequence[Wire]) -> str:
    """Return the first of some names that any event's data has, "" if none does."""
    return next((name for name in names if any(name in each["data"] for each in sent)), "")


def _events(vector: Vector) -> list[Wire]:
    """Return events whose data are all that the case says of them, besides the time."""
    made = []
    for n, event in enumerate(vector.events):
        if not isinstance(event, Mapping) or "time" not in event:
            raise Unknown(f"an event without a time: {event!r}")
        data = {name: value for name, value in event.items() if name not in ("time", "data", "subject")}
        named = {"subject": event["subject"]} if "subject" in event else {}
        made.append(wire(vector, id=f"e{n}", time=event["time"], data=data | dict(event.get("data") or {}), **named))
    return made


def _initial(vector: Vector, sent: Sequence[Wire], start: datetime, path: str) -> list[Wire]:
    """Return the events that give each group its level from before the range."""
    if not vector.query.get("initial"):
        return []
    names, before = vector.query.get("groupBy") or (), (start - _MINUTE).isoformat()
    told = vector.query["initial"]
    if not isinstance(told, list):  # one level for every group
        groups = {tuple(each["data"].get(name) for name in names) for each in sent} or {()}
        told = [{"groupBy": dict(zip(names, group, strict=True)), "value": told} for group in sorted(groups, key=str)]
    return [
        wire(vector, id=f"initial-{n}", time=before,
             data={path: each["value"]} | {k: v for k, v in (each.get("groupBy") or {}).items() if v is not None})
        for n, each in enumerate(told)
    ]  # fmt: skip


def _check_level(books: Books, vector: Vector, question: Question, sent: Sequence[Wire], path: str) -> str:
    expected = vector.expected
    if not isinstance(expected, Mapping) or not {"values", "value"} & set(expected):
        raise Incomparable(f"expected holds no values: {expected!r}")
    wanted = expected.get("values", [expected])
    rows = {tuple(sorted(row.groups.items())): row.value for row in books.ask(question)}
    for each in wanted:
        group = tuple(sorted(groups_of(each, frozenset()).items()))
        check_rounded(f"level{dict(group) or ''}", rows.pop(group, None), each.get("value"))
    if rows:
        raise Mismatch(f"expected {len(wanted)} values, got also {rows}")
    slug = question.meter
    if "closing_level" in expected:
        # The average of a minute in which nothing changes is the level.
        after = replace(question, meter=f"{slug}.average", start=question.end, end=question.end + _MINUTE, group_by=())
        check_number("closing level", _total(books, after), expected["closing_level"])
    if "seconds_per_level" in expected:
        integral = _total(books, replace(question, meter=f"{slug}.integral", group_by=()))
        check_number("integral of the level", integral, _integral(vector, sent, path, expected["seconds_per_level"]))
    return ", ".join(str(each.get("value")) for each in wanted)


def _integral(vector: Vector, sent: Sequence[Wire], path: str, seconds: Sequence[Any]) -> Decimal:
    """Return the sum of level x seconds that the case expects."""
    inside = sorted((each for each in sent if not each["id"].startswith("initial-")), key=lambda each: each["time"])
    changes = [number(vector.query.get("initial", 0)), *(number(each["data"][path]) for each in inside)]
    levels = list(accumulate(changes)) if path == "delta" else changes
    if len(levels) != len(seconds):
        raise Unknown(f"expected seconds for each of {len(levels)} levels, the case has {len(seconds)}")
    return sum((level * number(each) for level, each in zip(levels, seconds, strict=True)), Decimal(0))


def plan_lifecycle(vector: Vector) -> Plan:
    """Plan a `lifecycle` case: how long resources were in use, from the events of their lives."""
    query, sent = vector.query, _events(vector)
    start, end = _whole_range(query, moments_of(sent))
    path = _first_of(("state", "event", "op"), sent) or "event"
    unit = next((name for name in _UNITS if name in vector.expected), "seconds")
    definition = _life(vector, sent, path, query.get("states"), multiply_by=_UNITS[unit])
    question = Question(meter=definition.meter, start=start, end=end, group_by=tuple(query.get("groupBy") or ()))

    def check(books: Books) -> str:
        if "rows" in vector.expected:
            rows = books.ask(question)
            check_rows(rows, vector.expected["rows"], RowOptions(vector.tolerance, (start, end)))
            return f"{len(rows)} rows"
        told = _total(books, question) or Decimal(0)
        check_number(unit, told, vector.expected.get(unit), vector.tolerance)
        return f"{told} {unit}"

    return Plan(meters=[definition], events=[Outgoing.of(each) for each in sent], check=check)


def _life(vector: Vector, sent: Sequence[Wire], path: str, states: Any = None, **settings: Any) -> Meter:
    """Return a meter of the time that resources spend in use."""
    named = {str(each["data"].get(path)) for each in sent}
    counting = tuple(map(str, states)) if states else tuple(sorted(name for name in named if _is_in_use(name)))
    dimensions = {name: name for name in vector.query.get("groupBy") or ()} | settings.pop("dimensions", {})
    return meter(vector, aggregation="lifecycle", state=path, states=counting or ("none",),
                 resource=_first_of(_RESOURCES, sent), dimensions=dimensions, **settings)  # fmt: skip


def _is_in_use(name: str) -> bool:
    # "compute.instance.create.end" ends the creating, not the instance.
    stem = re.sub(r"[._](start|end)$", "", name)
    return bool(_BEGINS.search(stem)) or not _ENDS.search(stem)


def plan_set(vector: Vector) -> Plan:
    """Plan a `set` case: which items are in a set at the end, each a resource that is in or out."""
    _check_aggregation(vector, "ACTIVE_UNIQUE")
    sent = _events(vector)
    definition = _life(vector, sent, "op", ("add",), dimensions={"item": "item"})
    last = instant(vector.query["to"]) if "to" in vector.query else max(moments_of(sent)) + _MINUTE
    start = last.replace(second=0, microsecond=0)
    question = Question(meter=definition.meter, start=start, end=start + _MINUTE, group_by=("item",))

    def check(books: Books) -> str:
        active = sum(row.value == 60 for row in books.ask(question))
        check_number("items in the set", active, vector.expected.get("value"))
        return f"{active} items"

    return Plan(meters=[definition], events=[Outgoing.of(each) for each in sent], check=check)


def plan_days(vector: Vector) -> Plan:
    """Plan an `active_days` case: on how many days each item was in the set for any time at all."""
    if any(isinstance(event, Mapping) and "value" in event for event in vector.events):
        raise NotOffered("values are not prorated by whole days: a level counts from its instant on")
    _check_aggregation(vector, "active days")
    query, sent = vector.query, _events(vector)
    start, end = _whole_range(query, moments_of(sent))
    definition = _life(vector, sent, "op", ("add",), dimensions={"item": "item"})
    question = Question(meter=definition.meter, start=start, end=end, group_by=("item",), size=WindowSize("day"),
                        zone=str(query.get("windowTimeZone") or query.get("zone") or "UTC"))  # fmt: skip

    def check(books: Books) -> str:
        days = sum(row.value > 0 for row in books.ask(question))
        basis = int(number(query.get("basis_days", 1)))
        wanted = vector.expected
        if "fraction" in wanted and Fraction(days, basis) != Fraction(str(wanted["fraction"])):
            raise Mismatch(f"days: expected {wanted['fraction']}, got {days}/{basis}")
        for each in wanted.get("values", [wanted] if "value" in wanted else ()):
            check_rounded("active days", Decimal(days) / basis, each.get("value"))
        return f"{days}/{basis}"

    return Plan(meters=[definition], events=[Outgoing.of(each) for each in sent], check=check)


def _check_aggregation(vector: Vector, known: str) -> None:
    name = vector.query.get("aggregation", known)
    if known not in str(name):
        raise Unknown(f'unknown aggregation "{name}"')


def _whole_range(query: Mapping[str, Any], moments: Sequence[datetime]) -> tuple[datetime, datetime]:
    start, end = range_of(query, moments)
    if needs_seconds(start, end):
        raise Unknown(f"a level over a range that is not of whole minutes: {start.isoformat()} to {end.isoformat()}")
    return start, end


def _total(books: Books, question: Question) -> Decimal | None:
    rows = books.ask(replace(question, group_by=()))
    return rows[0].value if rows else None
