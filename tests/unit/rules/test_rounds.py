"""A round looks at what may have changed, and at nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from rules.model import AlarmRule
from rules.outbox import claim
from rules.progress import read_news
from rules.rounds import Rounds, Touch
from rules.state import load_states, read_history
from rules.tables import prepare
from tallyman.control import open_control
from tallyman.errors import StoreError
from tallyman.usage import UsageQuery, UsageRow
from tests.unit.rules.alarms import BJORN, ZOE, at, make_rule

MINUTE = timedelta(minutes=1)


class FakeUsage:
    """Usage of minutes, added up over whatever is asked."""

    def __init__(self) -> None:
        self.minutes: dict[tuple[str, int], int] = {}
        self.complete: datetime | None = None
        self.asked: list[UsageQuery] = []
        self.away = False

    def add(self, subject: str, second: int, value: int) -> Touch:
        minute = second // 60
        self.minutes[subject, minute] = self.minutes.get((subject, minute), 0) + value
        return Touch("compute.seconds", subject, at(minute * 60), at(minute * 60 + 60))

    def complete_to(self) -> datetime | None:
        return self.complete

    def read(self, query: UsageQuery) -> tuple[UsageRow, ...]:
        if self.away:
            raise StoreError("ClickHouse: away")
        self.asked.append(query)
        sums: dict[str, int] = {}
        for (subject, minute), value in self.minutes.items():
            if query.start <= at(minute * 60) < query.end and subject in (query.subjects or [subject]):
                sums[subject] = sums.get(subject, 0) + value
        return tuple(
            UsageRow(start=query.start, end=query.end, groups={"subject": subject}, value=Decimal(value), events=1)
            for subject, value in sums.items()
        )


@pytest.fixture
def engine(control_url: str) -> Iterator[sa.Engine]:
    engine = open_control(control_url)
    prepare(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def usage() -> FakeUsage:
    return FakeUsage()


def start(engine: sa.Engine, usage: FakeUsage, *rules: AlarmRule, second: int = 0) -> Rounds:
    rounds = Rounds(engine, rules, ("ops",), usage)
    rounds.begin(at(second))
    rounds.run(at(second), look_at="all")
    usage.asked.clear()
    return rounds


def happened(engine: sa.Engine) -> list[str]:
    return [event.to for event in read_history(engine)]


def hot(**changes: Any) -> AlarmRule:
    return make_rule(monotone=True, **changes)


def test_usage_of_a_filling_minute_fires_at_once_and_resolves_when_a_complete_one_is_below(
    engine: sa.Engine, usage: FakeUsage
) -> None:
    rounds = start(engine, usage, hot())
    assert rounds.run(at(10), [usage.add(ZOE, 10, 101)]) == 1
    usage.complete = at(60)
    assert rounds.run(at(71)) == 0
    usage.complete = at(120)
    assert rounds.run(at(131)) == 1
    assert happened(engine) == ["firing", "resolved"]


def test_what_is_not_monotone_waits_for_the_minute_to_be_complete(engine: sa.Engine, usage: FakeUsage) -> None:
    rounds = start(engine, usage, make_rule("below 100"))
    rounds.run(at(10), [usage.add(ZOE, 10, 5)])
    assert usage.asked == []
    usage.complete = at(60)
    rounds.run(at(72))
    assert happened(engine) == ["firing"]


def test_rules_of_two_zones_do_not_share_an_answer(engine: sa.Engine, usage: FakeUsage) -> None:
    """A sum of daily maxima depends on where days begin."""
    zones = "UTC", "Asia/Kolkata"
    rules = [make_rule(key=zone, usage={"zone": zone, "window": timedelta(days=2)}) for zone in zones]
    rounds = start(engine, usage, *rules)
    usage.complete = at(120)
    rounds.run(at(120), look_at="all")
    assert sorted(query.zone for query in usage.asked) == sorted(zones)


def test_only_rules_of_what_was_touched_are_looked_at(engine: sa.Engine, usage: FakeUsage) -> None:
    other = make_rule(monotone=True, key="other", usage={"meter": "disk.bytes"})
    nobody = make_rule(monotone=True, key="nobody", usage={"subjects": (BJORN,)})
    rounds = start(engine, usage, hot(), other, nobody)
    rounds.run(at(10), [usage.add(ZOE, 10, 1)])
    assert [(query.meter, query.subjects) for query in usage.asked] == [("compute.seconds", (ZOE,))]


def test_rules_that_ask_the_same_share_one_answer(engine: sa.Engine, usage: FakeUsage) -> None:
    rounds = start(engine, usage, hot(), hot(key="second", alert="busier"))
    rounds.run(at(10), [usage.add(ZOE, 10, 101)])
    assert len(usage.asked) == 1
    assert happened(engine) == ["firing", "firing"]


def test_usage_of_the_minute_that_has_just_ended_still_counts(engine: sa.Engine, usage: FakeUsage) -> None:
    """The last seconds of a minute arrive in the next one."""
    rounds = start(engine, usage, hot())
    rounds.run(at(61), [usage.add(ZOE, 59, 101)])
    assert happened(engine) == ["firing"]


def test_for_ends_without_any_news(engine: sa.Engine, usage: FakeUsage) -> None:
    rounds = start(engine, usage, hot(for_=20))
    rounds.run(at(10), [usage.add(ZOE, 10, 101)])
    assert rounds.wake_at == at(30)
    rounds.run(at(30))
    assert happened(engine) == ["pending", "firing"]


def test_a_lost_push_is_made_up_for_within_the_interval(engine: sa.Engine, usage: FakeUsage) -> None:
    rounds = start(engine, usage, hot(interval=timedelta(seconds=30)))
    usage.add(ZOE, 20, 101)
    assert rounds.wake_at == at(30)
    rounds.run(at(30))
    assert happened(engine) == ["firing"]


def test_a_minute_that_was_over_when_it_became_complete_is_not_forgotten(engine: sa.Engine, usage: FakeUsage) -> None:
    """A breach and its end while the engine was away make both messages."""
    usage.complete = at(0)
    start(engine, usage, make_rule())
    usage.add(ZOE, 125, 101)
    usage.complete = at(600)
    start(engine, usage, make_rule(), second=610)
    assert happened(engine) == ["firing", "resolved"]


def test_late_usage_judges_its_window_again(engine: sa.Engine, usage: FakeUsage) -> None:
    usage.complete = at(60)
    rounds = start(engine, usage, make_rule(), second=70)
    rounds.run(at(72), [usage.add(ZOE, 30, 101)])
    assert happened(engine) == ["firing"]


def test_a_restart_goes_on_from_the_stored_state(engine: sa.Engine, usage: FakeUsage) -> None:
    rounds = start(engine, usage, hot(for_=60))
    rounds.run(at(10), [usage.add(ZOE, 10, 101)])
    usage.add(ZOE, 70, 101)
    start(engine, usage, hot(for_=60), second=70)
    assert happened(engine) == ["pending", "firing"]


def test_nothing_changes_while_usage_cannot_be_read(engine: sa.Engine, usage: FakeUsage) -> None:
    rounds = start(engine, usage, hot())
    rounds.run(at(10), [usage.add(ZOE, 10, 101)])
    usage.away = True
    usage.complete = at(120)
    with pytest.raises(StoreError):
        rounds.run(at(130))
    assert happened(engine) == ["firing"]


def test_of_two_engines_one_announces(engine: sa.Engine, usage: FakeUsage) -> None:
    one, other = start(engine, usage, hot()), start(engine, usage, hot())
    touch = usage.add(ZOE, 10, 101)
    assert [one.run(at(10), [touch]), other.run(at(10), [touch]), other.run(at(11), [touch])] == [1, 0, 0]
    assert len(claim(engine, "ops", at(60), 9, MINUTE)) == 1


def test_a_rule_that_is_gone_ends_its_alarms(engine: sa.Engine, usage: FakeUsage) -> None:
    rounds = start(engine, usage, hot())
    rounds.run(at(10), [usage.add(ZOE, 10, 101)])
    start(engine, usage)
    assert [(event.to, event.reason) for event in read_history(engine)][-1] == ("resolved", "rule_removed")
    assert all(not state.states for state in load_states(engine).values())


def test_a_rule_that_cannot_be_decided_is_in_no_others_way(engine: sa.Engine, usage: FakeUsage) -> None:
    same = hot(key="same", labels={"subject": "everyone"})
    rounds = start(engine, usage, same, hot())
    rounds.run(at(10), [usage.add(ZOE, 10, 101), usage.add(BJORN, 10, 101)])
    assert {event.rule for event in read_history(engine)} == {"tenants/busy"}


def test_an_alarm_goes_to_the_endpoints_that_its_rule_names(engine: sa.Engine, usage: FakeUsage) -> None:
    rounds = start(engine, usage, replace(hot(), notify=("sms",)))
    rounds.run(at(10), [usage.add(ZOE, 10, 101)])
    assert [len(claim(engine, name, at(60), 9, MINUTE)) for name in ("ops", "sms")] == [0, 1]


def test_pushes_that_wait_are_taken_together() -> None:
    news = read_news([
        b'{"touched": [["cpu", "Zo\xc3\xab", 10, 12]], "written_ms": 5}',
        b'{"touched": [["cpu", "Zo\xc3\xab", 11, 13], ["disk", "Zo\xc3\xab", 1, 1]], "written_ms": 4, "chunk": 7}',
    ])  # fmt: skip
    assert news.touches is not None
    assert [(touch.meter, (touch.end - touch.start) // MINUTE) for touch in news.touches] == [("cpu", 4), ("disk", 1)]


@pytest.mark.parametrize("push", [b'{"touched": null}', b"{", b"[]", None])
def test_a_push_that_does_not_say_what_changed_may_have_changed_anything(push: bytes | None) -> None:
    assert read_news([push]).touches is None


def test_an_alarm_that_comes_and_goes_while_the_clock_stands_still_tells_each_time_apart(
    engine: sa.Engine, usage: FakeUsage
) -> None:
    usage.complete = at(60)
    rounds = start(engine, usage, make_rule("below 10"), second=70)
    for change in (5, 20, -20, 20):  # below, not below, and so again, by what is voided and sent
        touch = usage.add(ZOE, 10, change)
        rounds.run(at(71), [touch])
    assert happened(engine) == ["firing", "resolved", "firing", "resolved"]
    with engine.connect() as connection:
        told = connection.execute(sa.text("SELECT message_id FROM outbox")).all()
    assert len(told) == 4
