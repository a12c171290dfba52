"""Usage for the job on Flink, with what must come of it: copies, strays and events that nobody can count among it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from tallyman.event import CONTENT_TYPE, LINES, Event, encode_event, home_key
from tallyman.kafka import end_offsets, make_consumer, make_producer, partition_of

METERS = "meters:\n- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 9}\n"
EVENTS_IN_RECORD = 20
COUNTS = ("received", "aggregated", "duplicate", "dead", "ignored", "forwarded", "conflict")
_SUBJECTS = ("Zoë Åström", "東京-1", "tenant/with/slashes", "Ελένη", *(f"tenant-{number}" for number in range(20)))
_NOT_MEASURED = b'"minutes"'
_SCALE = 9


class Record(NamedTuple):
    """A record of NDJSON and the partition that it is sent to."""

    partition: int
    value: bytes


class Usage:
    """Makes records, and adds up what they must become.

    Attributes:
        totals: (subject, minute since 1970) -> (events, scaled sum).
        events: Distinct events that count; `dead`: copies of those that cannot, each of which is a dead letter.
    """

    def __init__(self, partitions: int, *, seed: int) -> None:
        self._partitions = partitions
        self._rng = random.Random(seed)
        self._source = f"nova/{seed}"
        self._made = 0
        self.totals: dict[tuple[str, int], list[int]] = {}
        self.events = self.dead = 0

    def records(self, number: int) -> Iterator[Record]:
        """Yield so many new records, and some of them again; each lies in its home or, now and then, astray."""
        for _ in range(number):
            subject = self._rng.choice(_SUBJECTS)
            value = b"\n".join(self._line(subject) for _ in range(EVENTS_IN_RECORD))
            places = [partition_of(home_key(subject, self._source), self._partitions)]
            places += places * (self._rng.random() < 0.1)
            places += [self._rng.randrange(self._partitions)] * (self._rng.random() < 0.1)
            self.dead += len(places) * value.count(_NOT_MEASURED)
            for partition in places:
                yield Record(partition, value)

    def _line(self, subject: str) -> bytes:
        self._made += 1
        time_us = time.time_ns() // 1000 - self._rng.randrange(3_600_000_000)
        scaled = self._rng.randrange(1, 10**12)
        event = Event(
            f"e-{self._made}", self._source, "server", subject, time_us,
            {"hours": str(Decimal(scaled).scaleb(-_SCALE))},
        )  # fmt: skip
        line = encode_event(event)
        if self._rng.random() < 0.002:
            return line.replace(b'"hours"', _NOT_MEASURED)
        self.events += 1
        total = self.totals.setdefault((subject, time_us // 60_000_000), [0, 0])
        total[0] += 1
        total[1] += scaled
        return line


def send(brokers: Sequence[str], topic: str, records: Iterator[Record]) -> None:
    """Append records in order; all are acknowledged when this returns."""
    producer = make_producer(brokers)
    headers = [(CONTENT_TYPE, LINES.encode())]
    sent = [producer.send(topic, value=each.value, headers=headers, partition=each.partition) for each in records]
    for future in sent:
        future.get(timeout=60)
    producer.close(timeout=5)


def ends_of(brokers: Sequence[str], topic: str, partitions: int) -> dict[int, int]:
    """Return where each partition ends now."""
    consumer = make_consumer(brokers)
    try:
        return end_offsets(consumer, topic, range(partitions))
    finally:
        consumer.close()


def differences(client: Any, usage: Usage, ends: dict[int, int], chunk_size: int) -> list[str]:
    """Compare what is booked with what was sent: totals, counts of every chunk, and the run of chunks; say what is off.

    Args:
        ends: What is booked up to here; nothing was appended since but ticks.
    """
    found = client.execute(
        "SELECT subject, intDiv(toUnixTimestamp(minute), 60), sum(count), sum(sum) FROM usage_booked GROUP BY ALL"
    )
    booked = {(subject, minute): [count, total] for subject, minute, count, total in found}
    wrong = [
        f"{key}: sent {usage.totals.get(key)}, booked {booked.get(key)}"
        for key in sorted(usage.totals.keys() | booked.keys())
        if usage.totals.get(key) != booked.get(key)
    ]
    chunks = client.execute(
        "SELECT partition, chunk, covered, reached_offset, reached_counts FROM progress FINAL ORDER BY partition, chunk"
    )
    total: Counter[str] = Counter()
    for partition, chunk, covered, _, counts in chunks:
        received, *fates, _ = counts
        total.update(dict(zip(COUNTS, counts, strict=True)))
        if received != sum(fates):
            wrong.append(f"partition {partition}, chunk {chunk}: {received} received, but {sum(fates)} accounted for")
        if covered != chunk_size and (partition, chunk + 1) in {row[:2] for row in chunks}:
            wrong.append(f"partition {partition}, chunk {chunk}: {covered} covered, and the next is begun")
    for partition, end in ends.items():
        mine = [row for row in chunks if row[0] == partition]
        if [row[1] for row in mine] != list(range(len(mine))):
            wrong.append(f"partition {partition}: a gap in the chunks {[row[1] for row in mine]}")
        if end and (not mine or mine[-1][3] < end):
            wrong.append(f"partition {partition}: not booked up to {end}")
    if (total["aggregated"], total["dead"]) != (usage.events, usage.dead) or total["conflict"]:
        wrong.append(f"expected {usage.events} aggregated and {usage.dead} dead, got {dict(total)}")
    return wrong
