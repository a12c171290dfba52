"""What a rebuild makes of corrections, numbered batches, topics that grew, and usage that is invoiced."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal

import pytest

from invoices import store
from pipeline import growth
from tallyman.control import open_control
from tallyman.event import LINES
from tallyman.kafka import partition_of
from tests.integration.booking import wait_for
from tests.integration.test_growth import send_values
from tests.integration.test_rebuild import HOME, Make, Operator, body, make, numbered, put_in_force, readings
from tests.unit.invoices.sample import NIMBUS, build

__all__ = ["make"]
pytestmark = pytest.mark.integration
HOST = partition_of(b"host-01", 2)
AFTER = (
    "meters:\n- {meter: compute.hours, event_type: server, aggregation: sum, value: hours, scale: 3,"
    " where: {region: [Nürnberg]}}\n"
    "- {meter: compute.count, event_type: server, aggregation: count}\n"
)


def batch(*lines: bytes, sequence: int = 1) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    headers = {"content-type": LINES, "tallyman-collector": "host-01", "tallyman-epoch": "spool-7",
               "tallyman-sequence": str(sequence)}  # fmt: skip
    return b"\n".join(lines), tuple((name, value.encode()) for name, value in headers.items())


def rows(operator: Operator) -> list[tuple[int, str, int]]:
    found: list[tuple[int, str, int]] = operator.own.ask(
        "SELECT generation, meter, sum(count) FROM usage_rebuilt FINAL GROUP BY ALL ORDER BY ALL"
    )
    return found


def test_corrections_and_the_rows_of_numbered_batches_count_by_the_new_definitions(make: Make) -> None:
    """Of a batch the row that was dead stays dead, and a batch that came with a number of another one stays out."""
    operator = make()
    own = operator.own
    own.send(*((body(f"e-{n}"), ()) for n in range(5)), partition=HOME)
    own.send(batch(body("n-0", "0.5"), body("n-1", "0.5", "Malmö"), body("n-2", "0.0001")),
             batch(body("n-0", "64"), body("n-3", "64")), partition=HOST)  # fmt: skip
    with own.running():
        own.wait_until_booked()
        who = ("Zoë Åström", "nova/berlin-1")
        operator.type("event", "void", *who, "e-1", "--reason", "test machine", "--yes")
        operator.type("event", "amend", *who, "e-2", "--set", "data.hours=1.25", "--reason", "clock", "--yes")
        own.wait_until_booked()
        assert operator.usage() == 3
        put_in_force(own, AFTER)
    hours, events = operator.rebuild("--yes", meters=("compute.hours", "compute.count"))["changes"]
    assert (hours["before"]["total"], hours["after"]["total"]) == ("3", "2.5")
    assert (events["before"]["total"], events["after"]["total"]) == ("0", "6")
    assert operator.usage() == Decimal("2.5")
    assert rows(operator) == [(1, "compute.count", 6), (1, "compute.hours", 5)]


def test_the_archive_rebuilds_a_meter_beside_batches_of_another_one_whose_numbers_were_used_before(make: Make) -> None:
    """Such a batch was received as one dead letter, however many of its readings the rebuilt meter leaves out."""
    operator = make(archive="true")
    own = operator.own
    cpu = [body(f"c-{n}", type="cpu", data={"value": "5"}) for n in range(3)]
    own.send((body("e-1"), ()), partition=HOME)
    own.send(batch(*cpu, sequence=1), batch(*cpu[:2], body("e-2"), sequence=1), batch(*cpu[:2], sequence=1),
             (readings(5), numbered(2)), (readings(4), numbered(2)), partition=HOST)  # fmt: skip
    with own.running():
        own.wait_until_booked()
        put_in_force(own, AFTER)
    (hours,) = operator.rebuild("--source", "archive")["changes"]
    assert (hours["before"]["total"], hours["after"]["total"]) == ("0.25", "0.25")


def test_a_rebuild_is_proven_against_the_log_and_an_audit_says_what_it_is_about(make: Make) -> None:
    operator = make()
    own = operator.own
    own.send(*((body(f"e-{n}"), ()) for n in range(5)), (body("m", "8", "Malmö"), ()), partition=HOME)
    with own.running():
        own.wait_until_booked()
        put_in_force(own, AFTER)
    operator.rebuild("--yes")
    found = json.loads(operator.type("rebuild", "check", "1", "--json"))
    assert found["equal"] and found["meters"] == [
        {"meter": "compute.hours", "rows": 1, "events": 5, "recounted_events": 5, "different": 0}
    ]
    audit = json.loads(operator.type("audit", "usage", "--meter", "compute.hours", "--json"))
    assert (audit["equal"], audit["generation"], audit["rebuilt"]) == (True, 0, [1])
    assert audit["meters"][0]["booked_events"] == 6
    own.ask("ALTER TABLE usage_rebuilt UPDATE sum = sum + 1 WHERE 1 SETTINGS mutations_sync = 1")
    told = operator.type("rebuild", "check", "1", code=1)
    assert "generation 1 against the log: different, 1 row" in told


@pytest.mark.long
def test_usage_of_a_topic_that_grew_is_rebuilt_across_both(make: Make) -> None:
    operator = make()
    own = operator.own
    own.send(*((body(f"e-{n}"), ()) for n in range(20)), (body("m-1", "8", "Malmö"), ()), partition=HOME)
    with own.running():
        own.wait_until_booked()
        topic = growth.grow(own.project, growth.plan_growth(own.project, 3))
        send_values(own, topic.name, body("e-7"), *(body(f"g-{n}") for n in range(10)), body("m-2", "8", "Malmö"))
        wait_for_events(operator, 32)
        own.define(AFTER)
        operator.type("apply", "--yes")
        operator.type("close")
    found = operator.rebuild("--yes", meters=("compute.hours", "compute.count"))
    assert [each["after"]["total"] for each in found["changes"]] == ["7.5", "32"]
    assert operator.usage() == Decimal("7.5")


def wait_for_events(operator: Operator, events: int) -> None:
    sql = "SELECT sum(count) FROM usage_booked WHERE meter = 'compute.hours'"
    wait_for(lambda: operator.own.ask(sql) == [(events,)], f"{events} events are booked")


def test_what_is_invoiced_is_not_rebuilt(make: Make) -> None:
    operator = make()
    draft = build()
    meter = next(line.meter for line in draft.lines if line.meter)
    engine = open_control(operator.own.project.control_url)
    store.prepare(engine)
    final = store.finalise(engine, draft, NIMBUS.numbers, date(2026, 11, 2)).invoice
    engine.dispose()
    range_ = ("--from", draft.start.isoformat(), "--to", draft.end.isoformat())
    told = operator.type("rebuild", "--meter", meter, *range_, code=1)
    assert f"{meter}: invoice {final.number} of account {final.account} says what was used from" in told
