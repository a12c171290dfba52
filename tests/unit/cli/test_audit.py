"""What `tallyman audit usage` ends with: equal, different, what could not be checked, and wrong usage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.audit import AuditReport, ChunkDifference, Span, Unchecked
from tallyman.cli import run
from tallyman.errors import UsageQueryError

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
