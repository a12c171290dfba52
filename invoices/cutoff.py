"""Where an invoice's usage ends: the newest sealed booking, and whether a month may be invoiced over it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from invoices.gather import period_of
from invoices.model import CutOff, Place
from invoices.render import write_day
from rules.plan import Plan
from tallyman.errors import InvoiceError

if TYPE_CHECKING:
    from clickhouse_driver import Client


class _Place(msgspec.Struct):
    topic_id: str
    partition: int
    offset: int
    clock_ms: int


def read_cut_off(client: Client) -> CutOff:
    """Read up to which booking the books are sealed, and where the log stood then; booking 0 for none."""
    rows = client.execute("SELECT booking, places FROM seals FINAL ORDER BY booking DESC LIMIT 1")
    if not rows:
        return CutOff(booking=0, sealed=True)
    booking, text = rows[0]
    places = msgspec.json.decode(text, type=list[_Place]) if text else []
    return CutOff(
        booking=int(booking),
        sealed=True,
        places=tuple(
            Place(topic_id=place.topic_id, partition=place.partition, offset=place.offset, clock_ms=place.clock_ms)
            for place in sorted(places, key=lambda place: (place.topic_id, place.partition))
        ),
    )


def needed_booking(end: datetime) -> int:
    """Return the booking that must be sealed before a period that ends at an instant can be invoiced.

    It is the first one of the UTC day that begins at the end or after it: all that the log received before
    is in it or in an earlier one, and so is what came a little late, until it was closed.
    """
    days = -((datetime(1970, 1, 1, tzinfo=UTC) - end) // timedelta(days=1))
    return days * 1000


def refuse_unsealed(month: str, plans: Mapping[str, Plan], cut_off: CutOff) -> None:
    """Stop when usage of the month may still be booked where it could change.

    Raises:
        InvoiceError: Names the booking and the next step.
    """
    for plan in plans.values():
        end = period_of(plan, month).end
        needed = needed_booking(end)
        if cut_off.booking < needed:
            day = write_day(date(1970, 1, 1) + timedelta(days=needed // 1000))
            sealed = f"sealed up to booking {cut_off.booking}" if cut_off.booking else "not sealed at all"
            raise InvoiceError(
                f"{month}, plan {plan.plan}: ends at {end:%Y-%m-%d %H:%M} UTC, but the books are {sealed}; "
                f"booking {needed} ({day}, UTC) is not sealed yet. On that day or later, close the books with: "
                f"tallyman close; then run the month again"
            )
