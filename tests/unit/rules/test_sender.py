"""The sender delivers over real HTTP, in order, and bears with receivers that misbehave."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from rules import outbox
from rules.outbox import Delivery, Message
from rules.receiver import Received, Receiver
from rules.sender import Courier, Sender, read_answer
from rules.tables import deliveries, prepare
from tallyman.config import EndpointConfig
from tallyman.control import open_control, read, write

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def engine(control_url: str) -> Iterator[sa.Engine]:
    engine = open_control(control_url)
    prepare(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver([SECRET])
    yield receiver
    receiver.close()


def endpoint(url: str, **changes: object) -> EndpointConfig:
    settings: dict[str, object] = {"url": url, "secrets": (SECRET,), "allow_private": True} | changes
    return EndpointConfig(**settings)  # type: ignore[arg-type]


@contextmanager
def sending(engine: sa.Engine, **endpoints: EndpointConfig) -> Iterator[Sender]:
    outbox.register(engine, {name: each.url for name, each in endpoints.items()})
    sender = Sender(engine, endpoints)
    sender.start()
    yield sender
    sender.stop()


def put(engine: sa.Engine, *names: str, identity: str = "busy", endpoints: tuple[str, ...] = ("ops",)) -> None:
    messages = [Message(name, identity, b'{"say": "%s"}' % name.encode(), endpoints) for name in names]
    with write(engine) as connection:
        outbox.put(connection, messages, datetime.now(UTC))


def ids(messages: list[Received]) -> list[str]:
    return [message.message_id for message in messages]


def attempt(url: str, **changes: object) -> outbox.Answer:
    courier = Courier("ops", endpoint(url, **changes))
    try:
        return courier.attempt(Delivery(1, "ops", "msg_1", "busy", 0, b"{}"), datetime.now(UTC))
    finally:
        courier.close()


def test_what_is_put_into_the_outbox_arrives_signed_and_in_order(engine: sa.Engine, receiver: Receiver) -> None:
    with sending(engine, ops=endpoint(receiver.url)) as sender:
        put(engine, "msg_firing", "msg_resolved")
        sender.wake()
        assert receiver.wait_for(lambda messages: len(messages) == 2)
    assert ids(receiver.messages) == ["msg_firing", "msg_resolved"]
    assert receiver.refused == []
    assert outbox.count_waiting(engine) == {}


def test_what_waited_while_the_engine_was_down_is_delivered_at_its_start(engine: sa.Engine, receiver: Receiver) -> None:
    put(engine, "msg_1")
    with sending(engine, ops=endpoint(receiver.url)):
        assert receiver.wait_for(lambda messages: len(messages) == 1)


def test_a_failed_delivery_is_tried_again_with_the_same_id(
    engine: sa.Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "RETRY_AFTER", (timedelta(0), timedelta(milliseconds=20), timedelta(milliseconds=20)))
    receiver.answer = lambda message: (500 if len(receiver.messages) < 3 else 200, {})
    with sending(engine, ops=endpoint(receiver.url)) as sender:
        put(engine, "msg_1")
        sender.wake()
        assert receiver.wait_for(lambda messages: len(messages) == 3)
    assert ids(receiver.messages) == ["msg_1"] * 3
    times = [message.headers["webhook-timestamp"] for message in receiver.messages]
    assert times == sorted(times)


def test_a_slow_endpoint_is_in_nobody_elses_way(engine: sa.Engine, receiver: Receiver) -> None:
    slow, release = Receiver([SECRET]), threading.Event()
    slow.answer = lambda message: (200 if release.wait(5) else 500, {})
    try:
        with sending(engine, ops=endpoint(receiver.url), slow=endpoint(slow.url)) as sender:
            put(engine, *(f"msg_{i}" for i in range(20)), endpoints=("ops", "slow"))
            sender.wake()
            assert receiver.wait_for(lambda messages: len(messages) == 20)
            assert len(slow.messages) <= 1
            release.set()
    finally:
        slow.close()


def test_a_long_queue_at_a_slow_endpoint_is_worked_off_without_sending_twice(
    engine: sa.Engine, receiver: Receiver
) -> None:
    """What a claim does not get to in time is given back before anybody else may take it."""
    receiver.answer = lambda message: (200 if not threading.Event().wait(0.1) else 500, {})
    with sending(engine, ops=endpoint(receiver.url, timeout=timedelta(milliseconds=400))) as sender:
        for i in range(12):
            put(engine, f"msg_{i}", identity=f"alarm {i}")
        sender.wake()
        assert receiver.wait_for(lambda messages: len(messages) == 12, 20)
        assert eventually(lambda: outbox.count_waiting(engine) == {})
    assert len(set(ids(receiver.messages))) == len(receiver.messages) == 12


def test_an_endpoint_that_is_gone_is_asked_no_more(engine: sa.Engine, receiver: Receiver) -> None:
    receiver.answer = lambda message: (410, {})
    with sending(engine, ops=endpoint(receiver.url)) as sender:
        put(engine, "msg_1")
        sender.wake()
        assert receiver.wait_for(lambda messages: len(messages) == 1)
        assert eventually(lambda: outbox.next_due(engine, "ops") is None)
        put(engine, "msg_2", identity="other")
        sender.wake()
        assert not receiver.wait_for(lambda messages: len(messages) > 1, 0.3)
    assert outbox.count_waiting(engine) == {"ops": 2}


def eventually(holds: object, within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if holds():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    elsewhere = Receiver([SECRET])
    receiver.answer = lambda message: (307, {"location": elsewhere.url})
    answer = attempt(receiver.url)
    elsewhere.close()
    assert not answer.delivered
    assert "redirects are not followed" in answer.text
    assert elsewhere.messages == []


def test_an_address_inside_is_not_reached_unless_allowed(receiver: Receiver) -> None:
    answer = attempt(receiver.url, allow_private=False)
    assert "127.0.0.1 (loopback)" in answer.text
    assert receiver.messages == []


def test_a_receiver_that_is_not_there_is_a_failure_with_its_cause() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    answer = attempt(f"http://127.0.0.1:{port}/")
    assert answer.text.startswith("ConnectError")
    assert not answer.delivered


def test_a_receiver_that_drips_is_given_up_in_time() -> None:
    """One byte now and then would keep a timeout for each read from ever ending."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        stop = threading.Event()
        threading.Thread(target=drip, args=(server, stop), daemon=True).start()
        began = time.monotonic()
        answer = attempt(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout=timedelta(milliseconds=300))
        stop.set()
    assert not answer.delivered
    assert time.monotonic() - began < 2


def drip(server: socket.socket, stop: threading.Event) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not stop.wait(0.05):
            try:
                connection.sendall(b"x")
            except OSError:
                return


def test_a_url_beyond_ascii_is_written_as_the_wire_wants_it(receiver: Receiver) -> None:
    assert attempt(receiver.url + "/münchen?wer=Zoë").delivered


def test_secrets_are_in_no_log_and_no_stored_answer(
    engine: sa.Engine, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = lambda message: (500, {})
    caplog.set_level(logging.DEBUG)
    with sending(engine, ops=endpoint(receiver.url + "?token=geheim")) as sender:
        put(engine, "msg_1")
        sender.wake()
        assert receiver.wait_for(lambda messages: len(messages) == 1)
        assert eventually(lambda: _answers(engine) == ["500"])
    logged = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records if "rules" in record.name)
    assert "webhook_not_delivered" in logged
    assert SECRET not in logged
    assert "geheim" not in logged


def _answers(engine: sa.Engine) -> list[str]:
    with read(engine) as connection:
        return list(connection.execute(sa.select(deliveries.c.answer)).scalars())


@pytest.mark.parametrize(
    ("status", "header", "wait"),
    [
        (429, "120", timedelta(seconds=120)),
        (503, "Sun, 01 Nov 2026 01:00:00 GMT", timedelta(hours=1)),
        (503, "Sat, 31 Oct 2026 01:00:00 GMT", timedelta(0)),
        (429, "999999999999", timedelta(days=1)),
        (429, "soon", timedelta(0)),
        (500, "", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(status: int, header: str, wait: timedelta | None) -> None:
    assert read_answer(status, {"retry-after": header}, NOW, "ops").retry_after == wait


@pytest.mark.parametrize(("status", "delivered"), [(200, True), (204, True), (299, True), (301, False), (404, False)])
def test_only_2xx_is_success(status: int, delivered: bool) -> None:
    assert read_answer(status, {}, NOW, "ops").delivered is delivered
