"""Which generation of usage counts where: the list of rebuilds that are in force, as every reader takes it.

Generation 0 is usage as it was booked; it never changes. A rebuild lies beside it, under its own number. The words are
those of `tests/model/rebuild_model.py`, and so are the rules that are named in this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tallyman.errors import StoreError, UsageQueryError

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


def read_switches(client: Client) -> Switches:
    """Read the list: the generations in force, the newest last. One reading serves a whole answer (`list_read_once`).

    Read it before the seal (`list_not_after_the_seal`): what it covers is sealed then, and no hot row is covered.

    Raises:
        StoreError: It names a generation and does not say what that covers.
    """
    newest = "SELECT argMax((generations, entries), (switched, switched_at)) FROM switches"
    listed, entries = client.execute(newest)[0][0]
    found = tuple(map(_switch, entries))
    missing = [number for number in listed if number not in {each.generation for each in found}]
    if missing:
        raise StoreError(
            f"switches: generation {missing[0]} is in force, but the list does not say what it covers; a program of an "
            "older version wrote it. Take the generation back and put it in force again: tallyman rebuild undo, use"
        )
    return found


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
