"""`rounding` and `convert`: one value through a meter that converts and rounds its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from tallyman.money import plain
from tests.vectors.books import Books, Question
from tests.vectors.building import meter, moments_of, range_of, scale_of, wires
from tests.vectors.compare import as_decimal, check_number, number
from tests.vectors.model import Incomparable, NotOffered, Outgoing, Plan, Unknown, Vector, Wire

_ROUNDINGS = {"ROUND": "nearest", "CEIL": "up", "FLOOR": "down", "NONE": "exact"}
_FRACTION = re.compile(r"-?[0-9]+/[0-9]*[1-9][0-9]*")
_OTHER_MUTATIONS = ("NUMBOOL", "NOTNUMBOOL", "MAP")
_FACTOR = ("factor", "multiplier")


def plan(vector: Vector) -> Plan:
    """Send the value, and ask a meter with this factor, offset and rounding."""
    query, sent = vector.query, _sent(vector)
    settings: dict[str, Any] = {}
    for name in _FACTOR:
        if name in query:
            settings["multiply_by"] = str(query[name])
    if "offset" in query:
        settings["add"] = str(query["offset"])
    if how := query.get("function", query.get("mutate")):
        if str(how).upper() in _OTHER_MUTATIONS:
            raise NotOffered(f"{how}: a meter converts and rounds numbers, and reads none out of truth or names")
        if str(how).upper() not in _ROUNDINGS:
            raise Unknown(f'unknown function "{how}"')
        settings |= {"rounding": _ROUNDINGS[str(how).upper()], "digits": int(query.get("precision") or 0)}
    definition = meter(vector, aggregation="sum", value="value", scale=scale_of(sent, "value"), **settings)
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


def _sent(vector: Vector) -> list[Wire]:
    told = [event for event in vector.events if isinstance(event, Mapping)] or [vector.query]
    values = [_in_digits(event.get("value")) for event in told]
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
