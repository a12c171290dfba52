"""Which generation of usage counts where: the list of rebuilds that are in force, as every reader takes it.

Generation 0 is usage as it was booked; it never changes. A rebuild lies beside it, under its own number. The words are
those of `tests/model/rebuild_model.py`, and so are the rules that are named in this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tallyman.errors import RebuildError, StoreError, UsageQueryError

if TYPE_CHECKING:
    from clickhouse_driver import Client

Range = tuple[int, int]  # half-open, in seconds since 1970
QUARTER_S = 900  # a rebuild begins and ends with one, so that a quarter is covered as a whole or not at all


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """What a generation covers; in force it is an entry of the list.

    Attributes:
        meters: Their slugs, in order.
        span: The minutes, half-open, in seconds since 1970 (`range_and_meters_only`).
        last: The last booking that it covers: later ones count as they are booked (`cut_off_in_the_list`).
    """

    generation: int
    definitions: int
    meters: tuple[str, ...]
    span: Range
    last: int

    def about(self, meter: str, span: Range) -> bool:
        """Whether it has a say in usage of a meter in a range of minutes."""
        return meter in self.meters and self.span[0] < span[1] and span[0] < self.span[1]

    @property
    def start(self) -> datetime:
        return datetime.fromtimestamp(self.span[0], UTC)

    @property
    def end(self) -> datetime:
        return datetime.fromtimestamp(self.span[1], UTC)

    @property
    def entry(self) -> tuple[object, ...]:
        """What the list says of it, as ClickHouse holds it."""
        return self.generation, self.definitions, list(self.meters), self.start, self.end, self.last


Switches = tuple[Switch, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """The list as readers have it.

    Attributes:
        switched: How often it was changed when it was copied; 0 where there is none yet.
        generations: Those in force, the newest last; `switches`: what these cover, of which a copy that an older
            version wrote lacks some.
    """

    switched: int
    generations: tuple[int, ...]
    switches: Switches

    def switch(self, generation: int, unsaid: Switch) -> Switch:
        """Return what a generation covers; `unsaid` where the copy does not say it."""
        return next((each for each in self.switches if each.generation == generation), unsaid)


def read_copy(client: Client) -> Copy:
    """Read the newest copy of the list, whatever it says."""
    newest = "SELECT argMax((switched, generations, entries), (switched, switched_at)) FROM switches"
    switched, listed, entries = client.execute(newest)[0][0]
    return Copy(int(switched), tuple(listed), tuple(map(_switch, entries)))


def read_switches(client: Client) -> Switches:
    """Read the list: the generations in force, the newest last. One reading serves a whole answer (`list_read_once`).

    Read it before the seal (`list_not_after_the_seal`): what it covers is sealed then, and no hot row is covered.

    Raises:
        StoreError: It names a generation and does not say what that covers.
    """
    copy = read_copy(client)
    missing = [number for number in copy.generations if number not in {each.generation for each in copy.switches}]
    if missing:
        raise StoreError(
            f"switches: generation {missing[0]} is in force, but the list does not say what it covers; a program of an "
            "older version wrote it. Take the generation back and put it in force again: tallyman rebuild undo, use"
        )
    return copy.switches


def read_switches_with(client: Client, generation: int) -> Switches:
    """Read the list as if a generation were the newest in it; as if there were no list, for generation 0.

    Raises:
        UsageQueryError: There is no such generation, or not all of it is there.
    """
    if generation == 0:
        return ()
    found = {each.generation: each for each in _read(client, [generation])}
    if generation not in found:
        known = [number for (number,) in client.execute("SELECT generation FROM rebuilds FINAL ORDER BY generation")]
        listed = f": {', '.join(map(str, (0, *known)))}" if known else ": only 0, nothing was rebuilt yet"
        raise UsageQueryError(f"generation: expected one that is complete, got {generation}; there are{listed}")
    others = (each for each in read_switches(client) if each.generation != generation)
    return (*others, found[generation])


def newest_generation(client: Client) -> int:
    """Return the newest number that rows were written under, whether or not they came to anything; 0 for none."""
    newest = "SELECT greatest((SELECT max(generation) FROM rebuilds), (SELECT max(generation) FROM usage_rebuilt))"
    return int(client.execute(newest)[0][0])


def refuse_lost(client: Client, switches: Switches) -> None:
    """Refuse rebuilds of which not all rows are there (any more), or whose last booking is not sealed (any more): their
    range would read as nothing, or as half (`all_rows_first`, `only_what_is_sealed`).

    Not asked by readers: only ClickHouse that was restored from a backup has lost some.

    Raises:
        RebuildError: Says of the newest such one what to do.
    """
    if not switches:
        return
    asked = {"generations": [each.generation for each in switches]}
    mine = "WHERE generation IN %(generations)s"
    entry = "generation, definitions, meters, first_minute, end_minute, last_booking"
    made = f"SELECT {entry}, rows FROM rebuilds FINAL {mine}"  # noqa: S608 - our own words
    stored = f"SELECT generation, count() FROM usage_rebuilt {{}} {mine} GROUP BY generation"  # noqa: S608
    noted = {int(generation): (_switch((generation, *entry)), int(rows))
             for generation, *entry, rows in client.execute(made, asked)}  # fmt: skip
    there = dict(client.execute(stored.format(""), asked))
    if any(there.get(number, 0) > rows for number, (_, rows) in noted.items()):  # a block was written twice
        there = dict(client.execute(stored.format("FINAL"), asked))
    sealed_to = int(client.execute("SELECT max(booking) FROM seals")[0][0])
    for each in reversed(switches):
        number = each.generation
        if number in noted and noted[number][0] != each:
            raise RebuildError(
                f"generation {number}: under this number ClickHouse has another rebuild than the control store, of "
                f"{', '.join(noted[number][0].meters)}: one of the two was restored from an older backup. Take it back "
                f"if it is in force (tallyman rebuild undo {number}), and rebuild again: {_command(each)}"
            )
        if number not in noted or noted[number][1] != there.get(number, 0):
            made_of = noted[number][1] if number in noted else "an unknown number of"
            raise RebuildError(
                f"generation {number}: it was made of {made_of} rows, and {there.get(number, 0)} of them are there: "
                f"ClickHouse was restored from an older backup, or rows were deleted. Make the same again: tallyman "
                f"rebuild again {number}. Or take it back if it is in force (tallyman rebuild undo {number}), and "
                f"rebuild again: {_command(each)}"
            )
        _refuse_unsealed(each, sealed_to)


def refuse_to_make_again(client: Client, switch: Switch) -> None:
    """Refuse to write rows of a rebuild once more, where under its number another one's are noted, or where its last
    booking is not sealed.

    Raises:
        RebuildError: Says what to do.
    """
    noted = tuple(_read(client, [switch.generation]))
    if noted and noted[0] != switch:
        refuse_lost(client, (switch,))
    _refuse_unsealed(switch, int(client.execute("SELECT max(booking) FROM seals")[0][0]))


def _refuse_unsealed(switch: Switch, sealed_to: int) -> None:
    if switch.last > sealed_to:
        raise RebuildError(
            f"generation {switch.generation}: it counts up to booking {switch.last}, and sealed is only up to "
            f"{sealed_to}: ClickHouse was restored from an older backup. Wait until the pipeline has booked and sealed "
            "that again (tallyman status), then run this again"
        )


def _command(switch: Switch) -> str:
    meters = " ".join(f"--meter {name}" for name in switch.meters)
    return f"tallyman rebuild {meters} --from {switch.start:%Y-%m-%dT%H:%MZ} --to {switch.end:%Y-%m-%dT%H:%MZ}"


def in_force_sql(switches: Switches) -> str:
    """Return the SQL of the generation that counts at a row's place: the last one in the list that covers it, else 0.

    A row counts if it is of this generation, whichever table it lies in. So what is covered goes, also where the
    rebuild has no row in its place (`whole_range_goes`).

    Args:
        switches: Those about the row's meter; its minute and booking decide.
    """
    if not switches:
        return "0"
    covering = ", ".join(f"{_covers(each)}, {each.generation}" for each in reversed(switches))
    return f"multiIf({covering}, 0)"


def _covers(switch: Switch) -> str:
    first, end = switch.span
    return f"minute >= toDateTime({first}, 'UTC') AND minute < toDateTime({end}, 'UTC') AND booking <= {switch.last}"


def _read(client: Client, generations: list[int]) -> Iterator[Switch]:
    rows = client.execute(
        "SELECT generation, definitions, meters, first_minute, end_minute, last_booking FROM rebuilds FINAL"
        " WHERE generation IN %(generations)s",
        {"generations": list(generations)},
    )
    return map(_switch, rows)


def _switch(entry: Sequence[Any]) -> Switch:
    generation, definitions, meters, first, end, last = entry
    span = int(first.timestamp()), int(end.timestamp())
    return Switch(generation=generation, definitions=definitions, meters=tuple(meters), span=span, last=last)
