"""Make this machine do something that its agent measures at once: bytes over the loopback interface."""

from __future__ import annotations

import socket
import threading
import time

PIECE = bytes(1 << 20)


def push_bytes(total: int, stop: threading.Event | None = None) -> int:
    """Send bytes from this process to itself over loopback; return how many went, fewer if `stop` was set."""
    listener = socket.create_server(("127.0.0.1", 0))
    drain = threading.Thread(target=_drain, args=(listener,), name="drain", daemon=True)
    drain.start()
    sent = 0
    with socket.create_connection(listener.getsockname()) as line:
        while sent < total and not (stop and stop.is_set()):
            line.sendall(PIECE)
            sent += len(PIECE)
    drain.join(timeout=30)
    listener.close()
    return sent


def _drain(listener: socket.socket) -> None:
    line, _ = listener.accept()
    buffer = bytearray(len(PIECE))
    with line:
        while line.recv_into(buffer):
            pass


def seconds_left_in_minute(now_s: float | None = None) -> float:
    """Return how long the current minute lasts, in which usage of now is booked."""
    return 60 - (time.time() if now_s is None else now_s) % 60
