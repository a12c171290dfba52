"""Kafka's compressed batches, taken apart within a bound: some bytes on the wire may stand for gigabytes.

The fast decoders of `kafka.codec` do the work where what comes out is known to be small.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import lz4.frame
import zstandard
from kafka import codec

from pipeline.records import CorruptError

MAX_BYTES = 256 << 20  # thirty times what a batch may have on the wire
_PIECE = 1 << 20
_WINDOW = 4096
_MEMBER, _MEMBER_BYTES = b"\x1f\x8b\x08", 20  # of gzip: how one begins, and the least that it takes
# How Java's clients frame blocks of snappy: a magic word and two versions, then each block behind its length.
_XERIAL, _XERIAL_BYTES = b"\x82SNAPPY\0", 16


def decompress(number: int, data: bytes) -> bytes:
    """Return what a batch's codec made of its records.

    Raises:
        CorruptError: The bytes are none of that codec's, nobody knows it or it is not installed, or they stand for more
            than `MAX_BYTES`.
    """
    if number not in _CODECS:
        raise CorruptError(f"compression codec {number}, which nobody knows")
    name, is_installed, decode = _CODECS[number]
    if not is_installed():
        next_step = f"pip install 'kafka-python[{name}]', then start again"
        raise CorruptError(f"{name} compression, which is not installed here ({next_step})")
    try:
        return decode(data)
    except CorruptError:
        raise
    except Exception as error:  # each codec has an error of its own
        raise CorruptError(f"{name} data that cannot be read ({error})") from error


def _gzip(data: bytes) -> bytes:
    if len(data) * 1032 <= MAX_BYTES:  # deflate makes no more of a byte
        with suppress(gzip.BadGzipFile, EOFError):
            return bytes(codec.gzip_decode(data))
    # What zlib leaves over it copies, so it sees the rest of a window only: a batch may have 400,000 members.
    out, at = io.BytesIO(), 0
    while at < len(data):
        member = zlib.decompressobj(wbits=31)
        while at < len(data) and not member.eof:
            window = data[at : at + _WINDOW]
            _write(out, member.decompress(window, _PIECE))
            at += len(window) - len(member.unconsumed_tail) - len(member.unused_data)
        if not member.eof:
            raise EOFError("cut off")
        while data[at : at + 1] == b"\0":
            at += 1
        if len(data) - at < _MEMBER_BYTES or not data.startswith(_MEMBER, at):
            break  # the broker takes such a batch, and reads no further, either
    return out.getvalue()


def _lz4(data: bytes) -> bytes:
    if len(data) * 255 <= MAX_BYTES:  # LZ4 makes no more of a byte
        with suppress(RuntimeError):
            return bytes(codec.lz4_decode(data))
    end = _end_of_blocks(data)
    data = data[:end]
    out, frame = io.BytesIO(), lz4.frame.LZ4FrameDecompressor()
    while not frame.eof:
        piece = frame.decompress(data, _PIECE)
        if not piece and frame.needs_input:
            if end is None:
                raise EOFError("cut off")
            break
        _write(out, piece)
        data = b""
    return out.getvalue()


def _end_of_blocks(data: bytes) -> int | None:
    """Return where the checksum of an LZ4 frame's content stands, None if it has none: the broker does not look at it,
    and takes a batch in which it is wrong.
    """
    flags = data[4]
    if not flags & 4:
        return None
    at, size = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0), -1
    while size:
        (size,) = struct.unpack_from("<I", data, at)
        at += 4 + (size & 0x7FFFFFFF) + (4 if size and flags & 16 else 0)
    if at + 4 > len(data):
        raise EOFError("cut off")
    return at


def _zstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        found = reader.read(MAX_BYTES + 1)
    if len(found) > MAX_BYTES:
        raise _too_much()
    return found


def _snappy(data: bytes) -> bytes:
    if len(data) * 24 > MAX_BYTES:  # a copy of 64 bytes takes three
        raise _too_much()
    if not data.startswith(_XERIAL):
        return bytes(codec.snappy.decompress(data))
    # Not by `kafka.codec`: for each block it copies all that is behind it, and a batch may have a million blocks.
    out, at = io.BytesIO(), _XERIAL_BYTES
    while at + 4 <= len(data):  # the broker looks at no fewer bytes, either
        if data.startswith(_XERIAL, at):
            at += _XERIAL_BYTES
            continue
        (size,) = struct.unpack_from(">i", data, at)
        at += 4
        if not 0 <= size <= len(data) - at:
            raise EOFError("cut off")
        _write(out, codec.snappy.decompress(data[at : at + size]))
        at += size
    return out.getvalue()


def _write(out: io.BytesIO, piece: bytes) -> None:
    if out.tell() + len(piece) > MAX_BYTES:
        raise _too_much()
    out.write(piece)


def _too_much() -> CorruptError:
    return CorruptError(f"a batch of more than {MAX_BYTES} bytes when decompressed")


_CODECS: dict[int, tuple[str, Callable[[], bool], Callable[[bytes], bytes]]] = {
    1: ("gzip", codec.has_gzip, _gzip),
    2: ("snappy", codec.has_snappy, _snappy),
    3: ("lz4", codec.has_lz4, _lz4),
    4: ("zstd", codec.has_zstd, _zstd),
}
