"""`lifecycle`: how long resources were in use, from the events of their lives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tallyman.meter import Meter
from tests.vectors.books import Books
from tests.vectors.building import meter, moments_of
from tests.vectors.compare import RowOptions, check_number, check_rows
from tests.vectors.kinds.levels import (
    UNITS,
    events_of,
    first_of,
    question_of,
    resource_of,
    total_of,
    unit_of_time,
    whole_range,
)
from tests.vectors.kinds.meter import dimensions_of, grouped_by
from tests.vectors.model import Incomparable, Outgoing, Plan, Unknown, Vector, Wire

# Words in the names of events after which a resource is not in use any more, and after which it is, or is again.
# Other events ("update") leave it as it was.
_ENDS = re.compile(
    r"delet|destroy|terminat|remov|stop|(?<![a-z])end(?![a-z])|(?<![a-z])ended|shelve_offload|suspend|pause|detach|release"
    r"|shut.?off|shut.?down|power.?off|cancel|expire|disabl|inactiv|deactiv|dealloc|deprovision"
    r"|finish|complet|succeed|fail|kill|crash|evict|preempt|(?<![a-z])(closed?|down|exit(ed)?|dead)(?![a-z])",
    re.IGNORECASE,
)
_BEGINS = re.compile(
    r"unpause|resum|unshelve|start|undelet|restor|unsuspend|creat|(?<!re)boot|launch|(?<![a-z])(added|add|active|running|in.?use|opened|open|up)(?![a-z])"
    r"|attach|(?<!de)allocat|(?<!de)activat|(?<!de)provision|enabl|power.?on",
    re.IGNORECASE,
)
_STATES = ("state", "event", "op", "action", "status", "event_type")


def plan(vector: Vector) -> Plan:
    """Plan a case: seconds, or another unit of time, in total or by group."""
    sent = events_of(vector)
    vector = _grouped(vector, sent)
    query = vector.query
    start, end = whole_range(query, moments_of(sent))
    path = first_of(_STATES, sent) or ("type" if len({str(each["data"].get("type")) for each in sent}) > 1 else "event")
    usual = unit_of_time(query.get("unit") or "seconds")
    asked = [name for name in (*UNITS, "value") if name in vector.expected]
    rows = _expected_rows(vector, usual)
    units = {unit for unit, _ in rows} | {usual if name == "value" else name for name in asked}
    resource, states = _resource(sent, path, tuple(dimensions_of(query).values())), query.get("states")
    after_its_end = [] if states else _mark_after_the_end(sent, path, resource)
    definitions = {
        unit: life_of(vector, sent, path, states, tag=f".{unit}", multiply_by=UNITS[unit], resource=resource)
        for unit in sorted(units or {usual})
    }
    questions = {unit: question_of(vector, each.meter, start, end) for unit, each in definitions.items()}

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
            total = total_of(books, questions[unit]) or Decimal(0)
            check_number(name, total, vector.expected[name], vector.tolerance)
            told.append(f"{total} {unit}")
        if not told:
            raise Incomparable(f"expected holds nothing to compare: {', '.join(vector.expected) or 'nothing'}")
        return ", ".join(told)

    return Plan(
        meters=list(definitions.values()),
        events=[Outgoing.of(each) for each in sent],
        check=check,
        remarks=[_ENDED_REMARK] if after_its_end else [],
    )


def _grouped(vector: Vector, sent: Sequence[Wire]) -> Vector:
    """Return a case that expects figures by name as one that is grouped by the field in which the names are."""
    figures = next((told for unit in UNITS if isinstance(told := vector.expected.get(unit), Mapping)), None)
    if figures is None or grouped_by(vector.query):
        return vector
    names = {name for each in sent for name in each["data"]}
    having = [name for name in sorted(names) if set(figures) <= {str(each["data"].get(name)) for each in sent}]
    return replace(vector, query=vector.query.having({"groupBy": having[:1]}))


def _resource(sent: Sequence[Wire], path: str, asked: Sequence[str]) -> str:
    """Return the field that names a resource; one of those by which is asked if there is no other."""

    def fits(name: str) -> bool:
        """Tell whether what has one value of it always begins alike: a flavor that comes with a resize does not."""
        first = {str(each["data"].get(name)): str(each["data"].get(path)) for each in reversed(_in_order(sent))}
        return len(set(first.values())) == 1 or all(map(_BEGINS.search, map(_stem, first.values())))

    return resource_of(sent, {path, *asked}, fits) or resource_of(sent, {path}, fits)


def _mark_after_the_end(sent: Sequence[Wire], path: str, resource: str) -> list[Wire]:
    """Rename what happens to a resource after its end, until it begins again; return these events."""
    in_use: dict[tuple[str, str], bool] = {}
    renamed = []
    for each in _in_order(sent):
        name, of = str(each["data"].get(path)), (str(each["subject"]), str(each["data"].get(resource)))
        if _begins(name) or _ends(name) or of not in in_use:
            in_use[of] = not _ends(name)
        elif not in_use[of]:
            each["data"][path] = f"{name} of what has ended"
            renamed.append(each)
    return renamed


def _in_order(sent: Sequence[Wire]) -> list[Wire]:
    return sorted(sent, key=lambda each: next(iter(moments_of([each])), datetime.min.replace(tzinfo=UTC)))


def _expected_rows(vector: Vector, usual: str) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return the rows that a case expects, with their unit: told as rows, or as a figure for each group's name."""
    expected, names = vector.expected, grouped_by(vector.query)
    told: list[tuple[str, list[Mapping[str, Any]]]] = []
    for unit in UNITS:
        if isinstance(expected.get(unit), Mapping):
            if len(names) != 1:
                raise Unknown(f"{unit} of groups, where the query groups by {', '.join(names) or 'nothing'}")
            figures = expected[unit].items()
            told.append((unit, [{"groupBy": {names[0]: group}, "value": value} for group, value in figures]))
    rows = expected.get("rows", expected.get("values"))
    if rows is not None:
        units = {unit for unit in UNITS for row in rows if unit in row} or {usual}
        told += [(unit, [_as_row(row, unit, names) for row in rows]) for unit in sorted(units)]
    return told


def _as_row(row: Mapping[str, Any], unit: str, names: Sequence[str]) -> Mapping[str, Any]:
    groups = {name: row[name] for name in names if name in row and name != "subject"}
    rest = {name: value for name, value in row.items() if name not in (*UNITS, *groups)}
    return rest | ({"groupBy": groups} if groups else {}) | {"value": row.get(unit, row.get("value"))}


def life_of(
    vector: Vector, sent: Sequence[Wire], path: str, states: Any = None, *, tag: str = "", **settings: Any
) -> Meter:
    """Return a meter of the time that resources spend in use."""
    named = {str(each["data"].get(path)) for each in sent}
    counting = tuple(map(str, states)) if states else tuple(sorted(name for name in named if not _ends(name)))
    settings["dimensions"] = dimensions_of(vector.query) | settings.get("dimensions", {})
    kind = vector.query.get("eventType")
    made = meter(vector, event_type=kind, aggregation="lifecycle", state=path, states=counting or ("none",), **settings)
    return replace(made, meter=f"{made.meter}{tag}")


def _begins(name: str) -> bool:
    return bool(_BEGINS.search(_stem(name)))


def _ends(name: str) -> bool:
    return not _begins(name) and bool(_ENDS.search(_stem(name)))


def _stem(name: str) -> str:
    # "compute.instance.create.end" ends the creating, not the instance.
    return re.sub(r"[._](start|end)$", "", name)


_ENDED_REMARK = "what happens to a resource after its end does not bring it back: it has a state that does not count"
