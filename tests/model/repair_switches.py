"""Each rule of a repair switched off in the real code, as in `tests.model.switches`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa

from pipeline import frontier, repair
from pipeline.write import Flush
from tallyman.control import write
from tallyman.usage import Repair
from tests.model.switches import Switch, instead


def _without(**replaced: Any) -> Switch:
    """Replace functions of `pipeline.repair`."""

    def switch(_: object) -> AbstractContextManager[Any]:
        stack = ExitStack()
        for name, value in replaced.items():
            stack.enter_context(patch.object(repair, name, value))
        return stack

    return switch


def _knows_undone_ids(_: object) -> AbstractContextManager[Any]:
    return patch.object(frontier, "NOT_UNDONE", "")


def _goes_on_in_the_same_booking(engine: sa.Engine, decision: Repair, decide: Any = repair._decide) -> None:
    decide(engine, replace(decision, booking=decision.from_booking))


def _decides_again(engine: sa.Engine, decision: Repair, decide: Any = repair._decide) -> None:
    decide(engine, decision)  # makes the table
    mine = repair._is(decision.topic_id, decision.partition, decision.number)
    with write(engine) as connection:
        connection.execute(sa.delete(repair._decisions).where(mine))
    decide(engine, decision)


class _IdsBehindRows:
    """Tables of which ids wait until progress is written."""

    def __init__(self, tables: Any) -> None:
        self._tables, self._waiting = tables, list[Callable[[], None]]()

    def __getattr__(self, name: str) -> Any:
        insert = getattr(self._tables, name)
        if name == "insert_ids":
            return lambda rows: self._waiting.append(lambda: insert(rows))
        return self._at_last if name == "insert_progress" else insert

    def _at_last(self, chunks: Any) -> None:
        for insert in self._waiting:
            insert()
        self._tables.insert_progress(chunks)


@instead(Flush, "steps")
def _ids_behind_rows(written: Any, self: Flush, tables: Any, outlet: Any) -> Iterator[str]:
    yield from written(self, _IdsBehindRows(tables), outlet)


OFF: Mapping[str, Switch] = {
    "fence_first": _without(_fence=lambda _client, _plan: None),
    "wait_for_inserts": _without(_wait_for_inserts=lambda _client: None),
    "first_is_what_rows_hold": _without(_rows_hold=lambda _client, _frontier, _size: 0),
    "ids_before_rows": _ids_behind_rows,
    "undone_ids_forgotten": _knows_undone_ids,
    "booking_of_its_own": _without(_decide=_goes_on_in_the_same_booking),
    "decided_once": _without(_decide=_decides_again),
}
