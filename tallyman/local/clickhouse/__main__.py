"""Run the embedded ClickHouse: `python -m tallyman.local.clickhouse --data DIR --port N`."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tallyman.errors import StackError
from tallyman.local.clickhouse.conversation import Service
from tallyman.local.clickhouse.engine import Engine
from tallyman.local.clickhouse.server import Server
from tallyman.local.clickhouse.watch import Watch

PASSWORD_VARIABLE = "TALLYMAN_CLICKHOUSE_PASSWORD"  # noqa: S105 the name, not the password


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tallyman.local.clickhouse",
        description="ClickHouse's engine (chDB) behind ClickHouse's native protocol, for one machine.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data; one process at a time")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=9000, help="0 takes a free one")
    parser.add_argument("--user", default="default", help="the only user that is let in")
    parser.add_argument(
        "--password",
        default=os.environ.get(PASSWORD_VARIABLE, ""),
        help=f"the user's password; better in ${PASSWORD_VARIABLE}, which nobody sees in the process list",
    )
    parser.add_argument("--database", default="tallyman", help="made if missing; for clients that name none")
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1), help="for one query, by default")
    parser.add_argument("--memory-mb", type=int, default=_default_memory_mb(), help="the engine takes no more")
    return parser.parse_args(arguments)


def _default_memory_mb() -> int:
    """Half of the machine's memory, at most 4 GiB: the stack shares the machine with Kafka and the rest."""
    machine_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return min(4096, machine_mb // 2)


def _hold(folder: Path) -> IO[str]:
    """Hold the folder for this process; released when it ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "front.lock").open("a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        raise StackError(
            f"{folder}: another embedded ClickHouse (process {holder}) holds this folder; "
            "stop it first, or give this one another --data"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _serve(options: argparse.Namespace) -> None:
    folder = options.data.resolve()
    with _hold(folder):
        engine = Engine(
            folder, database=options.database, threads=options.threads, memory_bytes=options.memory_mb << 20
        )
        watch = Watch(engine.kill)
        service = Service(engine, watch, options.user, options.password, overflow=folder)
        try:
            server = Server(service, options.host, options.port)
        except OSError as error:
            engine.close()
            raise StackError(f"{options.host}:{options.port}: cannot listen there: {error}") from error
        signal.set_wakeup_fd(server.wakeup_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        print(f"ready on {server.host}:{server.port}", flush=True)
        server.run()
        ended = server.drain()
        watch.close()
        if not ended:
            raise StackError(f"{folder}: a statement did not end when it was killed; stopped without it")
        engine.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 after an orderly stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options = _read_arguments(arguments)
    try:
        _serve(options)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the engine's own threads may still unwind; its tables are closed
