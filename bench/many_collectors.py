"""What an answer costs beside many collectors, and gaps in what they have sent for long, before and after it is joined.

    python -m bench.many_collectors                  # 100, 10,000 and 100,000 collectors
    python -m bench.many_collectors --rows 1000000   # rows of `heard` among which gaps are looked for

The store has one tenant with an hour of usage. Collectors send on, each for a tenant of its own; one of them is silent
and holds back everybody's usage. One more has a gap. An answer may take a second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from clickhouse_driver import Client

from bench.tables import table, times
from pipeline.join import join_heard
from tallyman.aggregates import read_usage
from tallyman.clickhouse import connect, migrate
from tallyman.heard import read_gaps
from tallyman.local.stack import StackOptions, running_stack
from tallyman.log import setup
from tallyman.usage import UsageQuery

NOON, TOPIC, BOOKING, PARTITIONS = datetime(2026, 10, 5, 12, tzinfo=UTC), "Ecl5Q0nRQo2TbJGAGKdzDA", 20_731_000, 12
HEARD = """
INSERT INTO heard (collector, epoch, topic_id, partition, chunk, booking, definitions, first, last, first_watermark_us,
    last_watermark_us, first_clock_ms, clock_ms, subjects, types, covered)
SELECT concat('host-', toString(number % {collectors})), 'e1', '{topic}', number % {collectors} % {partitions}, turn,
    {booking}, 1, turn * 8, turn * 8 + 7, at_ms * 1000, (at_ms + 7000) * 1000, at_ms, at_ms + 7000,
    [concat('tenant-', toString(number % {collectors}))], ['host.cpu', 'host.memory', 'host.disk', 'host.network'], 5
FROM (SELECT number, intDiv(number, {collectors}) AS turn, {from_ms} + turn * 8000 AS at_ms FROM numbers({rows}))
WHERE number != {left_out}"""


def hear(client: Client, collectors: int, rows: int) -> None:
    """Write what collectors sent, the last of it just now; host-1 left out its second run, if it sent three."""
    client.execute("TRUNCATE TABLE heard")
    client.execute("TRUNCATE TABLE heard_newest")
    now_ms = round(NOON.timestamp()) * 1000
    turns = rows // collectors
    client.execute(
        HEARD.format(collectors=collectors, rows=turns * collectors, topic=TOPIC, partitions=PARTITIONS,
                      booking=BOOKING, from_ms=now_ms - turns * 8000 + 1000, left_out=collectors + 1)
    )  # fmt: skip
    silent_ms = now_ms - 60_000
    client.execute(
        "INSERT INTO heard (collector, epoch, topic_id, partition, booking, first, last, last_watermark_us, clock_ms)"
        " VALUES",
        [("silent", "e1", TOPIC, 0, BOOKING, 0, 1, silent_ms * 1000, silent_ms)],
    )


def book(client: Client) -> None:
    """Write an hour of usage, and how far the partitions are booked."""
    client.execute(
        "INSERT INTO usage_hot (meter, subject, dimensions, minute, booking, definitions, topic_id, partition, chunk,"
        " generation, covered, item, aggregation, scale, parameters, count, sum) SELECT 'compute.seconds', 'tenant-a',"
        " '{}', toDateTime(%(from)s, 'UTC') + number * 60, %(booking)s, 1, %(topic)s, 0, 0, 0, 9, '', 'sum', 0, '', 1,"
        " 60 FROM numbers(60)",
        {"from": round(NOON.timestamp()) - 3600, "booking": BOOKING, "topic": TOPIC},
    )
    client.execute(
        "INSERT INTO progress (topic_id, partition, covered, reached_offset, reached_clock_ms, reached_booking) VALUES",
        [(TOPIC, number, 9, 9, round(NOON.timestamp()) * 1000, BOOKING) for number in range(PARTITIONS)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows of heard, of 10,000 collectors")
    arguments = parser.parse_args()
    setup("error")
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stack(Path(folder), options=StackOptions(kafka=False)) as stack,
    ):
        client = connect(stack.clickhouse)
        migrate(client)
        book(client)
        query = UsageQuery(meter="compute.seconds", start=NOON - timedelta(hours=1), end=NOON)
        rows = []
        for collectors in (100, 10_000, 100_000):
            hear(client, collectors, collectors)
            answer = read_usage(client, query)
            spent = [statistics.median(times(client, partial(read_usage, client, asked), 20))
                     for asked in (query, replace(query, subjects=("tenant-7",)))]  # fmt: skip
            held = ", ".join(each.name for each in answer.held_by)
            everybodys, tenants = (f"{each:,.0f}" for each in spent)
            met = "met" if max(spent) < 1000 else "missed"
            rows.append((f"{collectors:,}", held, everybodys, tenants, met))
        table(("collectors", "held by", "everybody's, ms", "a tenant's, ms", "limit 1,000 ms"), rows)
        hear(client, 10_000, arguments.rows)
        lines: list[tuple[str, ...]] = [("as it was heard", *_gaps(client))]
        client.execute(
            "INSERT INTO seals (booking, generation, rows, events, places) VALUES", [(BOOKING, 0, 1, 1, "[]")]
        )
        began = time.perf_counter()
        join_heard(client)
        took = time.perf_counter() - began
        client.execute("INSERT INTO heard_joined_to (booking, joined_at) VALUES",  # an hour later
                       [(BOOKING, datetime.now(UTC) - timedelta(hours=1))])  # fmt: skip
        lines.append(("joined", *_gaps(client)))
        table(("gaps", "rows", "found", "ms"), lines)
        print(f"joined in {took:.1f} s, once when a booking is sealed")


def _gaps(client: Client) -> tuple[str, str, str]:
    rows = client.execute("SELECT count() FROM heard_runs")[0][0]
    found = read_gaps(client, any_followed=False)
    spent = statistics.median(times(client, lambda: read_gaps(client, any_followed=False), 3))
    return f"{rows:,}", str(len(found)), f"{spent:,.0f}"


if __name__ == "__main__":
    main()
