"""Let the database refuse rows that may not come any more, and wait for those that are on their way.

A constraint holds for whoever writes, in whatever process, however long that one slept.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Collection

from clickhouse_driver import Client

from tallyman.errors import StoreError
from tallyman.topics import LINE_SQL

# The table that an insert names, as ClickHouse writes the expression; `_NOT_TOLD`: what is found where another client
# than ours says it otherwise, which is waited for.
_INTO = r"(?i)^\\s*INSERT\\s+INTO\\s+(?:\\w+\\.)?(\\w+)\\s*[( ]"
_NOT_TOLD = ("", "table", "function")
_SEALED = re.compile(r"\bCONSTRAINT `?(sealed_(\d+)_\w+)`? ")


def begin_sealing(client: Client, topics: Collection[str], booking: int) -> bool:
    """Before bookings are sealed, refuse usage of other lines' topics in them; return whether they may be sealed.

    They may not if another line than that of these topics is booked. Where there is no other line nothing is refused:
    the sealer's own topics have left what it seals, but a worker of another line may stand in it, or come back to it.

    Args:
        topics: Those that the sealer looks at.
        booking: The newest one that it may seal.

    Raises:
        StoreError: An insert that began before is under way for too long.
    """
    noted = client.execute(f"SELECT topic_id, line, ({LINE_SQL}) FROM topics FINAL")  # noqa: S608 - our own words
    lines = {line for topic, line, _ in noted if topic in topics}
    if lines and noted[0][2] not in lines:
        return False
    if all(line in lines for _, line, _ in noted):
        return True
    mine = ", ".join(f"'{topic}'" for topic in sorted(topics))
    name = f"sealed_{booking}_{zlib.crc32(mine.encode()):08x}"
    known = _SEALED.findall(_table(client))
    if name not in (found for found, _ in known):
        client.execute(
            f"ALTER TABLE usage_hot ADD CONSTRAINT IF NOT EXISTS {name}"
            f" CHECK booking > {booking} OR generation != 0 OR topic_id IN ({mine})"
        )
    wait_for_inserts(client, ["usage_hot"])
    for found, below in known:
        if int(below) < booking:  # what it refuses the new one refuses, too, but for topics that have left it since
            client.execute(f"ALTER TABLE usage_hot DROP CONSTRAINT IF EXISTS {found}")
    return True


def wait_for_inserts(
    client: Client,
    tables: Collection[str],
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    patience_s: float = 120,
) -> None:
    """Wait until every insert has ended that was begun before the fence went up on these tables.

    An audit or a rebuild writes for hours into tables of its own: those nobody waits for.

    Raises:
        StoreError: One has not, for `patience_s`.
    """
    named = ", ".join(f"'{table}'" for table in (*tables, *_NOT_TOLD))
    begun = client.execute(
        "SELECT query_id FROM system.processes"  # noqa: S608 - our own words
        " WHERE current_database = currentDatabase() AND query_kind = 'Insert'"
        f" AND lower(extract(query, '{_INTO}')) IN ({named})"
    )
    waiting = [query_id for (query_id,) in begun]
    deadline = now_s() + patience_s
    while waiting:
        if now_s() > deadline:
            raise StoreError(f"{len(waiting)} inserts were under way for {patience_s:.0f} s; run it again later")
        sleep(0.1)
        rows = client.execute("SELECT query_id FROM system.processes WHERE query_id IN %(ids)s", {"ids": waiting})
        waiting = [query_id for (query_id,) in rows]


def _table(client: Client) -> str:
    return str(client.execute(
        "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = 'usage_hot'"
    )[0][0])  # fmt: skip
