"""Count what stands in the log by a second, simpler way: how many events each chunk received, and how many of them are
of an ignored type. Nothing of the pipeline's decoding is used, only its walk over Kafka's batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.read import read_range
from tallyman.event import CLOSE, COLLECTOR, CONTENT_TYPE, EPOCH, LINES, SEQUENCE, TICK
from tallyman.kafka import partition_of
from tallyman.project import Project
from tests.chaos.parts import CHUNK_SIZE, PARTITIONS
from tests.chaos.usage_made import IGNORED

Chunk = tuple[int, int]  # partition, number
_IGNORED = f'"{IGNORED}"'.encode()


@dataclass(slots=True)
class Recount:
    """Events by chunk."""

    received: Counter[Chunk] = field(default_factory=Counter)
    ignored: Counter[Chunk] = field(default_factory=Counter)
    _first: dict[tuple[bytes, bytes, bytes], bytes] = field(default_factory=dict)  # numbered batches met at home

    def add(self, chunk: Chunk, value: bytes, headers: Mapping[str, bytes]) -> None:
        """Count one record."""
        if TICK in headers or CLOSE in headers:
            return
        if COLLECTOR in headers:
            self.received[chunk] += self._rows(chunk[0], value, headers)
        elif headers.get(CONTENT_TYPE) == LINES.encode():
            lines = value.split(b"\n")
            self.received[chunk] += len(lines)
            self.ignored[chunk] += sum(_IGNORED in line for line in lines)
        else:
            self.received[chunk] += 1

    def _rows(self, partition: int, value: bytes, headers: Mapping[str, bytes]) -> int:
        if partition_of(headers[COLLECTOR], PARTITIONS) != partition:
            return 1  # it is sent home as it is
        number = headers[COLLECTOR], headers[EPOCH], headers[SEQUENCE]
        if self._first.setdefault(number, value) != value:
            return 1  # a number with other bytes is one dead letter
        with pa.ipc.open_stream(pa.py_buffer(value)) as stream:
            rows: int = stream.read_all().num_rows
        return rows


def recount(project: Project, topic_id: str, ends: Mapping[int, int]) -> Recount:
    """Read every partition from its start to its end."""
    counted = Recount()
    for partition, end in ends.items():
        for fetch in read_range(project.kafka_brokers, project.config.kafka.topic, topic_id, partition, 0, end):
            headers = fetch.headers or [()] * len(fetch.offsets)
            for offset, value, named in zip(fetch.offsets.tolist(), fetch.values, headers, strict=True):
                counted.add((partition, offset // CHUNK_SIZE), value or b"", dict(named))
    return counted
