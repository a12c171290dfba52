"""Read which copies of accepted events came with other content: each counts as a duplicate, and is never added."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tallyman.errors import EventError
from tallyman.event import decode_event
from tallyman.repairs import NOT_JUDGED_ANEW

if TYPE_CHECKING:
    from clickhouse_driver import Client

_KEY = "topic_id, partition, offset, event_index"
_COLUMNS = f"{_KEY}, first_offset, first_event_index, appended_at, booking, body"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictChoice:
    """Which conflicts: those that arrived from `since` on and before `until`, where these are said."""

    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A later copy of an accepted event that says other things; or a second correction of one version.

    Attributes:
        position: Of the later copy, "partition:offset:index"; `first`: of the one that counts, which may lie in an
            earlier topic of the line.
        subject, source, id: The event's identity; empty where its bytes do not tell.
        body: The later copy's bytes.
    """

    topic_id: str
    position: str
    first: str
    appended_at: datetime
    booking: int
    subject: str
    source: str
    id: str
    body: bytes


def read_conflicts(client: Client, choice: ConflictChoice = ConflictChoice(), limit: int = 50) -> tuple[Conflict, ...]:
    """Return the newest conflicts, newest first."""
    conditions, parameters = _conditions(choice)
    rows = client.execute(
        f"SELECT {_COLUMNS} FROM conflicts FINAL WHERE {conditions}"  # noqa: S608
        f" ORDER BY appended_at DESC, {_KEY} LIMIT %(limit)s",
        {**parameters, "limit": limit},
    )
    return tuple(map(_conflict, rows))


def count_conflicts(client: Client, choice: ConflictChoice = ConflictChoice()) -> int:
    """Return how many there are."""
    conditions, parameters = _conditions(choice)
    return int(client.execute(f"SELECT count() FROM conflicts FINAL WHERE {conditions}", parameters)[0][0])  # noqa: S608


def _conditions(choice: ConflictChoice) -> tuple[str, dict[str, int]]:
    conditions, parameters = ["1"], {}
    for name, sign in (("since", ">="), ("until", "<")):
        if (moment := getattr(choice, name)) is not None:
            conditions.append(f"appended_at {sign} fromUnixTimestamp64Milli(toInt64(%({name}_ms)s), 'UTC')")
            parameters[f"{name}_ms"] = int(moment.timestamp() * 1000)
    return " AND ".join(conditions) + NOT_JUDGED_ANEW, parameters


def _conflict(row: Any) -> Conflict:
    topic_id, partition, offset, index, first_offset, first_index, appended_at, booking, body = row
    body = body.encode() if isinstance(body, str) else body
    try:
        event = decode_event(body)
        named = (event.subject, event.source, event.id)
    except EventError:
        named = ("", "", "")
    return Conflict(
        topic_id=topic_id,
        position=f"{partition}:{offset}:{index}",
        first=f"{partition}:{first_offset}:{first_index}",
        appended_at=appended_at,
        booking=booking,
        subject=named[0],
        source=named[1],
        id=named[2],
        body=body,
    )
