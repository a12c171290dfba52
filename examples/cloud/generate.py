"""Generate a month of usage of the small cloud, as its services would report it: CloudEvents in NDJSON.

    python -m examples.cloud.generate --month 2026-10 --out build/demo/month

Beside the events it writes `expected.json`: what every total must come to, summed here from the distinct events in
plain Decimals and by nothing of Tallyman, so that the two can be compared to the last digit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, Inexact
from pathlib import Path
from random import Random

import msgspec

from examples.cloud.inventory import (
    FLAVORS,
    TENANTS,
    Balancer,
    Bucket,
    Server,
    Span,
    Volume,
    build_inventory,
    local_month,
    previous_month,
    quarters,
)

DUPLICATES_PER_THOUSAND = 5
LATE_PER_MILLION = 700
SINGLE_PER_THOUSAND = 40
# How busy each hour of the day (UTC) is, in percent of the mean.
DAILY = (30, 25, 20, 20, 25, 40, 70, 110, 150, 170, 175, 165, 150, 160, 165, 160, 145, 130, 120, 110, 100, 80, 55, 45)
# The meters that want a type of event: name, value, dimensions (name in the total, name in the data), how it adds up.
_REGION = (("region", "region"),)
MEASURES: Mapping[str, tuple[tuple[str, str, tuple[tuple[str, str], ...], str], ...]] = {
    "cloud.server.usage": (
        ("server.seconds", "seconds", (("flavor", "flavor"), ("region", "region")), "sum"),
        ("server.vcpu_seconds", "vcpu_seconds", _REGION, "sum"),
        ("server.memory", "memory_gib_seconds", _REGION, "sum"),
    ),
    "cloud.volume.usage": (("volume.storage", "gib_seconds", (("type", "volume_type"),), "sum"),),
    "cloud.object.storage": (("object.storage", "byte_seconds", (("class", "storage_class"),), "sum"),),
    "cloud.object.access": (
        ("object.requests", "requests", (("operation", "operation"),), "sum"),
        ("object.egress", "egress_bytes", (), "sum"),
    ),
    "cloud.lb.usage": (
        ("lb.hours", "hours", (), "sum"),
        ("lb.traffic", "bytes", (), "sum"),
        ("lb.peak_connections", "peak_connections", (), "max"),
    ),
}

_exact = Context(prec=60, traps=[Inexact])
_encode = msgspec.json.Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Reading:
    """One event: when its interval began, and its attributes as they go on the wire."""

    time_us: int
    wire: dict[str, object]
    data: dict[str, str]


@dataclass(slots=True)
class Total:
    """One series: over everything, within the tenant's local month, and the part of that month which came late."""

    value: Decimal = Decimal(0)
    events: int = 0
    month: Decimal = Decimal(0)
    month_late: Decimal = Decimal(0)


Totals = dict[tuple[str, str, str], Total]  # by meter, subject, dimensions


@dataclass(slots=True)
class Files:
    """The lines of each file, in the order in which they are sent."""

    usage: list[tuple[int, bytes]] = field(default_factory=list)
    single: list[tuple[int, bytes]] = field(default_factory=list)
    late: list[tuple[int, bytes]] = field(default_factory=list)
    duplicates: int = 0


def read_resource(resource: Server | Volume | Bucket | Balancer, rng: Random) -> Iterator[Reading]:
    """Yield what one resource's service reports of it, in order of time."""
    if isinstance(resource, Server):
        yield from _read_server(resource)
    elif isinstance(resource, Volume):
        yield from _read_volume(resource)
    elif isinstance(resource, Bucket):
        yield from _read_bucket(resource, rng)
    else:
        yield from _read_balancer(resource, rng)


def _read_server(server: Server) -> Iterator[Reading]:
    flavor, region = FLAVORS[server.flavor], server.tenant.region
    for span in quarters(server.life):
        seconds = _seconds(span)
        yield _reading(
            span.start_us,
            "cloud.server.usage",
            f"nova/{region}",
            server.tenant.subject,
            server.id,
            {
                "server": server.id,
                "flavor": server.flavor,
                "region": region,
                "seconds": str(seconds),
                "vcpu_seconds": str(seconds * flavor.vcpus),
                "memory_gib_seconds": str(seconds * flavor.memory_gib),
            },
        )


def _read_volume(volume: Volume) -> Iterator[Reading]:
    for life, size in volume.sizes:
        for span in quarters(life):
            yield _reading(
                span.start_us,
                "cloud.volume.usage",
                f"cinder/{volume.tenant.region}",
                volume.tenant.subject,
                volume.id,
                {"volume": volume.id, "volume_type": volume.type, "gib_seconds": str(_seconds(span) * size)},
            )


def _read_bucket(bucket: Bucket, rng: Random) -> Iterator[Reading]:
    source, subject = f"swift/{bucket.tenant.region}", bucket.tenant.subject
    stored = bucket.first_bytes
    for number, span in enumerate(quarters(bucket.span)):
        if number % 4 == 0:
            data = {"bucket": bucket.id, "storage_class": bucket.storage_class, "byte_seconds": str(stored * 3600)}
            yield _reading(span.start_us, "cloud.object.storage", source, subject, f"{bucket.id}/stored", data)
            stored += rng.randrange(2 * bucket.growth + 1)
        busy = DAILY[span.start_us // 3_600_000_000 % 24]
        for operation, share in (("read", 4), ("write", 1)):
            requests = bucket.requests * share * busy * (50 + rng.randrange(100)) // 50_000
            egress = requests * (1024 + rng.randrange(200_000)) if operation == "read" else 0
            data = {"bucket": bucket.id, "operation": operation, "requests": str(requests), "egress_bytes": str(egress)}
            yield _reading(span.start_us, "cloud.object.access", source, subject, f"{bucket.id}/{operation}", data)


def _read_balancer(balancer: Balancer, rng: Random) -> Iterator[Reading]:
    for span in quarters(balancer.life):
        busy = DAILY[span.start_us // 3_600_000_000 % 24]
        passed = balancer.traffic * busy * (50 + rng.randrange(100)) // 10_000
        data = {
            "load_balancer": balancer.id,
            "hours": str(Decimal((span.end_us - span.start_us) // 36_000_000).scaleb(-2)),
            "bytes": str(passed),
            "peak_connections": str(passed // 5_000_000 + rng.randrange(40)),
        }
        source = f"octavia/{balancer.tenant.region}"
        yield _reading(span.start_us, "cloud.lb.usage", source, balancer.tenant.subject, balancer.id, data)


def _seconds(span: Span) -> Decimal:
    """Return a span's length in seconds, exactly; a whole number without a point."""
    length_us = span.end_us - span.start_us
    return Decimal(length_us // 1_000_000) if length_us % 1_000_000 == 0 else Decimal(length_us).scaleb(-6)


def _reading(time_us: int, kind: str, source: str, subject: str, what: str, data: dict[str, str]) -> Reading:
    """Return an event whose id follows from what happened: the resource and the beginning of the interval."""
    time = (_EPOCH + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")
    wire: dict[str, object] = {
        "specversion": "1.0",
        "id": f"{what}@{time}",
        "source": source,
        "type": kind,
        "subject": subject,
        "time": time,
        "data": data,
    }
    return Reading(time_us, wire, data)


def add_reading(totals: Totals, reading: Reading, months: Mapping[str, Span], *, late: bool) -> None:
    """Add one distinct event to the totals of every meter that wants it."""
    kind, subject = str(reading.wire["type"]), str(reading.wire["subject"])
    month = months[subject]
    inside = month.start_us <= reading.time_us < month.end_us
    for meter, name, dimensions, adds_up in MEASURES[kind]:
        if meter == "object.egress" and reading.data["operation"] != "read":
            continue
        key = (meter, subject, _encode({name: reading.data[path] for name, path in dimensions}).decode())
        total = totals.get(key)
        if total is None:
            total = totals[key] = Total()
        value = Decimal(reading.data[name])
        total.events += 1
        if adds_up == "max":
            total.value = max(total.value, value)
            total.month = max(total.month, value) if inside else total.month
            continue
        total.value = _exact.add(total.value, value)
        if inside:
            total.month = _exact.add(total.month, value)
            if late:
                total.month_late = _exact.add(total.month_late, value)


def place_line(files: Files, reading: Reading, rng: Random) -> bool:
    """Put an event's line into the file that it is sent from, some of them twice; return if it comes late."""
    line = _encode(reading.wire)
    draw = rng.getrandbits(30)
    if draw % 1_000_003 < LATE_PER_MILLION and reading.wire["type"] != "cloud.lb.usage":
        files.late.append((reading.time_us, line))
        return True
    (files.single if draw % 1009 < SINGLE_PER_THOUSAND else files.usage).append((reading.time_us, line))
    if draw % 997 < DUPLICATES_PER_THOUSAND:
        # A service that got no answer says it again: soon after, some hours later, or through another door.
        again = (files.usage, files.usage, files.single)[draw % 3]
        again.append((reading.time_us + (1, 5 * 3_600_000_000)[draw % 2], line))
        files.duplicates += 1
    return False


def write_month(out: Path, month: str, seed: int, *, days: int | None = None) -> dict[str, int]:
    """Write `usage.ndjson`, `single.ndjson`, `late.ndjson` and `expected.json` into a folder; return the counts.

    Args:
        days: Only the first days of the month, for a smaller run.
    """
    rng = Random(seed)
    months = {tenant.subject: local_month(month, tenant.zone) for tenant in TENANTS}
    totals: Totals = {}
    files, distinct = Files(), 0
    for resource in build_inventory(month, rng, days):
        for reading in read_resource(resource, rng):
            late = place_line(files, reading, rng)
            add_reading(totals, reading, months, late=late)
            distinct += 1
    counts = {
        "distinct": distinct,
        "duplicates": files.duplicates,
        "single": len(files.single),
        "late": len(files.late),
        "lines": len(files.usage) + len(files.single) + len(files.late),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in (("usage", files.usage), ("single", files.single), ("late", files.late)):
        lines.sort(key=lambda entry: entry[0])
        (out / f"{name}.ndjson").write_bytes(b"".join(line + b"\n" for _, line in lines))
    (out / "expected.json").write_bytes(_encode(_expected(month, seed, counts, totals)))
    return counts


def _expected(month: str, seed: int, counts: dict[str, int], totals: Totals) -> dict[str, object]:
    rows = [
        {
            "meter": meter,
            "subject": subject,
            "dimensions": dimensions,
            "value": str(total.value),
            "events": total.events,
            "month": str(total.month),
            "month_late": str(total.month_late),
        }
        for (meter, subject, dimensions), total in sorted(totals.items())
    ]
    return {"month": month, "seed": seed, "counts": counts, "totals": rows}


def main(arguments: Iterable[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Generate a month of usage of the small cloud.")
    parser.add_argument("--month", default=previous_month(datetime.now(UTC)), help="such as 2026-10")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--days", type=int, help="only the first days of the month")
    parser.add_argument("--out", type=Path, default=Path("build/demo/month"))
    options = parser.parse_args(None if arguments is None else list(arguments))
    counts = write_month(options.out, options.month, options.seed, days=options.days)
    print(
        f"{counts['distinct']:,} events, {counts['duplicates']:,} of them sent twice, {counts['late']:,} late, "
        f"{counts['single']:,} as single records"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
