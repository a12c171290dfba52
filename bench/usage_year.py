"""One tenant's year by day, in several zones, from a store that is full of everybody else's usage too.

    python -m bench.usage_year                  # 10,000 series, a year: takes minutes to fill
    python -m bench.usage_year --scale 0.1      # a tenth of the days
    python -m bench.usage_year --store FOLDER   # filled the first time, asked again the next

The tenant who is asked for has 100 series with usage in every minute, the 99 others have 100 series each with usage in
every hour. Everything is sealed and rolled up day by day, as the pipeline does it, and months that are over are put
into one part, as ClickHouse does by itself two days later; the last month lies in several. Beside the answer from
blocks, which `read_usage` gives, stands the same question to the minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from clickhouse_driver import Client

from bench.tables import table, times
from pipeline.rollup import roll_up
from tallyman.aggregates import read_usage
from tallyman.clickhouse import connect, migrate
from tallyman.local.stack import StackOptions, running_stack
from tallyman.log import setup
from tallyman.usage import UsageQuery

FIRST, DAYS, TENANTS, SERIES = datetime(2025, 1, 1, tzinfo=UTC), 365, 100, 100
ZONES = ("UTC", "Europe/London", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Chatham")
_ROWS = """
INSERT INTO usage (meter, subject, dimensions, minute, booking, definitions, generation, item, aggregation, scale,
    parameters, count, sum, min, max, latest, latest_us, latest_by)
SELECT 'compute.seconds', {subject}, concat('{{"flavor":"f', toString({series}), '"}}'),
    toDateTime({day}, 'UTC') + {second}, {booking}, 1, 0, '', 'sum', 9, '', 60, toInt128(number + 1) * 1000000007,
    0, 0, 0, 0, ''
FROM numbers({count})"""


def fill(client: Client, days: int, say: Callable[[str], None]) -> None:
    """Seal day after day of usage."""
    for number in range(days):
        day = FIRST + timedelta(days=number)
        booking = int(day.timestamp()) // 86_400 * 1000
        shared = {"day": int(day.timestamp()), "booking": booking}
        dense = {"subject": "'tenant-00'", "series": "intDiv(number, 1440)", "second": "(number % 1440) * 60"}
        client.execute(_ROWS.format(**shared, **dense, count=SERIES * 1440))
        subject = f"concat('tenant-', leftPad(toString(1 + intDiv(number, {SERIES * 24})), 2, '0'))"
        thin = {"subject": subject, "series": f"intDiv(number, 24) % {SERIES}", "second": "(number % 24) * 3600"}
        client.execute(_ROWS.format(**shared, **thin, count=(TENANTS - 1) * SERIES * 24))
        client.execute(
            "INSERT INTO seals (booking, generation, rows, events, first_minute, last_minute, places) VALUES",
            [(booking, 0, 1, 1, day, day + timedelta(minutes=1439), "[]")],
        )
        roll_up(client, booking)
        say(f"day {number + 1} of {days}")
    months = [month for (month,) in client.execute("SELECT DISTINCT partition FROM system.parts WHERE active"
                                                   " AND table = 'usage_rolled_up' ORDER BY partition")]  # fmt: skip
    for month in months[:-1]:
        say(f"month {month}  ")
        client.execute(f"OPTIMIZE TABLE usage_rolled_up PARTITION {month} FINAL")


def ask(client: Client, zone: str, days: int) -> Callable[[], int]:
    """Return the question, which answers with the number of its rows."""
    start = FIRST.replace(tzinfo=ZoneInfo(zone))
    query = UsageQuery(meter="compute.seconds", subjects=("tenant-00",), start=start,
                       end=(start.replace(tzinfo=None) + timedelta(days=days)).replace(tzinfo=ZoneInfo(zone)),
                       window="day", zone=zone)  # fmt: skip
    return lambda: len(read_usage(client, query).rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the year's days")
    parser.add_argument("--answers", type=int, default=100, help="answers to each question")
    parser.add_argument("--store", type=Path, help="folder of the store, which stays")
    arguments = parser.parse_args()
    if arguments.answers < 2:
        parser.error(f"--answers: expected 2 or more, for a p95, got {arguments.answers}")
    setup("error")
    days = max(int(DAYS * arguments.scale), 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stack(arguments.store or Path(folder), options=StackOptions(kafka=False)) as stack,
    ):
        client = connect(stack.clickhouse)
        migrate(client)
        if not client.execute("SELECT count() FROM seals")[0][0]:
            fill(client, days, lambda text: print(f"\r{text}", end="", flush=True))
        minutes, blocks = (client.execute(f"SELECT count() FROM {name}")[0][0] for name in ("usage", "usage_rolled_up"))
        print(f"\r{minutes:,} rows of minutes, {blocks:,} of blocks; {SERIES * TENANTS:,} series, {days} days")
        rows = []
        for zone in ZONES:
            question = ask(client, zone, days)
            spent = times(client, question, arguments.answers)
            p95 = statistics.quantiles(spent, n=20)[-1]
            rows.append((zone, str(question()), f"{statistics.median(spent):,.0f}", f"{p95:,.0f}",
                         "met" if p95 < 100 else "missed"))  # fmt: skip
        with minutes_only(client):
            spent = times(client, ask(client, "UTC", days), 3)
        rows.append(("UTC, from minutes", "", f"{statistics.median(spent):,.0f}", f"{max(spent):,.0f}", ""))
        table(("zone", "rows", "p50 ms", "p95 ms", "limit 100 ms"), rows)


@contextmanager
def minutes_only(client: Client) -> Iterator[None]:
    """Let nothing be rolled up for a while, so that readers take the minutes."""
    rolled = client.execute("SELECT booking, attempt FROM rolled_up")
    client.execute("TRUNCATE TABLE rolled_up")
    yield
    client.execute("INSERT INTO rolled_up (booking, attempt) VALUES", rolled)


if __name__ == "__main__":
    main()
