"""The raw archive: every record as it came, in `events`, keyed by its position. Ground truth for audit and rebuild."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta

import numpy as np
from clickhouse_driver import Client

from pipeline.batches import Fetch
from tallyman.clickhouse import UNKNOWN_TABLE, refusal, store_errors
from tallyman.headers import Headers
from tallyman.repairs import NOT_JUDGED_ANEW

_PAGE_OFFSETS, _PAGE_BYTES = 16_384, 32 << 20  # of what one statement gives; a record that is larger is given alone
_TTL = re.compile(r"TTL toDateTime\(appended_at\) \+ toIntervalSecond\((\d+)\)")


class MapOfPairs:
    """Record headers as the driver writes a Map: in their order, a name that is there twice too, values as bytes."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Headers) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def keys(self) -> list[str]:
        return [name for name, _ in self._pairs]

    def values(self) -> list[bytes]:
        return [value for _, value in self._pairs]


class ArchiveSource:
    """Reads records of a topic from the archive again, as the reader brought them. Its fetches carry no digests."""

    name = "archive"

    def __init__(self, client: Client, topic_id: str) -> None:
        self._client = client
        self._topic_id = topic_id

    def reach(self, partition: int) -> tuple[int, int]:
        """Return the first offset that the archive holds of a partition, and the one behind its last; (0, 0): none."""
        first, last, count = self._client.execute(
            "SELECT min(offset), max(offset), count() FROM events"  # noqa: S608 - our own words
            f" WHERE topic_id = %(topic)s AND partition = %(partition)s{NOT_JUDGED_ANEW}",
            {"topic": self._topic_id, "partition": partition},
        )[0]
        return (int(first), int(last) + 1) if count else (0, 0)

    def read(self, partition: int, start: int, stop: int) -> Iterator[Fetch]:
        """Yield the records with offsets in [start, stop); what was never archived looks like a hole in the log."""
        while start < stop:
            end = min(start + _PAGE_OFFSETS, stop)
            octets = 0
            for offset, size in self._sizes(partition, start, end):
                octets += size
                if octets > _PAGE_BYTES and offset > start:
                    yield self._page(partition, start, offset)
                    start, octets = offset, size
            yield self._page(partition, start, end)
            start = end

    def close(self) -> None:
        self._client.disconnect()

    def _sizes(self, partition: int, start: int, end: int) -> list[tuple[int, int]]:
        """Return how many bytes each record has: asked first, for a tenant decides it, and few may be gigabytes."""
        rows: list[tuple[int, int]] = self._client.execute(
            "SELECT offset, max(length(body) + arraySum(each -> length(each), mapValues(headers))) FROM events"  # noqa: S608
            " WHERE topic_id = %(topic)s AND partition = %(partition)s AND offset >= %(start)s AND offset < %(end)s"
            f"{NOT_JUDGED_ANEW} GROUP BY offset ORDER BY offset",
            {"topic": self._topic_id, "partition": partition, "start": start, "end": end},
        )
        return rows

    def _page(self, partition: int, start: int, end: int) -> Fetch:
        # mapKeys and mapValues, because a dict would keep one of two headers of the same name.
        rows = self._client.execute(
            "SELECT offset, toUnixTimestamp64Milli(appended_at), mapKeys(headers), mapValues(headers), body"  # noqa: S608
            " FROM events FINAL WHERE topic_id = %(topic)s AND partition = %(partition)s"
            f" AND offset >= %(start)s AND offset < %(end)s{NOT_JUDGED_ANEW} ORDER BY offset",
            {"topic": self._topic_id, "partition": partition, "start": start, "end": end},
            settings={"strings_as_bytes": True},
        )
        headers = [_headers(names, values) for _, _, names, values, _ in rows]
        return Fetch(
            self._topic_id, partition, start, end,
            np.array([row[0] for row in rows], np.int64),
            np.array([row[1] for row in rows], np.int64),
            [row[4] for row in rows],
            [None] * len(rows),
            headers if any(headers) else None,
            (),
        )  # fmt: skip


def _headers(names: Sequence[bytes], values: Sequence[bytes]) -> Headers:
    return tuple((name.decode(), value) for name, value in zip(names, values, strict=True))


def keep_archive_for(client: Client, ttl: timedelta) -> bool:
    """Have ClickHouse drop raw records this long after they were appended; zero keeps them for ever.

    Safe to call at every start.

    Returns:
        Whether anything changed.

    Raises:
        StoreError, StoreRefusedError: ClickHouse did not do it.
    """
    with store_errors(client, "the time to live of events"):
        return _keep_archive_for(client, ttl)


def _keep_archive_for(client: Client, ttl: timedelta) -> bool:
    rows = client.execute(
        "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = 'events'"
    )
    if not rows:
        raise refusal(UNKNOWN_TABLE, "events", "Table events does not exist")
    found = _TTL.search(rows[0][0])
    wanted = int(ttl.total_seconds())
    if wanted == (int(found[1]) if found else 0):
        return False
    if not wanted:
        client.execute("ALTER TABLE events REMOVE TTL")
        return True
    # A part holds one booking, so whole parts become too old: nothing need be rewritten.
    client.execute("ALTER TABLE events MODIFY SETTING ttl_only_drop_parts = 1")
    client.execute(
        f"ALTER TABLE events MODIFY TTL toDateTime(appended_at) + toIntervalSecond({wanted})",
        settings={"materialize_ttl_after_modify": 1},
    )
    return True
