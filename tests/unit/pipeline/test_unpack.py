"""Compressed batches are taken apart within a bound, whatever they say of themselves."""

from __future__ import annotations

import gzip
import os
import resource
import struct
import time
from collections.abc import Callable
from typing import Any

import lz4.frame
import pytest
import snappy
import zstandard
from kafka.codec import snappy_encode

from pipeline.records import CorruptError
from pipeline.unpack import MAX_BYTES, decompress

Encode = Callable[[bytes], bytes]
LARGE = os.urandom(1 << 20) * 5
CODECS: dict[str, tuple[int, Encode]] = {
    "gzip": (1, lambda data: gzip.compress(data, 1)),
    "snappy": (2, snappy.compress),
    "framed snappy": (2, snappy_encode),
    "lz4": (3, lz4.frame.compress),
    "zstd": (4, zstandard.compress),
}


@pytest.mark.parametrize("number, encode", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("data", [b"", b"x", LARGE], ids=["nothing", "a byte", "megabytes"])
def test_what_was_compressed_comes_out_again(number: int, encode: Encode, data: bytes) -> None:
    assert decompress(number, encode(data)) == data


def test_several_gzip_members_are_one_batch() -> None:
    assert decompress(1, gzip.compress(LARGE) + gzip.compress(b"behind")) == LARGE + b"behind"


def test_zeros_between_gzip_members_are_padding() -> None:
    assert decompress(1, gzip.compress(LARGE) + bytes(5000) + gzip.compress(b"behind") + b"\0") == LARGE + b"behind"


def test_hundreds_of_thousands_of_gzip_members_take_seconds_not_a_minute() -> None:
    """Twice as many take twice as long, not four times."""
    member = gzip.compress(b"x", 1)
    count = (4 << 20) // len(member)
    began = time.process_time()
    assert decompress(1, member * count) == b"x" * count
    assert time.process_time() - began < 10


def test_a_million_blocks_of_framed_snappy_take_seconds_not_minutes() -> None:
    """Twice as many take twice as long, not four times."""
    count = (8 << 20) // 7
    began = time.process_time()
    assert decompress(2, snappy_encode(b"") + (struct.pack(">i", 3) + b"\x01\x00x") * count) == b"x" * count
    assert time.process_time() - began < 20


@pytest.mark.parametrize("data", [b"whole", LARGE], ids=["a word", "megabytes"])
@pytest.mark.parametrize("behind", [b"garbage, longer than any header", b"\x1f\x8b\x08\0", b"\x1f\x8b" + bytes(20)])
def test_what_stands_behind_the_last_gzip_member_is_left_out_as_kafka_does(data: bytes, behind: bytes) -> None:
    """The broker takes such a batch, and Java's clients read it: no partition may stop at it."""
    assert decompress(1, gzip.compress(data, 1) + behind) == data


@pytest.mark.parametrize("behind", [b"\0", b"gar"])
def test_fewer_bytes_than_a_length_behind_framed_snappy_are_left_out_as_kafka_does(behind: bytes) -> None:
    assert decompress(2, snappy_encode(b"whole") + behind) == b"whole"


@pytest.mark.parametrize("data", [b"", b"whole", LARGE], ids=["nothing", "a word", "megabytes"])
@pytest.mark.parametrize("options", [{}, {"store_size": False, "block_linked": False, "block_checksum": True}])
def test_the_checksum_of_an_lz4_frames_content_is_not_looked_at_as_kafka_does(data: bytes, options: Any) -> None:
    """The batch's own checksum covers it; a client that computes it wrongly stops no partition."""
    frame = lz4.frame.compress(data, content_checksum=True, **options)
    assert decompress(3, frame[:-1] + bytes([frame[-1] ^ 255])) == decompress(3, frame) == data
    for end in (-4, -5, -9):  # without the checksum, or cut off
        with pytest.raises(CorruptError, match="lz4 data that cannot be read"):
            decompress(3, frame[:end])


def test_framed_snappy_may_begin_anew() -> None:
    assert decompress(2, snappy_encode(b"one ") + snappy_encode(b"behind the other")) == b"one behind the other"


@pytest.mark.parametrize("block", [b"\0\0\0\x09abc", b"\xff\xff\xff\xfc"])
def test_framed_snappy_of_which_a_block_is_cut_off_is_refused(block: bytes) -> None:
    with pytest.raises(CorruptError, match="snappy data that cannot be read"):
        decompress(2, snappy_encode(b"whole") + block)


@pytest.mark.parametrize("number, encode", [CODECS[name] for name in ("gzip", "lz4", "zstd")])
def test_megabytes_that_stand_for_gigabytes_are_refused_before_they_fill_the_memory(
    number: int, encode: Encode
) -> None:
    bomb = encode(bytes(MAX_BYTES)) + encode(bytes(MAX_BYTES)) if number != 3 else encode(bytes(2 * MAX_BYTES))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptError, match=f"a batch of more than {MAX_BYTES} bytes when decompressed"):
        decompress(number, bomb)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 3 * MAX_BYTES


@pytest.mark.parametrize("name", ["gzip", "lz4"])
def test_a_large_batch_that_is_cut_off_is_refused(name: str) -> None:
    number, encode = CODECS[name]
    with pytest.raises(CorruptError, match=f"{name} data that cannot be read"):
        decompress(number, encode(LARGE)[:-9])


def test_snappy_that_is_too_long_to_be_anybodys_batch_is_refused() -> None:
    with pytest.raises(CorruptError, match="when decompressed"):
        decompress(2, bytes(MAX_BYTES // 20))
