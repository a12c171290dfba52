"""What lasts: `time_weighted`, `lifecycle`, `set` and `active_days`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from typing import Any, Literal

from tallyman.meter import Meter, find
from tests.vectors.books import Books, Question
from tests.vectors.building import DEFAULTS, meter, moments_of, needs_seconds, range_of, scale_of, type_of, wire
from tests.vectors.compare import (
    Row,
    RowOptions,
    check_number,
    check_rounded,
    check_rows,
    groups_of,
    instant,
    number,
)
from tests.vectors.kinds.meter import NOBODY_REMARK, conditions_of, dimensions_of, grouped_by, size_of
from tests.vectors.model import Incomparable, Mismatch, NotOffered, Outgoing, Plan, Unknown, Vector, Wire
from tests.vectors.windows import WindowSize

_ANSWERS: tuple[Literal["average", "integral"], ...] = ("average", "integral")
_RESOURCES = ("resource", "resource_id", "item", "instance", "instance_id", "server", "server_id")
_MINUTE = timedelta(minutes=1)
_UNITS = {"seconds": "1", "minutes": "1/60", "hours": "1/3600", "days": "1/86400"}
# Words in the names of events after which a resource is not in use any more.
_ENDS = re.compile(
    r"delet|destroy|terminat|remov|stop|(?<![a-z])end(?![a-z])|(?<![a-z])ended|shelve_offload|suspend|pause|detach|release"
    r"|shut.?off|shut.?down|power.?off|cancel|expire",
    re.IGNORECASE,
)
_BEGINS = re.compile(r"unpause|resume|unshelve|start", re.IGNORECASE)
_ATTRIBUTES = ("time", "data", "subject")
_ITEM = "item_of_group"  # the resource where an item may be in several groups at once
Group = tuple[tuple[str, str | None], ...]


def plan_level(vector: Vector) -> Plan:
    """Plan a `time_weighted` case: a level built from changes, or told as it is, over its range."""
    sent = _events(vector)
    path = _first_of(("delta", "level", "value"), sent) or "delta"
    start, end = _whole_range(vector.query, moments_of(sent))
    sent += _initial(vector, sent, start, path)
    settings: dict[str, Any] = {"value": path, "scale": scale_of(sent, path)}
    settings |= {"level": "delta"} if path == "delta" else {"resource": _first_of(_RESOURCES, sent)}
    question = _question(vector, "", start, end)
    settings["dimensions"] = dimensions_of(vector.query)
    if path != "delta":
        # A dimension would keep a level of its own for each value; what is filtered only is one level.
        only = [name for name in question.where if _filters_only(question, name)]
        settings["where"] = {settings["dimensions"].pop(name): question.where[name] for name in only}
        question = replace(question, where={k: v for k, v in question.where.items() if k not in only})
    asked = meter(vector, event_type=vector.query.get("eventType"), aggregation="time_weighted", **_answer(vector),
                  **settings)  # fmt: skip
    both = [replace(asked, meter=f"{asked.meter}.{answer}", answer=answer, multiply_by="1") for answer in _ANSWERS]
    question = replace(question, meter=asked.meter)
    return Plan(
        meters=[asked, *both],
        events=[Outgoing.of(each) for each in sent],
        check=lambda books: _check_level(books, vector, question, sent, path),
        remarks=[NOBODY_REMARK] if question.subjects == () else [],
    )


def _filters_only(question: Question, name: str) -> bool:
    """Tell whether the events that a condition lets in can be chosen by the meter."""
    used = {*question.group_by, *(name for each in question.exclude for name in each)}
    return name not in used and None not in question.where[name]


def _question(
    vector: Vector, slug: str, start: datetime, end: datetime, group_by: Sequence[str] | None = None
) -> Question:
    query = vector.query
    size = size_of(query)
    if size is not None and size.ours is None:
        raise Unknown(f"windows of a \"{query['windowSize']}\" of what lasts")
    return Question(meter=slug, start=start, end=end, size=size, zone=str(query.get("windowTimeZone") or "UTC"),
                    group_by=grouped_by(query) if group_by is None else group_by, **conditions_of(query))  # fmt: skip


def _answer(vector: Vector) -> dict[str, str]:
    """Return what is asked of the level, and in which unit; Lago's weighted sum is the average over the period."""
    how = re.sub(r"[\s-]", "_", str(vector.query.get("aggregation", "")).upper())
    if re.search("AVG|AVERAGE|MEAN|WEIGHTED_SUM", how):
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
        data = {name: value for name, value in event.items() if name not in _ATTRIBUTES}
        named = type_of(vector) | ({"subject": event["subject"]} if "subject" in event else {})
        if named.get("type") and isinstance(event.get("type"), str):
            named["type"] = event["type"]
        made.append(wire(vector, id=f"e{n}", time=event["time"], data=data | dict(event.get("data") or {}), **named))
    return made


def _initial(vector: Vector, sent: Sequence[Wire], start: datetime, path: str) -> list[Wire]:
    """Return the events that give each group its level from before the range, and let every condition in."""
    query = vector.query
    if not query.get("initial"):
        return []
    names, paths, before = grouped_by(query), dimensions_of(query), (start - _MINUTE).isoformat()
    told = query["initial"]
    if not isinstance(told, list):  # one level for every group
        groups = {tuple(_named(each, name, paths) for name in names) for each in sent} or {tuple(None for _ in names)}
        told = [{"groupBy": dict(zip(names, group, strict=True)), "value": told} for group in sorted(groups, key=str)]
    asked = conditions_of(query)
    common = {name: values[0] for name, values in asked["where"].items() if values}
    usual = {"subject": asked["subjects"][0]} if asked["subjects"] else {}
    made = []
    for n, each in enumerate(told):
        fields = common | {name: value for name, value in (each.get("groupBy") or {}).items() if value is not None}
        named = usual | ({"subject": fields.pop("subject")} if "subject" in fields else {})
        data: dict[str, Any] = {path: each["value"]}
        for name, value in fields.items():
            _put(data, paths.get(name, name), value)
        made.append(wire(vector, id=f"initial-{n}", time=before, data=data, **type_of(vector) | named))
    return made


def _named(event: Wire, name: str, paths: Mapping[str, str]) -> Any:
    return event["subject"] if name == "subject" else find(event["data"], paths[name])


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for name in above:
        data = data.setdefault(name, {})
    data[last] = value


def _check_level(books: Books, vector: Vector, question: Question, sent: Sequence[Wire], path: str) -> str:
    expected = vector.expected
    if not {"values", "value", "rows"} & set(expected):
        raise Incomparable(f"expected holds no values: {', '.join(expected) or 'nothing'}")
    wanted = expected.get("values", expected.get("rows", [expected]))
    is_windowed = question.size is not None
    rows = {_place_of(row.groups, row.start if is_windowed else None): row.value for row in books.ask(question)}
    if not question.group_by and question.subjects != () and not is_windowed and not rows and wanted:
        rows = {_place_of({}, None): Decimal(0)}  # nobody ever told a level: it is none
    for each in wanted:
        groups, start = groups_of(each, frozenset()), instant(each["windowStart"]) if is_windowed else None
        what = " ".join(map(str, ("level", *(each for each in (groups, start) if each))))
        check_rounded(what, rows.pop(_place_of(groups, start), None), each.get("value"))
    if rows:
        raise Mismatch(f"expected {len(wanted)} values, got also {rows}")
    slug = question.meter
    if "closing_level" in expected:
        # The average of a minute in which nothing changes is the level.
        after = replace(question, meter=f"{slug}.average", start=question.end, end=question.end + _MINUTE, group_by=())
        check_number("closing level", _total(books, after) or Decimal(0), expected["closing_level"])
    if "seconds_per_level" in expected:
        integral = _total(books, replace(question, meter=f"{slug}.integral", group_by=()))
        check_number("integral of the level", integral, _integral(vector, sent, path, expected["seconds_per_level"]))
    return ", ".join(str(each.get("value")) for each in wanted) or "no level"


def _place_of(groups: Mapping[str, str | None], start: datetime | None) -> tuple[Group, datetime | None]:
    return tuple(sorted(groups.items())), start


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
    usual = str(query.get("unit", "seconds")).lower()
    if usual not in _UNITS:
        raise Unknown(f'unknown unit "{usual}"')
    asked = [name for name in (*_UNITS, "value") if name in vector.expected]
    rows = _expected_rows(vector, usual)
    units = {unit for unit, _ in rows} | {usual if name == "value" else name for name in asked}
    definitions = {
        unit: _life(vector, sent, path, query.get("states"), tag=f".{unit}", multiply_by=_UNITS[unit])
        for unit in sorted(units or {usual})
    }
    questions = {unit: _question(vector, each.meter, start, end) for unit, each in definitions.items()}

    def check(books: Books) -> str:
        told = []
        for unit, wanted in rows:
            found = books.ask(questions[unit])
            check_rows(found, wanted, RowOptions(vector.tolerance, (start, end)))
            told.append(f"{len(found)} rows in {unit}")
        for name in asked:
            if isinstance(vector.expected[name], Mapping):
                continue  # told as rows
            unit = usual if name == "value" else name
            total = _total(books, questions[unit]) or Decimal(0)
            check_number(name, total, vector.expected[name], vector.tolerance)
            told.append(f"{total} {unit}")
        if not told:
            raise Incomparable(f"expected holds nothing to compare: {', '.join(vector.expected) or 'nothing'}")
        return ", ".join(told)

    return Plan(meters=list(definitions.values()), events=[Outgoing.of(each) for each in sent], check=check)


def _expected_rows(vector: Vector, usual: str) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return the rows that a case expects, with their unit: told as rows, or as a figure for each group's name."""
    expected, names = vector.expected, grouped_by(vector.query)
    told: list[tuple[str, list[Mapping[str, Any]]]] = []
    for unit in _UNITS:
        if isinstance(expected.get(unit), Mapping):
            if len(names) != 1:
                raise Unknown(f"{unit} of groups, where the query groups by {', '.join(names) or 'nothing'}")
            figures = expected[unit].items()
            told.append((unit, [{"groupBy": {names[0]: group}, "value": value} for group, value in figures]))
    rows = expected.get("rows", expected.get("values"))
    if rows is not None:
        units = {unit for unit in _UNITS for row in rows if unit in row} or {usual}
        told += [(unit, [_as_row(row, unit, names) for row in rows]) for unit in sorted(units)]
    return told


def _as_row(row: Mapping[str, Any], unit: str, names: Sequence[str]) -> Mapping[str, Any]:
    groups = {name: row[name] for name in names if name in row and name != "subject"}
    rest = {name: value for name, value in row.items() if name not in (unit, *groups)}
    return rest | ({"groupBy": groups} if groups else {}) | {"value": row.get(unit, row.get("value"))}


def _life(
    vector: Vector, sent: Sequence[Wire], path: str, states: Any = None, *, tag: str = "", **settings: Any
) -> Meter:
    """Return a meter of the time that resources spend in use."""
    named = {str(each["data"].get(path)) for each in sent}
    counting = tuple(map(str, states)) if states else tuple(sorted(name for name in named if _is_in_use(name)))
    settings = {"resource": _first_of(_RESOURCES, sent)} | settings
    settings["dimensions"] = dimensions_of(vector.query) | settings.get("dimensions", {})
    kind = vector.query.get("eventType")
    made = meter(vector, event_type=kind, aggregation="lifecycle", state=path, states=counting or ("none",), **settings)
    return replace(made, meter=f"{made.meter}{tag}")


def _is_in_use(name: str) -> bool:
    # "compute.instance.create.end" ends the creating, not the instance.
    stem = re.sub(r"[._](start|end)$", "", name)
    return bool(_BEGINS.search(stem)) or not _ENDS.search(stem)


def _items(vector: Vector) -> tuple[list[Wire], Meter]:
    """Return the events of a set's items and a meter in which each is a resource, for each group and condition."""
    sent, names = _events(vector), dimensions_of(vector.query)
    for each in sent:
        groups = [_named(each, name, names) for name in names if name != "item"]
        each["data"] = each["data"] | {_ITEM: str([*groups, each["data"].get("item")])}
    return sent, _life(vector, sent, "op", ("add",), resource=_ITEM, dimensions={"item": "item"})


def _check_counts(vector: Vector, counts: Mapping[Group, int], basis: int = 1) -> None:
    """Compare a number for each group, or one for all together where the case has no groups.

    Raises:
        Mismatch: A number differs, or a group is there that nobody expected.
    """
    wanted = vector.expected.get("values", vector.expected.get("rows"))
    if wanted is None and "value" not in vector.expected:
        return  # told as a fraction
    wanted = [vector.expected] if wanted is None else wanted
    left = dict(counts)
    for each in wanted:
        group = tuple(sorted(groups_of(each, frozenset()).items()))
        count = left.pop(group, 0) if group else sum(counts.values())
        check_rounded(f"number{dict(group) or ''}", Decimal(count) / basis, each.get("value"))
        if not group:
            left = {}
    if others := {group: count for group, count in left.items() if count}:
        raise Mismatch(f"expected {len(wanted)} values, got also {others}")


def _count(rows: Iterable[Row]) -> dict[Group, int]:
    """Return how many rows each group has, items apart."""
    return dict(Counter(tuple(sorted((k, v) for k, v in row.groups.items() if k != "item")) for row in rows))


def _grouped(vector: Vector) -> tuple[str, ...]:
    return ("item", *(name for name in grouped_by(vector.query) if name != "item"))


def plan_set(vector: Vector) -> Plan:
    """Plan a `set` case: which items are in a set at the end, each a resource that is in or out."""
    _check_aggregation(vector, "ACTIVE_UNIQUE")
    sent, definition = _items(vector)
    start = _quiet_minute(vector, moments_of(sent))
    question = replace(_question(vector, definition.meter, start, start + _MINUTE, _grouped(vector)), size=None)

    def check(books: Books) -> str:
        counts = _count(row for row in books.ask(question) if row.value >= _MINUTE.seconds)
        if not {"value", "values", "rows"} & set(vector.expected):
            raise Incomparable(f"expected holds no values: {', '.join(vector.expected) or 'nothing'}")
        _check_counts(vector, counts)
        return f"{sum(counts.values())} items"

    return Plan(meters=[definition], events=[Outgoing.of(each) for each in sent], check=check)


def _quiet_minute(vector: Vector, moments: Sequence[datetime]) -> datetime:
    """Return the start of a minute at the end of the range, in which nothing changes.

    Raises:
        Unknown: There is none: something changes in the minutes before and after the end.
    """
    if "to" not in vector.query:
        return max(moments, default=instant(DEFAULTS["time"])).replace(second=0, microsecond=0) + _MINUTE
    end = instant(vector.query["to"])
    floor = end.replace(second=0, microsecond=0)
    ceiling = floor if floor == end else floor + _MINUTE
    if not any(end <= moment < ceiling + _MINUTE for moment in moments):
        return ceiling
    if not any(floor - _MINUTE < moment < end for moment in moments):
        return floor - _MINUTE
    raise Unknown(f"a set that changes in the minutes before and after {end.isoformat()}")


def plan_days(vector: Vector) -> Plan:
    """Plan an `active_days` case: on how many days each item was in the set for any time at all."""
    if any(isinstance(event, Mapping) and "value" in event for event in vector.events):
        raise NotOffered("values are not prorated by whole days: a level counts from its instant on")
    _check_aggregation(vector, "active days")
    query = vector.query
    sent, definition = _items(vector)
    start, end = _whole_range(query, moments_of(sent))
    question = replace(
        _question(vector, definition.meter, start, end, _grouped(vector)),
        size=WindowSize("day"),
        zone=str(query.get("windowTimeZone") or query.get("zone") or "UTC"),
    )

    def check(books: Books) -> str:
        counts = _count(row for row in books.ask(question) if row.value > 0)
        days, basis, wanted = sum(counts.values()), int(number(query.get("basis_days", 1))), vector.expected
        if not {"fraction", "value", "values", "rows"} & set(wanted):
            raise Incomparable(f"expected holds nothing to compare: {', '.join(wanted) or 'nothing'}")
        if "fraction" in wanted and Fraction(days, basis) != Fraction(str(wanted["fraction"])):
            raise Mismatch(f"days: expected {wanted['fraction']}, got {days}/{basis}")
        _check_counts(vector, counts, basis)
        return f"{days}/{basis}"

    return Plan(meters=[definition], events=[Outgoing.of(each) for each in sent], check=check)


def _check_aggregation(vector: Vector, known: str) -> None:
    name = vector.query.get("aggregation", known)
    if known.upper() not in str(name).upper():
        raise Unknown(f'unknown aggregation "{name}"')


def _whole_range(query: Mapping[str, Any], moments: Sequence[datetime]) -> tuple[datetime, datetime]:
    start, end = range_of(query, moments, cuts_events=False)
    if needs_seconds(start, end):
        raise Unknown(f"a level over a range that is not of whole minutes: {start.isoformat()} to {end.isoformat()}")
    return start, end


def _total(books: Books, question: Question) -> Decimal | None:
    rows = books.ask(replace(question, group_by=(), size=None))
    return rows[0].value if rows else None
