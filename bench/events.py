"""The events that the benchmarks send: 2,000 series over five minutes, the same in every format."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pyarrow as pa

from tallyman.event import (
    ARROW,
    ARROW_FIELDS,
    ARROW_SERIES_KEY,
    ARROW_VERSION,
    ARROW_VERSION_KEY,
    COLLECTOR,
    CONTENT_TYPE,
    EPOCH,
    LINES,
    SEQUENCE,
    Event,
    Series,
    encode_event,
    home_key,
)
from tallyman.kafka import partition_of

SERIES = 2000
TYPE = "compute.usage"
METERS = """meters:
- {meter: compute.seconds, event_type: compute.usage, aggregation: sum, value: value, scale: 9, unit: s,
   dimensions: {flavor: flavor, region: region}}
"""
FLAVORS = ("m1.tiny", "m1.small", "m1.large", "c2.xlarge")
Record = tuple[bytes, list[tuple[str, bytes]]]


def names(series: int) -> tuple[str, dict[str, str]]:
    """Return the tenant and the dimensions of a series."""
    return f"tenant-{series // 4:05d}-åäö", {"flavor": FLAVORS[series % 4], "region": "eu-north"}


def events(count: int, *, seed: int = 7, partitions: int = 1, partition: int = 0) -> Iterator[Event]:
    """Yield foreign events whose home is `partition`, within the last five minutes."""
    rng = random.Random(seed)
    minute = int(time.time()) // 60 * 60
    made = number = 0
    while made < count:
        number += 1
        series = rng.randrange(SERIES)
        subject, data = names(series)
        source = f"//compute.example/eu-north/host-{series % 100:03d}"
        if partitions > 1 and partition_of(home_key(subject, source), partitions) != partition:
            continue
        made += 1
        time_us = (minute - rng.randrange(300)) * 1_000_000 + rng.randrange(1_000_000)
        value = f"{rng.randrange(1, 4000)}.{rng.randrange(10**6):06d}"
        data = {**data, "value": value, "server": f"{seed:04d}-{number:012x}"}
        yield Event(f"{seed}-{number:010d}-usage", source, TYPE, subject, time_us, data)


def single_records(count: int, seed: int = 7, **where: int) -> Iterator[Record]:
    for event in events(count, seed=seed, **where):
        yield encode_event(event), []


def line_records(count: int, per_record: int = 500, seed: int = 7, **where: int) -> Iterator[Record]:
    lines: list[bytes] = []
    for event in events(count, seed=seed, **where):
        lines.append(encode_event(event))
        if len(lines) == per_record:
            yield b"\n".join(lines), [(CONTENT_TYPE, LINES.encode())]
            lines = []
    if lines:
        yield b"\n".join(lines), [(CONTENT_TYPE, LINES.encode())]


def arrow_records(count: int, per_record: int, seed: int = 7) -> Iterator[Record]:
    """Yield numbered Arrow batches, each collector's with its own series in every batch, as agents send them.

    Batches of 10,000 come from one relay with all series, smaller ones from eight hosts with an eighth each.
    """
    hosts = 1 if per_record >= 10_000 else 8
    schemas = [_schema(range(host, SERIES, hosts)) for host in range(hosts)]
    rng = np.random.default_rng(seed)
    minute = int(time.time()) // 60 * 60
    for number in range(count // per_record):
        times = (minute - rng.integers(0, 300, per_record)) * 1_000_000
        columns = [
            pa.array(rng.integers(0, SERIES // hosts, per_record), pa.int32()),
            pa.array(times),
            pa.array(times + 10_000_000),
            pa.array(rng.integers(1, 4_000_000_000, per_record)),
            pa.nulls(per_record, pa.int64()),
            pa.nulls(per_record, pa.int64()),
        ]
        host = number % hosts
        schema = schemas[host]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        collector = f"bench-{host}".encode()
        headers = [(CONTENT_TYPE, ARROW.encode()), (COLLECTOR, collector), (EPOCH, f"e{seed}".encode())]
        yield sink.getvalue().to_pybytes(), [*headers, (SEQUENCE, str(number).encode())]


def _schema(series: range) -> pa.Schema:
    table = [Series(type=TYPE, subject=names(n)[0], scale=6, data=dict(names(n)[1])) for n in series]
    metadata = {ARROW_VERSION_KEY: ARROW_VERSION, ARROW_SERIES_KEY: msgspec.json.encode(table)}
    return pa.schema([pa.field(n, getattr(pa, k)(), null) for n, k, null in ARROW_FIELDS], metadata)
