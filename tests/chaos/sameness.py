"""Compare what was booked under chaos with what one undisturbed worker booked from the same log, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from tests.chaos.parts import CHUNK_SIZE

_BY_KEY = (
    "SELECT meter, subject, dimensions, minute, item, booking, definitions,"
    " any(u.aggregation), any(u.scale), any(u.parameters), sum(u.count), sum(u.sum), min(u.min), max(u.max),"
    " argMax(u.latest, (u.latest_us, u.latest_by)), max(u.latest_us) FROM usage_booked AS u"
    " GROUP BY meter, subject, dimensions, minute, item, booking, definitions"
    " ORDER BY meter, subject, dimensions, minute, item, booking, definitions"
)
_PLACES = "topic_id, partition, offset, event_index"
# What a replay from zero must give again. Left out: when something was written, how rows are cut into chunks and
# covered prefixes (totalled over them), and what stands behind the place where the replay ended.
REPLAYED: Mapping[str, str] = {
    "sealed usage, every column": "SELECT * FROM usage WHERE booking <= {sealed} ORDER BY"
    " booking, meter, subject, dimensions, minute, definitions, generation, item",
    "blocks, every column": "SELECT * EXCEPT attempt FROM usage_rolled_up WHERE booking <= {sealed}"
    " AND (booking, attempt) IN (SELECT booking, min(attempt) FROM rolled_up GROUP BY booking)"
    " ORDER BY booking, meter, subject, dimensions, seconds, start, definitions, item",
    "usage of the view, by key": _BY_KEY,
    "ids": "SELECT * FROM ids FINAL WHERE {below} ORDER BY identity_high, identity_low, " + _PLACES,
    "dead letters, by position": "SELECT * FROM dead_letters FINAL WHERE {below} ORDER BY " + _PLACES,
    "conflicts, by position": "SELECT * FROM conflicts FINAL WHERE {below} ORDER BY " + _PLACES,
    "closed chunks: places, digests, counts": "SELECT * EXCEPT written_at FROM progress FINAL"
    f" WHERE {{below_chunk}} AND covered = {CHUNK_SIZE} ORDER BY topic_id, partition, chunk",
    "seals": "SELECT booking, generation, rows, events, first_minute, last_minute FROM seals FINAL"
    " WHERE booking <= {sealed} AND rows > 0 ORDER BY booking",
}


def usage_by_key(client: Any) -> Iterable[Any]:
    """Return all usage with its booking, totalled over chunks, in the order of its key."""
    rows: Iterable[Any] = client.execute_iter(_BY_KEY, settings={"strings_as_bytes": True})
    return rows


class Compared(NamedTuple):
    """Something that a replay must give again; `difference` is the first one, if there is any."""

    what: str
    rows: int
    sha256: str
    difference: str


def compare_replay(first: Any, second: Any, ends: Mapping[int, int], sealed_to: int) -> Iterator[Compared]:
    """Compare two databases that were booked from one log, up to the ends.

    Args:
        first, second: Clients of the two; of a replay that ended at `ends`.
        sealed_to: What was sealed before the replay began.
    """
    below = " OR ".join(f"(partition = {partition} AND offset < {end})" for partition, end in ends.items())
    chunks = " OR ".join(f"(partition = {p} AND chunk < {end // CHUNK_SIZE})" for p, end in ends.items())
    for what, template in REPLAYED.items():
        sql = template.format(sealed=sealed_to, below=f"({below})", below_chunk=f"({chunks})")
        streams = [client.execute_iter(sql, settings={"strings_as_bytes": True}) for client in (first, second)]
        yield _compare_rows(what, *streams)


def _compare_rows(what: str, first: Iterable[Any], second: Iterable[Any]) -> Compared:
    hasher, count, difference = hashlib.sha256(), 0, ""
    for a, b in zip_longest(first, second):
        count += 1
        hasher.update(repr(a).encode())
        if a != b and not difference:
            difference = f"{what}, row {count}: booked {repr(a)[:300]}, replayed {repr(b)[:300]}"
    return Compared(what, count, hasher.hexdigest(), difference)
