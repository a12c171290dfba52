"""Notices that a client cancels or goes away while the engine works for it."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable

from tallyman.local.clickhouse.errors import CancelledError, ClientGoneError
from tallyman.local.clickhouse.wire import FromClient

log = logging.getLogger(__name__)

_AGAIN_S = 0.05


class Watch:
    """One thread that looks at the sockets of all clients whose query is running."""

    def __init__(self, kill: Callable[[str], None]) -> None:
        self._kill = kill
        self._poll = select.epoll()
        self._guards: dict[int, Guard] = {}
        self._struck: list[Guard] = []
        self._thread = threading.Thread(target=self._run, name="clickhouse-watch", daemon=True)
        self._stopping = False
        self._patient = False
        self._lock = threading.Lock()
        self._thread.start()

    def guard(self, connection: socket.socket, tag: str) -> Guard:
        """Watch `connection` while the session of this tag runs a statement, inside a `with`."""
        return Guard(self, connection, tag)

    def close(self) -> None:
        self._stopping = True
        self._thread.join(1)

    def be_patient(self) -> None:
        """Let all that runs come to its end, for a stop of the server."""
        self._patient = True

    def arm(self, guard: Guard) -> None:
        self._guards[guard.number] = guard
        self._poll.register(guard.number, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT)

    def disarm(self, guard: Guard) -> None:
        self._guards.pop(guard.number, None)
        self._poll.unregister(guard.number)

    def strike(self, guard: Guard) -> None:
        """Have the guard's statement killed, again and again until it has ended."""
        with self._lock:
            self._struck.append(guard)

    def _run(self) -> None:
        while not self._stopping:
            # A KILL can come before the engine knows the statement, so it is repeated.
            for number, _ in self._poll.poll(_AGAIN_S if self._struck else 0.5):
                guard = self._guards.get(number)
                if guard is not None and not self._patient:
                    guard.look()
            with self._lock:
                struck, self._struck = self._struck, []
            for guard in struck:
                if guard.kill(self._kill):
                    self.strike(guard)


class Guard:
    """One running statement of one client.

    Attributes:
        stopped: The client wants no more of it, or went away.
        cancelled: It asked for the stop and waits for the end of the answer.
    """

    def __init__(self, watch: Watch, connection: socket.socket, tag: str) -> None:
        self.number = connection.fileno()
        self.stopped = False
        self.cancelled = False
        self._watch = watch
        self._connection = connection
        self._tag = tag
        self._lock = threading.Lock()
        self._running = False

    def __enter__(self) -> Guard:
        self._running = True
        self._watch.arm(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.disarm(self)
        with self._lock:  # a KILL on its way must not meet the next statement
            self._running = False

    def stop(self, *, cancelled: bool = False) -> None:
        """Have the statement killed."""
        self.cancelled = cancelled
        self.stopped = True
        self._watch.strike(self)

    def look(self) -> None:
        """See what came from the client: a cancel or the end of the connection stop the statement."""
        try:
            came = self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came or came[0] == FromClient.CANCEL:
            self.stop(cancelled=bool(came))

    def check(self) -> None:
        """Raise if the statement was stopped.

        Raises:
            CancelledError: If the client cancelled.
            ClientGoneError: If it went away: what it got so far must not look like a whole answer.
        """
        if self.cancelled:
            raise CancelledError
        if self.stopped:
            raise ClientGoneError("the client went away while its query ran")

    def kill(self, kill: Callable[[str], None]) -> bool:
        """Kill the statement if it still runs; say whether it did."""
        with self._lock:
            if self._running:
                try:
                    kill(self._tag)
                except RuntimeError as error:  # tried again shortly
                    log.warning("kill_failed", extra={"reason": str(error)})
            return self._running
