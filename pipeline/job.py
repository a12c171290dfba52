"""The Beam job: read usage, decode it, count it once, sum it, write it.

Five fused transforms, no shuffle between them: a block is folded and its flushes are acknowledged before the next
block of its partition is cut. What each does is a method of `pipeline.runtime.Runtime`, so that tests and other
drivers need no runner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import apache_beam as beam
from apache_beam.runners.worker.statesampler import StateSampler

from pipeline import coder as coder  # registers the coder of our elements
from pipeline.batches import Fetch
from pipeline.columns import Block
from pipeline.read import ALONE, BESIDE_OTHERS, ReadUsage, no_lane
from pipeline.runtime import JobConfig, next_position, restart_place, runtime, turn
from pipeline.write import Flush

# Beam samples which step is busy, at pauses that grow up to its default of 200 ms, and a bundle ends only with the
# sampler's last pause: a tenth of all the time went there (bench/latency.py). Sampling this often is a thread in C.
_SAMPLE_EVERY_MS = 5
StateSampler.__init__.__defaults__ = (_SAMPLE_EVERY_MS,)


class _Stage(beam.DoFn):
    def __init__(self, config: JobConfig) -> None:
        self.config = config


class _Decode(_Stage):
    def process(self, fetch: Fetch) -> Iterator[Block]:
        yield from runtime(self.config).decode(fetch)


class _Count(_Stage):
    def process(self, block: Block) -> Iterator[Block]:
        yield runtime(self.config).count(block)


class _Sum(_Stage):
    def process(self, block: Block) -> Iterator[Flush]:
        yield from runtime(self.config).sum(block)


class _Write(_Stage):
    def process(self, flush: Flush) -> None:
        runtime(self.config).write(flush)


class _Transform(beam.PTransform):
    stage: type[_Stage]
    output: type

    def __init__(self, config: JobConfig) -> None:
        super().__init__()
        self.config = config

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        return elements | beam.ParDo(self.stage(self.config)).with_output_types(self.output)


class DecodeUsage(_Transform):
    """Fetch -> Block: cut at chunks, bookings and definitions; JSON and Arrow to columns of scaled integers."""

    stage, output = _Decode, Block


class CountOnce(_Transform):
    """Block -> Block: late events, strangers and copies set aside; what is left counts."""

    stage, output = _Count, Block


class SumUsage(_Transform):
    """Block -> Flush: totals by (meter, subject, dimensions, minute) of the open chunk, cut now and then."""

    stage, output = _Sum, Flush


class WriteUsage(_Transform):
    """Flush -> nothing: rows to ClickHouse, in the order on which the promises rest."""

    stage, output = _Write, type(None)


def build(
    pipeline: beam.Pipeline, config: JobConfig, partitions: Sequence[int] | None = None, *, apart: bool = False
) -> None:
    """Lay out the streaming job.

    Args:
        partitions: Which ones this job reads; all that it may unless told.
        apart: Whether the runner works on several partitions at once in threads of a process.
    """
    (
        pipeline
        | "ReadUsage"
        >> ReadUsage(
            config.brokers,
            config.topic,
            config.topic_id,
            config.assigned if partitions is None else partitions,
            positions=partial(next_position, config),
            restart=partial(restart_place, config),
            turn=turn if apart else no_lane,
            pace=BESIDE_OTHERS if apart else ALONE,
        )
        | "DecodeUsage" >> DecodeUsage(config)
        | "CountOnce" >> CountOnce(config)
        | "SumUsage" >> SumUsage(config)
        | "WriteUsage" >> WriteUsage(config)
    )
