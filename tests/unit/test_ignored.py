"""What was sent and is left out by the filters of all its meters is ignored, and no copy."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition

from tallyman import ignored
from tallyman.event import CONTENT_TYPE, LINES
from tallyman.ignored import Judge, read_records
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


class Log:
    """Stands for a consumer of a log whose records are their own offsets."""

    def __init__(self) -> None:
        self.at, self.read = 0, list[int]()

    def assign(self, places: list[TopicPartition]) -> None: ...

    def close(self) -> None: ...

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.at = offset

    def position(self, place: TopicPartition) -> int:
        return self.at

    def poll(self, timeout_ms: int, max_records: int = 500) -> dict[TopicPartition, list[Any]]:
        offsets = list(range(self.at, min(self.at + max_records, self.at + 3)))
        self.at, self.read = offsets[-1] + 1, self.read + offsets
        headers = (("traceparent", None),)
        found = [SimpleNamespace(offset=offset, headers=headers, value=b"%d" % offset) for offset in offsets]
        return {TopicPartition("usage.events.v1", 0): found}


def test_nothing_is_read_but_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others sent lies behind it, and may be gigabytes when decompressed."""
    log = Log()
    monkeypatch.setattr(ignored, "make_consumer", lambda brokers: log)
    found = list(read_records(["kafka:9092"], "usage.events.v1", {0: ((4, 8), (20, 20))}))
    assert [value for _, value in found] == [b"4", b"5", b"6", b"7", b"8", b"20"]
    assert {headers for headers, _ in found} == {(("traceparent", b""),)}  # Java's clients may send one without a value
    assert log.read == [4, 5, 6, 7, 8, 20]
