"""What accounts pay when a meter's definitions changed within the month."""

from __future__ import annotations

from dataclasses import replace

import pytest

from invoices import batch
from tests.integration.test_invoices_batch import LAST_MINUTE, NOVEMBER_1, cpu, project  # noqa: F401
from tests.usage_rows import seal

pytestmark = pytest.mark.integration
EARLY = """\
accounts:
  - account: acct-0005
    name: Early AB
    address: [Storgatan 1, 111 22 Stockholm]
    country: SE
    plan: standard
    tax: {category: G}
    subjects: [{subject: tenant-early, from: 2026-01-01}]
"""


def test_an_account_pays_the_same_whoever_else_is_invoiced(project, client):  # noqa: F811
    (project.folder / "accounts" / "more.yaml").write_text(EARLY, "utf-8")
    seal(
        client, NOVEMBER_1,
        cpu("720000", subject="tenant-early"),
        replace(cpu("2", LAST_MINUTE), definitions=2, parameters='{"factor":"3600/1"}'),  # tenant-zoë, in hours now
    )  # fmt: skip
    (alone,) = batch.preview(project, "2026-10", ["acct-0005"], client=client)
    (early,) = [each for each in batch.preview(project, "2026-10", client=client) if each.account == "acct-0005"]
    assert early.gross == alone.gross
