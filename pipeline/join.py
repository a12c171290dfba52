"""Join what is known of numbered batches: readers find gaps in few rows, however long collectors have been sending.

A row of `heard` says that some numbers stand in the log, which stays true. So runs may be joined at any time, by
anybody, repeatedly or in part: readers take in whatever is not joined yet.
"""

from __future__ import annotations

import logging

from clickhouse_driver import Client

log = logging.getLogger(__name__)
KEEP_DAYS = 62  # of bookings: what is older can be had from `heard_joined` alone
_SORTED_AT_ONCE = 1_000_000  # rows, about; more are joined in pieces, by collector
_JOIN = (
    "INSERT INTO heard_joined (collector, epoch, first, last, first_watermark_us, last_watermark_us)"
    " SELECT collector, epoch, min(r.first), max(r.last), argMin(r.first_watermark_us, r.first),"
    " argMax(r.last_watermark_us, r.last) FROM (SELECT *, sum(begins) OVER"
    " (PARTITION BY collector, epoch ORDER BY r.first, r.last ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS run"
    " FROM (SELECT *, r.first > 1 + max(r.last) OVER"
    " (PARTITION BY collector, epoch ORDER BY r.first, r.last ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    " AS begins FROM (SELECT collector, epoch, first, last, first_watermark_us, last_watermark_us FROM heard_joined"
    " FINAL UNION ALL SELECT collector, epoch, first, last, first_watermark_us, last_watermark_us FROM heard"
    " WHERE booking > %(from)s AND booking <= %(to)s) AS r WHERE cityHash64(collector) %% %(pieces)s = %(piece)s) AS r"
    ") AS r GROUP BY collector, epoch, run"
)


def join_heard(client: Client) -> int:
    """Join what was heard in bookings that were sealed since this was done last; return the last of them, or 0."""
    found = client.execute("SELECT (SELECT max(booking) FROM seals), (SELECT max(booking) FROM heard_joined_to)")
    sealed_to, joined_to = (int(booking or 0) for booking in found[0])
    if sealed_to <= joined_to:
        return 0
    # All of a sealed booking was written before it was sealed.
    span = {"from": joined_to, "to": sealed_to}
    counted = "SELECT count() FROM heard WHERE booking > %(from)s AND booking <= %(to)s"
    pieces = 1 + int(client.execute(counted, span)[0][0]) // _SORTED_AT_ONCE
    for piece in range(pieces):
        client.execute(_JOIN, {**span, "pieces": pieces, "piece": piece})
    client.execute("INSERT INTO heard_joined_to (booking) VALUES", [(sealed_to,)])
    _drop_old(client, sealed_to)
    return sealed_to


def _drop_old(client: Client, joined_to: int) -> None:
    """Drop the months of `heard` whose bookings have been joined for so long that nobody reads them any more."""
    rows = client.execute(
        "SELECT partition FROM system.parts WHERE active AND database = currentDatabase() AND table = 'heard'"
        " AND toUInt32(partition) < toYYYYMM(toDate(intDiv(%(to)s, 1000)) - %(days)s) GROUP BY partition",
        {"to": joined_to, "days": KEEP_DAYS},
    )
    for (month,) in rows:
        client.execute(f"ALTER TABLE heard DROP PARTITION {int(month)}")
        log.info("heard_dropped", extra={"month": int(month)})
