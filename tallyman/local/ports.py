"""Choose ports on loopback that stay ours over restarts."""

from __future__ import annotations

import json
import random
import socket
import time
from pathlib import Path

from tallyman.errors import StackError
from tallyman.local.files import write_atomically

# Below the range from which Linux takes the ports of outgoing connections (32768 to 60999 unless told).
# Inside it, a client that keeps trying to reach a broker which is down can be given the broker's own port,
# connects to itself, and the broker can never bind again: seen with Kafka on port 39092.
LOWEST, HIGHEST = 18_000, 32_000
# A killed JVM counts as dead when its first thread is gone; its sockets close with its last one.
PATIENCE_S = 5.0


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Say if a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def becomes_free(port: int) -> bool:
    """Say if a server can listen there now or soon: who held the port may be dying."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)  # nobody tells when a port becomes free
    return True


def choose_port(preferred: int | None = None, *, taken: tuple[int, ...] = ()) -> int:
    """Return the preferred port where it is still free, else another one that nobody listens on."""
    if preferred and preferred not in taken and becomes_free(preferred):
        return preferred
    while True:
        port = random.randrange(LOWEST, HIGHEST)
        if port not in taken and is_free(port):
            return port


def answers(host: str, port: int) -> bool:
    """Say if somebody else than this very socket accepts a connection there."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            return bool(connection.getsockname() != connection.getpeername())
    except OSError:
        return False


class KeptPorts:
    """The ports of a folder, kept over restarts where they are still free."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._last: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._last = {}
        self._taken: dict[str, int] = {}

    def take(self, name: str, configured: int | None = None) -> int:
        """Return the configured port, else the last run's, else a free one.

        Raises:
            StackError: If the configured one is taken: a port that somebody has written down is never exchanged.
        """
        if configured and not becomes_free(configured):
            raise StackError(
                f"port {configured} for {name}: something listens there already; "
                "stop it, configure another port, or none for a free one"
            )
        port = configured or choose_port(self._last.get(name), taken=tuple(self._taken.values()))
        self._taken[name] = port
        return port

    def keep(self) -> None:
        """Write the ports down for the next run."""
        write_atomically(self._path, json.dumps(self._last | self._taken, indent=2) + "\n")
