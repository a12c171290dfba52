"""What the small cloud consists of: tenants, servers, volumes, buckets and load balancers, with the times they existed.

Everything is drawn from one seeded generator, so that the same month and seed give the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

QUARTER_US = 15 * 60 * 1_000_000  # every zone's offset is a multiple of it, so that no reading crosses a local midnight
MARGIN_US = 2 * 3600 * 1_000_000  # usage on both sides of the local month, which its invoice must leave out


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open time span in microseconds since 1970 UTC."""

    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who uses the cloud. `subject` stands in the events; name and address are the account file's business."""

    subject: str
    zone: str
    region: str
    flavors: tuple[str, ...]
    servers: int
    volumes: int
    buckets: int
    balancers: int
    bucket_tib: int


@dataclass(frozen=True, slots=True)
class Flavor:
    """A size of server."""

    vcpus: int
    memory_gib: int


@dataclass(frozen=True, slots=True)
class Server:
    """A server that existed for a span."""

    id: str
    tenant: Tenant
    flavor: str
    life: Span


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume and its sizes in GiB, each from an instant on."""

    id: str
    tenant: Tenant
    type: str
    sizes: tuple[tuple[Span, int], ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket; `first_bytes` lie in it when the span begins and `growth` bytes come with each hour."""

    id: str
    tenant: Tenant
    storage_class: str
    span: Span
    first_bytes: int
    growth: int
    requests: int


@dataclass(frozen=True, slots=True)
class Balancer:
    """A load balancer; it starts and ends at multiples of 36 s, so that its hours have two decimals."""

    id: str
    tenant: Tenant
    life: Span
    traffic: int


FLAVORS = {"s1.small": Flavor(1, 2), "s1.large": Flavor(4, 8), "c2.xlarge": Flavor(16, 32), "m2.large": Flavor(4, 32)}
TENANTS = (
    Tenant(
        subject="zoë-åström",
        zone="Europe/Berlin",
        region="ham1",
        flavors=("s1.small", "s1.large"),
        servers=5,
        volumes=6,
        buckets=3,
        balancers=1,
        bucket_tib=1,
    ),
    Tenant(
        subject="さくらデータ",
        zone="Asia/Tokyo",
        region="osa1",
        flavors=("s1.large", "c2.xlarge", "m2.large"),
        servers=14,
        volumes=12,
        buckets=4,
        balancers=2,
        bucket_tib=900,
    ),
    Tenant(
        subject="łódź-robotics",
        zone="Europe/Warsaw",
        region="ham1",
        flavors=("s1.small", "c2.xlarge", "m2.large"),
        servers=10,
        volumes=8,
        buckets=3,
        balancers=2,
        bucket_tib=40,
    ),
)


def local_month(month: str, zone: str) -> Span:
    """Return the instants at which a month such as "2026-10" begins and ends in a zone."""
    year, number = (int(part) for part in month.split("-"))
    first = datetime(year, number, 1, tzinfo=ZoneInfo(zone))
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=ZoneInfo(zone))
    return Span(instant_us(first), instant_us(following))


def instant_us(moment: datetime) -> int:
    """Return microseconds since 1970 UTC."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def previous_month(today: datetime) -> str:
    """Return the calendar month before a day, as "2026-10"."""
    last = today.replace(day=1) - timedelta(days=1)
    return f"{last.year:04}-{last.month:02}"


def quarters(life: Span, step_us: int = QUARTER_US) -> Iterator[Span]:
    """Yield the part of each quarter of an hour (or other step) that lies in a span, in order."""
    start = life.start_us
    while start < life.end_us:
        end = min((start // step_us + 1) * step_us, life.end_us)
        yield Span(start, end)
        start = end


def build_inventory(month: str, rng: Random, days: int | None = None) -> list[Server | Volume | Bucket | Balancer]:
    """Draw all resources of a month, or of its first days, tenant by tenant."""
    resources: list[Server | Volume | Bucket | Balancer] = []
    for tenant in TENANTS:
        span = local_month(month, tenant.zone)
        end_us = span.start_us + days * 86_400_000_000 if days else span.end_us + MARGIN_US
        span = Span(span.start_us - MARGIN_US, min(end_us, span.end_us + MARGIN_US))
        resources += [_server(tenant, n, span, rng) for n in range(tenant.servers)]
        resources += [_volume(tenant, n, span, rng) for n in range(tenant.volumes)]
        resources += [_bucket(tenant, n, span, rng) for n in range(tenant.buckets)]
        resources += [_balancer(tenant, n, span, rng) for n in range(tenant.balancers)]
    return resources


def _identity(kind: str, rng: Random) -> str:
    return f"{kind}-{rng.getrandbits(48):012x}"


def _life(span: Span, rng: Random, step_us: int, one_in: int) -> Span:
    """Return the span, for one resource in a few cut at an instant in its first or last third."""
    start, end = span.start_us, span.end_us
    third = (end - start) // 3
    if rng.randrange(one_in) == 0:
        start += rng.randrange(third) // step_us * step_us
    if rng.randrange(one_in) == 0:
        end -= rng.randrange(third) // step_us * step_us
    return Span(start, end)


def _server(tenant: Tenant, number: int, span: Span, rng: Random) -> Server:
    flavor = tenant.flavors[number % len(tenant.flavors)]
    return Server(_identity("srv", rng), tenant, flavor, _life(span, rng, 1, 5))


def _volume(tenant: Tenant, number: int, span: Span, rng: Random) -> Volume:
    """A volume; every fourth is doubled at an instant of the month."""
    kind = ("ssd", "hdd")[number % 2]
    size = (20, 50, 100, 500)[rng.randrange(4)] * (1 if kind == "ssd" else 4)
    life = _life(span, rng, 1, 8)
    name = _identity("vol", rng)
    if number % 4:
        return Volume(name, tenant, kind, ((life, size),))
    middle = life.start_us + rng.randrange(life.end_us - life.start_us)
    return Volume(name, tenant, kind, ((Span(life.start_us, middle), size), (Span(middle, life.end_us), 2 * size)))


def _bucket(tenant: Tenant, number: int, span: Span, rng: Random) -> Bucket:
    stored = tenant.bucket_tib * 2**40 // tenant.buckets * (50 + rng.randrange(100)) // 100
    storage_class = ("standard", "archive")[number % 2]
    requests = 200 + rng.randrange(20_000)
    return Bucket(_identity("bkt", rng), tenant, storage_class, span, stored, stored // 9_000, requests)


def _balancer(tenant: Tenant, number: int, span: Span, rng: Random) -> Balancer:
    return Balancer(_identity("lb", rng), tenant, _life(span, rng, 36_000_000, 3), 10**8 * (1 + rng.randrange(50)))
