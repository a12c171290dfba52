"""Each rule of the protocol is kept by the real code: its pinned schedule holds, and breaks when the rule is off."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields

import pytest

from tests.model.chunk_model import Broken, Rules
from tests.model.pinned import BROKEN, DEPLOYED, PINNED
from tests.model.script import Script, scripted
from tests.model.store import Store
from tests.model.switches import OFF, OWN_OFF

pytestmark = pytest.mark.integration
SWITCHES = {**OFF, **OWN_OFF}


def test_every_rule_of_the_model_has_a_switch_and_a_pinned_schedule() -> None:
    assert {rule.name for rule in fields(Rules)} == set(OFF)
    assert set(SWITCHES) == set(PINNED) == set(BROKEN)


@pytest.mark.parametrize("rule", PINNED)
def test_every_invariant_holds_in_the_pinned_schedule_of(rule: str, store: Store) -> None:
    with scripted(store, DEPLOYED.get(rule, {}), lambda _: nullcontext()) as script:
        PINNED[rule](script)


@pytest.mark.parametrize("rule", PINNED)
def test_the_pinned_schedule_breaks_without(rule: str, store: Store) -> None:
    with scripted(store, DEPLOYED.get(rule, {}), SWITCHES[rule]) as script, pytest.raises(Broken, match=BROKEN[rule]):
        PINNED[rule](script)


@pytest.mark.parametrize("statement", range(1, 9))
def test_a_joint_flush_may_be_killed_before_each_of_its_statements(statement: int, store: Store) -> None:
    """Two partitions on two days, with copies: ids, a block of usage for each booking, progress of both."""
    with scripted(store, {}, lambda _: nullcontext()) as script:
        _kill_in_a_joint_flush(script, statement)


def test_a_booking_is_sealed_in_which_more_is_voided_than_came(store: Store) -> None:
    with scripted(store, {}, lambda _: nullcontext()) as script:
        event = script.send(subject="c", value=3)
        script.correct(event, 0, at=30)
        script.tick(at=40)
        script.tick(1, at=40)
        worker = script.worker()
        worker.book(0, flush=True)
        worker.book(1, flush=True)
        script.sealer().seal()
        assert store.execute("SELECT min(events) FROM seals FINAL") == [(-2,)]  # two meters
        script.end()


def _kill_in_a_joint_flush(script: Script, statement: int) -> None:
    events = [script.send(0), script.send(1), script.send(1, minute=30, at=30)]
    worker = script.worker()
    worker.book(0)
    worker.book(1, flush=True, before="INSERT INTO ids")
    for _ in range(statement - 1):
        worker.step()
    worker.kill()
    for partition, event in zip((0, 1, 1), events, strict=True):
        script.again(event, partition, at=30)
        script.send(partition, minute=30, at=30)
    script.end()
