"""An engine that is killed with -9 again and again delivers every transition, in order, copies with the same id."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest

from rules import outbox
from rules.alarm import Reading, Snapshot, evaluate
from rules.outbox import Message, count_waiting
from rules.receiver import Receiver
from rules.sender import Sender
from rules.state import Change, RuleState, commit, load_states, read_history
from rules.tables import prepare
from rules.webhook import compose, message_id_of
from tallyman.config import EndpointConfig
from tallyman.control import open_control
from tallyman.files import Secret
from tests.unit.rules.alarms import BJORN, ZOE, make_rule

pytestmark = pytest.mark.integration

SECRET = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
RULE = make_rule()
KILLS = 3  # of each kind of control store


def endpoints(url: str) -> Mapping[str, EndpointConfig]:
    # A short timeout makes a short lease: what a killed engine had claimed is due again soon.
    timeout = timedelta(milliseconds=500)
    return {"ops": EndpointConfig(url=url, secrets=(SECRET,), allow_private=True, timeout=timeout)}


def hurry() -> None:
    """Try again soon: on a busy machine a receiver may be slow more than once."""
    outbox.RETRY_AFTER = (timedelta(0), *[timedelta(milliseconds=200)] * 50)  # type: ignore[assignment]


def work(control_url: str, url: str) -> None:
    """Do what the engine does, as fast as it can, with usage that goes up and down at every look."""
    hurry()
    engine = open_control(control_url)
    prepare(engine)
    sender = Sender(engine, endpoints(url))
    sender.start()
    while True:
        while sum(count_waiting(engine).values()) > 20:
            time.sleep(0.01)
        now = datetime.now(UTC)
        before = load_states(engine).get(RULE.key, RuleState(rule=RULE.key))
        value = Decimal(1 if before.states else 500)
        readings = tuple(Reading({"subject": name}, value) for name in (ZOE, BJORN))
        snapshot = Snapshot(now - timedelta(minutes=1), now, True, readings)
        result = evaluate(RULE, [snapshot], before.states, now)
        messages = [
            (each, Message(message_id_of(each), each.state.identity, compose(each, RULE), ("ops",)))
            for each in result.transitions
        ]
        commit(engine, [Change(before, replace(before, states=result.states, decided_to=now), messages)], now)
        sender.wake()


def test_an_engine_that_is_killed_loses_no_transition(control_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_AFTER", outbox.RETRY_AFTER)  # put back after the test
    hurry()
    engine = open_control(control_url)
    prepare(engine)
    receiver = Receiver([SECRET])
    outbox.register(engine, {"ops": receiver.url})
    spawn = multiprocessing.get_context("spawn")
    for _ in range(KILLS):
        seen = len(receiver.messages)
        worker = spawn.Process(target=work, args=(control_url, receiver.url), daemon=True)
        worker.start()
        assert receiver.wait_for(lambda messages, seen=seen: len(messages) >= seen + 5, 60)  # type: ignore[misc]
        worker.kill()
        worker.join()
    sender = Sender(engine, endpoints(receiver.url))
    sender.start()
    until = time.monotonic() + 60
    while count_waiting(engine) and time.monotonic() < until:
        time.sleep(0.05)
    sender.stop()
    receiver.close()
    committed = [event.message_id for event in read_history(engine, 100_000) if event.message_id]
    received = [message.message_id for message in receiver.messages]
    assert len(committed) >= 5 * KILLS
    assert set(received) == set(committed)
    for name in (ZOE, BJORN):
        states = _first_of_each(receiver, name)
        assert all(one != other for one, other in pairwise(states)), "resolved came before its firing"


def _first_of_each(receiver: Receiver, subject: str) -> list[str]:
    """Return the states of one alarm in the order in which they came first."""
    first: dict[str, str] = {}
    for message in receiver.messages:
        if message.body["data"]["labels"]["subject"] == subject:
            first.setdefault(message.message_id, message.body["data"]["state"])
    return list(first.values())
