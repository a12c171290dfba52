"""A book in memory for tests of `ReadUsage`: it stands in an importable module, as the real one does."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator

import apache_beam as beam

from pipeline.batches import Fetch
from pipeline.read import STOP

VALUES: dict[int, list[bytes | None]] = defaultdict(list)
EMPTY: Counter[int] = Counter()
_NEXT: Counter[int] = Counter()
_TARGET = [1 << 60]
_GROWN = threading.Condition()


def forget() -> None:
    VALUES.clear()
    EMPTY.clear()
    _NEXT.clear()


def stop_at(records: int) -> None:
    _TARGET[0] = records


def wait_for(records: int) -> None:
    with _GROWN:
        assert _GROWN.wait_for(lambda: sum(map(len, VALUES.values())) >= records, 120)


def ask_when_empty(fetches: int) -> None:
    """Stop the pipeline once each of two partitions came empty so often; after two minutes in any case."""
    with _GROWN:
        _GROWN.wait_for(lambda: min(EMPTY[0], EMPTY[1]) >= fetches, 120)
    STOP.ask()


def next_position(topic_id: str, partition: int) -> int:
    return _NEXT[partition]


def restart_place(topic_id: str, partition: int) -> int:
    return _NEXT[partition] // 1000 * 1000


class Fold(beam.DoFn):
    """Takes fetches in, refuses a gap, and asks for a stop when enough has come."""

    def process(self, fetch: Fetch) -> Iterator[None]:
        assert fetch.first == _NEXT[fetch.partition]
        with _GROWN:
            EMPTY[fetch.partition] += fetch.first == fetch.next
            VALUES[fetch.partition] += fetch.values
            _NEXT[fetch.partition] = fetch.next
            _GROWN.notify_all()
        if sum(map(len, VALUES.values())) >= _TARGET[0]:
            STOP.ask()
        return iter(())
