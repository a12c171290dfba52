"""Rebuilds have numbers of their own, and the list of those in force changes as a whole, by a compare-and-set."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tallyman import generations
from tallyman.control import open_control
from tallyman.errors import RebuildError
from tallyman.generations import Listed
from tallyman.rebuilds import Switch, newest_generation, read_copy, refuse_to_make_again

SPAN = 1_790_812_800, 1_793_491_200
OCTOBER = Switch(generation=0, definitions=2, meters=("compute.hours",), span=SPAN, last=20_760_000)


@pytest.fixture
def engine(control_url: str) -> Iterator[sa.Engine]:
    engine = open_control(control_url)
    generations.prepare(engine)
    yield engine
    engine.dispose()


def ready(engine: sa.Engine) -> int:
    number = generations.next_generation(engine, OCTOBER, "zoë").switch.generation
    generations.mark_ready(engine, number)
    return number


def test_each_attempt_has_a_number_of_its_own_also_when_it_comes_to_nothing(engine: sa.Engine) -> None:
    first, second = (generations.next_generation(engine, OCTOBER, "zoë") for _ in range(2))
    assert (first.switch.generation, second.switch.generation) == (1, 2)
    assert [each.switch.generation for each in generations.read_attempts(engine)] == [1, 2]
    assert generations.find_attempt(engine, 2).switch == second.switch
    assert (second.switch.span, second.switch.last, second.began_with) == (OCTOBER.span, OCTOBER.last, ())


def test_a_rebuild_comes_into_force_and_is_taken_back_and_may_come_again(engine: sa.Engine) -> None:
    number = ready(engine)
    assert generations.put_in_force(engine, number) == Listed(1, (1,))
    assert generations.take_back(engine, number) == Listed(2, ())
    assert generations.put_in_force(engine, number) == Listed(3, (1,))
    assert generations.read_list(engine) == Listed(3, (1,))


def test_a_switch_is_refused_when_the_list_is_not_what_the_rebuild_began_with(engine: sa.Engine) -> None:
    first, second = ready(engine), ready(engine)
    generations.put_in_force(engine, second)
    third = ready(engine)
    with pytest.raises(RebuildError, match=r"\(nothing but what was booked\), but now that is generation 2: somebody"):
        generations.put_in_force(engine, first)
    assert generations.put_in_force(engine, third) == Listed(2, (2, 3))
    with pytest.raises(RebuildError, match="generation 2 is in force already"):
        generations.put_in_force(engine, second)


def test_only_the_newest_in_force_is_taken_back(engine: sa.Engine) -> None:
    with pytest.raises(RebuildError, match="generation 1 is not in force, which is nothing but what was booked"):
        generations.take_back(engine, 1)
    for _ in range(2):
        generations.put_in_force(engine, ready(engine))
    with pytest.raises(RebuildError, match=r"only the newest .* that is 2; .* First: tallyman rebuild undo 2"):
        generations.take_back(engine, 1)
    assert generations.take_back(engine, 2) == Listed(3, (1,))


def test_what_is_not_complete_does_not_come_into_force(engine: sa.Engine) -> None:
    generations.next_generation(engine, OCTOBER, "zoë")
    with pytest.raises(RebuildError, match="generation 1 is not complete: its rebuild was stopped, or is"):
        generations.put_in_force(engine, 1)
    with pytest.raises(RebuildError, match="generation 7: expected one of tallyman rebuild list, there are 1 to 1"):
        generations.put_in_force(engine, 7)


def _switch(url: str, barrier: Barrier, file: Path, number: int) -> None:
    engine = open_control(url)
    barrier.wait(60)
    try:
        generations.put_in_force(engine, number)
        file.write_text("in force")
    except RebuildError as error:
        file.write_text(str(error))


def test_of_two_processes_that_switch_at_once_one_is_refused(
    engine: sa.Engine, control_url: str, tmp_path: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, numbers = spawn.Barrier(2), [ready(engine), ready(engine)]
    files = [tmp_path / str(number) for number in numbers]
    both = [spawn.Process(target=_switch, args=(control_url, barrier, file, number))
            for file, number in zip(files, numbers, strict=True)]  # fmt: skip
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    told = sorted(file.read_text() for file in files)
    assert told[1] == "in force" and "somebody switched meanwhile" in told[0]
    assert len(generations.read_list(engine).generations) == 1


class Server:
    """ClickHouse, as far as rebuilds and their list are concerned; each is made of one row."""

    def __init__(self, sealed_to: int = 0) -> None:
        self.lists: list[tuple[int, list[int], list[Any]]] = []
        self.rebuilds: dict[int, int] = {}
        self.stored: dict[int, int] = {}
        self.entries: dict[int, tuple[object, ...]] = {}
        self.sealed_to = sealed_to

    def finish(self, *generations: int) -> None:
        self.rebuilds |= dict.fromkeys(generations, 1)
        self.stored |= dict.fromkeys(generations, 1)

    def execute(self, sql: str, rows: Any = None) -> Any:
        if sql.startswith("INSERT INTO switches"):
            self.lists += rows
        elif "FROM switches" in sql:
            return [(max(self.lists, default=(0, [], [])),)]
        elif "FROM seals" in sql:
            return [(self.sealed_to,)]
        elif "greatest" in sql:
            return [(max((0, *self.rebuilds, *self.stored)),)]
        elif "FROM rebuilds" in sql:
            noted = [(*self.entry(number), made) for number, made in self.rebuilds.items()]
            return noted if ", rows" in sql else [each[:-1] for each in noted]
        return list(self.stored.items())

    def entry(self, number: int) -> tuple[object, ...]:
        """Return what a rebuild covers of which nothing else was said."""
        return self.entries.get(number, replace(OCTOBER, generation=number).entry)


@pytest.fixture
def server() -> Any:
    return Server(sealed_to=OCTOBER.last)


def test_readers_get_the_list_as_soon_as_somebody_writes_what_a_crash_left_out(engine: sa.Engine, server: Any) -> None:
    number = ready(engine)
    server.finish(number)
    generations.publish(engine, server)
    assert server.lists == []
    generations.put_in_force(engine, number)
    for _ in range(2):
        assert generations.publish(engine, server) == Listed(1, (1,))
    assert server.lists == [(1, [1], [replace(OCTOBER, generation=1).entry])]


def test_what_a_restored_clickhouse_lost_is_not_put_in_force_for_readers(engine: sa.Engine, server: Any) -> None:
    """Its range would read as nothing; the way out is to take it back, and to rebuild again."""
    first, second = ready(engine), None
    generations.put_in_force(engine, first)
    second = ready(engine)
    generations.put_in_force(engine, second)
    server.finish(first)
    again = r"rebuild again 2\. .*rebuild undo 2\), and rebuild again: tallyman rebuild --meter compute.hours --from 20"
    with pytest.raises(RebuildError, match=f"made of an unknown number of rows, and 0 of them are there.*{again}"):
        generations.publish(engine, server)
    server.rebuilds[second], server.stored[second] = 3, 2
    with pytest.raises(RebuildError, match="generation 2: it was made of 3 rows, and 2 of them are there"):
        generations.publish(engine, server)
    assert server.lists == []
    generations.take_back(engine, second)
    server.sealed_to -= 1
    with pytest.raises(RebuildError, match=r"1: it counts up to booking .* Wait until the pipeline has booked"):
        generations.publish(engine, server)
    server.sealed_to += 1
    assert generations.publish(engine, server) == Listed(3, (1,))


def test_a_restored_control_store_gives_no_number_out_again(engine: sa.Engine, server: Any) -> None:
    """It is older than ClickHouse: neither the numbers of rebuilds nor those of lists begin anew."""
    entry = replace(OCTOBER, generation=4).entry
    server.finish(4)
    server.lists = [(7, [4], [entry])]
    told = r"readers go by a list of rebuilds \(generation 4\) that this control store does not know.*undo 4"
    with pytest.raises(RebuildError, match=told):
        generations.publish(engine, server)
    assert generations.read_list(engine) == Listed(0, ()) and len(server.lists) == 1
    assert generations.take_back(engine, 4, copy=read_copy(server)) == Listed(8, ())
    assert generations.publish(engine, server) == Listed(8, ())
    assert max(server.lists) == (8, [], [])
    attempt = generations.next_generation(engine, OCTOBER, "zoë", newest_generation(server))
    assert attempt.switch.generation == 5


def test_a_restored_control_store_with_the_right_list_goes_on_behind_the_newest_copy(
    engine: sa.Engine, server: Any
) -> None:
    """A rebuild was put in force and taken back after its backup."""
    server.lists = [(2, [], [])]
    assert generations.publish(engine, server) == Listed(3, ())
    number = ready(engine)
    server.finish(number)
    generations.put_in_force(engine, number)
    assert generations.publish(engine, server) == Listed(4, (1,))
    server.lists.append((5, [], []))  # and one that it holds to be in force was taken back
    with pytest.raises(RebuildError, match="tallyman rebuild undo 1"):
        generations.publish(engine, server)
    assert generations.take_back(engine, 1, copy=read_copy(server)) == Listed(4, ()), "nothing changed for readers"
    assert generations.publish(engine, server) == Listed(6, ())


def test_what_readers_alone_have_does_not_go_with_the_undo_of_something_else(engine: sa.Engine, server: Any) -> None:
    """The control store is of when 1 was in force; since then 1 was taken back, and 2 and 3 came."""
    number = ready(engine)
    generations.put_in_force(engine, number)
    server.finish(1, 2, 3)
    server.lists = [(4, [2, 3], [server.entry(2), server.entry(3)])]
    undo = lambda which: generations.take_back(engine, which, copy=read_copy(server))  # noqa: E731
    with pytest.raises(RebuildError, match=r"generation 1 in this control store alone and generations 2, 3 .* undo 1"):
        generations.publish(engine, server)
    with pytest.raises(RebuildError, match=r"but alone has generation 1\. First: tallyman rebuild undo 1"):
        undo(3)
    assert undo(1) == Listed(1, ())
    with pytest.raises(RebuildError, match="undo 3"):
        generations.publish(engine, server)
    assert len(server.lists) == 1
    assert undo(3) == Listed(5, ())
    assert generations.publish(engine, server) == Listed(5, ())
    assert max(server.lists) == (5, [], [])


def test_a_copy_of_a_smaller_number_is_not_overtaken_if_the_control_store_never_had_it(
    engine: sa.Engine, server: Any
) -> None:
    """The control store began anew, and came further than the ClickHouse that is restored then."""
    for _ in range(2):
        generations.put_in_force(engine, ready(engine))
    server.finish(1, 2)
    server.lists = [(1, [7], [server.entry(7)])]
    for theirs in ([7], [2]):
        server.lists = [(1, theirs, [server.entry(each) for each in theirs])]
        with pytest.raises(RebuildError, match="One of the two was restored"):
            generations.publish(engine, server)
    other = replace(OCTOBER, generation=1, meters=("compute.peak",)).entry  # one number stands for two rebuilds
    server.lists = [(2, [1, 2], [other, server.entry(2)])]
    with pytest.raises(RebuildError, match=r"generations 1, 2 in this .* and generations 1, 2 in what .* undo 2"):
        generations.publish(engine, server)
    server.lists = [(1, [1], [server.entry(1)])]
    assert generations.publish(engine, server) == Listed(2, (1, 2))
    server.lists = [(1, [7], [server.entry(7)])]
    with pytest.raises(RebuildError, match="First: tallyman rebuild undo 2"):
        generations.take_back(engine, 7, copy=read_copy(server))


def test_rows_of_another_rebuild_under_the_same_number_are_not_published(engine: sa.Engine, server: Any) -> None:
    """As many as there should be: the control store began anew, then an older ClickHouse was restored."""
    generations.put_in_force(engine, ready(engine))
    server.finish(1)
    server.entries[1] = replace(OCTOBER, generation=1, meters=("compute.peak",)).entry
    with pytest.raises(RebuildError, match=r"another rebuild than the control store, of compute\.peak: .*undo 1"):
        generations.publish(engine, server)
    assert server.lists == []


def test_a_rebuild_is_only_made_again_under_its_own_note_and_when_it_is_sealed(server: Any) -> None:
    mine = replace(OCTOBER, generation=1)
    refuse_to_make_again(server, mine)  # nothing is noted: ClickHouse lost it
    server.finish(1)
    refuse_to_make_again(server, mine)
    server.sealed_to -= 1
    with pytest.raises(RebuildError, match=r"1: it counts up to booking .* Wait until the pipeline has booked"):
        refuse_to_make_again(server, mine)
    server.entries[1] = replace(mine, meters=("compute.peak",)).entry
    with pytest.raises(RebuildError, match=r"another rebuild than the control store, of compute\.peak"):
        refuse_to_make_again(server, mine)


def test_a_store_of_before_lists_were_kept_still_tells_an_older_copy(engine: sa.Engine, server: Any) -> None:
    for _ in range(2):
        generations.put_in_force(engine, ready(engine))
    with engine.begin() as connection:
        connection.execute(sa.delete(generations._past))
    server.finish(1, 2)
    server.lists = [(1, [1], [])]
    assert generations.publish(engine, server) == Listed(2, (1, 2))
