"""Read the usage of many accounts for one month: one question for each meter, filter and span, not for each account."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from invoices.account import Account
from invoices.build import Usage
from invoices.model import SubjectUsage
from rules.plan import Charge, Plan
from tallyman.money import plain
from tallyman.period import Period, month_period
from tallyman.usage import CollectorSeen, Gap, Repair, UsageAnswer, UsageQuery

MAX_SUBJECTS = 5_000  # of one question; a query is text and has a size
MAX_SUBJECTS_IN_ORDER = 100  # where every reading travels: some 25 MB a month for one that is read each minute

Where = tuple[tuple[str, tuple[str | None, ...]], ...]


class ReadUsage(Protocol):
    """Answers a question about usage: `tallyman.aggregates.read_usage` with its client."""

    def __call__(self, query: UsageQuery, /) -> UsageAnswer: ...


@dataclass(slots=True)
class Doubts:
    """Why usage that was read may be too little: what a seller should know before an invoice is final.

    Attributes:
        behind: By name, as the last answer saw them.
        unknown: Whether nobody knows up to when usage is complete, since some partition has not been reached yet.
    """

    repaired: set[Repair] = field(default_factory=set)
    gaps: set[Gap] = field(default_factory=set)
    held_by: set[CollectorSeen] = field(default_factory=set)
    behind: dict[str, CollectorSeen] = field(default_factory=dict)
    unknown: bool = False

    def note(self, answer: UsageAnswer) -> UsageAnswer:
        """Note what an answer says of itself, and return it. A collector that has said all of its range is no doubt."""
        self.repaired.update(answer.repaired)
        self.gaps.update(answer.gaps)
        self.behind.update((each.name, each) for each in answer.behind)
        self.unknown = self.unknown or answer.complete_to is None
        end = answer.query.end
        self.held_by.update(each for each in answer.held_by if each.watermark is not None and each.watermark < end)
        return answer


@dataclass(frozen=True, slots=True)
class Span:
    """A tenant that an account pays for, within a period."""

    subject: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class _Question:
    """What all accounts that are priced alike ask together."""

    meter: str
    where: Where
    start: datetime
    end: datetime


def period_of(plan: Plan, month: str) -> Period:
    """Return a plan's billing period of a month."""
    return month_period(month, plan.zone, plan.anchor_day)


def find_spans(account: Account, period: Period) -> tuple[Span, ...]:
    """Return which tenants an account pays for in a period, and from when to when; empty when for none."""
    spans = []
    for paid in account.subjects:
        begin, stop = paid.instants(period.zone)
        start, end = max(period.start, begin), min(period.end, stop)
        if start < end:
            spans.append(Span(paid.subject, start, end))
    return tuple(spans)


def gather_usage(
    read: ReadUsage,
    month: str,
    accounts: Sequence[tuple[Account, Plan]],
    up_to_booking: int | None,
    in_order: Collection[str] = (),
) -> dict[str, Usage]:
    """Return what each account used in a month, by account and charge.

    Args:
        up_to_booking: Count sealed usage up to this booking only; None counts all that has arrived (a preview).
        in_order: The meters whose answers follow from the order of all readings; of fewer tenants at once, so that what
            is in memory does not grow with their number.
    """
    asked: dict[_Question, set[str]] = defaultdict(set)
    for account, plan in accounts:
        for span in find_spans(account, period_of(plan, month)):
            for charge in plan.charges:
                if charge.meter is not None:
                    asked[_question(charge.meter, charge, span)].add(span.subject)
    answers = {}
    for question, subjects in asked.items():
        at_once = MAX_SUBJECTS_IN_ORDER if question.meter in in_order else MAX_SUBJECTS
        answers[question] = _ask(read, question, sorted(subjects), up_to_booking, at_once)
    return {account.account: _usage_of(account, plan, month, answers) for account, plan in accounts}


def _question(meter: str, charge: Charge, span: Span) -> _Question:
    where = tuple((name, tuple(values)) for name, values in sorted(charge.where.items()))
    return _Question(meter, where, span.start, span.end)


def _ask(
    read: ReadUsage, question: _Question, subjects: Sequence[str], up_to_booking: int | None, at_once: int
) -> dict[str, tuple[Decimal, int]]:
    found: dict[str, tuple[Decimal, int]] = {}
    for first in range(0, len(subjects), at_once):
        query = UsageQuery(  # in no zone: of a total none is asked for
            meter=question.meter,
            start=question.start,
            end=question.end,
            subjects=tuple(subjects[first : first + at_once]),
            where=dict(question.where),
            sealed_only=up_to_booking is not None,
            up_to_booking=up_to_booking,
        )
        for row in read(query).rows:
            subject = row.groups.get("subject")
            if subject is not None:
                found[subject] = (Decimal(plain(row.value)), row.events)
    return found


def _usage_of(
    account: Account,
    plan: Plan,
    month: str,
    answers: Mapping[_Question, Mapping[str, tuple[Decimal, int]]],
) -> Usage:
    usage: dict[str, list[SubjectUsage]] = defaultdict(list)
    for span in find_spans(account, period_of(plan, month)):
        for charge in plan.charges:
            if charge.meter is None:
                continue
            found = answers[_question(charge.meter, charge, span)].get(span.subject)
            if found is not None:
                usage[charge.charge].append(
                    SubjectUsage(
                        subject=span.subject, start=span.start, end=span.end, quantity=found[0], events=found[1]
                    )
                )
    return usage
