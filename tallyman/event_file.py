"""Files of usage events: NDJSON, JSON written over many lines, or a JSON array; plain, gzipped, or standard input.

Every line is handed on as it is, decodable or not: what is wrong with it is the pipeline's to say, as a dead letter.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from tallyman.errors import EventFileError, UsageQueryError

_PIECE = 1 << 20
_WHOLE = 256 << 20  # an array, or events that are written over many lines, are read at once, up to here
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t\r\n]*")
_scan = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode  # numbers of any length
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True)
class EventFile:
    """An opened file; iterate over it to get its events in lists, about a mebibyte at a time.

    Attributes:
        total: Bytes on disk, None when nobody knows (standard input, a pipe).
        done: Bytes on disk that were read so far.
        too_long: Numbers of lines longer than `longest`, counted from 1; they are not among the events.
        name: As it was typed, for messages.

    Iterating raises EventFileError where the file ends early or is damaged, and UsageQueryError, before there are any
    events, for an array that is too large to be read at once.
    """

    stream: BinaryIO
    disk: BinaryIO | None
    total: int | None
    longest: int
    done: int = 0
    too_long: list[int] = field(default_factory=list)
    name: str = "-"

    def __iter__(self) -> Iterator[list[bytes]]:
        head = self._read().removeprefix(_BOM)
        start = head.lstrip()
        if start.startswith(b"[") or (start.startswith(b"{") and not _is_object(start.split(b"\n", 1)[0])):
            whole, is_all = self._read_whole(head)
            if not is_all:
                self._refuse_many_lines(whole.removeprefix(_BOM).lstrip())
            elif (events := _events_of(whole)) is not None:
                yield [event for event in events if self._fits(event, 1)]
                return
            head = whole
        yield from self._lines(head)

    def close(self) -> None:
        """Close what was opened; standard input, as any pipe, stays open."""
        if self.disk is not None:
            self.stream.close()
            self.disk.close()

    def _refuse_many_lines(self, start: bytes) -> None:
        """Refuse what is no event a line, and too large to be read at once: each line would be a dead letter."""
        if start.startswith(b"["):
            if not _is_json(start.split(b"\n", 1)[0]):
                raise UsageQueryError(
                    f"{self.name}: an array of more than {_WHOLE >> 20} MiB; write one event a line (jq -c '.[]')"
                )
        elif b"\n" in _first_object(start):
            raise UsageQueryError(
                f"{self.name}: more than {_WHOLE >> 20} MiB of events written over many lines; write one event a line "
                "(jq -c .)"
            )

    def _lines(self, rest: bytes) -> Iterator[list[bytes]]:
        number, overlong = 0, False
        while True:
            piece = self._read()
            *lines, rest = (rest + piece).split(b"\n")
            if not piece:
                lines, rest = [*lines, rest], b""
            if overlong and lines:
                lines[0], overlong = b"", False  # the end of a line that was given up
            if len(rest) > self.longest:
                self.too_long.append(number + len(lines) + 1)
                rest, overlong = b"", True
            elif overlong:
                rest = b""
            yield [line for at, line in enumerate(lines, number + 1) if not line.isspace() and self._fits(line, at)]
            number += len(lines)
            if not piece:
                return

    def _fits(self, line: bytes, number: int) -> bool:
        if len(line) > self.longest:
            self.too_long.append(number)
            return False
        return bool(line)

    def _read(self) -> bytes:
        try:
            piece = self.stream.read(_PIECE)
        except (OSError, EOFError, zlib.error) as error:  # a gzip file that was cut off or damaged, or the disk
            raise EventFileError(f"{self.name}: cannot be read to its end ({error})") from error
        self.done = self.disk.tell() if self.disk is not None else self.done + len(piece)
        if not piece and self.total is not None and self.done < self.total:
            raise EventFileError(
                f"{self.name}: cannot be read to its end (it had {self.total:,} bytes when it was opened, and became "
                "shorter)"
            )
        return piece

    def _read_whole(self, head: bytes) -> tuple[bytes, bool]:
        """Return what is left of the file, as far as memory holds it, and whether that is all."""
        pieces, size = [head], len(head)
        while size <= _WHOLE and (piece := self._read()):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces), size <= _WHOLE


def open_events(path: Path | str, longest: int) -> EventFile:
    """Open a file of events, "-" for standard input; gzip is told by its first bytes, not by the name.

    Args:
        longest: Bytes that a line may have.

    Raises:
        OSError: The file cannot be read.
    """
    if str(path) == "-":
        return _open_stream(sys.stdin.buffer, longest, "-")
    disk = Path(path).open("rb")  # noqa: SIM115  closed by EventFile.close
    if not disk.seekable():  # a pipe, as a shell makes of <(command)
        return _open_stream(disk, longest, str(path))
    is_gzip = disk.read(2) == _GZIP
    disk.seek(0)
    stream: BinaryIO = gzip.GzipFile(fileobj=disk) if is_gzip else disk  # type: ignore[assignment]
    return EventFile(stream, disk, Path(path).stat().st_size, longest, name=str(path))


def _open_stream(piped: BinaryIO, longest: int, name: str) -> EventFile:
    is_gzip = isinstance(piped, io.BufferedReader) and piped.peek(2)[:2] == _GZIP
    stream: BinaryIO = gzip.GzipFile(fileobj=piped) if is_gzip else piped  # type: ignore[assignment]
    return EventFile(stream, None, None, longest, name=name)


def _events_of(whole: bytes) -> list[bytes] | None:
    """Return the events of a whole array, or of JSON objects one behind the other; None if it is neither."""
    try:
        return [_in_one_line(bytes(raw)) for raw in _decode_array(whole)]
    except (msgspec.DecodeError, RecursionError):
        return _objects_of(whole)


def _objects_of(whole: bytes) -> list[bytes] | None:
    """Return the objects that a text consists of, as `jq .` writes them; None if there is anything else in it."""
    text = whole.decode("utf-8", "surrogateescape")
    objects, at = [], _BLANK.match(text, 0).end()  # type: ignore[union-attr]
    while at < len(text):
        end = _end_of_object(text, at)
        if end is None:
            return None
        objects.append(_in_one_line(text[at:end].encode("utf-8", "surrogateescape")))
        at = _BLANK.match(text, end).end()  # type: ignore[union-attr]
    return objects


def _first_object(start: bytes) -> bytes:
    """Return the object that a text begins with, b"" if there is none, or one that ends late."""
    text = start[:_PIECE].decode("utf-8", "surrogateescape")
    return text[: _end_of_object(text, 0) or 0].encode("utf-8", "surrogateescape")


def _end_of_object(text: str, at: int) -> int | None:
    """Return where the JSON object ends that begins at a place; None if none does."""
    try:
        found, end = _scan(text, at)
    except (ValueError, RecursionError):
        return None
    return end if isinstance(found, dict) else None


def _in_one_line(event: bytes) -> bytes:
    """Return an event without line ends, which would cut it in two among others; numbers keep all their digits."""
    if b"\n" not in event:
        return event
    try:
        return msgspec.json.format(event, indent=-1)
    except msgspec.DecodeError:
        return event.replace(b"\n", b" ")  # no event; it becomes one dead letter and not several


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True


def _is_object(text: bytes) -> bool:
    try:
        _decode_object(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True
