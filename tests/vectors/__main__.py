"""`python -m tests.vectors metering [FILE]`: run cases through the real parts; exit code 0 if none failed."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tallyman.errors import TallymanError
from tests.vectors import METERING
from tests.vectors.model import Verdict, read_vectors
from tests.vectors.run import real_parts, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a file of cases and print what came of them.

    Returns:
        0 if nothing failed, 1 if something did, 2 if the file or the parts cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.vectors", description=__doc__)
    parser.add_argument("model", choices=["metering"])
    parser.add_argument("file", nargs="?", type=Path, default=METERING, help="cases; without one, those of tests/data")
    parser.add_argument("--verbose", action="store_true", help="print also what passed, with our answers")
    asked = parser.parse_intermixed_args(arguments)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # it speaks of a broker that is away on purpose
    began = time.monotonic()
    try:
        vectors = read_vectors(asked.file)
        with tempfile.TemporaryDirectory(prefix="vectors-") as folder, real_parts(Path(folder)) as (broker, clickhouse):
            verdicts = run(vectors, broker, clickhouse, Path(folder))
    except (OSError, ValueError, AssertionError, TallymanError) as error:
        print(f"{asked.file}: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(verdicts, verbose=asked.verbose)))
    print(f"{len(vectors)} cases in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(any(verdict.outcome == "failed" for verdict in verdicts))


def report(verdicts: Sequence[Verdict], *, verbose: bool = False) -> list[str]:
    """Return the lines to print: what must be known, what failed, and how many passed last."""
    lines = []
    remarks = Counter(remark for verdict in verdicts for remark in verdict.remarks)
    for remark in remarks:
        named = [verdict.vector.id for verdict in verdicts if remark in verdict.remarks]
        lines.append(f"remark: {remark}: {', '.join(named)}")
    of = {outcome: [each for each in verdicts if each.outcome == outcome]
          for outcome in ("passed", "diverges", "not offered", "failed")}  # fmt: skip
    if verbose:
        lines += [f"passed {each.vector.id}: {each.text}" for each in of["passed"]]
    for each in of["diverges"]:
        vector = each.vector
        lines.append(f"diverges {vector.id}: theirs {vector.theirs}; ours {each.text}; because: {vector.note or '-'}")
    lines += [f"not offered {each.vector.id}: {each.text}" for each in of["not offered"]]
    for each in of["failed"]:
        vector = each.vector
        lines.append(f"FAILED {vector.id} ({vector.kind}, {vector.stance}): {each.text}")
    if of["diverges"] or of["not offered"]:
        lines.append(f"{len(of['diverges'])} documented divergences, {len(of['not offered'])} not offered")
    return [*lines, f"{len(of['passed'])} passed, {len(of['failed'])} failed"]


if __name__ == "__main__":
    sys.exit(main())
