"""Who an event comes from: the partition in which it counts, and the beginning of its identity."""

from __future__ import annotations

from _blake2 import blake2b
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tallyman.event import home_key
from tallyman.kafka import partition_of

_MOST = 1 << 17  # a home is half a kilobyte


class Home(NamedTuple):
    """What the events of one (subject, source) share. `begin` returns a hasher that has read all but the id."""

    partition: int
    begin: Callable[[], Any]


class Homes:
    """The homes met lately; the contract for both is `tallyman.event.home_key` and `tallyman.event.identity`."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._known: dict[tuple[str, str], Home] = {}
        self.get = self._known.get

    def find(self, subject: str, source: str) -> Home:
        """Return the home of a subject's events from a source."""
        known = self._known.get((subject, source))
        if known is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            begun = blake2b(identity_prefix(subject, source), digest_size=16)
            known = Home(partition_of(home_key(subject, source), self._partitions), begun.copy)
            self._known[subject, source] = known
        return known


def identity_prefix(subject: str, source: str) -> bytes:
    """Return what an event's id stands behind when its identity is hashed."""
    return f"{len(subject)}:{subject}{len(source)}:{source}".encode()


def identify(begins: Iterable[Callable[[], Any]], ids: Iterable[bytes]) -> list[bytes]:
    """Return the identities of events, 16 bytes each, from their homes' `begin` and their ids."""
    identities: list[bytes] = []
    add = identities.append
    for begin, event_id in zip(begins, ids, strict=True):
        hasher = begin()  # copying one is a third cheaper than making one
        hasher.update(event_id)
        add(hasher.digest())
    return identities
