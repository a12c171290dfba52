"""How Beam would carry our elements between processes, which it never does: reading, folding and writing are fused.

That holds for the local runner and for Flink, and what stands behind the reader relies on it. Beam samples the size of
elements by encoding them, in every bundle anew; for a fetch or a block of megabytes that cost more than folding it.
This coder says a size without looking.
"""

from __future__ import annotations

import pickle
from typing import Any

import apache_beam as beam

from pipeline.batches import Fetch
from pipeline.columns import Block
from pipeline.write import Flush


class FusedCoder(beam.coders.Coder):
    """Pickles if it must, and estimates for nothing."""

    def encode(self, value: Any) -> bytes:
        try:
            return pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"{type(value).__name__}: this runner carries it to another process, but reading, counting and "
                "writing must stay together: use FnApiRunner, or PortableRunner on Flink"
            ) from error

    def decode(self, encoded: bytes) -> Any:
        return pickle.loads(encoded)  # noqa: S301 - written by this very process

    def estimate_size(self, value: Any) -> int:
        return 1

    def is_deterministic(self) -> bool:
        return False


for element in (Fetch, Block, Flush):
    beam.coders.registry.register_coder(element, FusedCoder)
