"""`set` and `active_days`: which items are in a set, and on how many days they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from tallyman.meter import Meter
from tests.vectors.books import Books
from tests.vectors.building import DEFAULTS, moments_of, zone_of
from tests.vectors.compare import Row, check_number, check_rounded, groups_of, instant, number
from tests.vectors.kinds.levels import MINUTE, Group, events_of, named_in, question_of, whole_range
from tests.vectors.kinds.lives import life_of
from tests.vectors.kinds.meter import dimensions_of, grouped_by
from tests.vectors.model import Incomparable, Mismatch, NotOffered, Outgoing, Plan, Unknown, Vector, Wire
from tests.vectors.windows import WindowSize

_OPS = ("op", "operation_type", "operation", "action")
_ITEM = "item_of_group"  # the resource where an item may be in several groups at once


def _items(vector: Vector) -> tuple[list[Wire], Meter]:
    """Return the events of a set's items and a meter in which each is a resource, for each group and condition."""
    sent, names = events_of(vector), dimensions_of(vector.query)
    for each in sent:
        each["data"]["op"] = _op(each)
        groups = [named_in(each, name, names) for name in names if name != "item"]
        each["data"] |= {_ITEM: str([*groups, each["data"].get("item")])}
    return sent, life_of(vector, sent, "op", ("add",), resource=_ITEM, dimensions={"item": "item"})


def _op(event: Wire) -> str:
    """Return whether an event adds its item or removes it; one that does not say adds it."""
    told = next((event["data"][name] for name in _OPS if name in event["data"]), "add")
    return "add" if str(told).lower() in ("add", "added") else "remove"


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
    question = replace(question_of(vector, definition.meter, start, start + MINUTE, _grouped(vector)), size=None)

    def check(books: Books) -> str:
        counts = _count(row for row in books.ask(question) if row.value >= MINUTE.seconds)
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
        return max(moments, default=instant(DEFAULTS["time"])).replace(second=0, microsecond=0) + MINUTE
    end = instant(vector.query["to"])
    floor = end.replace(second=0, microsecond=0)
    ceiling = floor if floor == end else floor + MINUTE
    if not any(end <= moment < ceiling + MINUTE for moment in moments):
        return ceiling
    if not any(floor - MINUTE < moment < end for moment in moments):
        return floor - MINUTE
    raise Unknown(f"a set that changes in the minutes before and after {end.isoformat()}")


def plan_days(vector: Vector) -> Plan:
    """Plan an `active_days` case: on how many days each item was in the set for any time at all."""
    if any(isinstance(event, Mapping) and "value" in event for event in vector.events):
        raise NotOffered("values are not prorated by whole days: a level counts from its instant on")
    _check_aggregation(vector, "active days")
    query = vector.query
    sent, definition = _items(vector)
    start, end = whole_range(query, moments_of(sent))
    question = replace(
        question_of(vector, definition.meter, start, end, _grouped(vector)),
        size=WindowSize("day"),
        zone=zone_of(query),
    )

    def check(books: Books) -> str:
        counts = _count(row for row in books.ask(question) if row.value > 0)
        days, basis, wanted = sum(counts.values()), int(number(query.get("basis_days", 1))), vector.expected
        if not {"fraction", "days", "value", "values", "rows"} & set(wanted):
            raise Incomparable(f"expected holds nothing to compare: {', '.join(wanted) or 'nothing'}")
        if "days" in wanted:
            check_number("days", days, wanted["days"])
        if "fraction" in wanted and Fraction(days, basis) != Fraction(str(wanted["fraction"])):
            raise Mismatch(f"days: expected {wanted['fraction']}, got {days}/{basis}")
        _check_counts(vector, counts, basis)
        return f"{days}/{basis}"

    return Plan(meters=[definition], events=[Outgoing.of(each) for each in sent], check=check)


def _check_aggregation(vector: Vector, known: str) -> None:
    name = vector.query.get("aggregation", known)
    if known.upper() not in str(name).upper():
        raise Unknown(f'unknown aggregation "{name}"')
