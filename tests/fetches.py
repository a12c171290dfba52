"""Fetches and Kafka batches made by hand, for tests that need no broker."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
from crc32c import crc32c
from kafka.record.default_records import DefaultRecordBatchBuilder

from pipeline.batches import Fetch

TOPIC_ID = "Zx3mQ0aQTq6uT6mZo0n2eA"
NOON_MS = 1_793_448_000_000  # 2026-10-31 12:00 UTC, the last day of a month
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
TRANSACTIONAL, CONTROL = 0x10, 0x20
_ATTRIBUTES, _CRC, _CRC_FROM = 21, 17, 21

Headers = Sequence[tuple[str, bytes]]


def fetch_of(
    records: Iterable[tuple[bytes | None, Headers, int]],
    *,
    first: int = 0,
    behind: int | None = None,
    partition: int = 0,
    topic_id: str = TOPIC_ID,
    keys: Sequence[bytes | None] | None = None,
    offsets: Sequence[int] | None = None,
    epoch: int = 0,
) -> Fetch:
    """Return a fetch of (value, headers, appended_ms) records at the offsets from `first` on, or at `offsets`.

    Args:
        behind: The position behind the fetch; behind the last record unless given.
    """
    rows = list(records)
    places = list(offsets) if offsets is not None else list(range(first, first + len(rows)))
    headers = [tuple(row[1]) for row in rows]
    return Fetch(
        topic_id,
        partition,
        first,
        behind if behind is not None else places[-1] + 1 if places else first,
        np.array(places, np.int64),
        np.array([row[2] for row in rows], np.int64),
        [row[0] for row in rows],
        list(keys) if keys is not None else [None] * len(rows),
        headers if any(headers) else None,
        tuple((place, epoch, crc32c(row[0] or b"")) for place, row in zip(places, rows, strict=True)),
    )


def batch_of(
    records: Iterable[tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]],
    *,
    base: int = 0,
    deltas: Sequence[int] | None = None,
    last_delta: int | None = None,
    codec: str = "none",
    epoch: int = 0,
    producer: int = -1,
    flags: int = 0,
    appended_ms: int | None = NOON_MS,
    created_ms: Sequence[int] | None = None,
) -> bytes:
    """Return one Kafka batch of (key, value, headers) records, as a broker stores it.

    Args:
        deltas: Offsets relative to `base`; others than 0, 1, 2... make holes.
        last_delta: The last offset that the batch covers, when records behind it are gone.
        appended_ms: The broker's time; None for a topic with CreateTime.
    """
    rows = list(records)
    builder = DefaultRecordBatchBuilder(2, CODECS[codec], False, producer, 0, 0, 1 << 30)
    for index, (key, value, headers) in enumerate(rows):
        made_ms = created_ms[index] if created_ms else NOON_MS - 50 + index
        builder.append(deltas[index] if deltas else index, made_ms, key, value, list(headers))
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, 0, base)
    struct.pack_into(">i", batch, 12, epoch)
    attributes = struct.unpack_from(">h", batch, _ATTRIBUTES)[0] | flags
    if appended_ms is not None:
        attributes |= 0x08
        struct.pack_into(">q", batch, 35, appended_ms)
    struct.pack_into(">h", batch, _ATTRIBUTES, attributes)
    if last_delta is not None:
        struct.pack_into(">i", batch, 23, last_delta)
    seal(batch)
    return bytes(batch)


def marker_of(kind: str, *, base: int, producer: int) -> bytes:
    """Return the control batch that ends a transaction; kind is "commit" or "abort"."""
    key = struct.pack(">hh", 0, {"abort": 0, "commit": 1}[kind])
    return batch_of([(key, b"\0" * 6, ())], base=base, producer=producer, flags=TRANSACTIONAL | CONTROL)


def seal(batch: bytearray) -> None:
    """Write the checksum of what the batch holds now."""
    struct.pack_into(">I", batch, _CRC, crc32c(bytes(batch[_CRC_FROM:])))
