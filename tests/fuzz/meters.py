"""Meters of every aggregation, over types of events that the made records have."""

from __future__ import annotations

from datetime import timedelta

from tallyman.meter import Definitions, Meter

METERS = (
    Meter(meter="compute.hours", event_type="server", aggregation="sum", value="hours", scale=6,
          dimensions={"region": "region", "size": "size"}),
    Meter(meter="compute.servers", event_type="server", aggregation="count", dimensions={"region": "region"}),
    Meter(meter="compute.large", event_type="server", aggregation="max", value="hours", scale=18,
          where={"size": ("L", "1", "true", "1.0")}, allow_negative=False, oldest_accepted=timedelta(hours=2)),
    Meter(meter="store.bytes", event_type="store", aggregation="sum", value="bytes", scale=0, allow_negative=False,
          oldest_accepted=timedelta(days=3)),
    Meter(meter="store.least", event_type="store", aggregation="min", value="bytes", scale=3,
          oldest_accepted=timedelta(days=2)),
    Meter(meter="lb.requests", event_type="balancer", aggregation="sum", value="usage.requests", scale=0,
          dimensions={"host": "host.name"}),
    Meter(meter="lb.hosts", event_type="balancer.host", aggregation="count", dimensions={"host": "host"}),
    Meter(meter="cpu.seconds", event_type="cpu", aggregation="sum", scale=9, dimensions={"mode": "mode"}),
    Meter(meter="cpu.mean", event_type="cpu", aggregation="avg", scale=9),
    Meter(meter="cpu.newest", event_type="cpu", aggregation="latest", scale=6, where={"mode": ("user",)}),
    Meter(meter="users.distinct", event_type="login", aggregation="unique_count", value="user"),
    Meter(meter="latency.p95", event_type="request", aggregation="percentile", percentile="95", value="ms", scale=3),
    Meter(meter="latency.spread", event_type="request", aggregation="stddev", value="ms", scale=3),
    Meter(meter="volume.size", event_type="volume", aggregation="time_weighted", value="gb", scale=3,
          resource="volume", ends_on={"event": ("deleted",)}),
    Meter(meter="volume.first", event_type="volume", aggregation="first", value="gb", scale=3),
    Meter(meter="server.uptime", event_type="state", aggregation="lifecycle", state="state", states=("active",),
          resource="server"),
    Meter(meter="net.bytes", event_type="network", aggregation="counter", value="total", scale=0, resource="port",
          incarnation="boot"),
    Meter(meter="net.peak", event_type="network", aggregation="sum_of_maxima", value="total", scale=0, bucket="hour"),
)  # fmt: skip
IGNORED = ("heartbeat", "pulse")
OLDEST, AHEAD = timedelta(hours=6), timedelta(hours=1)


def definitions(number: int) -> Definitions:
    """Return a version of the definitions: those with even numbers have fewer meters, and ignore another type."""
    if number % 2:
        meters, ignored = METERS, IGNORED
    else:
        meters = tuple(meter for meter in METERS if meter.event_type not in ("store", "login"))
        ignored = (*IGNORED, "store")
    return Definitions(number=number, meters=meters, ignore=ignored, oldest_accepted=OLDEST, furthest_ahead=AHEAD)
