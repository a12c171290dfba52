"""Executable specification of what restored stores may do to rebuilds: ClickHouse and the control store, each put back
to a backup of any moment, while invoices are made from what is in force.

The control store has the attempts by number and the list of those in force; ClickHouse their rows, a note of how many
they are, the copy of the list that readers go by, and which bookings are sealed. A backup of ClickHouse takes its
tables one after the other. Who restores has stopped everything else.

    python -m tests.model.restore_model 20000                          # all rules on
    python -m tests.model.restore_model 2000 rows_are_asked_for        # without the rules named
    python -m tests.model.restore_model 500 each                       # without one rule at a time

What breaks names itself:
    R1 invoice   each rebuild that an invoice counts has exactly its own rows, and is sealed
    R2 readers   what readers go by changes by the last word on a rebuild that a store knows of, and by nothing else
    R3 way out   who does what the sentences say comes to invoices again
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from tests.model.chunk_model import Broken
from tests.model.survey import command

STEPS, PATIENCE = 400, 12


@dataclass(frozen=True)
class RestoreRules:
    """What `tallyman.generations` and `pipeline.switch` keep to, each of which can be switched off."""

    rows_are_asked_for: bool = True  # nothing is published of which not all rows are there
    notes_say_of_which: bool = True  # numbers may have been given out twice, by a control store that was restored
    seals_are_asked_for: bool = True  # nor what counts up to a booking that is not sealed any more
    a_newer_copy_is_refused: bool = True  # one that says something else: then the control store is the older of the two
    older_copies_are_known: bool = True  # else it is of a list that the control store, restored, never had
    published_first: bool = True  # before a command changes the list, so that it never grows past a newer copy
    numbers_behind_the_rows: bool = True  # a control store that was restored does not know all numbers that have rows
    what_readers_have_goes_by_name: bool = True  # an undo of something else leaves what readers alone have


class Refused(Exception):
    """A command changed nothing, and says which rebuild to take back; 0: wait until all is sealed again."""

    def __init__(self, generation: int) -> None:
        super().__init__(generation)
        self.generation = generation


@dataclass(frozen=True)
class Attempt:
    """A rebuild as the control store has it. `made`: which of all that were ever made it is."""

    made: int
    last: int
    began_with: tuple[int, ...]
    ready: bool = False


@dataclass(frozen=True)
class Listed:
    """The generations in force, and how often that was changed.

    Attributes:
        made: What each of them is; in a copy.
        words: What operators said last that led to this list: by which rebuild, when, and whether it shall be in force.
    """

    switched: int = 0
    generations: tuple[int, ...] = ()
    made: tuple[int, ...] = ()
    words: Mapping[int, tuple[int, bool]] = field(default_factory=dict)


@dataclass
class Control:
    """The control store."""

    attempts: dict[int, Attempt] = field(default_factory=dict)
    listed: Listed = Listed()
    history: dict[int, tuple[int, ...]] = field(default_factory=dict)  # each list that there was, or is taken for one
    had: dict[int, tuple[int, ...]] = field(default_factory=dict)  # each that there was; nobody goes by this


@dataclass
class Tables:
    """ClickHouse."""

    copy: Listed = Listed()
    noted: dict[int, tuple[int, int]] = field(default_factory=dict)  # how many rows each generation has, and of which
    rows: dict[tuple[int, int], int] = field(default_factory=dict)  # by (generation, key): of which that was made
    sealed_to: int = 0


Step = Iterator[None]
Store = TypeVar("Store", Control, Tables)


class RestoreWorld:
    """Both stores, their backups, and what operators said."""

    def __init__(self, seed: int, rules: RestoreRules) -> None:
        self.rng, self.rules = random.Random(seed), rules
        self.control, self.tables = Control(), Tables()
        self.controls: list[Control] = [Control()]
        self.backups: list[Tables] = [Tables()]
        self.made = self.said = self.sealed_ever = 0

    def change(self, before: Listed, after: Listed, *said: int, in_force: bool) -> None:
        """Change the list by an operator's word on some generations, unless somebody else changed it meanwhile."""
        if self.control.listed != before:
            raise Refused(0)
        self.said += 1
        attempts, copied = self.control.attempts, dict(zip(*self._copied(), strict=True))
        meant = {attempts[number].made for number in said if number in attempts}
        meant |= {copied[number] for number in said if number in copied}
        self.put(replace(after, words={**before.words, **dict.fromkeys(meant, (self.said, in_force))}))

    def put(self, listed: Listed) -> Listed:
        if listed.switched != self.control.listed.switched:
            self.control.history[listed.switched] = self.control.had[listed.switched] = self.made_of(listed)
        self.control.listed = listed
        return listed

    def made_of(self, listed: Listed) -> tuple[int, ...]:
        return tuple(self.control.attempts[number].made for number in listed.generations)

    def apart(self, copy: Listed) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what is in force by the list alone, and by a copy alone that is no older one of it.

        A rebuild counts on top of those before it: all behind the first difference differ.
        """
        listed, same = self.control.listed, 0
        for mine, theirs in zip(self.made_of(listed), copy.made, strict=False):
            if mine != theirs:
                break
            same += 1
        if copy.switched < listed.switched and self._is_past(copy):
            return (), ()
        return listed.generations[same:], copy.generations[same:]

    def _is_past(self, copy: Listed) -> bool:
        """Tell whether the control store had the list that a copy is of."""
        if not self.rules.older_copies_are_known or not copy.switched:
            return True
        return self.control.history.get(copy.switched) == copy.made

    def _copied(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.tables.copy.generations, self.tables.copy.made

    def copy(self, listed: Listed, attempts: Mapping[int, Attempt]) -> None:
        """Write a copy for readers; of several the one that was made last counts."""
        if listed.switched <= self.tables.copy.switched:
            return
        made = tuple(attempts[number].made for number in listed.generations)
        past = self.tables.copy.switched and self.control.had.get(self.tables.copy.switched)
        for each in {*self.tables.copy.made} ^ {*made}:
            if past == self.tables.copy.made:
                break  # also where two histories came to one list under one number: those cannot be told apart
            last = max(words.get(each, (0, False)) for words in (listed.words, self.tables.copy.words))
            if last[1] != (each in made):
                raise Broken("R2 readers go by another list, and no operator said so")
        self.tables.copy = replace(listed, made=made)

    def refuse_lost(self, attempts: Mapping[int, Attempt], generations: tuple[int, ...]) -> None:
        """Refuse rebuilds of which not all is there."""
        for number in reversed(generations):
            there = sum(1 for generation, _ in self.tables.rows if generation == number)
            rows, made = self.tables.noted.get(number, (-1, 0))
            if self.rules.rows_are_asked_for and rows != there:
                raise Refused(number)
            if self.rules.notes_say_of_which and made != attempts[number].made:
                raise Refused(number)
            if self.rules.seals_are_asked_for and attempts[number].last > self.tables.sealed_to:
                raise Refused(0)

    def check_invoice(self) -> None:
        """R1, of what readers go by now."""
        tables = self.tables
        for generation, made in zip(*self._copied(), strict=True):
            found = [of for (number, _), of in tables.rows.items() if number == generation]
            if found != [made] * rows_of(made):
                raise Broken("R1 an invoice counts rows that are not all there, or another's")
            attempt = self.control.attempts.get(generation)
            if attempt is None or attempt.made != made or attempt.last > tables.sealed_to:
                raise Broken("R1 an invoice counts what is not sealed")


def rows_of(made: int) -> int:
    return 1 + made % 3


def publish(world: RestoreWorld) -> Step:
    """Write the list to where readers take it from, as `generations.publish` does."""
    copy = world.tables.copy
    yield
    listed, (here, there), attempts = world.control.listed, world.apart(copy), dict(world.control.attempts)
    if world.rules.a_newer_copy_is_refused and (here or there):
        raise Refused((here or there)[-1])
    yield
    world.refuse_lost(attempts, listed.generations)
    yield
    if copy.switched > listed.switched and world.control.listed == listed:
        listed = world.put(replace(listed, switched=copy.switched + 1))
    yield
    if listed.switched > copy.switched:
        world.copy(listed, attempts)


def rebuild(world: RestoreWorld) -> Step:
    """Make a rebuild; killed in between, it leaves rows that nobody reads."""
    if world.rules.published_first:
        yield from publish(world)
    last = world.tables.sealed_to
    yield
    above = max((0, *world.tables.noted, *(generation for generation, _ in world.tables.rows)))
    yield
    known = max(world.control.attempts, default=0)
    number = 1 + (max(known, above) if world.rules.numbers_behind_the_rows else known)
    world.made += 1
    made = world.made
    world.control.attempts[number] = Attempt(made, last, world.control.listed.generations)
    for key in range(rows_of(made)):
        yield
        world.tables.rows[number, key] = made
    yield
    world.tables.noted[number] = sum(1 for generation, _ in world.tables.rows if generation == number), made
    yield
    world.control.attempts[number] = replace(world.control.attempts[number], ready=True)


def use(world: RestoreWorld) -> Step:
    """Put a rebuild in force that is ready, most often the newest."""
    ready = [number for number, each in world.control.attempts.items() if each.ready]
    if not ready:
        return
    number = world.rng.choice((*ready, max(ready), max(ready)))
    if world.rules.published_first:
        yield from publish(world)
    attempts, listed = world.control.attempts, world.control.listed
    world.refuse_lost(attempts, (number,))
    yield
    listed = world.control.listed
    if number in listed.generations or listed.generations != attempts[number].began_with:
        raise Refused(0)
    world.change(listed, Listed(listed.switched + 1, (*listed.generations, number)), number, in_force=True)
    yield from publish(world)


def undo(world: RestoreWorld, generation: int) -> Step:
    """Take the newest rebuild in force back.

    Where the lists are apart, what this store alone has goes first, and changes nothing for readers; the newest of what
    they alone have goes with all else that they alone have.
    """
    copy = world.tables.copy
    yield
    listed, (here, there) = world.control.listed, world.apart(copy)
    by_name = world.rules.what_readers_have_goes_by_name
    behind = max(listed.switched, copy.switched) + 1
    if generation in there and generation not in here:
        if by_name and here:
            raise Refused(here[-1])
        said = there if by_name else (generation,)
        world.change(listed, Listed(behind, listed.generations), *said, in_force=False)
        world.control.history[copy.switched] = copy.made
    elif listed.generations[-1:] != (generation,):
        with suppress(Refused):
            yield from publish(world)
        raise Refused(listed.generations[-1] if generation in listed.generations else 0)
    else:
        number = listed.switched if by_name and (here or there) else behind
        world.change(listed, Listed(number, listed.generations[:-1]), generation, in_force=False)
    yield from publish(world)


def again(world: RestoreWorld, number: int) -> Step:
    """Write the rows of a rebuild once more, under its own number, as `pipeline.rebuild.make_again` does."""
    attempt = world.control.attempts.get(number)
    if attempt is None or not attempt.ready:
        raise Refused(0)
    yield
    if world.rules.notes_say_of_which and world.tables.noted.get(number, (0, attempt.made))[1] != attempt.made:
        raise Refused(number)
    if attempt.last > world.tables.sealed_to:
        raise Refused(0)
    for key in range(rows_of(attempt.made)):
        yield
        world.tables.rows[number, key] = attempt.made
    yield
    there = sum(1 for generation, _ in world.tables.rows if generation == number)
    if there != rows_of(attempt.made):
        raise Refused(number)  # rows of another rebuild, which are to be thrown away by hand
    yield
    world.tables.noted[number] = there, attempt.made


def invoice(world: RestoreWorld) -> Step:
    """Make invoices, which are final."""
    yield from publish(world)
    world.check_invoice()


def seal(world: RestoreWorld) -> Step:
    """Seal a booking more; what was sealed before a restore comes to the same again."""
    yield
    world.tables.sealed_to += 1
    world.sealed_ever = max(world.sealed_ever, world.tables.sealed_to)


def copy_of(store: Store) -> Store:
    values = {each.name: getattr(store, each.name) for each in fields(store)}
    return type(store)(**{name: dict(value) if isinstance(value, dict) else value for name, value in values.items()})


def back_up(world: RestoreWorld) -> Step:
    """Back both stores up, the tables of ClickHouse in any order, one after the other."""
    names = [each.name for each in fields(Tables)]
    world.rng.shuffle(names)
    taken = Tables()
    for name in names:
        setattr(taken, name, getattr(copy_of(world.tables), name))
        for _ in range(world.rng.choice((0, 0, 1, 80))):
            yield
    world.backups.append(taken)
    yield
    world.controls.append(copy_of(world.control))


def obey(world: RestoreWorld, task: Step) -> Refused | None:
    """Run a command to its end; return what it said if it refused."""
    try:
        for _ in task:
            pass
    except Refused as refused:
        return refused
    return None


def restore(world: RestoreWorld) -> None:
    """Put one of the stores back, or both; everything else was stopped."""
    which = world.rng.choice(("control", "tables", "both"))
    if which != "tables":
        world.control = copy_of(world.rng.choice(world.controls[-3:]))
    if which != "control":
        world.tables = copy_of(world.rng.choice(world.backups[-3:]))


def some_undo(world: RestoreWorld) -> Step:
    """Take something back that an operator may have in mind."""
    generations = (*world.control.listed.generations, *world.tables.copy.generations)
    return undo(world, world.rng.choice(generations)) if generations else iter(())


def run_schedule(seed: int, rules: RestoreRules) -> None:
    """Run commands side by side, kill some, restore now and then, and see at the end whether there is a way out."""
    world = RestoreWorld(seed, rules)
    rng = world.rng
    makers: list[Callable[[RestoreWorld], Step]] = [rebuild, rebuild, use, use, some_undo, invoice, seal, back_up]
    tasks: list[Step] = []
    for _ in range(STEPS):
        if rng.random() < 0.02:
            tasks.clear()
            restore(world)
        if len(tasks) < 1 + (rng.random() < 0.2):
            tasks.append(rng.choice(makers)(world))
        task = rng.choice(tasks)
        try:
            next(task)
            if rng.random() < 0.02:  # killed
                tasks.remove(task)
        except (StopIteration, Refused):
            tasks.remove(task)
    find_a_way_out(world)


def find_a_way_out(world: RestoreWorld) -> None:
    """R3: one operator who does what the sentences say. What was made again may have to go before what is named."""
    remade = 0
    for _ in range(PATIENCE + len(world.control.listed.generations) + len(world.tables.copy.generations)):
        refused = obey(world, invoice(world))
        if refused is None:
            return
        if refused.generation:
            if world.rng.random() < 0.5 and obey(world, again(world, refused.generation)) is None:
                left = obey(world, invoice(world))
                if left is None or left.generation != refused.generation:
                    remade = refused.generation
                    continue  # it helped
            first = obey(world, undo(world, refused.generation))
            if first is not None and first.generation == remade:
                obey(world, undo(world, remade))
        else:
            world.tables.sealed_to = max(world.tables.sealed_to, world.sealed_ever)
    raise Broken("R3 no way out")


if __name__ == "__main__":
    command(run_schedule, RestoreRules(), tuple(rule.name for rule in fields(RestoreRules)))
