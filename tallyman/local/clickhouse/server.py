"""Listens, serves each client in a thread of its own, and stops in order."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Collection
from contextlib import suppress

from tallyman.local.clickhouse.conversation import Conversation, Service
from tallyman.local.clickhouse.errors import ClientGoneError

log = logging.getLogger(__name__)

_GRACE_S = 5.0  # what runs when the server is stopped may take this long to end
_AGAIN_S = 0.2
_BACKLOG = 128


class Server:
    """A listening socket and the clients behind it."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        self._service = service
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stopping = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()[:2]
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self.wakeup_fd = self._waker.fileno()

    def run(self) -> None:
        """Accept clients until `stop` is called from another thread or a signal handler.

        A signal that comes between Python's last look for one and the system call that waits would be slept through:
        whoever handles signals gives `wakeup_fd` to `signal.set_wakeup_fd`, and the wait ends whenever it came.
        """
        with selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            ready.register(self._woken, selectors.EVENT_READ)
            while not self._stopping:
                ready.select()
                self._empty_wakeups()
                self._accept()

    def _empty_wakeups(self) -> None:
        with suppress(BlockingIOError):
            while self._woken.recv(64):
                pass

    def _accept(self) -> None:
        """Begin to serve everyone who waits."""
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if self._stopping:
                    return
                # e.g. too many open files: those who are connected go on, and so does the next one when it can.
                log.warning("accept_failed", extra={"reason": str(error)})
                time.sleep(_AGAIN_S)
                continue
            connection.setblocking(True)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._clients[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            Conversation(connection, self._service).run()
        except (ClientGoneError, ConnectionError) as error:
            log.debug("client_gone", extra={"reason": str(error)})
        except Exception:
            # One client's trouble must not end the others; its own connection is closed.
            log.exception("conversation_failed")
        finally:
            with self._lock:
                self._clients.pop(connection, None)
            connection.close()

    def stop(self) -> None:
        """Accept nobody any more; `run` returns."""
        self._stopping = True
        with suppress(BlockingIOError):  # full of wake-ups: it wakes anyway
            self._waker.send(b"\0")

    def drain(self) -> bool:
        """End all conversations: idle ones now, running statements when they are done or killed.

        Returns:
            Whether all have ended, so that the engine can be closed.
        """
        self._listener.close()
        self._service.watch.be_patient()
        with self._lock:
            clients = dict(self._clients)
        for connection in clients:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        if not self._wait(clients.values()):
            self._service.engine.kill_all()
            for connection in clients:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # nobody waits for a client that reads no more
        return self._wait(clients.values())

    @staticmethod
    def _wait(threads: Collection[threading.Thread]) -> bool:
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)
