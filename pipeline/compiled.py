"""The compiled loops, if this machine has them: `pipeline.kernel` and `pipeline.id_kernel` need numba, which may be
absent.

Without them, and where they do not give what Python gives, `pipeline.lookalikes` and numpy do the same at half the
speed, with the same answers. `TALLYMAN_COMPILED=no` does without them, too.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import os
import tempfile
from types import ModuleType

import numpy as np
from crc32c import crc32c

log = logging.getLogger(__name__)


@functools.cache
def load_kernel() -> ModuleType | None:
    """Return the compiled loops, or nothing. The first call on a machine compiles for some seconds, later ones load."""
    kernel = _load("pipeline.kernel")
    if kernel is not None and not _is_right(kernel):
        log.warning("not_compiled", extra={"error": "the compiled loops hash otherwise than hashlib"})
        return None
    return kernel


@functools.cache
def load_id_kernel() -> ModuleType | None:
    """Return the compiled loops over identities, or nothing, as `load_kernel`."""
    return _load("pipeline.id_kernel")


def _load(name: str) -> ModuleType | None:
    if os.environ.get("TALLYMAN_COMPILED") == "no":
        return None
    try:
        return _import(name)
    except ImportError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever a compiler may raise: there is another way
        log.warning("not_compiled", extra={"error": str(error)[:300]})
        return None


def _import(name: str) -> ModuleType:
    """Import loops; what is compiled is kept beside them, else in the user's cache folder, else for now."""
    try:
        return importlib.import_module(name)
    except RuntimeError:  # numba found no folder that it may write to
        import numba

        numba.config.CACHE_DIR = tempfile.mkdtemp(prefix="tallyman-")
        return importlib.import_module(name)


def _is_right(kernel: ModuleType) -> bool:
    """Compare hashes of every length with Python's own: an identity that is wrong would count an event twice."""
    texts = [bytes((3 * size + n) % 256 for n in range(size)) for size in range(kernel.BLOCK)]
    ends = np.cumsum([len(text) for text in texts])
    starts = ends - [len(text) for text in texts]
    joined = b"".join(texts) + bytes(kernel.PADDING)
    # Of each text a part is the prefix, the rest the id.
    middle = starts + (ends - starts) // 3
    array, words = np.frombuffer(joined, np.uint8), np.zeros((len(texts), 2), np.uint64)
    prefixes = b"".join(text[: len(text) // 3] for text in texts) + bytes(kernel.PADDING)
    edges = np.concatenate([[0], np.cumsum(middle - starts)])
    kernel.identify(array, np.stack([middle, ends], axis=1), np.arange(len(texts)), np.frombuffer(prefixes, np.uint8),
                    edges, words)  # fmt: skip
    if words.tobytes() != b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts):
        return False
    if not kernel.HAS_CRC:
        return True
    digests = np.zeros(len(texts), np.uint64)
    kernel.digest_lines(array, starts, ends, digests)
    return digests.tolist() == [crc32c(text) for text in texts]
