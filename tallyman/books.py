"""What the control store says about the books: topics, definitions, and the numbers that closes carry.

Numbers only grow and are given in one transaction, so that copies and reordering of close records are harmless: a later
close never names older definitions or an older booking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import sqlalchemy as sa

from tallyman.control import migrate, read, write
from tallyman.errors import ConfigError, LogError, StoreError
from tallyman.meter import Definitions, decode_definitions, encode_definitions

BOOKINGS_PER_DAY = 1000

_metadata = sa.MetaData()
_topics = sa.Table(
    "topics",
    _metadata,
    sa.Column("topic_id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("partitions", sa.Integer, nullable=False),
    sa.Column("chunk_size", sa.BigInteger, nullable=False),
    sa.Column("founded", sa.Boolean, nullable=False),
)
_definitions = sa.Table(
    "definitions",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("made_at", sa.String, nullable=False),
)
_closes = sa.Table(
    "closes",
    _metadata,
    sa.Column("booking", sa.BigInteger, primary_key=True),
    sa.Column("definitions", sa.Integer, nullable=False),
    sa.Column("made_at", sa.String, nullable=False),
    sa.Column("written", sa.Boolean, nullable=False),
)

_growth = sa.MetaData()
_successions = sa.Table(
    "topic_successions",
    _growth,
    sa.Column("topic_id", sa.String, primary_key=True),
    sa.Column("followed_by", sa.String, nullable=False, unique=True),
)
_lines = sa.MetaData()
_begins = sa.Table(
    "topic_begins",
    _lines,
    sa.Column("topic_id", sa.String, primary_key=True),
    sa.Column("booking", sa.BigInteger, nullable=False),
)
_aims = sa.MetaData()
_aimed = sa.Table(  # where a close is to stand; an older Tallyman noted none
    "close_topics",
    _aims,
    sa.Column("booking", sa.BigInteger, primary_key=True),
    sa.Column("topic_id", sa.String, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic that was founded. Its partition count and chunk size never change; growth is a new topic.

    Attributes:
        begins: The booking that it begins in, where other topics were booked before and it follows none of them;
            `definitions`: those in force then, by which what was sent before its own first close is judged.
    """

    topic_id: str
    name: str
    partitions: int
    chunk_size: int
    founded: bool
    begins: int = 0
    definitions: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """A close: the booking that it opens and the definitions in force from there."""

    booking: int
    definitions: int
    written: bool = False


def prepare(engine: sa.Engine) -> None:
    """Make the tables of this module, once."""
    migrate(engine, "books", [_metadata.create_all, _growth.create_all, _lines.create_all, _aims.create_all])


def register_topic(engine: sa.Engine, topic: Topic, *, now: datetime | None = None) -> Topic:
    """Remember a topic when it is met first; refuse other partitions or another chunk size later.

    A topic that follows none begins behind every close that was given out: what lies below may be sealed, and whatever
    stands in it before its own first close would be booked there.

    Args:
        now: None where it follows another one.

    Raises:
        ConfigError: The configuration differs from what the topic was made with.
        LogError: Another topic of this name was booked before: the topic was made anew.
        StoreError: A thousand closes on one day.
    """
    if topic.chunk_size < 8 or topic.chunk_size & (topic.chunk_size - 1):
        raise ConfigError(f"kafka.chunk_size: expected a power of two, got {topic.chunk_size}")
    with write(engine) as connection:
        for known in _read_topics(connection, _topics.c.name == topic.name):
            if known.topic_id != topic.topic_id:
                raise LogError(
                    f'topic "{topic.name}" has the id {topic.topic_id}, but {known.topic_id} was booked: it was made '
                    "anew. Usage of the old one stays as it is; to go on with the new one, give it another name in "
                    "kafka.topic"
                )
            if (known.partitions, known.chunk_size) != (topic.partitions, topic.chunk_size):
                raise ConfigError(
                    f'topic "{topic.name}": made with {known.partitions} partitions and chunks of {known.chunk_size}, '
                    f"got {topic.partitions} and {topic.chunk_size}; these never change, growth is a new topic: "
                    'see docs/operations/topic-growth.md'
                )
            return known
        begins = in_force = 0
        if now is not None and connection.execute(sa.select(_topics.c.topic_id).limit(1)).all():
            begins = _next_number(connection, now)
            written = sa.select(sa.func.max(_closes.c.definitions)).where(_closes.c.written.is_(True))
            in_force = connection.execute(written).scalar() or 0
            connection.execute(sa.insert(_closes).values(  # nobody's close: only its number is taken
                booking=begins, definitions=in_force, made_at=_now(), written=True
            ))  # fmt: skip
            connection.execute(sa.insert(_aimed).values(booking=begins, topic_id=topic.topic_id))
            connection.execute(sa.insert(_begins).values(topic_id=topic.topic_id, booking=begins))
        connection.execute(sa.insert(_topics).values(
            topic_id=topic.topic_id, name=topic.name, partitions=topic.partitions, chunk_size=topic.chunk_size,
            founded=False,
        ))  # fmt: skip
    return replace(topic, founded=False, begins=begins, definitions=in_force)


def read_topics(engine: sa.Engine) -> Sequence[Topic]:
    """Return every topic that was ever booked, by name.

    Raises:
        StoreError: The store is away.
    """
    with read(engine) as connection:
        return _read_topics(connection, sa.true())


def _read_topics(connection: sa.Connection, wanted: sa.ColumnElement[bool]) -> Sequence[Topic]:
    columns = *_topics.c, sa.func.coalesce(_begins.c.booking, 0), sa.func.coalesce(_closes.c.definitions, 0)
    # Who registered a topic before aims were noted began it by no definitions, and it stays so.
    mine = sa.and_(_aimed.c.booking == _begins.c.booking, _aimed.c.topic_id == _topics.c.topic_id)
    tables = (
        _topics.outerjoin(_begins, _begins.c.topic_id == _topics.c.topic_id)
        .outerjoin(_aimed, mine)
        .outerjoin(_closes, _closes.c.booking == _aimed.c.booking)
    )
    rows = connection.execute(sa.select(*columns).select_from(tables).where(wanted).order_by(_topics.c.name))
    return [Topic(*tuple(row)) for row in rows]


def succeed(engine: sa.Engine, topic_id: str, following: Topic) -> Topic:
    """Register the topic that follows another one; again after a crash is harmless.

    Raises:
        ConfigError: Another topic follows it already.
    """
    known = register_topic(engine, following)
    with write(engine) as connection:
        chosen = sa.select(_successions.c.followed_by).where(_successions.c.topic_id == topic_id)
        now = connection.execute(chosen).scalar()
        if now is None:
            connection.execute(sa.insert(_successions).values(topic_id=topic_id, followed_by=known.topic_id))
        elif now != known.topic_id:
            raise ConfigError(f"topic {topic_id}: the topic {now} follows it already, {known.topic_id} cannot")
    return known


def read_line(engine: sa.Engine, name: str) -> tuple[Topic, ...]:
    """Return the topics of which each follows the one before, with the named one among them; nothing when it is new."""
    with read(engine) as connection:
        return _read_line(connection, name)


def _read_line(connection: sa.Connection, name: str) -> tuple[Topic, ...]:
    topics = {topic.topic_id: topic for topic in _read_topics(connection, sa.true())}
    after = {row.topic_id: row.followed_by for row in connection.execute(sa.select(_successions))}
    line = [topic_id for topic_id, topic in topics.items() if topic.name == name]
    if not line:
        return ()
    before = {later: earlier for earlier, later in after.items()}
    while line[0] in before:
        line.insert(0, before[line[0]])
    while line[-1] in after:
        line.append(after[line[-1]])
    return tuple(topics[topic_id] for topic_id in line)


def mark_founded(engine: sa.Engine, topic_id: str) -> None:
    """Note that the first close stands in every partition of a topic."""
    with write(engine) as connection:
        connection.execute(sa.update(_topics).where(_topics.c.topic_id == topic_id).values(founded=True))


def newest_definitions(engine: sa.Engine) -> Definitions | None:
    """Return the newest definitions, in force or about to be."""
    with read(engine) as connection:
        body = connection.execute(
            sa.select(_definitions.c.body).order_by(_definitions.c.number.desc()).limit(1)
        ).scalar()
    return None if body is None else decode_definitions(body)


def load_definitions(engine: sa.Engine, number: int) -> Definitions:
    """Return one version of the definitions.

    Raises:
        LogError: The log names a version that the control store does not know: a worker must not guess it.
    """
    with read(engine) as connection:
        body = connection.execute(sa.select(_definitions.c.body).where(_definitions.c.number == number)).scalar()
    if body is None:
        raise LogError(
            f"the log puts definitions {number} in force, which this control store does not know; "
            "point control.url at the store where they were applied, or restore it"
        )
    return decode_definitions(body)


def add_definitions(engine: sa.Engine, wanted: Definitions) -> Definitions:
    """Store definitions under the next number, unless they equal the newest; return what is newest then."""
    with write(engine) as connection:
        row = connection.execute(
            sa.select(_definitions.c.number, _definitions.c.body).order_by(_definitions.c.number.desc()).limit(1)
        ).one_or_none()
        number = row.number if row else 0
        if row and replace(decode_definitions(row.body), number=0) == replace(wanted, number=0):
            return decode_definitions(row.body)
        fresh = replace(wanted, number=number + 1)
        connection.execute(
            sa.insert(_definitions).values(number=number + 1, body=encode_definitions(fresh), made_at=_now())
        )
        return fresh


def newest_close(engine: sa.Engine, definitions: int, reached: int) -> int | None:
    """Return the newest booking up to `reached` that a close of these definitions opened in every partition of its
    topic; None if none did.
    """
    mine = sa.and_(_closes.c.definitions == definitions, _closes.c.booking <= reached, _closes.c.written.is_(True))
    with read(engine) as connection:
        found: int | None = connection.execute(sa.select(sa.func.max(_closes.c.booking)).where(mine)).scalar()
    return found


def closed_definitions(engine: sa.Engine, name: str) -> Definitions | None:
    """Return the definitions in force in the newest topic of a line in which books were opened: the newest that a close
    names which stands in every partition of it. None where none is.

    Args:
        name: Of any topic of the line.
    """
    with read(engine) as connection:
        founded = [topic for topic in _read_line(connection, name) if topic.founded]
        number = _written_into(connection, founded[-1].topic_id) if founded else 0
        if founded and not number:  # an older Tallyman wrote them, and noted no topic
            written = sa.select(sa.func.max(_closes.c.definitions)).where(_closes.c.written.is_(True))
            number = connection.execute(written).scalar() or 0
    return load_definitions(engine, number) if number else None


def lacks_definitions(engine: sa.Engine, topic_id: str) -> bool:
    """Whether the newest definitions that any close names are not in force in a topic, as far as is known: that close
    was cut off, or went elsewhere.
    """
    with read(engine) as connection:
        newest = connection.execute(sa.select(sa.func.max(_closes.c.definitions))).scalar() or 0
        return _written_into(connection, topic_id) < newest


def _written_into(connection: sa.Connection, topic_id: str) -> int:
    """Return the number of the newest definitions that a close put in force in a topic."""
    both = _closes.join(_aimed, _aimed.c.booking == _closes.c.booking)
    written = sa.select(sa.func.max(_closes.c.definitions)).select_from(both).where(
        _closes.c.written.is_(True), _aimed.c.topic_id == topic_id
    )  # fmt: skip
    return connection.execute(written).scalar() or 0


def next_close(engine: sa.Engine, now: datetime, topic_id: str, *, again: bool = False) -> Close:
    """Give out the number of the next close: behind every earlier close and behind today's first booking.

    A number from beyond tomorrow, which the log refuses (`pipeline.book.booking_after`), was given out by a wrong
    clock, and holds nobody up.

    Args:
        now: By the clock that the log goes by.
        topic_id: Of the topic that it is to stand in.
        again: Whether today's newest one for this topic will do that was not written yet and names these definitions:
            who tries until Kafka is back would use up a day's numbers.

    Raises:
        StoreError: A thousand closes on one day.
    """
    with write(engine) as connection:
        definitions = connection.execute(sa.select(sa.func.max(_definitions.c.number))).scalar() or 0
        begun = _unwritten_of_today(connection, now, topic_id, definitions) if again else None
        if begun is not None:
            return Close(begun, definitions)
        booking = _next_number(connection, now)
        connection.execute(
            sa.insert(_closes).values(booking=booking, definitions=definitions, made_at=_now(), written=False)
        )
        connection.execute(sa.insert(_aimed).values(booking=booking, topic_id=topic_id))
    return Close(booking, definitions)


def _unwritten_of_today(connection: sa.Connection, now: datetime, topic_id: str, definitions: int) -> int | None:
    today = int(now.timestamp()) // 86_400 * BOOKINGS_PER_DAY
    mine = sa.select(sa.func.max(_closes.c.booking)).select_from(
        _closes.join(_aimed, _aimed.c.booking == _closes.c.booking)
    ).where(
        _closes.c.written.is_(False), _aimed.c.topic_id == topic_id, _closes.c.definitions == definitions,
        _closes.c.booking.between(today + 1, today + BOOKINGS_PER_DAY - 1),
    )  # fmt: skip
    found: int | None = connection.execute(mine).scalar()
    return found


def _next_number(connection: sa.Connection, now: datetime) -> int:
    day = int(now.timestamp()) // 86_400
    possible = _closes.c.booking < (day + 2) * BOOKINGS_PER_DAY
    newest = connection.execute(sa.select(sa.func.max(_closes.c.booking)).where(possible)).scalar() or 0
    booking = int(max(newest, day * BOOKINGS_PER_DAY)) + 1
    if booking % BOOKINGS_PER_DAY == 0:
        raise StoreError(f"booking {booking} lies past today's range: at most {BOOKINGS_PER_DAY - 1} closes a day")
    return booking


def mark_written(engine: sa.Engine, booking: int) -> None:
    """Note that a close stands in every partition."""
    with write(engine) as connection:
        connection.execute(sa.update(_closes).where(_closes.c.booking == booking).values(written=True))


def mark_void(engine: sa.Engine, booking: int) -> None:
    """Note that a close opened nothing where it stands, since its number is of another day: it counts for nothing, and
    is not written again. What it was to put in force another one says.
    """
    with write(engine) as connection:
        connection.execute(sa.update(_closes).where(_closes.c.booking == booking).values(definitions=0, written=True))


def unwritten_closes(engine: sa.Engine, topic_id: str) -> Sequence[Close]:
    """Return closes that a crash may have left out of some partitions of a topic: writing them again is harmless."""
    both = _closes.outerjoin(_aimed, _aimed.c.booking == _closes.c.booking)
    mine = sa.func.coalesce(_aimed.c.topic_id, topic_id) == topic_id
    unwritten = sa.select(_closes).select_from(both).where(_closes.c.written.is_(False), mine)
    with read(engine) as connection:
        rows = connection.execute(unwritten.order_by(_closes.c.booking))
        return [Close(row.booking, row.definitions) for row in rows]


def _now() -> str:
    return datetime.now(UTC).isoformat()
