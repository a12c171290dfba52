"""The packets that answer one query, in the order that clients expect them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from tallyman.local.clickhouse import wire
from tallyman.local.clickhouse.compression import compress
from tallyman.local.clickhouse.errors import ClientGoneError
from tallyman.local.clickhouse.session import Done, Progress
from tallyman.local.clickhouse.wire import Column, FromServer

_NOTHING = Progress(0, 0, 0, 0, 0)


class Answer:
    """Answers one query on one connection.

    Blocks are sent by the client's own thread, progress by one of the engine; the lock keeps packets whole.
    """

    def __init__(self, connection: socket.socket, *, compressed: bool) -> None:
        self._connection = connection
        self.compressed = compressed
        self._lock = threading.Lock()
        self._now = self._told = _NOTHING
        self._rows = self._blocks = self._bytes = 0
        self.has_header = False

    def send_header(self, columns: Sequence[Column]) -> None:
        """Send names and types: a block without rows goes first."""
        self.has_header = True
        self._send(self._packet(FromServer.DATA, wire.header(columns)))

    def send_sample(self, columns: Sequence[Column]) -> None:
        """Send the columns that an insert is to bring; not a result, so no profile will follow."""
        self._send(self._packet(FromServer.DATA, wire.header(columns)))

    def send_block(self, rows: int, block: bytes) -> None:
        """Send one Native block."""
        self._rows += rows
        self._blocks += 1
        self._bytes += len(block)
        self._send(self._packet(FromServer.DATA, block))

    def note_progress(self, now: Progress) -> None:
        """Tell the client how far its query is, unless a block is on its way; the engine calls this."""
        self._now = now
        if self._lock.acquire(blocking=False):
            try:
                self._connection.sendall(self._progress())
            except OSError:  # whoever sends the next block finds out
                pass
            finally:
                self._lock.release()

    def note_done(self, done: Done) -> None:
        """Note what a statement did in all, which the engine may have told only in part."""
        now = self._now
        self._now = Progress(
            max(now.read_rows, done.read_rows),
            max(now.read_bytes, done.read_bytes),
            now.total_rows,
            max(now.written_rows, done.written_rows),
            max(now.written_bytes, done.written_bytes),
        )

    def finish(self, *, limited: bool) -> None:
        """Send profile, the last progress and the end."""
        tail = [self._progress()]
        if self.has_header:
            before_limit = max(self._now.read_rows, self._rows) if limited else None
            tail.insert(0, wire.profile_info(self._rows, self._blocks, self._bytes, before_limit))
        self._send(b"".join((*tail, wire.END_OF_STREAM)))

    def end_cancelled(self) -> None:
        """Send the end only: a client that cancels waits for nothing else."""
        self._send(wire.END_OF_STREAM)

    def fail(self, code: int, message: str) -> None:
        """Send an exception, which ends the answer."""
        self._send(wire.exception(code, message))

    def _progress(self) -> bytes:
        """A packet with what is new since the last one; progress adds up at the client."""
        now, told = self._now, self._told
        self._told = now
        return wire.progress(
            max(0, now.read_rows - told.read_rows),
            max(0, now.read_bytes - told.read_bytes),
            max(0, now.total_rows - told.total_rows),
            max(0, now.written_rows - told.written_rows),
            max(0, now.written_bytes - told.written_bytes),
        )

    def _packet(self, kind: FromServer, block: bytes) -> bytes:
        body = wire.NO_INFO + block
        frames = compress(body) if self.compressed else (body,)
        return b"".join((wire.varint(kind), wire.text(""), *frames))

    def _send(self, data: bytes) -> None:
        try:
            with self._lock:
                self._connection.sendall(data)
        except OSError as error:
            raise ClientGoneError(f"the client went away: {error}") from error
