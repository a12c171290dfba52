"""What the agent's Arrow batches promise, read back with pyarrow."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from collectors.arrow import Reading, encode_readings
from tallyman.errors import QuantityError
from tallyman.event import ARROW_FIELDS, Series

ETH0 = Series(
    type="tallyman.host.network", subject="Zoë Åström", data={"interface": "eth0", "direction": "in"}, incarnation="b"
)
MEMORY = Series(type="tallyman.host.memory", subject="Zoë Åström", scale=3)


def read(payload: bytes) -> pa.Table:
    table = pa.ipc.open_stream(payload).read_all()
    table.validate(full=True)
    return table


def test_columns_and_their_types_are_those_of_the_contract() -> None:
    schema = read(encode_readings([Reading(MEMORY, 0, 10, 5)])).schema
    assert [(field.name, str(field.type), field.nullable) for field in schema] == list(ARROW_FIELDS)


def test_rows_come_back_to_the_last_digit() -> None:
    readings = [
        Reading(ETH0, 1_000_000, 11_000_000, 2**62, 1, 2**62 + 1),
        Reading(MEMORY, 1_000_000, 11_000_000, -(2**63)),
        Reading(ETH0, 11_000_000, 21_000_000, 0, 2**62 + 1, 2**62 + 1),
    ]
    rows = read(encode_readings(readings)).to_pylist()
    assert [row["series"] for row in rows] == [0, 1, 0]
    for row, reading in zip(rows, readings, strict=True):
        assert tuple(row.values())[1:] == tuple(reading)[1:]


def test_each_series_stands_once_in_the_schema_with_its_unicode_names() -> None:
    metadata = read(encode_readings([Reading(ETH0, 0, 1, 1), Reading(MEMORY, 0, 1, 1), Reading(ETH0, 1, 2, 1)])).schema
    assert metadata.metadata[b"tallyman.version"] == b"1"
    series = json.loads(metadata.metadata[b"tallyman.series"])
    assert [one["type"] for one in series] == ["tallyman.host.network", "tallyman.host.memory"]
    assert series[0]["subject"] == "Zoë Åström"
    assert series[0]["data"] == {"direction": "in", "interface": "eth0"}
    assert (series[0]["incarnation"], series[1]["scale"]) == ("b", 3)


def test_an_empty_batch_is_valid_and_has_all_columns() -> None:
    table = read(encode_readings([]))
    assert (table.num_rows, table.column_names) == (0, [name for name, _, _ in ARROW_FIELDS])
    assert table.schema.metadata[b"tallyman.series"] == b"[]"


def test_equal_readings_give_equal_bytes() -> None:
    readings = [Reading(ETH0, 0, 1, 5, 1, 6)]
    assert encode_readings(readings) == encode_readings(list(readings))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_missing_counter_ends_are_null_and_not_zero(count: int) -> None:
    readings = [Reading(ETH0, 0, 1, 1, 0, 1) if index % 3 else Reading(MEMORY, 0, 1, 1) for index in range(count)]
    firsts = read(encode_readings(readings)).column("first").to_pylist()
    assert firsts == [0 if index % 3 else None for index in range(count)]


def test_a_value_of_more_than_64_bits_is_refused_with_its_size() -> None:
    with pytest.raises(QuantityError, match="value: expected int64, got 9223372036854775808"):
        encode_readings([Reading(MEMORY, 0, 1, 2**63)])
