"""Which record and which partition a line of usage goes into: its home, together with others of the same home."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from tallyman.event import home_key
from tallyman.kafka import partition_of

LINES_PER_RECORD = 500
BYTES_PER_RECORD = 512 * 1024
_KNOWN_HOMES = 100_000


class _Address(msgspec.Struct):
    """As much of an event as its way to Kafka needs."""

    subject: str
    source: str
    type: str = ""


_decode_address = msgspec.json.Decoder(_Address).decode


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """One record on its way: `events` of them in `value`."""

    partition: int
    key: bytes | None
    value: bytes
    events: int


@dataclass(slots=True)
class Packer:
    """Groups lines into records by the partition that is their home."""

    partitions: int
    most_lines: int = LINES_PER_RECORD
    types: Counter[str] = field(default_factory=Counter)
    _waiting: dict[int, list[bytes]] = field(default_factory=dict)
    _sizes: Counter[int] = field(default_factory=Counter)
    _homes: dict[tuple[str, str], tuple[bytes, int]] = field(default_factory=dict)

    def pack(self, lines: Sequence[bytes]) -> Iterator[PackedRecord]:
        """Take lines in; yield the records that they fill."""
        waiting, sizes, types, most_lines = self._waiting, self._sizes, self.types, self.most_lines
        for line in lines:
            try:
                event = _decode_address(line)
                types[event.type] += 1
                key, home = self._homes.get((event.subject, event.source)) or self._find_home(event)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                key, home = line, partition_of.__wrapped__(line, self.partitions)
            if most_lines == 1:
                yield PackedRecord(home, key if key is not line else None, line, 1)
                continue
            size = len(line) + 1
            block = waiting.get(home)
            if block is None:
                block = waiting[home] = []
            elif len(block) >= most_lines or sizes[home] + size > BYTES_PER_RECORD:
                yield self._record(home)
                block = waiting[home] = []
            block.append(line)
            sizes[home] += size

    def rest(self) -> Iterator[PackedRecord]:
        """Yield what is left."""
        for home in sorted(self._waiting):
            yield self._record(home)

    def _record(self, home: int) -> PackedRecord:
        lines = self._waiting.pop(home)
        self._sizes[home] = 0
        return PackedRecord(home, None, b"\n".join(lines), len(lines))

    def _find_home(self, event: _Address) -> tuple[bytes, int]:
        key = home_key(event.subject, event.source)
        if len(self._homes) >= _KNOWN_HOMES:
            self._homes.clear()
        found = self._homes[event.subject, event.source] = key, partition_of(key, self.partitions)
        return found
