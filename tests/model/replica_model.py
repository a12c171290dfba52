"""Executable specification of ClickHouse with replicas: who must have a row before it is believed, and who may answer.

Three replicas of every table. An insert reaches one of them and spreads; a query asks any that serves. A replica may
lose its disk; it comes back empty and fetches what the others have.

    python -m tests.model.replica_model 20000                  # all rules on
    python -m tests.model.replica_model 2000 quorum_inserts    # without the rules named
    python -m tests.model.replica_model 500 each               # without one rule of replication at a time
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from tests.model.chunk_check import CheckedWorld, interleave, read
from tests.model.chunk_model import InsertError, Rules, Store, close, seal, work
from tests.model.survey import command

REPLICAS, QUORUM = 3, 2
Rows = list[tuple[tuple, int, tuple]]


@dataclass(frozen=True)
class ReplicaRules(Rules):
    """The protocol on one server, and what replicas add to it."""

    quorum_inserts: bool = True  # an insert is acknowledged when most replicas have it: one may be lost
    sequential_reads: bool = True  # a query sees what most replicas have, all of it and nothing else
    seal_on_every_replica: bool = True  # a seal is recorded when each replica that serves has replaced the partition
    synced_before_it_serves: bool = True  # a replica that comes back answers when it has what the others have


class Replica:
    """One server: which blocks it has, and its rows of each table as it would merge them."""

    def __init__(self) -> None:
        self.blocks: set[int] = set()
        self.tables: dict[str, dict[tuple, tuple[int, int, tuple]]] = defaultdict(dict)
        self.sealed: dict[int, dict[tuple, tuple]] = {}
        self.synced = True

    def take(self, number: int, table: str, rows: Rows) -> None:
        if number not in self.blocks:
            self.blocks.add(number)
            merge(self.tables[table], number, rows)


def merge(table: dict[tuple, tuple[int, int, tuple]], number: int, rows: Rows) -> None:
    """Merge a block as ReplacingMergeTree does: the highest version stays, of ties the last block."""
    for key, version, value in rows:
        if (version, number) >= table.get(key, (-1, -1))[:2]:
            table[key] = (version, number, value)


class SealedEverywhere(Mapping[int, dict[tuple, tuple]]):
    """The sealed partitions as a sealer sees and replaces them."""

    def __init__(self, store: ReplicatedStore) -> None:
        self.store = store

    def __setitem__(self, booking: int, rows: dict[tuple, tuple]) -> None:
        serving = self.store.serving()
        waited_for = serving if self.store.rules.seal_on_every_replica else [self.store.rng.choice(serving)]
        for replica in waited_for:
            replica.sealed[booking] = rows

    def __getitem__(self, booking: int) -> dict[tuple, tuple]:
        return self.everything()[booking]

    def __iter__(self) -> Iterator[int]:
        return iter(self.everything())

    def __len__(self) -> int:
        return len(self.everything())

    def everything(self) -> dict[int, dict[tuple, tuple]]:
        return {booking: rows for replica in self.store.replicas for booking, rows in replica.sealed.items()}


class ReplicatedStore(Store):
    """ClickHouse with replicas. A block is confirmed once `QUORUM` replicas have had it."""

    def __init__(self, rng: random.Random, rules: ReplicaRules) -> None:
        super().__init__(rng)
        self.rules = rules
        self.replicas = [Replica() for _ in range(REPLICAS)]
        self.log: dict[int, tuple[str, Rows]] = {}  # block number -> what was inserted
        self.confirmed: set[int] = set()
        self.rows: dict[str, dict[tuple, tuple[int, int, tuple]]] = defaultdict(dict)  # of the confirmed blocks
        self.sealed = SealedEverywhere(self)  # type: ignore[assignment]

    def serving(self) -> list[Replica]:
        """Return the replicas that are asked: with the rule off also one that just came back empty."""
        return [each for each in self.replicas if each.synced or not self.rules.synced_before_it_serves]

    def insert(self, table: str, rows: Rows, failing: float) -> None:
        fails = self.rng.random() < failing
        if not fails or self.rng.random() < 0.5:
            self.blocks += 1
            self.log[self.blocks] = (table, rows)
            first, second = self.rng.sample(self.replicas, 2)
            self._give(first, self.blocks)
            if not self.rules.quorum_inserts:
                self._confirm(self.blocks)
            elif not fails:
                self._give(second, self.blocks)  # else nobody waits any more; it may spread later
        if fails:
            raise InsertError(table)

    def _give(self, replica: Replica, number: int) -> None:
        replica.take(number, *self.log[number])
        if sum(number in each.blocks for each in self.replicas) >= QUORUM:
            self._confirm(number)

    def _confirm(self, number: int) -> None:
        if number not in self.confirmed:
            self.confirmed.add(number)
            table, rows = self.log[number]
            merge(self.rows[table], number, rows)

    def final(self, table: str) -> dict[tuple, tuple]:
        """Answer from one replica; a sequentially consistent query is repeated until one has all that is confirmed."""
        replica = self.rng.choice(self.serving())
        rows = self.rows[table] if self.rules.sequential_reads else replica.tables[table]
        return {key: value for key, (_, _, value) in rows.items()}

    def spread(self, replica: Replica) -> bool:
        """Let a replica fetch one thing that another one has; tell whether there was any."""
        for number in sorted(set().union(*(each.blocks for each in self.replicas)) - replica.blocks):
            self._give(replica, number)
            return True
        missing = [booking for booking in self.sealed if booking not in replica.sealed]
        for booking in missing[:1]:
            replica.sealed[booking] = self.sealed[booking]
            return True
        replica.synced = True
        return False

    def lose(self, replica: Replica) -> None:
        """Take a replica's disk away. Two at once are more than three replicas can bear."""
        if any(self.copies(number) < QUORUM for number in self.confirmed) and self.rules.quorum_inserts:
            return
        if not all(each.synced for each in self.replicas):
            return
        replica.blocks.clear()
        replica.tables.clear()
        replica.sealed.clear()
        replica.synced = False
        gone = {number for number in self.confirmed if not self.copies(number)}
        if gone:
            self.confirmed -= gone
            self.rows.clear()
            for number in sorted(self.confirmed):
                table, rows = self.log[number]
                merge(self.rows[table], number, rows)

    def copies(self, number: int) -> int:
        return sum(number in replica.blocks for replica in self.replicas)


class ReplicatedWorld(CheckedWorld):
    """A world whose store is replicated."""

    rules: ReplicaRules
    store: ReplicatedStore

    def __init__(self, seed: int, rules: ReplicaRules) -> None:
        super().__init__(seed, rules)
        self.store = ReplicatedStore(random.Random(seed), rules)

    def makers(self) -> Sequence[Callable[[], Iterator[None]]]:
        return [
            *[lambda: work(self)] * 3,
            *[lambda: seal(self)] * 2,
            *[lambda: replicate(self)] * 2,
            lambda: close(self),
            lambda: read(self),
        ]

    def anew(self) -> ReplicatedWorld:
        return ReplicatedWorld(0, self.rules)

    def sealed(self) -> dict[int, dict[tuple, tuple]]:
        return self.rng.choice(self.store.serving()).sealed

    def booked(self) -> bool:
        """All is booked, and the replicas are the same again."""
        if not super().booked():
            return False
        for replica in self.store.replicas:
            while self.store.spread(replica):
                pass
        return True


def replicate(world: ReplicatedWorld) -> Iterator[None]:
    """Let replicas fetch from one another; now and then one loses its disk."""
    while True:
        yield
        replica = world.rng.choice(world.store.replicas)
        if world.rng.random() < 0.05 and not world.calm:
            world.store.lose(replica)
        else:
            world.store.spread(replica)


def run_schedule(seed: int, rules: ReplicaRules) -> None:
    """Run one interleaving of the model."""
    interleave(ReplicatedWorld(seed, rules), 900, happening=0.25)


ADDED = tuple(rule.name for rule in fields(ReplicaRules) if rule.name not in {rule.name for rule in fields(Rules)})

if __name__ == "__main__":
    command(run_schedule, ReplicaRules(), ADDED)
