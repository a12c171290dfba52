"""Keep what was appended in the future out of the books: the log's clock only goes forward, and would stay there.

A worker's own clock may stop it, and decides no row. It is believed only where ClickHouse's says the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np

from pipeline.batches import Fetch
from tallyman.clickhouse import Endpoint, connect, store_errors
from tallyman.errors import DamageError

AHEAD_MS = 900_000  # how far the clocks of a broker and of whoever reads may differ
_ASK_EVERY_S = 60.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class FutureGuard:
    """Looks at the append times of what was fetched.

    Args:
        ask: Return ClickHouse's clock in milliseconds since 1970; asked when this machine's finds something wrong.
    """

    def __init__(self, ask: Callable[[], int]) -> None:
        self._ask = ask
        self._asked: tuple[int, float] | None = None  # what ClickHouse said, and when by the monotonic clock

    def past(self, fetch: Fetch) -> Fetch:
        """Return what of a fetch lies before the first record that was appended in the future.

        Raises:
            DamageError: That is the first one. It passes when nobody would call the record's time the future any more.
            StoreError: ClickHouse does not say what time it is.
        """
        if not len(fetch):
            return fetch
        latest = int(fetch.appended_ms.max())
        if latest <= time.time_ns() // 1_000_000 + AHEAD_MS or latest <= (limit := self._now_ms() + AHEAD_MS):
            return fetch
        row = int(np.argmax(fetch.appended_ms > limit))
        offset = int(fetch.offsets[row])
        if row:
            return fetch.below(offset)
        appended_ms = int(fetch.appended_ms[row])
        raise DamageError(
            fetch.partition,
            "clock",
            f"the record at offset {offset} was appended at {_said(appended_ms)}, and it is {_said(limit - AHEAD_MS)}: "
            "the clock of the partition's leader is, or was, ahead",
            passes_in_s=-((limit - appended_ms) // 1000),
        )

    def _now_ms(self) -> int:
        passed_s = time.monotonic() - self._asked[1] if self._asked else _ASK_EVERY_S
        if passed_s >= _ASK_EVERY_S:
            self._asked, passed_s = (self._ask(), time.monotonic()), 0.0
        assert self._asked is not None
        return self._asked[0] + int(passed_s * 1000)


def store_clock_ms(database: Endpoint) -> int:
    """Return ClickHouse's clock, in milliseconds since 1970.

    Raises:
        StoreError, StoreRefusedError: It did not tell.
    """
    client = connect(database)
    try:
        with store_errors(client, "asking for the time"):
            return int(client.execute("SELECT toUnixTimestamp64Milli(now64(3))")[0][0])
    finally:
        client.disconnect()


def _said(clock_ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=clock_ms)).isoformat(" ", "seconds")
