"""A relay in front of ClickHouse that takes a connection away from its client in the worst of moments."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

END_OF_STREAM = 5  # ClickHouse's last packet of an answer, a single byte (`Core/Protocol.h`)
_PIECE = 65_536


class CuttingRelay:
    """Passes bytes both ways; an insert's acknowledgement is lost where `lose` says so, though the rows are written.

    Args:
        lose: Asked at each acknowledgement of an insert, with their number so far, from 1 on.
        silent: Do not close the connection then, but say nothing more: the client has to notice by its timeout.
    """

    def __init__(self, port: int, lose: Callable[[int], bool], *, silent: bool = False) -> None:
        self._to, self._lose, self._silent = port, lose, silent
        self._counting = threading.Lock()
        self._open: list[socket.socket] = []
        self.acknowledged = self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for each in self._open:
            _cut(each)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, server]
                asked = _Asked()
                threading.Thread(target=self._forth, args=(client, server, asked), daemon=True).start()
                threading.Thread(target=self._back, args=(server, client, asked), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket, asked: _Asked) -> None:
        with suppress(OSError):
            while piece := client.recv(_PIECE):
                asked.inserts = asked.inserts or b"INSERT INTO" in piece
                server.sendall(piece)
        _cut(server)

    def _back(self, server: socket.socket, client: socket.socket, asked: _Asked) -> None:
        with suppress(OSError):
            while piece := server.recv(_PIECE):
                if asked.inserts and piece[-1] == END_OF_STREAM and self._loses():
                    if self._silent:
                        continue
                    break
                if piece[-1] == END_OF_STREAM:
                    asked.inserts = False
                client.sendall(piece)
        _cut(client)

    def _loses(self) -> bool:
        with self._counting:
            self.acknowledged += 1
            lost = self._lose(self.acknowledged)
            self.lost += lost
            return lost


class _Asked:
    """What a connection is about just now."""

    inserts = False


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
