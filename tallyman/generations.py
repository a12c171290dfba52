"""The control store's word on rebuilds: their numbers, and the list of those that are in force.

The list changes by a compare-and-set on the whole of it. ClickHouse has a copy, from which readers take it; the copy is
written again as long as it is behind, and of several copies the one that was made last counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

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
# Each list that there was, and each that an operator took for a past one: a copy of any other is not an older one of
# this control store, whatever its number.
_past = sa.Table(
    "past_switches",
    _metadata,
    sa.Column("switched", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entries", sa.Text, nullable=False),
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
    migrate(engine, "rebuilds", [_metadata.create_all, lambda connection: _past.create(connection, checkfirst=True)])


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

    Where readers go by another list, which this control store, restored, does not know, what it alone has goes first,
    and changes nothing for readers. Then the newest of what they alone have is taken back, with all else that they
    alone have, by letting the list count as it is.

    Args:
        copy: What readers have.

    Raises:
        RebuildError: It is not in force, or another one came after it or has to go first.
    """
    with write(engine) as connection:
        listed = _listed(connection)
        apart = _apart(connection, copy)
        if generation in apart.there and generation not in apart.here:
            if apart.here:
                raise RebuildError(
                    f"generation {generation}: readers have it in force; this control store does not, but alone has "
                    f"{_named(apart.here)}. First: tallyman rebuild undo {apart.here[-1]}"
                )
            may(connection)
            _note_past(connection, copy.switched, copy.switches)
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
        if apart.here or apart.there:  # its number stays, so that it does not overtake what readers have
            return _change(connection, listed, listed.generations[:-1], keep_number=True)
        return _change(connection, listed, listed.generations[:-1], copy.switched)


def publish(engine: sa.Engine, client: Client) -> Listed:
    """Write the list to where readers take it from, unless it is there already; again changes nothing.

    A copy that comes late is an older one, and does not count (`newest_copy_counts`).

    Raises:
        RebuildError: ClickHouse or the control store was restored from a backup: rows of what is in force are not
            there, or readers have another list that is no older one of this control store's. Nothing was changed.
    """
    copy = read_copy(client)
    with read(engine) as connection:  # behind the copy: what somebody switched meanwhile is in it
        listed, attempts, apart = _listed(connection), _switches(connection), _apart(connection, copy)
    if apart.here or apart.there:
        _refuse_other(listed, copy, apart)
    switches = tuple(attempts[number] for number in listed.generations)
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


class _Apart(NamedTuple):
    """Where readers go by a list that is no older one of this control store's: the generations in force by one of the
    two alone. A rebuild counts on top of those before it, so what stands behind the first difference differs.
    """

    here: tuple[int, ...] = ()
    there: tuple[int, ...] = ()


def _apart(connection: sa.Connection, copy: Copy) -> _Apart:
    listed, switches = _listed(connection), _switches(connection)
    same = 0
    for mine, theirs in zip(listed.generations, copy.generations, strict=False):
        if mine != theirs or copy.switch(theirs, switches[mine]) != switches[mine]:
            break  # one number may stand for two rebuilds
        same += 1
    if copy.switched < listed.switched and _is_past(connection, copy, switches):
        return _Apart()
    return _Apart(listed.generations[same:], copy.generations[same:])


def _is_past(connection: sa.Connection, copy: Copy, switches: Mapping[int, Switch]) -> bool:
    """Tell whether a copy of a smaller number is of a list that this control store had."""
    past = sa.select(_past.c.entries).where(_past.c.switched == copy.switched)
    noted = connection.execute(past).scalar()
    if noted is not None and len(copy.switches) == len(copy.generations):
        return bool(noted == _entries(copy.switches))
    # It is of before lists were kept.
    return all(number in switches and copy.switch(number, switches[number]) == switches[number]
               for number in copy.generations)  # fmt: skip


def _note_past(connection: sa.Connection, switched: int, switches: Sequence[Switch]) -> None:
    connection.execute(sa.delete(_past).where(_past.c.switched == switched))
    connection.execute(sa.insert(_past).values(switched=switched, entries=_entries(switches)))


def _refuse_other(listed: Listed, copy: Copy, apart: _Apart) -> None:
    what = " and ".join(
        f"{_named(numbers)} in {where} alone"
        for numbers, where in ((apart.here, "this control store"), (apart.there, "what readers have"))
        if numbers
    )
    raise RebuildError(
        f"readers go by a list of rebuilds ({_named(copy.generations)}) that this control store does not know, its own "
        f"is {_named(listed.generations)}; in force is {what}. One of the two was restored from a backup. Point "
        "control.url at the right store, or restore a newer backup of it; if there is none, take back what is in force "
        f"in one alone, beginning with: tallyman rebuild undo {(apart.here or apart.there)[-1]}"
    )


def _change(
    connection: sa.Connection,
    listed: Listed,
    generations: tuple[int, ...],
    above: int = 0,
    *,
    keep_number: bool = False,
) -> Listed:
    changed = Listed(listed.switched if keep_number else max(listed.switched, above) + 1, generations)
    if not keep_number:
        switches = _switches(connection)
        _note_past(connection, changed.switched, [switches[number] for number in generations])
    values = {"switched": changed.switched, "generations": _encode(generations)}
    if listed.switched == 0:
        connection.execute(sa.insert(_list).values(id=1, **values))
        return changed
    expected = {"id": 1, "switched": listed.switched, "generations": _encode(listed.generations)}
    if not compare_and_set(connection, _list, expected, values):
        raise RebuildError("the list of rebuilds was changed meanwhile; look at tallyman rebuild list")
    return changed


def _switches(connection: sa.Connection) -> Mapping[int, Switch]:
    """Return what each rebuild covers that was ever begun."""
    return {row.generation: _attempt(row).switch for row in connection.execute(sa.select(_generations))}


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


def _entries(switches: Sequence[Switch]) -> str:
    return _encode([each.entry for each in switches])


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _named(generations: Sequence[int]) -> str:
    if not generations:
        return "nothing but what was booked"
    return f"generation{'s' if len(generations) > 1 else ''} {', '.join(map(str, generations))}"
