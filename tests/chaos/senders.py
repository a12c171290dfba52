"""The senders of the chaos run, each a process that is killed at any moment and goes on from what it had on disk.

python -m tests.chaos.senders agent|host|client PROJECT DATA BOARD SEED BASE_US
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from kafka.errors import KafkaError

from collectors.agent import Agent, connect, read_boot_id, read_moment
from collectors.arrow import encode_readings
from collectors.intervals import Book, Counter, Sample
from collectors.send import Sender
from collectors.spool import Spool
from tallyman.errors import BrokerError, SpoolFullError
from tallyman.event import ARROW, COLLECTOR, CONTENT_TYPE, EPOCH, LINES, SEQUENCE, Event, encode_event, home_key
from tallyman.kafka import make_producer, partition_of
from tallyman.log import setup
from tallyman.project import Project, load_project
from tests.chaos.board import Board
from tests.chaos.clock import follow
from tests.chaos.usage_made import SCALE, STRAY_EVERY, Made

SPOOLS = "spools"
HOST_SUBJECT = "värd-1"
STRAY = "stray-host"
LOOK_S = 0.02  # processes that may die at any time cannot be waited for, only looked at
_SPOOL_BYTES = 24 * 1024 * 1024
_decode_books = msgspec.msgpack.Decoder(dict[str, Book]).decode


def agent(project: Project, board: Board, made: Made) -> None:
    """Append numbered batches to the real spool, and send them by the real sender."""
    spool = Spool(project.data / SPOOLS / "agent", max_bytes=_SPOOL_BYTES)
    sender = _sender(project, spool, "agent-1")
    number = int(spool.state or b"0")
    while _is_allowed(board, "agent", number):
        rows = made.readings(number)
        try:
            spool.append(
                encode_readings(rows), watermark_us=made.base_us, rows=len(rows), state=str(number + 1).encode()
            )
            number += 1
            board["agent.done"] = number
        except SpoolFullError:
            board["agent.refused"] += 1
            time.sleep(LOOK_S)
    _wait_until(lambda: not spool.pending_bytes)
    sender.stop(5)
    board["agent.finished"] = 1
    signal.pause()


class Odometer:
    """A counter that only grows, also while nobody measures it. It stands at 0 until a first reading was accepted, so
    that everything it ever shows must be billed.
    """

    name = "odometer"

    def __init__(self, board: Board, spool: Spool) -> None:
        self._board, self._spool = board, spool

    def read(self) -> Sequence[Sample]:
        if self._spool.state:
            self._board["host.counter"] += random.randrange(SCALE)
        return [Counter("chaos.work", {}, self._board["host.counter"], 9, "one")]


def host(project: Project, board: Board, made: Made) -> None:
    """Run the real agent over one counter, while somebody sets the wall clock."""
    follow(board, "host.clock_us")
    boot_id = read_boot_id()
    spool = Spool(project.data / SPOOLS / "host", max_bytes=_SPOOL_BYTES)
    agent = Agent(
        spool, [Odometer(board, spool)], subject=HOST_SUBJECT, interval_us=500_000, now=read_moment(boot_id)
    )
    sender = _sender(project, spool, HOST_SUBJECT)
    stop = threading.Event()
    while not board["finish"]:
        stop.wait(min(agent.step(read_moment(boot_id)), 0.1))
        board["host.accepted"] = _accepted(spool)
    agent.finish(read_moment(boot_id))
    board["host.accepted"] = _accepted(spool)
    _wait_until(lambda: not spool.pending_bytes)
    sender.stop(5)
    board["host.finished"] = 1
    signal.pause()


def _accepted(spool: Spool) -> int:
    """Return where the counter stood in the newest accepted batch."""
    books = _decode_books(spool.state) if spool.state else {}
    return max((counter.value for book in books.values() for counter in book.counters), default=0)


def _sender(project: Project, spool: Spool, collector: str) -> Sender:
    brokers = project.kafka_brokers
    sender = Sender(
        spool, lambda: connect(brokers), topic=project.config.kafka.topic, collector=collector, pause_least_s=0.1
    )
    sender.start()
    return sender


def client(project: Project, board: Board, made: Made) -> None:
    """Send lots of foreign events; what is not noted as acknowledged is sent again after a kill or an error."""
    while _is_allowed(board, "client", board["client.done"]):
        try:
            producer = make_producer(project.kafka_brokers)
            try:
                while _is_allowed(board, "client", number := board["client.done"]):
                    Client(project, producer, made).send_lot(number)
                    board["client.done"] = number + 1
            finally:
                producer.close(timeout=0)
        except (KafkaError, BrokerError):
            time.sleep(LOOK_S)
    board["client.finished"] = 1
    signal.pause()


class Client:
    """A client with every bad habit that the promises allow for."""

    def __init__(self, project: Project, producer: Any, made: Made) -> None:
        self._topic, self._partitions = project.config.kafka.topic, project.config.kafka.partitions
        self._producer, self._made = producer, made

    def send_lot(self, number: int) -> None:
        """Send a lot, and now and then an earlier one again, all of it to a wrong partition, or ids used before."""
        astray = number % 50 == 7  # it has another partitioner
        self._acknowledged(self._lot(number, astray))
        for copy in copies(number):
            self._acknowledged(self._lot(copy, copy % 2 == 1))
        if has_conflicts(number):  # after its own lot was acknowledged at home, so that it is known who came first
            self._acknowledged(self._lines(self._made.conflicting(number), 0))
        if number % STRAY_EVERY == 0:
            self._send_stray(number)

    def _acknowledged(self, futures: Iterator[Any]) -> None:
        for future in list(futures):
            future.get(timeout=300)

    def _lot(self, number: int, astray: bool) -> Iterator[Any]:
        odd = number % self._partitions
        events = self._made.lot(number)
        if number % 10 == 3:  # some clients send one event a record, with no header at all
            for event in events:
                yield self._send(encode_event(event), (self._home(event) + astray) % self._partitions)
        else:
            yield from self._lines(events, int(astray))
        yield self._send(b"\n".join(self._made.odd_lines(number)), odd, LINES)

    def _lines(self, events: Sequence[Event], off: int) -> Iterator[Any]:
        homes: dict[int, list[bytes]] = {}
        for event in events:
            homes.setdefault(self._home(event), []).append(encode_event(event))
        for home, lines in homes.items():
            yield self._send(b"\n".join(lines), (home + off) % self._partitions, LINES)

    def _send_stray(self, number: int) -> None:
        """Send a numbered batch home, its copy elsewhere, and at last other bytes under its number."""
        home = partition_of(STRAY.encode(), self._partitions)
        rows, others = (encode_readings(self._made.stray(number, other=other)) for other in (False, True))
        for value, partition in ((rows, home), (rows, (home + 1) % self._partitions), (others, home)):
            headers = {COLLECTOR: STRAY, EPOCH: "one", SEQUENCE: str(number), CONTENT_TYPE: ARROW}
            self._acknowledged(iter([self._send(value, partition, **headers)]))

    def _home(self, event: Event) -> int:
        return partition_of(home_key(event.subject, event.source), self._partitions)

    def _send(self, value: bytes, partition: int, content_type: str = "", **headers: str) -> Any:
        named = ({CONTENT_TYPE: content_type} if content_type else {}) | headers
        listed = [(name, text.encode()) for name, text in named.items()]
        return self._producer.send(self._topic, value=value, headers=listed, partition=partition)


def copies(number: int) -> list[int]:
    """Return the earlier lots that are sent again behind a lot: what a client does whose answer got lost."""
    chance = random.Random(number)
    return [chance.randrange(number)] if number and chance.random() < 0.2 else []


def has_conflicts(number: int) -> bool:
    """Whether ids of this lot are used again with other content."""
    return number % 20 == 11


def _is_allowed(board: Board, sender: str, number: int) -> bool:
    """Wait until the number may be sent; False when the run ends without it."""
    allowed = f"{sender}.allowed"
    _wait_until(lambda: number < board[allowed] or bool(board["finish"]))
    return number < board[allowed]


def _wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(LOOK_S)


def main() -> None:
    setup("warning")
    kind, folder, data, board, *numbers = sys.argv[1:]
    run = {"agent": agent, "host": host, "client": client}[kind]
    run(load_project(Path(folder), Path(data)), Board(Path(board)), Made(*map(int, numbers)))


if __name__ == "__main__":
    main()
