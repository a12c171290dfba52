"""`timestamp` and `window`: what a time means, read from the books; and what the calendar makes of a date."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from tallyman.period import find_zone, month_period, previous_month, start_of_day
from tests.vectors.books import Books
from tests.vectors.building import meter, wire
from tests.vectors.compare import check_number, instant, number
from tests.vectors.kinds.http import time_text
from tests.vectors.kinds.meter import size_of
from tests.vectors.kinds.outcomes import check_dead, error_of, is_refusal
from tests.vectors.model import Incomparable, Mismatch, NotOffered, Outgoing, Plan, Unknown, Vector
from tests.vectors.windows import WindowSize

_MONTH_EDGES = ("month_start", "month_end", "next_month", "last_month")
_ADDED_REMARK = "seconds are added here before an event is sent: what is compared is the instant in the books"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STARTS = ("start", "from", "windowStart", "utc", "date")
_ENDS = ("end", "to", "windowEnd")
_LENGTHS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


def plan_timestamp(vector: Vector) -> Plan:
    """Send an event of that time, and look which time it has in the books."""
    if len(vector.events) != 1 or not isinstance(vector.events[0], Mapping):
        raise Unknown(f"expected one event with a timestamp, got {len(vector.events)}")
    event, how = vector.events[0], str(vector.query.get("parse", "unix"))
    if not re.search("unix|epoch|rfc|iso", how, re.IGNORECASE):
        raise Unknown(f'unknown way to write a time: "{how}"')
    return _booked_at(vector, str(time_text(event.get("timestamp", event.get("time")))))


def _booked_at(vector: Vector, text: str, remarks: Sequence[str] = ()) -> Plan:
    definition = meter(vector, aggregation="latest", scale=0)
    event = Outgoing.of(wire(vector, time=text, data={"value": 1}))

    def check(books: Books) -> str:
        if is_refusal(vector.expected):
            return check_dead(books, event, error_of(vector.expected))
        rows = books.rows("SELECT latest_us FROM usage_booked WHERE meter = %(meter)s", meter=definition.meter)
        if not rows:
            raise Mismatch(f"the event does not count: {books.letter(event)}")
        ours = _EPOCH + timedelta(microseconds=rows[0][0])
        wanted = vector.expected.get("time", vector.expected.get("utc"))
        if wanted is None:
            raise Incomparable(f"expected holds nothing to compare: {', '.join(vector.expected)}")
        if ours != instant(wanted):
            raise Mismatch(f"expected {wanted}, got {ours.isoformat()}")
        return ours.isoformat()

    return Plan(meters=[definition], events=[event], check=check, remarks=list(remarks))


def plan_window(vector: Vector) -> Plan:
    """Plan a `window` case: an instant goes through the books, a question about the calendar to `tallyman.period`."""
    query, expected = vector.query, vector.expected
    if isinstance(expected, Mapping) and set(_LENGTHS) & set(expected) and {"from", "to"} <= set(query):
        zone = str(query.get("zone") or query.get("windowTimeZone") or "UTC")
        span = _moment(str(query["from"]), zone), _moment(str(query["to"]), zone)
        return Plan(check=lambda books: _check_length(vector, *span))
    if not isinstance(expected, Mapping) or "time" not in query:
        raise Unknown("expected a time in the query, and an answer")
    text, zone = str(query["time"]), str(query.get("zone") or query.get("windowTimeZone") or "UTC")
    if "add_months" in query:
        if query.get("clamp") is False:
            raise NotOffered("a month that is too short ends on its last day, never in the next month")
        return Plan(check=lambda books: _check_months(vector, text, int(query["add_months"]), zone))
    if edge := next((name for name in _MONTH_EDGES if query.get(name) or query.get("operation") == name), None):
        return Plan(check=lambda books: _check_month(vector, edge, _moment(text, zone), zone))
    if "add_seconds" in query:
        later = _moment(text, zone) + timedelta(microseconds=int(number(query["add_seconds"]) * 1_000_000))
        return _booked_at(vector, later.isoformat(), [_ADDED_REMARK])
    sizes = (size_of(query, key) for key in ("windowSize", "window", "start_of", "truncate"))
    size = next((size for size in sizes if size), None)
    if size is not None:
        return Plan(check=lambda books: _check_window(vector, _moment(text, zone), size, zone))
    if "utc" not in expected and "time" not in expected:
        raise Unknown(f"a question about a time that nobody here answers: {', '.join(query)}")
    whole = _has_zone(text) or text.replace(".", "", 1).isdigit()
    return _booked_at(vector, text if whole else _moment(text, zone).isoformat())


def _check_length(vector: Vector, start: datetime, end: datetime) -> str:
    """Compare how much time passes between two instants; a zone's clock may have been changed meanwhile."""
    seconds = Decimal((end - start) // timedelta(microseconds=1)) / 1_000_000
    asked = [name for name in _LENGTHS if name in vector.expected]
    for name in asked:
        check_number(name, seconds / _LENGTHS[name], vector.expected[name], vector.tolerance)
    return f"{seconds} s"


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


def _check_month(vector: Vector, name: str, moment: datetime, zone: str) -> str:
    """Find a month's edge; its end is told as its last day, or as the instant at which the next one begins."""
    local = moment.astimezone(find_zone(zone)).date()
    month = previous_month(local) if name == "last_month" else local.strftime("%Y-%m")
    period = month_period(month, zone)
    edges = {"next_month": [period.end], "month_end": [start_of_day(period.last_day, zone), period.end]}
    problem: Mismatch | None = None
    for edge in edges.get(name, [period.start]):
        try:
            return _check_edges(vector, dict.fromkeys((*_STARTS, *_ENDS, "time"), edge), zone)
        except Mismatch as error:
            problem = problem or error
    raise problem or Mismatch(f"{name}: no edge")


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


