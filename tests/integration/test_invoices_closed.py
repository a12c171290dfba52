"""What a final invoice says of usage is found, whatever part of its period is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

import pytest
import sqlalchemy as sa

from invoices import store
from invoices.closed import find_invoiced
from tallyman.control import open_control
from tests.unit.invoices.sample import NIMBUS, build

DAY = timedelta(days=1)


@pytest.fixture
def engine(control_url: str) -> Iterator[sa.Engine]:
    engine = open_control(control_url)
    store.prepare(engine)
    yield engine
    engine.dispose()


def test_usage_that_a_final_invoice_has_a_line_for_is_found_and_other_usage_is_not(engine: sa.Engine) -> None:
    draft = build()
    start, end = draft.start, draft.end
    meter = next(line.meter for line in draft.lines if line.meter)
    assert find_invoiced(engine, [meter], start, end) is None
    final = store.finalise(engine, draft, NIMBUS.numbers, date(2026, 11, 2)).invoice
    for first, last in ((start, end), (end - DAY, end + 300 * DAY), (start - 300 * DAY, start + DAY)):
        found = find_invoiced(engine, ["other", meter], first, last)
        assert found is not None
        assert (found.number, found.account, found.meter) == (final.number, final.account, meter)
    assert find_invoiced(engine, [meter], end, end + DAY) is None
    assert find_invoiced(engine, [meter], start - DAY, start) is None
    assert find_invoiced(engine, ["other"], start, end) is None
