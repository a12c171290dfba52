"""Blocks of a quarter of an hour to twelve hours of sealed usage, from which long ranges are read.

A booking is rolled up when it is sealed; one that was sealed before there were blocks is rolled up later, and until
then readers take its minutes.
"""

from __future__ import annotations

import time

from clickhouse_driver import Client

from tallyman.blocks import BLOCKS_S
from tallyman.meter import BY_MOMENT

_TURN_S = 10.0  # sealing does not wait longer for what is made late
_ROLL = (
    "INSERT INTO usage_block (meter, seconds, subject, dimensions, start, booking, definitions, generation, item,"
    " aggregation, scale, parameters, count, sum, min, max, latest, latest_us, latest_by)"
    " SELECT u.meter, %(seconds)s, u.subject, u.dimensions,"
    " toStartOfInterval(u.minute, INTERVAL %(seconds)s SECOND, 'UTC') AS start, %(booking)s, u.definitions,"
    # What needs single moments is only named here: a question must see that it was booked.
    " 0, if(u.aggregation IN %(by_moment)s, '', u.item) AS what,"
    " any(u.aggregation), any(u.scale), any(u.parameters), sum(u.count), sum(toInt256(u.sum)), min(u.min), max(u.max),"
    " argMax(u.latest, (u.latest_us, u.latest_by)), max(u.latest_us), argMax(u.latest_by, (u.latest_us, u.latest_by))"
    " FROM usage AS u WHERE u.booking = %(booking)s AND u.generation = 0"
    " GROUP BY u.meter, u.subject, u.dimensions, start, u.definitions, what"
)


def roll_up(client: Client, booking: int) -> None:
    """Write the blocks of a sealed booking, and then that they are there."""
    for seconds in BLOCKS_S:  # each from minutes, which is sooner than larger ones from smaller ones
        client.execute(_ROLL, {"booking": booking, "seconds": seconds, "by_moment": sorted(BY_MOMENT)})
    client.execute("INSERT INTO blocks (booking, generation) VALUES", [(booking, 0)])


def roll_up_missing(client: Client) -> list[int]:
    """Roll up sealed bookings that have no blocks yet, the newest first, for some seconds; return them."""
    missing = client.execute(
        "SELECT booking FROM seals WHERE generation = 0 AND rows > 0"
        " AND booking NOT IN (SELECT booking FROM blocks WHERE generation = 0) GROUP BY booking ORDER BY booking DESC"
    )
    made, until = [], time.monotonic() + _TURN_S
    for (booking,) in missing:
        roll_up(client, booking)
        made.append(int(booking))
        if time.monotonic() >= until:
            break
    return made
