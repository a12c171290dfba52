"""The decoders of each version of the definitions that a process has met."""

from __future__ import annotations

from collections.abc import Callable

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
            catalog = Catalog(self._load(max(number, 1)))
            self._known[number] = catalog, JsonDecoder(catalog, self.partitions), ArrowDecoder(catalog)
        return self._known[number]

    def catalog(self, number: int) -> Catalog:
        return self.get(number)[0]

    def let_go(self, below: int) -> None:
        """Forget versions below one, with all series met under them: no chunk that is open counts by them any more.

        Should one be asked for again, it is loaded again, and its series get new numbers.
        """
        for number in [number for number in self._known if number < below]:
            del self._known[number]
