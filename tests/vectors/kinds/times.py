"""`timestamp` and `window`: what a time means, read from the books; and what the calendar makes of a date."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from tallyman.period import find_zone, month_period
from tests.vectors.books import Books
from tests.vectors.building import meter, wire
from tests.vectors.compare import instant
from tests.vectors.kinds.meter import size_of
from tests.vectors.kinds.outcomes import check_dead, error_of
from tests.vectors.model import Incomparable, Mismatch, NotOffered, Outgoing, Plan, Unknown, Vector
from tests.vectors.windows import WindowSize

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STARTS = ("start", "from", "windowStart", "utc", "date")
_ENDS = ("end", "to", "windowEnd")


def plan_timestamp(vector: Vector) -> Plan:
    """Send an event of that time, and look which time it has in the books."""
    if len(vector.events) != 1 or not isinstance(vector.events[0], Mapping):
        raise Unknown(f"expected one event with a timestamp, got {len(vector.events)}")
    event, how = vector.events[0], str(vector.query.get("parse", "unix"))
    if not re.search("unix|epoch|rfc|iso", how, re.IGNORECASE):
        raise Unknown(f'unknown way to write a time: "{how}"')
    return _booked_at(vector, str(event.get("timestamp", event.get("time"))))


def _booked_at(vector: Vector, text: str) -> Plan:
    definition = meter(vector, aggregation="latest", scale=0)
    event = Outgoing.of(wire(vector, time=text, data={"value": 1}))

    def check(books: Books) -> str:
        if error_of(vector.expected) is not None:
            return check_dead(books, event, error_of(vector.expected))
        rows = books.rows("SELECT latest_us FROM usage_booked WHERE meter = %(meter)s", meter=definition.meter)
        if not rows:
            raise Mismatch(f"the event does not count: {books.letter(event)}")
        ours = _EPOCH + timedelta(microseconds=rows[0][0])
        wanted = vector.expected.get("time", vector.expected.get("utc"))
        if ours != instant(wanted):
            raise Mismatch(f"expected {wanted}, got {ours.isoformat()}")
        return ours.isoformat()

    return Plan(meters=[definition], events=[event], check=check)


def plan_window(vector: Vector) -> Plan:
    """Plan a `window` case: an instant goes through the books, a question about the calendar to `tallyman.period`."""
    query, expected = vector.query, vector.expected
    if not isinstance(expected, Mapping) or "time" not in query:
        raise Unknown("expected a time in the query, and an answer")
    text, zone = str(query["time"]), str(query.get("zone") or query.get("windowTimeZone") or "UTC")
    if "add_months" in query:
        if query.get("clamp") is False:
            raise NotOffered("a month that is too short ends on its last day, never in the next month")
        return Plan(check=lambda books: _check_months(vector, text, int(query["add_months"]), zone))
    if "month_start" in query or "next_month" in query:
        return Plan(check=lambda books: _check_month(vector, _moment(text, zone), zone))
    sizes = (size_of(query, key) for key in ("windowSize", "window", "start_of", "truncate"))
    size = next((size for size in sizes if size), None)
    if size is not None:
        return Plan(check=lambda books: _check_window(vector, _moment(text, zone), size, zone))
    if "utc" not in expected and "time" not in expected:
        raise Unknown(f"a question about a time that nobody here answers: {', '.join(query)}")
    whole = _has_zone(text) or text.replace(".", "", 1).isdigit()
    return _booked_at(vector, text if whole else _moment(text, zone).isoformat())


def _check_months(vector: Vector, text: str, months: int, zone: str) -> str:
    """A period that is anchored on the day of a month begins on its last day where the month is shorter."""
    first = date.fromisoformat(text[:10])
    place = first.year * 12 + first.month - 1 + months
    period = month_period(f"{place // 12:04d}-{place % 12 + 1:02d}", zone, first.day)
    wanted = vector.expected.get("date", vector.expected.get("utc"))
    ours = period.first_day.isoformat()
    if ours != str(wanted)[:10]:
        raise Mismatch(f"expected {wanted}, got {ours}")
    return ours


def _check_month(vector: Vector, moment: datetime, zone: str) -> str:
    start, end = WindowSize("month").span(moment, zone)
    edge = start if "month_start" in vector.query else end
    return _check_edges(vector, dict.fromkeys((*_STARTS, *_ENDS, "time"), edge), zone)


def _check_window(vector: Vector, moment: datetime, size: WindowSize, zone: str) -> str:
    """Find the window in which a moment lies."""
    start, end = size.span(moment, zone)
    return _check_edges(vector, dict.fromkeys(_STARTS, start) | dict.fromkeys(_ENDS, end), zone)


def _check_edges(vector: Vector, told: Mapping[str, datetime], zone: str) -> str:
    asked = [name for name in vector.expected if name in told]
    for name in asked:
        wanted = vector.expected[name]
        local = told[name].astimezone(find_zone(zone)).date().isoformat()
        if local != wanted and told[name] != instant(wanted):
            raise Mismatch(f"{name}: expected {wanted}, got {told[name].isoformat()}")
    if not asked:
        raise Incomparable(f"expected holds nothing to compare: {', '.join(vector.expected)}")
    return ", ".join(told[name].isoformat() for name in asked)


def _has_zone(text: str) -> bool:
    return text[10:].find("Z") >= 0 or "+" in text[10:] or "-" in text[10:]


def _moment(text: str, zone: str) -> datetime:
    """Return an instant; a time without a zone is one of the case's zone."""
    if _has_zone(text):
        return instant(text)
    try:
        return datetime.fromisoformat(text).replace(tzinfo=find_zone(zone)).astimezone(UTC)
    except ValueError as error:
        raise Unknown(f"expected a time, the case has {text!r}") from error


