"""How far a rebuild reaches: levels that it changes go on behind its range, and counters count on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import pytest

from tallyman import books
from tallyman.cli import rebuild
from tallyman.cli.rebuild import _ever_defined, _felt_to
from tallyman.control import open_control
from tallyman.meter import Definitions, Meter
from tallyman.period import LAST_MOMENT
from tallyman.project import Project


def test_invoices_behind_a_range_are_looked_at_where_readings_of_it_still_decide():
    end, week = datetime(2026, 10, 1, tzinfo=UTC), timedelta(days=7)
    defined = [
        Meter(meter="sum", event_type="t", aggregation="sum"),
        Meter(meter="level", event_type="t", aggregation="time_weighted"),
        Meter(meter="believed", event_type="t", aggregation="time_weighted", believed_for=week),
        Meter(meter="bytes", event_type="t", aggregation="counter", believed_for=week),
    ]
    assert _felt_to(defined, ["sum", "level", "believed", "bytes", "gone"], end) == {
        end: ["sum", "gone"],
        LAST_MOMENT: ["level", "bytes"],
        end + week: ["believed"],
    }


def test_what_older_definitions_believed_for_longer_is_felt_for_as_long(control_url: str) -> None:
    """A level without an end reached into a month that is invoiced; now a reading is believed for an hour."""
    end, hour = datetime(2026, 10, 1, tzinfo=UTC), timedelta(hours=1)
    engine = open_control(control_url)
    assert _ever_defined(engine) == []
    for level in (
        Meter(meter="level", event_type="t", aggregation="time_weighted"),
        Meter(meter="level", event_type="t", aggregation="time_weighted", believed_for=3 * hour),
        Meter(meter="level", event_type="t", aggregation="time_weighted", believed_for=hour),
    ):
        books.add_definitions(engine, Definitions(number=0, meters=(level,)))
    defined = _ever_defined(engine)
    engine.dispose()
    assert _felt_to(defined, ["level"], end) == {LAST_MOMENT: ["level"]}
    assert _felt_to(defined[1:], ["level"], end) == {end + 3 * hour: ["level"]}


def test_invoices_are_looked_for_as_far_as_older_definitions_felt_the_meter(
    control_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end = datetime(2026, 9, 28, tzinfo=UTC), datetime(2026, 9, 29, tzinfo=UTC)
    level = Meter(meter="level", event_type="t", aggregation="time_weighted")
    engine = open_control(control_url)
    _ever_defined(engine)
    books.add_definitions(engine, Definitions(number=0, meters=(level,)))
    engine.dispose()
    looked: list[tuple[list[str], datetime, datetime]] = []
    rooms = {
        "invoices.closed:find_invoiced_in": lambda connection, *what: looked.append(what),
        "invoices.closed:count_final": lambda connection: 0,
        "invoices.store:prepare": lambda engine: None,
    }
    monkeypatch.setattr(rebuild, "load_room", rooms.__getitem__)
    now = replace(level, believed_for=end - start)
    project = cast("Project", SimpleNamespace(control_url=control_url, meters=(now,)))
    rebuild._refuse_invoiced(project, ["level"], start, end)
    assert looked == [(["level"], start, LAST_MOMENT)]
