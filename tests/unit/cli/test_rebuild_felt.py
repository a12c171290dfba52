"""How far a rebuild reaches: levels that it changes go on behind its range, and counters count on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tallyman.cli.rebuild import _felt_to
from tallyman.meter import Meter
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
