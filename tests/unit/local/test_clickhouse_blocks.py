"""The end of a block is found without decoding it, wherever the bytes are cut."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from tallyman.local.clickhouse.blocks import columns_of, read_columns, read_header, retype, split_blocks
from tallyman.local.clickhouse.compression import Frames, compress, read_frame
from tallyman.local.clickhouse.errors import ClientGoneError, ServerError
from tallyman.local.clickhouse.reader import Reader
from tallyman.local.clickhouse.shapes import Array, Fixed, Nullable, Strings, Tuple
from tallyman.local.clickhouse.types import shape_of, split_arguments
from tallyman.local.clickhouse.wire import Column, text, varint


def block(rows: int, *columns: tuple[str, str, bytes]) -> bytes:
    parts = [varint(len(columns)), varint(rows)]
    for name, kind, data in columns:
        parts += [text(name), text(kind), data]
    return b"".join(parts)


def strings(*values: str) -> bytes:
    return b"".join(map(text, values))


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


TENANTS = ["Zoë Åström", "", "x" * 127, "y" * 128, "z" * 20000, "日本"]
USAGE = block(
    6,
    ("tenant", "String", strings(*TENANTS)),
    ("amount", "Int128", bytes(16 * 6)),
    ("tags", "Array(String)", u64(1, 1, 3, 3, 3, 4) + strings("a", "bb", "", "ö" * 90)),
    ("region", "LowCardinality(Nullable(String))", u64(1, 0x600, 2) + strings("", "eu") + u64(6) + bytes(6)),
    ("limit", "Nullable(Decimal(38, 9))", bytes(6 + 6 * 16)),
    ("pairs", "Map(String, UInt8)", u64(0, 0, 0, 0, 0, 2) + strings("k", "l") + b"\x01\x02"),
    ("both", "Tuple(a Int8, `b c` Enum8('x, (y)' = 1))", bytes(12)),
    ("what", "Variant(Int64, String)", u64(0) + b"\x00\x01\xff\xff\xff\xff" + bytes(8) + strings("v")),
)


def in_pieces(data: bytes, size: int) -> Reader:
    """A reader whose source gives `size` bytes at a time, and whose buffer is small."""
    pieces: Iterator[bytes] = iter([data[at : at + size] for at in range(0, len(data), size)])
    left = b""

    def fill(view: memoryview) -> int:
        nonlocal left
        left = left or next(pieces, b"")
        given = min(len(view), len(left))
        view[:given] = left[:given]
        left = left[given:]
        return given

    return Reader(fill, size=64)


@pytest.mark.parametrize("size", [1, 2, 7, 63, 64, 65, 1000, 1 << 20])
def test_a_block_ends_where_it_ends_however_it_is_cut(size: int) -> None:
    reader = in_pieces(USAGE + b"next", size)
    passed = bytearray()
    reader.start_copy(passed.extend)
    columns = read_columns(reader, *read_header(reader))
    reader.end_copy()
    assert [column.name for column in columns][:2] == ["tenant", "amount"]
    assert passed == USAGE
    assert reader.take(4) == b"next"


def test_every_run_of_string_lengths_is_walked_exactly() -> None:
    dice = random.Random(20261025)
    for _ in range(50):
        values = ["x" * dice.choice([3, 3, 3, 3, 12, 130]) for _ in range(dice.randrange(1, 400))]
        values[: dice.randrange(0, 200)] = ["same"] * dice.randrange(0, 200)
        data = block(len(values), ("s", "String", strings(*values)))
        reader = in_pieces(data + b"!", dice.choice([50, 333, 100_000]))
        read_columns(reader, *read_header(reader))
        assert reader.take(1) == b"!"


def test_native_output_is_cut_into_its_blocks() -> None:
    small = block(1, ("a", "UInt8", b"\x07"))
    assert split_blocks(USAGE + small + small) == [(6, USAGE), (1, small), (1, small)]


def test_a_column_gets_another_type_and_keeps_its_values() -> None:
    times = block(2, ("s", "String", strings("a", "b")), ("t", "DateTime", bytes(8)), ("n", "UInt8", b"\x01\x02"))
    zoned = retype(times, {1: "DateTime('Europe/Berlin')"})
    assert zoned == times.replace(text("DateTime"), text("DateTime('Europe/Berlin')"))
    assert columns_of(zoned)[1] == Column("t", "DateTime('Europe/Berlin')")


def test_the_end_of_the_stream_in_mid_block_is_noticed() -> None:
    with pytest.raises(ClientGoneError):
        columns_of(USAGE[:-1])


def test_a_state_without_a_length_is_refused() -> None:
    with pytest.raises(ServerError, match=r"AggregateFunction\(sum, Int64\) cannot be measured"):
        shape_of("AggregateFunction(sum, Int64)")


@pytest.mark.parametrize(
    ("type_name", "shape"),
    [
        ("Decimal(9, 2)", Fixed(4)),
        ("Decimal(18, 2)", Fixed(8)),
        ("Decimal(38, 2)", Fixed(16)),
        ("Decimal(76, 2)", Fixed(32)),
        ("DateTime64(3, 'Europe/Berlin')", Fixed(8)),
        ("FixedString(7)", Fixed(7)),
        ("Enum16('a' = 1, 'b)' = 2)", Fixed(2)),
        ("SimpleAggregateFunction(sum, Decimal(38, 9))", Fixed(16)),
        ("Map(String, Nullable(Int8))", Array(Tuple((Strings(), Nullable(Fixed(1)))))),
        ("Nested(a Int8, b String)", Array(Tuple((Fixed(1), Strings())))),
        ("Ring", Array(Tuple((Fixed(8), Fixed(8))))),
        ("IntervalMonth", Fixed(8)),
        ("Tuple(Int8, String)", Tuple((Fixed(1), Strings()))),
    ],
)
def test_a_types_shape_is_read_from_its_name(type_name: str, shape: object) -> None:
    assert shape_of(type_name) == shape


def test_arguments_are_split_outside_of_names_and_brackets() -> None:
    assert split_arguments("a Int8, `b,` Array(Tuple(Int8, String)), Enum8('it\\'s, (' = 1)") == [
        "a Int8",
        "`b,` Array(Tuple(Int8, String))",
        "Enum8('it\\'s, (' = 1)",
    ]


def test_compressed_frames_come_back_as_one_stream() -> None:
    data = random.Random(1).randbytes(1 << 20) + bytes(3 << 20)
    frames = b"".join(compress(data))
    reader = Reader(Frames(in_pieces(frames, 100_000)).fill)
    assert reader.take(len(data)) == data


def test_a_changed_byte_in_a_frame_is_noticed() -> None:
    frame = bytearray(next(iter(compress(b"usage" * 100))))
    frame[-1] ^= 1
    with pytest.raises(ServerError) as refused:
        read_frame(Reader.over(bytes(frame)))
    assert refused.value.code == 40
