"""From a case's events and query to our events and meters: every case gets types, sources and meters of its own."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, get_args

from tallyman.errors import EventError
from tallyman.event import parse_time
from tallyman.meter import MAX_SCALE, Aggregation, Bucket, Meter, find
from tallyman.money import plain
from tests.vectors.books import SECOND, second_text
from tests.vectors.compare import instant, number
from tests.vectors.model import NotOffered, Outgoing, Unknown, Vector, Wire
from tests.vectors.windows import WindowSize, named_size

DEFAULTS: Wire = {"source": "src", "type": "t", "subject": "s1", "time": "2026-01-01T00:00:00Z"}
_NAMES: dict[str, Aggregation] = {
    "SUM": "sum", "SUM_WITH_MULTIPLIER": "sum", "COUNT": "count", "AVG": "avg", "AVERAGE": "avg", "MEAN": "avg",
    "MIN": "min", "MAX": "max", "LATEST": "latest", "LAST": "latest", "FIRST": "first", "UNIQUE_COUNT": "unique_count",
    "COUNT_UNIQUE": "unique_count", "NUNIQUE": "unique_count", "STD": "stddev", "STDDEV": "stddev",
    "STDDEV_SAMP": "stddev", "STANDARD_DEVIATION": "stddev",
    "COUNT_DISTINCT": "unique_count", "DISTINCT_COUNT": "unique_count", "DISTINCT": "unique_count",
    "UNIQUE": "unique_count", "CARDINALITY": "unique_count",
    "MEDIAN": "percentile", "PERCENTILE": "percentile", "QUANTILE": "percentile", "SUM_OF_MAXIMA": "sum_of_maxima",
    "COUNTER": "counter", "INCREASE": "counter",
}  # fmt: skip
_NO_ZONE = re.compile(r"T[0-9:.]+$")
_ZONES = ("windowTimeZone", "zone", "time_zone", "timeZone", "timezone")
_REPEATS = ("repeat", "id_template")
_NAMES_OF_FIELDS = {"timestamp": "time"}
_NOT_OFFERED = (
    "STDDEV_POP", "VARIANCE", "MODE", "RANGE", "RATE", "DELTA", "ABS", "NEGATIVE", "ROLLING", "MOVING_AVERAGE",
)  # fmt: skip
_BUCKETS: tuple[Bucket, ...] = get_args(Bucket)
# One step of a JSONPath: a name after a point, or any text in quotes and brackets.
_STEP = re.compile(r"""\.(?P<bare>[^.\[\]*?()]+)|\['(?P<single>[^']+)'\]|\["(?P<double>[^"]+)"\]""")
_PERCENTILE = re.compile(
    r"(?:P|PERCENTILE_?)([0-9]+(?:\.[0-9]+)?)|([0-9]+(?:\.[0-9]+)?)(?:PCT|(?:ST|ND|RD|TH)_PERCENTILE)"
)


def aggregation(name: Any, query: Mapping[str, Any]) -> dict[str, Any]:
    """Return the meter's settings for an aggregation by the name that a peer gives it.

    Raises:
        Unknown: There is none of this name.
        NotOffered: It is one of those that no meter has.
    """
    text = re.sub(r"[\s-]+", "_", str(name).strip().upper()).removesuffix("_AGG")
    settings: dict[str, Any] = {}
    if share := _PERCENTILE.fullmatch(text):
        settings = {"aggregation": "percentile", "percentile": share[1] or share[2]}
    elif text in _NAMES:
        settings = {"aggregation": _NAMES[text]}
    elif text in _NOT_OFFERED:
        raise NotOffered(f"{name}: no aggregation of a meter")
    else:
        raise Unknown(f'unknown aggregation "{name}"')
    if text == "MEDIAN":
        settings["percentile"] = "50"
    elif text == "PERCENTILE":
        settings["percentile"] = str(query.get("percentile", "50"))
    elif text == "QUANTILE":
        settings["percentile"] = plain(number(query.get("quantile", "0.5")) * 100)
    bucket = bucket_named(query)
    if bucket is not None and settings["aggregation"] in ("max", "sum_of_maxima"):
        settings |= {"aggregation": "sum_of_maxima", "bucket": bucket_of(bucket)}
    if settings["aggregation"] == "counter":
        settings |= {name: dotted(query[name]) for name in ("resource", "incarnation") if query.get(name)}
    if query.get("multiplier") is not None:
        settings["multiply_by"] = str(query["multiplier"])
    return settings


def bucket_named(query: Mapping[str, Any]) -> Any:
    """Return the length of the buckets that a query names, None if it names none."""
    names = ("bucketSize", "bucket_size", "bucketWindow", "bucket_window", "bucket")
    return next((query[name] for name in names if query.get(name)), None)


def bucket_of(name: Any) -> Bucket:
    """Return our bucket by the name that a peer gives it.

    Raises:
        Unknown: It is no span of time.
        NotOffered: It is one of another length.
    """
    ours = named_size(str(name)).ours
    found = next((bucket for bucket in _BUCKETS if bucket == ours), None)
    if found is None:
        raise NotOffered(f'maxima of buckets of a "{name}": a bucket is a {", ".join(_BUCKETS)}')
    return found


def dotted(path: Any) -> str:
    """Return our path for a JSONPath such as "$.usage.bytes".

    Raises:
        Unknown: It does more than name keys.
    """
    text = str(path).removeprefix("$")
    if not text.startswith((".", "[")):
        text = f".{text}"
    steps = list(_STEP.finditer(text))
    if not steps or "".join(step[0] for step in steps) != text:
        raise Unknown(f'a path that names no single value: "{path}"')
    return ".".join(step["bare"] or step["single"] or step["double"] for step in steps)


def raw_of(event: Any) -> Outgoing | None:
    """Return an event of which the case has the bytes themselves, None for every other."""
    if not isinstance(event, Mapping):
        return None
    body = next((event[name] for name in ("raw", "body", "bytes") if isinstance(event.get(name), str)), None)
    if isinstance(event.get("base64"), str):
        return Outgoing(body=b64decode(event["base64"]), content_type=str(event.get("content_type", "")))
    return None if body is None else Outgoing(body=body.encode(), content_type=str(event.get("content_type", "")))


def time_text(told: Any) -> Any:
    """Return a timestamp as our events have it: seconds since 1970 as text, a time without a zone as one of UTC."""
    if isinstance(told, int | Decimal) and not isinstance(told, bool):
        return plain(Decimal(told))
    return f"{told}Z" if isinstance(told, str) and _NO_ZONE.search(told) else told


def wires(vector: Vector, events: Iterable[Any], tag: str = "") -> list[Wire]:
    """Return a case's events as ours: repeated as told, with what they leave out, and with names of the case's own.

    Args:
        tag: Tells apart several goes of one case.
    """
    made: list[Wire] = []
    usual = type_of(vector)
    for event in events:
        if not isinstance(event, Mapping):
            raise Unknown(f"an event that is no object: {event!r}")
        fields = {_NAMES_OF_FIELDS.get(name, str(name)): value for name, value in event.items() if name not in _REPEATS}
        for n in range(int(event.get("repeat", 1))):
            template = event.get("id_template", event.get("id", f"e{len(made)}"))
            name = template.replace("{i}", str(n)) if isinstance(template, str) else template
            made.append(wire(vector, tag, **usual | fields | {"id": name}))
            if not isinstance(made[-1]["time"], str):
                made[-1]["time"] = time_text(made[-1]["time"])
    return made


def zone_of(query: Mapping[str, Any]) -> str:
    """Return the zone in which a query's windows begin."""
    return str(next((query[name] for name in _ZONES if query.get(name)), "UTC"))


def type_of(vector: Vector) -> Wire:
    """Return the type of events that name none: what the query asks for."""
    kind = vector.query.get("eventType")
    return {"type": kind} if isinstance(kind, str) and kind else {}


def wire(vector: Vector, tag: str = "", **fields: Any) -> Wire:
    """Return one event of a case; what is not given has a usual value."""
    whole: Wire = {"specversion": "1.0", "id": "e0", **DEFAULTS, "data": {}} | fields
    for name in ("type", "source"):
        if isinstance(whole[name], str) and whole[name]:
            whole[name] = own_name(vector, tag, whole[name])
    return whole


def own_name(vector: Vector, tag: str, name: str) -> str:
    """Return a type or source of this case alone."""
    return f"{vector.slug}{tag}/{name}"


def meter(vector: Vector, tag: str = "", event_type: Any = None, **settings: Any) -> Meter:
    """Return a meter of a case.

    Raises:
        Unknown: No meter can be like this.
    """
    try:
        kind = own_name(vector, tag, str(event_type or DEFAULTS["type"]))
        return Meter(meter=f"{vector.slug}{tag}", event_type=kind, **settings)
    except (ValueError, TypeError) as error:
        raise Unknown(f"no meter is like this: {error}") from error


def scale_of(sent: Iterable[Wire], path: str) -> int:
    """Return how many digits behind the point the values need, as far as a meter can have them."""
    needed = 0
    for event in sent:
        value = find(event["data"], path) if isinstance(event.get("data"), Mapping) else None
        try:
            exponent = Decimal(str(value)).as_tuple().exponent
        except InvalidOperation:
            continue
        if isinstance(exponent, int):
            needed = max(needed, -exponent)
    return min(needed, MAX_SCALE)


def moments_of(sent: Iterable[Wire]) -> list[datetime]:
    """Return the times of events, of those that have one."""
    found = []
    for event in sent:
        try:
            time_us = parse_time(str(event.get("time")))
        except EventError:
            continue
        found.append(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us))
    return found


def range_of(
    query: Mapping[str, Any],
    moments: Sequence[datetime],
    size: WindowSize | None = None,
    *,
    cuts_events: bool = True,
) -> tuple[datetime, datetime]:
    """Return the range that is asked for: as given, else from the first event's minute through the last one's.

    Where windows are asked for, the range must not cut those that hold events. It is widened to whole seconds.

    Args:
        cuts_events: Whether an event just outside counts for nothing; a level holds on from there.

    Raises:
        Unknown: An event that would not count lies in the second to which an edge is widened.
    """
    margin = size.longest if size else timedelta(0)
    known = moments or [instant(DEFAULTS["time"])]
    first = min(known).replace(second=0, microsecond=0) - margin
    last = max(known).replace(second=0, microsecond=0) + timedelta(minutes=1) + margin
    start, end = (
        next((query[name] for name in names if query.get(name) is not None), None)
        for names in (("from", "start"), ("to", "stop", "end"))
    )
    start_at = instant(start) if start is not None else None
    end_at = instant(end) if end is not None else None
    if start_at is None:
        start_at = first if end_at is None else min(first, end_at - timedelta(minutes=1))
    if end_at is None:
        end_at = max(last, start_at + timedelta(minutes=1))
    return whole_seconds(start_at, end_at, moments if cuts_events else ())


def whole_seconds(
    start: datetime, end: datetime, moments: Sequence[datetime] = ()
) -> tuple[datetime, datetime]:
    """Widen a range to whole seconds, as "to" 23:59:59.999 means midnight.

    Raises:
        Unknown: An event lies in what is added.
    """
    first, last = start.replace(microsecond=0), end.replace(microsecond=0)
    if last < end:
        last += timedelta(seconds=1)
    if any(first <= moment < start or end <= moment < last for moment in moments):
        raise Unknown(f"a range that parts events of one second: {start.isoformat()} to {end.isoformat()}")
    return first, last


def mark_seconds(sent: Iterable[Wire]) -> dict[str, str]:
    """Give each event the second in which it lies as a dimension, and return the dimension for the meter.

    Usage is kept by the minute; who needs seconds makes them a dimension.
    """
    for event in sent:
        for moment in moments_of([event]):
            if isinstance(event.get("data"), dict):
                event["data"] = event["data"] | {SECOND: second_text(moment)}
    return {SECOND: SECOND}


def needs_seconds(*moments: datetime) -> bool:
    """Tell whether an edge is no whole minute."""
    return any(moment.second or moment.microsecond for moment in moments)


SECONDS_REMARK = "usage is kept by the minute: its events carry their second as a dimension, by which it is asked for"
