"""`time_weighted`: levels. Also what cases of lives and of sets, which last as well, have in common with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from typing import Any, Literal

from tallyman.meter import find
from tests.vectors.books import Books, Question
from tests.vectors.building import dotted, meter, moments_of, needs_seconds, range_of, scale_of, type_of, wire, zone_of
from tests.vectors.compare import by_our_names, check_number, check_rounded, end_of, groups_of, instant, number
from tests.vectors.kinds.meter import NOBODY_REMARK, conditions_of, dimensions_of, grouped_by, size_of
from tests.vectors.model import Incomparable, Mismatch, Outgoing, Plan, Unknown, Vector, Wire
from tests.vectors.windows import WindowSize

_ANSWERS: tuple[Literal["average", "integral"], ...] = ("average", "integral")
_RESOURCES = ("resource", "resource_id", "item", "instance", "instance_id", "server", "server_id")
MINUTE = timedelta(minutes=1)
UNITS = {"seconds": "1", "minutes": "1/60", "hours": "1/3600", "days": "1/86400"}
_MOST_WINDOWS = 1000
_ATTRIBUTES = ("time", "data", "subject")
_OWN = ("id", "source", "specversion")
_NO_RESOURCES = frozenset(("type", "source", "specversion", "datacontenttype", "unit", "note"))
# Lago's weighted sum adds up what its events say.
_OF_DELTAS = re.compile(r"delta|(?<!time_)weighted_sum", re.IGNORECASE)
Group = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What a case says of a level: as it is, or what it changes by.

    Attributes:
        path: Where in an event's data.
    """

    sent: Sequence[Wire]
    path: str
    is_delta: bool


def plan(vector: Vector) -> Plan:
    """Plan a `time_weighted` case: a level built from changes, or told as it is, over its range."""
    sent = events_of(vector)
    told = vector.query.get("valueProperty")
    path = dotted(told) if told else first_of(("delta", "level", "value"), sent) or "delta"
    start, end = whole_range(vector.query, moments_of(sent))
    sent += _initial(vector, sent, start, path)
    settings: dict[str, Any] = {"value": path, "scale": scale_of(sent, path)}
    settings["dimensions"] = dimensions_of(vector.query)
    taken = {path, *settings["dimensions"].values()}
    is_delta = path == "delta" or (path != "level" and bool(_OF_DELTAS.search(str(vector.query.get("aggregation")))))
    settings |= {"level": "delta"} if is_delta else {"resource": resource_of(sent, taken)}
    question = question_of(vector, "", start, end)
    if not is_delta:
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
        check=lambda books: _check_level(books, vector, question, _Told(sent=sent, path=path, is_delta=is_delta)),
        remarks=[NOBODY_REMARK] if question.subjects == () else [],
    )


def _filters_only(question: Question, name: str) -> bool:
    """Tell whether the events that a condition lets in can be chosen by the meter."""
    used = {*question.group_by, *(name for each in question.exclude for name in each)}
    return name not in used and None not in question.where[name]


def question_of(
    vector: Vector, slug: str, start: datetime, end: datetime, group_by: Sequence[str] | None = None
) -> Question:
    query = vector.query
    size, zone = size_of(query), zone_of(query)
    moments = [] if size is None or size.ours else _window_starts(size, start, end, zone)
    return Question(meter=slug, start=start, end=end, size=size, zone=zone, moments=moments,
                    group_by=grouped_by(query) if group_by is None else group_by, **conditions_of(query))  # fmt: skip


def _window_starts(size: WindowSize, start: datetime, end: datetime, zone: str) -> list[datetime]:
    """Return a moment of each window of a range: what lasts may be in any of them.

    Raises:
        Unknown: They are too many to be asked for one by one.
    """
    starts = [start]
    while (after := size.span(starts[-1], zone)[1]) < end:
        starts.append(after)
        if len(starts) > _MOST_WINDOWS:
            raise Unknown(f"more than {_MOST_WINDOWS} windows that have to be asked for one by one")
    return starts


def _answer(vector: Vector) -> dict[str, str]:
    """Return what is asked of the level, and in which unit; Lago's weighted sum is the average over the period."""
    how = re.sub(r"[\s-]", "_", str(vector.query.get("aggregation", "")).upper())
    if re.search("AVG|AVERAGE|MEAN|(?<!TIME_)WEIGHTED_SUM", how):
        return {"answer": "average"}
    if not re.search("INTEGRAL|SUM|SECONDS|MINUTES|HOURS|DAYS|TIME_WEIGHTED$", how):
        raise Unknown(f'unknown aggregation "{how}"')
    named = next((unit for unit in UNITS if unit.upper() in how), None)
    return {"answer": "integral", "multiply_by": UNITS[named or unit_of_time(vector.query.get("unit") or "seconds")]}


def unit_of_time(name: Any) -> str:
    """Return a unit of time by the name that a peer gives it.

    Raises:
        Unknown: There is none of this name.
    """
    text = str(name).lower()
    found = next((unit for unit in UNITS if text in (unit, unit.removesuffix("s"), unit[0], unit[:3])), None)
    if found is None:
        raise Unknown(f'unknown unit "{name}"')
    return found


def first_of(names: Sequence[str], sent: Sequence[Wire]) -> str:
    """Return the first of some names that any event's data has, "" if none does."""
    return next((name for name in names if any(name in each["data"] for each in sent)), "")


def resource_of(sent: Sequence[Wire], taken: Collection[str], fits: Callable[[str], bool] = bool) -> str:
    """Return the field that names what has a level or a life of its own, "" if the case has but one.

    One that has a name of ours, else one that all events have: of several that which tells most of them apart.

    Args:
        taken: Fields that mean something else.
        fits: Whether a field that all events have may be it.
    """
    if named := first_of(_RESOURCES, sent):
        return named
    everywhere = [name for name in (sent[0]["data"] if sent else ()) if all(name in each["data"] for each in sent)]
    told = {name: [each["data"][name] for each in sent] for name in everywhere}
    rest = [
        name
        for name, values in told.items()
        if name not in _NO_RESOURCES | set(taken) and all(isinstance(value, str | int) for value in values)
        and (name != "id" or is_repeated(values)) and fits(name)
    ]  # fmt: skip
    return max(rest, key=lambda name: len(set(map(str, told[name]))), default="")


def is_repeated(values: Sequence[Any]) -> bool:
    """Tell whether any of some values is there twice, as no event's own id is."""
    return len(set(map(str, values))) < len(values)


def events_of(vector: Vector) -> list[Wire]:
    """Return events whose data are all that the case says of them, besides the time."""
    made = []
    for n, event in enumerate(vector.events):
        if not isinstance(event, Mapping) or "time" not in event:
            raise Unknown(f"an event without a time: {event!r}")
        # Of an event that has data, the id is its own; of one that is its data, it is the id of what lives.
        own = _OWN if isinstance(event.get("data"), Mapping) else ()
        data = {name: value for name, value in event.items() if name not in (*_ATTRIBUTES, *own)}
        named = {"id": f"e{n}"} | type_of(vector) | {name: event[name] for name in ("subject", *own) if name in event}
        if named.get("type") and isinstance(event.get("type"), str):
            named["type"] = event["type"]
        made.append(wire(vector, time=event["time"], data=data | dict(event.get("data") or {}), **named))
    return made


def _initial(vector: Vector, sent: Sequence[Wire], start: datetime, path: str) -> list[Wire]:
    """Return the events that give each group its level from before the range, and let every condition in."""
    query = vector.query
    if not query.get("initial"):
        return []
    names, paths, before = grouped_by(query), dimensions_of(query), (start - MINUTE).isoformat()
    told = query["initial"]
    if isinstance(told, Mapping):
        if len(names) != 1:
            raise Unknown(f"levels by name, where the query groups by {', '.join(names) or 'nothing'}")
        told = [{"groupBy": {names[0]: group}, "value": value} for group, value in told.items()]
    if not isinstance(told, list):  # one level for every group
        groups = {tuple(named_in(each, name, paths) for name in names) for each in sent} or {tuple(None for _ in names)}
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


def named_in(event: Wire, name: str, paths: Mapping[str, str]) -> Any:
    return event["subject"] if name == "subject" else find(event["data"], paths[name])


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for name in above:
        data = data.setdefault(name, {})
    data[last] = value


def _check_level(books: Books, vector: Vector, question: Question, told: _Told) -> str:
    expected = vector.expected
    if not {"values", "value", "rows"} & set(expected):
        raise Incomparable(f"expected holds no values: {', '.join(expected) or 'nothing'}")
    wanted = expected.get("values", expected.get("rows", [expected]))
    is_windowed = question.size is not None
    found = books.ask(question)
    rows = {_place_of(row.groups, row.start if is_windowed else None): row.value for row in found}
    ends = {row.start: row.end for row in found}
    if not question.group_by and question.subjects != () and not is_windowed and not rows and wanted:
        rows = {_place_of({}, None): Decimal(0)}  # nobody ever told a level: it is none
    for each in map(by_our_names, wanted):
        groups, start = groups_of(each, frozenset()), instant(each["windowStart"]) if is_windowed else None
        what = " ".join(map(str, ("level", *(each for each in (groups, start) if each))))
        # Long after a level ended there are no rows of nothing any more.
        nothing = Decimal(0) if start is not None and not groups and question.subjects != () else None
        if start in ends and "windowEnd" in each and ends[start] != end_of(each, question.end):
            raise Mismatch(f"{what}: expected it until {each['windowEnd']}, got it until {ends[start].isoformat()}")
        check_rounded(what, rows.pop(_place_of(groups, start), nothing), each.get("value"))
    if rows:
        raise Mismatch(f"expected {len(wanted)} values, got also {rows}")
    slug = question.meter
    if "closing_level" in expected:
        # The average of a minute in which nothing changes is the level.
        after = replace(question, meter=f"{slug}.average", start=question.end, end=question.end + MINUTE, group_by=())
        check_number("closing level", total_of(books, after) or Decimal(0), expected["closing_level"])
    if "seconds_per_level" in expected:
        integral = total_of(books, replace(question, meter=f"{slug}.integral", group_by=()))
        check_number("integral of the level", integral, _integral(vector, told, expected["seconds_per_level"]))
    return ", ".join(str(each.get("value")) for each in wanted) or "no level"


def _place_of(groups: Mapping[str, str | None], start: datetime | None) -> tuple[Group, datetime | None]:
    return tuple(sorted(groups.items())), start


def _integral(vector: Vector, told: _Told, seconds: Sequence[Any]) -> Decimal:
    """Return the sum of level x seconds that the case expects."""
    inside = sorted(
        (each for each in told.sent if not str(each["id"]).startswith("initial-")), key=lambda each: each["time"]
    )
    changes = [number(vector.query.get("initial", 0)), *(number(find(each["data"], told.path)) for each in inside)]
    levels = list(accumulate(changes)) if told.is_delta else changes
    if len(levels) != len(seconds):
        raise Unknown(f"expected seconds for each of {len(levels)} levels, the case has {len(seconds)}")
    return sum((level * number(each) for level, each in zip(levels, seconds, strict=True)), Decimal(0))


def whole_range(query: Mapping[str, Any], moments: Sequence[datetime]) -> tuple[datetime, datetime]:
    start, end = range_of(query, moments, cuts_events=False)
    if needs_seconds(start, end):
        raise Unknown(f"a level over a range that is not of whole minutes: {start.isoformat()} to {end.isoformat()}")
    return start, end


def total_of(books: Books, question: Question) -> Decimal | None:
    rows = books.ask(replace(question, group_by=(), size=None))
    return rows[0].value if rows else None
