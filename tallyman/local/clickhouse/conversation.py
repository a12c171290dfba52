"""What one client and the server say to each other, from hello to goodbye."""

from __future__ import annotations

import secrets
import socket
import threading
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from tallyman.local.clickhouse import wire
from tallyman.local.clickhouse.answer import Answer
from tallyman.local.clickhouse.engine import Engine
from tallyman.local.clickhouse.errors import (
    AUTHENTICATION_FAILED,
    CLIENT_TOO_OLD,
    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
    UNKNOWN_PACKET,
    BrokenStreamError,
    CancelledError,
    ClientGoneError,
    ServerError,
)
from tallyman.local.clickhouse.execute import run_streamed, run_whole
from tallyman.local.clickhouse.insert import check_columns, create_external, insert_spooled, sample_of
from tallyman.local.clickhouse.packets import Block, Hello, Query, read_block, read_hello, read_query
from tallyman.local.clickhouse.query_ids import with_client_ids
from tallyman.local.clickhouse.reader import Reader
from tallyman.local.clickhouse.session import Session
from tallyman.local.clickhouse.spool import Spool
from tallyman.local.clickhouse.statement import Insert, Statement, read_statement
from tallyman.local.clickhouse.watch import Watch
from tallyman.local.clickhouse.wire import Column, FromClient


@dataclass(slots=True)
class Service:
    """What all conversations share.

    Attributes:
        overflow: Folder on disk for inserts that are too big for memory.
        running: The id of each running query, and the tag of the session that runs it.
    """

    engine: Engine
    watch: Watch
    user: str
    password: str
    overflow: Path
    running: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Conversation:
    """One client's connection; `run` returns when it has ended."""

    def __init__(self, connection: socket.socket, service: Service) -> None:
        self._connection = connection
        self._service = service
        self._reader = Reader(connection.recv_into)
        self._compressed = False  # as the last query asked for

    def run(self) -> None:
        """Serve the client until it goes.

        Raises:
            ClientGoneError: If it went in the middle of something.
        """
        try:
            session = self._greet()
        except ServerError as error:
            self._send(wire.exception(error.code, error.message))
            return
        try:
            while self._serve_packet(session):
                pass
        finally:
            session.close()

    def _send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise ClientGoneError(f"the client went away: {error}") from error

    def _greet(self) -> Session:
        if (kind := self._reader.varint()) != FromClient.HELLO:
            # Often an HTTP client on the wrong port: the "G" of GET is 71.
            raise ServerError(UNKNOWN_PACKET, f"expected a hello of ClickHouse's native protocol, got packet {kind}")
        hello = read_hello(self._reader)
        self._check_hello(hello)
        engine = self._service.engine
        session = engine.open_session(hello.database or engine.database)
        self._send(wire.hello(engine.version, engine.timezone))
        return session

    def _check_hello(self, hello: Hello) -> None:
        if hello.revision < wire.OLDEST_CLIENT:
            raise ServerError(
                CLIENT_TOO_OLD,
                f"expected a client of revision {wire.OLDEST_CLIENT} or newer, got {hello.revision}",
            )
        user, service = hello.user or "default", self._service
        right_user = secrets.compare_digest(user.encode(), service.user.encode())
        right_password = secrets.compare_digest(hello.password.encode(), service.password.encode())
        if not (right_user and right_password):
            raise ServerError(
                AUTHENTICATION_FAILED,
                f"{user}: Authentication failed: password is incorrect, "
                "or there is no user with such name. (AUTHENTICATION_FAILED)",
            )

    def _serve_packet(self, session: Session) -> bool:
        """Serve the next packet; False if the connection is to be closed."""
        kind = self._reader.varint()
        if kind == FromClient.PING:
            self._send(wire.PONG)
        elif kind == FromClient.QUERY:
            return self._serve_query(session)
        elif kind == FromClient.TABLES_STATUS:
            raise ClientGoneError("a table status was asked for, which only servers of a cluster do")
        elif kind == FromClient.DATA:
            # The rest of an insert that was refused when it began: some clients do not wait for the answer.
            with Spool(self._service.overflow) as spool:
                self._read_data(spool, compressed=self._compressed)
        elif kind != FromClient.CANCEL:  # a cancel that comes when all is done means nothing
            self._send(wire.exception(UNKNOWN_PACKET, f"Unknown packet {kind} from client"))
            return False
        return True

    def _serve_query(self, session: Session) -> bool:
        answer = Answer(self._connection, compressed=False)
        with ExitStack() as at_end:
            try:
                query = read_query(self._reader)
                self._compressed = answer.compressed = query.compressed
                query = self._register(query, session, at_end)
                external = self._read_external(query, at_end)
                session.refresh()
                for name, blocks in external.items():
                    at_end.callback(session.drop_temporary, name)
                    create_external(session, name, blocks)
                self._answer(session, query, answer)
            except CancelledError:
                answer.end_cancelled()
            except ServerError as error:
                answer.fail(error.code, error.message)
                return not isinstance(error, BrokenStreamError)
        return True

    def _register(self, query: Query, session: Session, at_end: ExitStack) -> Query:
        named = replace(query, id=query.id or str(uuid.uuid4()))
        running = self._service.running
        with self._service.lock:
            if named.id in running:
                raise BrokenStreamError(
                    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
                    f"Query with id = {named.id} is already running. (QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING)",
                )
            running[named.id] = session.tag
        at_end.callback(self._forget, named.id)
        return named

    def _forget(self, query_id: str) -> None:
        with self._service.lock:
            del self._service.running[query_id]

    def _read_external(self, query: Query, at_end: ExitStack) -> dict[str, list[tuple[Block, Spool]]]:
        """Read the external tables up to the empty block that every client sends behind its query."""
        tables: dict[str, list[tuple[Block, Spool]]] = {}
        while True:
            spool = at_end.enter_context(Spool(self._service.overflow))
            block = self._read_packet_of_data(spool, compressed=query.compressed)
            if not block.columns:
                return tables
            tables.setdefault(block.table, []).append((block, spool))

    def _read_packet_of_data(self, spool: Spool, *, compressed: bool) -> Block:
        kind = self._reader.varint()
        if kind == FromClient.CANCEL:
            raise CancelledError
        if kind != FromClient.DATA:
            raise BrokenStreamError(UNKNOWN_PACKET, f"Unexpected packet {kind} from client, expected Data")
        return self._read_data(spool, compressed=compressed)

    def _read_data(self, spool: Spool, *, compressed: bool) -> Block:
        try:
            return read_block(self._reader, compressed=compressed, spool=spool)
        except ServerError as error:  # where this block ends is not known, so nothing behind it can be read
            raise BrokenStreamError(error.code, error.message) from error

    def _answer(self, session: Session, query: Query, answer: Answer) -> None:
        with self._service.lock:
            sql = with_client_ids(query.sql, query.id, self._service.running)
        statement = read_statement(sql)
        session.apply(query.settings, important=query.important)
        if statement.insert is not None:
            self._insert(session, query, statement.insert, answer)
        else:
            self._run(session, statement, answer)
        answer.finish(limited=statement.limited)

    def _run(self, session: Session, statement: Statement, answer: Answer) -> None:
        with self._service.watch.guard(self._connection, session.tag) as guard:
            if self._reader.waiting[:1] == bytes((FromClient.CANCEL,)):
                guard.stop(cancelled=True)
            run = run_streamed if statement.kind == "stream" else run_whole
            run(session, statement, answer, guard)

    def _insert(self, session: Session, query: Query, insert: Insert, answer: Answer) -> None:
        sample = sample_of(session, insert)
        answer.send_sample(sample)
        with Spool(self._service.overflow) as spool:
            refused = self._read_rows(sample, spool, compressed=query.compressed)
            if refused is not None:
                raise refused
            if spool.rows:
                answer.note_done(insert_spooled(session, insert, spool, query.settings, answer.note_progress))

    def _read_rows(self, sample: list[Column], spool: Spool, *, compressed: bool) -> ServerError | None:
        """Read the client's blocks to the last one, even if one of them is refused."""
        refused = None
        while (block := self._read_packet_of_data(spool, compressed=compressed)).columns:
            try:
                check_columns(sample, block.columns)
            except ServerError as error:
                refused = refused or error
        return refused
