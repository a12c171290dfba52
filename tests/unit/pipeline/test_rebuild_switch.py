"""`tallyman rebuild use` and `undo`, run again behind one that was killed; and behind a backup that was restored."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from pipeline import switch as room
from tallyman import generations
from tallyman.errors import RebuildError
from tests.unit.test_generations import OCTOBER, Server, engine, ready

__all__ = ["engine"]


def test_use_and_undo_tell_readers_also_what_was_done_before(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "open_books", lambda project: engine)
    project: Any = None
    server: Any = Server(sealed_to=OCTOBER.last)
    server.finish(number := ready(engine))
    generations.put_in_force(engine, number)  # and was killed
    with pytest.raises(RebuildError, match="in force already"):
        room.put_in_force(project, server, number, lambda _: None)
    assert max(server.lists)[:2] == (1, [number])
    generations.take_back(engine, number)  # and was killed
    with pytest.raises(RebuildError, match="is not in force"):
        room.undo(project, server, number, lambda _: None)
    assert max(server.lists)[:2] == (2, [])


def test_what_only_readers_know_of_can_be_taken_back(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control store is of before the rebuild; whether its usage is invoiced is asked of what readers know."""
    monkeypatch.setattr(room, "open_books", lambda project: engine)
    project: Any = None
    server: Any = Server()
    server.lists = [(1, [1], [(1, 2, ["compute.hours"], OCTOBER.start, OCTOBER.end, OCTOBER.last)])]
    assert room.find_switch(project, server, 1).meters == OCTOBER.meters
    with pytest.raises(RebuildError, match="nothing was rebuilt yet"):
        room.find_switch(project, server, 2)
    with pytest.raises(RebuildError, match="rebuild undo 1"):
        room.read_attempts(project, server)
    room.undo(project, server, 1, lambda _: None)
    assert room.read_attempts(project, server) == []
    assert max(server.lists) == (2, [], [])


def test_who_is_told_to_take_an_older_one_back_is_told_which_goes_first(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the older one were deleted: the sentence that says so hid that the newer one has to go first, and named
    the same command again.
    """
    monkeypatch.setattr(room, "open_books", lambda project: engine)
    project: Any = None
    server: Any = Server(sealed_to=OCTOBER.last)
    for number in (1, 2):
        generations.put_in_force(engine, ready(engine))
        server.finish(number)
    server.stored[1] = 0
    with pytest.raises(RebuildError, match=r"generation 1: it was made of .*undo 1\)"):
        room.read_attempts(project, server)
    with pytest.raises(RebuildError, match="First: tallyman rebuild undo 2"):
        room.undo(project, server, 1, lambda _: None)
