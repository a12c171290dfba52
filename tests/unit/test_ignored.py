"""What was sent and is left out by the filters of all its meters is ignored, and no copy."""

from __future__ import annotations

import json
from typing import Any

from tallyman.event import CONTENT_TYPE, LINES
from tallyman.ignored import Judge
from tallyman.meter import Definitions, Meter

HAMBURG = Meter(meter="hamburg.hours", event_type="server", aggregation="sum", value="hours",
                where={"region": ("hamburg",)})  # fmt: skip
MALMÖ = Meter(meter="malmö.servers", event_type="server", aggregation="count", where={"region": ("malmö",)})
PLAIN = Meter(meter="ip.count", event_type="ip", aggregation="count")
JUDGE = Judge(Definitions(number=1, meters=(HAMBURG, MALMÖ, PLAIN), ignore=("ping", "ip")))


def line(region: Any, hours: str = "0.25", kind: str = "server") -> bytes:
    wire = {"specversion": "1.0", "id": "e-1", "source": "nova/1", "type": kind, "subject": "Zoë Åström"}
    return json.dumps(wire | {"time": "2026-10-31T23:59:59Z", "data": {"region": region, "hours": hours}}).encode()


def left_out(*lines: bytes) -> int:
    return JUDGE.by_filter([(((CONTENT_TYPE, LINES.encode()),), b"\n".join(lines))])


def test_a_type_that_no_meter_wants_is_ignored_and_one_that_a_meter_wants_never_is() -> None:
    assert JUDGE.by_type({"ping": 3, "ip": 5, "server": 7, "unknown": 1}) == 3


def test_only_types_of_which_every_meter_has_a_filter_are_read_again() -> None:
    assert JUDGE.needs_events({"server": 1})
    assert not JUDGE.needs_events({"ip": 1, "ping": 1, "unknown": 1})


def test_what_all_filters_leave_out_is_ignored() -> None:
    assert left_out(line("hamburg"), line("malmö"), line("lund"), line(None), line("hamburg", kind="ip")) == 2


def test_what_is_a_dead_letter_is_not_ignored() -> None:
    assert left_out(line({"no": "text"}), line("hamburg", "nonsense"), b"{ no", b"") == 0
