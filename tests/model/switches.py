"""Each rule of the protocol switched off in the real code: the one function or constant that keeps it is replaced.

There is no such switch in production code. A switch is a context manager that `deployed` is entered before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from pipeline import corrections, decode, dedupe, fold, runtime, seal, write
from pipeline.aggregate import Table
from pipeline.book import DAY_MS
from pipeline.catalog import Catalog
from pipeline.decoders import Decoders
from pipeline.frontier import Frontier, StoredIds
from pipeline.id_filter import IdFilter
from pipeline.identities import HASHES, AcceptedIds
from pipeline.write import Flush, Progress
from tallyman import books
from tallyman.aggregates import read_usage
from tallyman.completeness import read_completeness
from tallyman.errors import StoreError
from tests.model import world as reading
from tests.model.process import running
from tests.model.world import RealWorld

Switch = Callable[[RealWorld], AbstractContextManager[Any]]


def instead(owner: Any, name: str) -> Callable[[Callable[..., Any]], Switch]:
    """Replace a function by one that is given the original first."""

    def switch(other: Callable[..., Any]) -> Switch:
        original = getattr(owner, name)
        return lambda world: patch.object(owner, name, lambda *args, **named: other(original, *args, **named))

    return switch


@instead(StoredIds, "find")
def _knows_ids_above_its_start(find: Any, self: Any, topic_id: str, partition: int, below: int, wanted: Any) -> Any:
    return find(self, topic_id, partition, 1 << 62, wanted)


@instead(Frontier, "open")
def _restarts_at_the_chunks_start(opened: Any, self: Frontier, *args: Any, **named: Any) -> Any:
    return opened(replace(self, turned=self.start), *args, **named)


class _Later:
    """Tables of which one kind of insert waits."""

    def __init__(self, tables: Any, name: str) -> None:
        self._tables, self._name = tables, name
        self.waiting: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        insert = getattr(self._tables, name)
        return (lambda rows: self.waiting.append(lambda: insert(rows))) if name == self._name else insert


def _writes_last(name: str) -> Switch:
    @instead(Flush, "steps")
    def steps(written: Any, self: Flush, tables: Any, outlet: Any) -> Iterator[str]:
        later = _Later(tables, name)
        yield from written(self, later, outlet)
        for insert in later.waiting:
            insert()

    return steps


@instead(Flush, "steps")
def _tells_first(written: Any, self: Flush, tables: Any, outlet: Any) -> Iterator[str]:
    chunk = self.chunk
    outlet.push(Progress(chunk.topic_id, chunk.partition, chunk.number, chunk.covered, chunk.here, []))
    yield from written(self, tables, outlet)


@instead(Catalog, "__init__")
def _forgets_ids_early(made: Any, self: Catalog, *args: Any) -> None:
    made(self, *args)
    self.remember_us = self.oldest_us // 3


@instead(dedupe, "_accept")
def _remembers_from_the_log_clock(
    accept: Any, part: Any, accepted: Any, chunk: Any, known: Any, _: Any, *rest: Any
) -> Any:
    return accept(part, accepted, chunk, known, part.clocks_ms * 1000, *rest)


@instead(dedupe, "_count_foreign")
def _counts_where_it_is(count: Any, part: Any, block: Any, *rest: Any) -> Any:
    return count(replace(part, homes=np.full_like(part.homes, block.partition)), block, *rest)


def _judges_by_its_own_clock(world: RealWorld) -> AbstractContextManager[Any]:
    @instead(dedupe, "_late")
    def late(judge: Any, part: Any, *rest: Any) -> Any:
        return judge(replace(part, clocks_ms=np.full_like(part.clocks_ms, world.now_ms())), *rest)

    return late(world)


@instead(decode, "read_log")
def _lets_the_clock_go_back(read: Any, *args: Any) -> Any:
    log = read(*args)
    return log._replace(clocks=log.appended)


def _usage_column(name: str, value: Callable[[RealWorld, list[Any]], list[Any]]) -> Switch:
    """Write other values into a column of usage_hot."""
    names = write._USAGE.split("(")[1].split(")")[0].split(", ")

    def switch(world: RealWorld) -> AbstractContextManager[Any]:
        @instead(write, "_usage_columns")
        def columns(made: Any, *args: Any) -> list[list[Any]]:
            columns: list[list[Any]] = made(*args)
            columns[names.index(name)] = value(world, columns)
            return columns

        return columns(world)

    return switch


def _day_of_the_minute(_: RealWorld, columns: list[Any]) -> list[int]:
    return [second * 1000 // DAY_MS * 1000 for second in columns[3]]


def _last_insert_wins(world: RealWorld, columns: list[Any]) -> list[int]:
    return [world.real.versions["usage_hot"] + 1] * len(columns[0])


def _counts_by_the_newest_definitions(world: RealWorld) -> AbstractContextManager[Any]:
    @instead(Decoders, "get")
    def get(known: Any, self: Decoders, number: int) -> Any:
        return known(self, world.meters + 1)

    return get(world)


@instead(books, "register_topic")
def _takes_any_chunk_size(_: Any, __: Any, topic: books.Topic) -> books.Topic:
    return topic


@instead(runtime, "blocks")
def _reads_on_behind_a_lost_head(cut: Any, fetch: Any, chunk: Any, *rest: Any, **named: Any) -> Any:
    return cut(replace(fetch, first=chunk.here.offset), chunk, *rest, **named)


@instead(Table, "take_changes")
def _clean_when_sent(take: Any, self: Table) -> Any:
    changes = take(self)
    self.acknowledge(changes[1])
    return changes


def _goes_on_without_an_answer(world: RealWorld) -> AbstractContextManager[Any]:
    def write_once(flush: Flush, tables: Any, outlet: Any) -> None:
        try:
            for _ in flush.steps(tables, outlet):
                pass
        except StoreError:
            pass

    return patch.object(runtime, "write", write_once)


@instead(reading, "read_usage")
def _reads_progress_last(_: Any, client: Any, query: Any, *, expected_delay: Any, partitions: int, **named: Any) -> Any:
    answer = read_usage(client, query, expected_delay=expected_delay, partitions=partitions, **named)
    after = read_completeness(client, expected_delay=expected_delay, partitions=partitions)
    return replace(answer, complete_to=after.complete_to)


def _shares_its_staging_table(world: RealWorld) -> AbstractContextManager[Any]:
    return patch.object(seal, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex="shared")))


@instead(seal, "read_sealed_to")
def _does_not_look_again(read: Any, client: Any) -> int:
    totalled = running().at.startswith("INSERT INTO usage_staging")  # the statement before this one
    return 0 if totalled else int(read(client))


@instead(corrections, "_check")
def _believes_who_corrects(check: Any, correction: Any, first: Any) -> None:
    if first is None:
        check(correction, first)


@instead(decode, "_meet_again")
def _trusts_another_log(*args: Any) -> None:
    """Digests are not compared."""


@instead(fold, "_companions")
def _writes_all_under_one_version(companions: Any, chunk: Any, decoders: Decoders) -> Iterator[Any]:
    for other, _ in companions(chunk, decoders):
        yield other, decoders.catalog(chunk.here.definitions)


@instead(IdFilter, "perhaps")
def _calls_new_what_it_never_loaded(perhaps: Any, self: IdFilter, topic_id: str, partition: int, *ids: Any) -> Any:
    self._loaded[topic_id, partition] = HASHES
    return perhaps(self, topic_id, partition, *ids)


@instead(AcceptedIds, "forget_to")
def _forgets_what_waits_to_be_folded(_: Any, self: AcceptedIds, most: int, below: int) -> int:
    self.clear()
    return below


@instead(IdFilter, "expect")
def _empties_the_filter_while_a_load_is_to_come(_: Any, self: IdFilter, *key: Any) -> None:
    self.unload(*key)


# By the rules of `tests.model.chunk_model.Rules`.
OFF: Mapping[str, Switch] = {
    "seen_at_start": _knows_ids_above_its_start,
    "restart_at_turn": _restarts_at_the_chunks_start,
    "ids_before_progress": _writes_last("insert_ids"),
    "remember_longer_than_late": _forgets_ids_early,
    "remember_from_event_time": _remembers_from_the_log_clock,
    "home_partition": _counts_where_it_is,
    "judge_by_log_time": _judges_by_its_own_clock,
    "clock_never_back": _lets_the_clock_go_back,
    "meters_in_key": _usage_column("definitions", lambda _, columns: [1] * len(columns[0])),
    "meters_from_log": _counts_by_the_newest_definitions,
    "chunk_size_pinned": _takes_any_chunk_size,
    "refuse_truncated_head": _reads_on_behind_a_lost_head,
    "clean_when_acked": _clean_when_sent,
    "close_before_next": _goes_on_without_an_answer,
    "flush_fits_a_block": lambda _: patch.object(fold, "MAX_CHANGED_KEYS", 900_000),
    "progress_after_data": _writes_last("insert_usage"),
    "push_after_progress": _tells_first,
    "progress_read_first": _reads_progress_last,
    "longest_prefix_wins": _usage_column("covered", _last_insert_wins),
    "book_by_log_day": _usage_column("booking", _day_of_the_minute),
    "private_staging": _shares_its_staging_table,
    "recheck_before_replace": _does_not_look_again,
    "correct_what_counted": _believes_who_corrects,
}
# Rules that only the real code has: what the model's memory and its one log cannot get wrong.
OWN_OFF: Mapping[str, Switch] = {
    "digest_met_again": _trusts_another_log,
    "own_definitions_in_a_joint_flush": _writes_all_under_one_version,
    "new_only_when_the_filter_is_loaded": _calls_new_what_it_never_loaded,
    "ids_of_a_waiting_block_stay": _forgets_what_waits_to_be_folded,
    "ids_stay_until_a_load_has_read_them": _empties_the_filter_while_a_load_is_to_come,
}
