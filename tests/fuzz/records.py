"""Kafka records as collectors, other clients, broken senders and attackers write them, stretch by stretch of log."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from collectors.arrow import Reading, encode_readings
from tallyman.event import (
    ADMITTED,
    ARROW,
    BATCH,
    CLOSE,
    COLLECTOR,
    CONTENT_TYPE,
    CORRECTION,
    CORRECTS,
    DEFINITIONS,
    EPOCH,
    INDEX,
    LINES,
    SEQUENCE,
    SINGLE,
    TICK,
    Series,
    home_key,
)
from tallyman.headers import Headers, kind_of
from tallyman.kafka import partition_of
from tallyman.nesting import is_too_deep
from tests.fuzz.mutate import spoil, spoil_headers
from tests.fuzz.odd import BYTES, CONTENT_TYPES, SOURCES, SUBJECTS
from tests.fuzz.texts import Texts

_REMEMBERED = 300  # records and events that may come again
_COLLECTORS = tuple(f"host-{number:02}" for number in range(12))
_FORMAT_OF = {"single": (SINGLE, "application/json", "Application/CloudEvents+JSON; charset=UTF-8"),
              "lines": (LINES, "application/x-jsonlines", "APPLICATION/X-NDJSON;charset=utf-8"),
              "batch": (BATCH, BATCH.upper() + " ; x=y")}  # fmt: skip


class Record(NamedTuple):
    value: bytes | None
    headers: Headers


class Maker:
    """Makes what lands in one partition.

    Args:
        pool: Bytes of other making, to be sent and spliced in.

    Attributes:
        newest: The newest definitions that a close may put in force.
    """

    def __init__(self, rng: random.Random, partition: int, partitions: int, pool: Sequence[bytes] = BYTES) -> None:
        everybody = list(product(SUBJECTS, SOURCES))
        home = [each for each in everybody if partition_of(home_key(*each), partitions) == partition]
        self._rng, self._pool, self.newest = rng, [*pool, *BYTES], 1
        self._texts = Texts(rng, home * 8 + everybody)
        hosts = [each for each in _COLLECTORS if partition_of(each.encode(), partitions) == partition]
        self._hosts = hosts * 8 + list(_COLLECTORS)
        self._sequences = dict.fromkeys(_COLLECTORS, 0)
        self._events: deque[bytes] = deque([b"{}"], _REMEMBERED)
        self._records: deque[Record] = deque([Record(b"{}", ())], _REMEMBERED)

    def stretch(self, now_ms: int) -> list[Record]:
        """Return some records: one by one, or many that look alike."""
        if self._rng.random() < 0.03:
            return [Record(event, ()) for event in self._alike(now_ms)]
        return [self.record(now_ms) for _ in range(self._rng.choice((1, 3, 20, 100)))]

    def record(self, now_ms: int) -> Record:
        """Return a record: new, an earlier one again, or one that is spoiled."""
        rng, way = self._rng, self._rng.random()
        if way < 0.08:
            return rng.choice(self._records)
        record = rng.choice(_MAKES)(self, now_ms)
        if way < 0.30:
            record = Record(spoil(rng, record.value or b"", rng.choice(self._pool)), record.headers)
        elif way < 0.36:
            record = Record(record.value, spoil_headers(rng, record.headers))
        elif way < 0.38:
            record = Record(record.value, (*record.headers, (ADMITTED, b"1")))
        if _is_nobodys_close(record.headers, self.newest):
            return Record(record.value, ())
        self._records.append(record)
        return record

    def _event(self, now_ms: int) -> bytes:
        rng, way = self._rng, self._rng.random()
        if way < 0.75:
            event = self._texts.good(now_ms)
        elif way < 0.92:
            event = self._texts.odd(now_ms)
        else:
            event = rng.choice(self._events)
            if rng.random() < 0.4:
                event = spoil(rng, event, rng.choice(self._pool))
        self._events.append(event)
        return event

    def _alike(self, now_ms: int) -> list[bytes]:
        """Return enough lines of one shape to be read by shape, with some odd ones among them."""
        rng, texts = self._rng, []
        kind = rng.choice(('"server"', '"store"', '"cpu"', '"balancer.host"'))
        models = [self._texts.good(now_ms, type=kind) for _ in range(rng.choice((1, 1, 3)))]
        for number in range(rng.choice((260, 400))):
            texts.append(rng.choice(models).replace(b'"e-', b'"l%d-' % number, 1))
        for _ in range(rng.choice((0, 1, 10))):
            place = rng.randrange(len(texts))
            texts[place] = spoil(rng, texts[place], rng.choice(self._pool)).replace(b"\n", b" ")
        return texts

    def _single(self, now_ms: int) -> Record:
        headers = ((CONTENT_TYPE, self._content_type("single")),) if self._rng.random() < 0.4 else ()
        return Record(self._event(now_ms), headers)

    def _binary(self, now_ms: int) -> Record:
        try:
            event = msgspec.json.decode(self._texts.good(now_ms))
            data = json.dumps(event["data"])
        except (msgspec.DecodeError, KeyError):
            return self._single(now_ms)
        headers = [(f"ce_{name}", str(value).encode()) for name, value in event.items() if name != "data"]
        if self._rng.random() < 0.5:
            headers.append((CONTENT_TYPE, b"application/json; charset=utf-8"))
        return Record(data.encode(), tuple(headers))

    def _lines(self, now_ms: int) -> Record:
        lines = self._alike(now_ms) if self._rng.random() < 0.02 else self._some_events(now_ms)
        ends = self._rng.choice((b"\n", b"\n", b"\r\n", b"\n\n"))
        return Record(ends.join(lines) + self._rng.choice((b"", ends)), ((CONTENT_TYPE, self._content_type("lines")),))

    def _batch(self, now_ms: int) -> Record:
        comma = self._rng.choice((b",", b" ,\n"))
        return Record(b"[" + comma.join(self._some_events(now_ms)) + b"]",
                      ((CONTENT_TYPE, self._content_type("batch")),))  # fmt: skip

    def _numbered_json(self, now_ms: int) -> Record:
        record = self._rng.choice((self._lines, self._batch, self._single))(now_ms)
        named = tuple(each for each in record.headers if each[0] == CONTENT_TYPE) or ((CONTENT_TYPE, SINGLE.encode()),)
        one = ((INDEX, b"%d" % self._rng.randrange(3)),) if self._rng.random() < 0.2 else ()
        return Record(record.value, (*named, *self._number(), *one))

    def _arrow(self, now_ms: int) -> Record:
        rng = self._rng
        readings = [self._reading(now_ms) for _ in range(rng.choice((0, 1, 3, 10)))]
        value = encode_readings(readings)
        if rng.random() < 0.2:
            value = _again(value, rng.choice((None, "lz4", "zstd")), rng.choice((1, 2)))
        headers = ((CONTENT_TYPE, rng.choice((ARROW, ARROW.upper() + ";v=1")).encode()), *self._number())
        return Record(value, headers if rng.random() < 0.97 else headers[:1])

    def _reading(self, now_ms: int) -> Reading:
        rng = self._rng
        kind = rng.choice((*["cpu"] * 12, "store", "heartbeat", "login", "request", "volume", "nobody"))
        long = {"mode": "x" * 2000}
        data = rng.choice(({"mode": "user"}, {"mode": None}, {"region": "Łódź"}, long, {"volume": "v1"}))
        subject = rng.choice(SUBJECTS)
        series = Series(type=kind, subject=subject, scale=rng.choice((0, 3, 9, 18)), data=dict(data))
        time_us = now_ms * 1000 - rng.choice((0, 60_000_000, 10**10, 10**15, -(10**12)))
        value = rng.choice((1, 5, -5, 10**9, 2**63 - 1, -(2**63), rng.randrange(10**12)))
        return Reading(series, time_us, time_us + 1, value, rng.choice((None, 1)), rng.choice((None, 2)))

    def _correction(self, now_ms: int) -> Record:
        """Return a correction of something that was not accepted like this."""
        rng, was = self._rng, self._rng.choice(self._events)
        if is_too_deep(was):
            return self._single(now_ms)
        try:
            named = msgspec.json.decode(was)
            fixed = {name: json.dumps(named[name]) for name in ("subject", "source")}
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            return self._single(now_ms)
        now = was.replace(b"1", b"2") if rng.random() < 0.5 else b""
        data = json.dumps({"was": (was + b" ").decode(), "now": now.decode(), "reason": "ticket 7"})
        body = self._texts.good(now_ms, type=f'"{CORRECTION}"', **fixed)
        event = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        event["data"] = msgspec.Raw(data.encode())
        version = rng.choice((b"1", b"1", b"2", b"0", b"99"))
        return Record(msgspec.json.encode(event), ((CONTENT_TYPE, SINGLE.encode()), (CORRECTS, version)))

    def _garbage(self, now_ms: int) -> Record:
        headers = ((CONTENT_TYPE, self._rng.choice(CONTENT_TYPES).encode()),) if self._rng.random() < 0.5 else ()
        return Record(self._rng.choice((None, *self._pool)), headers)

    def _control(self, now_ms: int) -> Record:
        rng = self._rng
        if rng.random() < 0.9:
            return Record(b"", ((TICK, b"1"),))
        day = now_ms // 86_400_000
        opens = day * 1000 + rng.choice((1, 2, 3, 500))
        return Record(b"", ((CLOSE, b"%d" % opens), (DEFINITIONS, b"%d" % rng.randint(1, self.newest))))

    def _some_events(self, now_ms: int) -> list[bytes]:
        return [self._event(now_ms) for _ in range(self._rng.choice((0, 1, 2, 5, 12)))]

    def _number(self) -> Headers:
        host = self._rng.choice(self._hosts)
        if self._rng.random() < 0.9:
            self._sequences[host] += 1
        return (COLLECTOR, host.encode()), (EPOCH, b"spool-7"), (SEQUENCE, b"%d" % self._sequences[host])

    def _content_type(self, kind: str) -> bytes:
        return self._rng.choice(_FORMAT_OF[kind]).encode()


def _again(value: bytes, compression: str | None, batches: int) -> bytes:
    """Write an Arrow stream as pyarrow does, its buffers compressed, and perhaps cut into more batches."""
    table: Any = pa.ipc.open_stream(value).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table) // batches))
    return bytes(sink.getvalue())


def _is_nobodys_close(headers: Headers, newest: int) -> bool:
    """Tell whether a record puts definitions in force that nobody has: such a log stops the pipeline, on purpose."""
    kind = kind_of(headers)
    return kind.control and kind.definitions > newest


_Make = Callable[[Maker, int], Record]
_MAKES: tuple[_Make, ...] = (
    *[Maker._single] * 7,
    *[Maker._binary] * 3,
    *[Maker._lines] * 2,
    *[Maker._batch] * 2,
    *[Maker._numbered_json] * 2,
    *[Maker._arrow] * 3,
    Maker._correction,
    Maker._garbage,
    Maker._control,
)
