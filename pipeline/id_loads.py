"""Load the filter of ids behind the back of a worker that has begun already."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from pipeline.book import OPEN, OpenChunk
from pipeline.frontier import StoredIds
from pipeline.id_filter import IdFilter
from pipeline.lanes import inside, this_lane
from tallyman.clickhouse import connect

if TYPE_CHECKING:
    from pipeline.runtime import JobConfig

log = logging.getLogger(__name__)
_LOAD_AGAIN_S = 0.5


class _Waiting(NamedTuple):
    """A chunk whose ids are to be loaded, those below `base`."""

    chunk: OpenChunk
    base: int
    expected: object


class IdLoads:
    """What a lane has yet to load: one thread, and one reading for all partitions that wait for one.

    The table lies in the order of hashes: to find the ids of one partition, ClickHouse goes through those of all.
    """

    def __init__(self, config: JobConfig, known: IdFilter) -> None:
        self._config, self._filter = config, known
        self._waiting: list[_Waiting] = []
        self._runs = False
        self._lock = threading.Lock()

    def ask(self, chunk: OpenChunk, expected: object) -> None:
        """Have the ids below a chunk loaded that was just opened, by a thread of its own.

        Args:
            expected: What the filter returned when it was told to expect them.
        """
        with self._lock:
            self._waiting.append(_Waiting(chunk, chunk.base, expected))
            if self._runs:
                return
            self._runs = True
        threading.Thread(target=self._run, args=(this_lane(),), name="ids", daemon=True).start()

    def _run(self, lane: int) -> None:
        with inside(lane):
            while waiting := self._take():
                self._load(waiting)

    def _take(self) -> list[_Waiting]:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self._runs = bool(waiting)
            return waiting

    def _load(self, waiting: list[_Waiting]) -> None:
        """Load the filter, again until it is done: without it every single id is asked of ClickHouse."""
        before = [(each.topic_id, each.partitions) for each in self._config.before]
        while open_still := [
            each for each in waiting if OPEN.get((each.chunk.topic_id, each.chunk.partition)) is each.chunk
        ]:
            below = {each.chunk.partition: each.base for each in open_still}
            expected = {each.chunk.partition: each.expected for each in open_still}
            client = connect(self._config.database, numpy=True)
            try:
                self._filter.load(StoredIds(client), self._config.topic_id, below, before, expected)
                return
            except Exception as error:  # noqa: BLE001 - who is not loaded would ask for every id until the next start
                # The stages meet a refusal of ClickHouse's, too, and stop.
                said = f"{type(error).__name__}: {error}"[:300]
                log.warning("ids_not_loaded", extra={"partitions": sorted(below), "error": said})
                time.sleep(_LOAD_AGAIN_S)
            finally:
                client.disconnect()
