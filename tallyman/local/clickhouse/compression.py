"""Compressed frames around blocks: checksum, method, sizes, bytes (`CompressedReadBufferBase.cpp`)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from clickhouse_cityhash.cityhash import CityHash128  # type: ignore[import-untyped]
from lz4 import block as lz4_block  # type: ignore[import-untyped]

from tallyman.local.clickhouse.errors import (
    CANNOT_DECOMPRESS,
    CHECKSUM_DOESNT_MATCH,
    UNKNOWN_COMPRESSION_METHOD,
    ServerError,
)
from tallyman.local.clickhouse.reader import Reader

LZ4, ZSTD, NONE = 0x82, 0x90, 0x02
_HEAD = struct.Struct("<BII")
_MASK = (1 << 64) - 1
_FRAME = 1 << 20
_LARGEST = 1 << 30


def compress(data: bytes) -> Iterator[bytes]:
    """Cut bytes into LZ4 frames."""
    for start in range(0, len(data), _FRAME):
        part = data[start : start + _FRAME]
        packed = lz4_block.compress(part, store_size=False)
        frame = _HEAD.pack(LZ4, _HEAD.size + len(packed), len(part)) + packed
        yield _checksum(frame) + frame


def read_frame(reader: Reader) -> bytes:
    """Read one frame and unpack it.

    Raises:
        ServerError: If the checksum differs, the method is unknown or the bytes are no such frame.
    """
    checksum = reader.take(16)
    head = reader.take(_HEAD.size)
    method, packed_size, size = _HEAD.unpack(head)
    if packed_size < _HEAD.size or packed_size > _LARGEST or size > _LARGEST:
        raise ServerError(CANNOT_DECOMPRESS, f"a frame of {packed_size} bytes for {size} cannot be unpacked")
    packed = reader.take(packed_size - _HEAD.size)
    if _checksum(head + packed) != checksum:
        raise ServerError(CHECKSUM_DOESNT_MATCH, "Checksum doesn't match: corrupted data.")
    return _unpack(method, packed, size)


def _checksum(frame: bytes) -> bytes:
    value = CityHash128(frame)
    return struct.pack("<QQ", value >> 64, value & _MASK)


def _unpack(method: int, packed: bytes, size: int) -> bytes:
    if method == NONE:
        return packed
    if method == LZ4:
        try:
            return bytes(lz4_block.decompress(packed, uncompressed_size=size))
        except lz4_block.LZ4BlockError as error:
            raise ServerError(CANNOT_DECOMPRESS, f"LZ4: {error}") from error
    if method == ZSTD:
        return _unpack_zstd(packed, size)
    raise ServerError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method: {method:#x}; use LZ4")


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise ServerError(UNKNOWN_COMPRESSION_METHOD, "ZSTD needs the package zstandard; use LZ4") from error
    try:
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ServerError(CANNOT_DECOMPRESS, f"ZSTD: {error}") from error


class Frames:
    """The bytes inside a run of frames, as a source for a `Reader`."""

    def __init__(self, outer: Reader) -> None:
        self._outer = outer
        self._left = memoryview(b"")

    def fill(self, view: memoryview) -> int:
        """Give as many bytes as fit; reads the next frame when the last is used up."""
        while not self._left:
            self._left = memoryview(read_frame(self._outer))
        size = min(len(view), len(self._left))
        view[:size] = self._left[:size]
        self._left = self._left[size:]
        return size
