"""What `tallyman audit usage` ends with: equal, different, what could not be checked, and wrong usage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit import AuditReport, ChunkDifference, Span, Unchecked
from tallyman.cli import run
from tallyman.errors import UsageQueryError
from tallyman.reconcile import ChunkCounts

SPAN = Span("usage.events.v1", 0, 0, 18_210)
GONE = Unchecked(SPAN, (20_757_000, 20_757_001), "the log begins at offset 18211")
OTHER = ChunkDifference(SPAN, "accepted identities", "7", "8")


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (AuditReport(source="log"), 0),
        (AuditReport(source="log", chunks=[OTHER], unchecked=[GONE]), 1),
        (AuditReport(source="log", unchecked=[GONE]), 3),
        (UsageQueryError('--meter: expected one that is or was in force, got "hots"'), 2),
    ],
    ids=["equal", "different", "not all could be checked", "wrong usage"],
)
def test_each_finding_of_an_audit_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: AuditReport | UsageQueryError, code: int
) -> None:
    (tmp_path / "tallyman.yaml").write_text("clickhouse: {host: ch-1}\n", encoding="utf-8")

    def audit_usage(*_: Any) -> AuditReport:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("pipeline.audit.audit_usage", audit_usage)
    assert run(["audit", "usage", "--project", str(tmp_path)]) == code


def test_counts_of_one_topic_fit_a_terminal_and_what_is_nothing_has_no_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tallyman.yaml").write_text("clickhouse: {host: ch-1}\n", encoding="utf-8")
    counts = ChunkCounts(topic_id="4L6g3nShT-eMCtK--X86sw", partition=0, chunk=0, first=0, behind=4_000_000_000,
                         received=4_000_000_000, aggregated=3_999_999_990, duplicate=8, dead=2, ignored=0, forwarded=0,
                         conflict=0, letters=2, conflicts=0)  # fmt: skip
    for topics in (1, 2):
        every = [replace(counts, topic_id=f"{counts.topic_id}{n}", partition=n) for n in range(topics)]
        monkeypatch.setattr("tallyman.reconcile.read_counts", lambda client, every=every: tuple(every))
        monkeypatch.setattr("tallyman.repairs.read_repairs", lambda client: ())
        monkeypatch.setattr("tallyman.repairs.read_lost", lambda client: ())
        assert run(["audit", "counts", "--by", "chunk", "--project", str(tmp_path)]) == 0
        told = capsys.readouterr()
        head, _, *rows = told.out.splitlines()
        assert head.split() == [*(["topic"] if topics > 1 else ()), "partition", "chunk", "from", "to", "received",
                                "aggregated", "duplicate", "dead"]  # fmt: skip
        assert len(rows) == topics and rows[0].split()[-4:] == ["4000000000", "3999999990", "8", "2"]
        assert "0 everywhere: ignored, forwarded, conflict" in told.err
        assert topics > 1 or max(map(len, told.out.splitlines())) <= 80
    monkeypatch.setattr("tallyman.reconcile.read_counts", lambda client: (replace(counts, letters=1),))
    assert run(["audit", "counts", "--project", str(tmp_path)]) == 1
    head = capsys.readouterr().out.splitlines()[0]
    assert head.split()[-2:] == ["dead", "letters"], "what does not reconcile is shown"
    monkeypatch.setattr("tallyman.reconcile.read_counts", lambda client: ())
    assert run(["audit", "counts", "--project", str(tmp_path)]) == 0, "nothing is booked yet"
