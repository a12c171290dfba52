"""`timestamp` and `window`: what a time means, read from the books; and what the calendar makes of a date."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from tallyman.errors import UsageQueryError
from tallyman.money import plain
from tallyman.period import find_zone, month_period, previous_month, start_of_day
from tests.vectors.books import Books
from tests.vectors.building import meter, time_text, wire, zone_of
from tests.vectors.compare import check_number, instant, number
from tests.vectors.kinds.meter import size_of
from tests.vectors.kinds.outcomes import check_dead, error_of, is_refusal
from tests.vectors.model import Incomparable, Mismatch, NotOffered, Outgoing, Plan, Unknown, Vector
from tests.vectors.windows import WindowSize

_MONTH_EDGES = ("month_start", "month_end", "next_month", "last_month")
_ADDED = {"seconds": 1, "minutes": 60, "hours": 3600}
_ADDED_REMARK = "time is added here before an event is sent: what is compared is the instant in the books"
_FINER = ((r"milli|\bms\b", 3), (r"micro|\bus\b", 6), (r"^unix.*nano|\bns\b", 9))
_FINER_REMARK = "an event's time is no whole number of a second's parts: they are written as seconds before it is sent"
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
    told = event.get("timestamp", event.get("time"))
    unit = next((unit for pattern, unit in _FINER if re.search(pattern, how, re.IGNORECASE)), None)
    if unit and str(told).isdigit():
        return _booked_at(vector, plain(Decimal(str(told)).scaleb(-unit)), [_FINER_REMARK])
    # An interface that takes a time without a zone for one of UTC would not refuse it.
    as_told = isinstance(told, str) and is_refusal(vector.expected)
    return _booked_at(vector, told if as_told else time_text(told))


def _booked_at(vector: Vector, text: Any, remarks: Sequence[str] = ()) -> Plan:
    definition = meter(vector, aggregation="latest", scale=0)
    event = Outgoing.of(wire(vector, time=text, data={"value": 1}))

    def check(books: Books) -> str:
        if is_refusal(vector.expected):
            return check_dead(books, event, error_of(vector.expected))
        rows = books.rows("SELECT latest_us FROM usage_booked WHERE meter = %(meter)s", meter=definition.meter)
        letter = books.letter(event)
        if letter and letter.reason == "bad_time":
            raise NotOffered(f"a time in this form: {letter.detail}")
        if not rows:
            raise Mismatch(f"the event does not count: {letter}")
        ours = _EPOCH + timedelta(microseconds=rows[0][0])
        wanted = next((vector.expected[name] for name in ("time", "utc", "unix") if name in vector.expected), None)
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
        zone = zone_of(query)
        span = _moment(str(query["from"]), zone), _moment(str(query["to"]), zone)
        return Plan(check=lambda books: _check_length(vector, *span))
    if not isinstance(expected, Mapping) or "time" not in query:
        raise Unknown("expected a time in the query, and an answer")
    text, zone = str(query["time"]), zone_of(query)
    if is_refusal(expected):
        return _plan_refusal(vector, text, zone)
    months = _months_added(query)
    if months is not None:
        if query.get("clamp") is False:
            raise NotOffered("a month that is too short ends on its last day, never in the next month")
        return Plan(check=lambda books: _check_months(vector, text, months, zone))
    if edge := next((name for name in _MONTH_EDGES if query.get(name) or _operation(query) == name), None):
        return Plan(check=lambda books: _check_month(vector, edge, _moment(text, zone), zone))
    added = [name for name in _ADDED if f"add_{name}" in query]
    if added:
        seconds = sum(number(query[f"add_{name}"]) * _ADDED[name] for name in added)
        later = _moment(text, zone) + timedelta(microseconds=int(seconds * 1_000_000))
        return _booked_at(vector, later.isoformat(), [_ADDED_REMARK])
    sizes = (size_of(query, key) for key in ("windowSize", "window", "start_of", "truncate"))
    size = next((size for size in sizes if size), None)
    if size is not None:
        return Plan(check=lambda books: _check_window(vector, _moment(text, zone), size, zone))
    if "local" in expected:
        return Plan(check=lambda books: _check_local(vector, _moment(text, zone), zone))
    if "utc" not in expected and "time" not in expected:
        raise Unknown(f"a question about a time that nobody here answers: {', '.join(query)}")
    whole = _has_zone(text) or text.replace(".", "", 1).isdigit()
    return _booked_at(vector, text if whole else _moment(text, zone).isoformat())


def _operation(query: Mapping[str, Any]) -> str:
    told = str(query.get("operation", query.get("function", ""))).removeprefix("get_")
    return "last_month" if told in ("previous_month", "prev_month") else told


def _months_added(query: Mapping[str, Any]) -> int | None:
    """Return how many months a query adds or takes away, None if it does neither."""
    lengths = {"add_months": 1, "sub_months": -1, "add_years": 12, "sub_years": -12}
    asked = [name for name in lengths if name in query]
    return sum(int(query[name]) * lengths[name] for name in asked) if asked else None


def _plan_refusal(vector: Vector, text: str, zone: str) -> Plan:
    """Plan a case of which the zone means nothing, or else the time."""
    try:
        find_zone(zone)
    except UsageQueryError as error:
        told = str(error)
        return Plan(check=lambda books: f"refused: {told}")
    return _booked_at(vector, text)


def _check_local(vector: Vector, moment: datetime, zone: str) -> str:
    """Compare what a zone's clocks show at an instant."""
    ours, wanted = moment.astimezone(find_zone(zone)), datetime.fromisoformat(str(vector.expected["local"]))
    shown = ours if wanted.tzinfo else ours.replace(tzinfo=None)
    if shown.isoformat() != wanted.isoformat():
        raise Mismatch(f"expected {wanted.isoformat()}, got {ours.isoformat()}")
    return ours.isoformat()


def _check_length(vector: Vector, start: datetime, end: datetime) -> str:
    """Compare how much time passes between two instants; a zone's clock may have been changed meanwhile."""
    seconds = Decimal(abs(end - start) // timedelta(microseconds=1)) / 1_000_000
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
    ours, there = period.first_day.isoformat(), find_zone(zone)
    local = _moment(str(wanted), zone).astimezone(there)
    has_clock = min(len(text), len(str(wanted))) > len(ours)
    if ours != local.date().isoformat() or (has_clock and local.time() != _moment(text, zone).astimezone(there).time()):
        raise Mismatch(f"expected {wanted}, got {ours}{text[10:]}")
    return f"{ours}{text[10:]}"


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
    asked = [name for name in (*_STARTS, *_ENDS) if name in vector.expected]
    length = _check_length(vector, start, end) if set(_LENGTHS) & set(vector.expected) else ""
    if length and not asked:
        return length
    return _check_edges(vector, dict.fromkeys(_STARTS, start) | dict.fromkeys(_ENDS, end), zone)


def _check_edges(vector: Vector, told: Mapping[str, datetime], zone: str) -> str:
    asked = [name for name in vector.expected if name in told]
    for name in asked:
        wanted = vector.expected[name]
        local = told[name].astimezone(find_zone(zone)).date().isoformat()
        if local != wanted and told[name] != _moment(str(wanted), zone):
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
