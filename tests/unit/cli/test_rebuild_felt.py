"""How far a rebuild reaches: levels that it changes go on behind its range, and counters count on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tallyman import books
from tallyman.cli.rebuild import _ever_defined, _felt_to
from tallyman.control import open_control
from tallyman.meter import Definitions, Meter
from tallyman.period import LAST_MOMENT


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
