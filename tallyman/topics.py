"""The line of topics as ClickHouse knows it: which one follows which, which have ended, and which were abandoned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallyman.errors import ConfigError

if TYPE_CHECKING:
    from clickhouse_driver import Client

    from tallyman.books import Topic

ENDED = (1 << 32) - 1  # the booking behind a topic's end marker: nothing is booked into it
# Topics that no longer belong to what is booked: nothing waits for them, and what is booked of them counts.
# (The view `topics_abandoned` says the same, and takes 3 ms longer each time.)
LINE_SQL = "SELECT argMax(line, noted_at) FROM topics"
ABANDONED_SQL = f"SELECT topic_id FROM topics FINAL WHERE line != ({LINE_SQL})"  # noqa: S608 - our own words
_BEGINS = "begins, begins_definitions"
# With it a time behind all that was noted, whatever the server's clock did since.
_NEWEST_LINE = (
    "SELECT argMax(line, noted_at), greatest(now64(3, 'UTC'), addMilliseconds(max(noted_at), 1)) FROM topics"
)


def note_line(client: Client, line: Sequence[Topic]) -> None:
    """Write down topics of which each follows the one before, the line that is booked now; again changes nothing.

    Topics of any other line are abandoned, until that line is noted once more.
    """
    known = set(client.execute(f"SELECT topic_id, follows, line, {_BEGINS} FROM topics FINAL"))  # noqa: S608
    newest, noted_at = client.execute(_NEWEST_LINE)[0]
    before = ["", *(topic.topic_id for topic in line)]
    first = line[0].topic_id
    rows = [
        (topic.topic_id, topic.name, topic.partitions, topic.chunk_size, follows, first, *_begins(topic))
        for topic, follows in zip(line, before, strict=False)
        if newest != first or (topic.topic_id, follows, first, *_begins(topic)) not in known
    ]
    if rows:
        client.execute(
            f"INSERT INTO topics (topic_id, name, partitions, chunk_size, follows, line, {_BEGINS}, noted_at) VALUES",
            [(*row, noted_at) for row in rows],
        )


def _begins(topic: Topic) -> tuple[int, int]:
    return topic.begins, topic.definitions


def newest_line(client: Client) -> str:
    """Return the id of the first topic of the line that is booked now; nothing where none was noted."""
    return str(client.execute(LINE_SQL)[0][0])


def is_noted(client: Client, topic_id: str) -> bool:
    """Tell whether somebody has booked a topic."""
    return bool(client.execute("SELECT 1 FROM topics WHERE topic_id = %(topic)s LIMIT 1", {"topic": topic_id}))


def name_of_following(client: Client, topic_id: str) -> str:
    """Return the name of the topic that was booked behind another one; nothing where none was."""
    if not _notes_lines(client):
        return ""
    rows = client.execute("SELECT name FROM topics WHERE follows = %(topic)s LIMIT 1", {"topic": topic_id})
    return str(rows[0][0]) if rows else ""


def _notes_lines(client: Client) -> bool:
    """Whether a pipeline was started here that notes which line it books."""
    noted = "SELECT 1 FROM system.columns WHERE database = currentDatabase() AND table = 'topics' AND name = 'line'"
    return bool(client.execute(noted))


def refuse_other_line(client: Client, first: str, name: str) -> None:
    """Refuse a line of topics that is not the one that is booked now: what goes there is read by nobody.

    Args:
        first: The id of its first topic; empty where none of it was ever booked.
        name: Of the topic that is configured.

    Raises:
        ConfigError: It is another one.
    """
    if _notes_lines(client) and newest_line(client) not in ("", first):
        store = "" if first else ", or control.url, where it names another store than that of the pipeline"
        raise ConfigError(
            f'kafka.topic: "{name}" is not what is booked now, a pipeline was started on another topic since; correct '
            f"the name{store}, or start the pipeline on this one"
        )


@dataclass(frozen=True, slots=True)
class NotedTopic:
    """A topic as ClickHouse knows it."""

    topic_id: str
    name: str
    partitions: int


def begin_of(client: Client, topic_id: str) -> tuple[NotedTopic | None, int, int]:
    """Return the topic that a topic follows, if it follows one; the booking and definitions that it begins with, if it
    does not.
    """
    rows = client.execute(
        f"SELECT topic_id, name, partitions, {_BEGINS} FROM topics FINAL WHERE topic_id = %(topic)s"  # noqa: S608
        " OR topic_id IN (SELECT follows FROM topics FINAL WHERE topic_id = %(topic)s)",
        {"topic": topic_id},
    )
    before = [NotedTopic(str(found), str(name), int(partitions)) for found, name, partitions, *_ in rows
              if found != topic_id]  # fmt: skip
    begins = [(int(booking), int(definitions)) for found, _, _, booking, definitions in rows if found == topic_id]
    return before[0] if before else None, *(begins[0] if begins else (0, 0))


def topics_before(client: Client, topic_id: str) -> tuple[str, ...]:
    """Return the ids of the topics that a topic follows, the first one first."""
    follows = dict(client.execute("SELECT topic_id, follows FROM topics FINAL WHERE follows != ''"))
    before: list[str] = []
    while topic_id in follows:
        topic_id = follows[topic_id]
        before.insert(0, topic_id)
    return tuple(before)


def ends_of(client: Client, topic_id: str) -> dict[int, tuple[int, int, int, int]]:
    """Return where the partitions of a topic ended that did: offset of the end marker, and before it log clock, booking
    and definitions.
    """
    # Without FINAL an index leads to them; all rows of the chunk in which a partition ended say the same of it.
    rows = client.execute(
        "SELECT partition, argMin(turned_offset, chunk), argMin(turned_clock_ms, chunk), argMin(turned_booking, chunk),"
        " argMin(turned_definitions, chunk) FROM progress"
        " WHERE topic_id = %(topic)s AND generation = 0 AND reached_booking = %(ended)s GROUP BY partition",
        {"topic": topic_id, "ended": ENDED},
    )
    return {int(partition): tuple(map(int, place)) for partition, *place in rows}  # type: ignore[misc]


def has_ended(client: Client, topic: Topic) -> bool:
    """Tell whether every partition of a topic is booked to its end."""
    return len(ends_of(client, topic.topic_id)) >= topic.partitions
