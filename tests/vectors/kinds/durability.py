"""`durability`: the broker is away while an agent goes on; what was accepted is stored, exactly."""

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
from tests.vectors.books import Books, Question
from tests.vectors.building import DEFAULTS, meter
from tests.vectors.compare import check_number
from tests.vectors.model import Mismatch, Plan, Unknown, Vector

_MIDDLE = re.compile(r"(broker|kafka) (?:is )?down for the (first|middle|last) ([0-9]+)", re.IGNORECASE)


def plan(vector: Vector) -> Plan:
    """Accept events in a spool one by one, with the broker killed for some of them."""
    event: Any = vector.events[0] if vector.events else {}
    found = _MIDDLE.search(str(event.get("state", ""))) if isinstance(event, Mapping) else None
    if found is None:
        raise Unknown(f"a fault that nobody here makes: {event!r}")
    count, down = int(event.get("count", 1000)), int(found[3])
    first = {"first": 0, "middle": (count - down) // 2, "last": count - down}[found[2].lower()]
    definition = meter(vector, aggregation="count")
    return Plan(
        meters=[definition],
        check=lambda books: _check(books, definition.meter, definition.event_type, count, range(first, first + down)),
        breaks="broker",
        remarks=["no HTTP interface yet: accepted means that the agent's spool has the event on its disk"],
    )


def _check(books: Books, slug: str, event_type: str, count: int, down: range) -> str:
    spool = Spool(books.folder / slug, max_bytes=64 * 1024 * 1024)
    series = Series(type=event_type, subject=DEFAULTS["subject"])
    began = datetime.now(UTC).replace(second=0, microsecond=0)
    time_us = int(began.timestamp()) * 1_000_000
    kafka, topic = books.own.kafka, str(books.own.settings["topic"])
    sender = Sender(spool, lambda: agent.connect([kafka]), topic=topic, collector=slug, patience_s=5.0,
                    pause_least_s=0.05)  # fmt: skip
    sender.start()
    accepted = 0
    try:
        for n in range(count):
            if n == down.start and down:
                books.broker.kill()
            if n == down.stop and down:
                books.broker.start()
            payload = encode_readings([Reading(series, time_us, time_us, 1)])
            spool.append(payload, watermark_us=time_us, rows=1, state=b"")
            accepted += 1
        if down and down.stop >= count:
            books.broker.start()
        wait_for(lambda: spool.read() is None, "everything accepted is acknowledged")
    finally:
        sender.stop(5.0)
        spool.close()
    books.own.wait_until_booked()
    stored = _stored(books, slug, began)
    if stored != accepted:
        raise Mismatch(f"expected {accepted} stored, as many as were accepted, got {stored}")
    check_number("accepted", accepted, count)
    return f"{accepted} accepted, {len(down)} of them while the broker was down; {stored} stored"


def _stored(books: Books, slug: str, began: datetime) -> Decimal:
    rows = books.ask(Question(meter=slug, start=began, end=began + timedelta(minutes=1)))
    return rows[0].value if rows else Decimal(0)


