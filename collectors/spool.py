"""Keep numbered batches on disk until Kafka has them: what was accepted survives kill -9, power loss and a full disk.

A batch is numbered, written and fsynced before `append` returns, and is never cut anew: the same epoch and number
always carry the same bytes. Numbers only grow; a hole in them is a number that was never accepted, or damage, which
is reported. The epoch is made with the spool, at random, and belongs to one collector's name for ever.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import shlex
import threading
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec

from collectors import segments
from collectors.segments import Frame, Mark, Position
from tallyman.errors import SpoolFullError, StackError

log = logging.getLogger(__name__)
_T = TypeVar("_T")

SEGMENT_BYTES = 4 * 1024 * 1024
SMALLEST_SEGMENT = 16 * 1024
_PLACE, _NAMES = "acknowledged.json", "names.json"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Batch(NamedTuple):
    """An accepted batch, and the place behind it: what `acknowledge` takes when Kafka has it.

    Attributes:
        collector: The name that its epoch was first sent under; empty before `name_epoch` gave it one.
    """

    collector: str
    epoch: str
    sequence: int
    watermark_us: int
    rows: int
    payload: bytes
    end: Position


class Spool:
    """One thread appends; another reads and acknowledges.

    Attributes:
        epoch: With the collector's name and the number, the identity of a batch.
        state: The `state` of the newest accepted batch. It lies in the same record, so the two cannot part.
        max_bytes: All segments together never take more.
        torn: The number of a batch whose writing a crash ended, None if there is none: see `fill`.
    """

    def __init__(self, folder: Path, *, max_bytes: int, segment_bytes: int | None = None) -> None:
        """Open a spool, or make it. A torn tail is cut; damage is set aside and reported.

        Raises:
            StackError: Another process holds this spool.
            OSError: The folder cannot be read or written.
        """
        self.folder, self.max_bytes = folder, max_bytes
        self._segment_bytes = segment_bytes or max(min(SEGMENT_BYTES, max_bytes // 8), SMALLEST_SEGMENT)
        self._changed = threading.Condition()
        self._reader: tuple[int, int] | None = None  # segment, open file
        self._is_doubtful = False  # a failed append may have left bytes behind the accepted ones
        self.torn: int | None = None
        self._name, self._is_name_saved = "", True
        self._wants_segment = False  # one was begun and may stand on the disk, so nothing may go into the one before
        self.set_aside_bytes = 0
        self._damaged: set[tuple[int, int]] = set()  # what was set aside: it is read again by each new producer
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _hold(folder / "lock")
        self._active = -1
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        for leftover in self.folder.glob("*" + segments.TEMPORARY):
            leftover.unlink()
        # Without it everything that is here is sent again, under the same numbers.
        self._acknowledged = self._read_small(_PLACE, Position, Position(0, 0))
        numbers = segments.list_numbers(self.folder)
        self._sizes = {number: segments.path_of(self.folder, number).stat().st_size for number in numbers}
        last = segments.scan(segments.path_of(self.folder, numbers[-1])) if numbers else None
        end = Position(numbers[-1], last.end) if last else Position(0, 0)
        if last and last.last and self._acknowledged <= end:
            self._go_on(end, last.last)
        else:
            # A new spool; or one that lost what went with its newest batches: numbers that Kafka may know, and
            # where the counters stood. A new epoch cannot repeat a number, counters without a state begin with a
            # baseline, so nothing is billed twice.
            if numbers or self._acknowledged > end:
                log.error("spool_lost_its_newest_batches", extra={"found": end, "known": self._acknowledged})
            self.epoch, self.state, self._next = secrets.token_hex(16), b"", 1
            self._begin_segment(max(end.segment, self._acknowledged.segment) + 1)
        self._names = self._read_small(_NAMES, dict[str, str], {})
        self._saved = self._acknowledged
        self._acknowledged = max(self._acknowledged, Position(min(self._sizes), 0))
        self._drop_acknowledged()

    def _go_on(self, end: Position, last: Mark | Frame) -> None:
        """Continue behind the last good record of the newest segment."""
        self.epoch, self.state = last.epoch, last.state
        self._next = last.next_sequence if isinstance(last, Mark) else last.sequence + 1
        path = segments.path_of(self.folder, end.segment)
        torn = self._sizes[end.segment] - end.offset
        if not torn:
            self._active = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            return
        # The tail was never accepted, unless the disk itself changed it: so every number that may have stood there
        # is spent. A new segment remembers that, and only then the tail goes.
        log.warning("spool_torn_tail_cut", extra={"segment": path.name, "cut_bytes": torn})
        if segments.is_one_begun(path, end.offset):
            self.torn, self._next = self._next, self._next + 1
        else:
            self._next += torn // segments.SMALLEST_RECORD + 1
        self._sizes[end.segment] = end.offset
        self._copy_aside(path, end.offset, end.offset + torn)
        try:
            self._begin_segment(end.segment + 1)
            os.truncate(path, end.offset)
        except OSError as error:  # a full disk; the next append tries again
            log.warning("spool_segment_not_begun", extra={"cause": str(error)})

    def name_epoch(self, collector: str) -> None:
        """Say under which name batches are sent from now on; called before any is.

        What is here keeps the name that it was first sent under: Kafka may have it already, and under another name it
        would count twice. So another name begins another epoch; the state goes on.
        """
        with self._changed:
            before, self._name = self._names.get(self.epoch), collector
            if before == collector:
                return
            if before is not None:
                step = f"when all of it is sent: tallyman collectors retire {shlex.quote(before)}"
                told = {"before": before, "now": collector, "next_step": step}
                log.warning("collector_has_another_name", extra=told)
                self.epoch, self._next, self.torn = secrets.token_hex(16), 1, None
            self._names[self.epoch], self._is_name_saved = collector, False
            try:
                if before is not None:
                    self._begin_segment(max(self._sizes) + 1)
            except OSError as error:  # a full disk; the next append tries again
                log.warning("spool_segment_not_begun", extra={"cause": str(error)})
            self._save_names()

    def _name_of(self, epoch: str) -> str:
        """Return an epoch's name. One that waits here and has none, since an older version or a damaged file did not
        keep it, was sent under the name of now, if at all: without a name Kafka's readers take nothing.
        """
        if epoch not in self._names and self._name:
            self._names[epoch], self._is_name_saved = self._name, False
            self._save_names()
        return self._names.get(epoch, "")

    def _save_names(self) -> None:
        if self._is_name_saved:
            return
        try:
            segments.write_small(self.folder / _NAMES, msgspec.json.encode(self._names))
            self._is_name_saved = True
        except OSError as error:  # a full disk; `save` tries again
            log.warning("spool_name_not_saved", extra={"cause": str(error)})

    # Appending

    def append(self, payload: bytes, *, watermark_us: int, rows: int, state: bytes) -> int:
        """Number a batch, write and fsync it; return its number. From then on it is accepted.

        Args:
            watermark_us: Event time up to which everything is sent when this batch is.
            state: What the caller needs to go on from here after a crash; replaces the one before.

        Raises:
            SpoolFullError: No room, or the disk refuses. Nothing was accepted and nothing accepted is lost; the
                same call may be made again later.
        """
        with self._changed:
            frame = Frame(self.epoch, self._next, watermark_us, rows, payload, state)
            self._accept(frame)
            self._next += 1
            self.torn = None
            return frame.sequence

    def fill(self, empty: bytes, *, watermark_us: int) -> None:
        """Give the `torn` number an empty batch, before anything else is appended.

        What it was to hold is in the next interval, since the state went with it: nothing is missing. If Kafka has that
        number after all, an empty batch changes nothing.

        Raises:
            SpoolFullError: As `append`.
        """
        with self._changed:
            if self.torn is not None:
                self._accept(Frame(self.epoch, self.torn, watermark_us, 0, empty, self.state))
                self.torn = None

    def _accept(self, frame: Frame) -> None:
        record = segments.pack(frame)
        self._check_room(len(record))
        try:
            self._write(record)
        except OSError as error:
            raise SpoolFullError(_disk_sentence(self.folder, error)) from error
        self.state = frame.state
        self._changed.notify_all()

    def _check_room(self, size: int) -> None:
        # A new segment begins with a mark, which repeats the state.
        used = self.used_bytes + size + len(self.state) + 256
        if used > self.max_bytes:
            raise SpoolFullError(
                f"{self.folder}: expected at most {self.max_bytes} bytes, a batch of {size} would make it {used};"
                " room appears as soon as Kafka acknowledges, or set agent.spool_max_bytes higher"
            )

    def _write(self, record: bytes) -> None:
        if self._is_doubtful:
            self._cut_to_accepted()
        number = max(self._sizes)
        if self._wants_segment or self._is_at_its_end(self._sizes[number], len(record)):
            number += 1
            self._begin_segment(number)
        self._is_doubtful = True
        try:
            segments.write_all(self._active, record)
            os.fdatasync(self._active)
        except OSError:
            self._cut_to_accepted()
            raise
        self._sizes[number] += len(record)
        self._is_doubtful = False

    def _cut_to_accepted(self) -> None:
        """Take back what a failed append may have left: after a crash it would count as accepted."""
        os.ftruncate(self._active, self._sizes[max(self._sizes)])
        os.fsync(self._active)
        self._is_doubtful = False

    def _is_at_its_end(self, size: int, more: int) -> bool:
        return size + more > self._segment_bytes and size > SMALLEST_SEGMENT // 2

    def _begin_segment(self, number: int) -> None:
        self._wants_segment = True
        size = segments.create(self.folder, number, Mark(self.epoch, self._next, self.state))
        active = os.open(segments.path_of(self.folder, number), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        if self._active >= 0:
            os.close(self._active)
        self._active, self._sizes[number] = active, size
        self._wants_segment = False

    # Reading and acknowledging

    def read(self, after: Position | None = None) -> Batch | None:
        """Return the batch behind a place (at first: behind what is acknowledged), or None when there is none yet.

        Damaged bytes on the way are set aside and reported; the batches behind them follow.
        """
        with self._changed:
            at = max(after or self._acknowledged, self._acknowledged)
            while True:
                if at.segment not in self._sizes or at.offset >= self._sizes[at.segment]:
                    later = [number for number in self._sizes if number > at.segment]
                    if not later:
                        return None
                    at = Position(min(later), 0)
                    continue
                with segments.named(segments.path_of(self.folder, at.segment)):
                    record = segments.read_record(self._file_of(at.segment), at.offset, self._sizes[at.segment])
                if record is None:
                    return None
                at = Position(at.segment, record.end)
                if record.content is None:
                    self._set_aside(at.segment, record.start, record.end)
                elif isinstance(record.content, Frame):
                    frame = record.content
                    name = self._name_of(frame.epoch)
                    return Batch(name, frame.epoch, frame.sequence, frame.watermark_us, frame.rows, frame.payload, at)

    def wait(self, after: Position | None, timeout_s: float) -> Batch | None:
        """Like `read`, but wait for a batch; None when the time is over."""
        with self._changed:
            batch = self.read(after)
            if batch is None and self._changed.wait(timeout_s):
                batch = self.read(after)
            return batch

    def wake(self) -> None:
        """End a `wait` now."""
        with self._changed:
            self._changed.notify_all()

    def acknowledge(self, end: Position) -> None:
        """Forget all batches up to a place: Kafka has them. A crash before `save` only sends them again."""
        with self._changed:
            self._acknowledged = max(self._acknowledged, end)
            self._drop_acknowledged()

    def save(self) -> None:
        """Write the acknowledged place, atomically. A disk without room for it is no error: less is forgotten."""
        with self._changed:
            self._save_names()
            place = self._acknowledged
            if place == self._saved:
                return
            try:
                segments.write_small(self.folder / _PLACE, msgspec.json.encode(place))
            except OSError as error:
                log.warning("spool_place_not_saved", extra={"cause": str(error)})
                return
            self._saved = place

    def _drop_acknowledged(self) -> None:
        """Delete the segments that Kafka has, except the newest: it knows the next number and the state."""
        for number in sorted(self._sizes)[:-1]:
            if self._acknowledged < Position(number, self._sizes[number]):
                return
            if self._reader and self._reader[0] == number:
                os.close(self._reader[1])
                self._reader = None
            segments.path_of(self.folder, number).unlink(missing_ok=True)
            del self._sizes[number]

    def _file_of(self, number: int) -> int:
        if self._reader is None or self._reader[0] != number:
            if self._reader:
                os.close(self._reader[1])
            self._reader = (number, os.open(segments.path_of(self.folder, number), os.O_RDONLY | os.O_CLOEXEC))
        return self._reader[1]

    def _read_small(self, name: str, kind: type[_T], missing: _T) -> _T:
        try:
            content = segments.read_small(self.folder / name)
            return missing if content is None else msgspec.json.decode(content, type=kind)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            log.warning("spool_file_not_understood", extra={"file": name, "cause": str(error)})
            return missing

    def _set_aside(self, number: int, start: int, end: int) -> None:
        if (number, start) in self._damaged:
            return
        self._damaged.add((number, start))
        source = segments.path_of(self.folder, number)
        log.error("spool_damaged", extra={"segment": source.name, "from": start, "to": end})
        self.set_aside_bytes += end - start
        self._copy_aside(source, start, end)

    def _copy_aside(self, source: Path, start: int, end: int) -> None:
        """Keep a copy of bytes that do not check, for a person to look at."""
        folder = self.folder / "set-aside"
        try:
            folder.mkdir(exist_ok=True)
            with source.open("rb") as file:
                file.seek(start)
                (folder / f"{source.stem}-{start}").write_bytes(file.read(end - start))
        except OSError as error:
            log.warning("spool_damage_not_copied", extra={"cause": str(error)})

    # State

    @property
    def used_bytes(self) -> int:
        with self._changed:
            return sum(self._sizes.values())

    @property
    def pending_bytes(self) -> int:
        """Bytes that Kafka has not acknowledged."""
        with self._changed:
            place = self._acknowledged
            return sum(
                size - (place.offset if number == place.segment else 0)
                for number, size in self._sizes.items()
                if number >= place.segment
            )

    def close(self) -> None:
        with self._changed:
            if self._active >= 0:
                os.close(self._active)
                self._active = -1
            if self._reader:
                os.close(self._reader[1])
                self._reader = None
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1


def _hold(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise StackError(
            f"{path.parent}: another agent holds this spool; stop it, or give each its own folder"
        ) from error
    return file


def _disk_sentence(folder: Path, error: OSError) -> str:
    kind: Literal["full", "failing"] = "full" if error.errno in _NO_ROOM else "failing"
    step = "make room (df -h) or free inodes (df -i)" if kind == "full" else "let it be written again"
    return f"{folder}: the disk is {kind} ({error.strerror}); nothing accepted is lost, {step} and it goes on"
