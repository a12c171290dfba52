"""Seal bookings that every partition has left: total their rows into `usage`, once and for ever.

The bytes do not depend on who seals or when, so several sealers need no lock: each works in its own staging table, and
before it replaces the partition it looks once more whether the booking is still unsealed.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from clickhouse_driver import Client

from pipeline.fences import begin_sealing
from pipeline.frontier import Frontier, read_frontier
from pipeline.join import join_heard
from pipeline.rollup import TAKEN_FOR_S, roll_up, roll_up_missing
from tallyman.clickhouse import STORE_ERRORS, store_errors
from tallyman.completeness import read_reached
from tallyman.topics import ENDED

log = logging.getLogger(__name__)
KEEP_HOT_BOOKINGS_MS = 86_400_000
KEEP_SEALED_HOT_S = 600
_KEYS = "meter, subject, dimensions, minute, booking, definitions, generation, item"
_COLUMNS = f"{_KEYS}, aggregation, scale, parameters, count, sum, min, max, latest, latest_us, latest_by"
_TOTALS = (
    f"SELECT {_KEYS}, any(h.aggregation), any(h.scale), any(h.parameters), sum(h.count),"  # noqa: S608
    " sum(h.sum), min(h.min), max(h.max), argMax(h.latest, (h.latest_us, h.latest_by)), max(h.latest_us),"
    " argMax(h.latest_by, (h.latest_us, h.latest_by))"
    f" FROM usage_hot AS h FINAL WHERE booking = %(booking)s AND generation = 0 GROUP BY {_KEYS}"
)


@dataclass(frozen=True, slots=True)
class Seal:
    """A sealed booking."""

    booking: int
    rows: int
    events: int


class Sealer:
    """Seals what can be sealed; any number of them may run.

    Args:
        partitions: (topic id, partition, chunk size) of the topic that is booked.
        taken_for_s: How long a booking is left to another sealer that began to roll it up.

    Attributes:
        ended: Whether that topic is booked to its end in every partition, as far as was seen; what it holds that is not
            sealed yet is sealed with the topic that follows.
    """

    def __init__(
        self, client: Client, partitions: Sequence[tuple[str, int, int]], taken_for_s: float = TAKEN_FOR_S
    ) -> None:
        self._client = client
        self._taken_for_s = taken_for_s
        self._partitions = partitions
        self.ended = False

    def seal_all(self, show: Callable[[str], None] = lambda _: None) -> list[Seal]:
        """Seal every booking that all partitions have left.

        Args:
            show: Is told each step of each booking.

        Raises:
            StoreError: ClickHouse did not acknowledge; nothing is half sealed, call again.
            StoreRefusedError: It refuses, and will until somebody mends what the message names.
        """
        sealed: list[Seal] = []
        with store_errors(self._client, "sealing into usage"):
            while True:
                step: Seal | str = ""
                for step in self.steps():
                    if not isinstance(step, Seal):
                        show(f"{step}, {len(sealed)} done")
                if not isinstance(step, Seal):
                    return sealed
                sealed.append(step)

    def steps(self) -> Iterator[Seal | str]:
        """Seal the oldest booking that can be sealed, if any, step by step; the last step is its seal."""
        client = self._client
        if self._is_held():
            return
        # Progress is read before the rows: what the frontier has left is complete in usage_hot.
        frontiers = [read_frontier(client, topic, partition, size) for topic, partition, size in self._partitions]
        open_from = min((frontier.reached.booking for frontier in frontiers), default=0)
        if open_from == ENDED:  # the topic that follows goes on in the last booking
            self.ended = True
            return
        sealed_to = read_sealed_to(client)
        mine = {topic for topic, _, _ in self._partitions}
        if open_from - 1 > sealed_to and not begin_sealing(client, mine, open_from - 1):
            return
        booking = self._oldest_waiting(sealed_to, open_from)
        yield "frontier"
        if booking is None:
            if open_from - 1 > max(sealed_to, read_sealed_to(client)):
                yield from self._record(open_from - 1, frontiers)
            return
        staging = f"usage_staging_{uuid.uuid4().hex}"
        client.execute(f"CREATE TABLE {staging} AS usage")
        try:
            yield "staging"
            client.execute(f"INSERT INTO {staging} ({_COLUMNS}) {_TOTALS}", {"booking": booking})
            yield "totalled"
            if read_sealed_to(client) >= booking:
                return
            yield "checked"
            client.execute(f"ALTER TABLE usage REPLACE PARTITION {booking} FROM {staging}")
        finally:
            self._drop(staging)
        yield "replaced"
        roll_up(client, booking, self._taken_for_s)
        yield "rolled up"
        yield from self._record(booking, frontiers)

    def _is_held(self) -> bool:
        """Whether a partition has certainly not left the booking behind the newest seal; looked at every second, and a
        frontier of each partition takes many statements.
        """
        sealed_to, reached = read_reached(self._client)
        mine = {topic for topic, _, _ in self._partitions}
        return any(each.topic_id in mine and each.booking <= sealed_to + 1 for each in reached)

    def _drop(self, staging: str) -> None:
        """Drop a staging table; one that stays is a leftover, and its booking is sealed all the same."""
        try:
            self._client.execute(f"DROP TABLE IF EXISTS {staging}")
        except STORE_ERRORS as error:
            self._client.disconnect()
            log.warning("staging_stays", extra={"table": staging, "error": str(error)[:500]})

    def _oldest_waiting(self, sealed_to: int, open_from: int) -> int | None:
        rows = self._client.execute(
            "SELECT min(booking), count() FROM usage_hot WHERE booking > %(from)s AND booking < %(to)s",
            {"from": sealed_to, "to": open_from},
        )
        return int(rows[0][0]) if rows[0][1] else None

    def _record(self, booking: int, frontiers: Sequence[Frontier]) -> Iterator[Seal]:
        """Write the seal: from here on readers take this booking from `usage`.

        What it says is what `usage` holds, also where no hot row was found: another sealer may have sealed the booking
        before that was looked for, and dropped its rows, and the seal that is written last counts.
        """
        count, events, first, last = self._client.execute(
            "SELECT count(), sum(count), min(minute), max(minute) FROM usage WHERE booking = %(booking)s",
            {"booking": booking},
        )[0]
        places = msgspec.json.encode([_place(frontier) for frontier in frontiers]).decode()
        self._client.execute(
            "INSERT INTO seals (booking, generation, rows, events, first_minute, last_minute, places) VALUES",
            [(booking, 0, count, events, first, last, places)],
        )
        log.info("booking_sealed", extra={"booking": booking, "rows": count, "events": events})
        yield Seal(booking, count, events)

    def roll_up_missing(self) -> list[int]:
        """Roll up what was sealed before there were blocks, or by a sealer that was killed in between."""
        return roll_up_missing(self._client, self._taken_for_s)

    def join_heard(self) -> int:
        """Join what was heard of collectors in sealed bookings."""
        return join_heard(self._client)

    def drop_leftovers(self) -> None:
        """Drop staging tables that a killed sealer left a day ago."""
        rows = self._client.execute(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE 'usage_staging_%%'"
            " AND metadata_modification_time < now() - INTERVAL 1 DAY"
        )
        for (name,) in rows:
            self._client.execute(f"DROP TABLE IF EXISTS {name}")

    def drop_old_hot(self, now_ms: int, sealed_for_s: int = KEEP_SEALED_HOT_S) -> list[int]:
        """Drop hot partitions of bookings older than a day that have been sealed for so long by ClickHouse's clock.

        Nobody looks there any more; who has read a minute ago that they are not sealed yet still finds them.
        """
        newest = (now_ms - KEEP_HOT_BOOKINGS_MS) // 86_400_000 * 1000
        rows = self._client.execute(
            "SELECT DISTINCT booking FROM usage_hot"
            " WHERE booking <= (SELECT max(booking) FROM seals"
            " WHERE sealed_at <= now64(3) - INTERVAL %(rest)s SECOND)"
            " AND booking < %(newest)s ORDER BY booking",
            {"newest": newest, "rest": sealed_for_s},
        )
        dropped = [int(row[0]) for row in rows]
        for booking in dropped:
            self._client.execute(f"ALTER TABLE usage_hot DROP PARTITION {booking}")
        return dropped


def read_sealed_to(client: Client) -> int:
    """Return the newest sealed booking, 0 if none."""
    return int(client.execute("SELECT max(booking) FROM seals")[0][0])


def _place(frontier: Frontier) -> dict[str, object]:
    start = frontier.start
    return {
        "topic_id": frontier.topic_id,
        "partition": frontier.partition,
        "chunk": frontier.chunk,
        "offset": start.offset,
        "clock_ms": start.clock_ms,
        "booking": start.booking,
        "definitions": start.definitions,
        "digest": start.digest,
        "reached": frontier.reached.offset,
    }
