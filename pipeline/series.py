"""The series that a process has met, each with its number, in columns: a million of them live in a worker. And when
each was met last, so that those that are gone can be forgotten.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

_NONE = -1
_FIRST_ROOM = 1024  # slots, a power of two


class SeriesKey(msgspec.Struct, frozen=True, gc=False):
    """A series: its meter's place in the definitions, the tenant, the dimensions as canonical JSON, and for some
    aggregations what a value is counted under (`tallyman.meter.item_of`).
    """

    meter: int
    subject: str
    dimensions: str
    item: str = ""


class SeriesTable:
    """Series by number, and the numbers of those without an item.

    A key, its number and its place in a dict take 140 bytes. Here a series takes 35: its parts lie in columns, where
    texts are shared, and a hash table of numbers (open addressing, linear probing) says where to look.

    Attributes:
        meters, subjects, dimensions, items: The parts of a series, by its number.
    """

    def __init__(self) -> None:
        self.meters = array("I")
        self.subjects: list[str] = []
        self.dimensions: list[str] = []
        self.items: list[str] = []
        self._slots = array("i", [_NONE]) * _FIRST_ROOM
        self._taken = 0

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def lasting(self) -> int:
        """How many series without an item there are."""
        return self._taken

    def __getitem__(self, number: int) -> SeriesKey:
        return SeriesKey(self.meters[number], self.subjects[number], self.dimensions[number], self.items[number])

    def __iter__(self) -> Iterator[SeriesKey]:
        return map(self.__getitem__, range(len(self)))

    def number(self, key: SeriesKey) -> int:
        """Return the number of a series without an item; a new one gets the next."""
        meter, subject, dimensions = key.meter, key.subject, key.dimensions
        meters, subjects, texts, slots = self.meters, self.subjects, self.dimensions, self._slots
        last = len(slots) - 1
        at = hash(key) & last
        while (number := slots[at]) != _NONE:
            if subjects[number] == subject and texts[number] == dimensions and meters[number] == meter:
                return number
            at = (at + 1) & last
        slots[at] = number = self.append(key)
        self._taken += 1
        if 2 * self._taken > len(slots):
            self._grow()
        return number

    def append(self, key: SeriesKey) -> int:
        """Give a series the next number; by itself it will not be found again."""
        self.meters.append(key.meter)
        self.subjects.append(key.subject)
        self.dimensions.append(key.dimensions)
        self.items.append(key.item)
        return len(self.subjects) - 1

    def replace(self, number: int, key: SeriesKey) -> None:
        """Give the number of a series with an item, which is forgotten, to another one."""
        self.meters[number], self.subjects[number] = key.meter, key.subject
        self.dimensions[number], self.items[number] = key.dimensions, key.item

    def _grow(self) -> None:
        old = self._slots
        slots = array("i", [_NONE]) * (2 * len(old))
        last = len(slots) - 1
        for number in old:
            if number != _NONE:
                at = hash(self[number]) & last
                while slots[at] != _NONE:
                    at = (at + 1) & last
                slots[at] = number
        self._slots = slots


class LastMet:
    """When each series without an item was last met. The clock is the number of tables cleared: one for each chunk or
    booking that ended.

    Attributes:
        cleared: How many tables were.
    """

    def __init__(self) -> None:
        self.cleared = 0
        self._at = np.zeros(_FIRST_ROOM, np.int32)

    def touch(self, number: int) -> None:
        """Note that a series was met now."""
        if number >= len(self._at):
            self._reserve(number)
        self._at[number] = self.cleared + 1

    def touch_all(self, numbers: npt.NDArray[np.int64]) -> None:
        """Note that series were met now."""
        if len(numbers):
            self._reserve(int(numbers.max()))
            self._at[numbers] = self.cleared + 1

    def lately(self, tables: int) -> int:
        """Return how many series were met in the last so many tables that were cleared, or since then."""
        return int(np.count_nonzero(self._at > max(self.cleared - tables, 0)))

    def _reserve(self, number: int) -> None:
        if number >= len(self._at):
            self._at = np.append(self._at, np.zeros(max(number + 1 - len(self._at), len(self._at)), np.int32))
