"""The control store's word on rebuilds: their numbers, and the list of those that are in force.

The list changes by a compare-and-set on the whole of it. ClickHouse has a copy, from which readers take it; the copy is
written again as long as it is behind, and of several copies the one that was made last counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from tallyman.control import compare_and_set, migrate, read, write
from tallyman.errors import RebuildError
from tallyman.rebuilds import Copy, Switch, read_copy, refuse_lost

if TYPE_CHECKING:
    from clickhouse_driver import Client

_metadata = sa.MetaData()
_generations = sa.Table(
    "generations",
    _metadata,
    sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("definitions", sa.Integer, nullable=False),
    sa.Column("meters", sa.Text, nullable=False),
    sa.Column("first_s", sa.BigInteger, nullable=False),
    sa.Column("end_s", sa.BigInteger, nullable=False),
    sa.Column("last_booking", sa.BigInteger, nullable=False),
    sa.Column("began_with", sa.Text, nullable=False),  # the list that its operator saw
    sa.Column("ready", sa.Boolean, nullable=False),
    sa.Column("who", sa.String, nullable=False),
    sa.Column("made_at", sa.String, nullable=False),
)
_list = sa.Table(
    "switches",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("switched", sa.BigInteger, nullable=False),  # how often it was changed
    sa.Column("generations", sa.Text, nullable=False),
)


NO_COPY = Copy(0, (), ())
# Raises what speaks against a change of the list; called in the transaction that changes it, before it does.
May = Callable[[sa.Connection], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A rebuild that was begun.

    Attributes:
        began_with: The generations that were in force then: it comes into force only after exactly these.
        ready: All its rows are there, so that it can be compared and put in force.
    """

    switch: Switch
    began_with: tuple[int, ...]
    ready: bool
    who: str
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Listed:
    """The list: the generations in force, the newest last, and how often it was changed."""

    switched: int
    generations: tuple[int, ...]


def prepare(engine: sa.Engine) -> None:
    """Make the tables of this module, once."""
    migrate(engine, "rebuilds", [_metadata.create_all])


def read_list(engine: sa.Engine) -> Listed:
    """Return the list as it is now."""
    with read(engine) as connection:
        return _listed(connection)


def listed_in(connection: sa.Connection) -> Listed:
    """Return the list inside a transaction of somebody who goes by it."""
    return _listed(connection)


def read_attempts(engine: sa.Engine) -> Sequence[Attempt]:
    """Return all rebuilds that were ever begun, in order of their numbers."""
    with read(engine) as connection:
        return [
            _attempt(row) for row in connection.execute(sa.select(_generations).order_by(_generations.c.generation))
        ]


def find_attempt(engine: sa.Engine, generation: int) -> Attempt:
    """Return a rebuild.

    Raises:
        RebuildError: There is none of this number.
    """
    attempts = {each.switch.generation: each for each in read_attempts(engine)}
    if generation not in attempts:
        there = f"there are 1 to {max(attempts)}" if attempts else "nothing was rebuilt yet"
        raise RebuildError(f"generation {generation}: expected one of tallyman rebuild list, {there}")
    return attempts[generation]


def find_ready(engine: sa.Engine, generation: int) -> Attempt:
    """Return a rebuild of which everything is there.

    Raises:
        RebuildError: There is none of this number, or it is not complete.
    """
    attempt = find_attempt(engine, generation)
    if not attempt.ready:
        raise RebuildError(
            f"generation {generation} is not complete: its rebuild was stopped, or is still at work; make a new "
            f"one: tallyman rebuild --meter {attempt.switch.meters[0]} --from WHEN --to WHEN"
        )
    return attempt


def next_generation(engine: sa.Engine, switch: Switch, who: str, above: int = 0) -> Attempt:
    """Begin a rebuild: give it a number, which stays used when it comes to nothing (`a_number_of_its_own`).

    Args:
        above: The newest one that ClickHouse has rows of; a control store that was restored does not know it.
    """
    now = datetime.now(UTC)
    with write(engine) as connection:
        known = connection.execute(sa.select(sa.func.max(_generations.c.generation))).scalar() or 0
        newest = max(known, above)
        began_with = _listed(connection).generations
        connection.execute(sa.insert(_generations).values(
            generation=newest + 1, definitions=switch.definitions, meters=_encode(switch.meters),
            first_s=switch.span[0], end_s=switch.span[1], last_booking=switch.last, began_with=_encode(began_with),
            ready=False, who=who, made_at=now.isoformat(),
        ))  # fmt: skip
    numbered = Switch(generation=newest + 1, definitions=switch.definitions, meters=switch.meters, span=switch.span,
                      last=switch.last)  # fmt: skip
    return Attempt(switch=numbered, began_with=began_with, ready=False, who=who, made_at=now)


def mark_ready(engine: sa.Engine, generation: int) -> None:
    """Note that all rows of a rebuild were acknowledged (`all_rows_first`)."""
    with write(engine) as connection:
        connection.execute(
            sa.update(_generations).where(_generations.c.generation == generation).values(ready=True)
        )  # fmt: skip


def put_in_force(engine: sa.Engine, generation: int, may: May = lambda _: None) -> Listed:
    """Append a generation to the list, if the list is still the one that its rebuild began with (`compare_and_set`).

    Raises:
        RebuildError: Somebody changed the list since then; or it is in force already, or not complete.
    """
    attempt = find_ready(engine, generation)
    with write(engine) as connection:
        listed = _listed(connection)
        if generation in listed.generations:
            raise RebuildError(f"generation {generation} is in force already; see: tallyman rebuild list")
        if listed.generations != attempt.began_with:
            raise RebuildError(
                f"generation {generation} was compared with what was in force when it was begun "
                f"({_named(attempt.began_with)}), but now that is {_named(listed.generations)}: somebody switched "
                "meanwhile. Nothing was changed; look at tallyman rebuild list, then rebuild again"
            )
        may(connection)
        return _change(connection, listed, (*listed.generations, generation))


def take_back(engine: sa.Engine, generation: int, may: May = lambda _: None, copy: Copy = NO_COPY) -> Listed:
    """Take the newest generation of the list back: what it replaced counts again.

    Args:
        copy: What readers have. A generation in it that this control store, restored, does not know is taken back by
            letting the list count as it is.

    Raises:
        RebuildError: It is not in force, or another one came after it.
    """
    with write(engine) as connection:
        listed = _listed(connection)
        if generation in copy.generations and generation not in listed.generations and copy.switched >= listed.switched:
            may(connection)
            return _change(connection, listed, listed.generations, copy.switched)
        if generation not in listed.generations:
            raise RebuildError(f"generation {generation} is not in force, which is {_named(listed.generations)}")
        if listed.generations[-1] != generation:
            newest = listed.generations[-1]
            raise RebuildError(
                f"generation {generation}: only the newest in force can be taken back, and that is {newest}; it was "
                f"compared with usage where {generation} counted. First: tallyman rebuild undo {newest}"
            )
        may(connection)
        return _change(connection, listed, listed.generations[:-1], copy.switched)


def publish(engine: sa.Engine, client: Client) -> Listed:
    """Write the list to where readers take it from, unless it is there already; again changes nothing.

    A copy that comes late is an older one, and does not count (`newest_copy_counts`).

    Raises:
        RebuildError: ClickHouse or the control store was restored from a backup: rows of what is in force are not
            there, or readers have another list that is newer. Nothing was changed.
    """
    listed, copy = read_list(engine), read_copy(client)
    if copy.switched > listed.switched:
        listed = read_list(engine)  # somebody switched meanwhile
    attempts = {each.switch.generation: each.switch for each in read_attempts(engine)}
    switches = tuple(attempts[number] for number in listed.generations)
    if copy.switched >= listed.switched and not _same(copy, listed, switches):
        _refuse_older(listed, copy)
    refuse_lost(client, switches)
    if copy.switched > listed.switched:
        with write(engine) as connection:
            if _listed(connection) == listed:  # else whoever changed it copies it
                listed = _change(connection, listed, listed.generations, copy.switched)
    if listed.switched > copy.switched:
        client.execute(
            "INSERT INTO switches (switched, generations, entries) VALUES",
            [(listed.switched, list(listed.generations), [each.entry for each in switches])],
        )
    return listed


def _same(copy: Copy, listed: Listed, switches: Sequence[Switch]) -> bool:
    """Whether a copy says what the list does; what an older version wrote may not say what a generation covers."""
    return copy.generations == listed.generations and all(each in switches for each in copy.switches)


def _refuse_older(listed: Listed, copy: Copy) -> None:
    here = [number for number in copy.generations if number not in listed.generations]
    newest = (here or listed.generations)[-1]
    raise RebuildError(
        f"readers go by a list of rebuilds ({_named(copy.generations)}) that this control store does not know: its own "
        f"({_named(listed.generations)}) is older. Point control.url at the right store, or restore a newer backup of "
        f"it; if there is none, take back what is in only one of the two: tallyman rebuild undo {newest}"
    )


def _change(connection: sa.Connection, listed: Listed, generations: tuple[int, ...], above: int = 0) -> Listed:
    changed = Listed(max(listed.switched, above) + 1, generations)
    values = {"switched": changed.switched, "generations": _encode(generations)}
    if listed.switched == 0:
        connection.execute(sa.insert(_list).values(id=1, **values))
        return changed
    expected = {"id": 1, "switched": listed.switched, "generations": _encode(listed.generations)}
    if not compare_and_set(connection, _list, expected, values):
        raise RebuildError("the list of rebuilds was changed meanwhile; look at tallyman rebuild list")
    return changed


def _listed(connection: sa.Connection) -> Listed:
    row = connection.execute(sa.select(_list).where(_list.c.id == 1)).one_or_none()
    return Listed(0, ()) if row is None else Listed(row.switched, tuple(msgspec.json.decode(row.generations)))


def _attempt(row: sa.Row[tuple[object, ...]]) -> Attempt:
    switch = Switch(
        generation=row.generation,
        definitions=row.definitions,
        meters=tuple(msgspec.json.decode(row.meters)),
        span=(row.first_s, row.end_s),
        last=row.last_booking,
    )
    return Attempt(
        switch=switch,
        began_with=tuple(msgspec.json.decode(row.began_with)),
        ready=row.ready,
        who=row.who,
        made_at=datetime.fromisoformat(row.made_at),
    )


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _named(generations: Sequence[int]) -> str:
    if not generations:
        return "nothing but what was booked"
    return f"generation{'s' if len(generations) > 1 else ''} {', '.join(map(str, generations))}"
