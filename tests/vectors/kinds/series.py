"""`series`: points of one series, and one figure per window of a length or of a calendar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args

from tallyman.meter import Meter, Of
from tests.vectors.books import SECOND, Books, Question
from tests.vectors.building import (
    SECONDS_REMARK,
    aggregation,
    mark_seconds,
    meter,
    moments_of,
    needs_seconds,
    range_of,
    scale_of,
    time_text,
    wire,
    zone_of,
)
from tests.vectors.compare import Row, close, instant, number
from tests.vectors.model import FORMS, Incomparable, Mismatch, NotOffered, Outgoing, Plan, Unknown, Vector, Wire
from tests.vectors.windows import WindowSize, calendar_size, named_size, sized

_WINDOW = "window"  # the dimension that names a window shorter than a minute
_INCARNATION = "incarnation"  # what changes when a counter begins again
_POINT = ("time", "timestamp", "value")
_INCARNATIONS = (_INCARNATION, "start_time", "start", "boot_id", "container_id", "epoch")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plan(vector: Vector) -> Plan:
    """Send each point as an event whose identity is its time, as it is in a series."""
    query, sent = vector.query, [_wire(vector, point) for point in vector.events]
    zone = zone_of(query)
    method, rate = str(query.get("method", query.get("aggregation", ""))), bool(query.get("rate"))
    if method.lower().startswith("rate:"):
        method, rate = method[5:], True
    elif method.lower() == "increase":
        method, rate = "sum", True
    seconds, size = _size(query)
    start, end = range_of(query, moments_of(sent), size or WindowSize("minute"))
    dimensions = mark_seconds(sent) if needs_seconds(start, end) else {}
    if seconds and size is None:
        dimensions |= _mark_windows(sent, seconds)
    if rate and dimensions:
        raise Unknown("the increments of a counter by the second: its dimensions would make a counter of each reading")
    settings = aggregation(method, query)
    if rate:
        if settings["aggregation"] not in get_args(Of):
            raise NotOffered(f"the {method} of a counter's increments: they are made into {', '.join(get_args(Of))}")
        lives = any(_INCARNATION in event["data"] for event in sent)
        settings |= {"aggregation": "counter", "of": settings["aggregation"]}
        settings |= {"incarnation": _INCARNATION} if lives else {}
        whose = [name for event in sent for name in _whose(event["data"])]
        settings |= {"resource": whose[0]} if whose else {}
    definition = meter(vector, value="value", scale=scale_of(sent, "value"), dimensions=dimensions, **settings)
    moments = tuple(moments_of(sent))
    question = Question(meter=definition.meter, start=start, end=end, size=size, moments=moments, zone=zone,
                        group_by=(_WINDOW,) if _WINDOW in dimensions else ())  # fmt: skip
    return Plan(
        meters=[definition],
        events=[Outgoing.of(each) for each in sent],
        forms=("arrow", *FORMS),
        check=lambda books: _check(books, vector, question, seconds),
        remarks=_remarks(definition, size),
    )


def _wire(vector: Vector, point: Any) -> Wire:
    data: dict[str, Any] = {}
    if isinstance(point, Mapping):
        lives = [str(point[name]) for name in _INCARNATIONS if point.get(name) is not None]
        data = {name: told for name, told in point.items() if name not in _POINT and not isinstance(told, dict | list)}
        data |= {_INCARNATION: lives[0]} if lives else {}
        point = _as_point(point)
    if not isinstance(point, list | tuple) or len(point) != 2:
        raise Unknown(f"expected a point [time, value], the case has {point!r}")
    name = " ".join((_identity(point[0]), *(str(data[each]) for each in _whose(data))))
    return wire(vector, id=name, time=time_text(point[0]), data={"value": point[1]} | data)


def _whose(data: Mapping[str, Any]) -> list[str]:
    """Return the names of what tells a point's series from others of the case."""
    return [name for name in data if name not in (*_POINT, *_INCARNATIONS)]


def _identity(told: Any) -> str:
    """Return what tells a point from others of its series: its instant, however it is written."""
    try:
        return instant(told).isoformat()
    except Unknown:
        return str(told)


def _as_point(told: Any) -> Any:
    """Return a point as [time, value], however it is told."""
    return [told.get("time", told.get("timestamp")), told.get("value")] if isinstance(told, Mapping) else told


def _size(query: Mapping[str, Any]) -> tuple[Decimal | None, WindowSize | None]:
    """Return the length of windows in seconds, and the size to ask for; None where that is finer than a minute."""
    if "calendar" in query:
        return None, calendar_size(str(query["calendar"]))
    told = query.get("granularity_s", query.get("granularity"))
    if isinstance(told, str) and not told.replace(".", "", 1).isdigit():
        return None, named_size(told)
    seconds = number(told)
    if seconds <= 0:
        raise Unknown(f"windows of {seconds} s")
    return seconds, sized(int(seconds)) if seconds % 60 == 0 else None


def _mark_windows(sent: Sequence[Wire], seconds: Decimal) -> dict[str, str]:
    for event in sent:
        for moment in moments_of([event]):
            event["data"] = event["data"] | {_WINDOW: _floor(moment, seconds).isoformat()}
    return {_WINDOW: _WINDOW}


def _floor(moment: datetime, seconds: Decimal) -> datetime:
    length = timedelta(microseconds=int(seconds * 1_000_000))
    return _EPOCH + (moment - _EPOCH) // length * length


def _check(books: Books, vector: Vector, question: Question, seconds: Decimal | None) -> str:
    expected = vector.expected
    if not isinstance(expected, Mapping) or "points" not in expected:
        raise Incomparable(f"expected holds no points: {expected!r}")
    ours = sorted((_start(row, seconds, question.zone), row.value) for row in books.ask(question))
    wanted = sorted((instant(time), number(value)) for time, value in map(_as_point, expected["points"]))
    _check_weeks(vector, [time for time, _ in ours], [time for time, _ in wanted])
    if len(ours) != len(wanted):
        raise Mismatch(f"expected {len(wanted)} points, got {_shown(ours) or 'none'}")
    for (time, value), (wanted_time, wanted_value) in zip(ours, wanted, strict=True):
        if time != wanted_time or not close(value, wanted_value, vector.tolerance):
            raise Mismatch(f"expected {wanted_value} at {wanted_time.isoformat()}, got {value} at {time.isoformat()}")
    return _shown(ours) or "no points"


def _shown(points: Sequence[tuple[datetime, Decimal]]) -> str:
    return "; ".join(f"{value} at {time:%Y-%m-%dT%H:%M:%SZ}" for time, value in points)


def _start(row: Row, seconds: Decimal | None, zone: str) -> datetime:
    """Return where a row's window begins, also where the range cuts it."""
    if row.groups.get(_WINDOW):
        return instant(row.groups[_WINDOW])
    return row.start if seconds is None or zone != "UTC" else _floor(row.start, seconds)


def _check_weeks(vector: Vector, ours: Sequence[datetime], wanted: Sequence[datetime]) -> None:
    weekly = str(vector.query.get("calendar", "")).upper() == "W"
    if weekly and wanted and not any(moment.weekday() == 0 for moment in wanted):
        raise NotOffered("weeks begin on Monday")


def _remarks(definition: Meter, size: WindowSize | None) -> list[str]:
    remarks = [SECONDS_REMARK] if {SECOND, _WINDOW} & set(definition.dimensions) else []
    if size is not None and size.ours is None:
        remarks.append("no window of this length is offered: each of its ranges is asked for as a total")
    return remarks
