"""What is said of collectors: a line each, whatever they call themselves."""

from __future__ import annotations

from datetime import UTC, datetime

from tallyman.cli.collectors import behind_text, gap_text, held_text
from tallyman.cli.stack import _print_books
from tallyman.usage import CollectorSeen, Gap

NAME = "node-7\ncomplete up to 2026-11-01 00:00 +00:00 (UTC)"
NOON = datetime(2026, 10, 31, 12, tzinfo=UTC)
SEEN = CollectorSeen(
    name=NAME, state="silent", watermark=NOON, last_heard=NOON, epoch="a", sequence=1, epochs=1,
    subjects=frozenset(), types=frozenset(),
)  # fmt: skip


def test_no_collector_writes_lines_of_its_own_into_what_is_said_of_it(capsys):
    """Whoever may send batches chooses the name, and a second line would say that usage is complete."""
    gaps = [Gap(collector=NAME, epoch="a", first=1, last=last, start=NOON, end=NOON) for last in (None, 1, 2)]
    told = [held_text(SEEN, UTC), behind_text(SEEN, UTC), *(gap_text(gap, UTC) for gap in gaps)]
    assert all("node-7\\ncomplete" in line and "\n" not in line for line in told)
    held = {"collector": NAME, "silent_since": NOON}
    _print_books({"complete_to": NOON, "sealed_to": 1, "quarantined": [], "held_by": [held]})
    assert len(capsys.readouterr().out.splitlines()) == 2
