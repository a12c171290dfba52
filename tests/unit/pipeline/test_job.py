"""Each transform of the job, alone on Beam's local runner; and the runner cannot be given more than one worker."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from pipeline import runtime, worker
from pipeline.book import OPEN, Place
from pipeline.decode import blocks
from pipeline.dedupe import Judge, count_once
from pipeline.id_filter import IdFilter
from pipeline.job import CountOnce, DecodeUsage, SumUsage, WriteUsage
from pipeline.runtime import Database, JobConfig, Runtime
from pipeline.write import Flush
from tests.fetches import NOON_MS, TOPIC_ID, fetch_of
from tests.unit.pipeline.events import PLAIN, StoredHere, body, new_chunk, new_decoders
from tests.unit.pipeline.test_write import Store, Wire

CONFIG = JobConfig(
    brokers=(), topic="usage", topic_id=TOPIC_ID, partitions=1, assigned=(0,), chunk_size=64, progress_topic="progress",
    database=Database(host="", port=0, user="", password="", database=""), control_url="", flush_s=0,
)  # fmt: skip


@pytest.fixture
def stages() -> Iterator[Runtime]:
    """The stages of this process, with an open chunk and no servers."""
    judge = Judge(StoredHere(), IdFilter(1 << 16))
    judge.filter.load(judge.ids, TOPIC_ID, {0: 0})
    OPEN[TOPIC_ID, 0] = new_chunk()
    decoders = new_decoders(PLAIN, replace(PLAIN, number=2))
    made = runtime._runtimes[0, CONFIG] = Runtime(CONFIG, Store(), judge, decoders, Wire())
    yield made
    OPEN.clear()
    del runtime._runtimes[0, CONFIG]


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner=FnApiRunner(), options=worker.beam_options())


def fetch() -> Any:
    return fetch_of([(body(i), (), NOON_MS) for i in (1, 2, 1)])


def block(stages: Runtime) -> Any:
    return next(blocks(fetch(), OPEN[TOPIC_ID, 0], stages.decoders))


def folded(stages: Runtime) -> Flush:
    """Fold a fetch into the open chunk and return its flush."""
    chunk = OPEN[TOPIC_ID, 0]
    for each in blocks(fetch(), chunk, stages.decoders):
        count_once(each, chunk, stages.decoders.catalog(1), stages.judge)
        flushes = list(stages.sum(each))
    return flushes[-1]


def test_decode_usage_cuts_a_block_and_waits_until_it_is_folded(stages: Runtime) -> None:
    """Nobody folds them here, and that is noticed."""
    with pytest.raises(Exception, match="the block up to 3 was not folded"), pipeline() as p:
        p | beam.Create([fetch()]) | DecodeUsage(CONFIG)


def test_count_once_sets_copies_aside(stages: Runtime) -> None:
    with pipeline() as p:
        counted = p | beam.Create([block(stages)]) | CountOnce(CONFIG)
        assert_that(counted | beam.Map(lambda b: tuple(b.counts)), equal_to([(3, 2, 1, 0, 0, 0, 0)]))


def test_sum_usage_folds_a_block_and_flushes_when_it_is_time(stages: Runtime) -> None:
    judged = count_once(block(stages), OPEN[TOPIC_ID, 0], stages.decoders.catalog(1), stages.judge)
    with pipeline() as p:
        flushes = p | beam.Create([judged]) | SumUsage(CONFIG)
        assert_that(flushes | beam.Map(lambda flush: flush.chunk.covered), equal_to([3]))


def test_definitions_by_which_no_open_chunk_counts_any_more_are_let_go_when_a_chunk_closes(stages: Runtime) -> None:
    """With them go all series that were met under them; the other chunks' stay, whatever this one has come to."""
    old, behind, new = (stages.decoders.catalog(number) for number in (0, 1, 2))
    for partition, number in ((0, 2), (1, 1)):
        OPEN[TOPIC_ID, partition] = new_chunk(Place(definitions=number), size=3, partition=partition)
    for each in blocks(fetch(), OPEN[TOPIC_ID, 0], stages.decoders):
        for flush in stages.sum(stages.count(each)):
            stages.write(flush)
    assert (OPEN[TOPIC_ID, 0].number, stages.decoders.catalog(1), stages.decoders.catalog(2)) == (1, behind, new)
    assert stages.decoders.catalog(0) is not old


def test_write_usage_writes_a_flush_in_order(stages: Runtime) -> None:
    with pipeline() as p:
        p | beam.Create([folded(stages)]) | WriteUsage(CONFIG)
    assert stages.tables.tables == ["ids", "usage_hot", "progress"]  # type: ignore[attr-defined]


def test_the_four_transforms_together_book_a_fetch(stages: Runtime) -> None:
    with pipeline() as p:
        p | beam.Create([fetch()]) | DecodeUsage(CONFIG) | CountOnce(CONFIG) | SumUsage(CONFIG) | WriteUsage(CONFIG)
    assert stages.tables.tables[-1] == "progress"  # type: ignore[attr-defined]
    assert OPEN[TOPIC_ID, 0].acknowledged is not None and not OPEN[TOPIC_ID, 0].unwritten


def test_a_runner_that_would_take_the_stages_apart_is_told_so(stages: Runtime) -> None:
    """A block of a numbered batch knows how to write its rows as events, and that cannot be carried."""
    carried = block(stages)
    for part in carried.parts:
        part.body_of = lambda row: b""
    with pytest.raises(Exception, match="Block: this runner carries it to another process"), pipeline() as p:
        p | beam.Create([carried]) | CountOnce(CONFIG)


def test_the_runner_has_one_worker_whatever_the_command_line_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one drops data without an error."""
    monkeypatch.setattr(sys, "argv", ["tallyman", "--direct_num_workers=4", "--direct_running_mode=multi_processing"])
    direct = worker.beam_options().view_as(DirectOptions)
    assert (direct.direct_num_workers, direct.direct_running_mode) == (1, "in_memory")


def test_the_service_builds_no_pipeline_without_these_options() -> None:
    """Every call of `beam.Pipeline` for the local runner in the room passes `options=beam_options()`."""
    calls = [
        ast.unparse(call)
        for path in Path(worker.__file__).parent.glob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "beam.Pipeline"
    ]
    local = [call for call in calls if "runner=PortableRunner()" not in call]
    assert local and all("options=beam_options()" in call for call in local)
