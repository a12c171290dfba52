"""Quarters of an hour of sealed usage, from which long ranges are read.

A booking is rolled up when it is sealed; one that was sealed before there were quarters is rolled up later, and until
then readers take its minutes.
"""

from __future__ import annotations

from clickhouse_driver import Client

from tallyman.meter import BY_MOMENT

_KEYS = "meter, subject, dimensions, quarter, booking, definitions, generation, item"
_FIGURES = "aggregation, scale, parameters, count, sum, min, max, latest, latest_us, latest_by"
_ROLL = (
    f"INSERT INTO usage_quarter ({_KEYS}, {_FIGURES})"  # noqa: S608 - names of columns
    " SELECT u.meter, u.subject, u.dimensions, toStartOfFifteenMinutes(u.minute) AS quarter, u.booking, u.definitions,"
    # What needs single moments is only named here: a question must see that it was booked.
    " u.generation, if(u.aggregation IN %(by_moment)s, '', u.item) AS what, any(u.aggregation), any(u.scale),"
    " any(u.parameters), sum(u.count), sum(u.sum), min(u.min),"
    " max(u.max), argMax(u.latest, (u.latest_us, u.latest_by)), max(u.latest_us),"
    " argMax(u.latest_by, (u.latest_us, u.latest_by))"
    " FROM usage AS u WHERE u.booking = %(booking)s AND u.generation = %(generation)s"
    " GROUP BY u.meter, u.subject, u.dimensions, quarter, u.booking, u.definitions, u.generation, what"
)


def roll_up(client: Client, booking: int, *, generation: int = 0) -> int:
    """Write the quarters of a sealed booking, and that they are there; return how many rows there are."""
    names = {"booking": booking, "generation": generation}
    client.execute(_ROLL, {**names, "by_moment": sorted(BY_MOMENT)})
    rows = int(
        client.execute(
            "SELECT count() FROM usage_quarter FINAL WHERE booking = %(booking)s AND generation = %(generation)s",
            names,
        )[0][0]
    )
    client.execute("INSERT INTO rollups (booking, generation, rows) VALUES", [(booking, generation, rows)])
    return rows


def roll_up_missing(client: Client) -> list[int]:
    """Roll up sealed bookings that have no quarters yet; return them."""
    missing = client.execute(
        "SELECT booking FROM seals WHERE generation = 0 AND rows > 0"
        " AND booking NOT IN (SELECT booking FROM rollups WHERE generation = 0) GROUP BY booking ORDER BY booking"
    )
    for (booking,) in missing:
        roll_up(client, booking)
    return [int(booking) for (booking,) in missing]
