"""The monthly batch: read sealed usage, rate, number, store, write the documents. Run it as often as you like.

What was issued stays as it is; a run adds what is missing: invoices, then their files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from invoices import store
from invoices.account import Account, Entity
from invoices.build import build_invoice
from invoices.cutoff import read_cut_off, refuse_unsealed
from invoices.documents import IssuedInvoice, write_documents
from invoices.gather import Doubts, ReadUsage, find_spans, gather_usage, period_of
from invoices.load import read_accounts, read_entity
from invoices.model import CutOff, Invoice
from rules.plan import Plan
from rules.plan_load import read_plans
from tallyman import generations
from tallyman.aggregates import read_usage
from tallyman.clickhouse import connect
from tallyman.control import open_control
from tallyman.errors import ConfigError, TallymanError
from tallyman.files import nearest
from tallyman.meter import BY_MOMENT
from tallyman.money import Money
from tallyman.period import find_zone
from tallyman.project import Project
from tallyman.rebuilds import read_switches
from tallyman.usage import UsageAnswer, UsageQuery

if TYPE_CHECKING:
    from clickhouse_driver import Client

ACCOUNTS_AT_ONCE = 1_000  # what is in memory does not grow with the number of accounts

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """What a run did.

    Attributes:
        issued: Made final by this run.
        unchanged: Final before; their files were put back where missing.
        empty: Accounts that owe nothing and used nothing.
        failed: (account, what is wrong and what to do); the others are not disturbed.
        doubts: Why usage that this run read may be too little.
    """

    month: str
    issued: tuple[IssuedInvoice, ...] = ()
    unchanged: tuple[IssuedInvoice, ...] = ()
    empty: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    doubts: Doubts = field(default_factory=Doubts)


@dataclass(frozen=True, slots=True)
class Books:
    """Who sells, who buys, and at which prices, as the project's files say now."""

    entity: Entity
    plans: Mapping[str, Plan]
    accounts: tuple[Account, ...]
    units: Mapping[str, str]
    in_order: frozenset[str] = frozenset()  # the meters whose readings are read one by one

    def plan_of(self, account: Account) -> Plan:
        """Return the plan that an account is on."""
        return self.plans[account.plan]


def preview(
    project: Project,
    month: str,
    accounts: Sequence[str] = (),
    *,
    client: Client | None = None,
    doubts: Doubts | None = None,
) -> tuple[Invoice, ...]:
    """Return drafts of a month from all usage that has arrived, sealed or not. Nothing is stored.

    Args:
        accounts: Their ids; empty for all.
        doubts: Gets why usage may be too little.

    Raises:
        ConfigError, InvoiceError: A file is wrong, or something cannot be priced.
    """
    books = read_books(project, accounts)
    client = client or connect(project.clickhouse)
    read = _reader(client, project, doubts or Doubts())
    sealed = read_cut_off(client)
    cut_off = CutOff(booking=sealed.booking, sealed=False)
    drafts = []
    for some in _slices(books.accounts):
        for _, draft in _build_some(books, some, month, read, cut_off):
            if isinstance(draft, TallymanError):
                raise draft
            if draft is not None:
                drafts.append(draft)
    return tuple(drafts)


def read_final(project: Project, month: str) -> Mapping[str, tuple[str, Money]]:
    """Return account -> (number, gross amount) of the invoices of a month that are final, which a run leaves alone."""
    entity = read_entity(project.folder / project.config.invoices.entity)
    engine = open_control(project.control_url)
    try:
        return store.find_final(engine, entity.entity, month)
    finally:
        engine.dispose()


def run(
    project: Project,
    month: str,
    accounts: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    *,
    now: datetime | None = None,
    client: Client | None = None,
) -> BatchReport:
    """Make the invoices of a month final and write their documents.

    Args:
        accounts: Their ids; empty for all.
        on_progress: Called with (done, total, account) after each account.
        now: Gives the invoices' date, in the entity's zone.

    Raises:
        ConfigError: A file is wrong.
        InvoiceError: The month is not sealed yet; says which booking is missing and what to do.
        RebuildError: A store was restored from a backup, and does not hold what counts; says what to do.
    """
    books = read_books(project, accounts)
    issued_on = (now or datetime.now(UTC)).astimezone(find_zone(books.entity.zone)).date()
    engine = open_control(project.control_url)
    try:
        store.prepare(engine)
        outcomes = _Outcomes(month, project.invoices_folder, len(books.accounts), on_progress)
        waiting = [account for account in books.accounts if not outcomes.repeat(engine, books.entity, account)]
        if waiting:
            client = client or connect(project.clickhouse)
            generations.prepare(engine)
            switched = generations.publish(engine, client).switched  # before the list is read: it is that, or newer
            read = _reader(client, project, outcomes.doubts)
            cut_off = read_cut_off(client)
            refuse_unsealed(
                month, {books.plan_of(account).plan: books.plan_of(account) for account in waiting}, cut_off
            )
            for some in _slices(waiting):
                for account, draft in _build_some(books, some, month, read, cut_off):
                    outcomes.issue(engine, books.entity, account, draft, issued_on, switched)
        return outcomes.report()
    finally:
        engine.dispose()


def read_books(project: Project, accounts: Sequence[str] = ()) -> Books:
    """Read plans, accounts and the selling entity of a project.

    Raises:
        ConfigError: A file is wrong, or an account is asked for that is not there.
    """
    plans = read_plans(project.folder / "plans", project.meters)
    known = read_accounts(project.folder / "accounts", plans)
    for name in accounts:
        if name not in known:
            raise ConfigError(f'accounts: unknown account "{name}"{nearest(name, known)}')
    chosen = tuple(account for name, account in sorted(known.items()) if not accounts or name in accounts)
    if not chosen:
        raise ConfigError(f"{project.folder / 'accounts'}: no account to invoice; add one")
    entity = read_entity(project.folder / project.config.invoices.entity)
    units = {meter.meter: meter.unit for meter in project.meters}
    in_order = frozenset(meter.meter for meter in project.meters if meter.aggregation in BY_MOMENT)
    return Books(entity, plans, chosen, units, in_order)


class _Outcomes:
    """Collects what became of each account, and writes documents as it goes."""

    def __init__(self, month: str, folder: Path, total: int, on_progress: OnProgress | None) -> None:
        self._month = month
        self._folder = folder
        self._total = total
        self._on_progress = on_progress
        self._issued: list[IssuedInvoice] = []
        self._unchanged: list[IssuedInvoice] = []
        self._empty: list[str] = []
        self._failed: list[tuple[str, str]] = []
        self.doubts = Doubts()

    def repeat(self, engine: sa.Engine, entity: Entity, account: Account) -> bool:
        """Put the documents of an invoice back that is final already; False when there is none yet."""
        try:
            known = store.find_invoice(engine, entity.entity, account.account, self._month)
            if known is None:
                return False
            self._unchanged.append(write_documents(engine, known, self._folder))
        except (TallymanError, OSError) as error:
            self._failed.append((account.account, str(error)))
        self._step(account)
        return True

    def issue(
        self,
        engine: sa.Engine,
        entity: Entity,
        account: Account,
        draft: Invoice | TallymanError | None,
        issued_on: date,
        switched: int,
    ) -> None:
        """Make a draft final and write its documents, or remember why not."""
        try:
            if isinstance(draft, TallymanError):
                raise draft
            if draft is not None and draft.lines:
                stored = store.finalise(engine, draft, entity.numbers, issued_on, switched)
                done = self._issued if stored.is_new else self._unchanged
                done.append(write_documents(engine, stored, self._folder))
            else:
                self._empty.append(account.account)
        except (TallymanError, OSError) as error:
            self._failed.append((account.account, str(error)))
        self._step(account)

    def report(self) -> BatchReport:
        """Return what happened."""
        return BatchReport(
            month=self._month,
            issued=tuple(self._issued),
            unchanged=tuple(self._unchanged),
            empty=tuple(self._empty),
            failed=tuple(self._failed),
            doubts=self.doubts,
        )

    def _step(self, account: Account) -> None:
        done = len(self._issued) + len(self._unchanged) + len(self._empty) + len(self._failed)
        if self._on_progress is not None:
            self._on_progress(done, self._total, account.account)


def _build_some(
    books: Books, some: Sequence[Account], month: str, read: ReadUsage, cut_off: CutOff
) -> Iterator[tuple[Account, Invoice | TallymanError | None]]:
    """Yield each account's draft, what is wrong with it, or None when it pays for nobody in this month."""
    up_to_booking = cut_off.booking if cut_off.sealed else None
    priced = [(account, books.plan_of(account)) for account in some]
    usage = gather_usage(read, month, priced, up_to_booking, books.in_order)
    for account in some:
        plan = books.plan_of(account)
        period = period_of(plan, month)
        draft: Invoice | TallymanError | None = None
        if find_spans(account, period):
            try:
                draft = build_invoice(account, plan, usage[account.account], period, books.entity, cut_off, books.units)
            except TallymanError as error:
                draft = error
        yield account, draft


def _reader(client: Client, project: Project, doubts: Doubts) -> ReadUsage:
    # The list of rebuilds is read once, and before the seal: all lines of a run agree, whoever switches meanwhile.
    switches = read_switches(client)

    def read(query: UsageQuery, /) -> UsageAnswer:
        return doubts.note(read_usage(client, query, meters=project.meters, switches=switches))

    return read


def _slices(accounts: Sequence[Account]) -> Iterator[Sequence[Account]]:
    for first in range(0, len(accounts), ACCOUNTS_AT_ONCE):
        yield accounts[first : first + ACCOUNTS_AT_ONCE]
