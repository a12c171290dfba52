"""20,000 made and mutated records: each ends where the reference says, nothing raises, memory stays flat."""

from __future__ import annotations

from tests.fuzz.run import Run

FATES = ("aggregated", "duplicate", "dead", "ignored", "forwarded")


def test_whatever_a_client_sends_ends_where_the_reference_says_and_memory_stays_flat() -> None:
    """`python -m tests.fuzz` does it with a million."""
    reports = list(Run(seed=5, records=20_000).go())
    last = reports[-1]
    assert last.records >= 20_000
    assert all(last.fates[name] > 100 for name in FATES) and last.fates["conflict"] > 0
    assert len(last.reasons) >= 15
    assert last.rss_mb - reports[0].rss_mb < 300
