"""What must be true at the end of a chaos run; each check returns a sentence for each difference that it finds."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from clickhouse_driver import errors as driver_errors

from tallyman.clickhouse import NETWORK_ERRORS, Endpoint, connect
from tests.chaos.parts import CHUNK_SIZE
from tests.chaos.recount import Chunk, Recount
from tests.chaos.senders import HOST_SUBJECT, has_conflicts
from tests.chaos.usage_made import CONFLICTS_IN_LOT, STRAY_EVERY, Amount, Key, Made, expected

FATES = ("aggregated", "duplicate", "dead", "ignored", "forwarded")
_SHOWN = 5
_STORED = """
    SELECT meter, subject, dimensions, item, intDiv(toUnixTimestamp(minute), 60), sum(u.count),
        multiIf(any(aggregation) = 'max', max(u.max), any(aggregation) = 'latest',
            argMax(u.latest, (u.latest_us, u.latest_by)), any(aggregation) = 'unique_count', sum(u.count), sum(u.sum))
    FROM usage_booked AS u GROUP BY meter, subject, dimensions, item, minute"""


def compare_totals(client: Any, made: Made, batches: int, lots: int, work: int) -> list[str]:
    """Compare what is stored with what was acknowledged, by meter, subject, dimensions, item and minute.

    Args:
        work: What the host's agent had accepted when it ended.
    """
    stored: dict[Key, Amount] = {tuple(row[:5]): Amount(*row[5:]) for row in client.execute(_STORED)}
    of_host = [key for key in stored if key[:2] == ("host.work", HOST_SUBJECT)]
    worked = sum(stored.pop(key).value for key in of_host)
    found = [] if worked == work else [f"host.work: accepted {work}, stored {worked}"]
    wanted = expected(made, batches, lots)
    return found + [
        f"{key}: sent {wanted.get(key)}, stored {stored.get(key)}"
        for key in sorted(wanted.keys() | stored.keys())
        if wanted.get(key) != stored.get(key)
    ]


def reconcile(client: Any, recounted: Recount) -> tuple[list[str], Counter[str]]:
    """Check the counts of every chunk: they add up, they are what the log holds, and what dead letters and conflicts
    are stored. Returns also the totals.
    """
    rows = client.execute("SELECT partition, chunk, reached_counts FROM progress FINAL")
    dead, conflicts = (_rows_by_chunk(client, table) for table in ("dead_letters", "conflicts"))
    found: list[str] = []
    totals: Counter[str] = Counter()
    for partition, chunk, counts in rows:
        named = dict(zip(("received", *FATES, "conflict"), counts, strict=True))
        totals.update(named)
        place = partition, chunk
        checks = {
            "received is the sum of its fates": (named["received"], sum(named[fate] for fate in FATES)),
            "received is what the log holds": (named["received"], recounted.received[place]),
            "ignored is what the log holds": (named["ignored"], recounted.ignored[place]),
            "dead letters are stored": (named["dead"], dead[place]),
            "conflicts are stored": (named["conflict"], conflicts[place]),
        }
        unequal = [f"{what}: {a} and {b}" for what, (a, b) in checks.items() if a != b]
        found += [f"partition {partition}, chunk {chunk}: {each}" for each in unequal]
    missing = recounted.received.keys() - {(partition, chunk) for partition, chunk, _ in rows}
    return found + [f"partition {p}, chunk {c}: received events, but has no counts" for p, c in sorted(missing)], totals


def _rows_by_chunk(client: Any, table: str) -> Counter[Chunk]:
    rows = client.execute(
        f"SELECT partition, intDiv(offset, {CHUNK_SIZE}), count() FROM {table} FINAL GROUP BY ALL"
    )
    return Counter({(partition, chunk): count for partition, chunk, count in rows})


def compare_dead_letters(client: Any, made: Made, lots: int) -> list[str]:
    """Check that exactly what must be dead is, under its reason; copies of it may be dead as often as they came."""
    from collectors.arrow import encode_readings

    wanted: dict[str, set[bytes]] = defaultdict(set)
    for number in range(lots):
        for reason, bodies in made.dead_of(number).items():
            wanted[reason].update(bodies)
        if number % STRAY_EVERY == 0:
            wanted["number_reused"].add(encode_readings(made.stray(number, other=True)))
    stored: dict[str, set[bytes]] = defaultdict(set)
    rows = client.execute("SELECT DISTINCT reason, body FROM dead_letters FINAL", settings={"strings_as_bytes": True})
    for reason, body in rows:
        stored[reason.decode()].add(body)
    return [
        f"dead letters, {reason}: {len(wanted[reason] - stored[reason])} missing, "
        f"{len(stored[reason] - wanted[reason])} too many"
        for reason in sorted(wanted.keys() | stored.keys())
        if wanted[reason] != stored[reason]
    ]


def compare_conflicts(client: Any, lots: int) -> list[str]:
    """Check that each id that was used again with other content was reported, against the copy that came first."""
    used_again = [number for number in range(lots) if has_conflicts(number)]
    wanted = {f"{number}/{index}" for number in used_again for index in range(CONFLICTS_IN_LOT)}
    rows = client.execute(
        "SELECT JSONExtractString(body, 'id'), min(offset > first_offset) FROM conflicts FINAL GROUP BY 1"
    )
    found = [f"conflict of {event}: the first copy stands behind the second" for event, good in rows if not good]
    different = wanted ^ {event for event, _ in rows}
    return found + [f"conflict of {event}: missing, or too many" for event in sorted(different)]


def count_late(client: Any) -> int:
    """Return how many series and minutes were booked in several bookings: late events behind a seal."""
    rows = client.execute(
        "SELECT count() FROM (SELECT 1 FROM usage_booked GROUP BY meter, subject, dimensions, item, minute"
        " HAVING uniqExact(booking) > 1)"
    )
    return int(rows[0][0])


class SealWatch:
    """Takes the fingerprint of every booking as soon as it is sealed; at the end it must be the same."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._client: Any = connect(endpoint, timeout_s=10)
        self._over = threading.Event()
        self.seen: dict[int, str] = {}
        self._thread = threading.Thread(target=self._watch, name="seals", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.3):
            try:
                self._look()
            except (*NETWORK_ERRORS, driver_errors.Error):
                self._client.disconnect()

    def _look(self) -> None:
        for (booking,) in self._client.execute("SELECT DISTINCT booking FROM seals ORDER BY booking"):
            if booking not in self.seen:
                self.seen[booking] = fingerprint(sealed_rows(self._client, booking))

    def finish(self) -> list[str]:
        """Stop watching and look at all of them again."""
        self._over.set()
        self._thread.join()
        self._client.disconnect()
        self._look()
        now = {booking: fingerprint(sealed_rows(self._client, booking)) for booking in self.seen}
        changed = [booking for booking, before in self.seen.items() if now[booking] != before]
        self._client.disconnect()
        return [f"booking {booking} changed after it was sealed" for booking in changed]


def sealed_rows(client: Any, booking: int) -> Iterator[Any]:
    """Yield the rows of a sealed booking, all columns, in the order of their key."""
    rows: Iterator[Any] = client.execute_iter(
        "SELECT * FROM usage WHERE booking = %(booking)s"
        " ORDER BY meter, subject, dimensions, minute, booking, definitions, generation, item",
        {"booking": booking},
        settings={"strings_as_bytes": True},
    )
    return rows


def fingerprint(rows: Iterable[Any]) -> str:
    """Return a hash over rows in their order."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(repr(row).encode())
    return hasher.hexdigest()


def shortened(differences: Sequence[str]) -> list[str]:
    """Return the first few of many differences."""
    more = len(differences) - _SHOWN
    return [*differences[:_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
