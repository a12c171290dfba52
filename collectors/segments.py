"""The files of the spool: records with a magic word, a length and a checksum, in numbered segments.

A record that does not check is damage, from its first byte to the next record that does. What follows it is read.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

SUFFIX, TEMPORARY = ".spool", ".tmp"
_MAGIC = b"TLY1"
_HEAD = struct.Struct("<4sII")  # magic, bytes of the body, CRC-32 of length and body
_LENGTH = struct.Struct("<I")
SMALLEST_RECORD = _HEAD.size


class Position(NamedTuple):
    """A place between two records: segment number, then bytes from its start. Places are ordered."""

    segment: int
    offset: int


class Mark(msgspec.Struct, frozen=True, array_like=True, tag="mark"):
    """The first record of each segment: how to go on when it holds nothing else yet."""

    epoch: str
    next_sequence: int
    state: bytes


class Frame(msgspec.Struct, frozen=True, array_like=True, tag="frame"):
    """One accepted batch, as it is sent, and the collectors' state behind it."""

    epoch: str
    sequence: int
    watermark_us: int
    rows: int
    payload: bytes
    state: bytes


class Record(NamedTuple):
    """Bytes `start` to `end` of a segment; `content` is None where they are damaged."""

    start: int
    end: int
    content: Mark | Frame | None


class Scan(NamedTuple):
    """What a segment holds: the end of its last good record, how to go on from there, and what is damaged before."""

    end: int
    last: Mark | Frame | None
    damaged: tuple[Record, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Mark | Frame).decode


def pack(content: Mark | Frame) -> bytes:
    """Write one record."""
    body = _encode(content)
    length = _LENGTH.pack(len(body))
    return _HEAD.pack(_MAGIC, len(body), zlib.crc32(body, zlib.crc32(length))) + body


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:012d}{SUFFIX}"


def list_numbers(folder: Path) -> list[int]:
    """Return the numbers of the segments in a folder, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*" + SUFFIX) if path.stem.isdecimal())


def read_record(file: int, offset: int, end: int) -> Record | None:
    """Read the record at `offset` of an open file; None at `end`."""
    if offset >= end:
        return None
    record = _try_record(file, offset, end)
    if record is not None:
        return record
    # Damage is rare, so look for the next good record in the simplest way: in the rest of the segment, in memory.
    rest = os.pread(file, end - offset, offset)
    at = rest.find(_MAGIC, 1)
    while at >= 0:
        if _try_record(file, offset + at, end) is not None:
            return Record(offset, offset + at, None)
        at = rest.find(_MAGIC, at + 1)
    return Record(offset, end, None)


def _try_record(file: int, offset: int, end: int) -> Record | None:
    head = os.pread(file, _HEAD.size, offset)
    if len(head) < _HEAD.size:
        return None
    magic, length, checksum = _HEAD.unpack(head)
    if magic != _MAGIC or offset + _HEAD.size + length > end:
        return None
    body = os.pread(file, length, offset + _HEAD.size)
    if zlib.crc32(body, zlib.crc32(head[4:8])) != checksum:
        return None
    try:
        return Record(offset, offset + _HEAD.size + length, _decode(body))
    except msgspec.DecodeError:
        return None


def read_records(file: int, end: int) -> Iterator[Record]:
    """Yield all records of an open file up to `end`."""
    offset = 0
    while (record := read_record(file, offset, end)) is not None:
        yield record
        offset = record.end


def scan(path: Path) -> Scan:
    """Read a whole segment. Damage at its very end is not listed: it is a torn tail, which was never accepted."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end, last = 0, None
        damaged: list[Record] = []
        waiting: list[Record] = []
        with named(path):
            for record in read_records(file, os.fstat(file).st_size):
                if record.content is None:
                    waiting.append(record)
                else:
                    end, last = record.end, record.content
                    damaged += waiting
                    waiting = []
        return Scan(end, last, tuple(damaged))
    finally:
        os.close(file)


def is_one_begun(path: Path, offset: int) -> bool:
    """Whether the bytes behind the last good record are the beginning of one record: its writing did not end."""
    with path.open("rb") as file:
        file.seek(offset)
        tail = file.read()
    if len(tail) < _HEAD.size:
        return _MAGIC.startswith(tail[: len(_MAGIC)])
    magic, length, _ = _HEAD.unpack_from(tail)
    return magic == _MAGIC and _HEAD.size + length > len(tail) and _MAGIC not in tail[1:]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of an open file, as a disk with bad sectors gives, say which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def create(folder: Path, number: int, mark: Mark) -> int:
    """Make a segment with its mark, durable under its name at once or not at all; return its size.

    Raises:
        OSError: No room; nothing is left behind.
    """
    content = pack(mark)
    replace_file(path_of(folder, number), content)
    return len(content)


def write_all(file: int, content: bytes) -> None:
    """Write all bytes; a short write, as on a disk that fills up, goes on until the error comes."""
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def write_small(path: Path, content: bytes) -> None:
    """Replace a small file of one line durably; a checksum follows in a second line.

    Raises:
        OSError: No room; the old one stands.
    """
    replace_file(path, content + b"\n%08x\n" % zlib.crc32(content))


def read_small(path: Path) -> bytes | None:
    """Return what `write_small` wrote, None if nothing did. Files of one line are older than the checksum.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    try:
        content, *checksum = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    if checksum and checksum != [b"%08x" % zlib.crc32(content), b""]:
        raise ValueError("its checksum is another")
    return content


def replace_file(path: Path, content: bytes) -> None:
    """Replace a small file durably: after a crash it is the old one or the new one.

    Raises:
        OSError: No room; the old one stands.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(file, content)
        os.fsync(file)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
