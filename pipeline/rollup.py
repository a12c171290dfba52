"""Blocks of a quarter of an hour to twelve hours of sealed usage, from which long ranges are read.

A booking is rolled up when it is sealed; one that was sealed before there were blocks is rolled up later, and until
then readers take its minutes. Nobody waits for a lock: each attempt has a number of its own, which its rows carry, and
counts when all of them are there. Who was killed, or is very slow, leaves rows that nobody reads.
"""

from __future__ import annotations

import secrets
import time

from clickhouse_driver import Client

from tallyman.blocks import BLOCKS_S
from tallyman.meter import BY_MOMENT

TAKEN_FOR_S = 3600.0  # so long an attempt is left to who began it (10^8 rows take ten minutes)
_TURN_S = 10.0  # sealing does not wait longer for what is made late
_ROLL = (
    "INSERT INTO usage_rolled_up (meter, seconds, subject, dimensions, start, booking, attempt, definitions, item,"
    " aggregation, scale, parameters, count, sum, min, max, latest, latest_us, latest_by)"
    " SELECT u.meter, %(seconds)s, u.subject, u.dimensions,"
    " toStartOfInterval(u.minute, INTERVAL %(seconds)s SECOND, 'UTC') AS start, %(booking)s, %(attempt)s,"
    " u.definitions,"
    # What needs single moments is only named here: a question must see that it was booked. Of a counter, how high each
    # incarnation of a resource stood.
    " multiIf(u.aggregation = 'counter',"
    " concat('[\"\",', JSONExtractRaw(u.item, 2), ',', JSONExtractRaw(u.item, 3), ']'),"
    " u.aggregation IN %(by_moment)s, '', u.item) AS what,"
    " any(u.aggregation), any(u.scale), any(u.parameters), sum(u.count), sum(toInt256(u.sum)), min(u.min), max(u.max),"
    " argMax(u.latest, (u.latest_us, u.latest_by)), max(u.latest_us), argMax(u.latest_by, (u.latest_us, u.latest_by))"
    " FROM usage AS u WHERE u.booking = %(booking)s AND u.generation = 0"
    " GROUP BY u.meter, u.subject, u.dimensions, start, u.definitions, what"
)


def roll_up(client: Client, booking: int, taken_for_s: float = TAKEN_FOR_S) -> bool:
    """Write the blocks of a sealed booking, and then that they are there; False if somebody else is at it."""
    attempt = _begin(client, booking, taken_for_s)
    if attempt is None:
        return False
    for seconds in BLOCKS_S:  # each from minutes, which is sooner than larger ones from smaller ones
        asked = {"booking": booking, "attempt": attempt, "seconds": seconds, "by_moment": sorted(BY_MOMENT)}
        client.execute(_ROLL, asked)
    client.execute("INSERT INTO rolled_up (booking, attempt) VALUES", [(booking, attempt)])
    return True


def _begin(client: Client, booking: int, taken_for_s: float) -> int | None:
    """Return the number of an attempt that is nobody else's; None while another one may still come to something."""
    newest, taken = client.execute(
        "SELECT max(attempt), max(begun_at) > now64(3) - toIntervalMillisecond(%(ms)s) FROM rolling_up"
        " WHERE booking = %(booking)s",
        {"booking": booking, "ms": round(taken_for_s * 1000)},
    )[0]
    if taken:
        return None
    attempt, owner = int(newest) + 1, secrets.randbits(64)
    client.execute(
        "INSERT INTO rolling_up (booking, attempt, owner) VALUES",
        [(booking, attempt, owner)],
        settings={
            "insert_deduplicate": 1,
            "deduplicate_insert": "enable",
            "insert_deduplication_token": f"{booking}/{attempt}",
        },
    )
    # Whoever is alone here stays so: another one would have come later, and finds two.
    owners = client.execute(
        "SELECT owner FROM rolling_up WHERE booking = %(booking)s AND attempt = %(attempt)s",
        {"booking": booking, "attempt": attempt},
    )
    return attempt if owners == [(owner,)] else None


def roll_up_missing(client: Client, taken_for_s: float = TAKEN_FOR_S) -> list[int]:
    """Roll up sealed bookings that have no blocks yet, the newest first, for some seconds; return them."""
    missing = client.execute(
        "SELECT booking FROM seals WHERE generation = 0 AND rows > 0"
        " AND booking NOT IN (SELECT booking FROM rolled_up) GROUP BY booking ORDER BY booking DESC"
    )
    made, until = [], time.monotonic() + _TURN_S
    for (booking,) in missing:
        if roll_up(client, booking, taken_for_s):
            made.append(int(booking))
        if time.monotonic() >= until:
            break
    return made
