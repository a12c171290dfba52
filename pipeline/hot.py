"""A copy of hot rows that stands still while it is compared, and how far they are ahead of progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from clickhouse_driver import Client

from tallyman.repairs import unfence

Key = tuple[str, int]  # topic id, partition


class Rows(NamedTuple):
    """What there is of a chunk: how many of its offsets the rows cover, and the newest booking that they are in."""

    covered: int
    booking: int


class HotCopy:
    """A copy of `usage_hot`; made first, so that a busy pipeline gets no further than need be while it is looked at."""

    def __init__(self, client: Client, table: str) -> None:
        self._client, self._table = client, table
        client.execute(f"CREATE TABLE {table} AS usage_hot")
        unfence(client, table)

    def take(self, above: int, first: int, tails: Mapping[Key, int]) -> dict[Key, dict[int, Rows]]:
        """Copy the rows of bookings; return what there is of the chunks from a partition's tail on.

        Args:
            above, first: Bookings above the one and from the other on.
            tails: The chunk from which on a partition's are returned; of partitions that are not named, all are.
        """
        table = self._table
        self._client.execute(f"TRUNCATE TABLE {table}")
        self._client.execute(
            f"INSERT INTO {table} SELECT * FROM usage_hot FINAL WHERE generation = 0"  # noqa: S608 - our own name
            " AND booking > %(above)s AND booking >= %(first)s",
            {"above": above, "first": first},
            settings={"max_partitions_per_insert_block": 0},  # a partition of usage_hot for each booking, sealed or not
        )
        rows = self._client.execute(
            f"SELECT topic_id, partition, chunk, max(covered), max(booking) FROM {table}"  # noqa: S608 - our own name
            " GROUP BY topic_id, partition, chunk"
            " HAVING chunk >= %(from)s[indexOf(%(keys)s, concat(topic_id, '/', toString(partition)))]",
            {"keys": ["", *_names(tails)], "from": [0, *tails.values()]},
        )
        found: dict[Key, dict[int, Rows]] = {}
        for topic_id, partition, chunk, covered, booking in rows:
            found.setdefault((topic_id, partition), {})[int(chunk)] = Rows(int(covered), int(booking))
        return found


def _names(keys: Iterable[Key]) -> list[str]:
    return [f"{topic_id}/{partition}" for topic_id, partition in keys]
