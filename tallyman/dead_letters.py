"""Read what could not be accepted: each with its reason, its bytes and its position in the log, and what was done
about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tallyman.errors import UsageQueryError
from tallyman.event import REASONS
from tallyman.files import nearest
from tallyman.repairs import NOT_JUDGED_ANEW

if TYPE_CHECKING:
    from clickhouse_driver import Client

MOST_AT_ONCE = 1_000_000
_POSITION = re.compile(r"([0-9]{1,9}):([0-9]{1,19}):([0-9]{1,9})(?:@([\w-]{1,64}))?", re.ASCII)
_KEY = "topic_id, partition, offset, event_index"
_COLUMNS = f"{_KEY}, appended_at, booking, reason, detail, content_type, type, source, subject, length(body)"
_NEWEST = f"ORDER BY appended_at DESC, {_KEY}"
_SLICE_LETTERS, _SLICE_BYTES = 500, 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterChoice:
    """Which dead letters: all that fit every given wish.

    Attributes:
        positions: "partition:offset:index", of any topic, or, with "@topic id", of that one; none means anywhere.
        since, until: When they arrived: from, and before.
        handled: Also those that were retried or discarded.
    """

    reason: str | None = None
    type: str | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    positions: tuple[str, ...] = ()
    handled: bool = False


class LetterKey(NamedTuple):
    """Where a dead letter lies, and how large it is."""

    topic_id: str
    partition: int
    offset: int
    event_index: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that was not accepted.

    Attributes:
        position: "partition:offset:index", by which it is shown and let in again.
        content_type: What the body is: an event, or the record when that could not be read.
        handled: "retried" or "discarded", empty while nothing was done.
        body: Its bytes; empty in a list.
        headers: Of its record: what says how it is read and who it is.
    """

    topic_id: str
    partition: int
    offset: int
    event_index: int
    appended_at: datetime
    booking: int
    reason: str
    detail: str
    content_type: str
    type: str
    source: str
    subject: str
    size_bytes: int
    handled: str = ""
    handled_at: datetime | None = None
    body: bytes = b""
    headers: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def position(self) -> str:
        return f"{self.partition}:{self.offset}:{self.event_index}"


def read_dead_letters(client: Client, choice: LetterChoice = LetterChoice(), limit: int = 50) -> tuple[DeadLetter, ...]:
    """Return the newest dead letters, newest first, without their bytes.

    Raises:
        UsageQueryError: There is no such reason, or a position is none.
    """
    conditions, parameters = _conditions(choice)
    rows = client.execute(
        f"SELECT {_COLUMNS} FROM dead_letters FINAL WHERE {conditions} {_NEWEST} LIMIT %(limit)s",  # noqa: S608
        {**parameters, "limit": limit},
    )
    return _with_states(client, [_letter(row) for row in rows])


def count_dead_letters(client: Client, choice: LetterChoice = LetterChoice()) -> tuple[tuple[str, int], ...]:
    """Return (reason, how many), the most frequent first.

    Raises:
        UsageQueryError: As `read_dead_letters`.
    """
    conditions, parameters = _conditions(choice)
    rows = client.execute(
        f"SELECT reason, count() FROM dead_letters FINAL WHERE {conditions} GROUP BY reason ORDER BY 2 DESC, 1",  # noqa: S608
        parameters,
    )
    return tuple((str(row[0]), int(row[1])) for row in rows)


def count_groups(
    client: Client, choice: LetterChoice, *, of_keys: bool = False
) -> dict[tuple[str, str, str], int]:
    """Return (reason, type, source) -> how many, the most frequent first.

    Args:
        of_keys: Only of those that `read_keys` returns.

    Raises:
        UsageQueryError: As `read_dead_letters`.
    """
    conditions, parameters = _conditions(choice)
    most = f" ORDER BY {_KEY} LIMIT {MOST_AT_ONCE}" if of_keys else ""
    rows = client.execute(
        "SELECT reason, type, source, count() FROM"  # noqa: S608
        f" (SELECT reason, type, source FROM dead_letters FINAL WHERE {conditions}{most})"
        " GROUP BY reason, type, source ORDER BY 4 DESC, 1, 2, 3",
        parameters,
    )
    return {(reason, _text(kind), _text(source)): number for reason, kind, source, number in rows}


def read_keys(client: Client, choice: LetterChoice) -> list[LetterKey]:
    """Return where the chosen letters lie, in log order, at most `MOST_AT_ONCE`: what is chosen does not grow while
    something is done about it.

    Raises:
        UsageQueryError: As `read_dead_letters`.
    """
    conditions, parameters = _conditions(choice)
    rows = client.execute(
        f"SELECT {_KEY}, length(body) FROM dead_letters FINAL WHERE {conditions} ORDER BY {_KEY}"  # noqa: S608
        f" LIMIT {MOST_AT_ONCE}",
        parameters,
    )
    return [LetterKey(*row) for row in rows]


def read_certain_keys(client: Client, choice: LetterChoice) -> list[LetterKey]:
    """Return where the chosen letters lie, when each position means one letter: something will be done about it.

    Raises:
        UsageQueryError: As `read_dead_letters`; or nothing lies at a position, or letters of several topics do.
    """
    _refuse_missing(client, choice.positions)
    keys = read_keys(client, choice)
    bare = {_place(position)[1:]: position for position in choice.positions if "@" not in position}
    for place, position in bare.items():
        letters = [f"{position}@{key.topic_id}" for key in keys if key[1:4] == place]
        if len(letters) > 1:
            raise UsageQueryError(
                f"position: expected one dead letter at {position}, got one in each of {len(letters)} topics; name the "
                f"one you mean, with its topic: {' or '.join(letters)} (tallyman dead show {position})"
            )
    return keys


def _refuse_missing(client: Client, positions: Sequence[str]) -> None:
    """Refuse positions at which nothing lies; letters that were handled already may be named again."""
    if not positions:
        return
    there = {key[:4] for key in read_keys(client, LetterChoice(positions=tuple(positions), handled=True))}
    there |= {("", *place[1:]) for place in there}
    missing = [position for position in positions if _place(position) not in there]
    if missing:
        raise UsageQueryError(f"position: no dead letter at {', '.join(missing)}; see them with: tallyman dead list")


def read_slices(client: Client, keys: Sequence[LetterKey]) -> Iterator[tuple[DeadLetter, ...]]:
    """Yield the letters at these places with their bytes, so many at once as memory holds easily."""
    first, size = 0, 0
    for place, key in enumerate(keys):
        if place - first == _SLICE_LETTERS or (place > first and size + key.size_bytes > _SLICE_BYTES):
            yield _read_full(client, keys[first:place])
            first, size = place, 0
        size += key.size_bytes
    if first < len(keys):
        yield _read_full(client, keys[first:])


def read_dead_letter(client: Client, position: str) -> tuple[DeadLetter, ...]:
    """Return the dead letter at a position with its bytes; one for each topic that has one there.

    Raises:
        UsageQueryError: The position is none, or no dead letter lies there.
    """
    keys = read_keys(client, LetterChoice(positions=(position,), handled=True))
    if not keys:
        raise UsageQueryError(f"position: no dead letter at {position}; see them with: tallyman dead list")
    return _with_states(client, _read_full(client, keys))


def mark_handled(client: Client, letters: Sequence[DeadLetter | LetterKey], action: str, mended: str = "") -> None:
    """Remember what was done about letters; again changes nothing but the time."""
    rows = [(each.topic_id, each.partition, each.offset, each.event_index, action, mended) for each in letters]
    if rows:
        client.execute(f"INSERT INTO dead_letters_handled ({_KEY}, action, mended) VALUES", rows)


def _read_full(client: Client, keys: Sequence[LetterKey]) -> tuple[DeadLetter, ...]:
    rows = client.execute(
        f"SELECT {_COLUMNS}, hex(body), mapValues(mapApply((k, v) -> (k, concat(hex(k), '=', hex(v))), headers))"  # noqa: S608
        f" FROM dead_letters FINAL WHERE generation = 0 AND ({_KEY}) IN %(keys)s{NOT_JUDGED_ANEW}"
        f" ORDER BY {_KEY}",
        {"keys": tuple(tuple(key[:4]) for key in keys)},
    )
    return tuple(_letter(row[:-2], bytes.fromhex(row[-2]), dict(map(_header, row[-1]))) for row in rows)


def _header(text: str) -> tuple[str, bytes]:
    name, _, value = text.partition("=")
    return bytes.fromhex(name).decode("utf-8", "replace"), bytes.fromhex(value)


def _with_states(client: Client, letters: Sequence[DeadLetter]) -> tuple[DeadLetter, ...]:
    if not letters:
        return ()
    keys = tuple((each.topic_id, each.partition, each.offset, each.event_index) for each in letters)
    rows = client.execute(
        f"SELECT {_KEY}, action, handled_at FROM dead_letters_handled FINAL WHERE ({_KEY}) IN %(keys)s",  # noqa: S608
        {"keys": keys},
    )
    states = {tuple(row[:4]): row[4:] for row in rows}
    return tuple(
        replace(each, handled=states[key][0], handled_at=states[key][1]) if key in states else each
        for key, each in zip(keys, letters, strict=True)
    )


def _conditions(choice: LetterChoice) -> tuple[str, dict[str, Any]]:
    reason = choice.reason
    if reason is not None and reason not in REASONS:
        raise UsageQueryError(f'reason: expected one of {", ".join(REASONS)}, got "{reason}"{nearest(reason, REASONS)}')
    conditions = ["generation = 0"]
    parameters: dict[str, Any] = {}
    for name in ("reason", "type", "source"):
        if (value := getattr(choice, name)) is not None:
            conditions.append(f"{name} = %({name})s")
            parameters[name] = value
    for name, sign in (("since", ">="), ("until", "<")):
        if (moment := getattr(choice, name)) is not None:
            conditions.append(f"appended_at {sign} fromUnixTimestamp64Milli(toInt64(%({name}_ms)s), 'UTC')")
            parameters[f"{name}_ms"] = int(moment.timestamp() * 1000)
    if choice.positions:
        places = [_place(position) for position in choice.positions]
        conditions.append(f"(({_KEY}) IN %(places)s OR (partition, offset, event_index) IN %(anywhere)s)")
        parameters["places"] = tuple(place for place in places if place[0]) or (("", 0, 0, 0),)
        parameters["anywhere"] = tuple(place[1:] for place in places if not place[0]) or ((-1, 0, 0),)
    if not choice.handled:
        conditions.append(f"({_KEY}) NOT IN (SELECT {_KEY} FROM dead_letters_handled)")  # noqa: S608
    return " AND ".join(conditions) + NOT_JUDGED_ANEW, parameters


def _place(position: str) -> tuple[str, int, int, int]:
    parts = _POSITION.fullmatch(position)
    if parts is None:
        raise UsageQueryError(f'position: expected partition:offset:index such as 3:18211:0, got "{position}"')
    return parts[4] or "", int(parts[1]), int(parts[2]), int(parts[3])


def _letter(row: Any, body: bytes = b"", headers: Mapping[str, bytes] | None = None) -> DeadLetter:
    topic_id, partition, offset, index, appended_at, booking, reason, detail, *names, size = row
    content_type, kind, source, subject = (_text(name) for name in names)
    return DeadLetter(
        topic_id=topic_id,
        partition=partition,
        offset=offset,
        event_index=index,
        appended_at=appended_at,
        booking=booking,
        reason=reason,
        detail=_text(detail),
        content_type=content_type,
        type=kind,
        source=source,
        subject=subject,
        size_bytes=size,
        body=body,
        headers=headers or {},
    )


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
