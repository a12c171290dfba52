"""Definitions and closes have numbers that only grow, whoever asks for them and however many at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline import close
from tallyman import books
from tallyman.books import BOOKINGS_PER_DAY, Topic
from tallyman.control import open_control
from tallyman.errors import ConfigError, LogError, StoreError
from tallyman.meter import Definitions, Meter

TOPIC = Topic("Zm9vYmFyZm9vYmFyZm9vYg", "usage.events.v1", partitions=4, chunk_size=65_536, founded=False)
HERE = TOPIC.topic_id
AGAIN = replace(TOPIC, topic_id=f"b{HERE[1:]}", name="usage.again")
HOURS = Meter(meter="compute.hours", event_type="server", aggregation="sum", value="hours", scale=3)
NOON = datetime(2026, 10, 31, 12, tzinfo=UTC)
TODAY = 20_757 * BOOKINGS_PER_DAY


@pytest.fixture
def engine(control_url: str) -> Iterator[sa.Engine]:
    engine = open_control(control_url)
    books.prepare(engine)
    yield engine
    engine.dispose()


def definitions(slug: str) -> Definitions:
    return Definitions(number=0, meters=(replace(HOURS, meter=slug),))


def in_two_processes(work: Callable[..., None], url: str, folder: Path) -> list[str]:
    """Run `work(url, file)` twice at once; return the lines that both have written."""
    spawn = multiprocessing.get_context("spawn")
    barrier, files = spawn.Barrier(2), [folder / "one", folder / "other"]
    both = [spawn.Process(target=work, args=(url, barrier, file)) for file in files]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    return [line for file in files for line in file.read_text().splitlines()]


def _close(url: str, barrier: Barrier, file: Path) -> None:
    engine = open_control(url)
    barrier.wait(60)
    file.write_text("\n".join(str(books.next_close(engine, NOON, HERE).booking) for _ in range(30)))


def test_two_processes_that_close_at_once_get_different_bookings(
    engine: sa.Engine, control_url: str, tmp_path: Path
) -> None:
    given = sorted(map(int, in_two_processes(_close, control_url, tmp_path)))
    assert given == [TODAY + n for n in range(1, 61)]
    assert [close.booking for close in books.unwritten_closes(engine, HERE)] == given


def _define(url: str, barrier: Barrier, file: Path) -> None:
    engine = open_control(url)
    barrier.wait(60)
    numbers = [books.add_definitions(engine, definitions(f"meter-{n}")).number for n in range(5)]
    file.write_text("\n".join(map(str, numbers)))


def test_two_processes_that_apply_at_once_never_give_a_number_twice(
    engine: sa.Engine, control_url: str, tmp_path: Path
) -> None:
    """Who comes second with the same definitions gets the number of the first; others get the next one."""
    given = set(map(int, in_two_processes(_define, control_url, tmp_path)))
    assert given == set(range(1, max(given) + 1))
    assert 5 <= max(given) <= 10
    assert [books.load_definitions(engine, number).number for number in sorted(given)] == sorted(given)


def _found(url: str, barrier: Barrier, file: Path) -> None:
    engine = open_control(url)
    barrier.wait(60)
    file.write_text(books.register_topic(engine, TOPIC).topic_id)


@pytest.mark.usefixtures("engine")
def test_two_processes_that_meet_a_topic_at_once_register_it_once(control_url: str, tmp_path: Path) -> None:
    assert in_two_processes(_found, control_url, tmp_path) == [TOPIC.topic_id] * 2


def test_the_same_definitions_keep_their_number(engine: sa.Engine) -> None:
    assert books.newest_definitions(engine) is None
    first = books.add_definitions(engine, definitions("compute.hours"))
    assert books.add_definitions(engine, definitions("compute.hours")) == first
    assert books.add_definitions(engine, definitions("compute.days")).number == 2
    assert books.load_definitions(engine, 1).meters[0].meter == "compute.hours"


def test_definitions_that_nobody_applied_here_are_not_guessed(engine: sa.Engine) -> None:
    with pytest.raises(LogError, match="the log puts definitions 7 in force, which this control store does not know"):
        books.load_definitions(engine, 7)


def test_who_founds_a_topic_until_kafka_is_back_uses_up_one_number(engine: sa.Engine) -> None:
    """Not one of yesterday, which would open nothing, nor of other definitions or another topic."""
    books.add_definitions(engine, definitions("one"))
    first = books.next_close(engine, NOON, HERE, again=True)
    assert first.booking == TODAY + 1
    assert [books.next_close(engine, NOON, HERE, again=True) for _ in range(3)] == [first] * 3
    assert books.next_close(engine, NOON, AGAIN.topic_id, again=True).booking == TODAY + 2
    assert books.next_close(engine, NOON, HERE).booking == TODAY + 3  # an operator's close ends what is open now
    books.add_definitions(engine, definitions("other"))
    assert books.next_close(engine, NOON, HERE, again=True) == books.Close(TODAY + 4, 2)
    tomorrow = TODAY + BOOKINGS_PER_DAY
    assert books.next_close(engine, NOON + timedelta(days=1), HERE, again=True).booking == tomorrow + 1
    books.mark_written(engine, tomorrow + 1)
    assert books.next_close(engine, NOON + timedelta(days=1), HERE, again=True).booking == tomorrow + 2


def test_a_close_never_opens_an_older_booking(engine: sa.Engine) -> None:
    """Not even on a machine whose clock is behind."""
    books.add_definitions(engine, definitions("compute.hours"))
    first = books.next_close(engine, NOON, HERE)
    assert first == books.Close(TODAY + 1, 1)
    books.mark_written(engine, first.booking)
    assert books.next_close(engine, NOON - timedelta(hours=1), HERE).booking == TODAY + 2
    assert [close.booking for close in books.unwritten_closes(engine, HERE)] == [TODAY + 2]
    assert books.next_close(engine, NOON + timedelta(days=1), HERE).booking == TODAY + BOOKINGS_PER_DAY + 1


def test_a_day_has_room_for_999_closes(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        row = {"booking": TODAY + 999, "definitions": 1, "made_at": "", "written": True}
        connection.execute(sa.insert(sa.table("closes", *map(sa.column, row))).values(**row))
    with pytest.raises(StoreError, match="lies past today's range: at most 999 closes a day"):
        books.next_close(engine, NOON, HERE)


def _given_out(engine: sa.Engine, booking: int, *, written: bool = True) -> None:
    with engine.begin() as connection:
        row = {"booking": booking, "definitions": 1, "made_at": "", "written": written}
        connection.execute(sa.insert(sa.table("closes", *map(sa.column, row))).values(**row))


def test_a_number_that_a_clock_far_ahead_gave_out_holds_no_close_up(engine: sa.Engine) -> None:
    """The log takes it for nobody's, and takes numbers up to the end of tomorrow."""
    _given_out(engine, TODAY + 400 * BOOKINGS_PER_DAY + 1)
    assert books.next_close(engine, NOON, HERE).booking == TODAY + 1
    _given_out(engine, TODAY + BOOKINGS_PER_DAY + 1)
    assert books.next_close(engine, NOON, HERE).booking == TODAY + BOOKINGS_PER_DAY + 2


def test_definitions_are_in_force_once_a_close_that_names_them_stands_in_the_log(engine: sa.Engine) -> None:
    books.register_topic(engine, TOPIC)
    first = books.add_definitions(engine, definitions("compute.hours"))
    books.mark_written(engine, books.next_close(engine, NOON, HERE).booking)
    assert books.closed_definitions(engine, TOPIC.name) is None, "its first close may be all that stands there"
    books.mark_founded(engine, HERE)
    books.add_definitions(engine, definitions("compute.days"))
    close = books.next_close(engine, NOON, HERE)
    assert books.closed_definitions(engine, TOPIC.name) == first and books.lacks_definitions(engine, HERE)
    books.mark_written(engine, close.booking)
    assert books.closed_definitions(engine, TOPIC.name) == books.newest_definitions(engine) != first
    assert not books.lacks_definitions(engine, HERE)


def test_what_a_close_puts_in_force_in_one_topic_is_not_in_force_in_another(engine: sa.Engine) -> None:
    for topic in (TOPIC, AGAIN):
        books.register_topic(engine, topic, now=NOON)
        books.add_definitions(engine, definitions(topic.name))
        close = books.next_close(engine, NOON, topic.topic_id)
        assert close not in books.unwritten_closes(engine, "a third one")
        books.mark_written(engine, close.booking)
        books.mark_founded(engine, topic.topic_id)
    there, here = (books.closed_definitions(engine, topic.name) for topic in (AGAIN, TOPIC))
    assert there is not None and here is not None and (there.number, here.number) == (2, 1)
    assert books.lacks_definitions(engine, HERE) and not books.lacks_definitions(engine, AGAIN.topic_id)


def test_closes_of_before_topics_were_noted_are_in_force_and_are_written_once_more(engine: sa.Engine) -> None:
    books.register_topic(engine, TOPIC, now=NOON)
    books.mark_founded(engine, HERE)
    books.add_definitions(engine, definitions("compute.hours"))
    _given_out(engine, TODAY + 1)
    _given_out(engine, TODAY + 2, written=False)
    assert books.closed_definitions(engine, TOPIC.name) == books.newest_definitions(engine)
    assert [close.booking for close in books.unwritten_closes(engine, HERE)] == [TODAY + 2]
    assert books.lacks_definitions(engine, HERE), "nobody knows into which topic they went"


def test_a_topic_keeps_its_partitions_and_its_chunks(engine: sa.Engine) -> None:
    assert books.register_topic(engine, TOPIC) == TOPIC
    books.mark_founded(engine, TOPIC.topic_id)
    assert books.register_topic(engine, TOPIC).founded
    with pytest.raises(ConfigError, match="made with 4 partitions and chunks of 65536, got 8 and 65536"):
        books.register_topic(engine, replace(TOPIC, partitions=8))
    with pytest.raises(LogError, match="was booked: it was made anew"):
        books.register_topic(engine, replace(TOPIC, topic_id="another"))
    with pytest.raises(ConfigError, match=r"kafka\.chunk_size: expected a power of two, got 12"):
        books.register_topic(engine, replace(TOPIC, chunk_size=12))


def test_a_topic_that_follows_none_begins_behind_every_close_of_others(engine: sa.Engine) -> None:
    """Whatever is below may be sealed. Its number is given out once, and no close gets it; who is first needs none."""
    first = books.register_topic(engine, TOPIC, now=NOON)
    close = books.next_close(engine, NOON, HERE)
    new = books.register_topic(engine, AGAIN, now=NOON)
    assert (first.begins, new.begins) == (0, close.booking + 1)
    assert books.register_topic(engine, AGAIN, now=NOON + timedelta(days=1)) == new
    assert {topic.name: topic.begins for topic in books.read_topics(engine)} == {TOPIC.name: 0, AGAIN.name: new.begins}
    assert books.next_close(engine, NOON, HERE).booking == new.begins + 1
    assert new.begins not in [each.booking for each in books.unwritten_closes(engine, HERE)]


def test_a_topic_that_follows_none_begins_by_the_definitions_in_force(engine: sa.Engine) -> None:
    """Once and for ever: whoever reads it again judges what was sent before its first close by the same."""
    books.register_topic(engine, TOPIC, now=NOON)
    for slug in ("compute.hours", "compute.days"):
        books.add_definitions(engine, definitions(slug))
        books.mark_written(engine, books.next_close(engine, NOON, HERE).booking)
    books.add_definitions(engine, definitions("compute.weeks"))
    books.next_close(engine, NOON, HERE)  # nobody knows whether it stands anywhere
    assert books.register_topic(engine, AGAIN, now=NOON).definitions == 2
    books.mark_written(engine, books.next_close(engine, NOON, AGAIN.topic_id).booking)
    assert {topic.name: topic.definitions for topic in books.read_topics(engine)} == {TOPIC.name: 0, AGAIN.name: 2}


def test_a_topic_that_an_older_version_began_keeps_beginning_by_no_definitions(engine: sa.Engine) -> None:
    """So it was booked."""
    books.register_topic(engine, TOPIC, now=NOON)
    _given_out(engine, TODAY + 1)
    begun = books.register_topic(engine, AGAIN, now=NOON)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM close_topics")
    assert begun.definitions == 1 and books.register_topic(engine, AGAIN) == replace(begun, definitions=0)


def test_a_line_is_read_as_of_one_moment_while_a_topic_grows(engine: sa.Engine, control_url: str) -> None:
    books.register_topic(engine, TOPIC, now=NOON)
    other, grown = open_control(control_url), list[str]()

    def grow(connection: sa.Connection, cursor: object, statement: str, *_: object) -> None:
        if "FROM topics" in statement and not grown:
            grown.append(statement)
            books.succeed(other, HERE, replace(AGAIN, name="usage.v2"))

    sa.event.listen(engine, "after_cursor_execute", grow)
    assert [topic.name for topic in books.read_line(engine, TOPIC.name)] == [TOPIC.name]
    assert [topic.name for topic in books.read_line(engine, TOPIC.name)] == [TOPIC.name, "usage.v2"]
    other.dispose()


def test_a_topic_that_follows_another_begins_where_that_one_ends(engine: sa.Engine) -> None:
    books.register_topic(engine, TOPIC, now=NOON)
    grown = books.succeed(engine, TOPIC.topic_id, replace(TOPIC, topic_id=f"b{TOPIC.topic_id[1:]}", name="usage.v2"))
    assert grown.begins == 0


def test_a_store_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    engine = open_control(f"sqlite:///{tmp_path}/control.db")
    engine.dispose()
    (tmp_path / "control.db").write_bytes(b"no database " * 100)
    for read in (books.read_topics, lambda engine: books.read_line(engine, TOPIC.name)):
        with pytest.raises(StoreError, match=f"control store sqlite:///{tmp_path}/control.db: "):
            read(engine)


def test_definitions_of_which_no_decoder_can_be_made_are_not_numbered(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a close that names them no worker could go on."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such field")

    monkeypatch.setattr(close, "open_books", lambda project: engine)
    monkeypatch.setattr(close, "refuse_unbooked", lambda project, engine: None)
    monkeypatch.setattr(close, "_founded", lambda project, engine: TOPIC)
    monkeypatch.setattr(close, "definitions_of", lambda project: definitions("a"))
    monkeypatch.setattr(close, "JsonDecoder", refuse)
    with pytest.raises(ValueError, match="no such field"):
        close.apply_definitions(object())  # type: ignore[arg-type]
    assert books.add_definitions(engine, definitions("b")).number == 1
