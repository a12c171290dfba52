"""What can be audited: meters that there are or were, in a range that holds something."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.audit import AuditQuestion, check_question
from tallyman import books
from tallyman.control import open_control
from tallyman.errors import UsageQueryError
from tallyman.meter import Definitions, Meter

OCTOBER, NOVEMBER = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """Books with two definitions: the second lacks a meter of the first."""
    engine = open_control(f"sqlite:///{tmp_path / 'control.db'}")
    books.prepare(engine)
    for slugs in (("server.hours", "ip.hours"), ("server.hours",)):
        meters = tuple(Meter(meter=slug, event_type="server", aggregation="sum", value="hours") for slug in slugs)
        books.add_definitions(engine, Definitions(number=0, meters=meters))
    yield engine
    engine.dispose()


def test_a_meter_that_is_not_there_any_more_can_be_audited(engine: sa.Engine) -> None:
    check_question(engine, AuditQuestion(meters=("ip.hours", "server.hours"), start=OCTOBER, end=NOVEMBER))


def test_a_mistyped_meter_is_not_equal_to_nothing(engine: sa.Engine) -> None:
    with pytest.raises(UsageQueryError, match=r'--meter: .*, got "server.hour"; did you mean "server.hours"\?'):
        check_question(engine, AuditQuestion(meters=("server.hour",)))


def test_a_range_of_nothing_is_not_equal_to_nothing(engine: sa.Engine) -> None:
    for start in (OCTOBER, NOVEMBER):
        with pytest.raises(UsageQueryError, match=r"--to: expected a moment after --from, got 2026-10-01 00:00 "):
            check_question(engine, AuditQuestion(start=start, end=OCTOBER))
