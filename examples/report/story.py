"""What happened in a run of the demo, as values that the page and the terminal both show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the run, how long it took, and the sentence that it ended with."""

    name: str
    took_s: float
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmStep:
    """One transition of an alarm, as the receiver got and verified it.

    Attributes:
        at_s: Seconds since the run's live part began.
    """

    alarm: str
    state: str
    at: datetime
    at_s: float
    value: str
    webhook_id: str
    took_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLine:
    """What a tenant used of a meter, with what the generator says it must be."""

    tenant: str
    subject: str
    meter: str
    dimensions: str
    unit: str
    value: Decimal
    expected: Decimal
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """One invoice and where its files lie, relative to the page."""

    number: str
    name: str
    currency: str
    net: str
    tax: str
    total: str
    html: str
    json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyChart:
    """A tenant's usage by local day; `values` are (day of the month, quantity in `unit`)."""

    tenant: str
    title: str
    unit: str
    zone: str
    values: Sequence[tuple[str, Decimal]]


@dataclass(slots=True, kw_only=True)
class Story:
    """Everything that a run found out, filled in step by step."""

    month: str
    operator: str
    started: datetime
    host: str
    steps: list[Step] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    live: list[tuple[float, Decimal]] = field(default_factory=list)
    threshold: Decimal = Decimal(0)
    threshold_label: str = ""
    alarms: list[AlarmStep] = field(default_factory=list)
    host_usage: list[UsageLine] = field(default_factory=list)
    usage: list[UsageLine] = field(default_factory=list)
    invoices: list[InvoiceLine] = field(default_factory=list)
    charts: list[DailyChart] = field(default_factory=list)

    @property
    def took_s(self) -> float:
        return sum(step.took_s for step in self.steps)

    @property
    def same(self) -> int:
        """How many totals of the month are what the generator says they must be."""
        return sum(line.value == line.expected for line in self.usage)
