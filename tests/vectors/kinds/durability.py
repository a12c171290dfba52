"""`durability`: a part is away while an agent goes on; what was accepted is stored, exactly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from collectors import agent
from collectors.arrow import Reading, encode_readings
from collectors.send import Sender
from collectors.spool import Spool
from tallyman.event import Series
from tests.integration.booking import wait_for
from tests.vectors.books import Books, Part, Question
from tests.vectors.building import DEFAULTS, meter, wire
from tests.vectors.compare import check_number, instant
from tests.vectors.model import Mismatch, Outgoing, Plan, Unknown, Vector
from tests.vectors.worker import Worker

_PARTS: tuple[tuple[str, Part], ...] = (
    ("worker|sink|consumer|pipeline|aggregator", "pipeline"),
    ("broker|kafka", "broker"),
    ("clickhouse|database|store", "clickhouse"),
)
_AWAY = re.compile(
    r"down|unreachable|unavailable|offline|outage|away|kill|crash|restart|stop|die|lost|disconnect|rebalanc|start|join",
    re.IGNORECASE,
)
_REPEATED = re.compile(r"twice|redeliver|retr(y|ied|ies)|resen[dt]|replay|duplicat|repeat", re.IGNORECASE)
_PIPELINE_REMARK = "the pipeline is killed with -9 once, wherever it stands; tests/chaos does that at every point"
_FOR = re.compile(r"(first|middle|last) ([0-9]+)", re.IGNORECASE)
_SPOOL_REMARK = "no HTTP interface yet: accepted means that the agent's spool has the event on its disk"
_PATIENCE_S = 120


def plan(vector: Vector) -> Plan:
    """Accept events in a spool one by one, with a part killed for some of them and started again."""
    event: Any = vector.events[0] if vector.events else {}
    state = str(event.get("state", "")) if isinstance(event, Mapping) else ""
    part = _part_of(state)
    if part is None and _REPEATED.search(state):
        return _plan_repeated(vector, int(event.get("count", 1000)))
    if part is None or vector.query.get("operation", "ingest") != "ingest":
        raise Unknown(f"a fault that nobody here makes: {event!r}")
    count = int(event.get("count", 1000))
    named = _FOR.search(state)
    where, length = (named[1].lower(), min(int(named[2]), count)) if named else ("middle", count // 3)
    first = {"first": 0, "middle": (count - length) // 2, "last": count - length}[where]
    definition = meter(vector, aggregation="count")
    return Plan(
        meters=[definition],
        check=lambda books: _check(books, vector, part, definition.event_type, (first, length, count)),
        breaks=True,
        remarks=[_SPOOL_REMARK, _PIPELINE_REMARK] if part == "pipeline" else [_SPOOL_REMARK],
    )


def _plan_repeated(vector: Vector, count: int) -> Plan:
    """Send every event again after all of them, as a client does that missed the answer."""
    definition = meter(vector, aggregation="count")
    events = [Outgoing.of(wire(vector, id=f"e{n}")) for _ in range(2) for n in range(count)]
    start = instant(DEFAULTS["time"])
    question = Question(meter=definition.meter, start=start, end=start + timedelta(minutes=1))

    def check(books: Books) -> str:
        rows = books.ask(question)
        check_number("stored", rows[0].value, vector.expected.get("stored", count))
        return f"{len(events)} sent, {rows[0].value} stored"

    return Plan(meters=[definition], events=events, check=check)


def _part_of(state: str) -> Part | None:
    """Return the part that is named next to what happens to it; None if the words name no fault that we make."""
    away = _AWAY.search(state)
    found = ((part, each) for pattern, part in _PARTS for each in re.finditer(pattern, state, re.IGNORECASE))
    near = sorted((abs(each.start() - away.start()), part) for part, each in found) if away else []
    return near[0][1] if near else None


def _check(books: Books, vector: Vector, part: Part, event_type: str, fault: tuple[int, int, int]) -> str:
    first, length, count = fault
    began = datetime.now(UTC).replace(second=0, microsecond=0)
    accepted = _accept(books, vector.slug, part, (event_type, began), fault)
    books.own.wait_until_booked()
    stored = _stored(books, vector.slug, began)
    if stored != accepted:
        raise Mismatch(f"expected {accepted} stored, as many as were accepted, got {stored}")
    check_number("accepted", accepted, vector.expected.get("accepted", count))
    check_number("stored", stored, vector.expected.get("stored", count))
    return f"{accepted} accepted, {length} of them from number {first} on without {part}; {stored} stored"


def _accept(
    books: Books, slug: str, part: Part, what: tuple[str, datetime], fault: tuple[int, int, int]
) -> int:
    """Return how many events the spool took, once Kafka has all of them."""
    first, length, count = fault
    series, time_us = Series(type=what[0], subject=DEFAULTS["subject"]), int(what[1].timestamp()) * 1_000_000
    payload = encode_readings([Reading(series, time_us, time_us, 1)])
    spool = Spool(books.folder / slug, max_bytes=64 * 1024 * 1024)
    kafka, topic = books.own.kafka, str(books.own.settings["topic"])
    sender = Sender(spool, lambda: agent.connect([kafka]), topic=topic, collector=slug, patience_s=5.0,
                    pause_least_s=0.05)  # fmt: skip
    sender.start()
    accepted, is_away = 0, False
    worker = books.parts[part]
    if isinstance(worker, Worker):
        worker.move_out()
    try:
        for n in range(count):
            if n == first // 2 and n and isinstance(worker, Worker):
                _wait_until_sent(spool)
                books.own.wait_until_booked()  # it works, and has the rest before it when it is killed
            if n == first and length:
                books.parts[part].kill()
                is_away = True
            if n == first + length and is_away:
                books.parts[part].start()
                is_away = False
            spool.append(payload, watermark_us=time_us, rows=1, state=b"")
            accepted += 1
        if is_away:
            books.parts[part].start()
            is_away = False
        _wait_until_sent(spool)
    finally:
        if is_away:  # the other cases need it
            books.parts[part].start()
        sender.stop(5.0)
        spool.close()
    return accepted


def _wait_until_sent(spool: Spool) -> None:
    wait_for(lambda: spool.read() is None, "everything accepted is acknowledged", _PATIENCE_S)


def _stored(books: Books, slug: str, began: datetime) -> Decimal:
    rows = books.ask(Question(meter=slug, start=began, end=began + timedelta(minutes=1)))
    return rows[0].value if rows else Decimal(0)
