"""A rebuild is proven before it counts: what `ids` no longer knows, what an event counts as, and what is invoiced."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from invoices import store
from pipeline import switch
from tallyman.control import open_control
from tallyman.kafka import partition_of
from tests.integration.test_rebuild import (
    BEFORE,
    HOME,
    NOW,
    START,
    Make,
    body,
    make,
    numbered,
    put_in_force,
    readings,
    redefined,
)
from tests.unit.invoices.sample import NIMBUS, build

__all__ = ["make"]
pytestmark = pytest.mark.integration
BILLED = BEFORE.replace("value: hours", "value: billed")


def billed(name: str) -> tuple[bytes, tuple[()]]:
    return body(name, data={"hours": "1", "billed": "3", "region": "Nürnberg", "host": "1"}), ()


def test_a_rebuild_of_a_range_whose_ids_are_gone_is_refused(make: Make) -> None:
    """A TTL on `ids` took half of them, and nothing else says which events count: half of the usage was lost."""
    operator = make()
    own = operator.own
    own.send(*(billed(f"e-{n}") for n in range(4)), partition=HOME)
    with own.running():
        own.wait_until_booked()
        put_in_force(own, BILLED)
        operator.rebuild("--yes")
        assert operator.usage() == 12
        own.ask("ALTER TABLE ids DELETE WHERE offset <= 2 SETTINGS mutations_sync = 2")
        told = operator.rebuild(code=1)
        assert "4 events were accepted, and the table ids gives 2 of them" in told
        assert "4 events were accepted, and the table ids gives 2" in operator.type("rebuild", "check", "1", code=1)
        assert (operator.usage(), operator.states()) == (12, {1: "in force", 2: "unfinished"})


def test_a_rebuild_whose_numbered_batch_lost_its_one_id_is_refused(make: Make) -> None:
    operator = make()
    own = operator.own
    host = partition_of(b"host-01", 2)
    own.send((readings(5), numbered(1)), (readings(6), numbered(2)), (readings(5), numbered(1)), partition=host)
    with own.running():
        own.wait_until_booked()
        put_in_force(own, BILLED)
        operator.rebuild("--yes", meters=("host.cpu",))
        own.ask("ALTER TABLE ids DELETE WHERE offset <= 1 SETTINGS mutations_sync = 2")
        told = operator.rebuild(meters=("host.cpu",), code=1)
        assert "11 events were accepted, and the table ids gives 6 of them" in told


def test_a_void_of_a_rebuilt_event_takes_back_what_counts(make: Make) -> None:
    """Definitions 2 count another field, a rebuild by them is in force; definitions 3 are those of before."""
    operator = make()
    own = operator.own
    own.send(*(billed(f"e-{n}") for n in range(3)), partition=HOME)
    void = ("event", "void", "Zoë Åström", "nova/berlin-1", "e-1", "--reason", "test machine", "--yes", "--wait")
    with own.running():
        own.wait_until_booked()
        put_in_force(own, BILLED)
        operator.rebuild("--yes")
        assert operator.usage() == 9
        put_in_force(own, BEFORE)
        told = operator.type(*void, code=1)
        assert "counts by generation 1, whose definitions 2 measure it otherwise than definitions 3" in told
        assert operator.usage() == 9
        operator.rebuild("--yes")
        assert operator.usage() == 3
        operator.type(*void)
        assert operator.usage() == 2
        operator.type("event", "amend", "Zoë Åström", "nova/berlin-1", "e-1", "--set", "data.hours=4", *void[5:])
        assert operator.usage() == 6


def test_a_month_that_becomes_final_while_it_is_rebuilt_is_not_switched(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is invoiced was asked before all was counted again, and not when it was put in force."""
    operator = make()
    own = operator.own
    own.send(billed("e-1"), partition=HOME)
    compare = switch.compare

    def slow(*words: Any) -> Any:
        """Somebody is faster: an invoice run ends before the switch."""
        draft = build()
        lines = tuple(replace(line, meter="compute.hours" if line.meter else None) for line in draft.lines)
        draft = replace(draft, month=f"{START:%Y-%m}", start=START, end=START + timedelta(hours=4), lines=lines)
        engine = open_control(own.project.control_url)
        store.prepare(engine)
        store.finalise(engine, draft, NIMBUS.numbers, NOW.date(), switched=0)
        engine.dispose()
        return compare(*words)

    with own.running():
        own.wait_until_booked()
        put_in_force(own, BILLED)
        monkeypatch.setattr(switch, "compare", slow)
        told = operator.rebuild("--yes", code=1)
        assert "compute.hours: invoice NIM-" in told
        assert (operator.usage(), operator.states()) == (1, {1: "ready"})
        assert "compute.hours: invoice NIM-" in operator.type("rebuild", "use", "1", code=1)


def test_stores_that_were_restored_from_other_moments_than_a_switch_are_told_apart(make: Make, tmp_path: Path) -> None:
    """ClickHouse lost what a rebuild booked; then the control store is of before the rebuild, as the runbook's order
    has it. Neither is a range that reads as nothing, or a number that is given out again.
    """
    operator = redefined(make())
    own, control, copy = operator.own, operator.own.folder / "data" / "control.db", tmp_path / "copy.db"
    copy_control(control, copy)
    operator.rebuild("--yes")
    own.ask("ALTER TABLE usage_rebuilt DROP PARTITION 1")
    for table in ("rebuilds", "switches"):
        own.ask(f"TRUNCATE TABLE {table}")
    assert "and 0 of them are there" in operator.type("rebuild", "list", code=1)
    assert "rebuild undo 1" in operator.rebuild(meters=("compute.peak",), code=1)
    assert operator.usage() == Decimal("27.5")
    operator.type("rebuild", "undo", "1")
    assert "generation 1: it was made of" in operator.type("rebuild", "use", "1", code=1)
    assert operator.rebuild("--yes")["generation"] == 2
    assert operator.usage() == Decimal("17.5")
    copy_control(copy, control)
    told = operator.rebuild(meters=("compute.peak",), code=1)
    assert "readers go by a list of rebuilds (generation 2) that this control store does not know" in told
    assert operator.usage() == Decimal("17.5")
    operator.type("rebuild", "undo", "2")
    assert operator.rebuild("--yes", meters=("compute.peak",))["generation"] == 3
    assert (operator.usage(), operator.usage(meter="compute.peak")) == (Decimal("27.5"), 1)
    assert operator.states() == {3: "in force"}


def test_a_rebuild_that_a_restored_clickhouse_lost_is_made_again_as_it_was_invoiced(make: Make) -> None:
    """What is invoiced cannot be taken back, and nothing could be invoiced any more."""
    operator = redefined(make())
    own = operator.own
    operator.rebuild("--yes")
    assert operator.usage() == Decimal("17.5")
    own.ask("ALTER TABLE usage_rebuilt DROP PARTITION 1")
    for table in ("rebuilds", "switches"):
        own.ask(f"TRUNCATE TABLE {table}")
    assert "tallyman rebuild again 1" in operator.type("rebuild", "list", code=1)
    assert operator.usage() == Decimal("27.5")
    operator.type("rebuild", "again", "1")
    assert (operator.usage(), operator.states()) == (Decimal("17.5"), {1: "in force"})
    operator.type("rebuild", "check", "1")


def copy_control(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)
