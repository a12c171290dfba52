"""The decoders of each version of the definitions that a process has met."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.aggregate import Table
from pipeline.arrow_events import ArrowDecoder
from pipeline.catalog import Catalog
from pipeline.json_events import JsonDecoder
from tallyman.meter import Definitions


class Decoders:
    """Makes decoders when a version is first asked for, and keeps them.

    Args:
        load: Returns a version of the definitions; raises LogError, with a sentence, for one that it does not know.
    """

    def __init__(self, load: Callable[[int], Definitions], partitions: int) -> None:
        self._load = load
        self.partitions = partitions
        self._known: dict[int, tuple[Catalog, JsonDecoder, ArrowDecoder]] = {}

    def get(self, number: int) -> tuple[Catalog, JsonDecoder, ArrowDecoder]:
        if number not in self._known:
            # What was sent before the topic's first close is judged by the definitions that this close puts in force.
            self._begin(number, Catalog(self._load(max(number, 1))))
        return self._known[number]

    def catalog(self, number: int) -> Catalog:
        return self.get(number)[0]

    def let_go(self, below: int) -> None:
        """Forget versions below one, with all series met under them: no chunk that is open counts by them any more.

        Should one be asked for again, it is loaded again, and its series get new numbers.
        """
        for number in [number for number in self._known if number < below]:
            del self._known[number]

    def forget_series(self, number: int, tables: Sequence[Table]) -> None:
        """Forget the series that were not met lately under a version, if they are many; called when a table is cleared.

        Args:
            tables: Those of all open chunks that count by this version; nothing else may hold numbers of series, no
                block and no flush. The series in them get new numbers, all others when they are met again.
        """
        catalog = self.catalog(number)
        if catalog.has_many_idle(len(tables)):
            for table in tables:
                catalog.note_met(table.codes())
            if catalog.has_many_idle(len(tables)):
                self.renumber(number, tables)

    def renumber(self, number: int, tables: Sequence[Table]) -> None:
        """Begin a version's series anew with those in `tables`; see `forget_series`."""
        old = self.catalog(number)
        catalog = Catalog(old.definitions)
        kept = np.unique(np.concatenate([table.codes() for table in tables]))
        for code in kept.tolist():
            catalog.number(old.series[code])
        assert len(catalog.series) == len(kept), "a series had two numbers"
        for table in tables:
            table.renumber(kept)
        self._begin(number, catalog)

    def _begin(self, number: int, catalog: Catalog) -> None:
        self._known[number] = catalog, JsonDecoder(catalog, self.partitions), ArrowDecoder(catalog)
