"""`rounding` and `convert`: one value through a meter that converts and rounds its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from tallyman.meter import Meter
from tallyman.money import plain
from tests.vectors.books import Books, Question
from tests.vectors.building import meter, moments_of, range_of, scale_of, wires
from tests.vectors.compare import as_decimal, check_number, number
from tests.vectors.kinds.outcomes import check_dead, error_of, is_refusal
from tests.vectors.model import Incomparable, NotOffered, Outgoing, Plan, Unknown, Vector, Wire

_ROUNDINGS = {
    "ROUND": "nearest", "NEAREST": "nearest", "HALF_UP": "nearest", "CEIL": "up", "CEILING": "up", "FLOOR": "down",
    "NONE": "exact",
}  # fmt: skip
_FRACTION = re.compile(r"-?[0-9]+/[0-9]*[1-9][0-9]*")
_OTHER_MUTATIONS = ("NUMBOOL", "NOTNUMBOOL", "MAP")
_FACTOR = ("factor", "multiplier")


def plan(vector: Vector) -> Plan:
    """Send the value, and ask a meter with this factor, offset and rounding."""
    query = vector.query
    settings: dict[str, Any] = {}
    for name in _FACTOR:
        if query.get(name) is not None:
            settings["multiply_by"] = str(query[name])
    if query.get("offset") is not None:
        settings["add"] = str(query["offset"])
    if how := query.get("function", query.get("mutate")):
        if str(how).upper() in _OTHER_MUTATIONS:
            raise NotOffered(f"{how}: a meter converts and rounds numbers, and reads none out of truth or names")
        if str(how).upper() not in _ROUNDINGS:
            raise Unknown(f'unknown function "{how}"')
        settings |= {"rounding": _ROUNDINGS[str(how).upper()], "digits": int(query.get("precision") or 0)}
    told = _values(vector)
    try:
        sent = [] if is_refusal(vector.expected) else _sent(vector, told)
        definition = meter(vector, aggregation="sum", value="value", scale=scale_of(sent, "value"), **settings)
    except Unknown as error:
        return _refused(vector, str(error))
    if is_refusal(vector.expected):
        return _plan_dead(vector, definition, told)
    start, end = range_of({}, moments_of(sent))
    question = Question(meter=definition.meter, start=start, end=end)

    def check(books: Books) -> str:
        rows = books.ask(question)
        if not isinstance(vector.expected, Mapping) or "value" not in vector.expected:
            raise Incomparable(f"expected holds no value: {vector.expected!r}")
        value = rows[0].value if rows else None
        check_number("value", value, vector.expected["value"], vector.tolerance)
        return f"value {value}"

    return Plan(meters=[definition], events=[Outgoing.of(each) for each in sent], check=check)


def _refused(vector: Vector, told: str) -> Plan:
    """Return the plan of a case whose meter cannot be.

    Raises:
        Unknown: The case expects an answer.
    """
    if not is_refusal(vector.expected):
        raise Unknown(told)
    return Plan(check=lambda books: f"refused: {told}")


def _plan_dead(vector: Vector, definition: Meter, values: Sequence[Any]) -> Plan:
    """Plan a case whose values are to be refused."""
    events = [Outgoing.of(each) for each in wires(vector, [{"data": {"value": value}} for value in values])]

    def check(books: Books) -> str:
        return "; ".join(check_dead(books, event, error_of(vector.expected)) for event in events)

    return Plan(meters=[definition], events=events, check=check)


def _values(vector: Vector) -> list[Any]:
    told = [event for event in vector.events if isinstance(event, Mapping)] or [vector.query]
    return [_in_digits(event.get("value")) for event in told]


def _sent(vector: Vector, values: Sequence[Any]) -> list[Wire]:
    for value in values:
        number(value)
    return wires(vector, [{"data": {"value": value}} for value in values])


def _in_digits(value: Any) -> Any:
    """Return a value that is told as a fraction as the decimal that an event can carry.

    Raises:
        NotOffered: It has no end of digits.
    """
    if not isinstance(value, str) or not _FRACTION.fullmatch(value):
        return value
    decimal = as_decimal(Fraction(value))
    if Fraction(decimal) != Fraction(value):
        raise NotOffered(f"a value of {value}: an event's value is a decimal, only factor and offset are fractions")
    return plain(decimal)
