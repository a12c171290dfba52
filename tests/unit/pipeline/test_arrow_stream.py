"""Arrow streams that say of themselves what is not true harm nobody: a dead letter each."""

from __future__ import annotations

import resource
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from collectors.arrow import Reading, encode_readings
from pipeline.arrow_events import ARROW_SCHEMA, ArrowDecoder
from pipeline.arrow_stream import most_rows, open_messages, read_batches
from pipeline.catalog import Catalog
from tallyman.errors import EventError
from tallyman.event import ARROW, ARROW_SERIES_KEY, MAX_RECORD_EVENTS, Series
from tests.unit.pipeline.events import NOON_US, Walk, fetch_of, numbered
from tests.unit.pipeline.test_arrow_events import CPU, DEFINITIONS

ROWS = 11


def batch(rows: int = ROWS) -> bytes:
    return encode_readings([Reading(CPU, NOON_US + row, NOON_US, row, 1, 2) for row in range(rows)])


def written(*batches: Any, schema: Any = None, **options: Any) -> bytes:
    """Return batches of pyarrow's as a stream with the metadata of ours."""
    schema = schema or ARROW_SCHEMA.with_metadata(pa.ipc.open_stream(batch(1)).schema.metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for each in batches:
            writer.write_batch(each)
    return bytes(sink.getvalue())


def zeros(rows: int) -> Any:
    schema = ARROW_SCHEMA.with_metadata(pa.ipc.open_stream(batch(1)).schema.metadata)
    columns = [pa.array(np.zeros(rows, field.type.to_pandas_dtype())) for field in schema]
    return pa.record_batch(columns, schema=schema)


def refusal(record: bytes) -> tuple[str, str]:
    with pytest.raises(EventError) as caught:
        ArrowDecoder(Catalog(DEFINITIONS)).decode(record)
    return caught.value.reason, caught.value.detail


def test_a_small_record_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked() -> None:
    bomb = written(zeros(5_000_000), compression="zstd")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(bomb) < 20_000
    assert refusal(bomb) == ("too_large", f"expected at most {MAX_RECORD_EVENTS} rows, got 5000000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_few_rows_whose_columns_say_that_they_are_gigabytes_are_refused_before_room_is_made_for_them() -> None:
    record = bytearray(written(zeros(ROWS), compression="zstd"))
    assert [each.num_rows for each in read_batches(*open_messages(bytes(record)))] == [ROWS]
    column = record.index(struct.pack("<q", 8 * ROWS))
    struct.pack_into("<q", record, column, 1 << 40)
    reason, detail = refusal(bytes(record))
    assert reason == "too_large" and detail.startswith(f"expected at most {16 << 20} bytes in columns, got 10995116")


def test_many_batches_in_one_stream_are_counted_together() -> None:
    record = written(*[zeros(MAX_RECORD_EVENTS // 2 + 1)] * 2, compression="zstd")
    assert refusal(record)[0] == "too_large"


def test_many_small_batches_with_columns_longer_than_their_rows_are_counted_together() -> None:
    """A hundred kilobytes would take more than a gigabyte, and again after each start."""
    head, rows = written(), 300_000
    message = written(zeros(rows), compression="zstd")[len(head) - 8 : -8]  # without the end of the stream
    message = message.replace(struct.pack("<q", rows), struct.pack("<q", 1))
    record = head[:-8] + message * 100 + head[-8:]
    assert [each.num_rows for each in read_batches(*open_messages(head[:-8] + message + head[-8:]))] == [1]
    assert len(record) < 110_000
    assert refusal(record) == ("too_large", f"expected at most {16 << 20} bytes in columns, got {2 * 44 * rows}")


def test_rows_of_packed_records_are_counted_before_they_are_unpacked_and_cut_into_blocks() -> None:
    """Three thousand such records are four megabytes, and two hundred million rows."""
    record = written(zeros(40_000), compression="zstd")
    assert len(record) < 2000
    walk = Walk(DEFINITIONS).go(fetch_of([(record, numbered(n, content=ARROW), 0) for n in range(6)]))
    assert [block.counts.received for block in walk.blocks] == [80_000] * 3


def test_an_arrow_record_has_no_more_rows_than_are_counted() -> None:
    assert most_rows(batch(0)) == 0
    assert most_rows(batch(ROWS)) == ROWS
    assert most_rows(written(zeros(30), zeros(500), compression="zstd")) == 530
    assert most_rows(written(zeros(30), zeros(500))[:-8]) == 530  # without the mark of its end
    many = written(*[zeros(1)] * 200)
    assert most_rows(many) == MAX_RECORD_EVENTS  # a hostile record has a hundred thousand
    for odd in (b"no Arrow at all", batch()[4:], batch()[:20], batch().replace(b"\x0b\0\0\0\0\0\0\0", b"\xff" * 8)):
        assert most_rows(odd) == MAX_RECORD_EVENTS


@pytest.mark.parametrize("rows", [60_000, 12])
def test_columns_that_are_shorter_than_they_say_are_not_read_beyond_their_end(rows: int) -> None:
    """Behind them may stand other tenants' usage, or nothing: then the process dies."""
    record = batch().replace(struct.pack("<q", ROWS), struct.pack("<q", rows))
    reason, detail = refusal(record)
    assert reason == "malformed" and "Buffer" in detail


def test_a_stream_that_begins_with_rows_is_refused() -> None:
    messages = pa.ipc.MessageReader.open_stream(batch())
    sizes = [message.serialize().size for message in messages]
    assert refusal(batch()[sizes[0] :]) == ("malformed", "Arrow stream: expected a schema first, got record batch")
    assert refusal(batch()[sum(sizes) :]) == ("malformed", "Arrow stream: expected a schema first, got nothing")


@pytest.mark.parametrize("behind", [batch(), b"\0" * 8, b"x"])
def test_bytes_behind_the_end_of_a_stream_are_not_dropped_in_silence(behind: bytes) -> None:
    """Clients that write a stream for each batch put them one behind the other; readers stop at the first one's end."""
    record = batch() + behind
    found = f"Arrow stream: expected its end at byte {len(batch())}, got {len(behind)} bytes more"
    assert refusal(record) == ("malformed", found)
    walk = Walk(DEFINITIONS).go(fetch_of([(record, numbered(1, content=ARROW), 0)])).flush()
    assert [(letter.reason, letter.body) for letter in walk.dead] == [("malformed", record)]
    assert walk.totals == {}


@pytest.mark.parametrize("options", [{}, {"use_legacy_format": True, "metadata_version": pa.ipc.MetadataVersion.V4}])
def test_a_stream_may_lack_the_mark_of_its_end(options: dict[str, Any]) -> None:
    whole, mark = written(zeros(ROWS), **options), 4 if options else 8
    for record in (whole, whole[:-mark]):
        assert [each.num_rows for each in read_batches(*open_messages(record))] == [ROWS]


def test_a_dictionary_where_rows_belong_is_refused() -> None:
    names = pa.array(["a", "b"]).dictionary_encode()
    other = written(pa.record_batch([names], names=["series"]), schema=pa.schema([("series", names.type)]))
    dictionary = list(pa.ipc.MessageReader.open_stream(other))[1].serialize()
    schema = next(iter(pa.ipc.MessageReader.open_stream(batch()))).serialize()
    assert refusal(bytes(schema) + bytes(dictionary))[0] == "bad_schema"


def test_a_series_table_that_is_nested_too_deeply_is_refused_and_not_tried() -> None:
    table = b'[{"type":"cpu","subject":"s","note":' + b"[" * 100_000 + b"]" * 100_000 + b"}]"
    metadata = {**pa.ipc.open_stream(batch(1)).schema.metadata, ARROW_SERIES_KEY.encode(): table}
    assert refusal(written(schema=ARROW_SCHEMA.with_metadata(metadata)))[0] == "bad_schema"


def test_large_series_tables_are_forgotten_before_they_fill_the_memory() -> None:
    decoder = ArrowDecoder(Catalog(DEFINITIONS))
    long = {f"label{number}": "x" * 900 for number in range(1000)}
    for number in range(100):
        decoder.begin()
        table = Series(type="memory", subject="Zoë Åström", data=long | {"label0": str(number)})
        decoder.open(encode_readings([Reading(table, NOON_US, NOON_US, 1)]))
    assert decoder._known._bytes < 70 << 20
