"""What a question asks for, worked out: its windows, what stands for each series, and what a filter lets in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tallyman.aggregations import Span
from tallyman.errors import UsageQueryError
from tallyman.files import nearest
from tallyman.meter import Bucket, decode_dimensions
from tallyman.period import FIRST_MOMENT, LAST_MOMENT, window_edges
from tallyman.usage import UsageQuery

Named = tuple[str | None, ...]  # the values of what a question groups by, in its order
_MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Windows:
    """Half-open windows that tile the range, in seconds since 1970.

    Attributes:
        edges: Where one begins and the one before it ends; for minutes, which need none, the range's start and end.
    """

    edges: tuple[int, ...]
    by_minute: bool

    @property
    def start(self) -> int:
        return self.edges[0]

    @property
    def end(self) -> int:
        return self.edges[-1]

    def start_of(self, second: int) -> int:
        """Return where the window begins that a second of the range lies in."""
        return second // _MINUTE_S * _MINUTE_S if self.by_minute else self.edges[bisect_right(self.edges, second) - 1]

    def end_of(self, start: int) -> int:
        """Return where the window ends that begins there."""
        return start + _MINUTE_S if self.by_minute else self.edges[bisect_right(self.edges, start)]

    def starts(self) -> Sequence[int]:
        """Return where each window begins, also those without usage."""
        return range(self.start, self.end, _MINUTE_S) if self.by_minute else self.edges[:-1]

    def span(self, start: int, known_to: datetime | None, buckets: Sequence[int] | None = None) -> Span:
        """Return the window that begins there as aggregations take it; `buckets` are the edges of the range's."""
        end = self.end_of(start)
        inside = None
        if buckets is not None:
            inside = (start, *buckets[bisect_right(buckets, start) : bisect_right(buckets, end - 1)])
        return Span(start * 1_000_000, end * 1_000_000, inside, None if known_to is None else _microseconds(known_to))


def windows_of(query: UsageQuery) -> Windows:
    """Return the windows of a question.

    Raises:
        UsageQueryError: No such window or zone, an instant without a zone, inside a minute or beyond what the store's
            times can hold, an empty range; a name that is no text.
    """
    _check_texts("meter", (query.meter,))
    _check_texts("subject", query.subjects)
    for name, moment in (("from", query.start), ("to", query.end)):
        if moment.tzinfo is None:
            raise UsageQueryError(f"{name}: expected an instant with a zone, got {moment.isoformat()}")
        if not FIRST_MOMENT <= moment <= LAST_MOMENT:
            raise UsageQueryError(f"{name}: expected an instant from 1970 to 2106 (UTC), got {moment.isoformat()}")
        if moment.timestamp() % _MINUTE_S:
            raise UsageQueryError(
                f"{name}: expected a whole minute, which is how fine usage is kept, got {moment.isoformat()}"
            )
    by_minute = query.window == "minute"
    edges = window_edges("total" if by_minute else query.window, query.start, query.end, query.zone)
    return Windows(_seconds(edges), by_minute)


def _check_texts(key: str, texts: Iterable[str]) -> None:
    """Refuse what a shell made of bytes that are no UTF-8; nothing can be called so."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageQueryError(f"{key}: expected a text in UTF-8, got {text!a}") from error


def bucket_edges(query: UsageQuery, bucket: Bucket) -> tuple[int, ...] | None:
    """Return where buckets begin and end in the question's range and zone; None for minutes, which need none."""
    if bucket == "minute":
        return None
    return _seconds(window_edges(bucket, query.start, query.end, query.zone))


class Groups:
    """Says for which group of the answer a series counts, from its tenant and dimensions."""

    def __init__(self, query: UsageQuery) -> None:
        """Take a question's filters and groups.

        Raises:
            UsageQueryError: A condition excludes everything.
        """
        if not all(query.exclude):
            raise UsageQueryError(
                "exclude: expected a dimension in each condition, got a condition that fits everything"
            )
        self._query = query
        self._named: dict[str, dict[str, str | None]] = {}
        self._groups: dict[tuple[str, str], Named | None] = {}

    def of(self, subject: str, dimensions: str) -> Named | None:
        """Return the group of a series, None where a filter leaves it out."""
        key = subject, dimensions
        if key not in self._groups:
            self._groups[key] = self._find(subject, dimensions)
        return self._groups[key]

    def _find(self, subject: str, dimensions: str) -> Named | None:
        values = self._named.get(dimensions)
        if values is None:
            values = self._named[dimensions] = decode_dimensions(dimensions)
        if not _lets_in(self._query, values):
            return None
        return tuple(subject if name == "subject" else values.get(name) for name in self._query.group_by)

    def check_names(self, defined: Iterable[str]) -> None:
        """Refuse a dimension that the meter has neither now nor in what is booked: its column would be empty, silently.

        Raises:
            UsageQueryError: There is no such dimension.
        """
        query = self._query
        known = {*defined, *(name for values in self._named.values() for name in values)}
        asked = [
            *(("by", name) for name in query.group_by if name != "subject"),
            *(("where", name) for name in query.where),
            *(("exclude", name) for condition in query.exclude for name in condition),
        ]
        for key, name in asked:
            if name not in known:
                choices = sorted(known | {"subject"} if key == "by" else known)
                raise UsageQueryError(
                    f'{key}: expected a dimension of {query.meter}, got "{name}"{nearest(name, choices)}'
                )


def needs_dimensions(query: UsageQuery) -> bool:
    """Whether an answer depends on what the dimensions of a series are."""
    return bool(query.where or query.exclude or any(name != "subject" for name in query.group_by))


def _lets_in(query: UsageQuery, values: Mapping[str, str | None]) -> bool:
    return _meets(values, query.where) and not any(_meets(values, condition) for condition in query.exclude)


def _meets(values: Mapping[str, str | None], condition: Mapping[str, Sequence[str | None]]) -> bool:
    """Whether dimensions meet all of a condition: null and absent are the same, "" is not."""
    return all(values.get(name) in wanted for name, wanted in condition.items())


def _seconds(edges: Iterable[datetime]) -> tuple[int, ...]:
    return tuple(int(edge.timestamp()) for edge in edges)


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond
