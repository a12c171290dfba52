"""How usage is asked for: many tenants at once, and fewer where every single reading travels."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from invoices.account import AccountSubject
from invoices.gather import MAX_SUBJECTS_IN_ORDER, gather_usage
from tallyman.usage import UsageAnswer, UsageQuery
from tests.unit.invoices.sample import PLAN, ZOE


@pytest.mark.parametrize(("in_order", "most"), [((), 250), (("compute.vcpu",), MAX_SUBJECTS_IN_ORDER)])
def test_of_what_is_read_one_by_one_fewer_tenants_are_asked_for_at_once(in_order, most):
    asked: list[UsageQuery] = []

    def read(query: UsageQuery, /) -> UsageAnswer:
        asked.append(query)
        return UsageAnswer(query=query, unit="", rows=(), complete_to=None, sealed_to=0)

    tenants = tuple(AccountSubject(subject=f"tenant-{n}", from_=date(2026, 1, 1)) for n in range(250))
    gather_usage(read, "2026-10", [(replace(ZOE, subjects=tenants), PLAN)], None, in_order)
    sizes = [len(query.subjects) for query in asked if query.meter == "compute.vcpu"]
    assert (max(sizes), sum(sizes)) == (most, 250)
